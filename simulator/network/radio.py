"""The radio of a mobile device: its states, the wait until it is awake, and its energy.

Three states: awake; connected but asleep in cycles (DRX: discontinuous reception), or in UMTS on a shared channel (FACH); idle.
Sources of the waits: 3GPP TS 36.321 (DRX), TS 36.331 and TS 25.331 (connection), TS 36.304 (paging). The operator chooses their
lengths; see the network catalogue.

The uplink may be scheduled (TS 36.321 sec. 5.4, TS 38.321 sec. 5.4): a message that finds the device's buffer empty waits for the next
opportunity of a scheduling request, then for the grant, then for the next uplink slot; or, with a configured grant, for its next
opportunity alone. Messages queued behind others use their grants. Opportunities are at equal intervals with a random offset per device,
so a message at a random time waits half a period on average.
"""

import math
from collections.abc import MutableSequence
from dataclasses import dataclass

import numpy as np

from simulator.core.rng import buffered

_ROUNDING = 1e-9  # share of a period by which a time may be after an opportunity and still meet it
_PHASE_S = 10.24  # period of the system frame numbers of LTE and NR, a multiple of most other periods


@dataclass(frozen=True)
class RadioFigures:
    """Figures of a radio; 0 for features that it does not have. An idle radio uses no energy here.

    Attributes:
        promotion_s: time from idle to connected.
        fach_promotion_s: time from the FACH to awake, for either direction; 0 for a radio that has DRX instead.
        inactivity_s: silence after which the radio is idle.
        drx_after_s: silence after which it sleeps in cycles; only the downlink waits for these.
        drx_cycle_s: length of a cycle.
        paging_cycle_s: interval at which an idle radio listens.
        grant_bytes: size of the first uplink grant.
        grant_s: wait of a larger message for another grant.
        sr_period_s: interval of opportunities to request the first grant.
        sr_grant_s: time from such an opportunity until the grant can be used.
        slot_s: interval of uplink slots; in practice the two times above are multiples of it; 0 if every slot is an uplink slot (FDD).
        configured_s: interval of the slots of a configured grant, which needs no request; 0 for none.
        promotion_w: power during promotions.
        active_w: power while awake.
        drx_w: power while asleep in cycles.
        up_j_per_byte: energy of each byte of the uplink, in addition.
        down_j_per_byte: the same for the downlink.
    """

    promotion_s: float = 0.0
    fach_promotion_s: float = 0.0
    inactivity_s: float = math.inf
    drx_after_s: float = math.inf
    drx_cycle_s: float = 0.0
    paging_cycle_s: float = 0.0
    grant_bytes: float = math.inf
    grant_s: float = 0.0
    sr_period_s: float = 0.0
    sr_grant_s: float = 0.0
    slot_s: float = 0.0
    configured_s: float = 0.0
    promotion_w: float = 0.0
    active_w: float = 0.0
    drx_w: float = 0.0
    up_j_per_byte: float = 0.0
    down_j_per_byte: float = 0.0

    @property
    def scheduled(self) -> bool:
        """Whether messages wait for uplink opportunities."""
        return self.sr_period_s + self.sr_grant_s + self.slot_s + self.configured_s > 0.0

    @property
    def mean_access_s(self) -> float:
        """Mean wait of a message for the uplink, at a random time; slots are aligned with the other periods."""
        if self.configured_s:
            return 0.5 * self.configured_s
        if not self.sr_period_s:
            return 0.5 * self.slot_s
        slots = math.ceil(self.sr_grant_s / self.slot_s - _ROUNDING) if self.slot_s else 0
        return 0.5 * self.sr_period_s + (slots * self.slot_s if self.slot_s else self.sr_grant_s)


class Radio:
    """The radio of one device. Messages of both directions come in order of time.

    Energy is added to `joules`, by request: that of a message, and of the tail after it until the radio is idle. The part that carries
    no message (promotions, tails) is also added to `static_joules`.

    Attributes:
        request: the request of the next message.
    """

    def __init__(
        self,
        figures: RadioFigures,
        stream: np.random.Generator,
        joules: MutableSequence[float],
        static_joules: MutableSequence[float],
    ) -> None:
        self.figures = figures
        self.request = 0
        self._uniform = buffered(stream.random)
        self.up = _Uplink(self)
        self.down = _Downlink(self)
        self._joules = joules
        self._static_joules = static_joules
        self._owner = -1  # request of the latest message; -1 before the first
        self._last_s = -math.inf  # end of the latest use
        self._connected_s = -math.inf  # end of the latest promotion

    def finish(self) -> None:
        """Book the energy of the last silence, after which no message follows."""
        self._rest(math.inf)

    def _connect(self, now_s: float) -> float:
        """Return the time at which the radio can send and receive if requested at `now_s`."""
        figures = self.figures
        silence_s = now_s - self._last_s
        if silence_s > figures.inactivity_s or self._owner < 0:
            promotion_s = figures.promotion_s
        elif silence_s > figures.drx_after_s and figures.fach_promotion_s > 0.0:
            promotion_s = figures.fach_promotion_s
        else:
            return max(now_s, self._connected_s)
        self._rest(now_s)
        self._owner = self.request
        self._wait(self.request, figures.promotion_w * promotion_s)
        self._connected_s = self._last_s = now_s + promotion_s
        return self._connected_s

    def _hear(self, now_s: float) -> float:
        """Return the time at which the radio can receive a message that the network has at `now_s`."""
        figures = self.figures
        silence_s = now_s - self._last_s
        if silence_s > figures.inactivity_s or self._owner < 0:
            return self._connect(now_s + figures.paging_cycle_s * self._uniform())
        if silence_s > figures.drx_after_s and figures.fach_promotion_s == 0.0:
            return now_s + figures.drx_cycle_s * self._uniform()
        return self._connect(now_s)

    def _use(self, start_s: float, end_s: float, joules: float) -> None:
        """Book the energy of a message from start to end, and of the silence before it. joules: energy of its bytes."""
        if start_s > self._last_s:
            self._rest(start_s)
            self._last_s = start_s
        if end_s > self._last_s:
            joules += self.figures.active_w * (end_s - self._last_s)
            self._last_s = end_s
        self._owner = self.request
        self._joules[self.request] += joules

    def _rest(self, until_s: float) -> None:
        """Book the energy of the silence since the latest use."""
        if self._owner >= 0:
            figures = self.figures
            silence_s = min(until_s - self._last_s, figures.inactivity_s)
            awake_s = min(silence_s, figures.drx_after_s)
            if awake_s < math.inf:
                self._wait(self._owner, figures.active_w * awake_s + figures.drx_w * (silence_s - awake_s))

    def _wait(self, request: int, joules: float) -> None:
        """Book energy that is used without carrying a message."""
        self._joules[request] += joules
        self._static_joules[request] += joules


class _Uplink:
    """`link.Gate` of the uplink: a message waits for a promotion or for a grant, and beyond the first grant for another grant."""

    __slots__ = ("_empty_s", "_phase_s", "_radio")

    def __init__(self, radio: Radio) -> None:
        self._radio = radio
        self._empty_s = -math.inf  # time at which the buffer became empty
        self._phase_s = _PHASE_S * radio._uniform() if radio.figures.scheduled else -1.0  # -1: not scheduled

    def wake(self, now_s: float) -> float:
        ready_s = self._radio._connect(now_s)
        if self._phase_s < 0.0 or now_s <= self._empty_s:
            return ready_s
        figures = self._radio.figures
        if ready_s > now_s and not figures.configured_s:  # a promotion ends with a grant
            return self._next(ready_s, figures.slot_s)
        return self.turn_s(ready_s)

    def turn_s(self, time_s: float) -> float:
        if self._phase_s < 0.0 or time_s == math.inf:
            return time_s
        figures = self._radio.figures
        if figures.configured_s:
            return self._next(time_s, figures.configured_s)
        return self._next(self._next(time_s, figures.sr_period_s) + figures.sr_grant_s, figures.slot_s)

    def _next(self, time_s: float, period_s: float) -> float:
        """Return the first opportunity at or after a time."""
        if not period_s:
            return time_s
        phase_s = self._phase_s % period_s
        return max(time_s, phase_s + period_s * math.ceil((time_s - phase_s) / period_s - _ROUNDING))

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        figures = self._radio.figures
        self._radio._use(start_s, end_s, figures.up_j_per_byte * wire_bytes)
        empty = start_s > self._empty_s
        self._empty_s = end_s
        return self.more_s(wire_bytes) if empty else 0.0

    def more_s(self, wire_bytes: float) -> float:
        """Return how long a message that finds an empty buffer waits for a second grant; 0 if it fits into the first one."""
        figures = self._radio.figures
        return figures.grant_s if wire_bytes > figures.grant_bytes else 0.0


class _Downlink:
    """`link.Gate` of the downlink: a message waits until a sleeping radio listens, or an idle one is paged and promoted."""

    __slots__ = ("_radio",)

    def __init__(self, radio: Radio) -> None:
        self._radio = radio

    def wake(self, now_s: float) -> float:
        return self._radio._hear(now_s)

    def turn_s(self, time_s: float) -> float:
        return time_s

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        self._radio._use(start_s, end_s, self._radio.figures.down_j_per_byte * wire_bytes)
        return 0.0

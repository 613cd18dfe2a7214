"""The radio of a mobile device: how long it sleeps when nothing is sent, how long waking takes, and what that costs in energy.

Three states: awake; connected but sleeping in cycles (DRX: discontinuous reception), or in UMTS on a shared channel (FACH); idle.
Waits are those of 3GPP TS 36.321 (DRX), TS 36.331 and TS 25.331 (connection) and TS 36.304 (paging); how long each lasts is
the operator's choice and stands in the network catalogue.
"""

import math
from collections.abc import MutableSequence
from dataclasses import dataclass

import numpy as np

_BLOCK = 64


@dataclass(frozen=True)
class RadioFigures:
    """A radio in seconds, watts and joules; figures are 0 where a radio has no such thing.

    drx_after_s: silence after which it sleeps in cycles of drx_cycle_s, in which only the downlink waits. inactivity_s: silence
    after which it is idle; promotion_s: back from there; fach_promotion_s: back from sleep, for either direction, where
    that is the FACH; paging_cycle_s: how often an idle device listens for a call.
    grant_bytes: what the first grant of an uplink carries; grant_s: one more grant, for a longer message.
    active_w: while awake; drx_w: while it sleeps in cycles; promotion_w: while it is promoted; an idle radio costs nothing here.
    up_j_per_byte, down_j_per_byte: more for each byte.
    """

    promotion_s: float = 0.0
    fach_promotion_s: float = 0.0
    inactivity_s: float = math.inf
    drx_after_s: float = math.inf
    drx_cycle_s: float = 0.0
    paging_cycle_s: float = 0.0
    grant_bytes: float = math.inf
    grant_s: float = 0.0
    promotion_w: float = 0.0
    active_w: float = 0.0
    drx_w: float = 0.0
    up_j_per_byte: float = 0.0
    down_j_per_byte: float = 0.0


class Radio:
    """The radio of one device. Messages come in order of time, whichever direction they go.

    Energy is booked to requests: `request` is the one whose message is next, and the silence after a message is its own, up to when
    the radio is idle. joules: to be added to, by request.
    """

    def __init__(self, figures: RadioFigures, stream: np.random.Generator, joules: MutableSequence[float]) -> None:
        self.figures = figures
        self.request = 0
        self.up = _Uplink(self)
        self.down = _Downlink(self)
        self._stream = stream
        self._uniforms: list[float] = []
        self._joules = joules
        self._owner = -1  # request of the latest message
        self._last_s = -math.inf  # when the radio was last in use
        self._connected_s = -math.inf

    def finish(self) -> None:
        """No more messages: the energy of the last silence."""
        self._rest(math.inf)

    def _connect(self, now_s: float) -> float:
        """When the radio can send and receive that is asked to at `now_s`."""
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
        self._joules[self.request] += figures.promotion_w * promotion_s
        self._connected_s = self._last_s = now_s + promotion_s
        return self._connected_s

    def _hear(self, now_s: float) -> float:
        """When a message of `now_s` from the network can be received."""
        figures = self.figures
        silence_s = now_s - self._last_s
        if silence_s > figures.inactivity_s or self._owner < 0:
            return self._connect(now_s + figures.paging_cycle_s * self._uniform())
        if silence_s > figures.drx_after_s and figures.fach_promotion_s == 0.0:
            return now_s + figures.drx_cycle_s * self._uniform()
        return self._connect(now_s)

    def _use(self, start_s: float, end_s: float, joules: float) -> None:
        if start_s > self._last_s:
            self._rest(start_s)
            self._last_s = start_s
        if end_s > self._last_s:
            joules += self.figures.active_w * (end_s - self._last_s)
            self._last_s = end_s
        self._owner = self.request
        self._joules[self.request] += joules

    def _rest(self, until_s: float) -> None:
        """Energy of the silence since the last use."""
        if self._owner >= 0:
            figures = self.figures
            silence_s = min(until_s - self._last_s, figures.inactivity_s)
            awake_s = min(silence_s, figures.drx_after_s)
            if awake_s < math.inf:
                self._joules[self._owner] += figures.active_w * awake_s + figures.drx_w * (silence_s - awake_s)

    def _uniform(self) -> float:
        uniforms = self._uniforms
        if not uniforms:
            uniforms.extend(self._stream.random(_BLOCK)[::-1].tolist())
        return uniforms.pop()


class _Uplink:
    """`link.Gate` of messages of the device: they wait for a promotion, and beyond the first grant for another one."""

    __slots__ = ("_empty_s", "_radio")

    def __init__(self, radio: Radio) -> None:
        self._radio = radio
        self._empty_s = -math.inf  # when the buffer ran empty

    def wake(self, now_s: float) -> float:
        return self._radio._connect(now_s)

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        figures = self._radio.figures
        self._radio._use(start_s, end_s, figures.up_j_per_byte * wire_bytes)
        again = wire_bytes > figures.grant_bytes and start_s > self._empty_s
        self._empty_s = end_s
        return figures.grant_s if again else 0.0


class _Downlink:
    """`link.Gate` of messages of the cloud: they wait until a sleeping device listens, or an idle one is paged and promoted."""

    __slots__ = ("_radio",)

    def __init__(self, radio: Radio) -> None:
        self._radio = radio

    def wake(self, now_s: float) -> float:
        return self._radio._hear(now_s)

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        self._radio._use(start_s, end_s, self._radio.figures.down_j_per_byte * wire_bytes)
        return 0.0

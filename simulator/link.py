"""One direction of a device's link: a wire that serialises one message after another, and the delay behind it.

`Link` is the plain case, `ImpairedLink` the general one; both are a `send(now_s, size_bytes) -> arrival_s`. What a message meets
in the general case are small objects: a `Wire` of constant or a `VaryingWire` of varying rate, a `Loss`, delays drawn from a
distribution, a `Window` of the transport. Whatever befalls a message is worked out when it is sent: one event, its arrival.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from simulator.transport import MAX_RTO_S, Transport, Window, one_object

_BLOCK = 64  # draws taken from a stream at once; the draws themselves do not depend on it
_BURST_S = 0.2  # a burst of losses is over once nothing was sent for so long; bursts on access links last milliseconds


class Link:
    """A wire with a rate and a one-way delay, and one in-order stream of messages over it.

    Serialising a message occupies the wire, first come first served; propagation does not, so messages sent together
    arrive one serialisation apart: at 8 Mbit/s and 50 ms, four of 1000 bytes arrive after 51, 52, 53 and 54 ms. The
    one-way delay of each message is `delay_s` plus a normal draw of standard deviation `jitter_s`, never below 0.
    Messages do not overtake each other: one that would arrive before its predecessor arrives with it.
    """

    __slots__ = ("_free_s", "_last_s", "_normals", "_stream", "delay_s", "jitter_s", "rate_bps")
    ready_s: ClassVar[float] = -math.inf  # see `ImpairedLink`: here nothing but the wire is ever waited for
    open_s: ClassVar[float] = -math.inf

    def __init__(self, rate_bps: float, delay_s: float, jitter_s: float = 0.0, stream: np.random.Generator | None = None) -> None:
        """rate_bps: bits per second, infinite for a wire that costs nothing. delay_s: one way. stream: of the jitter.

        Raises ValueError for a rate not above 0, a delay or jitter below 0, or jitter without a stream.
        """
        if not rate_bps > 0.0:
            raise ValueError(f"rate_bps must be > 0, got {rate_bps}")
        if not (0.0 <= delay_s < math.inf and 0.0 <= jitter_s < math.inf):
            raise ValueError(f"delay_s and jitter_s must be finite and >= 0, got {delay_s} and {jitter_s}")
        if jitter_s > 0.0 and stream is None:
            raise ValueError("jitter needs a stream to draw from")
        self.rate_bps = rate_bps
        self.delay_s = delay_s
        self.jitter_s = jitter_s
        self._stream = stream
        self._normals: list[float] = []
        self._free_s = 0.0  # when the wire has put its last bit out
        self._last_s = 0.0  # when the last message arrives

    def send(self, now_s: float, size_bytes: int) -> float:
        """When a message handed over at `now_s` arrives. Calls come in order of time; equal times queue as called."""
        free_s = self._free_s
        if free_s < now_s:
            free_s = now_s
        self._free_s = free_s = free_s + 8.0 * size_bytes / self.rate_bps
        delay_s = self.delay_s
        if self.jitter_s > 0.0:
            delay_s += self.jitter_s * self._normal()
            if delay_s < 0.0:
                delay_s = 0.0
        arrival_s = free_s + delay_s
        if arrival_s < self._last_s:
            return self._last_s
        self._last_s = arrival_s
        return arrival_s

    def reconnect(self, lost: Iterable[int] = ()) -> None:
        """See `ImpairedLink.reconnect`."""
        self._last_s = 0.0

    def _normal(self) -> float:
        normals = self._normals
        if not normals:
            assert self._stream is not None
            normals.extend(self._stream.standard_normal(_BLOCK)[::-1].tolist())
        return normals.pop()


# --- rate


class Wire:
    """A wire of constant rate. free_s: when it has put its last bit out. shared: whether several devices queue for it.

    On a shared wire the work of a message counts from when it is handed over: what else delays the message (a sleeping
    radio, a full window) does not hold the wire.
    """

    __slots__ = ("free_s", "rate_bps", "shared")

    def __init__(self, rate_bps: float, shared: bool = False) -> None:
        """Raises ValueError for a rate not above 0."""
        if not rate_bps > 0.0:
            raise ValueError(f"rate_bps must be > 0, got {rate_bps}")
        self.rate_bps = rate_bps
        self.shared = shared
        self.free_s = 0.0

    def finish_s(self, start_s: float, bits: float) -> float:
        """When the last of `bits` is out that begin at `start_s`; infinity where that never happens."""
        return start_s + bits / self.rate_bps

    def bits(self, start_s: float, end_s: float) -> float:
        """What the wire can carry between two times."""
        return (end_s - start_s) * self.rate_bps

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Stretches without any rate that lie, at least in part, between two times: when each begins and ends."""
        return iter(())


class Capacity:
    """Cumulative capacity of a repeating rate, worked out once and shared by every wire that follows it."""

    def __init__(self, times_s: ArrayLike, rate_bps: ArrayLike, duration_s: float) -> None:
        """times_s: [n] from 0 on. rate_bps: [n] from each of these times until the next, the last until duration_s; then all again.

        Raises ValueError where times do not ascend to the duration, or a rate is negative or not finite.
        """
        times = np.asarray(times_s, np.float64)
        rate = np.asarray(rate_bps, np.float64)
        if len(times) == 0 or len(times) != len(rate) or times[0] != 0.0:
            raise ValueError("a rate needs as many times as values, at least one, the first of them 0")
        edges = np.append(times, duration_s)
        if not (np.all(np.isfinite(edges)) and np.all(np.diff(edges) > 0.0)):
            raise ValueError("times must be finite and ascend up to the duration")
        if not (np.all(np.isfinite(rate)) and np.all(rate >= 0.0)):
            raise ValueError("rates must be finite and >= 0")
        # Lists: a step through a Python list takes half the time of one through an array.
        self.duration_s = float(duration_s)
        self.edges_s: list[float] = edges.tolist()
        self.rates_bps: list[float] = rate.tolist()
        self.bits: list[float] = np.append(0.0, np.cumsum(rate * np.diff(edges))).tolist()  # carried before each edge
        self.total_bits = self.bits[-1]
        self.outages_s = _zero_stretches(self.edges_s, self.rates_bps) if self.total_bits else []

    @classmethod
    def with_outages(cls, rate_bps: float, every_s: float, outage_s: float) -> "Capacity":
        """A constant rate that pauses for `outage_s` in every `every_s`."""
        return cls([0.0, every_s - outage_s], [rate_bps, 0.0], every_s)


def _zero_stretches(edges_s: Sequence[float], rates: Sequence[float]) -> list[tuple[float, float]]:
    """Begin and end of each stretch of rate 0 in a period; one that runs over the end of the period ends beyond it."""
    found: list[tuple[float, float]] = []
    for begin_s, end_s, rate in zip(edges_s, edges_s[1:], rates, strict=False):
        if rate == 0.0:
            if found and found[-1][1] == begin_s:
                found[-1] = (found[-1][0], end_s)
            else:
                found.append((begin_s, end_s))
    if len(found) > 1 and found[0][0] == 0.0 and found[-1][1] == edges_s[-1]:
        found[-1] = (found[-1][0], edges_s[-1] + found.pop(0)[1])
    return found


class VaryingWire(Wire):
    """A wire whose rate follows a `Capacity`, entered at `offset_s`."""

    __slots__ = ("_begin_s", "_capacity", "_end_s", "_offset_s")

    def __init__(self, capacity: Capacity, offset_s: float = 0.0, shared: bool = False) -> None:
        super().__init__(math.inf, shared)
        self._capacity = capacity
        self._offset_s = offset_s
        self._begin_s, self._end_s = math.inf, -math.inf  # `rate_bps` is the rate of this stretch, where messages were last

    def finish_s(self, start_s: float, bits: float) -> float:
        """The inverse of the cumulative capacity; most messages lie in the stretch of the one before."""
        if start_s >= self._begin_s:
            end_s = start_s + bits / self.rate_bps
            if end_s <= self._end_s:
                return end_s
        return self._seek(start_s, bits)

    def _seek(self, start_s: float, bits: float) -> float:
        c = self._capacity
        if bits <= 0.0:
            return start_s
        if c.total_bits == 0.0 or start_s == math.inf:
            return math.inf
        phase_s = (start_s + self._offset_s) % c.duration_s
        here = bisect_right(c.edges_s, phase_s) - 1
        rate_bps = c.rates_bps[here]
        if bits <= (c.edges_s[here + 1] - phase_s) * rate_bps:  # all in the stretch where it starts
            self.rate_bps = rate_bps
            self._begin_s = start_s - phase_s + c.edges_s[here]
            self._end_s = start_s - phase_s + c.edges_s[here + 1]
            return start_s + bits / rate_bps
        more, target = divmod(c.bits[here] + (phase_s - c.edges_s[here]) * rate_bps + bits, c.total_bits)
        if target == 0.0:  # the last bit of a period, not the first of the next
            more, target = more - 1.0, c.total_bits
        there = bisect_left(c.bits, target) - 1  # carries something, for the capacity grows across it
        rate_bps = c.rates_bps[there]
        shift_s = more * c.duration_s - phase_s + start_s
        self.rate_bps = rate_bps
        self._begin_s = shift_s + c.edges_s[there]
        self._end_s = shift_s + c.edges_s[there + 1]
        return max(start_s, self._begin_s + (target - c.bits[there]) / rate_bps)

    def bits(self, start_s: float, end_s: float) -> float:
        return self._carried(end_s) - self._carried(start_s)

    def _carried(self, time_s: float) -> float:
        c = self._capacity
        periods, phase_s = divmod(time_s + self._offset_s, c.duration_s)
        here = min(bisect_right(c.edges_s, phase_s) - 1, len(c.rates_bps) - 1)
        return periods * c.total_bits + c.bits[here] + (phase_s - c.edges_s[here]) * c.rates_bps[here]

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        c = self._capacity
        if not c.outages_s or end_s == math.inf:
            return
        shift_s = ((start_s + self._offset_s) // c.duration_s - 1.0) * c.duration_s - self._offset_s
        while shift_s < end_s:
            first = bisect_right(c.outages_s, start_s - shift_s, key=itemgetter(1))  # a period can hold thousands
            for begin_s, stop_s in islice(c.outages_s, first, None):
                if shift_s + begin_s >= end_s:
                    return
                yield shift_s + begin_s, shift_s + stop_s
            shift_s += c.duration_s


class Steps:
    """A quantity that repeats and holds from one time to the next: a one-way delay in seconds, a share of packets lost."""

    def __init__(self, times_s: ArrayLike, values: ArrayLike, duration_s: float) -> None:
        """times_s: [n] from 0 on, ascending. values: [n] from each of these times until the next, the last until duration_s."""
        times, held = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
        self.duration_s = float(duration_s)
        self.mean = float(held @ np.diff(times, append=duration_s) / duration_s)
        self._times_s: list[float] = times.tolist()
        self._values: list[float] = held.tolist()

    def entered_at(self, offset_s: float) -> Callable[[float], float]:
        """The value by time, for one who enters at `offset_s`."""
        return lambda time_s: self._values[bisect_right(self._times_s, (time_s + offset_s) % self.duration_s) - 1]


# --- delay


DISTRIBUTIONS = ("normal", "lognormal", "gamma", "pareto")


@dataclass(frozen=True)
class Jitter:
    """How the one-way delay varies about its mean: a distribution of that mean and of standard deviation `sd_s`.

    distribution: one of DISTRIBUTIONS; normal draws are cut off at 0, the others are positive by nature. samples_s: measured
    deviations from the mean instead, drawn with replacement, the delay cut off at 0.
    """

    sd_s: float = 0.0
    distribution: str = "normal"
    samples_s: tuple[float, ...] = ()

    @property
    def deviation_s(self) -> float:
        """Standard deviation."""
        return float(np.std(self.samples_s)) if self.samples_s else self.sd_s

    def draws(self, mean_s: float, stream: np.random.Generator) -> Callable[[int], np.ndarray]:
        """Draws delays, in seconds, by their number. Raises ValueError where no distribution can have such a mean and deviation."""
        if self.samples_s:
            samples = mean_s + np.asarray(self.samples_s, np.float64)
            if not np.all(np.isfinite(samples)):
                raise ValueError("samples of jitter must be finite")
            return lambda count: np.maximum(stream.choice(samples, count), 0.0)
        sd_s = self.sd_s
        if not 0.0 <= sd_s < math.inf:
            raise ValueError(f"sd_s must be finite and >= 0, got {sd_s}")
        if self.distribution == "normal":
            return lambda count: np.maximum(stream.normal(mean_s, sd_s, count), 0.0)
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {self.distribution}")
        if not (mean_s > 0.0 and sd_s > 0.0):
            raise ValueError(f"a {self.distribution} delay needs a mean and a deviation > 0, got {mean_s} and {sd_s}")
        ratio = (sd_s / mean_s) ** 2
        if self.distribution == "gamma":
            return lambda count: stream.gamma(1.0 / ratio, mean_s * ratio, count)
        if self.distribution == "lognormal":
            return lambda count: stream.lognormal(math.log(mean_s) - 0.5 * math.log1p(ratio), math.sqrt(math.log1p(ratio)), count)
        shape = 1.0 + math.sqrt(1.0 + 1.0 / ratio)  # of a Pareto distribution whose variance over squared mean is 1 / (a (a - 2))
        least_s = mean_s * (shape - 1.0) / shape
        return lambda count: least_s * (1.0 + stream.pareto(shape, count))


# --- loss


class Loss:
    """Which packets are lost: a chain of a good state, in which none is, and a bad one, in which all are.

    Source: E. N. Gilbert, Capacity of a burst-noise channel, Bell System Technical Journal 39 (1960), with every packet of
    the bad state lost. Without a mean burst each packet is lost by itself (Bernoulli), which is the chain whose bursts are 1 / (1 - mean).
    The chain moves with packets and forgets after 0.2 s without any.
    """

    __slots__ = ("_bad", "_forgets", "_gap", "_last_s", "_leave_bad", "_leave_good", "_stream", "_uniforms", "mean")

    def __init__(self, mean: float, stream: np.random.Generator, burst_packets: float | None = None) -> None:
        """mean: share of packets lost. burst_packets: mean length of a burst. Raises ValueError where no chain has them."""
        if not 0.0 < mean < 1.0:
            raise ValueError(f"the mean loss must be > 0 and < 1, got {mean}")
        burst = 1.0 / (1.0 - mean) if burst_packets is None else burst_packets
        if not (1.0 <= burst < math.inf and burst >= mean / (1.0 - mean)):
            raise ValueError(f"a mean burst must be finite, >= 1 and >= mean / (1 - mean), got {burst_packets} at a mean of {mean}")
        self.mean = one_object(mean)
        self._forgets = burst_packets is not None
        self._leave_bad = one_object(1.0 / burst)
        self._leave_good = one_object(mean / (burst * (1.0 - mean)))
        self._stream = stream
        self._uniforms: list[float] = []
        self._last_s = math.inf
        self._gap = 0  # good packets to come, then `_bad` bad ones
        self._restart()
        self._bad = self._geometric(self._leave_bad)

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """Which of the next `packets` are lost, by number, ascending."""
        if self._forgets:
            if now_s - self._last_s > _BURST_S:
                self._restart()
            self._last_s = now_s
        gap = self._gap
        if gap >= packets:
            self._gap = gap - packets
            return ()
        found: list[int] = []
        position = 0
        while True:
            step = min(self._gap, packets - position)
            position += step
            self._gap -= step
            if position == packets:
                return found
            step = min(self._bad, packets - position)
            found.extend(range(position, position + step))
            position += step
            self._bad -= step
            if self._bad == 0:
                self._gap = self._geometric(self._leave_good)
                self._bad = self._geometric(self._leave_bad)

    def lost_again(self, now_s: float, packets: int) -> int:
        """How many of `packets` sent again at `now_s`, long after, are lost once more."""
        return sum(self._uniform() < self.mean for _ in range(packets))

    def _restart(self) -> None:
        """Any state again, as likely as ever. What is left of one lasts as long as before, however long it has lasted."""
        if self._uniform() < self.mean:
            self._gap = 0
        elif self._gap == 0:
            self._gap = self._geometric(self._leave_good)

    def _geometric(self, chance: float) -> int:
        if chance >= 1.0:
            return 1
        return 1 + int(min(math.log1p(-self._uniform()) / math.log1p(-chance), 1e18))

    def _uniform(self) -> float:
        uniforms = self._uniforms
        if not uniforms:
            uniforms.extend(self._stream.random(_BLOCK)[::-1].tolist())
        return uniforms.pop()


class VaryingLoss:
    """Packets lost one by one, each with the chance that holds at the time."""

    def __init__(self, share: Callable[[float], float], stream: np.random.Generator) -> None:
        """share: of packets lost, by time."""
        self._share = share
        self._stream = stream

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """As `Loss.lost`."""
        share = self._share(now_s) if now_s < math.inf else 0.0  # what a dead wire never sends is not lost
        return np.flatnonzero(self._stream.random(packets) < share).tolist() if share > 0.0 else ()

    def lost_again(self, now_s: float, packets: int) -> int:
        """As `Loss.lost_again`."""
        return len(self.lost(now_s, packets))


# --- all together


class Gate(Protocol):
    """What must be awake before a message leaves, seen from one direction: see `simulator/radio.py`."""

    def wake(self, now_s: float) -> float:
        """When a message of `now_s` may start."""
        ...

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        """The message occupied the wire in between; what it still waits for after that, in seconds."""
        ...


class ImpairedLink:
    """One in-order stream of messages over a wire, with all that can befall it.

    A message is framed by the transport, waits for the radio (`gate`) and for the connection, queues for the wire first come first
    served, leaves in as many flights as the window asks for, and arrives after its one-way delay. What is lost on the way is
    sent again: it takes wire time a second time at once, and delays the message as `Transport.recovery_s` says, then by a
    retransmission timeout that doubles for each loss of a repetition. Every later message waits for it, as it must in a stream.

    buffer_bytes: a message that finds more than this waiting is dropped whole, and tried again after a retransmission
    timeout, doubling, until there is room. An outage longer than the timeout loses what was under way: the message goes on with the
    first retransmission after its end, not at its end.

    sent_bits: put into the link, repetitions and tries included; dropped_bits: those of them that did not get through.
    ready_s: until when the latest message waited for radio or connection; open_s: since when the connection is open.
    """

    __slots__ = (
        "_buffer_bits",
        "_delays",
        "_draw",
        "_framed",
        "_fresh",
        "_gate",
        "_handshake",
        "_last_s",
        "_rto_s",
        "_rtt_s",
        "_window",
        "delay_at",
        "delay_s",
        "dropped_bits",
        "loss",
        "open_s",
        "ready_s",
        "sent_bits",
        "transport",
        "wire",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        delay_s: float,
        rtt_s: float,
        transport: Transport,
        *,
        rttvar_s: float = 0.0,
        draw: Callable[[int], np.ndarray] | None = None,
        delay_at: Callable[[float], float] | None = None,
        loss: Loss | VaryingLoss | None = None,
        buffer_bytes: float = math.inf,
        gate: Gate | None = None,
    ) -> None:
        """delay_s: one way. rtt_s, rttvar_s: what the timers of the transport go by. draw: delays, in place of delay_s. delay_at: the
        delay by the time at which the last bit leaves, in place of delay_s, from which draws then tell the deviation.

        Raises ValueError for a delay or round trip that is negative or not finite, and a buffer not above 0.
        """
        if not (0.0 <= delay_s < math.inf and 0.0 <= rtt_s < math.inf and 0.0 <= rttvar_s < math.inf):
            raise ValueError(f"delay_s, rtt_s and rttvar_s must be finite and >= 0, got {delay_s}, {rtt_s} and {rttvar_s}")
        if not buffer_bytes > 0.0:
            raise ValueError(f"buffer_bytes must be > 0, got {buffer_bytes}")
        self.wire = wire
        self.transport = transport
        self.delay_s = one_object(delay_s)
        self._rtt_s = one_object(rtt_s)
        self._rto_s = one_object(transport.rto_s(rtt_s, rttvar_s))
        self._window = Window(transport, self._rtt_s, self._rto_s) if transport.initial_window else None
        self._draw = draw
        self.delay_at = delay_at
        self._delays: list[float] = []
        self.loss = loss
        self._buffer_bits = one_object(8.0 * buffer_bytes)
        self._gate = gate
        self._handshake: Callable[[float], float] | None = None
        self._fresh = False
        self._framed = transport.framed
        self._last_s = 0.0
        self.ready_s = -math.inf
        self.open_s = -math.inf
        self.sent_bits = self.dropped_bits = 0.0

    def opened_by(self, handshake: Callable[[float], float]) -> None:
        """The first message opens the connection. handshake: when one is open that is begun at a time; asked once a connection."""
        self._handshake = handshake
        self.open_s = math.inf

    def send(self, now_s: float, size_bytes: int) -> float:
        """When a message handed over at `now_s` arrives, infinity where the wire never carries it. Calls come in order of time."""
        framed = self._framed.get(size_bytes)
        if framed is None:
            wire_bytes, segments = self.transport.frame(size_bytes)
            framed = self._framed[size_bytes] = (8.0 * wire_bytes, segments)
        bits, segments = framed
        ready_s = now_s
        gate = self._gate
        if gate is not None:
            ready_s = gate.wake(now_s)
        if ready_s < self.open_s:
            if self._handshake is not None and self.open_s == math.inf:
                self.open_s = self._handshake(ready_s)
            ready_s = self.open_s
        if ready_s > now_s:
            self.ready_s = ready_s
        extra_s = 0.0
        wire = self.wire
        start_s = wire.free_s
        if start_s < ready_s:
            start_s = ready_s
        loss = self.loss
        if loss is not None and (lost := loss.lost(start_s, segments)):
            extra_s, repeated = self._recovery(loss, start_s, segments, lost)
            self.dropped_bits += repeated * bits / segments
            bits += repeated * bits / segments
        if start_s > ready_s and self._buffer_bits < math.inf:
            start_s = max(start_s, self._admitted_s(ready_s, bits))
        window = self._window
        if window is None:
            end_s = wire.finish_s(start_s, bits)
        else:
            end_s = window.send(start_s, segments, bits, wire.finish_s)
        if wire.shared:
            wire.free_s = wire.finish_s(max(wire.free_s, now_s), bits)
        else:
            wire.free_s = end_s
        self.sent_bits += bits
        if self._fresh:  # what it queues behind is of another connection: it has an outage to sit out by itself
            self._fresh = False
            tried_s = now_s
        else:
            tried_s = start_s
        if not end_s - tried_s <= self._rto_s:
            if end_s == math.inf:
                return math.inf
            extra_s += self._outage_s(tried_s, end_s)
        if gate is not None:
            extra_s += gate.used(start_s, end_s, 0.125 * bits)
        delays = self._delays
        if delays:
            delay_s = delays.pop()
        elif self._draw is None:
            delay_s = self.delay_s
        else:
            delays.extend(self._draw(_BLOCK)[::-1].tolist())
            delay_s = delays.pop()
        if self.delay_at is not None:
            delay_s = max(0.0, delay_s - self.delay_s + self.delay_at(end_s))
        arrival_s = end_s + extra_s + delay_s
        if arrival_s < self._last_s:
            return self._last_s
        self._last_s = arrival_s
        return arrival_s

    def reconnect(self, lost: Iterable[int] = ()) -> None:
        """The connection is given up, and the next message opens another one.

        Its window is a new one, and its messages wait for none of the old one, but for the wire. lost: payload bytes of each message that
        is given up with it; of what else is under way nothing changes.
        """
        self.dropped_bits += sum(8.0 * self.transport.frame(size_bytes)[0] for size_bytes in lost)
        self.open_s = -math.inf if self._handshake is None else math.inf
        self._window = Window(self.transport, self._rtt_s, self._rto_s) if self._window is not None else None
        self._last_s = 0.0
        self._fresh = True

    def _recovery(self, loss: Loss | VaryingLoss, sent_s: float, segments: int, lost: Sequence[int]) -> tuple[float, int]:
        """Seconds until all segments lost of a message of `sent_s` are there, and how many were sent again for it."""
        extra_s = self.transport.recovery_s(self._rtt_s, self._rto_s, segments, lost)
        timeout_s = self._rto_s if segments > 1 else 2.0 * self._rto_s  # a lost only segment has cost one already
        again = repeated = len(lost)
        while again := loss.lost_again(sent_s + extra_s, again):
            extra_s += min(timeout_s, MAX_RTO_S)
            timeout_s *= 2.0
            repeated += again
        return extra_s, repeated

    def _admitted_s(self, ready_s: float, bits: float) -> float:
        """When a message of `ready_s` finds room in the buffer before a busy wire."""
        wire = self.wire
        timeout_s = self._rto_s
        while wire.free_s > ready_s and wire.bits(ready_s, wire.free_s) > self._buffer_bits:
            ready_s += min(timeout_s, MAX_RTO_S)
            timeout_s *= 2.0
            self.sent_bits += bits
            self.dropped_bits += bits
        return ready_s

    def _outage_s(self, start_s: float, end_s: float) -> float:
        """How long after the ends of outages met on the way the retransmissions come that go on."""
        extra_s = 0.0
        for begin_s, stop_s in self.wire.outages(start_s, end_s):
            begin_s = max(begin_s, start_s)
            if stop_s - begin_s > self._rto_s:
                timeout_s = self._rto_s
                while begin_s < stop_s:
                    begin_s += min(timeout_s, MAX_RTO_S)
                    timeout_s *= 2.0
                extra_s += begin_s - stop_s
        return extra_s

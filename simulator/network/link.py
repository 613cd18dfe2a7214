"""One direction of a device's link: a wire that serialises one message after another, and the delay behind it.

`Link` is the plain case, `ImpairedLink` the general one; both are a `send(now_s, size_bytes) -> arrival_s`. What a message meets
in the general case are small objects: a `Wire` of constant or a `VaryingWire` of varying rate, a `Loss`, delays drawn from a
distribution, a `Window` of the transport. Whatever befalls a message is worked out when it is sent: one event, its arrival.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

import numpy as np

from simulator.network.impairments import _BLOCK, Loss, VaryingLoss
from simulator.network.transport import MAX_RTO_S, Transport, Window, one_object
from simulator.network.wire import Wire


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

    def __init__(
        self, rate_bps: float, delay_s: float, jitter_s: float = 0.0, stream: np.random.Generator | None = None
    ) -> None:
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


# --- all together


class Gate(Protocol):
    """What must be awake before a message leaves, seen from one direction: see `simulator/network/radio.py`."""

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
    )

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
            raise ValueError(
                f"delay_s, rtt_s and rttvar_s must be finite and >= 0, got {delay_s}, {rtt_s} and {rttvar_s}"
            )
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

    def _recovery(
        self, loss: Loss | VaryingLoss, sent_s: float, segments: int, lost: Sequence[int]
    ) -> tuple[float, int]:
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

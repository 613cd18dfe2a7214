"""One direction of a device's link: a wire that serialises messages one after another, then a one-way delay.

`Link` is the fast case (constant rate and delay, normal jitter), `ImpairedLink` the general one. Both have `send(now_s, size_bytes) ->
arrival_s`. All stages of a message are computed when it is sent; its arrival is the only event. The general link is made of small
objects: `Wire` or `VaryingWire`, `CrossQueue`, `Loss`, delays drawn from a distribution (`Jitter`), `Window` of the transport.

Longer than other files, because it has all stages of a message in their order.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Protocol

import numpy as np

from simulator.core.rng import buffered
from simulator.network.bbr import Bbr
from simulator.network.congestion import Control, Sender
from simulator.network.cross import CrossQueue
from simulator.network.cubic import Cubic
from simulator.network.impairments import Losses, cut_normal_centre
from simulator.network.transport import MAX_TRIES, SYN_RTO_S, FlowWindow, Timer, Transport, Window, backoff, one_object
from simulator.network.wire import Wire

_INSTANT_S = 1e-9


class Link:
    """An in-order stream of messages over a wire of constant rate and a one-way delay.

    Serialisation occupies the wire, first come, first served; propagation does not. At 8 Mbit/s and 50 ms, four messages of
    1000 bytes sent together arrive after 51, 52, 53 and 54 ms. The one-way delay of a message has the mean `delay_s` and the normal
    `Jitter` of deviation `jitter_s`. A message that would arrive before its predecessor arrives with it.
    """

    __slots__ = ("_centre_s", "_free_s", "_last_s", "_normal", "delay_s", "jitter_s", "rate_bps")
    ready_s: ClassVar[float] = -math.inf  # see `ImpairedLink`: messages wait for nothing but the wire
    open_s: ClassVar[float] = -math.inf

    def __init__(
        self, rate_bps: float, delay_s: float, jitter_s: float = 0.0, stream: np.random.Generator | None = None
    ) -> None:
        """Raises ValueError for a rate not above 0, a delay or jitter below 0, and jitter without a stream or with a delay of 0.

        Args:
            rate_bps: bits per second; infinite for no serialisation time.
            delay_s: one-way delay.
            stream: random stream of the jitter.
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
        self._centre_s = cut_normal_centre(delay_s, jitter_s)
        self._normal = None if stream is None else buffered(stream.standard_normal)
        self._free_s = 0.0  # time at which the wire has sent its last bit
        self._last_s = 0.0  # arrival of the latest message

    def send(self, now_s: float, size_bytes: int) -> float:
        """Return the arrival time of a message handed over at `now_s`. Calls come in order of time; equal times queue in order of calls."""
        free_s = self._free_s
        if free_s < now_s:
            free_s = now_s
        self._free_s = free_s = free_s + 8.0 * size_bytes / self.rate_bps
        delay_s = self._centre_s
        if self.jitter_s > 0.0:
            delay_s += self.jitter_s * self._normal()  # type: ignore[misc]  # jitter has a stream
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


class Gate(Protocol):
    """The wait for the radio before a message leaves, for one direction: see `simulator/network/radio.py`."""

    def wake(self, now_s: float) -> float:
        """Return the time at which a message handed over at `now_s` may start."""
        ...

    def turn_s(self, time_s: float) -> float:
        """Return the time at which a packet of an awake device with nothing else to send may leave."""
        ...

    def used(self, start_s: float, end_s: float, wire_bytes: float) -> float:
        """Note that the message occupies the wire from start to end. Returns the seconds that it waits after that."""
        ...


class ImpairedLink:
    """An in-order stream of messages over a wire, with all impairments.

    A message is framed by the transport, waits for the radio (`gate`) and for the connection, queues for the wire first come, first
    served, behind cross traffic (`queue`), leaves in the flights that the window allows, and arrives after its one-way delay. Lost
    packets are sent again: they take wire time at once, and delay the message by `Transport.recovery_s`, then by a timeout for each
    further loss (`backoff`). With congestion control a `Sender` simulates each packet instead. Later messages wait for it, because the
    stream is in order.

    A message that finds more than `buffer_bytes` waiting is dropped as a whole, and tried again after timeouts until there is room; a
    message behind others of its own connection is held back by the window instead. Of packets sent together (a message, or its initial
    window) those that do not fit are dropped and sent again, as many at a time as the buffer holds; a window grows until path and
    buffer are full, and loses the excess once. An outage longer than the timeout interrupts the message in
    transmission: it continues with the first retransmission after the outage. Its timer runs while it queues behind traffic of others.

    Attributes:
        rtt_s: mean round trip, including standing queues.
        sent_bits: bits put into the link, including retransmissions and attempts.
        dropped_bits: bits of these that did not arrive.
        ready_s: end of the latest message's wait for radio or connection.
        open_s: time since which the connection is open.
    """

    __slots__ = (
        "_ack_s",
        "_bounded",
        "_buffer_bits",
        "_busy_s",
        "_deviation_s",
        "_draw",
        "_finish_s",
        "_framed",
        "_gate",
        "_handshake",
        "_last_s",
        "_left_s",
        "_path_bits",
        "_queue",
        "_reach_s",
        "_rto_s",
        "_sender",
        "_settled_rto_s",
        "_timer",
        "_window",
        "delay_at",
        "delay_s",
        "dropped_bits",
        "loss",
        "open_s",
        "ready_s",
        "rtt_s",
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
        reach_s: float = 0.0,
        loss: Losses | None = None,
        buffer_bytes: float = math.inf,
        gate: Gate | None = None,
        queue: CrossQueue | None = None,
    ) -> None:
        """Raises ValueError for a delay or round trip that is negative or not finite, and a buffer not above 0.

        Args:
            delay_s: mean one-way delay.
            rtt_s: mean round trip, including standing queues, for window and timers of the transport.
            rttvar_s: mean deviation of the round trip.
            draw: draws a number of delays with mean `delay_s`; None for a constant delay.
            delay_at: mean delay at the time when the last bit leaves, instead of `delay_s`. The draws then give the deviation from it,
                which shrinks in proportion if the delay is below `reach_s`, so that no delay is below 0 and the mean is
                preserved.
            reach_s: largest amount by which draws can lie below `delay_s` (`Jitter.reach_s`).
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
        self.rtt_s = one_object(rtt_s)
        self._settled_rto_s = one_object(transport.rto_s(rtt_s, rttvar_s))
        self._path_bits = (
            one_object(rtt_s * wire.mean_bps + 8.0 * buffer_bytes) if buffer_bytes < math.inf else math.inf
        )
        self._deviation_s = one_object(rttvar_s)
        # Counted from the end of a transmission, when the packet's wait for the channel is over.
        self._ack_s = one_object(max(0.0, rtt_s - wire.mean_wait_s))
        self._window: Window | None = None
        self._sender: Sender | None = None
        self._timer: Timer | None = None
        self._connect()
        self._draw = None if draw is None else buffered(draw)
        self.delay_at = delay_at
        self._reach_s = reach_s
        self.loss = loss
        # Half a bit more, so that a message of exactly the size of the buffer fits despite the rounding of times.
        self._buffer_bits = one_object(8.0 * buffer_bytes + 0.5)
        self._bounded = buffer_bytes < math.inf
        self._busy_s = -math.inf  # start of the wire's current busy period
        self._gate = gate
        self._queue = queue
        self._finish_s = queue.finish_s if queue is not None and queue.fair else wire.finish_s
        self._handshake: Callable[[float], float] | None = None
        self._left_s = -math.inf  # time at which the last bit of the connection's latest message leaves
        self._framed = transport.framed
        self._last_s = 0.0
        self.ready_s = -math.inf
        self.open_s = -math.inf
        self.sent_bits = self.dropped_bits = 0.0

    def opened_by(self, handshake: Callable[[float], float]) -> None:
        """Let the first message open the connection. handshake: returns when a connection is open, for the start of its handshake."""
        self._handshake = handshake
        self.open_s = math.inf

    def send(self, now_s: float, size_bytes: int) -> float:
        """Return the arrival time of a message handed over at `now_s`; infinity for never. Calls come in order of time."""
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
            ready_s = self._opened_s(ready_s)
        if ready_s > now_s:
            self.ready_s = ready_s
        if self._timer is not None:
            self._rto_s = self._timer.rto_s(ready_s)
            if self._timer.settled:
                self._timer = None
        extra_s = 0.0
        wire = self.wire
        tried_s = ready_s
        ahead_s = queued_s = ready_s if self._queue is None else self._queue.clear_s(ready_s)
        start_s = wire.free_s
        if start_s < self._left_s:  # a shared wire may be free before the latest message of the connection has left
            start_s = self._left_s
        if start_s < ahead_s:
            start_s = ahead_s
        sender = self._sender
        if sender is not None:
            end_s, free_s, bits = self._send_controlled(sender, ready_s, ahead_s, start_s, segments, bits)
        else:
            loss = self.loss
            if loss is not None and (lost := loss.lost(start_s, segments)):
                extra_s, bits = self._recovery(loss, start_s, segments, bits, lost)
            window = self._window
            bounded = self._bounded
            # A message behind another one of its connection is held back by the window: it waits in the sender, not in the buffer.
            if bounded and (window is None or window.last_s <= ahead_s):
                if start_s > ahead_s:
                    tried_s, ahead_s = self._admitted_s(ready_s, ahead_s, bits)
                    start_s = max(start_s, ahead_s)
                extra_s += self._overflow_s(ahead_s, segments, bits)
            if bounded and start_s > wire.free_s and not wire.shared:
                self._busy_s = start_s
            if window is None:
                end_s = self._finish_s(start_s, bits)
            else:
                end_s = window.send(start_s, segments, bits, self._finish_s)
                if bounded and (lost_segments := min(window.overflow(), segments)) > 0:
                    extra_s += self.rtt_s
                    self._repeat(bits * lost_segments / segments)
            free_s = end_s
        if wire.shared:
            if ready_s > now_s:
                queued_s = self.ahead_s(now_s)
            wire.free_s = self._finish_s(max(wire.free_s, queued_s), bits)
        else:
            wire.free_s = free_s
        self.sent_bits += bits
        if tried_s < self._left_s:  # the message before it has waited for the end of an outage
            tried_s = self._left_s
        self._left_s = free_s
        if not end_s - tried_s <= self._rto_s:
            if end_s == math.inf:
                return math.inf
            extra_s += self._outage_s(tried_s, end_s)
        if gate is not None:
            extra_s += gate.used(start_s, end_s, 0.125 * bits)
        delay_s = self.delay_s if self._draw is None else self._draw()
        if self.delay_at is not None:
            delay_s = self._delay_at_s(self.delay_at(end_s), delay_s)
        arrival_s = end_s + extra_s + delay_s
        if arrival_s < self._last_s:
            return self._last_s
        self._last_s = arrival_s
        return arrival_s

    def _opened_s(self, ready_s: float) -> float:
        """Return the time at which a message that is ready before the connection is open may leave. The first message opens it."""
        if self._handshake is None or self.open_s < math.inf:
            return self.open_s
        self.open_s = self._handshake(ready_s)
        return self.open_s if self._gate is None else self._gate.turn_s(self.open_s)

    def _delay_at_s(self, there_s: float, drawn_s: float) -> float:
        """Return a delay with the deviation of `drawn_s` from the link's mean about `there_s`, the mean at its time; never below 0."""
        deviation_s = drawn_s - self.delay_s
        if there_s < self._reach_s:
            deviation_s *= there_s / self._reach_s
        return max(0.0, there_s + deviation_s)

    def reconnect(self, lost: Iterable[int] = ()) -> None:
        """Give up the connection; the next message opens a new one, with a new window and no order relative to the old messages.

        Args:
            lost: payload bytes of each message that is lost with it; other messages in flight still arrive.
        """
        self.dropped_bits += sum(8.0 * self.transport.frame(size_bytes)[0] for size_bytes in lost)
        self.open_s = -math.inf if self._handshake is None else math.inf
        self._connect()
        self._last_s = 0.0
        self._left_s = -math.inf

    def _recovery(
        self, loss: Losses, sent_s: float, segments: int, bits: float, lost: Sequence[int]
    ) -> tuple[float, float]:
        """Return the delay until all lost segments of a message of `sent_s` arrive (infinity: never), and its bits with repetitions."""
        extra_s = self.transport.recovery_s(self.rtt_s, self._rto_s, segments, lost)
        # A single lost segment has already cost one timeout, unless a probe came first.
        timeouts_s = backoff(self._rto_s if segments > 1 or extra_s < self._rto_s else 2.0 * self._rto_s)
        again = repeated = len(lost)
        for _ in range(MAX_TRIES):
            again = loss.lost_again(sent_s + extra_s, again)
            if not again:
                break
            extra_s += next(timeouts_s)
            repeated += again
        else:
            extra_s = math.inf
        self.dropped_bits += repeated * bits / segments
        return extra_s, bits + repeated * bits / segments

    def _admitted_s(self, ready_s: float, ahead_s: float, bits: float) -> tuple[float, float]:
        """Return the time at which a message ready at `ready_s` fits into the buffer, and the time at which the cross traffic waiting then
        has left. Cross traffic in the buffer gives way to it.

        Args:
            ready_s: time of the first attempt.
            ahead_s: time at which the cross traffic waiting at `ready_s` has left.
            bits: bits of the message.
        """
        wire = self.wire
        timeouts_s = backoff(self._rto_s)
        while wire.free_s > ahead_s and self._waiting_bits(ahead_s) > self._buffer_bits:
            ready_s += next(timeouts_s)
            ahead_s = self.ahead_s(ready_s)
            self._repeat(bits)
        return ready_s, ahead_s

    def _waiting_bits(self, ahead_s: float) -> float:
        """Return the bits that wait at `ahead_s` for a busy wire, or at the start of its busy period if that is later (the radio wakes)."""
        return self._bits_before(max(ahead_s, self._busy_s), self.wire.free_s)

    def _bits_before(self, time_s: float, free_s: float) -> float:
        """Return the bits that wait at a time for a wire that is busy until `free_s`."""
        bits, queue = self.wire.waiting_bits(time_s, free_s), self._queue
        return bits if queue is None or not queue.fair else queue.own_bits(time_s, bits)

    def _overflow_s(self, ahead_s: float, segments: int, bits: float) -> float:
        """Return the delay in seconds by packets that do not fit into the buffer, whose content is sent from `ahead_s` on."""
        # Acknowledgements pace what leaves after the initial window.
        burst = min(segments, self.transport.initial_window or segments)
        if burst == 1:
            return 0.0
        packet_bits = bits / segments
        waiting_bits = self._waiting_bits(ahead_s) if self.wire.free_s > ahead_s else -packet_bits
        over = burst - max(1, int((self._buffer_bits - waiting_bits) / packet_bits + 1e-9))
        if over <= 0:
            return 0.0
        room = 1 + int(self._buffer_bits / packet_bits)
        rounds = -(-over // room)
        self._repeat(packet_bits * sum(over - n * room for n in range(rounds)))
        return rounds * self.transport.recovery_s(self.rtt_s, self._rto_s, segments, range(segments - over, segments))

    def _repeat(self, bits: float) -> None:
        """Count bits that a full buffer drops and that are sent again."""
        self.sent_bits += bits
        self.dropped_bits += bits

    def _connect(self) -> None:
        """Create the window of a new connection, or its sender under congestion control."""
        t = self.transport
        self._rto_s = self._settled_rto_s
        self._timer = Timer(t, self.rtt_s, self._deviation_s) if t.opening_samples else None
        if t.congestion:
            bbr = t.congestion == "bbr"
            control: Control
            if bbr:
                control = Bbr(t.initial_window, self.rtt_s)
            else:
                control = Cubic(t.initial_window, t.idle_restart, linux=t.stack == "linux")
            self._sender = Sender(t, control, self.rtt_s, self._deviation_s, self._ack_s)
        elif t.initial_window:
            kind = FlowWindow if t.flow_bytes else Window
            self._window = kind(t, self._ack_s, self._settled_rto_s, self._path_bits)

    def _send_controlled(
        self, sender: Sender, ready_s: float, ahead_s: float, start_s: float, segments: int, bits: float
    ) -> tuple[float, float, float]:
        """Send by `Sender.send`. ahead_s: time at which the cross traffic waiting at `ready_s` has left.

        Returns:
            Time at which the last packet to arrive has left, time at which the wire is free, and all bits sent.
        """
        if start_s == math.inf:
            return math.inf, math.inf, bits
        loss, bounded = self.loss, self._bounded

        def lost(time_s: float, again: bool) -> bool:
            if loss is None:
                return False
            return loss.lost_again(time_s, 1) > 0 if again else len(loss.lost(time_s, 1)) > 0

        def full(time_s: float, free_s: float) -> bool:
            # Cross traffic takes no place in the buffer. Only the first packets wait for it; the round trip of later ones includes it.
            begin_s = max(time_s, ahead_s)
            return bounded and free_s > begin_s and self._bits_before(begin_s, free_s) > self._buffer_bits

        end_s, free_s, more_bits = sender.send(ready_s, start_s, segments, bits, self._finish_s, lost, full)
        self.dropped_bits += more_bits
        return end_s, free_s, bits + more_bits

    def opening_s(self, time_s: float, wire_bytes: float, timeout_s: float = SYN_RTO_S) -> float:
        """Return the arrival time of a handshake packet sent at `time_s`, with `wire_bytes` in total.

        In an outage that outlasts its timer of `timeout_s` it is lost, and sent again when the timer, which doubles, expires.
        """
        if time_s == math.inf:
            return time_s
        outage = next(iter(self.wire.outages(time_s, time_s + _INSTANT_S)), None)
        if outage is not None:
            timeouts_s = backoff(timeout_s)
            sent_s = time_s
            while sent_s + (timeout_s := next(timeouts_s)) < outage[1]:
                sent_s += timeout_s
            if sent_s == time_s:
                time_s = outage[1]
            else:  # the device's buffer was empty meanwhile
                time_s = sent_s + timeout_s if self._gate is None else self._gate.turn_s(sent_s + timeout_s)
        start_s = self.ahead_s(time_s)
        end_s = self._finish_s(start_s, 8.0 * wire_bytes)
        if end_s - time_s > self._rto_s and end_s < math.inf:
            end_s += self._outage_s(time_s, end_s)
        return end_s + (self.delay_s if self.delay_at is None else self.delay_at(end_s))

    def ahead_s(self, time_s: float) -> float:
        """Return the time at which the cross traffic waiting at `time_s` has left."""
        return time_s if self._queue is None else self._queue.clear_s(time_s)

    def _outage_s(self, start_s: float, end_s: float) -> float:
        """Return the sum, over outages between two times, of the seconds from the end of each to the retransmission after it."""
        extra_s = 0.0
        for begin_s, stop_s in self.wire.outages(start_s, end_s):
            begin_s = max(begin_s, start_s)
            if stop_s - begin_s > self._rto_s:
                timeouts_s = backoff(self._rto_s)
                while begin_s < stop_s:
                    begin_s += next(timeouts_s)
                extra_s += begin_s - stop_s
        return extra_s

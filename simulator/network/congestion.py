"""A sender under congestion control: simulates the packets of a message until all have arrived.

`Window` of the transport models flights without losses; here a loss reduces the window, as a `Control` decides (`Cubic`, `Bbr`), and a
retransmitted packet waits for its place in the window. Everything is computed when the message is handed over, without an event of the
simulation: packets share one wire and a constant return delay, so acknowledgements come in the order of sending, and a loop over
packets only needs a queue of them.

- A receiver acknowledges every second segment, or a lone one after 40 ms (25 in QUIC); it acknowledges at once if a segment is missing, and
  for the first 16 of a connection (Linux' quick acknowledgements).
- A segment counts as lost when three sent with or after it have arrived (RFC 6675), or when a later one has arrived and it was sent longer
  ago than a round trip plus a quarter of the minimum round trip (RACK, RFC 8985). Otherwise a tail loss probe recovers it after two round
  trips, or the retransmission timeout, which doubles (RFC 6298). QUIC waits an eighth of a round trip, and its timer sends a probe without
  declaring segments lost (RFC 9002); its smaller window after a long silence (sec. 7.6) is not modelled.
- Packets that do not fit into the buffer of the wire are lost.
- Messages form one stream: a message's first packet leaves after the last packet of the previous message, including retransmissions. A
  short message that was ready before the previous one's last segment left goes in that segment if it has room. The round trip is the mean
  one; jitter changes the completion time of a message, but not its acknowledgements.

Longer than other files, because all rules of a sender act on one state.
"""

import math
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Protocol

from simulator.network.transport import DUPLICATE_ACKS, MAX_RTO_S, MAX_TRIES, PROBE_S, QUICK_ACKS, Timer, Transport

DELAYED_ACK_S = 0.04  # Linux TCP_DELACK_MIN
INSTANT_S = 1e-9  # times this close count as equal; an acknowledgement then comes first
OPEN, RECOVERY, LOSS = range(3)  # no loss; after a loss found by later arrivals; after a timeout


class Control(Protocol):
    """A congestion control. Windows are in segments.

    Attributes:
        window: number of segments that may be in flight.
        gap_s: minimum time between two packets, 0 without pacing.
        restarts: whether the window shrinks during idle times (Linux tcp_slow_start_after_idle).
    """

    window: float
    gap_s: float
    restarts: bool

    def acked(self, sender: "Sender", segments: int, lost: int, rtt_s: float) -> None:
        """Process an acknowledgement.

        Args:
            sender: the sender.
            segments: number of segments acknowledged.
            lost: number of segments that count as lost since the previous acknowledgement.
            rtt_s: round trip of the acknowledged segment that was sent last.
        """
        ...

    def recovers(self, sender: "Sender") -> None:
        """A loss was detected by later arrivals; it is the first since all segments in flight at the previous loss have arrived."""
        ...

    def recovered(self, sender: "Sender") -> None:
        """All segments in flight when `recovers` or `timed_out` was called have arrived; `state` still says which."""
        ...

    def timed_out(self, sender: "Sender", anew: bool) -> None:
        """The retransmission timer expired. anew: whether the window has not yet been reduced for this loss."""
        ...

    def begins(self, sender: "Sender", idle_s: float) -> None:
        """A message leaves after `idle_s` seconds with nothing in flight."""
        ...


class Segment:
    """The latest transmission of a segment that is not acknowledged yet.

    Attributes:
        number: index among the connection's segments.
        order: index among the connection's transmissions.
        arrives: whether it has arrived or will arrive.
        lost: whether it counts as lost and waits to be sent again.
        beyond: number of segments with a higher number that have arrived.
        again: whether it is a retransmission.
        delivered: number of segments that had arrived when it was sent; with the next two a sample of the delivery rate
            (draft-cheng-iccrg-delivery-rate-estimation).
        delivered_s: time since which that number had arrived.
        first_s: time at which the last of them was sent.
        idle: whether the sender had too little to send at that time.
        earlier: the transmission before, if that one arrives: the sender was wrong to repeat it, and its acknowledgement comes first.
    """

    __slots__ = (
        "again",
        "arrives",
        "beyond",
        "bits",
        "delivered",
        "delivered_s",
        "earlier",
        "first_s",
        "idle",
        "lost",
        "number",
        "order",
        "sent_s",
    )

    def __init__(self, number: int, bits: float) -> None:
        self.number = number
        self.bits = bits
        self.arrives = self.lost = self.again = self.idle = False
        self.order = self.beyond = self.delivered = 0
        self.sent_s = self.delivered_s = self.first_s = 0.0
        self.earlier: Segment | None = None


class Sender:
    """One direction of a connection.

    Attributes:
        now_s: time of its latest event.
        pipe: number of segments in flight, as far as it knows.
        peak: maximum of `pipe` since it was last 0.
        sent: number of segments sent, without retransmissions.
        first: number of the first segment that is not acknowledged.
        delivered: number of segments known to have arrived.
        recovery_sent: number of packets sent since `state` is RECOVERY.
        advanced: number of segments by which the latest acknowledgement moved `first`.
        sample: delivery rate in segments per second by the latest acknowledgement, the number of segments that had arrived when its
            segment was sent, and whether there was too little to send.
        stack: behaviour of its ends, see `Transport.stack`.
        srtt_s: the smoothed round trip (RFC 6298).
        rttvar_s: its mean deviation.
    """

    def __init__(
        self, transport: Transport, control: Control, rtt_s: float, deviation_s: float, ack_s: float | None = None
    ) -> None:
        """Create the sender of a new connection.

        Args:
            transport: figures of the transport.
            control: congestion control.
            rtt_s: mean round trip.
            deviation_s: mean deviation of the round trip.
            ack_s: time from the end of a segment's transmission until it is acknowledged; None: `rtt_s`.
        """
        self.control = control
        self.state = OPEN
        self.now_s = self.delivered_s = self._first_s = -math.inf
        self.sent = self.delivered = self.peak = self._orders = self._lost = 0
        self.recovery_sent = 0
        self.advanced = 0
        self.sample = (0.0, 0, True)
        self.srtt_s = rtt_s
        self.rttvar_s = Timer(transport, rtt_s, deviation_s).rttvar_s
        self.stack = transport.stack
        self._transport = transport
        self._ack_s, self._deviation_s = rtt_s if ack_s is None else ack_s, deviation_s
        self._flow_bits = math.inf
        self._full_bits = 8.0 * (transport.segment_bytes + transport.segment_overhead_bytes)
        if transport.flow_bytes:
            self._flow_bits = transport.flow_segments * self._full_bits
        self._missing: dict[int, Segment] = {}  # segments that are not acknowledged, by number
        self._under_way_bits = 0.0  # bits of those that do not count as lost
        self._acks: deque[tuple[list[float], list[Segment]]] = deque()  # acknowledgements to come: [time], segments
        self._error_s, self._measured = 0.0, 0  # largest error of the current round trip; its last segment
        self._delayed: tuple[list[float], list[Segment]] | None = None  # the last of _acks, if it is delayed
        self._there = 0  # receiver: first number that it lacks
        self._apart: set[int] = set()  # receiver: numbers that it has beyond that
        self._quick = 0 if self.stack == "plain" else QUICK_ACKS
        self._recovers_to = 0
        self._timer_s = math.inf  # start of the retransmission timer
        self._doubled = 1.0
        self._probed = False
        self._reorder_s = math.inf  # time at which segments sent before `_newest` count as lost
        # Order of the latest transmission that has arrived, and its round trip.
        self._newest, self._newest_rtt_s = -1, rtt_s
        self._least_rtt_s = rtt_s
        self._paced_s = -math.inf
        self._last_s = -math.inf
        # The last segment of the latest message, the time at which it was sent first, and that at which its message had left the wire.
        self._tail: Segment | None = None
        self._tail_s = self._there_s = -math.inf
        self._header_bits = 8.0 * transport.segment_overhead_bytes
        # Until more than this number has arrived, samples are limited by the data to send; 0 if they are not.
        self._idle_until = 0

    @property
    def pipe(self) -> int:
        return len(self._missing) - self._lost

    @property
    def first(self) -> int:
        return next(iter(self._missing), self.sent)

    @property
    def rto_s(self) -> float:
        return min(self._transport.rto_s(self.srtt_s, self.rttvar_s) * self._doubled, MAX_RTO_S)

    def send(
        self,
        ready_s: float,
        free_s: float,
        segments: int,
        bits: float,
        finish_s: Callable[[float, float], float],
        lost: Callable[[float, bool], bool],
        full: Callable[[float, float], bool],
    ) -> tuple[float, float, float]:
        """Send a message. Returns the time when the last of its segments to arrive has left the wire, the time when the wire is free,
        and the bits sent in addition.

        Args:
            ready_s: time from which it may leave.
            free_s: time from which the wire is free for it.
            segments: number of its segments, framed.
            bits: number of its bits, framed.
            finish_s: `Wire.finish_s`.
            lost: (time, retransmission) -> whether a packet that enters the wire at this time is lost.
            full: (time, free time of the wire) -> whether a packet at this time does not fit into the buffer.
        """
        if ready_s < self._tail_s and segments == 1 and self._joins(bits - self._header_bits):
            free_s = finish_s(free_s, bits)
            self._there_s = max(self._there_s, free_s)
            return self._there_s, free_s, 0.0
        now_s = max(ready_s, self.now_s)
        self._catch_up(now_s)
        self.now_s = now_s
        if self.pipe + 1 <= self.control.window and not self._lost:  # Linux tcp_rate_check_app_limited
            self._idle_until = max(1, self.delivered + self.pipe)
        if not self._missing:
            self.peak = 0
            self.control.begins(self, now_s - self._last_s)
        control, missing, acks = self.control, self._missing, self._acks
        left = awaited = segments
        there_s = free_s
        message_bits, left_bits, sent_bits = bits, bits, 0.0
        for _ in range(MAX_TRIES * segments):
            # Send if the window allows it; an empty pipe never waits for the window.
            pipe = self.pipe
            segment, blocked_s = None, math.inf
            next_bits = self._full_bits if left > 1 else left_bits
            if (pipe + 1 <= control.window and self._has_room(next_bits)) or not pipe:
                segment = self._next_again(left > 0)
                if segment is None and not left:
                    if pipe + 1 <= control.window:
                        self._idle_until = max(1, self.delivered + pipe)
                elif self._paced_s > now_s and self._paces:
                    segment, blocked_s = None, self._paced_s
                elif segment is None:
                    left -= 1
                    segment = Segment(self.sent, self._full_bits if left else left_bits)
                    left_bits -= segment.bits
                    missing[self.sent] = segment
                    self._under_way_bits += segment.bits
                    self.sent += 1
            if segment is None:  # advance to the next event
                ack_s = acks[0][0][0] if acks else math.inf
                now_s = min(ack_s, self._alarm_s(), blocked_s, self._reorder_s)
                if ack_s <= now_s + INSTANT_S:
                    now_s = ack_s
                    self._acknowledge(now_s)
                elif now_s == self._reorder_s:
                    self._reordered(now_s)
                elif now_s != blocked_s:
                    segment = self._timeout(now_s)  # a probe ignores the window
            if segment is None:
                continue
            repeated, arrived, dropped = segment.order > 0, segment.arrives, full(now_s, free_s)
            sent_bits += segment.bits
            begin_s = max(now_s, free_s)
            if not dropped:
                free_s = finish_s(begin_s, segment.bits)
                if free_s == math.inf:
                    return math.inf, math.inf, 0.0
            self._transmitted(segment, now_s, not dropped and not lost(begin_s, repeated), free_s)
            if not repeated:
                self._tail, self._tail_s = segment, now_s
            if segment.arrives and not arrived:
                awaited -= 1
                there_s = max(there_s, free_s)
                if not awaited:
                    self.now_s = self._last_s = now_s
                    self._there_s = there_s
                    return there_s, free_s, sent_bits - message_bits
        return math.inf, free_s, sent_bits - message_bits

    def _joins(self, bits: float) -> bool:
        """Put a message of so many bits without headers into the last segment, if there is room, and return whether there is.

        The segment was not sent yet when the message was ready, so a real sender sends both together.
        """
        tail = self._tail
        if tail is None or tail.lost or tail.bits + bits > self._full_bits or not self._has_room(bits):
            return False
        tail.bits += bits
        if tail.number in self._missing:
            self._under_way_bits += bits
        return True

    def _has_room(self, bits: float) -> bool:
        """Return whether the receiver has room for this many bits in addition to those in flight."""
        return self._under_way_bits + bits <= self._flow_bits * (1.0 + 1e-9)

    def _next_again(self, more: bool) -> Segment | None:
        """Return the next segment to retransmit, if any. more: whether there are new segments to send."""
        if self._lost:
            return next(segment for segment in self._missing.values() if segment.lost)
        if self.state == RECOVERY and not more and self.stack == "plain":  # RFC 6675 sec. 4, NextSeg (3)
            for segment in self._missing.values():
                if not segment.beyond:
                    break
                if not segment.again:
                    return segment
        return None

    @property
    def _paces(self) -> bool:
        """Whether pacing may delay a packet. The initial window leaves at once."""
        return self.sent >= self._transport.initial_window

    def _transmitted(self, segment: Segment, now_s: float, arrives: bool, end_s: float) -> None:
        """Update the state for a transmission at `now_s` whose last bit leaves at `end_s`. arrives: whether it is not lost."""
        if segment.lost:
            segment.lost = False
            self._lost -= 1
            self._under_way_bits += segment.bits
        if segment.arrives and segment.earlier is None:
            segment.earlier = copy(segment)
        if segment.order:
            segment.again = True
            segment.beyond = 0
        self._orders += 1
        segment.order = self._orders
        if self.pipe == 1:  # nothing else is in flight
            self._first_s = self.delivered_s = now_s
            self._timer_s = now_s
        elif self.stack == "quic" or (self.stack == "linux" and segment.again and segment.number == self.first):
            self._timer_s = now_s
        segment.sent_s, segment.first_s = now_s, self._first_s
        segment.delivered, segment.delivered_s = self.delivered, self.delivered_s
        segment.idle = self._idle_until > 0
        if self.state == RECOVERY:
            self.recovery_sent += 1
        self.peak = max(self.peak, self.pipe)
        if self.control.gap_s:
            self._paced_s = max(self._paced_s, now_s) + self.control.gap_s
        if not arrives:
            return
        segment.arrives = True
        self._receive(segment, end_s + self._ack_s)

    def _receive(self, segment: Segment, ack_s: float) -> None:
        """Schedule the receiver's acknowledgement of a segment. ack_s: time of an acknowledgement without delay."""
        number, apart = segment.number, self._apart
        at_once = bool(apart) or self._quick > 0
        self._quick -= 1
        if number == self._there:
            self._there += 1
            while self._there in apart:
                apart.remove(self._there)
                self._there += 1
        elif number > self._there:
            apart.add(number)
            at_once = True
        delayed, self._delayed = self._delayed, None
        if delayed is not None and delayed[0][0] > ack_s - INSTANT_S:
            delayed[0][0] = ack_s
            delayed[1].append(segment)
            return
        entry = ([ack_s if at_once else ack_s + (self._transport.ack_delay_s or DELAYED_ACK_S)], [segment])
        self._acks.append(entry)
        if not at_once:
            self._delayed = entry

    def _catch_up(self, now_s: float) -> None:
        """Process the acknowledgements until now. All earlier messages have arrived, so no timer matters."""
        acks = self._acks
        while acks and acks[0][0][0] <= now_s:
            self._acknowledge(acks[0][0][0])

    def _acknowledge(self, now_s: float) -> None:
        """Process the next acknowledgement."""
        entry = self._acks.popleft()
        if entry is self._delayed:
            self._delayed = None
        self.now_s = now_s
        missing, first = self._missing, self.first
        lost_before, newly = self._lost, 0
        newest = None
        for segment in entry[1]:
            if missing.pop(segment.number, None) is None:
                continue
            newly += 1
            if segment.lost:
                self._lost -= 1
                lost_before -= 1
            else:
                self._under_way_bits -= segment.bits
            # Samples are those of the transmission that has arrived, as time stamps (RFC 7323) and packet numbers (RFC 9002) tell.
            arrived = segment.earlier or segment
            if newest is None or arrived.order > newest.order:
                newest = arrived
            for other in missing.values():
                if other.number > segment.number:
                    break
                other.beyond += 1
        if newest is None:
            return
        self.delivered += newly
        if self.delivered > self._idle_until:
            self._idle_until = 0
        self.delivered_s = now_s
        self._first_s = newest.sent_s
        rtt_s = now_s - newest.sent_s
        self.advanced = self.first - first
        self._measure(rtt_s)
        self._sample(now_s, newest)
        self._probed = False
        if self.stack == "quic":
            self._doubled = 1.0
        elif self.advanced:
            self._timer_s = now_s
            self._doubled = 1.0
        if newest.order > self._newest:
            self._newest, self._newest_rtt_s = newest.order, rtt_s
        if self.state != OPEN:
            self._end_recovery()
        self._find_lost(now_s, newest)
        self.control.acked(self, newly, max(0, self._lost - lost_before), rtt_s)

    def _end_recovery(self) -> None:
        """End the recovery once all segments in flight at the loss have arrived. Losses of later segments start a new one (RFC 6675)."""
        if self.first >= self._recovers_to:
            self.control.recovered(self)
            self.state = OPEN
            if any(segment.lost or segment.again for segment in self._missing.values()):
                self._recover()

    def _measure(self, rtt_s: float) -> None:
        """Take a sample of the round trip.

        The deviation is updated once per round trip, by its largest sample (RFC 6298 sec. 3, Linux), or with each sample (RFC 9002
        sec. 5.3).
        """
        if rtt_s < self._least_rtt_s:
            self._least_rtt_s = rtt_s
        more_s = rtt_s - self.srtt_s
        self._error_s = max(self._error_s, abs(more_s), self._deviation_s)
        self.srtt_s += 0.125 * more_s
        if self.first > self._measured or self.stack == "quic":
            self.rttvar_s += 0.25 * (self._error_s - self.rttvar_s)
            self._error_s, self._measured = 0.0, self.sent

    def _sample(self, now_s: float, newest: Segment) -> None:
        """Take the delivery rate from the acknowledged segment that was sent last."""
        took_s = max(now_s - newest.delivered_s, newest.sent_s - newest.first_s)
        rate = (self.delivered - newest.delivered) / took_s if took_s > 0.0 else 0.0
        self.sample = (rate, newest.delivered, newest.idle)

    def _find_lost(self, now_s: float, newest: Segment) -> None:
        """Mark segments as lost because of later arrivals."""
        before = self._lost
        self._reorder_s = math.inf
        if self.stack == "plain":
            for other in self._missing.values():
                if other.number > newest.number:
                    break
                open_ = self.state == OPEN and self._lost == before
                if not other.lost and other.beyond >= DUPLICATE_ACKS and (not other.again or open_):
                    self._mark(other)
        else:
            self._find_late(now_s)
        if self._lost > before and self.state == OPEN:
            self._recover()

    def _find_late(self, now_s: float) -> None:
        """Mark segments as lost because of later arrivals and time."""
        linux, known = self.stack == "linux", self.state != OPEN
        reordering, srtt_s = self._transport.reordering, self.srtt_s
        for other in self._missing.values():
            if other.order > self._newest and not other.again:
                return  # segments with higher numbers were sent later still
            if other.lost or other.order > self._newest:
                continue
            if linux:  # RFC 8985 sec. 6.2; no wait for reordering once a loss is known: Linux tcp_rack_reo_wnd
                known = known or other.beyond >= DUPLICATE_ACKS
                late_s = other.sent_s + self._newest_rtt_s + reordering * self._least_rtt_s
            else:  # RFC 9002 sec. 6.1, by the numbers of packets
                known = self._newest - other.order >= DUPLICATE_ACKS
                late_s = other.sent_s + (1.0 + reordering) * max(srtt_s, self._newest_rtt_s)
            if known or late_s <= now_s + INSTANT_S:
                self._mark(other)
                known = True
            else:  # Linux: the last of them, with a margin (tcp_rack_mark_lost); QUIC: the first
                self._reorder_s = late_s + PROBE_S if linux else min(late_s, self._reorder_s)

    def _reordered(self, now_s: float) -> None:
        self.now_s = now_s
        self._reorder_s = math.inf
        self._find_late(now_s)
        if self._lost and self.state == OPEN:
            self._recover()

    def _mark(self, segment: Segment) -> None:
        segment.lost = True
        self._lost += 1
        self._under_way_bits -= segment.bits

    def _recover(self) -> None:
        self._recovers_to = self.sent
        self.recovery_sent = 0
        self.state = RECOVERY
        self.control.recovers(self)

    def _alarm_s(self) -> float:
        """Return the time at which the retransmission timer or a tail loss probe is due, for missing acknowledgements."""
        if not self._missing:
            return math.inf
        first, last = next(iter(self._missing.values())), next(reversed(self._missing.values()))
        due_s = math.inf if first.arrives else self._timer_s + self.rto_s
        # A delayed acknowledgement does not delay the probe.
        if self.stack == "linux" and self.state == OPEN and not self._probed and not (first.arrives and last.arrives):
            due_s = min(due_s, self._timer_s + self._transport.probe_s(self.srtt_s, len(self._missing)))
        return max(due_s, self.now_s)

    def _timeout(self, now_s: float) -> Segment | None:
        """Return the segment that probes the tail; None after a retransmission timeout."""
        self.now_s = now_s
        if self.stack == "quic":  # segments count as lost only once the probe is acknowledged: RFC 9002 sec. 6.2
            self._doubled *= 2.0
            return next(iter(self._missing.values()))
        if now_s < self._timer_s + self.rto_s:
            self._probed = True
            self._timer_s = now_s
            return next(reversed(self._missing.values()))
        # RFC 5681 sec. 3.1: the threshold stays while the same segment times out again; Linux tcp_enter_loss: also in a recovery.
        anew = self.state == OPEN or (self.state == LOSS and self._doubled == 1.0)
        self._doubled = min(2.0 * self._doubled, 2.0**10)
        self._timer_s = now_s
        self._recovers_to = self.sent
        self._reorder_s = math.inf
        self.state = LOSS
        for segment in self._missing.values():
            segment.beyond = 0
            # Under RACK a segment that cannot have been acknowledged yet does not count as lost: Linux tcp_timeout_mark_lost.
            recent = self.stack == "linux" and segment.number > self.first and segment.sent_s + self.srtt_s > now_s
            if not segment.lost and not recent:
                self._mark(segment)
        self.control.timed_out(self, anew)
        return None

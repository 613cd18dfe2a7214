"""Behaviour of ns-3 3.44 where it differs from Linux, so that the rest of `simulator.network.congestion` can be compared with ns-3.

Found by following single transfers of the grid of `benchmarks.ns3_points`, transmission by transmission:

- Loss detection. A retransmitted segment that is lost again stays counted as in flight until all segments before it are acknowledged.
  It counts as lost until it arrives, so the next recovery starts at the first segment that arrives beyond it.
- Timer. Round trips and their deviation are measured only when an acknowledgement advances the first missing segment. A retransmission does
  not restart the timer, so with round trips longer than 0.2 s a recovery ends in a timeout.
- Recovery. It ends after the window has grown by the last acknowledgement. A partial acknowledgement retransmits the first missing segment,
  once, if there is nothing else to send. Under BBR it also counts as a loss. A packet is not paced if it follows a partial acknowledgement,
  starts a recovery or follows a timeout.
- CUBIC. Every timeout lowers the threshold, even a repeated one of the same segment. Proportional rate reduction counts bytes, and counts
  both a duplicate acknowledgement and the segment that it reports. The window grows by the advance of the first missing segment, at the end
  of a recovery too, but not if segments beyond it are reported.
- BBR. In samples of the rate, all segments sent after the same deliveries use the time of the first. A recovery starts no round. After the
  first recovery there is no window until the pipe is full, because a count falls below zero by which the window would grow; it does not
  grow above its target.
"""

import math

from simulator.network.bbr import Bbr
from simulator.network.congestion import LOSS, OPEN, RECOVERY, Control, Segment, Sender
from simulator.network.cubic import Cubic
from simulator.network.transport import Transport

LEAST_RTO_S = 0.2  # added to the round trip, as set in `ns3_transfer.cc`


def ns3_sender(transport: Transport, rtt_s: float) -> Sender:
    """Return an ns-3 sender with the transport's congestion control, whose handshake took one round trip."""
    initial = transport.initial_window
    control: Control = Ns3Bbr(initial, rtt_s) if transport.congestion == "bbr" else Ns3Cubic(initial, False)
    return Ns3Sender(transport, control, rtt_s, 0.0)


class Ns3Sender(Sender):
    """A sender with the behaviour described in the module.

    Attributes:
        beyond: Whether the latest acknowledgement reported segments beyond the first missing one.
        partial: Whether it was a partial acknowledgement in a recovery.
    """

    def __init__(self, transport: Transport, control: Control, rtt_s: float, deviation_s: float) -> None:
        super().__init__(transport, control, rtt_s, deviation_s)
        self.beyond = False
        self._quick = 1
        self._fresh: list[Segment] = []  # newly reported by the latest acknowledgement
        self._kept: set[int] = set()  # lost, but still counted as in flight
        # For the delivery rate: deliveries when its segment was sent, its time, whether the sender was limited by the application.
        self._prior, self._took_s, self._idle = 0, 0.0, True
        self.partial = self._at_once = False

    @property
    def recovered(self) -> bool:
        """Whether everything in flight at the latest loss has arrived."""
        return self.first >= self._recovers_to

    @property
    def rto_s(self) -> float:
        return max(self.srtt_s + 4.0 * self.rttvar_s, self._ack_s + LEAST_RTO_S) * self._doubled

    @property
    def pipe(self) -> int:
        return super().pipe + len(self._kept)

    @property
    def _paces(self) -> bool:
        return super()._paces and not self._at_once

    def _next_again(self, more: bool) -> Segment | None:
        found = super()._next_again(more)
        if found is None and self.partial and not more and not self._missing[self.first].again:
            return self._missing[self.first]
        return found

    def _transmitted(self, segment: Segment, now_s: float, arrives: bool, end_s: float) -> None:
        beyond, paced_s = segment.beyond, self._paced_s
        self._kept.discard(segment.number)
        super()._transmitted(segment, now_s, arrives, end_s)
        segment.beyond = beyond
        if self._at_once:
            self._paced_s = paced_s
        self.partial = self._at_once = False

    def _acknowledge(self, now_s: float) -> None:
        self._fresh = [segment for segment in self._acks[0][1] if segment.number in self._missing]
        super()._acknowledge(now_s)
        if self.state != OPEN and self.recovered:
            self.control.recovered(self)
            self.state = OPEN
            if self._lost:
                self._recover()

    def _end_recovery(self) -> None:
        """Do nothing: `_acknowledge` ends the recovery later."""

    def _measure(self, rtt_s: float) -> None:
        if self.advanced:
            self.rttvar_s += 0.25 * (abs(self.srtt_s - rtt_s) - self.rttvar_s)
            self.srtt_s += 0.125 * (rtt_s - self.srtt_s)

    def _sample(self, now_s: float, newest: Segment) -> None:
        for segment in self._fresh:
            if not self._prior or segment.delivered > self._prior:
                self._prior = segment.delivered
                self._took_s = max(now_s - segment.delivered_s, segment.sent_s - segment.first_s)
                self._idle = segment.idle
        self.sample = ((self.delivered - self._prior) / self._took_s, self._prior, self._idle)

    def _find_lost(self, now_s: float, newest: Segment) -> None:
        first = self.first
        self._kept |= {segment.number for segment in self._fresh if segment.again}
        self._kept = {number for number in self._kept if number > first}
        self.beyond = any(segment.number > first for segment in self._fresh)
        self.partial = self.state == RECOVERY and self.advanced > 0 and not self.recovered
        self._at_once = self.partial
        if self.state != OPEN or self.beyond:
            super()._find_lost(now_s, newest)

    def _mark(self, segment: Segment) -> None:
        if segment.again and self.state != LOSS:
            self._kept.add(segment.number)
        super()._mark(segment)

    def _recover(self) -> None:
        super()._recover()
        self._at_once = True

    def _alarm_s(self) -> float:
        return max(self._timer_s + self.rto_s, self.now_s) if self._missing else math.inf

    def _timeout(self, now_s: float) -> Segment | None:
        self._kept.clear()
        self._at_once = True
        return super()._timeout(now_s)


class Ns3Cubic(Cubic):
    """CUBIC with the behaviour described in the module."""

    def acked(self, sender: Sender, segments: int, lost: int, rtt_s: float) -> None:
        assert isinstance(sender, Ns3Sender)
        if sender.state == OPEN:
            segments = 0 if sender.beyond else sender.advanced
        elif sender.state == LOSS and sender.recovered:
            segments = 0
        if segments:
            super().acked(sender, segments, lost, rtt_s)

    def _reduce(self, sender: Sender, segments: int, lost: int) -> None:
        if not self._reduced:
            self._prior = max(1, sender.pipe)
        if not sender.advanced and self._reduced < self._prior:
            segments += 1
        self._reduced += segments
        pipe, sent = sender.pipe, sender.recovery_sent
        if pipe > self._threshold:
            more = self._reduced * self._threshold / self._prior - sent
        else:
            more = min(self._threshold - pipe, max(self._reduced - sent, segments) + (sender.advanced > 0))
        self.window = pipe + max(more, 0.0 if sent else 1.0)

    def _grow(self, sender: Sender, segments: int) -> None:
        needed = self._needed(sender, segments)
        self._count += segments
        if self._count >= needed:
            self._count -= needed
            self.window += 1.0

    def timed_out(self, sender: Sender, anew: bool) -> None:
        super().timed_out(sender, True)

    def recovered(self, sender: Sender) -> None:
        super().recovered(sender)
        if sender.state == RECOVERY:
            self._grow(sender, sender.advanced)


class Ns3Bbr(Bbr):
    """BBR with the behaviour described in the module."""

    __slots__ = ("_begins",)

    def __init__(self, initial: int, rtt_s: float) -> None:
        super().__init__(initial, rtt_s)
        self._begins = False  # whether a recovery starts

    def recovers(self, sender: Sender) -> None:
        self._save()
        self._conserves = self._hurt = self._begins = True
        self.window = float(sender.pipe + 1)

    def _set_window(self, sender: Sender, segments: int, lost: int) -> None:
        assert isinstance(sender, Ns3Sender)
        super()._set_window(sender, segments + self._begins, lost + sender.partial if sender.state == RECOVERY else 0)
        self._begins = False

    def recovered(self, sender: Sender) -> None:
        self._conserves = self._hurt = False
        grows = sender.state == LOSS or self.window < self._product(self._window_gain)
        self.window = math.inf if grows and not self.filled else max(self.window, self._prior)

"""Cross traffic: the queue of other flows on the same line, and how queue management controls it.

A greedy flow (an upload, a backup) sends as much as its window allows. At a drop-tail queue its window grows until the buffer is full,
so a message waits buffer / rate. CoDel (RFC 8289) allows `target_s` of queue and drops packets beyond. FQ-CoDel (RFC 8290) gives each
flow a queue: a message waits for the packet that is being sent, half of one on average, and beyond its first packet alternates with the
other flow. Dual-queue L4S (RFC 9332) marks packets where CoDel drops them, at a shorter queue.

A flow with pauses alternates between busy and quiet periods. It is a fluid: while busy it arrives at twice the rate of the wire (slow
start), so the queue fills at the wire's rate up to its limit; while quiet the queue drains at that rate. A fetch of fixed size is sent
when its last bits are in the queue, so it pauses earlier by their wait in the queue.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.network.impairments import Losses
from simulator.network.wire import Wire

PACKET_BITS = 8.0 * 1514  # a full Ethernet frame, and the quantum of FQ-CoDel (RFC 8290 sec. 5.2.3)
LEAST_WINDOW = 4.0  # packets; below it timeouts set a flow's rate, not its window
VIDEO_BPS = 5e6  # a 1080p stream: the rate that Netflix, YouTube and others recommend for it (general knowledge)
VIDEO_SEGMENT_S = 4.0  # usual length of DASH segments, each fetched at full rate (general knowledge)
_WARM_CYCLES = 10.0  # cycles before time 0 at which a flow with pauses starts


@dataclass(frozen=True)
class Aqm:
    """Active queue management.

    Attributes:
        target_s: queue of a greedy flow in seconds; infinite for the whole buffer.
        drops: whether it drops packets to slow a flow down; otherwise it marks them.
        fair: whether each flow has its own queue.
    """

    target_s: float
    drops: bool = True
    fair: bool = False


AQMS = {
    "none": Aqm(math.inf),
    "codel": Aqm(0.005),  # RFC 8289 sec. 4.3
    "fq-codel": Aqm(0.005, fair=True),
    "l4s": Aqm(0.001, drops=False),  # marks from 1 ms of queue on: RFC 9332 appendix A
}


@dataclass(frozen=True)
class Traffic:
    """Another flow on the same line.

    Attributes:
        busy_s: mean length of its busy periods; infinite for a greedy flow.
        quiet_s: mean length of its quiet periods.
        fixed: whether a busy period is a fetch of the data that the wire carries in busy_s, one in each busy_s + quiet_s; otherwise
            periods are exponential.
    """

    busy_s: float = math.inf
    quiet_s: float = 0.0
    fixed: bool = False

    @classmethod
    def video(cls, rate_bps: float) -> "Traffic":
        """Return a video stream over a line of this rate, which fetches one segment at a time."""
        busy_s = VIDEO_SEGMENT_S * VIDEO_BPS / rate_bps
        return cls(busy_s, VIDEO_SEGMENT_S - busy_s, True) if busy_s < VIDEO_SEGMENT_S else cls()

    @property
    def busy_share(self) -> float:
        return 1.0 if self.busy_s == math.inf else self.busy_s / (self.busy_s + self.quiet_s)

    def sends_s(self, limit_s: float) -> float:
        """Return the mean length of its busy periods with a queue of at most `limit_s`."""
        return max(self.busy_s - limit_s, 0.5 * self.busy_s) if self.fixed else self.busy_s

    def mean_wait_s(self, limit_s: float) -> float:
        """Return the mean over time of the queue in seconds of wire time, at most `limit_s`; the module describes the model.

        For exponential turns with rates m (busy ends) and l (quiet ends), the density of the queue at x is the same in both turns and
        proportional to exp((l - m) x); the queue is empty with weight 1 / l, and at its limit with weight exp((l - m) limit) / m.
        """
        if self.busy_s == math.inf or limit_s == 0.0:
            return limit_s
        if self.fixed:
            top_s = min(limit_s, 0.5 * self.busy_s)
            return top_s * (self.busy_s - top_s) / (self.busy_s + self.quiet_s)
        # In units of the limit; the exponential is taken relative to its larger end.
        growth = limit_s * (1.0 / self.quiet_s - 1.0 / self.busy_s)
        low, high = math.exp(-max(growth, 0.0)), math.exp(min(growth, 0.0))
        if abs(growth) < 1e-6:
            inside, moment = 1.0, 0.5
        else:
            inside = (high - low) / growth
            moment = (high - inside) / growth
        total = 2.0 * limit_s * inside + self.quiet_s * low + self.busy_s * high
        return limit_s * (2.0 * limit_s * moment + self.busy_s * high) / total


GREEDY = Traffic()


class CrossQueue:
    """The queue of a flow before a wire, by time. Times may be queried in any order.

    Attributes:
        fair: whether the simulated messages have their own queue.
        drops: whether it drops packets of all flows.
        mean_s: mean wait of a message.
    """

    __slots__ = (
        "_backlogs",
        "_begun_s",
        "_busy",
        "_drop_share",
        "_end_s",
        "_length_s",
        "_limit_bits",
        "_settled",
        "_switches_s",
        "_wire",
        "drops",
        "fair",
        "mean_s",
    )

    def __init__(
        self, traffic: Traffic, wire: Wire, buffer_bits: float, aqm: Aqm, rtt_s: float, stream: np.random.Generator
    ) -> None:
        """Raises ValueError if neither the buffer nor `aqm` limits the queue.

        Args:
            rtt_s: round trip without queues, also of the other flow.
            stream: random stream of its periods.
        """
        rate_bps = wire.mean_bps
        target_bits = max(aqm.target_s * rate_bps, PACKET_BITS) if aqm.target_s < math.inf else math.inf
        limit_bits = min(buffer_bits, target_bits)
        if limit_bits == math.inf and not aqm.fair:
            raise ValueError("cross traffic before a drop-tail queue needs a buffer")
        self.fair = aqm.fair
        self._wire = wire
        self._limit_bits = limit_bits
        # For messages in their own queue: time at which the latest has left, and start of the latest one that was behind others.
        self._end_s = self._begun_s = -math.inf
        self._settled = (-1, math.inf)  # a turn, and the time from which on its backlog is at its limit or 0
        if aqm.fair:
            self.mean_s = traffic.busy_share * 0.5 * PACKET_BITS / rate_bps
        else:
            self.mean_s = traffic.mean_wait_s(limit_bits / rate_bps)
        self.mean_s += traffic.busy_share * (wire.met_wait_s - wire.mean_wait_s)
        # A flow that fills path and queue with a window W loses 3 / (2 W^2) of its packets (Mathis et al., CCR 1997), and a shared queue
        # drops packets of the other flows at the same rate.
        window = max((rtt_s * rate_bps + limit_bits) / PACKET_BITS, LEAST_WINDOW)
        self.drops = aqm.drops and not aqm.fair
        self._drop_share = 1.5 / window**2
        # By turn: start, whether the flow is busy, and backlog at the start. Empty for a greedy flow.
        self._switches_s: list[float] = []
        self._busy: list[bool] = []
        self._backlogs: list[float] = []
        if traffic.busy_s == math.inf:
            return
        cycle_s = traffic.busy_s + traffic.quiet_s
        # A fetch with its own queue uses the wire until its last bit has left.
        sends_s = traffic.busy_s if aqm.fair else traffic.sends_s(limit_bits / rate_bps)
        self._length_s: Callable[[bool], float] = (
            (lambda busy: sends_s if busy else cycle_s - sends_s)
            if traffic.fixed
            else (lambda busy: float(stream.exponential(traffic.busy_s if busy else traffic.quiet_s)))
        )
        self._switches_s.append(-cycle_s * (_WARM_CYCLES + float(stream.random())))
        self._busy.append(bool(stream.random() < traffic.busy_share))
        most_bits = min(limit_bits, 0.5 * traffic.busy_s * rate_bps) if traffic.fixed else limit_bits
        self._backlogs.append(most_bits if self._busy[0] else 0.0)

    def clear_s(self, time_s: float) -> float:
        """Return the time at which the other flow's packets before a message of `time_s` have left."""
        if time_s == math.inf:
            return time_s
        busy, backlog = self._state(time_s)
        if busy or backlog > 0.0:
            self._wire.occupied(time_s)
        if self.fair:
            backlog = 0.5 * PACKET_BITS if busy else 0.0
        return self._wire.finish_s(time_s, backlog) if backlog > 0.0 else time_s

    def finish_s(self, start_s: float, bits: float) -> float:
        """Return `Wire.finish_s` of a message with its own queue, whose packets alternate with those of the other flow.

        The first packet of an empty queue does not wait for a turn. A message that starts when the previous one has left was behind it.
        """
        if start_s == math.inf:
            return start_s
        if self._state(start_s)[0]:
            if start_s in (self._end_s, self._begun_s):
                self._begun_s = start_s
                bits *= 2.0
            elif bits > PACKET_BITS:
                bits += bits - PACKET_BITS
        end_s = self._wire.finish_s(start_s, bits)
        self._end_s = max(self._end_s, end_s)
        return end_s

    def own_bits(self, time_s: float, bits: float) -> float:
        """Return the bits of messages waiting in their own queue if they take the wire the time of `bits`."""
        return 0.5 * (bits + min(bits, PACKET_BITS)) if self._state(time_s)[0] else bits

    def drop_share(self, time_s: float) -> float:
        """Return the share of all packets that the queue drops at a time."""
        if not self.drops or time_s == math.inf:
            return 0.0
        busy, backlog = self._state(time_s)
        return self._drop_share if busy and backlog >= self._limit_bits else 0.0

    def _state(self, time_s: float) -> tuple[bool, float]:
        """Return whether the flow is busy, and its queue in bits."""
        switches_s = self._switches_s
        if not switches_s:
            return True, self._limit_bits
        while switches_s[-1] <= time_s:
            end_s = switches_s[-1] + self._length_s(self._busy[-1])
            self._backlogs.append(self._backlog(len(switches_s) - 1, end_s))
            self._busy.append(not self._busy[-1])
            switches_s.append(end_s)
        turn = bisect_right(switches_s, time_s) - 1
        return self._busy[turn], self._backlog(turn, time_s)

    def _backlog(self, turn: int, time_s: float) -> float:
        end_bits = self._limit_bits if self._busy[turn] else 0.0
        settled, since_s = self._settled
        if turn == settled and time_s >= since_s:  # shortcut: the rest of a turn may be long, and `Wire.bits` slow
            return end_bits
        carried = self._wire.bits(self._switches_s[turn], time_s)
        backlog = self._backlogs[turn] + carried if self._busy[turn] else self._backlogs[turn] - carried
        if backlog < end_bits if self._busy[turn] else backlog > end_bits:
            return backlog
        self._settled = (turn, time_s)
        return end_bits


class QueueDrops:
    """Packets that a shared queue drops, in addition to those that the link loses. Implements `link.Losses`."""

    def __init__(self, queue: CrossQueue, link: Losses | None, stream: np.random.Generator) -> None:
        self._queue = queue
        self._link = link
        self._stream = stream

    def lost(self, now_s: float, packets: int) -> Sequence[int]:
        """Return the indices of lost and dropped packets, see `Loss.lost`."""
        lost = () if self._link is None else self._link.lost(now_s, packets)
        share = self._queue.drop_share(now_s)
        if share == 0.0:
            return lost
        dropped = np.flatnonzero(self._stream.random(packets) < share).tolist()
        return sorted({*lost, *dropped}) if dropped else lost

    def lost_again(self, now_s: float, packets: int) -> int:
        """Return the number of packets lost or dropped again, see `Loss.lost_again`."""
        lost = 0 if self._link is None else self._link.lost_again(now_s, packets)
        share = self._queue.drop_share(now_s)
        return lost + (int(np.count_nonzero(self._stream.random(packets - lost) < share)) if share else 0)

"""CUBIC, the default congestion control of most operating systems (RFC 9438), with HyStart++ (RFC 9406)."""

import math

from simulator.network.congestion import RECOVERY, Sender

BETA = 0.7  # of the window that a loss leaves, RFC 9438 sec. 4.6
C = 0.4  # segments a second cubed, sec. 5.1
RENO = int(8.0 * (1.0 + BETA) / 3.0 / (1.0 - BETA))  # eighths of a window by which Reno's grows by a segment, sec. 4.3
FIRST = 20  # segments that let a window grow by one where no loss tells how far it may (Linux bictcp_update)
LEAST = 2.0  # segments of a threshold
# HyStart++, RFC 9406 sec. 4.3: limits of the rise of a round's least round trip that ends slow start, samples that tell of it, by what
# growth is divided afterwards, and for how many rounds.
RISE_S = (0.004, 0.016)
SAMPLES = 8
DIVISOR = 4.0
ROUNDS = 5


class Cubic:
    """See `simulator.network.congestion.Control`.

    In slow start the window grows by what is acknowledged. A loss takes it to `BETA` of itself, by the steps of proportional rate reduction
    (RFC 9937), and it grows back along a cubic curve of time, or as Reno's would where that is larger. Only a window that is used grows.
    """

    __slots__ = (
        "_above_s",
        "_acks",
        "_count",
        "_epoch_s",
        "_k_s",
        "_least_rtt_s",
        "_least_s",
        "_most",
        "_prior",
        "_reduced",
        "_reno",
        "_round",
        "_rounds",
        "_samples",
        "_start",
        "_threshold",
        "gap_s",
        "initial",
        "restarts",
        "window",
    )

    def __init__(self, initial: int, restarts: bool) -> None:
        self.initial = initial
        self.restarts = restarts
        self.window = float(initial)
        self.gap_s = 0.0
        self._threshold = math.inf
        self._most = 0  # the window before the latest loss
        self._epoch_s = -math.inf  # since when it grows along the curve; -inf for not yet
        self._k_s = 0.0
        # The window at which the curve is level, that of Reno, and segments since it grew, and since ours did.
        self._start = self._reno = self._acks = self._count = 0
        self._least_rtt_s = math.inf
        self._prior = 1  # the window at the loss
        self._reduced = 0  # segments arrived since
        # HyStart++: the round's last segment, its least round trip, that of the one before, samples; the least when growth was divided, and
        # rounds since then, 0 before.
        self._round = self._samples = self._rounds = 0
        self._least_s = [math.inf, math.inf]
        self._above_s = math.inf

    def acked(self, sender: Sender, segments: int, lost: int, rtt_s: float) -> None:
        self._least_rtt_s = min(self._least_rtt_s, rtt_s)
        if sender.state == RECOVERY:
            self._reduce(sender, segments, lost)
        elif not sender.advanced:
            return
        elif self.window < self._threshold:
            if self._threshold == math.inf:  # the first slow start alone: RFC 9406 sec. 4.3
                self._watch(sender, rtt_s)
            if 2.0 * sender.peak > self.window:  # Linux tcp_is_cwnd_limited
                self.window += segments / (DIVISOR if self._rounds else 1.0)
        elif sender.peak + 1.0 > self.window:
            self._grow(sender, segments)

    def _reduce(self, sender: Sender, segments: int, lost: int) -> None:
        """Proportional rate reduction, RFC 9937 sec. 6.2, Linux tcp_cwnd_reduction."""
        self._reduced += segments
        pipe, sent = sender.pipe, sender.recovery_sent
        if pipe > self._threshold:
            more = math.ceil(self._reduced * self._threshold / self._prior) - sent
        else:
            room = max(self._reduced - sent, segments) + (sender.advanced > 0 and not lost)
            more = min(int(self._threshold) - pipe, room)
        self.window = float(pipe + max(more, 0 if sent else 1))

    def _watch(self, sender: Sender, rtt_s: float) -> None:
        """HyStart++."""
        if sender.first > self._round:
            self._round = sender.sent
            self._least_s = [self._least_s[1], math.inf]
            self._samples = 0
            if self._rounds:
                self._rounds += 1
                if self._rounds > ROUNDS:
                    self._threshold = self.window
        before_s, least_s = self._least_s[0], min(self._least_s[1], rtt_s)
        self._least_s[1] = least_s
        self._samples += 1
        if self._samples < SAMPLES:
            return
        if self._rounds:
            if least_s < self._above_s:
                self._rounds = 0
        elif before_s < math.inf and least_s >= before_s + min(max(before_s / 8.0, RISE_S[0]), RISE_S[1]):
            self._rounds = 1
            self._above_s = least_s

    def _grow(self, sender: Sender, segments: int) -> None:
        """Congestion avoidance, in whole segments as Linux has it (tcp_cong_avoid_ai)."""
        needed = self._needed(sender, segments)
        if self._count >= needed:  # gathered where the curve was flatter, which counts once
            self.window += 1.0
            self._count = 0
        self._count += segments
        if self._count >= needed:
            more, self._count = divmod(self._count, needed)
            self.window += more

    def _needed(self, sender: Sender, segments: int) -> int:
        """Segments to arrive for each by which the window grows: RFC 9438 sec. 4.2 to 4.4, Linux bictcp_update."""
        now_s, window = sender.now_s, int(self.window)
        self._acks += segments
        if self._epoch_s == -math.inf:
            self._epoch_s = now_s
            self._acks = segments
            self._reno = window
            self._start = max(self._most, window)
            self._k_s = math.cbrt((self._start - window) / C)
        since_s = now_s + self._least_rtt_s - self._epoch_s - self._k_s
        target = self._start + int(C * since_s**3)
        needed = window // (target - window) if target > window else 100 * window
        if not self._most:
            needed = min(needed, FIRST)
        reno = (window * RENO) >> 3
        while self._acks > reno:
            self._acks -= reno
            self._reno += 1
        if self._reno > window:
            needed = min(needed, window // (self._reno - window))
        return max(needed, 2)

    def _loss(self, window: float) -> None:
        # Fast convergence, RFC 9438 sec. 4.7.
        self._most = int(window * (1.0 + BETA) / 2.0) if int(window) < self._most else int(window)
        self._threshold = max(math.floor(window * BETA), LEAST)
        self._epoch_s = -math.inf
        self._rounds = 0

    def recovers(self, sender: Sender) -> None:
        self._loss(self.window)
        self._prior = int(self.window)
        self._reduced = 0
        self.window = sender.pipe + 1.0  # where no acknowledgement told of it

    def recovered(self, sender: Sender) -> None:
        if sender.state == RECOVERY:
            self.window = float(self._threshold)  # RFC 9937 sec. 6.2, the end of recovery; Linux tcp_end_cwnd_reduction

    def timed_out(self, sender: Sender, anew: bool) -> None:
        if anew:
            self._loss(self.window)
        self._epoch_s, self._rounds = -math.inf, 0
        self._most = 0  # RFC 9438 sec. 4.8
        self._least_rtt_s = math.inf
        self.window = sender.pipe + 1.0  # the first is sent again at once

    def begins(self, sender: Sender, idle_s: float) -> None:
        if idle_s <= 0.0 or sender.sent == 0:
            return
        if self._epoch_s > -math.inf:  # a pause is no time to grow in: RFC 9438 sec. 5.8
            self._epoch_s += idle_s
        if self.restarts and self.window > self.initial and idle_s > sender.rto_s:
            # Linux tcp_cwnd_restart. Without a loss there is no threshold yet.
            self._threshold = max(self._threshold, 0.75 * self.window)
            halvings = min(int(idle_s / sender.rto_s), 62)
            self.window = max(float(self.initial), self.window / 2.0**halvings)

"""CUBIC, the default congestion control of most operating systems (RFC 9438), with Linux' HyStart or HyStart++ (RFC 9406)."""

import math

from simulator.network.congestion import INSTANT_S, RECOVERY, Sender

BETA = 0.7  # share of the window that remains after a loss, RFC 9438 sec. 4.6
C = 0.4  # segments per second cubed, sec. 5.1
# Arrivals per segment by which Reno's window grows, in eighths of a window, sec. 4.3.
RENO = int(8.0 * (1.0 + BETA) / 3.0 / (1.0 - BETA))
FIRST = 20  # arrivals per segment of growth before the first loss, at most (Linux bictcp_update)
UPDATE_S = 1.0 / 32.0  # time for which Linux keeps the growth that it computed, at the same window
LEAST = 2.0  # smallest threshold in segments
# HyStart++, RFC 9406 sec. 4.3: limits of the rise of a round's minimum round trip that ends slow start, samples needed to see it, divisor
# of the growth afterwards, and number of rounds with it.
RISE_S = (0.004, 0.016)
SAMPLES = 8
DIVISOR = 4.0
ROUNDS = 5
# HyStart of Linux' tcp_cubic.c, with the same rise and samples: smallest window that it ends slow start at; largest time between two
# acknowledgements of a train; what is added to the minimum round trip, half of which a train lasts (hystart_ack_delay, without pacing).
TRAIN_WINDOW = 16
TRAIN_GAP_S = 0.002
TRAIN_MORE_S = 0.001


class Cubic:
    """See `simulator.network.congestion.Control`.

    In slow start the window grows by the acknowledged segments. A loss reduces it to `BETA` of itself, in the steps of proportional rate
    reduction (RFC 9937). Then it grows along a cubic function of time, or as Reno's window if that is larger. It grows only while it is
    used.
    """

    __slots__ = (
        "_above_s",
        "_acks",
        "_count",
        "_epoch_s",
        "_found",
        "_k_s",
        "_kept",
        "_least_rtt_s",
        "_least_s",
        "_linux",
        "_most",
        "_prior",
        "_reduced",
        "_reno",
        "_round",
        "_round_s",
        "_rounds",
        "_samples",
        "_start",
        "_threshold",
        "_train_s",
        "gap_s",
        "initial",
        "restarts",
        "window",
    )

    def __init__(self, initial: int, restarts: bool, linux: bool = False) -> None:
        """Create the control of a new connection.

        Args:
            initial: initial window in segments.
            restarts: see `Control`.
            linux: whether slow start ends by HyStart and the growth is kept for `UPDATE_S`, as in Linux; otherwise HyStart++ and RFC 9438.
        """
        self.initial = initial
        self.restarts = restarts
        self.window = float(initial)
        self.gap_s = 0.0
        self._threshold = math.inf
        self._most = 0  # window before the latest loss
        self._epoch_s = -math.inf  # start of the growth along the curve; -inf if it has not started
        self._k_s = 0.0
        # Window at which the curve is level, Reno's window, arrivals since Reno's window grew, arrivals since this one grew.
        self._start = self._reno = self._acks = self._count = 0
        self._kept = (0, -math.inf, 0)  # the latest growth: window, time, arrivals per segment
        self._least_rtt_s = math.inf
        self._prior = 1  # window at the loss
        self._reduced = 0  # segments that arrived since the loss
        # HyStart++: last segment of the round, number of its samples, rounds since the growth was divided (0: it is not divided); minimum
        # round trips of the previous and the current round; minimum round trip when the growth was divided.
        self._round = self._samples = self._rounds = 0
        self._least_s = [math.inf, math.inf]
        self._above_s = math.inf
        # HyStart: whether it has ended slow start; start of the round, latest acknowledgement of the train at its start.
        self._linux, self._found = linux, False
        self._round_s = self._train_s = -math.inf

    def acked(self, sender: Sender, segments: int, lost: int, rtt_s: float) -> None:
        self._least_rtt_s = min(self._least_rtt_s, rtt_s)
        if self._linux and not self._found and self.window < self._threshold:  # in a recovery too: Linux cubictcp_acked
            self._watch_train(sender, rtt_s)
        if sender.state == RECOVERY:
            self._reduce(sender, segments, lost)
        elif not sender.advanced:
            return
        elif self.window < self._threshold:
            if self._threshold == math.inf and not self._linux:  # only in the first slow start: RFC 9406 sec. 4.3
                self._watch(sender, rtt_s)
            if 2.0 * sender.peak > self.window:  # Linux tcp_is_cwnd_limited
                self.window += segments / (DIVISOR if self._rounds else 1.0)
        elif sender.peak + 1.0 > self.window:
            self._grow(sender, segments)

    def _reduce(self, sender: Sender, segments: int, lost: int) -> None:
        """Set the window by proportional rate reduction, RFC 9937 sec. 6.2, Linux tcp_cwnd_reduction."""
        self._reduced += segments
        pipe, sent = sender.pipe, sender.recovery_sent
        if pipe > self._threshold:
            more = math.ceil(self._reduced * self._threshold / self._prior) - sent
        else:
            room = max(self._reduced - sent, segments) + (sender.advanced > 0 and not lost)
            more = min(int(self._threshold) - pipe, room)
        self.window = float(pipe + max(more, 0 if sent else 1))

    def _watch_train(self, sender: Sender, rtt_s: float) -> None:
        """Look for the end of slow start by HyStart (Linux hystart_update): a train of acknowledgements as long as half of the minimum
        round trip, or a rise of the round trip."""
        now_s = sender.now_s
        if sender.first > self._round:
            self._round, self._samples = sender.sent, 0
            self._round_s = self._train_s = now_s
            self._least_s[1] = math.inf
        if self.window < TRAIN_WINDOW:
            return
        if now_s - self._train_s <= TRAIN_GAP_S + INSTANT_S:
            self._train_s = now_s
            self._found = now_s - self._round_s > 0.5 * (self._least_rtt_s + TRAIN_MORE_S)
        self._least_s[1] = min(self._least_s[1], rtt_s)
        if self._samples < SAMPLES:
            self._samples += 1
        elif self._least_s[1] > self._least_rtt_s + min(max(self._least_rtt_s / 8.0, RISE_S[0]), RISE_S[1]):
            self._found = True
        if self._found:
            self._threshold = self.window

    def _watch(self, sender: Sender, rtt_s: float) -> None:
        """Look for the end of slow start by HyStart++."""
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
        """Grow the window in congestion avoidance, by whole segments as in Linux (tcp_cong_avoid_ai)."""
        needed = self._needed(sender, segments)
        if self._count >= needed:  # collected while the curve was flatter; counts as one segment
            self.window += 1.0
            self._count = 0
        self._count += segments
        if self._count >= needed:
            more, self._count = divmod(self._count, needed)
            self.window += more

    def _needed(self, sender: Sender, segments: int) -> int:
        """Return the arrivals per segment by which the window grows: RFC 9438 sec. 4.2 to 4.4, Linux bictcp_update."""
        now_s, window = sender.now_s, int(self.window)
        self._acks += segments
        if self._linux and self._kept[0] == window and now_s - self._kept[1] <= UPDATE_S:
            return self._kept[2]
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
        needed = max(needed, 2)
        self._kept = (window, now_s, needed)
        return needed

    def _loss(self, window: float) -> None:
        # Fast convergence, RFC 9438 sec. 4.7.
        self._most = int(window * (1.0 + BETA) / 2.0) if int(window) < self._most else int(window)
        self._threshold = max(math.floor(window * BETA), LEAST)
        self._epoch_s = -math.inf
        if self._linux:
            self._count = 0  # tcp_init_cwnd_reduction, tcp_enter_loss
        self._rounds = 0

    def recovers(self, sender: Sender) -> None:
        self._loss(self.window)
        self._prior = int(self.window)
        self._reduced = 0
        self.window = sender.pipe + 1.0  # kept unless the loss was found by an acknowledgement, which sets it next

    def recovered(self, sender: Sender) -> None:
        if sender.state == RECOVERY:
            self.window = float(self._threshold)  # RFC 9937 sec. 6.2, the end of recovery; Linux tcp_end_cwnd_reduction

    def timed_out(self, sender: Sender, anew: bool) -> None:
        if anew:
            self._loss(self.window)
        self._epoch_s, self._rounds, self._found = -math.inf, 0, False
        self._round, self._samples = sender.sent, 0
        self._round_s = self._train_s = sender.now_s
        self._least_s[1] = math.inf
        self._most = 0  # RFC 9438 sec. 4.8
        self._kept = (0, -math.inf, 0)
        self._least_rtt_s = math.inf
        self.window = sender.pipe + 1.0  # room to send the first segment again at once

    def begins(self, sender: Sender, idle_s: float) -> None:
        if idle_s <= 0.0 or sender.sent == 0:
            return
        if self._epoch_s > -math.inf:  # the window does not grow during a pause: RFC 9438 sec. 5.8
            self._epoch_s += idle_s
        if self.restarts and self.window > self.initial and idle_s > sender.rto_s:
            # Linux tcp_cwnd_restart. Without a loss there is no threshold yet.
            self._threshold = max(self._threshold, 0.75 * self.window)
            halvings = min(int(idle_s / sender.rto_s), 62)
            self.window = max(float(self.initial), self.window / 2.0**halvings)

"""BBR, a congestion control based on delivery rate and round trip instead of losses.

Source: Cardwell et al., BBR: congestion-based congestion control, ACM Queue 14 (2016); version 1 as in Linux' `tcp_bbr.c` and in ns-3,
without the policer detector and the allowance for aggregated acknowledgements.
"""

import math
from collections import deque

from simulator.network.congestion import Sender

HIGH_GAIN = 2.89  # 2 / ln 2: the smallest gain that doubles the delivery rate each round
WINDOW_GAIN = 2.0
CYCLE = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # pacing gains, each for one round trip
BANDWIDTH_ROUNDS = 10  # rounds over which the highest delivery rate counts
RTT_S = 10.0  # age at which the minimum round trip is measured again
PROBE_S = 0.2  # duration of that measurement, with `LEAST` segments in flight
LEAST = 4.0
QUANTA = 3.0  # segments beyond the product of rate and round trip; Linux allows more because of its offload
MARGIN = 0.99  # factor of the pacing rate
FULL_GROWTH, FULL_ROUNDS = 1.25, 3  # the pipe is full once the rate has not grown by this factor in this many rounds
STARTUP, DRAIN, PROBE_BW, PROBE_RTT = range(4)


class Bbr:
    """See `simulator.network.congestion.Control`.

    It paces packets at a gain times the highest delivery rate of the last rounds, and allows twice the product of that rate and the
    minimum round trip in flight. In the round after a loss it sends only as much as arrives, then continues as before.
    """

    __slots__ = (
        "_conserves",
        "_cycle",
        "_cycle_s",
        "_enters",
        "_full",
        "_full_rounds",
        "_gain",
        "_hurt",
        "_idled",
        "_initial",
        "_least_at_s",
        "_least_s",
        "_leaves",
        "_mode",
        "_next_round",
        "_pacing",
        "_prior",
        "_probe_end_s",
        "_probe_round",
        "_rates",
        "_round",
        "_window_gain",
        "filled",
        "gap_s",
        "restarts",
        "window",
    )

    def __init__(self, initial: int, rtt_s: float) -> None:
        """initial: initial window in segments. rtt_s: round trip of the handshake."""
        self.restarts = False
        self.window = float(initial)
        self.filled = False
        self._initial = initial
        self._least_s = max(rtt_s, 0.001)
        self._least_at_s = -math.inf
        self._pacing = HIGH_GAIN * initial / self._least_s
        self.gap_s = 1.0 / self._pacing
        self._rates: deque[tuple[int, float]] = deque()  # (round, rate), descending; each the highest since its round
        self._round = self._next_round = 0
        self._mode = STARTUP
        self._gain = self._window_gain = HIGH_GAIN
        self._full = 0.0
        self._full_rounds = self._cycle = 0
        self._cycle_s = -math.inf
        self._prior = self.window
        self._conserves = self._idled = False
        # Whether there is an unrecovered loss; whether a recovery begins or ends with the current acknowledgement.
        self._hurt = self._enters = self._leaves = False
        self._probe_end_s = math.inf
        self._probe_round = False

    def _rate(self) -> float:
        return self._rates[0][1] if self._rates else 0.0

    def _product(self, gain: float) -> float:
        """Return the segments in flight that a gain allows."""
        more = QUANTA + (2.0 if self._mode == PROBE_BW and self._cycle == 0 else 0.0)
        return gain * self._rate() * self._least_s + more

    def acked(self, sender: Sender, segments: int, lost: int, rtt_s: float) -> None:
        now_s, (rate, prior, idle) = sender.now_s, sender.sample
        pipe_before = sender.pipe + segments + lost
        begins = prior >= self._next_round
        if begins:
            self._next_round = sender.delivered
            self._round += 1
            self._conserves = False
        if rate >= self._rate() or not idle:
            while self._rates and self._rates[-1][1] <= rate:
                self._rates.pop()
            self._rates.append((self._round, rate))
        while self._rates and self._rates[0][0] < self._round - BANDWIDTH_ROUNDS:
            self._rates.popleft()
        self._turn(sender, pipe_before, lost)
        if begins and not idle and not self.filled:
            if self._rate() >= FULL_GROWTH * self._full:
                self._full, self._full_rounds = self._rate(), 0
            else:
                self._full_rounds += 1
                self.filled = self._full_rounds >= FULL_ROUNDS
        if self._mode == STARTUP and self.filled:
            self._mode, self._gain, self._window_gain = DRAIN, 1.0 / HIGH_GAIN, HIGH_GAIN
        if self._mode == DRAIN and sender.pipe <= self._product(1.0):
            self._probe_bandwidth(now_s)
        self._watch(sender, rtt_s, begins)
        pacing = MARGIN * self._gain * self._rate()
        if pacing > 0.0 and (self.filled or pacing > self._pacing):
            self._pacing = pacing
            self.gap_s = 1.0 / pacing
        self._set_window(sender, segments, lost)

    def _turn(self, sender: Sender, pipe_before: int, lost: int) -> None:
        """Take the next gain of `CYCLE` if the current one has been used long enough."""
        if self._mode != PROBE_BW:
            return
        full = sender.now_s - self._cycle_s > self._least_s
        if self._gain > 1.0:
            full = full and (lost > 0 or pipe_before >= self._product(self._gain))
        elif self._gain < 1.0:
            full = full or pipe_before <= self._product(1.0)
        if full:
            self._cycle = (self._cycle + 1) % len(CYCLE)
            self._cycle_s, self._gain = sender.now_s, CYCLE[self._cycle]

    def _probe_bandwidth(self, now_s: float) -> None:
        # Linux starts at a random gain other than 3/4; this starts at the first 1.
        self._mode, self._window_gain, self._cycle = PROBE_BW, WINDOW_GAIN, 2
        self._cycle_s, self._gain = now_s, CYCLE[2]

    def _watch(self, sender: Sender, rtt_s: float, begins: bool) -> None:
        """Update the minimum round trip, and start or end its measurement."""
        now_s = sender.now_s
        if self._least_at_s == -math.inf:
            self._least_at_s = now_s
        expired = now_s > self._least_at_s + RTT_S
        if rtt_s <= self._least_s or expired:
            self._least_s, self._least_at_s = rtt_s, now_s
        if expired and not self._idled and self._mode != PROBE_RTT:
            self._save()
            self._mode, self._gain, self._window_gain = PROBE_RTT, 1.0, 1.0
            self._probe_end_s = math.inf
        if self._mode == PROBE_RTT:
            if self._probe_end_s == math.inf:
                if sender.pipe <= LEAST:
                    self._probe_end_s = now_s + PROBE_S
                    self._probe_round = False
                    self._next_round = sender.delivered
            else:
                self._probe_round = self._probe_round or begins
                if self._probe_round:
                    self._end_probe(now_s)
        self._idled = False

    def _end_probe(self, now_s: float) -> None:
        """Continue as before if the minimum round trip has been measured for long enough."""
        if now_s > self._probe_end_s:
            self._least_at_s = now_s
            self.window = max(self.window, self._prior)
            if self.filled:
                self._probe_bandwidth(now_s)
            else:
                self._mode, self._gain, self._window_gain = STARTUP, HIGH_GAIN, HIGH_GAIN

    def _set_window(self, sender: Sender, segments: int, lost: int) -> None:
        """Set the window (Linux bbr_set_cwnd)."""
        if lost:
            self.window = max(self.window - lost, 1.0)
        if self._enters:
            self._conserves, self._enters = True, False
            self._next_round = sender.delivered  # a round begins
            self.window = float(sender.pipe + segments)
        elif self._leaves:
            self._conserves = self._hurt = self._leaves = False
            self.window = max(self.window, self._prior)
        if self._conserves:
            self.window = max(self.window, float(sender.pipe + segments))
        else:
            target = self._product(self._window_gain)
            if self.filled:
                self.window = min(self.window + segments, target)
            elif self.window < target or sender.delivered < self._initial:
                self.window += segments
            self.window = max(self.window, LEAST)
        if self._mode == PROBE_RTT:
            self.window = min(self.window, LEAST)

    def _save(self) -> None:
        """Save the window, to restore it later (Linux bbr_save_cwnd)."""
        self._prior = max(self.window, self._prior if self._hurt or self._mode == PROBE_RTT else 0.0)

    def recovers(self, sender: Sender) -> None:
        self._save()
        self._enters = not self._leaves  # a recovery directly after another one continues it
        self._leaves = False
        self._hurt = True

    def recovered(self, sender: Sender) -> None:
        self._leaves = True

    def timed_out(self, sender: Sender, anew: bool) -> None:
        if anew:
            self._save()
        self._hurt = True
        self._enters = False
        self._full = 0.0  # so that any rate counts as growth: Linux bbr_set_state
        self.window = sender.pipe + 1.0  # room to send the first segment again at once

    def begins(self, sender: Sender, idle_s: float) -> None:
        if idle_s > 0.0:
            self._idled = True
            if self._mode == PROBE_BW and self._rate() > 0.0:
                self._pacing = MARGIN * self._rate()
                self.gap_s = 1.0 / self._pacing
            elif self._mode == PROBE_RTT:
                self._end_probe(sender.now_s)

"""The Wi-Fi hop of a link: contention with stations that always have something to send, and the tail of its delay.

A burst of the device, or of the access point to it, waits for the end of the transmission that it meets, counts down a random number of
idle slots, and transmits; other transmissions stop the count. If another station starts in the same slot, both are lost, and the next
number is drawn from twice the range. How often the others transmit is Bianchi's fixed point for N saturated stations:

    tau = 2 (1 - 2 p) / ((1 - 2 p) (W + 1) + p W (1 - (2 p)^m)),    p = 1 - (1 - tau)^(N - 1)

with W = 16 slots, doubled m = 6 times. The device's bursts are assumed to be few: they do not slow the others down.

Sources: G. Bianchi, IEEE JSAC 18 (2000), equations 7 and 9; intervals and windows of the best-effort class of 802.11 at 5 GHz (general
knowledge); bursts of 4 ms, to which Linux' ath9k and FreeBSD's ath limit their aggregates.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from simulator.core.rng import buffered, stream
from simulator.network.wire import Wire

SLOT_S = 9e-6
SIFS_S = 16e-6
AIFS_S = SIFS_S + 3 * SLOT_S
BLOCK_ACK_S = 32e-6  # at 24 Mbit/s
BURST_S = 4e-3
BUSY_S = BURST_S + SIFS_S + BLOCK_ACK_S + AIFS_S  # time that a transmission or a collision takes the channel
WINDOW = 16  # slots
DOUBLINGS = 6
# In one home, the 99th percentile of the hop is about 90 ms (S. Sarode, sarodeoverwireless.com, 2022).
TAIL_S = (0.05, 0.1)
MOST_BURSTS = 4096  # bursts kept of a busy period
_ROUNDING_BITS = 1e-6
CYCLES = 200_000  # waits drawn once, to find the one at a random time


@dataclass(frozen=True)
class Hop:
    """A Wi-Fi hop.

    Attributes:
        stations: number of other stations that always have something to send.
        tail: share of transmissions that take `TAIL_S` longer, uniformly.
    """

    stations: int = 0
    tail: float = 0.0

    @property
    def mean_wait_s(self) -> float:
        """Mean wait of a transmission."""
        return self.tail * 0.5 * sum(TAIL_S) + mean_access_s(self.stations)

    @property
    def share(self) -> float:
        """Share of the line's time for a sender that always has data."""
        return BURST_S / (BURST_S + self.mean_wait_s)

    @property
    def met_wait_s(self) -> float:
        """Mean wait of a message at a random time if other traffic of the same sender always has data.

        It is sent in that traffic's next burst. A random time is more likely in a long wait than in a short one, so this exceeds a
        whole wait if waits vary much: E[w^2] / (2 E[w + burst]).
        """
        waits_s, ends_s = _cycles(self)
        return float((waits_s**2).sum() / (2.0 * ends_s[-1]))


@cache
def transmits(stations: int) -> float:
    """Return tau, the probability that one of `stations` saturated stations starts to transmit in a slot."""
    low, high = 0.0, 1.0  # bounds of p; the difference compared below decreases in p
    for _ in range(60):
        p = 0.5 * (low + high)
        low, high = (p, high) if 1.0 - math.pow(1.0 - _attempts(p), stations - 1) > p else (low, p)
    return _attempts(low)


def _attempts(p: float) -> float:
    # The sum equals (1 - (2 p)^m) / (1 - 2 p), but is also defined at p = 1/2.
    return 2.0 / (WINDOW + 1.0 + p * WINDOW * sum(math.pow(2.0 * p, k) for k in range(DOUBLINGS)))


@cache
def mean_access_s(stations: int) -> float:
    """Return the mean wait for the channel among `stations` saturated stations."""
    if not stations:
        return 0.0
    quiet = math.pow(1.0 - transmits(stations), stations)
    slot_s = quiet * SLOT_S + (1.0 - quiet) * BUSY_S
    lost = 1.0 - quiet
    windows = [0.5 * ((WINDOW << k) - 1) * math.pow(lost, k) for k in range(DOUBLINGS)]
    windows.append(0.5 * ((WINDOW << DOUBLINGS) - 1) * math.pow(lost, DOUBLINGS) / quiet)
    meets_s = (1.0 - quiet) * BUSY_S / slot_s * 0.5 * BUSY_S
    return meets_s + sum(windows) * slot_s + lost / quiet * BUSY_S


class HopWire(Wire):
    """A wire behind a Wi-Fi hop.

    Each burst (the data that the wire carries in `BURST_S` at its mean rate) waits for the channel. Queued messages share a burst.
    While there is something to send, bursts follow one another: repeated queries about that time, or about a part of it, get the same
    bursts.
    """

    __slots__ = (
        "_begins_s",
        "_burst_bits",
        "_end_s",
        "_ends_s",
        "_from_s",
        "_hop",
        "_quiet",
        "_random",
        "_uniform",
        "_wire",
    )

    def __init__(self, wire: Wire, hop: Hop, random: np.random.Generator) -> None:
        super().__init__(wire.rate_bps, wire.shared)
        self._wire = wire
        self._hop = hop
        self._random = random
        self._uniform = buffered(random.random)
        self._quiet = math.pow(1.0 - transmits(hop.stations), hop.stations) if hop.stations else 1.0
        self._burst_bits = BURST_S * wire.mean_bps
        # Start and end of the latest busy period; nothing is known about earlier times.
        self._from_s = self._end_s = -math.inf
        # Start of each burst in it, and time at which the burst is full.
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []

    @property
    def mean_wait_s(self) -> float:
        return self._hop.mean_wait_s

    @property
    def mean_bps(self) -> float:
        """Mean rate of a sender that always has data."""
        return self._burst_bits / (BURST_S + self._hop.mean_wait_s)

    @property
    def met_wait_s(self) -> float:
        return self._hop.met_wait_s

    def occupied(self, time_s: float) -> None:
        if time_s <= self._end_s or not self._burst_bits:
            return
        # A random time among all waits and bursts: the next burst follows, or is being sent.
        _, ends_s = _cycles(self._hop)
        moment_s = float(ends_s[-1]) * self._uniform()
        begin_s = time_s + float(ends_s[np.searchsorted(ends_s, moment_s, side="right")]) - BURST_S - moment_s
        self._begins_s[:] = [begin_s]
        self._ends_s[:] = [self._wire.finish_s(begin_s, self._burst_bits)]
        self._from_s = self._end_s = time_s

    def finish_s(self, start_s: float, bits: float) -> float:
        if start_s == math.inf or not self._burst_bits:
            return math.inf
        wire, begins_s, ends_s = self._wire, self._begins_s, self._ends_s
        if start_s > self._end_s:
            begins_s.clear()
            ends_s.clear()
            self._from_s = start_s
        known = start_s >= self._from_s
        if not known:
            begins_s, ends_s = [], []
        place = bisect_right(ends_s, start_s)
        while True:
            if place == len(ends_s):
                begins_s.append((ends_s[-1] if ends_s else start_s) + self._wait_s())
                ends_s.append(wire.finish_s(begins_s[-1], self._burst_bits))
            begin_s, end_s = begins_s[place], ends_s[place]
            if start_s <= begin_s:
                start_s, room_bits = begin_s, self._burst_bits
            else:
                room_bits = wire.bits(start_s, end_s)
            if bits <= room_bits + _ROUNDING_BITS:
                break
            bits -= room_bits
            start_s = end_s
            place += 1
        finish_s = min(end_s, wire.finish_s(start_s, bits))
        if known:
            self._end_s = max(self._end_s, finish_s)
        if len(ends_s) > MOST_BURSTS and known:
            self._from_s = ends_s[MOST_BURSTS // 2 - 1]
            del begins_s[: MOST_BURSTS // 2], ends_s[: MOST_BURSTS // 2]
        return finish_s

    def bits(self, start_s: float, end_s: float) -> float:
        return self._wire.bits(start_s, end_s) * self.mean_bps / self._wire.mean_bps

    def waiting_bits(self, start_s: float, free_s: float) -> float:
        begins_s, ends_s, wire = self._begins_s, self._ends_s, self._wire
        bursts = range(bisect_right(ends_s, start_s), bisect_right(begins_s, free_s))
        return sum(wire.bits(max(start_s, begins_s[n]), min(free_s, ends_s[n])) for n in bursts)

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        return self._wire.outages(start_s, end_s)

    def _wait_s(self) -> float:
        """Draw the wait of one burst."""
        wait_s = 0.0
        if self._hop.tail and self._uniform() < self._hop.tail:
            wait_s = TAIL_S[0] + (TAIL_S[1] - TAIL_S[0]) * self._uniform()
        if not self._hop.stations:
            return wait_s
        quiet = self._quiet
        busy = (1.0 - quiet) * BUSY_S
        if self._uniform() < busy / (busy + quiet * SLOT_S):  # it comes during a transmission
            wait_s += BUSY_S * self._uniform()
        window = WINDOW
        while True:
            count = int(window * self._uniform())
            stops = int(self._random.binomial(count, 1.0 - quiet))
            wait_s += stops * BUSY_S + (count - stops) * SLOT_S
            if self._uniform() < quiet:
                return wait_s
            wait_s += BUSY_S
            window = min(2 * window, WINDOW << DOUBLINGS)


@cache
def _cycles(hop: Hop) -> tuple[np.ndarray, np.ndarray]:
    """Return waits drawn as by `HopWire`, and the times at which the bursts after them end, both float64 [CYCLES] in seconds."""
    random = stream(0, "wifi.cycles")
    least_s, most_s = TAIL_S
    waits_s = (random.random(CYCLES) < hop.tail) * random.uniform(least_s, most_s, CYCLES)
    if hop.stations:
        quiet = math.pow(1.0 - transmits(hop.stations), hop.stations)
        busy = (1.0 - quiet) * BUSY_S
        waits_s += (random.random(CYCLES) < busy / (busy + quiet * SLOT_S)) * BUSY_S * random.random(CYCLES)
        left, window = np.arange(CYCLES), WINDOW  # bursts that have not been sent yet
        while len(left):
            counts = random.integers(window, size=len(left))
            stops = random.binomial(counts, 1.0 - quiet)
            lost = random.random(len(left)) >= quiet
            waits_s[left] += stops * BUSY_S + (counts - stops) * SLOT_S + lost * BUSY_S
            left, window = left[lost], min(2 * window, WINDOW << DOUBLINGS)
    return waits_s, np.cumsum(waits_s + BURST_S)

"""The Wi-Fi hop of a link: contention with stations that always have something to send, and the tail of its delay.

A burst of the device, or of the access point to it, waits for the end of the transmission that it meets, counts down a random number of
slots, and transmits in the next one; a slot is idle, or as long as a transmission. If another station starts in the same slot, both are
lost, and the next number is drawn from twice the range. The other stations do the same. They are simulated slot by slot, once for each
number of stations, and the wait of each burst is drawn from the waits found: of a burst that comes at a random time, or of one that
follows another one of a sender that always has data, which slows the others down.

Sources: intervals and windows of the best-effort class of 802.11 at 5 GHz, without a limit to retries (general knowledge); a
transmission of others lowers the count by one (I. Tinnirello and G. Bianchi, Rethinking the IEEE 802.11e EDCA Performance Modeling
Methodology, IEEE/ACM Transactions on Networking 18, 2010); bursts of 4 ms, to which Linux' ath9k and FreeBSD's ath limit their aggregates.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from heapq import heappop, heappush

import numpy as np

from simulator.core.rng import buffered, stream
from simulator.network.wire import Wire

SLOT_S = 9e-6
SIFS_S = 16e-6
AIFS_S = SIFS_S + 3 * SLOT_S
BLOCK_ACK_S = 32e-6  # at 24 Mbit/s
BURST_S = 4e-3
LEAST_BPS = 40e6  # of the Wi-Fi, assumed: the uplink of the preset `wifi`. A slower line behind it does not slow the Wi-Fi down.
BUSY_S = BURST_S + SIFS_S + BLOCK_ACK_S + AIFS_S  # time that a transmission or a collision takes the channel
WINDOW = 16  # slots
DOUBLINGS = 6
# In one home, the 99th percentile of the hop is about 90 ms (S. Sarode, sarodeoverwireless.com, 2022).
TAIL_S = (0.05, 0.1)
MOST_BURSTS = 4096  # bursts kept of a busy period
_ROUNDING_BITS = 1e-6
_CYCLES = 200_000  # waits drawn, to find the one at a random time
_ACCESSES = 40_000  # simulated waits; fewer beside many stations
_TRANSMISSIONS = 400_000  # simulated to find them, about
_WARM = 100  # transmissions of each station before


@dataclass(frozen=True)
class Hop:
    """A Wi-Fi hop.

    Attributes:
        stations: number of other stations that always have something to send.
        tail: share of transmissions that take `TAIL_S` longer, uniformly.
        burst_s: time that the line after the hop takes for the data of a burst. The next burst waits for the channel meanwhile.
    """

    stations: int = 0
    tail: float = 0.0
    burst_s: float = BURST_S

    def before(self, mean_bps: float) -> "Hop":
        """Return the hop before a line of this mean rate."""
        return replace(self, burst_s=BURST_S * max(1.0, LEAST_BPS / mean_bps)) if mean_bps else self

    @property
    def mean_wait_s(self) -> float:
        """Mean wait of a burst that comes at a random time."""
        return self.tail * 0.5 * sum(TAIL_S) + _mean_first_s(self.stations)

    @property
    def next_wait_s(self) -> float:
        """Mean time for which the line waits between two bursts of a sender that always has data."""
        return _means_s(self)[0]

    @property
    def share(self) -> float:
        """Share of the line's time for a sender that always has data."""
        return self.burst_s / (self.burst_s + self.next_wait_s)

    @property
    def met_wait_s(self) -> float:
        """Mean wait of a message at a random time if other traffic of the same sender always has data.

        It is sent in that traffic's next burst. A random time is more likely in a long wait than in a short one, so this exceeds a
        whole wait if waits vary much: E[w^2] / (2 E[w + burst]).
        """
        return _means_s(self)[1]


class Channel:
    """Stations that always have something to send, from one transmission to the next.

    Attributes:
        slot: slot in which one of them transmits next.
    """

    def __init__(self, stations: int, random: np.random.Generator) -> None:
        self._uniform = buffered(random.random)
        # For each station the slot of its next transmission, its number and how often its window is doubled, in one integer.
        self._heap: list[int] = []
        self.slot = 0
        for station in range(stations):
            self._draw(0, station, 0)
        for _ in range(_WARM * stations):
            self.transmit()

    def transmit(self, collides: bool = False) -> int:
        """Let the next stations transmit, alone or together with the device. Returns the number of the one that succeeds, or -1."""
        heap = self._heap
        one = heappop(heap)
        slot = one >> 10
        lost = collides
        while heap and heap[0] >> 10 == slot:
            other, lost = heappop(heap), True
            self._draw(slot + 1, other >> 3 & 127, min((other & 7) + 1, DOUBLINGS))
        self._draw(slot + 1, one >> 3 & 127, min((one & 7) + 1, DOUBLINGS) if lost else 0)
        return -1 if lost else one >> 3 & 127

    def access_s(self, slot: int) -> float:
        """Return the seconds from the start of a slot until the device, which counts from it on, transmits without a collision."""
        begin, busy, doublings = slot, 0, 0
        while True:
            slot += self._count(doublings)
            while self.slot < slot:
                self.transmit()
                busy += 1
            if self.slot > slot:
                return busy * BUSY_S + (slot - begin - busy) * SLOT_S
            self.transmit(collides=True)
            slot, busy, doublings = slot + 1, busy + 1, min(doublings + 1, DOUBLINGS)

    def waits_s(self, count: int) -> np.ndarray:
        """Return waits of bursts, each at a random time of another transmission or of the idle slots after it, float64 [count]."""
        found_s = np.empty(count)
        for n in range(count):
            free = self.slot + 1  # the first slot after the transmission that it meets, or that has ended
            self.transmit()
            idle = self.slot - free
            moment_s = (BUSY_S + idle * SLOT_S) * self._uniform() - BUSY_S
            passed = max(0, math.ceil(moment_s / SLOT_S))
            heap, slot = self._heap.copy(), self.slot
            found_s[n] = passed * SLOT_S - moment_s + self.access_s(free + passed)
            self._heap, self.slot = heap, slot
        return found_s

    def _count(self, doublings: int) -> int:
        return int((WINDOW << doublings) * self._uniform())

    def _draw(self, slot: int, station: int, doublings: int) -> None:
        heappush(self._heap, slot + self._count(doublings) << 10 | station << 3 | doublings)
        self.slot = self._heap[0] >> 10


def _accesses(stations: int) -> int:
    """Return the number of waits to simulate: a burst waits for about 1.6 transmissions of each station."""
    return min(_ACCESSES, int(_TRANSMISSIONS / (1.0 + 1.6 * stations)))


@cache
def first_access_s(stations: int) -> np.ndarray:
    """Return waits for the channel of bursts that come at a random time, float64 [waits]."""
    if not stations:
        return np.zeros(1)
    return Channel(stations, stream(0, "wifi.first", stations)).waits_s(_accesses(stations))


@cache
def next_access_s(stations: int) -> np.ndarray:
    """Return the times between two bursts of a sender that always has data, float64 [waits]: one as the others, all of which count."""
    if not stations:
        return np.zeros(1)
    channel = Channel(stations + 1, stream(0, "wifi.next", stations))
    now_s, free = 0.0, channel.slot
    ends_s: dict[int, float] = {}  # of the latest burst of each station
    waits_s = []
    for _ in range(_TRANSMISSIONS // 4):
        now_s += (channel.slot - free) * SLOT_S
        free = channel.slot + 1
        sender = channel.transmit()
        if sender >= 0:
            if sender in ends_s:
                waits_s.append(now_s - ends_s[sender])
            ends_s[sender] = now_s + BURST_S
        now_s += BUSY_S
    return np.array(waits_s)


@cache
def _mean_first_s(stations: int) -> float:
    return float(first_access_s(stations).mean())


@cache
def _means_s(hop: Hop) -> tuple[float, float]:
    """Return `Hop.next_wait_s` and `Hop.met_wait_s`."""
    waits_s, ends_s = _cycles(hop)
    return float(waits_s.mean()), float((waits_s**2).sum() / (2.0 * ends_s[-1]))


class HopWire(Wire):
    """A wire behind a Wi-Fi hop.

    Each burst (the data that the wire, or one of `LEAST_BPS`, carries in `BURST_S` at its mean rate) waits for the channel. Queued
    messages share a burst.
    While there is something to send, bursts follow one another: repeated queries about that time, or about a part of it, get the same
    bursts.
    """

    __slots__ = (
        "_begins_s",
        "_burst_bits",
        "_end_s",
        "_ends_s",
        "_first_s",
        "_from_s",
        "_hop",
        "_next_s",
        "_uniform",
        "_wire",
    )

    def __init__(self, wire: Wire, hop: Hop, random: np.random.Generator) -> None:
        super().__init__(wire.rate_bps, wire.shared)
        self._wire = wire
        self._hop = hop = hop.before(wire.mean_bps)
        self._uniform = buffered(random.random)
        self._first_s, self._next_s = first_access_s(hop.stations), next_access_s(hop.stations)
        self._burst_bits = hop.burst_s * wire.mean_bps
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
        return self._wire.mean_bps * self._hop.share

    @property
    def met_wait_s(self) -> float:
        return self._hop.met_wait_s

    def occupied(self, time_s: float) -> None:
        if time_s <= self._end_s or not self._burst_bits:
            return
        # A random time among all waits and bursts: the next burst follows, or is being sent.
        _, ends_s = _cycles(self._hop)
        moment_s = float(ends_s[-1]) * self._uniform()
        begin_s = time_s + float(ends_s[np.searchsorted(ends_s, moment_s, side="right")]) - self._hop.burst_s - moment_s
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
                begins_s.append(
                    (ends_s[-1] if ends_s else start_s) + self._wait_s(self._next_s if ends_s else self._first_s)
                )
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

    def _wait_s(self, accesses_s: np.ndarray) -> float:
        """Draw the wait of one burst. accesses_s: the waits for the channel that it may have."""
        wait_s = 0.0
        if self._hop.tail and self._uniform() < self._hop.tail:
            wait_s = TAIL_S[0] + (TAIL_S[1] - TAIL_S[0]) * self._uniform()
        if self._hop.stations:
            wait_s += float(accesses_s[int(len(accesses_s) * self._uniform())])
        return wait_s if accesses_s is self._first_s else max(0.0, wait_s - (self._hop.burst_s - BURST_S))


@cache
def _cycles(hop: Hop) -> tuple[np.ndarray, np.ndarray]:
    """Return waits of a sender that always has data, drawn as by `HopWire`, and the times at which the bursts after them end.

    Both are float64 [_CYCLES] in seconds.
    """
    random = stream(0, "wifi.cycles")
    least_s, most_s = TAIL_S
    waits_s = (random.random(_CYCLES) < hop.tail) * random.uniform(least_s, most_s, _CYCLES)
    waits_s += random.choice(next_access_s(hop.stations), _CYCLES)
    waits_s = np.maximum(0.0, waits_s - (hop.burst_s - BURST_S))
    return waits_s, np.cumsum(waits_s + hop.burst_s)

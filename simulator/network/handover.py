"""Handovers: while a device moves from one cell to the next, nothing passes in either direction.

Handovers start at random, after exponential times, and last between half and one and a half times their mean, uniformly. A message that
meets one waits; the rest of a message in transmission follows after it. A message that arrives at a random time therefore waits E[g^2]
/ (2 T) on average, for handovers of length g every T seconds: 13 / 24 of their squared mean over T.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from simulator.network.wire import Wire

SPREAD = 0.5  # largest deviation from the mean length, as a share of it
STRETCH = 256  # mean number of handovers in a stretch; there are never twice as many
KEPT = 4  # number of stretches kept: queries are about the present or the near future


@dataclass(frozen=True)
class Handovers:
    """Handovers of a device.

    Attributes:
        every_s: mean time from the start of one to the start of the next.
        gap_s: mean length; at most two thirds of `every_s`, so that handovers do not overlap.
    """

    every_s: float
    gap_s: float

    def __post_init__(self) -> None:
        """Raise ValueError for figures that are not above 0, and for gaps longer than two thirds of `every_s`."""
        if not (0.0 < self.gap_s < math.inf and 1.5 * self.gap_s <= self.every_s < math.inf):
            raise ValueError(
                f"handovers need 0 < 1.5 * gap_s <= every_s, got gap_s {self.gap_s} and every_s {self.every_s}"
            )

    @property
    def share(self) -> float:
        """Share of the time that handovers take."""
        return self.gap_s / self.every_s


class Interruptions:
    """Times without transmission, shared by both directions of a device.

    They are drawn by stretches of time, each from its own random stream, so that a device that is first used late in a long run needs
    only the current stretch. An interruption that would extend beyond the end of its stretch is omitted: `share / STRETCH` of them.
    """

    __slots__ = ("_from_s", "_gap", "_handovers", "_known", "_streams", "_stretch_s")

    def __init__(self, handovers: Handovers, streams: Callable[[int], np.random.Generator]) -> None:
        """streams: random streams by number of the stretch."""
        self._handovers = handovers
        self._streams = streams
        self._stretch_s = STRETCH * handovers.every_s
        self._known: dict[int, tuple[list[float], list[float]]] = {}  # begins and ends, by stretch
        # Latest result of `first`, and the time from which on it is valid.
        self._from_s, self._gap = math.inf, (math.inf, math.inf)

    @property
    def share(self) -> float:
        """Share of the time that they take."""
        return self._handovers.share

    def first(self, time_s: float) -> tuple[float, float]:
        """Return start and end of the first interruption that ends after a time."""
        if self._from_s <= time_s < self._gap[1]:
            return self._gap
        number = int(time_s // self._stretch_s)
        while True:
            begins_s, ends_s = self._known.get(number) or self._draw(number)
            index = bisect_right(ends_s, time_s)
            if index < len(ends_s):
                self._from_s, self._gap = time_s, (begins_s[index], ends_s[index])
                return self._gap
            number += 1

    def between(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Yield the interruptions that lie at least partly between two times."""
        while (gap := self.first(start_s))[0] < end_s:
            yield gap
            start_s = gap[1]

    def _draw(self, number: int) -> tuple[list[float], list[float]]:
        figures, random = self._handovers, self._streams(number)
        count = 2 * STRETCH
        quiet_s = (figures.every_s - figures.gap_s) * random.standard_exponential(count)
        gaps_s = figures.gap_s * (1.0 - SPREAD + 2.0 * SPREAD * random.random(count))
        ends_s = number * self._stretch_s + np.cumsum(quiet_s + gaps_s)
        kept = int(np.searchsorted(ends_s, (number + 1) * self._stretch_s))
        found = ((ends_s - gaps_s)[:kept].tolist(), ends_s[:kept].tolist())
        if len(self._known) == KEPT:
            del self._known[min(self._known)]
        self._known[number] = found
        return found


class PausingWire(Wire):
    """A wire of one device that carries nothing during its interruptions."""

    __slots__ = ("_gaps", "_wire")

    def __init__(self, wire: Wire, gaps: Interruptions) -> None:
        """Raises ValueError for a wire that devices share, because each of them is interrupted at other times."""
        if wire.shared:
            raise ValueError("handovers need a wire that devices do not share")
        super().__init__(wire.rate_bps)
        self._wire = wire
        self._gaps = gaps

    @property
    def mean_bps(self) -> float:
        return self._wire.mean_bps * (1.0 - self._gaps.share)

    def finish_s(self, start_s: float, bits: float) -> float:
        if start_s == math.inf:
            return start_s
        wire, gaps = self._wire, self._gaps
        begin_s, end_s = gaps.first(start_s)
        if begin_s <= start_s:
            start_s = end_s
            begin_s, end_s = gaps.first(end_s)
        while True:
            finish_s = wire.finish_s(start_s, bits)
            if finish_s <= begin_s or finish_s == math.inf:
                return finish_s
            bits -= wire.bits(start_s, begin_s)
            if bits <= 0.0:  # the last bit of a run, by rounding
                return begin_s
            start_s = end_s
            begin_s, end_s = gaps.first(end_s)

    def bits(self, start_s: float, end_s: float) -> float:
        carried = self._wire.bits(start_s, end_s)
        for begin_s, stop_s in self._gaps.between(start_s, end_s):
            carried -= self._wire.bits(max(begin_s, start_s), min(stop_s, end_s))
        return carried

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Yield outages of the wire and interruptions, merged if they overlap."""
        if end_s == math.inf:
            return
        both = sorted([*self._wire.outages(start_s, end_s), *self._gaps.between(start_s, end_s)])
        begin_s, stop_s = math.inf, math.inf
        for one in both:
            if one[0] <= stop_s < math.inf:
                stop_s = max(stop_s, one[1])
                continue
            if stop_s < math.inf:
                yield begin_s, stop_s
            begin_s, stop_s = one
        if stop_s < math.inf:
            yield begin_s, stop_s

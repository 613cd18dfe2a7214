"""Handovers: while a device moves from one cell to the next, nothing passes in either direction.

Handovers begin at random, after exponential times, and last between half of and one and a half times their mean, uniformly. A message that
meets one waits; of a message under way the rest follows after it. A message that arrives at a random time therefore waits
E[g^2] / (2 T) on average, for handovers of length g every T seconds: 13 / 24 of their squared mean over T.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from simulator.core.rng import buffered
from simulator.network.wire import Wire

SPREAD = 0.5  # of the mean length, to either side
INFINITY = float("inf")


@dataclass(frozen=True)
class Handovers:
    """Handovers of a device.

    Attributes:
        every_s: mean time from the begin of one to that of the next.
        gap_s: mean length; at most two thirds of `every_s`, so that none lasts until the next.
    """

    every_s: float
    gap_s: float

    def __post_init__(self) -> None:
        """Raises ValueError for figures that are not above 0, and for gaps longer than two thirds of the time."""
        if not (0.0 < self.gap_s < INFINITY and 1.5 * self.gap_s <= self.every_s < INFINITY):
            raise ValueError(
                f"handovers need 0 < 1.5 * gap_s <= every_s, got gap_s {self.gap_s} and every_s {self.every_s}"
            )


class Interruptions:
    """When nothing passes, in order of time. They are drawn as they are needed, and both directions share them."""

    __slots__ = ("_begins_s", "_ends_s", "_exponential", "_handovers", "_uniform")

    def __init__(self, handovers: Handovers, stream: np.random.Generator) -> None:
        self._handovers = handovers
        self._exponential = buffered(stream.standard_exponential)
        self._uniform = buffered(stream.random)
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []

    @property
    def share(self) -> float:
        """Of the time."""
        return self._handovers.gap_s / self._handovers.every_s

    def at(self, index: int) -> tuple[float, float]:
        """Begin and end of one, counted from 0."""
        while len(self._ends_s) <= index:
            self._more()
        return self._begins_s[index], self._ends_s[index]

    def after(self, time_s: float) -> int:
        """The first one that ends after a time."""
        while not self._ends_s or self._ends_s[-1] <= time_s:
            self._more()
        return bisect_right(self._ends_s, time_s)

    def between(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Those that lie at least in part between two times."""
        index = self.after(start_s)
        while (gap := self.at(index))[0] < end_s:
            yield gap
            index += 1

    def _more(self) -> None:
        figures = self._handovers
        begin_s = self._ends_s[-1] if self._ends_s else 0.0
        begin_s += (figures.every_s - figures.gap_s) * self._exponential()
        self._begins_s.append(begin_s)
        self._ends_s.append(begin_s + figures.gap_s * (1.0 - SPREAD + 2.0 * SPREAD * self._uniform()))


class PausingWire(Wire):
    """A wire of one device that carries nothing during its interruptions."""

    __slots__ = ("_gaps", "_wire")

    def __init__(self, wire: Wire, gaps: Interruptions) -> None:
        """Raises ValueError for a wire that devices share: each of them is interrupted at other times."""
        if wire.shared:
            raise ValueError("handovers are those of one device, whose wire nobody shares")
        super().__init__(wire.rate_bps)
        self._wire = wire
        self._gaps = gaps

    @property
    def mean_bps(self) -> float:
        return self._wire.mean_bps * (1.0 - self._gaps.share)

    def finish_s(self, start_s: float, bits: float) -> float:
        if start_s == INFINITY:
            return start_s
        wire, gaps = self._wire, self._gaps
        index = gaps.after(start_s)
        begin_s, end_s = gaps.at(index)
        if begin_s <= start_s:
            start_s = end_s
            index += 1
            begin_s, end_s = gaps.at(index)
        while True:
            finish_s = wire.finish_s(start_s, bits)
            if finish_s <= begin_s or finish_s == INFINITY:
                return finish_s
            bits -= wire.bits(start_s, begin_s)
            if bits <= 0.0:  # the last bit of a run, by rounding
                return begin_s
            start_s = end_s
            index += 1
            begin_s, end_s = gaps.at(index)

    def bits(self, start_s: float, end_s: float) -> float:
        carried = self._wire.bits(start_s, end_s)
        for begin_s, stop_s in self._gaps.between(start_s, end_s):
            carried -= self._wire.bits(max(begin_s, start_s), min(stop_s, end_s))
        return carried

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Those of the wire and the interruptions, joined where they overlap."""
        if end_s == INFINITY:
            return
        both = sorted([*self._wire.outages(start_s, end_s), *self._gaps.between(start_s, end_s)])
        begin_s, stop_s = INFINITY, INFINITY
        for one in both:
            if one[0] <= stop_s < INFINITY:
                stop_s = max(stop_s, one[1])
                continue
            if stop_s < INFINITY:
                yield begin_s, stop_s
            begin_s, stop_s = one
        if stop_s < INFINITY:
            yield begin_s, stop_s

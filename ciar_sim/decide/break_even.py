"""Break-evens: values of a condition at which another method becomes the fastest.

At a break-even the difference of two mean latencies, on the same requests, changes its sign. Latencies are interpolated linearly between
grid points, which is exact for the round trip of a lossless link. If the neighbouring points show that they are not linear, the interval
is widened.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ciar_sim.decide.bench import Measured
from simulator.results.statistics import BATCHES, bend, half_width


class BreakEven(NamedTuple):
    """A change of the winner along x: the value of x, its interval, the winner below and the winner above."""

    at: float
    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True)
class Line:
    """The candidates along x at one value of y.

    Attributes:
        y: The value of y; None without a second axis.
        x: The values of x, float [n].
        cells: By candidate, the measured case at each x; None if it failed.
        keeps: By candidate, whether it keeps the floor at each x, bool [n].
    """

    y: float | None
    x: np.ndarray
    cells: Mapping[str, Sequence[Measured | None]]
    keeps: Mapping[str, np.ndarray]

    def means(self, name: str) -> np.ndarray:
        """Return float [n], the mean latency (s) at each x; infinite if the candidate does not keep the floor or failed."""
        cells = zip(self.cells[name], self.keeps[name], strict=True)
        return np.array([one.mean_s if one is not None and keeps else math.inf for one, keeps in cells])

    def winners(self) -> list[str]:
        """Return the fastest candidate that keeps the floor at each x; empty text if none does."""
        names = list(self.cells)
        means = np.stack([self.means(name) for name in names])
        means = np.where(np.isnan(means), math.inf, means)
        best = means.argmin(axis=0)
        return [names[row] if math.isfinite(means[row, place]) else "" for place, row in enumerate(best)]

    def ahead(self, place: int, first: str, second: str) -> tuple[float, float]:
        """Return the mean of second - first (s) over the requests that both answered, and half of its 95 % interval."""
        return difference(self.cells[first][place], self.cells[second][place])


def difference(one: Measured | None, other: Measured | None) -> tuple[float, float]:
    """Return the mean of other - one (s) over the requests that both answered, and half of its 95 % interval by batch means."""
    if one is None or other is None:
        return math.nan, math.nan
    both = pd.concat([one.latency_s, other.latency_s], axis=1, join="inner").to_numpy(float)
    later = both[:, 1] - both[:, 0]
    return (float(later.mean()) if len(later) else math.nan), half_width(later, BATCHES)


def break_evens(line: Line) -> list[BreakEven]:
    """Return the changes of the winner along x, in order."""
    winners = line.winners()
    found: list[BreakEven] = []
    for place in range(len(line.x) - 1):
        found += _between(line, place, winners[place], winners[place + 1])
    return found


def _between(line: Line, place: int, below: str, above: str) -> list[BreakEven]:
    """Return the changes between two neighbouring grid points. A third candidate may win between them."""
    if below == above:
        return []
    x0, x1 = float(line.x[place]), float(line.x[place + 1])
    if not below or not above:
        return [BreakEven((x0 + x1) / 2, x0, x1, below, above)]
    ends = [line.ahead(at, below, above) for at in (place, place + 1)]
    keeps = [line.keeps[name][at] for name in (below, above) for at in (place, place + 1)]
    # The winner changes because of the floor, not the latency.
    if not all(keeps) or any(math.isnan(value) for value, _ in ends):
        return [BreakEven((x0 + x1) / 2, x0, x1, below, above)]
    crossing = _with_bend(line, place, below, above, crossing_of(x0, x1, ends[0], ends[1]))
    others = [name for name in line.cells if name not in (below, above) and line.keeps[name][[place, place + 1]].all()]
    share = (crossing[0] - x0) / (x1 - x0)

    def at(name: str) -> float:
        means = line.means(name)
        return float((1 - share) * means[place] + share * means[place + 1])

    third = min(others, key=at, default=None)
    if third is None or not at(third) < at(below) * (1 - 1e-12):
        return [BreakEven(*crossing, below, above)]
    return [*_between(line, place, below, third), *_between(line, place, third, above)]


def _with_bend(
    line: Line, place: int, below: str, above: str, crossing: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Widen the interval of a crossing by the curvature between the two points that the neighbouring cells suggest."""
    at, low, high = crossing
    near = range(max(place - 1, 0), min(place + 3, len(line.x)))
    gap = np.array([line.ahead(one, below, above)[0] for one in near])
    left, right = bend(np.array([line.x[one] for one in near], float), gap, place - near[0], at)
    return at, min(low, left), max(high, right)


def crossing_of(
    x0: float, x1: float, first: tuple[float, float], last: tuple[float, float]
) -> tuple[float, float, float]:
    """Return the root of a difference that is linear from x0 to x1, and the ends of its interval.

    Half of the interval of the root is half of that of the difference, interpolated to the root, divided by the slope.

    Args:
        x0: Begin of the cell.
        x1: End of the cell.
        first: The difference at x0, and half of its interval.
        last: The same at x1; the difference has the opposite sign there.
    """
    slope = (last[0] - first[0]) / (x1 - x0)
    if slope == 0:
        return x0, x0, x1
    at = x0 - first[0] / slope
    share = (at - x0) / (x1 - x0)
    half = abs(((1 - share) * first[1] + share * last[1]) / slope)
    return at, at - half, at + half

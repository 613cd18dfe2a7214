"""Break-evens: where along a condition another method becomes the fastest.

A break-even lies where the difference of two mean latencies, on the same requests, changes its sign. Between grid points the latencies are
taken as linear, which for the round trip of a lossless link they are; where they bend, the interval holds what the bend leaves open.
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
    """Where the winner changes along x: its value with its interval, the winner below and the winner above."""

    at: float
    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True)
class Line:
    """The candidates along x at one value of y.

    Attributes:
        y: The value; None without a second axis.
        x: float [n].
        cells: By candidate, the measured case of each x; None where it failed.
        keeps: By candidate, whether it keeps the floor at each x, bool [n].
    """

    y: float | None
    x: np.ndarray
    cells: Mapping[str, Sequence[Measured | None]]
    keeps: Mapping[str, np.ndarray]

    def means(self, name: str) -> np.ndarray:
        """Mean latency at each x, infinite where the candidate does not keep the floor or failed, float [n]."""
        cells = zip(self.cells[name], self.keeps[name], strict=True)
        return np.array([one.mean_s if one is not None and keeps else math.inf for one, keeps in cells])

    def winners(self) -> list[str]:
        """The fastest of those that keep the floor, at each x; empty text where nobody does."""
        names = list(self.cells)
        means = np.stack([self.means(name) for name in names])
        means = np.where(np.isnan(means), math.inf, means)
        best = means.argmin(axis=0)
        return [names[row] if math.isfinite(means[row, place]) else "" for place, row in enumerate(best)]

    def ahead(self, place: int, first: str, second: str) -> tuple[float, float]:
        """Mean of second minus first over the requests that both answered, and half of its 95 % interval."""
        return difference(self.cells[first][place], self.cells[second][place])


def difference(one: Measured | None, other: Measured | None) -> tuple[float, float]:
    """Mean of other minus one over the requests that both answered, and half of its 95 % interval by batch means."""
    if one is None or other is None:
        return math.nan, math.nan
    both = pd.concat([one.latency_s, other.latency_s], axis=1, join="inner").to_numpy(float)
    later = both[:, 1] - both[:, 0]
    return (float(later.mean()) if len(later) else math.nan), half_width(later, BATCHES)


def break_evens(line: Line) -> list[BreakEven]:
    """Where the winner changes along x, in order."""
    winners = line.winners()
    found: list[BreakEven] = []
    for place in range(len(line.x) - 1):
        found += _between(line, place, winners[place], winners[place + 1])
    return found


def _between(line: Line, place: int, below: str, above: str) -> list[BreakEven]:
    """The changes between two neighbours of the grid. A third candidate may win between them."""
    if below == above:
        return []
    x0, x1 = float(line.x[place]), float(line.x[place + 1])
    if not below or not above:
        return [BreakEven((x0 + x1) / 2, x0, x1, below, above)]
    ends = [line.ahead(at, below, above) for at in (place, place + 1)]
    keeps = [line.keeps[name][at] for name in (below, above) for at in (place, place + 1)]
    # The floor, not the latency, decides between the two.
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
    """A crossing whose interval also holds what the neighbouring cells say of a bend between the two points."""
    at, low, high = crossing
    near = range(max(place - 1, 0), min(place + 3, len(line.x)))
    gap = np.array([line.ahead(one, below, above)[0] for one in near])
    left, right = bend(np.array([line.x[one] for one in near], float), gap, place - near[0], at)
    return at, min(low, left), max(high, right)


def crossing_of(
    x0: float, x1: float, first: tuple[float, float], last: tuple[float, float]
) -> tuple[float, float, float]:
    """Where a difference that is linear from x0 to x1 is zero, and the ends of its interval there.

    The interval of the crossing is the half interpolated to it, over the slope.

    Args:
        x0: Where the cell begins.
        x1: Where it ends.
        first: The difference at x0, and half of its interval.
        last: The same at x1; the difference has the other sign there.
    """
    slope = (last[0] - first[0]) / (x1 - x0)
    if slope == 0:
        return x0, x0, x1
    at = x0 - first[0] / slope
    share = (at - x0) / (x1 - x0)
    half = abs(((1 - share) * first[1] + share * last[1]) / slope)
    return at, at - half, at + half

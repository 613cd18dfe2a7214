"""Thermal throttling: a device slows down under load and recovers at rest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Throttling:
    """Speed of a device as a step function of its heat, which is measured in seconds of computing.

    Computing adds one second of heat per second, up to the last step. Rest removes `cooling` seconds of heat per second.

    Attributes:
        steps: (heat_s, speed) in ascending order: with at least this heat the device runs at this share of its full speed.
    """

    steps: Sequence[tuple[float, float]]
    cooling: float

    def __post_init__(self) -> None:
        heats = [heat_s for heat_s, _ in self.steps]
        if not heats or heats[0] <= 0.0 or any(b <= a for a, b in pairwise(heats)):
            raise ValueError(f"steps must ascend from above 0 s, got {heats}")
        if not all(0.0 < speed <= 1.0 for _, speed in self.steps) or not 0.0 < self.cooling < math.inf:
            raise ValueError("speeds must be > 0 and <= 1, and cooling > 0 and finite")


class ThermalState:
    """Heat of one device at the end of its latest work."""

    __slots__ = ("_cooling", "_edges", "heat_s", "rested_s")

    def __init__(self, throttling: Throttling) -> None:
        self._cooling = throttling.cooling
        # Ranges of heat with equal speed: (begin, end, speed). The last one has no end.
        begins = [0.0, *(heat_s for heat_s, _ in throttling.steps)]
        speeds = [1.0, *(speed for _, speed in throttling.steps)]
        self._edges = list(zip(begins, [*begins[1:], math.inf], speeds, strict=True))
        self.heat_s = 0.0
        self.rested_s = 0.0  # end of its latest work

    def stretch(self, start_s: float, first_s: float, seconds: float) -> tuple[float, float]:
        """Do work and return its duration: seconds until its first part is done (-1 for none), and until all of it is done.

        Args:
            start_s: start of the work.
            first_s: the first part of the work, in seconds at full speed; -1 for none.
            seconds: all of the work, in seconds at full speed.
        """
        heat_s = max(0.0, self.heat_s - self._cooling * max(0.0, start_s - self.rested_s))
        if first_s >= 0.0:
            first_s = self._wall_s(heat_s, first_s)
        wall_s = self._wall_s(heat_s, seconds)
        self.heat_s = min(heat_s + wall_s, self._edges[-1][0])
        self.rested_s = start_s + wall_s
        return first_s, wall_s

    def _wall_s(self, heat_s: float, work_s: float) -> float:
        """Return the duration of work given in seconds at full speed, starting at this heat."""
        wall_s = 0.0
        for _, end_s, speed in self._edges:
            if heat_s >= end_s:
                continue
            room_s = end_s - heat_s
            if work_s <= room_s * speed:
                break
            wall_s += room_s
            work_s -= room_s * speed
            heat_s = end_s
        return wall_s + work_s / speed

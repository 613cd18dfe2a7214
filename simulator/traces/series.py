"""Piecewise constant time series, the input of link models."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.core.errors import TraceError

Floats = NDArray[np.float64]

MOST_BPS = 1e12  # more than any link has: a higher number is in another unit
MOST_MBPS = MOST_BPS / 1e6
MOST_S = 1e7  # four months: a longer trace, or a longer delay, is in another unit
LEAST_TAIL = 0.25  # shortest last bin, as a share of a bin: the mean of a shorter one is mostly noise


@dataclass(frozen=True, eq=False)
class RateSeries:
    """The rate of one direction of a link: `rate_bps[i]` holds over [times_s[i], times_s[i + 1]), the last until `duration_s`.

    The series repeats: at time t it has the rate of t modulo `duration_s`. A rate of 0 is an outage. Arrays are copied and made read-only.

    Attributes:
        times_s: float64 [n], seconds, starts at 0, strictly increasing, below duration_s.
        rate_bps: float64 [n], bits per second, 0 to 1e12.
        duration_s: seconds, above 0, up to 1e7.

    Raises:
        TraceError: the arrays break one of these rules.
    """

    times_s: Floats
    rate_bps: Floats
    duration_s: float

    def __post_init__(self) -> None:
        _store(self, "rate_bps", MOST_BPS)

    def mean_bps(self) -> float:
        """Return the mean rate of one pass, in bit/s."""
        return _mean(self.times_s, self.rate_bps, self.duration_s)

    def binned(self, width_s: float = 1.0) -> Floats:
        """Return float64 [bins], the mean rate of each bin of `width_s`.

        An incomplete last bin counts if it is at least a quarter of a bin. A series shorter than a bin is one bin.
        """
        return _binned(self.times_s, self.rate_bps, self.duration_s, width_s)


@dataclass(frozen=True, eq=False)
class StepSeries:
    """Another piecewise constant quantity (a delay in seconds, a loss share), with the rules of `RateSeries`.

    Attributes:
        times_s: float64 [n].
        values: float64 [n], 0 to 1e7.
        duration_s: seconds.
    """

    times_s: Floats
    values: Floats
    duration_s: float

    def __post_init__(self) -> None:
        _store(self, "values", MOST_S)

    def mean(self) -> float:
        """Return the mean over time of one pass."""
        return _mean(self.times_s, self.values, self.duration_s)

    def binned(self, width_s: float = 1.0) -> Floats:
        """Return float64 [bins], the mean of each bin, as `RateSeries.binned`."""
        return _binned(self.times_s, self.values, self.duration_s, width_s)


def _store(series: Any, name: str, most: float) -> None:
    times_s, values = _read_only(series.times_s), _read_only(getattr(series, name))
    duration_s = float(series.duration_s)
    if times_s.ndim != 1 or times_s.shape != values.shape:
        raise TraceError(f"times_s and {name} must be of one length, got shapes {times_s.shape} and {values.shape}")
    if not times_s.size:
        raise TraceError("a series holds at least one value, got none")
    if not np.isfinite(times_s).all() or times_s[0] != 0.0:
        raise TraceError(f"times_s must be finite and start at 0, got {times_s[0]:g} first")
    late = np.flatnonzero(np.diff(times_s) <= 0.0)
    if late.size:
        i = int(late[0])
        raise TraceError(f"times_s must increase, got {times_s[i + 1]:g} after {times_s[i]:g} at index {i + 1}")
    if not times_s[-1] < duration_s <= MOST_S:
        raise TraceError(
            f"duration_s must be beyond the last time {times_s[-1]:g} and at most {MOST_S:g}, got {duration_s:g}"
        )
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0.0) & (values <= most)))
    if wrong.size:
        raise TraceError(f"{name} must be 0 to {most:g}, got {values[wrong[0]]:g} at index {int(wrong[0])}")
    for key, value in (("times_s", times_s), (name, values), ("duration_s", duration_s)):
        object.__setattr__(series, key, value)


def _read_only(values: ArrayLike) -> Floats:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


def _mean(times_s: Floats, values: Floats, duration_s: float) -> float:
    return float(values @ np.diff(times_s, append=duration_s) / duration_s)


def _binned(times_s: Floats, values: Floats, duration_s: float, width_s: float) -> Floats:
    count = max(1, int(duration_s / width_s + 1.0 - LEAST_TAIL))
    ends_s = np.append(times_s, duration_s)
    total = np.append(0.0, np.cumsum(values * np.diff(ends_s)))
    edges_s = np.minimum(np.arange(count + 1) * width_s, duration_s)
    means: Floats = np.diff(np.interp(edges_s, ends_s, total)) / np.diff(edges_s)
    return means

"""Means, percentiles and ratios with their confidence intervals."""

import math

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
BATCHES = 20  # of the batch-means interval: 10 to 30 lose little width (Schmeiser 1982)
Interval = tuple[float, float, float]  # value, low, high


# ---- statistics -------------------------------------------------------------------------------------------------------


def percentile(values: np.ndarray, percent: float) -> float:
    """The percentile, linear between order statistics (Hyndman and Fan type 7); NaN without values."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def mean(values: np.ndarray) -> float:
    """The mean; NaN without values."""
    return float(np.mean(values)) if len(values) else math.nan


def half_width(values: np.ndarray, batches: int) -> float:
    """Half of the 95 % interval of the mean by batch means, for values in time order; NaN below two values.

    Cuts n values into k = min(n, batches) runs as equal as can be and treats the runs as independent:
    t(k - 1) sqrt(k / (k - 1) sum_j S_j^2) / n with S_j = sum over run j of (x - mean). k = n is the Student t interval.
    """
    n = len(values)
    if n < 2:
        return math.nan
    k = min(n, batches)
    sums = np.array([run.sum() for run in np.array_split(values - np.mean(values), k)])
    spread = math.sqrt(k / (k - 1) * float(np.sum(sums**2))) / n
    return (
        float(stdtrit(k - 1, 0.5 + CONFIDENCE / 2)) * spread
    )  # Student's quantile, without loading all of scipy.stats


def ratio(above: np.ndarray, below: np.ndarray, batches: int) -> tuple[float, float, float]:
    """mean(above) / mean(below) of paired values in time order, with its 95 % interval (delta method over batch means)."""
    denominator = mean(below)
    if not denominator > 0:
        return math.nan, math.nan, math.nan
    value = mean(above) / denominator
    half = half_width(above - value * below, batches) / denominator
    return value, value - half, value + half

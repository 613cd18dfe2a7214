"""Means, percentiles and ratios with their confidence intervals."""

import math

import numpy as np

CONFIDENCE = 0.95
BATCHES = 20  # of the batch-means interval: 10 to 30 lose little width (Schmeiser 1982)
# Student's t at 97.5 % for 1 to 19 degrees of freedom, as scipy.special.stdtrit gives it, which takes longer to load than a small
# run's tables to compute.
_QUANTILES = (
    12.706204736174694,
    4.302652729749462,
    3.1824463052837078,
    2.7764451051977934,
    2.5705818356363146,
    2.4469118511449786,
    2.364624251592784,
    2.306004135204166,
    2.262157162798205,
    2.228138851986274,
    2.200985160091639,
    2.1788128296672284,
    2.1603686564627913,
    2.144786687917804,
    2.131449545559776,
    2.1199052992212546,
    2.1098155778333156,
    2.1009220402410382,
    2.0930240544083087,
)
Interval = tuple[float, float, float]  # value, low, high


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
    each, longer = divmod(n, k)
    off, cut = values - np.mean(values), longer * (each + 1)  # the first runs are longer by one
    sums = np.concatenate(
        [off[:cut].reshape(longer, each + 1).sum(axis=1), off[cut:].reshape(k - longer, each).sum(axis=1)]
    )
    spread = math.sqrt(k / (k - 1) * float(np.sum(sums**2))) / n
    return _quantile(k - 1) * spread


def _quantile(freedom: int) -> float:
    """Student's t at the upper end of the interval."""
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def bounded(interval: Interval, lowest: float = 0.0, highest: float = math.inf) -> Interval:
    """The interval within the values that the quantity can have: of few values, a Student interval reaches beyond them.

    NaN for its ends where it would be the whole range, which says nothing.
    """
    value, low, high = interval
    if low <= lowest and high >= highest:
        return value, math.nan, math.nan
    return value, max(low, lowest), min(high, highest)


def student_interval(values: np.ndarray) -> Interval:
    """Mean and 95 % Student t interval; NaN below two values."""
    centre, half = mean(values), half_width(values, len(values))
    return centre, centre - half, centre + half


def ratio(above: np.ndarray, below: np.ndarray, batches: int) -> tuple[float, float, float]:
    """mean(above) / mean(below) of paired values in time order, with its 95 % interval (delta method over batch means)."""
    denominator = mean(below)
    if not denominator > 0:
        return math.nan, math.nan, math.nan
    value = mean(above) / denominator
    half = half_width(above - value * below, batches) / denominator
    return value, value - half, value + half

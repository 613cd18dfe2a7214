"""Means, percentiles and ratios, with 95 % confidence intervals."""

import math

import numpy as np

CONFIDENCE = 0.95
BATCHES = 20  # with 10 to 30 batches the interval is close to its smallest width (Schmeiser 1982)
# Student's t at 97.5 % for 1 to 127 degrees of freedom from scipy.special.stdtrit, because importing scipy takes longer than computing
# the tables of a small run.
_WRITTEN = """
    12.706204736174694 4.302652729749462 3.1824463052837078 2.7764451051977934 2.5705818356363146 2.4469118511449786 2.364624251592784
    2.306004135204166 2.262157162798205 2.228138851986274 2.200985160091639 2.1788128296672284 2.1603686564627913 2.144786687917804
    2.131449545559776 2.1199052992212546 2.1098155778333156 2.1009220402410382 2.0930240544083087 2.085963447265864 2.0796138447276795
    2.0738730679040254 2.0686576104190486 2.0638985616280245 2.0595385527532972 2.0555294386428735 2.0518305164802846 2.0484071417952454
    2.045229642132703 2.0422724563012378 2.039513446396408 2.0369333434601016 2.0345152974493383 2.0322445093177186 2.030107928250343
    2.0280940009804502 2.0261924630291093 2.0243941639119694 2.022690920036761 2.021075390306273 2.019540970441376 2.0180817028184443
    2.016692199227824 2.0153675744437636 2.014103388880846 2.012895598919429 2.0117405137297655 2.010634757624232 2.0095752371292392
    2.008559112100761 2.007583770315836 2.006646805061688 2.0057459953178687 2.0048792881880564 2.0040447832891455 2.003240718847872
    2.002465459291007 2.0017174841452356 2.000995378088267 2.0002978220142604 1.999623584994939 1.9989715170333788 1.998340542520741
    1.997729654317693 1.9971379083920038 1.9965644189523117 1.996008354025296 1.9954689314298435 1.9949454151072374 1.994437111771186
    1.9939433678456255 1.9934635666618719 1.992997125889855 1.992543495180932 1.9921021540022417 1.9916726096446642 1.9912543953883846
    1.9908470688116906 1.9904502102301285 1.990063421254446 1.9896863234569029 1.989318557136572 1.9889597801751624 1.9886096669757083
    1.9882679074772216 1.98793420623902 1.9876082815890708 1.9872898648311692 1.986978699506281 1.9866745407037683 1.9863771544186177
    1.98608631695113 1.9858018143458227 1.985523441866604 1.9852510035054978 1.984984311522457 1.9847231860139845 1.9844674545084815
    1.9842169515864174 1.9839715185235518 1.983731002955606 1.9834952585628793 1.9832641447734565 1.9830375264837259 1.9828152737950475
    1.9825972617655006 1.9823833701756908 1.982173483307727 1.9819674897364825 1.981765282132372 1.9815667570749007 1.9813718148763053
    1.981180359414661 1.9809922979758567 1.9808075411039094 1.9806260024590894 1.9804475986834025 1.980272249272974 1.9800998764569397
    1.9799304050824402 1.9797637625053868 1.9795998784866382 1.9794386850933035 1.9792801166048548 1.9791241094237977 1.9789706019906281
    1.9788195347028539
"""
_QUANTILES = tuple(map(float, _WRITTEN.split()))
Interval = tuple[float, float, float]  # value, low, high
UNKNOWN: Interval = (math.nan, math.nan, math.nan)


def percentile(values: np.ndarray, percent: float) -> float:
    """Return the percentile, linear between order statistics (Hyndman and Fan type 7); NaN without values."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def mean(values: np.ndarray) -> float:
    """Return the mean; NaN without values."""
    return float(np.mean(values)) if len(values) else math.nan


def half_width(values: np.ndarray, batches: int) -> float:
    """Return the half-width of the 95 % interval of the mean by batch means, for values in time order; NaN below two values.

    The n values are cut into k = min(n, batches) runs of nearly equal length, which are treated as independent:
    t(k - 1) sqrt(k / (k - 1) sum_j S_j^2) / n with S_j = sum over run j of (x - mean). For k = n it is the Student t interval.
    """
    n = len(values)
    if n < 2:
        return math.nan
    k = min(n, batches)
    each, longer = divmod(n, k)
    off, cut = values - np.mean(values), longer * (each + 1)  # the first `longer` runs have one value more
    sums = np.concatenate(
        [off[:cut].reshape(longer, each + 1).sum(axis=1), off[cut:].reshape(k - longer, each).sum(axis=1)]
    )
    spread = math.sqrt(k / (k - 1) * float(np.sum(sums**2))) / n
    return _quantile(k - 1) * spread


def _quantile(freedom: int) -> float:
    """Return Student's t at the upper end of the interval (97.5 %)."""
    if freedom <= len(_QUANTILES):
        return _QUANTILES[freedom - 1]
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))


def bounded(interval: Interval, lowest: float = 0.0, highest: float = math.inf) -> Interval:
    """Cut an interval to the range of the quantity: a Student interval from few values can exceed it.

    The ends are NaN if the interval covers the whole range.
    """
    value, low, high = interval
    if low <= lowest and high >= highest:
        return value, math.nan, math.nan
    return value, max(low, lowest), min(high, highest)


def mean_interval(values: np.ndarray, batches: int) -> Interval:
    """Return the mean of values in time order with its 95 % interval by batch means; the ends are NaN below two values."""
    centre, half = mean(values), half_width(values, batches)
    return centre, centre - half, centre + half


def student_interval(values: np.ndarray) -> Interval:
    """Return the mean of independent values with its 95 % Student t interval; the ends are NaN below two values."""
    return mean_interval(values, len(values))


def ratio(above: np.ndarray, below: np.ndarray, batches: int) -> Interval:
    """Return mean(above) / mean(below) of paired values in time order, with its 95 % interval (delta method over batch means).

    All three are NaN unless mean(below) is positive.
    """
    denominator = mean(below)
    if not denominator > 0:
        return UNKNOWN
    value = mean(above) / denominator
    half = half_width(above - value * below, batches) / denominator
    return value, value - half, value + half


def bend(x: np.ndarray, gap: np.ndarray, place: int, at: float) -> tuple[float, float]:
    """Return the range in which a difference may be zero between two points, if it is convex or concave there.

    For a convex or concave difference, the chord between the two points lies on one side of it, and the chords of the neighbouring
    intervals, extended into this one, on the other. So the zero is between that of the chord and the nearest one of the extended chords.
    For a straight line all of these are equal.

    Args:
        x: float64 [n], ascending.
        gap: float64 [n], the difference at each x; NaN where unknown.
        place: Index of the point between which and the next one the difference changes its sign.
        at: Zero of the chord between these two points.
    """
    x0, x1 = float(x[place]), float(x[place + 1])
    zeros = []
    for near, far, never in ((place, place - 1, x1), (place + 1, place + 2, x0)):
        if not 0 <= far < len(x):
            continue
        slope = float(gap[far] - gap[near]) / float(x[far] - x[near])
        zero = float(x[near]) - float(gap[near]) / slope if slope else never
        if math.isfinite(zero):
            zeros.append(zero if x0 <= zero <= x1 else never)
    left, right = (zero for zero in zeros if zero < at), (zero for zero in zeros if zero >= at)
    return max(left, default=at), min(right, default=at)

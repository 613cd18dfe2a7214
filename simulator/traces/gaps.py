"""Scheduling gaps: a generator of rates with pauses that 1-second means hide, fitted to a packet-delivery trace.

A cell serves its devices in turns, and a device receives nothing between its turns. The model has a level, common to both directions.
At each level a direction alternates between runs, which carry a rate drawn for the run, and gaps, which carry nothing.

- The level changes every second. It is the quantile (all are equally likely) of a Gaussian process: an AR(1) process with time constant
  `slow_s` and a share `slow_share` of the variance, plus white noise.
- Gaps begin at random, `gaps_per_s` per second of a run. Gap lengths are drawn such that each of `gaps_ms` takes its share of the time
  in gaps (`GAP_SHARES`), and rates such that each of `rates` takes its share of the time in runs (`RUN_SHARES`). At each level this
  preserves the time in gaps and the mean wait of a message in a gap, which is proportional to the sum of squared lengths.
- Rates are scaled to the requested mean.

The fit ranks each second of the trace by the mean time that two packets in each direction take from a random time in it. The ranks give
the levels. Their normal scores are the Gaussian process, whose autocorrelation over 20 s gives `slow_s` and `slow_share`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from simulator.core import yamlfile
from simulator.core.errors import TraceError
from simulator.core.part import Part, items
from simulator.core.rng import stream
from simulator.core.settings import refuse
from simulator.traces.series import Floats, RateSeries
from simulator.traces.trace import Trace

FILE = Path(__file__).parent / "gaps.yaml"
GAP_S = 0.01  # shortest gap; a shorter pause is part of a run
GAP_SHARES = np.array([0.15, 0.2, 0.2, 0.2, 0.15, 0.1])
RUN_SHARES = np.array([0.1, 0.2, 0.2, 0.2, 0.2, 0.1])
LEAST_CYCLE_S = 0.005  # least mean duration of a run and a gap together
LEVELS = 4
# Two packets. Whether they also wait for the gap that begins where the second ends depends on rounding. Without that wait (1e-3 bits less)
# 7 to 11 % of the seconds have another level, and sessions on the fit are no closer to those on the trace.
PROBE_BITS = 24_000.0
LAGS_S = 20
SLOW_S = (5.0, 8.0, 12.0, 20.0, 30.0, 50.0)
LEAST_S = 30.0
COARSEST_S = 0.15  # longest mean time between rate changes: a coarser trace does not show gaps
MOST_S = 1e5
MOST_PER_S = 1000.0
MOST_GAP_MS = 1e6
_RUN_ON = 1e9  # mean seconds of a run at a level without gaps

Ints = NDArray[np.int64]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=MOST_GAP_MS)], ...], BeforeValidator(items)]


class GapLevel(Part):
    """One direction during the seconds of one level, which have similar waits.

    Attributes:
        gaps_per_s: number of gaps that begin per second of runs.
        gaps_ms: lengths of gaps, each with its share of the time in gaps (15, 20, 20, 20, 15 and 10 %); empty without gaps.
        rates: relative rates of runs, each with its share of the time in runs (10, 20, 20, 20, 20 and 10 %).
    """

    gaps_per_s: float = Field(ge=0, le=MOST_PER_S)
    gaps_ms: Shares
    rates: Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], BeforeValidator(items)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.gaps_ms) not in (0, len(GAP_SHARES)) or (not self.gaps_ms and self.gaps_per_s):
            refuse(
                f"must be {len(GAP_SHARES)} lengths, or none where gaps_per_s is 0, got {len(self.gaps_ms)}", "gaps_ms"
            )
        if self.gaps_per_s and 1.0 / self.gaps_per_s + 1e-3 / float((GAP_SHARES / self.gaps_ms).sum()) < LEAST_CYCLE_S:
            refuse(f"makes more than {1.0 / LEAST_CYCLE_S:g} gaps a second of these lengths", "gaps_per_s")
        if len(self.rates) != len(RUN_SHARES):
            refuse(f"must be {len(RUN_SHARES)} rates, got {len(self.rates)}", "rates")
        return self


class Gaps(Part):
    """A fitted trace: see the module.

    Attributes:
        slow_s: time constant of the AR(1) part of the process that gives the level.
        slow_share: share of the AR(1) part in the variance of the process.
        down: gaps and rates of each level on the downlink, from short waits to long ones.
        up: the same for the uplink; equal number of levels.
    """

    slow_s: float = Field(gt=0, le=1e4)
    slow_share: float = Field(ge=0, le=1)
    down: Annotated[tuple[GapLevel, ...], BeforeValidator(items)] = Field(min_length=1, max_length=100)
    up: Annotated[tuple[GapLevel, ...], BeforeValidator(items)] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _same_levels(self) -> Self:
        if len(self.down) != len(self.up):
            refuse(f"must have as many levels as down ({len(self.down)}), got {len(self.up)}", "up")
        for way in ("down", "up"):
            if not any(rate for level in getattr(self, way) for rate in level.rates):
                refuse("carries nothing at any level", way)
        return self


class Fit(Part):
    """An entry of `gaps.yaml`.

    Attributes:
        source: the trace.
        down_mbps: mean rate of its downlink.
        up_mbps: mean rate of its uplink.
        gaps: the fit.
    """

    source: str
    down_mbps: float
    up_mbps: float
    gaps: Gaps


@cache
def fitted() -> dict[str, Fit]:
    """Return the fits of `gaps.yaml` by name."""
    return {name: Fit.model_validate(fields) for name, fields in yamlfile.read(FILE, shipped=True).data.items()}


def fit(trace: Trace, levels: int = LEVELS) -> Gaps:
    """Fit the model to a packet-delivery trace of both directions, up to the end of the shorter one.

    Raises:
        TraceError: a direction is missing or carries nothing (in all or at one level), the trace is too short or too coarse, or a gap is
            longer than `MOST_GAP_MS`.
    """
    series = []
    for way, rate in (("down", trace.down.rate), ("up", trace.up.rate)):
        if rate is None:
            raise TraceError(f"has no {way}link rate; needed: packet-delivery traces of both directions")
        series.append(rate)
    for way, rate in zip(("down", "up"), series, strict=True):
        if rate.duration_s < LEAST_S or rate.duration_s / len(rate.times_s) > COARSEST_S:
            raise TraceError(
                f"the {way}link has {len(rate.times_s)} rates in {rate.duration_s:g} s; needed: {LEAST_S:g} s, and a packet-delivery "
                f"trace, whose rate changes every {1e3 * COARSEST_S:g} ms or more often"
            )
    end_s = min(MOST_S, *(rate.duration_s for rate in series))
    series = [_until(rate, end_s) for rate in series]
    for way, rate in zip(("down", "up"), series, strict=True):
        if not rate.rate_bps.any():
            raise TraceError(f"the {way}link carries nothing in {end_s:g} s")
    count = math.floor(end_s)
    waits_s = np.sum([_waits(rate, count) for rate in series], axis=0)
    ranks = (np.argsort(np.argsort(waits_s, kind="stable"), kind="stable") + 0.5) / len(waits_s)
    slow_s, slow_share = _slow(np.array([NormalDist().inv_cdf(rank) for rank in ranks]))
    level = (ranks * levels).astype(np.int64)
    down, up = (_levels(one, level, levels) for one in series)
    return Gaps(slow_s=slow_s, slow_share=slow_share, down=down, up=up)


def as_yaml(gaps: Gaps) -> str:
    """Format the model as in `gaps.yaml` and under `rate:` of a network."""
    lines = [f"slow_s: {gaps.slow_s:g}", f"slow_share: {gaps.slow_share:g}"]
    for way, levels in (("down", gaps.down), ("up", gaps.up)):
        lines.append(f"{way}:")
        for level in levels:
            lengths, rates = (", ".join(f"{value:g}" for value in row) for row in (level.gaps_ms, level.rates))
            lines.append(f"  - {{gaps_per_s: {level.gaps_per_s:g}, gaps_ms: [{lengths}], rates: [{rates}]}}")
    return "\n".join(lines)


def generate(gaps: Gaps, down_bps: float, up_bps: float, seed: int, duration_s: float) -> tuple[RateSeries, RateSeries]:
    """Generate a downlink and an uplink with these mean rates. Equal arguments give equal series. Times are multiples of 0.1 ms.

    Raises:
        TraceError: the duration is outside 10 s to 1e5 s, or nothing passes in all of it.
    """
    if not 10.0 <= duration_s <= MOST_S:
        raise TraceError(f"duration_s must be 10 to {MOST_S:g}, got {duration_s:g}")
    steps = math.ceil(duration_s)
    # A step is 1 s, so the autocorrelation of the process at lag k is slow_share * exp(-k / slow_s).
    slow, noise = stream(seed, "trace.gaps.level").standard_normal((2, steps))
    memory = math.exp(-1.0 / gaps.slow_s)
    slow[1:] *= math.sqrt(1.0 - memory**2)
    slow = np.array(list(accumulate(slow.tolist(), lambda z, e: memory * z + e)))
    process = math.sqrt(gaps.slow_share) * slow + math.sqrt(1.0 - gaps.slow_share) * noise
    bounds = [NormalDist().inv_cdf(k / len(gaps.down)) for k in range(1, len(gaps.down))]
    level = np.searchsorted(bounds, process).tolist()
    down, up = (
        _direction(levels, level, mean_bps, stream(seed, "trace.gaps", way), duration_s)
        for way, levels, mean_bps in (("down", gaps.down, down_bps), ("up", gaps.up, up_bps))
    )
    return down, up


def _direction(
    levels: tuple[GapLevel, ...], level_of: list[int], mean_bps: float, random: np.random.Generator, duration_s: float
) -> RateSeries:
    uniform, exponential = _endless(random.random), _endless(random.standard_exponential)
    run_bounds = np.cumsum(RUN_SHARES)[:-1].tolist()
    tables = []
    for one in levels:
        lengths_s = 1e-3 * np.array(one.gaps_ms)
        chances = GAP_SHARES / lengths_s if len(lengths_s) else np.ones(1)  # of time: longer gaps are rarer
        bounds = (np.cumsum(chances) / chances.sum())[:-1].tolist()
        tables.append((1.0 / one.gaps_per_s if one.gaps_per_s else _RUN_ON, bounds, lengths_s.tolist(), one.rates))
    times, rates = [], []
    now_s = 0.0
    while now_s < duration_s:
        run_s, bounds, lengths, level_rates = tables[level_of[int(now_s)]]
        times.append(now_s)
        rates.append(level_rates[bisect_right(run_bounds, next(uniform))])
        end_s = now_s + run_s * next(exponential)
        step_s = math.floor(now_s) + 1.0
        if end_s >= step_s:
            now_s = step_s
            continue
        times.append(end_s)
        rates.append(0.0)
        now_s = end_s + lengths[bisect_right(bounds, next(uniform))]
    times_s, rate = np.round(times, 4), np.array(rates)
    kept = np.append(np.diff(times_s) > 0.0, True) & (times_s < duration_s)
    times_s, rate = times_s[kept], rate[kept]
    mean = float(rate @ np.diff(times_s, append=duration_s)) / duration_s
    if mean == 0.0:
        raise TraceError(f"nothing passes in {duration_s:g} s; take a longer duration or another seed")
    return RateSeries(times_s, rate * (mean_bps / mean), duration_s)


def _endless(draw: Callable[[int], Floats]) -> Iterator[float]:
    while True:
        yield from draw(4096).tolist()


def _until(series: RateSeries, end_s: float) -> RateSeries:
    kept = series.times_s < end_s
    return RateSeries(series.times_s[kept], series.rate_bps[kept], end_s)


def _waits(series: RateSeries, count: int) -> Floats:
    """Return float64 [count], the time that `PROBE_BITS` take, averaged over starts in each second. The series repeats."""
    edges_s = np.append(series.times_s, series.duration_s)
    carried = np.append(0.0, np.cumsum(series.rate_bps * np.diff(edges_s)))
    begins_s = (np.arange(100 * count) + 0.5) / 100.0
    bits = np.interp(begins_s, edges_s, carried) + PROBE_BITS
    # Bits that end with a pass end in it, not after the outage with which the next one may begin. The factor is for rounding errors.
    passes = np.ceil(bits / carried[-1] * (1.0 - 1e-12)) - 1.0
    rest = np.minimum(bits - passes * carried[-1], carried[-1])
    there = np.searchsorted(carried, rest, side="left")
    ends_s = passes * series.duration_s + edges_s[there] - (carried[there] - rest) / series.rate_bps[there - 1]
    means: Floats = (ends_s - begins_s).reshape(count, 100).mean(axis=1)
    return means


def _slow(scores: Floats) -> tuple[float, float]:
    """Fit slow_s and slow_share to the autocorrelation by weighted least squares. Longer lags have lower weights."""
    scores = scores / scores.std()
    lags = np.arange(1, LAGS_S + 1)
    found = np.array([np.mean(scores * np.roll(scores, -lag)) for lag in lags])
    tried = [(slow_s, share) for slow_s in SLOW_S for share in np.arange(0.0, 1.01, 0.05).round(2).tolist()]

    def error(figures: tuple[float, float]) -> float:
        slow_s, share = figures
        return float((((share * np.exp(-lags / slow_s) - found) ** 2) / (1.0 + lags / 5.0)).sum())

    return min(tried, key=error)


def _levels(series: RateSeries, level_of: Ints, levels: int) -> tuple[GapLevel, ...]:
    edges_s = np.append(series.times_s, series.duration_s)
    passes = series.rate_bps > 0.0
    begins_s, ends_s = edges_s[:-1][passes], edges_s[1:][passes]
    apart = begins_s[1:] - ends_s[:-1] >= GAP_S
    begins_s, ends_s = begins_s[np.append(True, apart)], ends_s[np.append(apart, True)]
    gaps_s = begins_s[1:] - ends_s[:-1]
    if gaps_s.max(initial=0.0) > 1e-3 * MOST_GAP_MS:
        raise TraceError(f"has a gap of {gaps_s.max():.0f} s; allowed: up to {1e-3 * MOST_GAP_MS:g} s")

    def at(times_s: Floats) -> Ints:
        return level_of[np.minimum(times_s.astype(np.int64), len(level_of) - 1)]

    gap_level = at(ends_s[:-1])
    # Runs are cut at whole seconds because each second has its own level.
    cuts_s = np.unique(np.concatenate([begins_s, ends_s, np.arange(len(level_of) + 1.0)]))
    middles_s = 0.5 * (cuts_s[1:] + cuts_s[:-1])
    run = np.searchsorted(begins_s, middles_s, side="right") - 1
    inside = (run >= 0) & (middles_s < ends_s[np.maximum(run, 0)])
    carried = np.append(0.0, np.cumsum(series.rate_bps * np.diff(edges_s)))
    bits, seconds = np.diff(np.interp(cuts_s, edges_s, carried))[inside], np.diff(cuts_s)[inside]
    run_level, mean_bps = at(middles_s[inside]), series.mean_bps()
    found = []
    for level in range(levels):
        here, lengths_s = run_level == level, gaps_s[gap_level == level]
        if not here.any():
            raise TraceError(f"carries nothing at level {level + 1} of {levels}; take fewer levels or a longer trace")
        order = np.argsort(bits[here] / seconds[here], kind="stable")
        rates = _by_share(seconds[here][order], bits[here][order], RUN_SHARES) / mean_bps
        per_s, gaps_ms = 0.0, np.empty(0)
        if len(lengths_s):
            lengths_s = np.sort(lengths_s)
            gaps_ms = 1e3 * _by_share(lengths_s, lengths_s**2, GAP_SHARES)
            per_s = float((GAP_SHARES / gaps_ms).sum() * 1e3 * lengths_s.sum() / seconds[here].sum())
            # More than one a millisecond: very short runs, or gaps that begin with a second and whose runs count in the second before.
            per_s = min(per_s, MOST_PER_S)
        found.append(GapLevel(gaps_per_s=_rounded(per_s), gaps_ms=_row(gaps_ms), rates=_row(rates)))
    return tuple(found)


def _by_share(seconds: Floats, amounts: Floats, shares: Floats) -> Floats:
    """Return float64 [shares], the amount per second within each consecutive share of the time."""
    time_s = np.append(0.0, np.cumsum(seconds))
    bounds = np.append(0.0, np.cumsum(shares)) * time_s[-1]
    held: Floats = np.diff(np.interp(bounds, time_s, np.append(0.0, np.cumsum(amounts)))) / np.diff(bounds)
    return held


def _row(values: Floats) -> tuple[float, ...]:
    return tuple(_rounded(value) for value in values.tolist())


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")

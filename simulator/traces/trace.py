"""The one form in which every trace file is held: `Trace` of a network, `Arrivals` of requests; and what `traces show` says of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from simulator.traces.series import Floats, RateSeries, StepSeries

MOST_STEPS = 10**7


@dataclass(frozen=True, eq=False)
class Direction:
    """What a trace says of one direction of a link; None where it says nothing.

    rate: bit/s. delay_s: ONE-WAY delay in seconds. loss: share of packets lost in this direction, 0 to 1. packets: chances to send
    a packet in one pass (mahimahi only). Each series loops at its own duration.

    Raises TraceError for a loss above 1.
    """

    rate: RateSeries | None = None
    delay_s: StepSeries | None = None
    loss: StepSeries | None = None
    packets: int | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and self.loss.values.max() > 1.0:
            raise TraceError(f"loss must be a share of 0 to 1, got {self.loss.values.max():g}")


@dataclass(frozen=True, eq=False)
class Trace:
    """A network trace. format: a name of `simulator.traces.read.FORMATS`. A round trip is stored as two equal one-way delays."""

    format: str
    down: Direction
    up: Direction

    @property
    def duration_s(self) -> float:
        """Of the longest series."""
        return max(series.duration_s for series in self.series())

    def series(self) -> list[RateSeries | StepSeries]:
        parts = [part for way in (self.down, self.up) for part in (way.rate, way.delay_s, way.loss)]
        return [part for part in parts if part is not None]

    def rtt_s(self) -> StepSeries | None:
        """Round trip: the sum of both one-way delays, where both are known."""
        down, up = self.down.delay_s, self.up.delay_s
        if down is None or up is None:
            return None
        duration_s = max(down.duration_s, up.duration_s)
        times_s, (a, b) = on_one_grid([down, up], duration_s)
        return StepSeries(times_s, a + b, duration_s)


@dataclass(frozen=True, eq=False)
class Arrivals:
    """When requests were made. requested_s: float64 [n], seconds since the first, never decreasing. Token counts int64 [n] or None."""

    format: str
    requested_s: Floats
    input_tokens: NDArray[np.int64] | None = None
    output_tokens: NDArray[np.int64] | None = None

    @property
    def duration_s(self) -> float:
        """From the first request to the last."""
        return float(self.requested_s[-1])

    def rate_per_s(self) -> float:
        """1 over the mean time between requests."""
        return (len(self.requested_s) - 1) / self.duration_s


def on_one_grid(
    series: list[RateSeries | StepSeries] | list[StepSeries], duration_s: float
) -> tuple[Floats, list[Floats]]:
    """times_s [n] at which any of the series changes before `duration_s`, and the values [n] of each there; shorter ones loop.

    Times are taken to the nanosecond, so that one moment reckoned in two ways is one. Raises TraceError where a short one would loop
    too often.
    """
    starts = []
    for one in series:
        if len(one.times_s) * duration_s / one.duration_s > MOST_STEPS:
            raise TraceError(
                f"a series of {one.duration_s:g} s cannot be repeated for {duration_s:g} s; allowed: {MOST_STEPS:.0e} steps"
            )
        passes = np.arange(int(np.ceil(duration_s / one.duration_s - 1e-12)))
        starts.append(np.round((one.times_s + passes[:, None] * one.duration_s).ravel(), 9))
    merged = np.unique(np.concatenate(starts))
    times_s = np.asarray(merged[merged < duration_s - 1e-9], dtype=np.float64)
    values = []
    for one, own_s in zip(series, starts, strict=True):
        place = np.searchsorted(own_s, times_s, side="right") - 1
        held = one.rate_bps if isinstance(one, RateSeries) else one.values
        values.append(held[place % len(held)])
    return times_s, values


def summary(trace: Trace | Arrivals) -> dict[str, Any]:
    """What `ciar-sim traces show --json` prints.

    Rates: mean, p5, p95 of 1-second bins. rtt_ms: the same over time, not averaged within a second, since a message meets one
    value. loss_pct: mean over time, and over the directions known. None for what the trace does not say.
    """
    if isinstance(trace, Arrivals):
        return {
            "format": trace.format,
            "duration_s": trace.duration_s,
            "requests": len(trace.requested_s),
            "rate_per_s": trace.rate_per_s(),
        }
    losses = [way.loss.mean() for way in (trace.down, trace.up) if way.loss is not None]
    packets = [way.packets for way in (trace.down, trace.up) if way.packets is not None]
    return {
        "format": trace.format,
        "duration_s": trace.duration_s,
        "down_mbps": _rate_figures(trace.down.rate),
        "up_mbps": _rate_figures(trace.up.rate),
        "rtt_ms": _delay_figures(trace.rtt_s()),
        "loss_pct": 100.0 * sum(losses) / len(losses) if losses else None,
        "packets": sum(packets) if packets else None,
    }


def _rate_figures(rate: RateSeries | None) -> dict[str, float] | None:
    if rate is None:
        return None
    steps_s = np.diff(rate.times_s, append=rate.duration_s)
    # Rows spread evenly at about a second are bins already; new borders across them would only blur them.
    about_a_second = 0.8 < steps_s[0] < 1.25 and np.ptp(steps_s) < 1e-6
    bins_mbps = (rate.rate_bps if about_a_second else rate.binned()) / 1e6
    p5, p95 = np.percentile(bins_mbps, [5, 95])
    return _rounded(bins_mbps.mean(), p5, p95)


def _delay_figures(delay_s: StepSeries | None) -> dict[str, float] | None:
    if delay_s is None:
        return None
    weights = np.diff(delay_s.times_s, append=delay_s.duration_s)
    p5, p95 = np.quantile(delay_s.values, [0.05, 0.95], weights=weights, method="inverted_cdf")
    return _rounded(1e3 * delay_s.mean(), 1e3 * p5, 1e3 * p95)


def _rounded(mean: float, p5: float, p95: float) -> dict[str, float]:
    """To 1e-9, below any measurement: 18.0, not 18.000000000000004."""
    return {"mean": round(float(mean), 9), "p5": round(float(p5), 9), "p95": round(float(p95), 9)}

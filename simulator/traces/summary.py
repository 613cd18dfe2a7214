"""Summary figures of a trace: the JSON and the table of `ciar-sim traces show`."""

import json
from typing import Any

import numpy as np

from simulator.traces.series import RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Trace


def summary(trace: Trace | Arrivals) -> dict[str, Any]:
    """Return the figures that `ciar-sim traces show --json` prints. A value is None if the trace does not state it.

    Rates are mean, p5 and p95 of 1-second bins. rtt_ms has mean, p5 and p95 over time without bins, since a message experiences one
    value, not a mean. loss_pct is the mean over time and over the known directions. assumed: what the reader assumed.
    """
    if isinstance(trace, Arrivals):
        return {
            "format": trace.format,
            "duration_s": trace.duration_s,
            "requests": len(trace.requested_s),
            "rate_per_s": trace.rate_per_s(),
            "assumed": list(trace.notes),
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
        "assumed": list(trace.notes),
    }


def _rate_figures(rate: RateSeries | None) -> dict[str, float] | None:
    if rate is None:
        return None
    steps_s = np.diff(rate.times_s, append=rate.duration_s)
    # Evenly spaced rows of about a second already are bins. Bins with other edges would average neighbours.
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
    """Round to 1e-9, so that 18.000000000000004 is 18.0."""
    return {"mean": round(float(mean), 9), "p5": round(float(p5), 9), "p95": round(float(p95), 9)}


def table(trace: Trace | Arrivals) -> str:
    """Return the figures of `summary` as aligned lines of text, followed by what the reader assumed."""
    figures = summary(trace)
    notes = [f"note: {note}" for note in trace.notes]
    lines = [f"{'format':<12}{figures['format']}", f"{'duration':<12}{figures['duration_s']:.6g} s"]
    if isinstance(trace, Arrivals):
        lines += [f"{'requests':<12}{figures['requests']}", f"{'rate':<12}{figures['rate_per_s']:.6g} per s"]
        return "\n".join([*lines, *notes])
    lines.append(f"{'':<12}{'mean':>10}{'p5':>10}{'p95':>10}")
    for name, key in (("down Mbit/s", "down_mbps"), ("up Mbit/s", "up_mbps"), ("RTT ms", "rtt_ms")):
        shown = ["-"] * 3 if figures[key] is None else [f"{value:.5g}" for value in figures[key].values()]
        lines.append(f"{name:<12}" + "".join(f"{text:>10}" for text in shown))
    for name, key in (("loss %", "loss_pct"), ("packets", "packets")):
        lines.append(f"{name:<12}" + f"{'-' if figures[key] is None else format(figures[key], '.9g'):>10}")
    return "\n".join([*lines, *notes])


def as_json(figures: dict[str, Any]) -> str:
    return json.dumps(figures, indent=2, allow_nan=False)

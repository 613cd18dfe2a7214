"""A trace as a short table and as a plot."""

import io
from typing import Any

import numpy as np

from simulator.traces.read import NOTES
from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Trace, summary


def table(trace: Trace | Arrivals) -> str:
    """Lines of text: what `summary` says, aligned."""
    figures = summary(trace)
    lines = [f"{'format':<12}{figures['format']}", f"{'duration':<12}{figures['duration_s']:.6g} s"]
    if isinstance(trace, Arrivals):
        lines += [f"{'requests':<12}{figures['requests']}", f"{'rate':<12}{figures['rate_per_s']:.6g} per s"]
        return "\n".join(lines)
    lines.append(f"{'':<12}{'mean':>10}{'p5':>10}{'p95':>10}")
    for name, key in (("down Mbit/s", "down_mbps"), ("up Mbit/s", "up_mbps"), ("RTT ms", "rtt_ms")):
        shown = ["-"] * 3 if figures[key] is None else [f"{value:.5g}" for value in figures[key].values()]
        lines.append(f"{name:<12}" + "".join(f"{text:>10}" for text in shown))
    for name, key in (("loss %", "loss_pct"), ("packets", "packets")):
        lines.append(f"{name:<12}" + f"{'-' if figures[key] is None else format(figures[key], '.9g'):>10}")
    notes = {NOTES[part] for part in trace.format.split("+") if NOTES.get(part)}
    return "\n".join([*lines, *(f"note: {note}" for note in sorted(notes))])


def plot(trace: Trace | Arrivals, title: str) -> bytes:
    """PNG: a panel for each quantity that the trace tells, over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _arrival_panels(trace) if isinstance(trace, Arrivals) else _network_panels(trace)
    figure = Figure(figsize=(8.0, 1.0 + 1.7 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves) in zip(axes, panels, strict=True):
        for (name, edges_s, values), colour in zip(curves, ("#0072b2", "#d55e00"), strict=False):
            axis.stairs(values, edges_s, baseline=None, color=colour, label=name or None, linewidth=1.0)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=8, loc="upper right")
        axis.set_ylabel(label, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(color="#e4e7eb")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("time, s", fontsize=9)
    axes[0].set_title(title, fontsize=10, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


Curve = tuple[str, Floats, Floats]  # name, edges in s [n + 1], values [n]


def _network_panels(trace: Trace) -> list[tuple[str, list[Curve]]]:
    ways = (("down", trace.down), ("up", trace.up))
    panels: list[tuple[str, list[Curve]]] = [
        (f"{name} Mbit/s", [("", *_seconds(way.rate, 1e-6))]) for name, way in ways if way.rate is not None
    ]
    rtt_s = trace.rtt_s()
    if rtt_s is not None:
        panels.append(("RTT ms", [("", *_seconds(rtt_s, 1e3))]))
    else:
        delays: list[Curve] = [(name, *_seconds(way.delay_s, 1e3)) for name, way in ways if way.delay_s is not None]
        panels += [("one-way delay ms", delays)] if delays else []
    losses: list[Curve] = [(name, *_seconds(way.loss, 1e2)) for name, way in ways if way.loss is not None]
    return panels + ([("loss %", losses)] if losses else [])


def _seconds(series: RateSeries | StepSeries, scale: float) -> tuple[Floats, Floats]:
    values = series.binned() * scale
    return np.minimum(np.arange(len(values) + 1.0), series.duration_s), values


def _arrival_panels(trace: Arrivals) -> list[tuple[str, list[Curve]]]:
    counts, edges_s = np.histogram(trace.requested_s, bins=120)
    return [("requests per s", [("", edges_s, counts / np.diff(edges_s))])]


def as_json(figures: dict[str, Any]) -> str:
    import json

    return json.dumps(figures, indent=2, allow_nan=False)

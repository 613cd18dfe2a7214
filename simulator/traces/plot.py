"""A trace as a plot."""

import io

import numpy as np

from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Trace

MOST_BINS = 20_000


def plot(trace: Trace | Arrivals, title: str) -> bytes:
    """Return a PNG with one panel over time for each quantity of the trace."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _arrival_panels(trace) if isinstance(trace, Arrivals) else _network_panels(trace)
    figure = Figure(figsize=(8.0, 1.0 + 1.7 * len(panels)), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, curves) in zip(axes, panels, strict=True):
        for (name, edges_s, values), colour in zip(curves, ("#0072b2", "#d55e00"), strict=False):
            axis.stairs(values, edges_s, baseline=None, color=colour, label=name or None, linewidth=1.0)
        if len(curves) > 1:
            axis.legend(frameon=False, fontsize=8, loc="upper right")
        axis.set_ylabel(label, fontsize=9)
        axis.set_ylim(bottom=0)
        axis.set_axisbelow(True)
        axis.grid(color="#e4e7eb")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("time, s", fontsize=9)
    axes[0].set_title(title, fontsize=10, loc="left", parse_math=False)
    ConstrainedLayoutEngine().execute(figure)  # run once here: savefig draws a figure that keeps a layout engine twice
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


Curve = tuple[str, Floats, Floats]  # name, edges in s [n + 1], values [n]


def _network_panels(trace: Trace) -> list[tuple[str, list[Curve]]]:
    ways = (("down", trace.down), ("up", trace.up))
    panels: list[tuple[str, list[Curve]]] = [
        (f"{name} Mbit/s", [("", *_bins(way.rate, 1e-6))]) for name, way in ways if way.rate is not None
    ]
    rtt_s = trace.rtt_s()
    if rtt_s is not None:
        panels.append(("RTT ms", [("", *_bins(rtt_s, 1e3))]))
    else:
        delays: list[Curve] = [(name, *_bins(way.delay_s, 1e3)) for name, way in ways if way.delay_s is not None]
        panels += [("one-way delay ms", delays)] if delays else []
    losses: list[Curve] = [(name, *_bins(way.loss, 1e2)) for name, way in ways if way.loss is not None]
    return panels + ([("loss %", losses)] if losses else [])


def _bins(series: RateSeries | StepSeries, scale: float) -> tuple[Floats, Floats]:
    """Return edges in s [n + 1] and means [n] of 1-second bins, or of longer ones if there would be more than `MOST_BINS`."""
    width_s = max(1.0, series.duration_s / MOST_BINS)
    values = series.binned(width_s) * scale
    return np.minimum(np.arange(len(values) + 1.0) * width_s, series.duration_s), values


def _arrival_panels(trace: Arrivals) -> list[tuple[str, list[Curve]]]:
    counts, edges_s = np.histogram(trace.requested_s, bins=120)
    return [("requests per s", [("", edges_s, counts / np.diff(edges_s))])]

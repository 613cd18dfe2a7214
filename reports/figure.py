"""What all plots share: style, size, footnote, legend, rendering to PNG and SVG."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.load import interval_columns
from reports.words import wrapped

INK, MUTED, GRID = "#1b1f24", "#5c6470", "#e4e7eb"
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlepad": 10.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "text.parse_math": False,  # a label may hold a $
    "svg.fonttype": "none",  # text stays text: editable, searchable, small
    "svg.hashsalt": "ciar-sim",
}
T = TypeVar("T")


@contextmanager
def styled() -> Iterator[None]:
    """Everything drawn in the block has the style of the plots."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        yield


def render(figure: Figure, form: str) -> bytes:
    """The figure as "png" or "svg"; equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    )
    FigureCanvasAgg(figure)
    return figure


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spaced, the first and the last among them."""
    places = sorted({round(place) for place in np.linspace(0, len(items) - 1, min(len(items), most))})
    return [items[place] for place in places]


def footnote(figure: Figure, *lines: str) -> None:
    """Lines under a plot: how to read it, what is left out, what the latency stands for."""
    width = int(figure.get_figwidth() * 16.5)
    text = "\n".join(wrapped(line, width) for line in lines if line)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=MUTED)


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above the plots, in as many columns as the width holds."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.62 + 0.075 * longest))))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8, handlelength=2.8)


def scale_x(axes: Sequence[Axes], values: np.ndarray, log_from: float) -> None:
    """A logarithmic x axis with ticks at 1, 2, 5 where the largest value is `log_from` times the smallest or more."""
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() >= log_from * values.min():
        for ax in axes:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_minor_locator(ticker.NullLocator())
            ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def wrapped_title(ax: Axes, text: str, inches: float) -> None:
    """A title no wider than the inches: 11 bold letters to each."""
    ax.set_title(wrapped(text.replace("× base", "×\u00a0base"), max(12, int(11 * inches))))


def error_bars(row: pd.Series, name: str, scale: float = 1.0) -> np.ndarray:
    """Distances from a metric to the ends of its interval, float [2, 1]; zero where there is no interval."""
    low, high = (float(row[end]) for end in interval_columns(name))
    ends = scale * np.array([[row[name] - low], [high - row[name]]], dtype=float)
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)

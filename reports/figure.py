"""What all plots share: style, colours, sizes, limits, rendering to PNG and SVG."""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from reports.load import PARTS, Run
from simulator.protocol.methods import METHODS

INK, MUTED, GRID = "#1b1f24", "#5c6470", "#e4e7eb"
# Okabe and Ito's colours, told apart with any colour vision; the known methods keep theirs from run to run.
HUES = {name: kind.colour for name, kind in METHODS.items() if kind.colour}
SPARE_HUES = ("#56b4e9", "#e69f00", "#7a5195", "#a6761d", "#003f5c", "#b2b200")
MARKERS = "osD^vP*Xphd<>"
# Blue is the device, orange the network, green the cloud, grey what waits for neither.
PART_COLOURS = dict(
    zip(
        PARTS,
        ("#f6d7a7", "#8c6bb1", "#bcd7ee", "#1f6fb2", "#e69f00", "#b5ddc8", "#12805c", "#b85c00", "#c9cdd3", "#6fb1de"),
        strict=True,
    )
)
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
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
    "svg.fonttype": "path",
    "svg.hashsalt": "ciar-sim",
}
MOST_CONDITIONS, MOST_LABELS, MOST_BARS, MOST_METHODS, MOST_PROMPTS = 6, 8, 12, 8, 4
MOST_COLUMNS, MOST_ROWS = 16, 40  # of the table that stands for more than MOST_CONDITIONS
LOG_LATENCY_FROM, LOG_SWEEP_FROM = (
    4.0,
    8.0,
)  # an axis is logarithmic where its largest value is this many times its smallest
SHARED_UP_TO = 4.0  # bars of all conditions share a scale unless the longest of one is this many times another's


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        yield


def _render(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    )
    FigureCanvasAgg(figure)
    return figure


def _foot(figure: Figure, run: Run, text: str = "") -> None:
    """The line under every plot: how to read it, and what the latency stands for."""
    lines = [part for part in (text, run.as_if) if part]
    width = int(figure.get_figwidth() * 16.5)
    wrapped = "\n".join("\n".join(textwrap.wrap(line, width)) for line in lines)
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=MUTED)


# ---- colours and scales -----------------------------------------------------------------------------------------------


def colours(run: Run) -> dict[str, str]:
    """Label -> colour: a hue per method; several settings of one method run from light to dark, in order of appearance."""
    families: dict[str, list[str]] = {}
    for label, name in zip(run.summary["label"], run.summary["method_name"], strict=True):
        labels = families.setdefault(name, [])
        labels += [label] if label not in labels else []
    spare = iter(SPARE_HUES * (1 + len(families) // len(SPARE_HUES)))
    found = {}
    for family, labels in families.items():
        hue = HUES.get(family) or next(spare)
        for place, label in enumerate(labels):
            shade = 0.0 if len(labels) == 1 else 0.45 - 0.9 * place / (len(labels) - 1)
            found[label] = _mix(hue, "white", shade) if shade > 0 else _mix(hue, "black", -shade * 0.9)
    return found


def short_labels(run: Run) -> dict[str, str]:
    """Label -> label beside a point: of three or more settings that differ in one value, the later ones say only the value."""
    families: dict[str, list[str]] = {}
    for label in run.labels():
        families.setdefault(label.rpartition("=")[0] or label, []).append(label)
    short = {}
    for stem, labels in families.items():
        for place, label in enumerate(labels):
            short[label] = label.removeprefix(f"{stem}=") if place and len(labels) > 2 else label
    return short


def _mix(colour: str, other: str, share: float) -> str:
    mixed = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return str(to_hex((float(mixed[0]), float(mixed[1]), float(mixed[2]))))


def _scale_x(axes: Sequence[Axes], values: np.ndarray, log_from: float) -> None:
    """Logarithmic where the range asks for it, with plain numbers at 1, 2, 5."""
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() >= log_from * values.min():
        for ax in axes:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.xaxis.set_minor_locator(ticker.NullLocator())
            ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _wrapped_title(ax: Axes, text: str, inches: float) -> None:
    """A title no wider than the inches: 11 bold letters to each."""
    width = max(12, int(11 * inches))
    ax.set_title("\n".join(textwrap.wrap(text.replace("× base", "×\u00a0base"), width)))


def _errors(row: pd.Series, centre: str, low: str, high: str) -> np.ndarray:
    """[2, 1] distances to the interval's ends for errorbar; zero where there is no interval."""
    ends = np.array([[row[centre] - row[low]], [row[high] - row[centre]]], dtype=float)
    return np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)

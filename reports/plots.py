"""The plots of a run, each drawn from the summary as it stands: PNG and SVG, the same bytes every time.

Hue says the method, its shade the setting, the marker the condition (network). The fastest case wears a ring and bold letters.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from reports.load import PARTS, Picture, Run, axis_label, finding, is_base, number, significant, split_unit
from reports.load import condition as condition_text

INK, MUTED, GRID = "#1b1f24", "#5c6470", "#e4e7eb"
# Okabe and Ito's colours, told apart with any colour vision; the known methods keep theirs from run to run.
HUES = {"base": "#4d4d4d", "ciar": "#d55e00", "code": "#0072b2", "device-only": "#009e73", "lantern": "#cc79a7"}
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
LOG_LATENCY_FROM, LOG_SWEEP_FROM = 4.0, 8.0  # an axis is logarithmic where its largest value is this many times its smallest
SHARED_UP_TO = 4.0  # bars of all conditions share a scale unless the longest of one is this many times another's


def draw_plots(run: Run) -> dict[str, bytes]:
    """Every plot that the run allows, as file name -> bytes; order of the names is order of the report."""
    files: dict[str, bytes] = {}
    with _style():
        figures: dict[str, Figure] = {}
        if np.isfinite(run.summary["latency_mean_s"]).any():
            figures["latency_quality"] = latency_quality(run)
            figures["latency_parts"] = latency_parts(run)
            figures |= {sweep_name(key): sweep(run, key) for key in numeric_axes(run)}
        if (run.queue["queued"] + run.queue["admission"]).any():
            figures["queue_over_time"] = queue_over_time(run)
        if grid_prompts(run):
            figures["image_grid"] = image_grid(run)
        for name, figure in figures.items():
            files[f"{name}.png"] = _render(figure, "png")
            figure.set_layout_engine("none")  # it stands in parts of the figure, and need not be worked out again
            files[f"{name}.svg"] = _render(figure, "svg")
    return files


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
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04))
    FigureCanvasAgg(figure)
    return figure


def _foot(figure: Figure, run: Run, text: str = "") -> None:
    """The line under every plot: how to read it, and what the latency stands for."""
    lines = [part for part in (text, run.as_if) if part]
    width = int(figure.get_figwidth() * 16.5)
    wrapped = "\n".join("\n".join(textwrap.wrap(line, width)) for line in lines)
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=8, color=MUTED)


def sweep_name(key: str) -> str:
    """File name, without ending, of the plot along a swept key."""
    return "sweep_" + "".join(letter if letter.isalnum() else "_" for letter in key)


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


# ---- direct labels ----------------------------------------------------------------------------------------------------


class _Label(NamedTuple):
    x: float
    y: float
    text: str
    colour: str
    bold: bool


_PLACES = [(9, 0, "left"), (0, 11, "center"), (0, -11, "center"), (-9, 0, "right"), (8, 9, "left"), (8, -9, "left")]
_PLACES += [(-8, 9, "right"), (-8, -9, "right"), (0, 22, "center"), (0, -22, "center"), (12, 19, "left"), (12, -19, "left")]
_PLACES += [(-12, 19, "right"), (-12, -19, "right"), (14, 30, "left"), (14, -30, "left"), (-14, 30, "right"), (-14, -30, "right")]


def _place_labels(ax: Axes, labels: Sequence[_Label], marks: Sequence[tuple[float, float]]) -> None:
    """Write labels beside their points where they cover least: each takes the best of a few fixed places, in order."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = ax.get_window_extent(renderer)
    boxes = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in ax.transData.transform(np.array(marks))] if marks else []
    for label in labels:
        best: tuple[float, Any, Bbox] | None = None
        for rank, (dx, dy, align) in enumerate(_PLACES):
            text = ax.annotate(
                label.text,
                (label.x, label.y),
                (dx, dy),
                textcoords="offset points",
                ha=align,
                va="center",
                color=_mix(label.colour, "black", 0.25),
                fontsize=8,
                fontweight="bold" if label.bold else "normal",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": "#b6bcc5", "lw": 0.6, "shrinkB": 5} if abs(dy) > 15 else None,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).padded(1.0)  # of the words, not of the thin line to them
            outside = box.width * box.height - _overlap(box, frame)
            cost = rank * 12.0 + sum(_overlap(box, other) for other in boxes) + 3.0 * outside
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
        if best is not None:
            boxes.append(best[2])


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))


# ---- latency against quality ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A quality metric that plots show: its column, what stands at the axis, and how it is read."""

    name: str
    title: str
    reading: str

    @property
    def ends(self) -> tuple[str, str]:
        return f"{self.name}_lo", f"{self.name}_hi"


FD_SCENES = Metric("fd_scenes", "fd_scenes", "fd_scenes is a distance to real renders: lower is better, at equal numbers of images.")
CLOUD_NLL = Metric(
    "cloud_nll",
    "cloud_nll (nats per token)",
    "cloud_nll is read two-sided: far from base's line on either side means other pictures, and lower is not better.",
)


def quality_metric(run: Run) -> Metric:
    """fd_scenes where every case that ran has it, else cloud_nll, which any number of images gives."""
    ran = run.summary[np.isfinite(run.summary["latency_mean_s"])]
    return FD_SCENES if len(ran) and np.isfinite(ran["fd_scenes"]).all() else CLOUD_NLL


def latency_quality(run: Run) -> Figure:
    """Mean latency against `quality_metric` (base is the reference line), and against the share of the caption's attributes in the
    pictures, or the shares of greedy tokens where that is not known.

    A column of two panels per condition up to six conditions; beyond, a table of speed-ups in their place.
    """
    panels = list(run.conditions())
    if len(panels) > MOST_CONDITIONS:
        return _speed_table(run)
    metric = quality_metric(run)
    aligned = bool(np.isfinite(run.summary["align_scenes"]).any())
    shares = [("align_scenes", 100.0, True)] if aligned else [("base_greedy_pct", 1.0, True), ("cloud_greedy_pct", 1.0, False)]
    across = min(len(panels), 3)
    blocks = math.ceil(len(panels) / across)
    figure = _figure(max(4.3 * across, 6.8), 5.6 * blocks + 0.9)
    grid = figure.subplots(2 * blocks, across, squeeze=False, height_ratios=[1.35, 1.0] * blocks)
    hue = colours(run)
    short = short_labels(run)
    markers = {condition: MARKERS[i] for i, (condition, _) in enumerate(panels)}
    pending: list[tuple[Axes, list[_Label], list[tuple[float, float]]]] = []
    used: list[Axes] = []
    for place, (condition, cases) in enumerate(panels):
        upper, lower = grid[2 * (place // across)][place % across], grid[2 * (place // across) + 1][place % across]
        used += [upper, lower]
        said = finding(condition, cases, where=len(panels) > 1)
        _wrapped_title(upper, said.title, figure.get_figwidth() / across - 0.9)
        labels: list[_Label] = []
        marks: list[tuple[float, float]] = []
        low_marks: list[tuple[float, float]] = []
        for family, rows in cases.groupby(cases["label"].str.rpartition("=")[0], sort=False):
            if family and len(rows) > 2:
                upper.plot(rows["latency_mean_s"], rows[metric.name], color=hue[rows["label"].iloc[0]], lw=0.9, zorder=1)
        shown = cases[np.isfinite(cases["latency_mean_s"])]
        crowded = len(shown) > MOST_LABELS
        for _, row in shown.iterrows():
            colour, marker = hue[row["label"]], markers[row["condition"]]
            fastest = row["label"] == said.fastest
            across_x = _errors(row, "latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s")
            x, y = float(row["latency_mean_s"]), float(row[metric.name])
            bar = {"fmt": "none", "ecolor": colour, "elinewidth": 1.2, "alpha": 0.75}
            if math.isfinite(y):
                if is_base(row):
                    upper.axhline(y, color=HUES["base"], lw=1.0, ls=(0, (4, 3)), zorder=1)
                    if math.isfinite(row[metric.ends[0]]):
                        upper.axhspan(*row[[*metric.ends]], color=HUES["base"], alpha=0.08, lw=0)
                upper.errorbar(x, y, xerr=across_x, yerr=_errors(row, metric.name, *metric.ends), **bar)
                upper.plot(x, y, marker, color=colour, ms=7, mec="white", mew=0.8, zorder=4)
                if fastest:
                    upper.plot(x, y, "o", ms=14, mfc="none", mec=INK, mew=1.3, zorder=5)
                marks.append((x, y))
                if not crowded or fastest or is_base(row):
                    labels.append(_Label(x, y, short[row["label"]], colour, fastest))
            for column, scale, filled in shares:
                share = scale * float(row[column])
                if math.isfinite(share):
                    ends = scale * _errors(row, column, f"{column}_lo", f"{column}_hi")
                    lower.errorbar(x, share, xerr=across_x, yerr=ends, **bar)
                    lower.plot(x, share, marker, ms=6.5, mfc=colour if filled else "white", mec=colour, mew=1.4, zorder=4)
                    low_marks.append((x, share))
        pending.append((upper, labels, marks))
        upper.set_ylabel(metric.title)
        lower.set_ylabel("caption's attributes read (%)" if aligned else "greedy agreement (%)")
        lower.set_xlabel("mean latency per image (s)")
        upper.tick_params(labelbottom=False)
        if place % across:
            upper.set_ylabel("")
            lower.set_ylabel("")
    for index in range(len(panels), blocks * across):
        grid[2 * (index // across)][index % across].set_axis_off()
        grid[2 * (index // across) + 1][index % across].set_axis_off()
    _share(used[::2], used[1::2], run.summary, metric, [(column, scale) for column, scale, _ in shares])
    dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 6.5, "mec": MUTED}
    handles: list[Line2D] = []
    if not aligned:
        handles += [Line2D([], [], **dot, mfc=MUTED, label="equal to base's greedy token (%)")]
        handles += [Line2D([], [], **dot, mfc="white", mew=1.4, label="equal to the cloud's arg max (%)")]
    ring = Line2D([], [], ls="", marker="o", ms=11, mfc="none", mec=INK, mew=1.3, label="lowest mean latency")
    reference = Line2D([], [], color=HUES["base"], lw=1.0, ls=(0, (4, 3)), label=f"base's {metric.name}, 95 % band")
    with_base = any(is_base(row) for _, row in run.summary.iterrows())
    handles = [ring, *([reference] if with_base else []), *handles]
    if max(len(cases) for _, cases in panels) > MOST_LABELS:
        handles += [Line2D([], [], ls="", marker="o", color=hue[label], label=label) for label in run.labels()[:24]]
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.6)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=8)
    _foot(
        figure,
        run,
        f"Left is sooner. {metric.reading} Bars are 95 % intervals: latency over requests, quality over distinct images.",
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax, labels, marks in pending:
        _place_labels(ax, labels, marks)
    return figure


def _speed_table(run: Run) -> Figure:
    """A row per method, a column per condition: colour and first line the speed-up, second line the mean latency in seconds."""
    conditions, labels = [name for name, _ in run.conditions()], run.labels()
    columns = [conditions[i] for i in sorted({round(i) for i in np.linspace(0, len(conditions) - 1, min(len(conditions), MOST_COLUMNS))})]
    rows = labels[:MOST_ROWS]
    first = run.summary.drop_duplicates(["label", "condition"]).set_index(["label", "condition"])
    cells = first.reindex(pd.MultiIndex.from_product([rows, columns]))
    speed = cells["speedup"].to_numpy(dtype=float).reshape(len(rows), len(columns))
    seconds = cells["latency_mean_s"].to_numpy(dtype=float).reshape(len(rows), len(columns))
    figure = _figure(max(6.8, 2.8 + 0.75 * len(columns)), 2.6 + 0.42 * len(rows))
    ax = figure.subplots()
    logs = np.log2(np.where(speed > 0, speed, math.nan))
    top = max(1.0, float(np.nanmax(np.abs(logs)))) if np.isfinite(logs).any() else 1.0
    ax.imshow(logs, cmap=mpl.colormaps["PuOr"].with_extremes(bad=GRID), vmin=-top, vmax=top, aspect="auto")
    for y, x in np.ndindex(*speed.shape):
        gain = float(speed[y, x])
        if math.isfinite(seconds[y, x]):
            gained = [f"{significant(gain, 2)}×"] if math.isfinite(gain) else []
            dark = bool(abs(logs[y, x]) > 0.65 * top)
            said = "\n".join([*gained, f"{significant(float(seconds[y, x]))} s"])
            ax.text(x, y, said, ha="center", va="center", fontsize=7, color="white" if dark else INK)
    ax.set_xticks(range(len(columns)), [textwrap.shorten(name, 40, placeholder="…") for name in columns], rotation=40, ha="right")
    ax.set_yticks(range(len(rows)), [textwrap.shorten(label, 36, placeholder="…") for label in rows])
    ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    _wrapped_title(ax, f"Speed-up against base under {len(conditions)} conditions", figure.get_figwidth() - 2.6)
    notes = ["In each cell the speed-up, with the mean latency under it. Violet is faster than base, orange slower, on a log scale."]
    if len(columns) < len(conditions) or len(rows) < len(labels):
        notes.append(f"{len(columns)} of {len(conditions)} conditions, {len(rows)} of {len(labels)} methods.")
    _foot(figure, run, " ".join(notes))
    return figure


def _share(
    upper: Sequence[Axes], lower: Sequence[Axes], summary: pd.DataFrame, metric: Metric, columns: Sequence[tuple[str, float]]
) -> None:
    """One latency scale and one quality scale for all panels, with room for the labels."""
    ends = summary[["latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s"]].to_numpy(dtype=float)
    _scale_x([*upper, *lower], ends, LOG_LATENCY_FROM)
    finite = ends[np.isfinite(ends)]
    low, high = float(finite.min()), float(finite.max())
    log = upper[0].get_xscale() == "log"
    room = high - low + 0.1 * high
    limits = (low / 1.35, high * 1.6) if log else (max(0.0, low - 0.15 * room), high + 0.22 * room)
    quality = summary[[metric.name, *metric.ends]].to_numpy(dtype=float)
    quality = quality[np.isfinite(quality)]
    for ax in (*upper, *lower):
        ax.set_xlim(*limits)
    shares = np.concatenate([scale * summary[name].to_numpy(dtype=float) for name, scale in columns])
    shares = shares[np.isfinite(shares)]
    for ax in lower:
        ax.set_ylim(-3, min(104.0, 1.15 * float(shares.max()) + 3) if len(shares) else 104.0)
    for ax in upper:
        if len(quality):
            room = 0.14 * (quality.max() - quality.min()) + 1e-2 * abs(quality.max())
            ax.set_ylim(quality.min() - room, quality.max() + room)


# ---- where the seconds go ---------------------------------------------------------------------------------------------


def latency_parts(run: Run) -> Figure:
    """The ten parts of the mean latency as stacked bars, a bar per case, a panel per condition."""
    groups = [(condition, cases[np.isfinite(cases["latency_mean_s"])]) for condition, cases in run.conditions()]
    groups = [(condition, cases) for condition, cases in groups if len(cases)]
    titles = {condition: finding(condition, cases, where=len(groups) > 1) for condition, cases in groups}  # of all, shown or not
    groups = [(condition, cases.iloc[:MOST_BARS]) for condition, cases in groups]
    shown = [groups[i] for i in sorted({round(i) for i in np.linspace(0, len(groups) - 1, min(len(groups), MOST_CONDITIONS))})]
    heights = [len(cases) + 1.6 for _, cases in shown]
    figure = _figure(10.0, 0.30 * sum(heights) + 1.9)
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    longest = [float(cases["latency_mean_s"].max()) for _, cases in shown]
    shared = max(longest) <= SHARED_UP_TO * min(longest)
    for ax, (condition, cases), longest_here in zip(axes, shown, longest, strict=True):
        said = titles[condition]
        _wrapped_title(ax, said.title, 7.2)
        top = max(longest) if shared else longest_here
        left = np.zeros(len(cases))
        at = np.arange(len(cases))
        for part in PARTS:
            seconds = cases[part].to_numpy(dtype=float)
            ax.barh(at, seconds, left=left, height=0.72, color=PART_COLOURS[part], ec="white", lw=0.5)
            left = left + np.nan_to_num(seconds)
        for place, (_, row) in enumerate(cases.iterrows()):
            gain = "" if is_base(row) or not math.isfinite(row["speedup"]) else f"  ({significant(row['speedup'], 2)}× base)"
            bold = "bold" if row["label"] == said.fastest else "normal"
            text = f"{significant(row['latency_mean_s'])} s{gain}"
            ax.text(left[place] + 0.008 * top, place, text, va="center", fontsize=8, fontweight=bold)
        ax.set_yticks(at, [textwrap.shorten(label, 36, placeholder="…") for label in cases["label"]], color=INK)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(cases) - 0.45, -0.55)
        ax.set_xlim(0, top * 1.2)
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
    axes[-1].set_xlabel("mean seconds per image along the critical path (s)")
    handles = [Patch(color=PART_COLOURS[part], label=part.removesuffix("_s").replace("_", " ")) for part in PARTS]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8, handlelength=1.1, handleheight=1.1)
    notes = ["Blue: device. Orange: network. Green: cloud. Purple: caption encoder."]
    if not shared:
        notes.append("Each panel has its own scale.")
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} conditions.")
    if max(len(cases) for _, cases in run.conditions()) > MOST_BARS:
        notes.append(f"The first {MOST_BARS} methods of each.")
    _foot(figure, run, " ".join(notes))
    return figure


# ---- the cloud over time ---------------------------------------------------------------------------------------------


def queue_over_time(run: Run) -> Figure:
    """Requests that wait in the cloud against time, a panel per condition, a line per method; the methods with the longest queues."""
    queue = run.queue.assign(waiting=run.queue["queued"] + run.queue["admission"])
    groups = list(run.conditions())
    shown = [groups[i] for i in sorted({round(i) for i in np.linspace(0, len(groups) - 1, min(len(groups), MOST_CONDITIONS))})]
    hue, mean = colours(run), queue.groupby("case")["waiting"].mean()
    figure = _figure(10.0, 1.9 * len(shown) + 1.4)
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    seen: dict[str, None] = {}
    for ax, (condition, cases) in zip(axes, shown, strict=True):
        ax.set_title(condition)
        longest = cases.assign(mean=cases["case"].map(mean)).dropna(subset="mean").nlargest(MOST_LABELS, "mean", keep="first")
        for _, row in longest.sort_index().iterrows():
            one = queue[queue["case"] == row["case"]]
            ax.plot(one["time_s"], one["waiting"], drawstyle="steps-post", color=hue[row["label"]], lw=1.1)
            seen[row["label"]] = None
        ax.set_ylim(bottom=0)
        ax.set_ylabel("waiting")
        ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes[-1].set_xlabel("simulated time (s)")
    handles = [Line2D([], [], color=hue[label], label=textwrap.shorten(label, 36, placeholder="…")) for label in seen]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=8)
    notes = ["Requests that wait in the cloud, for a batch or for admission, looked at 240 times in the duration of the arrivals."]
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} conditions.")
    if max(len(cases) for _, cases in groups) > MOST_LABELS:
        notes.append(f"The {MOST_LABELS} methods of each with the longest queues.")
    _foot(figure, run, " ".join(notes))
    return figure


# ---- along a swept axis -----------------------------------------------------------------------------------------------


def numeric_axes(run: Run) -> list[str]:
    """Swept keys with at least two different finite numbers."""
    return [
        key
        for key in run.swept
        if pd.api.types.is_numeric_dtype(run.summary[key])
        and not pd.api.types.is_bool_dtype(run.summary[key])
        and run.summary[key][np.isfinite(run.summary[key].astype(float))].nunique() > 1
    ]


SWEEP_ROWS = (
    ("latency_mean_s", "mean latency (s)", "latency_mean_lo_s", "latency_mean_hi_s"),
    ("cloud_call_pct", "cloud calls (% of tokens)", "", ""),
)  # and the quality metric below


def sweep(run: Run, key: str) -> Figure:
    """Latency, cloud calls and quality against one swept number; a column per choice of the other conditions (up to three)."""
    table = run.summary.copy()
    own = key.startswith("methods.")
    setting = key.rpartition(".")[2]
    others = [other for other in run.swept if other != key and not other.startswith("methods.")]
    rows_of = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    table["series"] = [row["label"].replace(f" {setting}={number(row[key])}", "") if own else row["label"] for row in rows_of]
    table["column"] = [condition_text(row, tuple(others)) for row in rows_of]
    columns = list(dict.fromkeys(table["column"]))
    shown = [columns[i] for i in sorted({round(i) for i in np.linspace(0, len(columns) - 1, min(len(columns), 3))})]
    hue = colours(run)
    shades: dict[str, str] = {}
    for label, series, family in zip(table["label"], table["series"], table["method_name"], strict=True):
        shades.setdefault(str(series), HUES.get(family, hue[label]) if own else hue[label])
    crossed = False
    quality = quality_metric(run)
    measures = (*SWEEP_ROWS, (quality.name, quality.title, *quality.ends))
    figure = _figure(max(4.2 * len(shown), 6.8), 7.6)
    grid = figure.subplots(3, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=[1.4, 1, 1])
    for place, column in enumerate(shown):
        cases = table[table["column"] == column]
        for row_index, (metric, text, low, high) in enumerate(measures):
            ax = grid[row_index][place]
            for series, rows in cases.groupby("series", sort=False):
                points = rows[np.isfinite(rows[key].astype(float)) & np.isfinite(rows[metric])].sort_values(key)
                colour = shades[str(series)]
                if points.empty:  # a method that the axis does not concern
                    level = rows[metric][np.isfinite(rows[metric])]
                    if len(level):
                        ax.axhline(float(level.iloc[0]), color=colour, lw=1.3, ls=(0, (4, 3)))
                    continue
                ax.plot(points[key], points[metric], "-o", color=colour, ms=5, mec="white", mew=0.7, lw=1.6)
                if low:
                    ends = points[[low, high]].to_numpy(dtype=float)
                    ax.fill_between(points[key], ends[:, 0], ends[:, 1], color=colour, alpha=0.13, lw=0)
            if place == 0:
                ax.set_ylabel(text)
        title = f"{column}: {_along(cases, key)}" if column else _along(cases, key)
        for series, at, level in [] if own else break_evens(cases, key):
            grid[0][place].plot(at, level, "X", color=shades[series], ms=8, mec="white", mew=0.9, zorder=5)
            crossed = True
        _wrapped_title(grid[0][place], title, figure.get_figwidth() / len(shown) - 0.9)
        grid[2][place].set_xlabel(axis_label(key))
    _scale_x([ax for row in grid for ax in row], table[key].to_numpy(dtype=float), LOG_SWEEP_FROM)
    for row in (0, 1):
        grid[row][0].set_ylim(bottom=0)
    line: dict[str, Any] = {"marker": "o", "ms": 5, "lw": 1.6}
    handles = [Line2D([], [], color=colour, label=series, **line) for series, colour in list(shades.items())[:24]]
    figure.legend(handles=handles, loc="outside upper left", ncols=max(1, int(figure.get_figwidth() / 2.2)), fontsize=8)
    notes = ["Bands are 95 % intervals."]
    if crossed:
        notes.append("Crosses: break-even with base, on straight lines between the runs.")
    values = table[key].to_numpy(dtype=float)
    if np.isinf(values).any():
        notes.append(f"Not on the axis: {split_unit(key)[0]} {', '.join(dict.fromkeys(map(number, values[np.isinf(values)])))}.")
    if own:
        notes.append("Dashed: methods without this setting.")
    if len(shown) < len(columns):
        notes.append(f"{len(shown)} of {len(columns)} conditions.")
    _foot(figure, run, " ".join(notes))
    return figure


def _along(cases: pd.DataFrame, key: str) -> str:
    """Who has the lowest mean latency along the axis, in words."""
    name, unit = split_unit(key)
    ran = cases[np.isfinite(cases["latency_mean_s"])]
    if ran.empty:
        return "no request was answered"
    if key.startswith("methods."):
        best = ran.loc[ran["latency_mean_s"].idxmin()]
        gain = f" ({significant(best['speedup'], 2)}× base)" if math.isfinite(best["speedup"]) and not is_base(best) else ""
        return f"lowest mean latency: {best['label']}{gain}"
    winners: list[tuple[str, float, float]] = []
    for value, rows in ran[np.isfinite(ran[key].astype(float))].groupby(key):
        label = str(rows.loc[rows["latency_mean_s"].idxmin(), "label"])
        at = float(value)
        if winners and winners[-1][0] == label:
            winners[-1] = (label, winners[-1][1], at)
        else:
            winners.append((label, at, at))
    text = f"{winners[0][0]} has the lowest mean at every {name}"
    spans = [f"{winners[0][0]} up to {number(winners[0][2])} {unit}".rstrip()]
    spans += [f"{label} from {number(first)} {unit}".rstrip() for label, first, _ in winners[1:]]
    if len(winners) > 1:
        text = f"lowest mean by {name}: {', '.join(spans)}"
    evens = sorted(break_evens(cases, key), key=lambda even: -even[1])
    if not evens:
        return text
    return f"{text}; {evens[0][0]} breaks even with base at about {significant(evens[0][1], 2)} {unit}".rstrip()


def break_evens(cases: pd.DataFrame, key: str) -> list[tuple[str, float, float]]:
    """(label, axis value, seconds) where a method's mean latency crosses base's, on straight lines between the runs.

    Only where the intervals of the speed-up lie on different sides of 1 at the two runs.
    """
    lines = {
        str(label): rows[np.isfinite(rows[key].astype(float)) & np.isfinite(rows["latency_mean_s"])].sort_values(key)
        for label, rows in cases.groupby("label", sort=False)
    }
    base = next((rows for rows in lines.values() if len(rows) and is_base(rows.iloc[0])), None)
    found = []
    for label, rows in lines.items():
        if base is None or rows.empty or is_base(rows.iloc[0]) or list(rows[key]) != list(base[key]):
            continue
        x, line = rows[key].to_numpy(dtype=float), rows["latency_mean_s"].to_numpy(dtype=float)
        gap = line - base["latency_mean_s"].to_numpy(dtype=float)
        side = np.sign(np.where(rows["speedup_lo"] > 1, 1, 0) - np.where(rows["speedup_hi"] < 1, 1, 0))
        for i in np.nonzero((gap[:-1] * gap[1:] < 0) & (side[:-1] * side[1:] < 0))[0]:
            share = gap[i] / (gap[i] - gap[i + 1])
            found.append((label, float(x[i] + share * (x[i + 1] - x[i])), float(line[i] + share * (line[i + 1] - line[i]))))
    return found


# ---- pictures ---------------------------------------------------------------------------------------------------------

NO_SCORE = "#e3e6ea"
MAP_COLOURS = mpl.colormaps["cividis"].with_extremes(bad=NO_SCORE)
WHO_COLOURS = ListedColormap([PART_COLOURS["cloud_compute_s"], PART_COLOURS["device_compute_s"]]).with_extremes(bad=NO_SCORE)
MAP_TITLES = {"uncertainty": "uncertainty", "decided": "who decided"}


def grid_columns(run: Run) -> list[tuple[str, str]]:
    """(method, kind) of the picture grid's columns: each method's images, its maps beside them."""
    methods = list(dict.fromkeys(picture.method for picture in run.pictures))[:MOST_METHODS]
    there = {(picture.method, picture.kind) for picture in run.pictures}
    return [(method, kind) for method in methods for kind in ("image", "uncertainty", "decided") if (method, kind) in there]


def grid_note(run: Run) -> str:
    """What a reader of the picture grid is to know, methods that do not stand in it among it."""
    there = len({picture.method for picture in run.pictures})
    left_out = f" The first {MOST_METHODS} of {there} methods." if there > MOST_METHODS else ""
    return f"A row is one prompt with one seed.{left_out}"


def grid_prompts(run: Run) -> dict[int, str]:
    """The first prompts of the grid and their texts, in order of their numbers; none where no request was answered."""
    if not run.summary["images"].any():
        return {}
    texts = {picture.prompt: picture.text for picture in run.pictures if picture.kind == "image"}
    return {prompt: texts[prompt] for prompt in sorted(texts)[:MOST_PROMPTS]}


def uncertainty_top(run: Run) -> float:
    """Upper end of the colours of all uncertainty maps: their 98th percentile, so that one token does not darken the rest."""
    values = [picture.pixels[np.isfinite(picture.pixels)] for picture in run.pictures if picture.kind == "uncertainty"]
    joined = np.concatenate(values) if values else np.empty(0)
    top = float(np.percentile(joined, 98)) if len(joined) else 0.0
    return top if top > 0 else 1.0


def map_rgb(picture: Picture, top: float) -> np.ndarray:
    """uint8 [h, w, 3] of a picture as it is shown: images as they are, maps in colours."""
    if picture.kind == "image":
        return picture.pixels
    table, scale = (MAP_COLOURS, top) if picture.kind == "uncertainty" else (WHO_COLOURS, 1.0)
    values = np.ma.masked_invalid(picture.pixels / scale)
    return np.asarray(table(np.clip(values, 0.0, 1.0), bytes=True))[..., :3]


def image_grid(run: Run) -> Figure:
    """Rows are prompts, columns methods; beside a method its maps of uncertainty and of who decided each token."""
    columns, prompts, top = grid_columns(run), grid_prompts(run), uncertainty_top(run)
    by_place = {(picture.method, picture.kind, picture.prompt): picture for picture in run.pictures}
    maps = {kind for _, kind in columns} & set(MAP_TITLES)
    # All lengths in inches: the columns of one method stand closer than the methods do.
    size = 1.6 if len(columns) <= 8 else 1.2
    starts: list[float] = []
    edge = 1.95
    for _, kind in columns:
        edge += 0.0 if not starts else 0.22 if kind == "image" else 0.07
        starts.append(edge)
        edge += size
    above, below, gap = 0.62, 0.9 if maps else 0.4, 0.12
    width, height = max(edge + 0.15, 6.8), above + len(prompts) * (size + gap) + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for y, (prompt, text) in enumerate(prompts.items()):
        bottom = height - above - (y + 1) * size - y * gap
        wrapped = "\n".join(textwrap.wrap(text, 24)[:7])
        figure.text(1.8 / width, (bottom + size / 2) / height, wrapped, ha="right", va="center", fontsize=8, linespacing=1.35)
        for start, (method, kind) in zip(starts, columns, strict=True):
            ax = figure.add_axes((start / width, bottom / height, size / width, size / height))
            ax.set_axis_off()
            picture = by_place.get((method, kind, prompt))
            if picture is not None:
                ax.imshow(map_rgb(picture, top), interpolation="nearest")
            if y == 0:
                title = "\n".join(textwrap.wrap(method if kind == "image" else MAP_TITLES[kind], int(size * 12)))
                weight = "bold" if kind == "image" else "normal"
                at = ((start + size / 2) / width, (bottom + size + 0.08) / height)
                figure.text(*at, title, ha="center", fontsize=8, fontweight=weight)
    if "uncertainty" in maps:
        bar = figure.add_axes((starts[0] / width, (below - 0.22) / height, 2.4 / width, 0.11 / height))
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, top), MAP_COLOURS)
        figure.colorbar(scale, cax=bar, orientation="horizontal", extend="max").outline.set_visible(False)
        bar.tick_params(labelsize=7, length=2)
        bar.set_xlabel("uncertainty of the token (no unit)", fontsize=8, labelpad=2)
    handles = [Patch(color=WHO_COLOURS(1), label="device decided"), Patch(color=WHO_COLOURS(0), label="cloud decided")]
    handles = handles if "decided" in maps else []
    handles += [Patch(color=NO_SCORE, label="no score")] if "uncertainty" in maps else []
    if handles:
        place = ((starts[0] + (2.6 if "uncertainty" in maps else 0.0)) / width, (below - 0.05) / height)
        look: dict[str, Any] = {"ncols": 3, "fontsize": 8, "borderaxespad": 0, "handlelength": 1.1}
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, **look)
    figure.text(0.15 / width, 0.12 / height, grid_note(run), fontsize=8, color=MUTED)
    return figure

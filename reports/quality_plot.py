"""Latency against quality, one panel per condition."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.figure import (
    GRID,
    HUES,
    INK,
    LOG_LATENCY_FROM,
    MARKERS,
    MOST_COLUMNS,
    MOST_CONDITIONS,
    MOST_LABELS,
    MOST_ROWS,
    MUTED,
    _errors,
    _figure,
    _foot,
    _scale_x,
    _wrapped_title,
    colours,
    short_labels,
)
from reports.findings import finding, is_base
from reports.labels import _Label, _place_labels
from reports.load import Run
from reports.words import significant

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


FD_SCENES = Metric(
    "fd_scenes", "fd_scenes", "fd_scenes is a distance to real renders: lower is better, at equal numbers of images."
)
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
    shares = (
        [("align_scenes", 100.0, True)]
        if aligned
        else [("base_greedy_pct", 1.0, True), ("cloud_greedy_pct", 1.0, False)]
    )
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
                upper.plot(
                    rows["latency_mean_s"], rows[metric.name], color=hue[rows["label"].iloc[0]], lw=0.9, zorder=1
                )
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
                    lower.plot(
                        x, share, marker, ms=6.5, mfc=colour if filled else "white", mec=colour, mew=1.4, zorder=4
                    )
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
    columns = [
        conditions[i]
        for i in sorted({round(i) for i in np.linspace(0, len(conditions) - 1, min(len(conditions), MOST_COLUMNS))})
    ]
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
    ax.set_xticks(
        range(len(columns)), [textwrap.shorten(name, 40, placeholder="…") for name in columns], rotation=40, ha="right"
    )
    ax.set_yticks(range(len(rows)), [textwrap.shorten(label, 36, placeholder="…") for label in rows])
    ax.tick_params(length=0, labelcolor=INK, labelsize=8)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    _wrapped_title(ax, f"Speed-up against base under {len(conditions)} conditions", figure.get_figwidth() - 2.6)
    notes = [
        "In each cell the speed-up, with the mean latency under it. Violet is faster than base, orange slower, on a log scale."
    ]
    if len(columns) < len(conditions) or len(rows) < len(labels):
        notes.append(f"{len(columns)} of {len(conditions)} conditions, {len(rows)} of {len(labels)} methods.")
    _foot(figure, run, " ".join(notes))
    return figure


def _share(
    upper: Sequence[Axes],
    lower: Sequence[Axes],
    summary: pd.DataFrame,
    metric: Metric,
    columns: Sequence[tuple[str, float]],
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

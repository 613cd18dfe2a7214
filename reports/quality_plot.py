"""Plots of mean latency against quality in small multiples with the Pareto front, and of speed-ups under many conditions."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from reports.figure import (
    EVENLY,
    GRID,
    INK,
    MUTED,
    PAGE,
    Form,
    error_bars,
    finish,
    handle,
    laid_out,
    left_out,
    new_figure,
    scale_x,
    spread,
    text_width,
    wrapped_title,
)
from reports.findings import Finding, best_labels, finding, is_base, quality_metric
from reports.labels import Label, place_labels
from reports.load import Run
from reports.looks import METHOD_LOOKS, Look, looks
from reports.metrics import LATENCY, Metric, alignment
from reports.words import clipped, number, significant, split_unit, times
from simulator.core.errors import counted
from simulator.results.columns import interval_columns

MOST_PANELS, MOST_COMPACT_PANELS = 12, 8
TWO_ROWS_UP_TO = 6  # number of conditions up to which each has a second quality panel
MOST_LABELS = 8  # points of a panel up to which all are labelled; with more only the Pareto front, the fastest and base
MOST_IN_LEGEND = 24
LOG_FROM = 4.0  # least ratio of largest and smallest latency for a logarithmic axis
MOST_COLUMNS, MOST_ROWS = 16, 40  # of the table of speed-ups
BASE_COLOUR = METHOD_LOOKS["base"][0]


class _Share(NamedTuple):
    """A share drawn in the lower panels: column, factor to percent, and whether the marker is filled."""

    name: str
    scale: float
    filled: bool


def faceted(run: Run, findings: Sequence[Finding], by: str | None) -> list[Finding]:
    """Return a finding per panel: per condition, or per value of the swept key `by` with the cases of all other conditions."""
    if by is None:
        return list(findings)
    metric = quality_metric(run)
    name, unit = split_unit(by)
    panels = []
    for value, cases in run.summary.groupby(by, sort=False):
        title = f"{name} {number(value)} {unit}".strip()
        front = finding(title, cases, metric)
        panels.append(front if cases["condition"].nunique() == 1 else Finding(title, title, (), cases, front.fastest))
    return panels


def latency_quality(run: Run, findings: Sequence[Finding], form: Form = PAGE, *, shares: bool = True) -> Figure:
    """Draw mean latency against `quality_metric`, and in lower panels against the share of the caption's attributes in the images.

    If that share is unknown, the lower panels show the shares of greedy tokens. There are no lower panels with more than six conditions,
    in a narrow figure, or if `shares` is False. Of more than twelve conditions (eight in a narrow figure), evenly spaced ones are drawn.
    The stairs are the Pareto front, whose methods are labelled.
    """
    shown = spread(findings, MOST_COMPACT_PANELS if form.compact else MOST_PANELS)
    metric = quality_metric(run)
    aligned = alignment(run.summary)
    many = len(shown) > TWO_ROWS_UP_TO
    below = [] if many or form.compact or not shares else _shares(aligned)
    across = min(len(shown), (2 if len(shown) > 3 else 1) if form.compact else 4 if many else 3)
    blocks = math.ceil(len(shown) / across)
    high = 1.7 if form.compact else 5.6 if below else 3.4
    figure = new_figure(max(4.3 * across, 6.8), high * blocks, form)
    heights = [1.35, 1.0] if below else [1.0]
    grid = figure.subplots(len(heights) * blocks, across, squeeze=False, height_ratios=heights * blocks)
    columns = [
        column for block in np.split(grid, blocks) for column in block.T
    ]  # the upper panel, and the lower one if any
    look = looks(run.series)
    pending: list[tuple[Axes, list[Label], list[tuple[float, float]]]] = []
    for place, (said, column) in enumerate(zip(shown, columns, strict=False)):
        upper, lowest = column[0], column[-1]
        in_full = form.titles and not (form.compact and across > 1)  # half the figure is too narrow for a sentence
        heading = said.heading if in_full else said.condition if len(shown) > 1 else ""
        wrapped_title(upper, heading, figure.get_figwidth() / across - (0.5 if form.compact else 0.9))
        pending.append((upper, *_quality_panel(upper, said, metric, look, form)))
        if place % across == 0:
            upper.set_ylabel(metric.upright)
        if below:
            _share_panel(lowest, said, below, look)
            upper.tick_params(labelbottom=False)
            if place % across == 0:
                lowest.set_ylabel(aligned.upright if aligned else "greedy agreement (%)")
        if not form.compact or place + across >= len(shown):
            lowest.set_xlabel(LATENCY.heading)
    for column in columns[len(shown) :]:
        for ax in column:
            ax.set_axis_off()
    drawn = pd.concat([said.cases for said in shown])
    uppers, lowers = ([column[row] for column in columns[: len(shown)]] for row in (0, -1))
    _same_scales(uppers, lowers if below else (), drawn, metric, below)
    entries, missing = _handles(run, shown, look, form, greedy=bool(below) and not aligned)
    notes = [
        f"Left is faster. {metric.reading} Bars are 95 % intervals: latency (mean per image) over requests, quality over distinct images."
    ]
    if any(len(said.front) > 1 for said in shown):
        notes.append("Stairs: the Pareto front of the means.")
    notes.append(left_out(len(shown), len(findings), "conditions", EVENLY))
    if missing:
        notes.append(
            f"The legend leaves out {counted(missing, 'case')}{' beside the front' if any(said.front for said in shown) else ''}."
        )
    finish(figure, form, entries, notes, run.as_if)
    if not form.compact:  # a narrow figure has a legend instead
        laid_out(figure)
        for ax, labels, marks in pending:
            place_labels(ax, labels, marks)
    return figure


def _shares(aligned: Metric | None) -> list[_Share]:
    """Return what the lower panels show: the share of the caption's attributes, or of greedy tokens if that is unknown."""
    if aligned:
        return [_Share(aligned.name, 100.0, True)]
    return [_Share("base_greedy_pct", 1.0, True), _Share("cloud_greedy_pct", 1.0, False)]


def _quality_panel(
    ax: Axes, said: Finding, metric: Metric, look: dict[str, Look], form: Form
) -> tuple[list[Label], list[tuple[float, float]]]:
    """Draw points, intervals, base's line and the Pareto front of one panel. Return the labels to place, and the points to keep free."""
    column = metric.name
    cases = said.cases[np.isfinite(said.cases["latency_mean_s"]) & np.isfinite(said.cases[column])]
    stems = cases["label"].map(lambda label: str(label).rpartition("=")[0])
    families = stems if cases["condition"].nunique() <= 1 else cases["label"]
    for family, rows in cases.groupby(families, sort=False):
        if family and len(rows) > 2:
            one = look[rows["label"].iloc[0]]
            ax.plot(rows["latency_mean_s"], rows[column], color=one.colour, lw=0.9 * form.marker, zorder=1, gid=one.gid)
    labels: list[Label] = []
    marks: list[tuple[float, float]] = []
    with_reference = False
    least_s = cases["latency_mean_s"].min()  # a panel of several conditions has a label several times
    for _, row in cases.iterrows():
        x, y, label = float(row["latency_mean_s"]), float(row[column]), str(row["label"])
        one, fastest = look[label], label == said.fastest and x == least_s and len(cases) > 1
        if is_base(row) and not with_reference:
            with_reference = True
            ax.axhline(y, color=BASE_COLOUR, lw=1.0, ls=(0, (4, 3)), zorder=1)
            ends = row[[*interval_columns(column)]].to_numpy(dtype=float)
            if np.isfinite(ends).all():
                ax.axhspan(ends[0], ends[1], color=BASE_COLOUR, alpha=0.08, lw=0)
        bars = error_bars(row, "latency_mean_s"), error_bars(row, column)
        _bars(ax, x, y, *bars, one, form)
        ax.plot(x, y, ls="", zorder=4, **one.point(7.0 * form.marker))
        if fastest:
            ring: dict[str, Any] = {"ms": 14 * form.marker, "mfc": "none", "mec": INK, "mew": 1.3 * form.marker}
            ax.plot(x, y, "o", zorder=5, **ring)
        marks.append((x, y))
        if len(cases) <= MOST_LABELS or fastest or is_base(row) or label in said.front:
            labels.append(Label(x, y, label, one.colour, fastest, one.gid))
    front = cases[cases["label"].isin(said.front)].sort_values("latency_mean_s", kind="stable")
    if len(front) > 1:
        stairs: dict[str, Any] = {"drawstyle": "steps-post", "color": INK, "lw": 0.9 * form.marker, "alpha": 0.7}
        ax.plot(front["latency_mean_s"], front[column], zorder=2, **stairs)
    once = {
        label.text: label for label in sorted(labels, key=lambda label: label.bold)
    }  # at its ringed point, else at its last one
    short = short_labels(list(dict.fromkeys(label.text for label in labels)))
    labels = [label._replace(text=clipped(short[text])) for text, label in once.items()]
    return sorted(labels, key=lambda label: not label.bold), marks


def _share_panel(ax: Axes, said: Finding, shares: Sequence[_Share], look: dict[str, Look]) -> None:
    for _, row in said.cases[np.isfinite(said.cases["latency_mean_s"])].iterrows():
        x, one = float(row["latency_mean_s"]), look[str(row["label"])]
        for share in shares:
            y = share.scale * float(row[share.name])
            if math.isfinite(y):
                ends = error_bars(row, share.name, share.scale)
                _bars(ax, x, y, error_bars(row, "latency_mean_s"), ends, one, PAGE)
                style = one if share.filled else one._replace(fill="none")
                ax.plot(x, y, ls="", zorder=4, **style.point(6.5))


def _bars(ax: Axes, x: float, y: float, across: np.ndarray, up: np.ndarray, one: Look, form: Form) -> None:
    drawn = ax.errorbar(
        x, y, xerr=across, yerr=up, fmt="none", ecolor=one.colour, elinewidth=1.2 * form.marker, alpha=0.75
    )
    for bar in drawn.lines[2]:
        bar.set_gid(one.gid)


def _handles(
    run: Run, shown: Sequence[Finding], look: dict[str, Look], form: Form, greedy: bool
) -> tuple[list[Line2D], int]:
    """Return the entries of the legend, and the number of cases that it does not name."""
    size = form.marker
    ring: dict[str, Any] = {"marker": "o", "ms": 11 * size, "mfc": "none", "mec": INK, "mew": 1.3 * size}
    several = any(np.isfinite(said.cases["latency_mean_s"]).sum() > 1 for said in shown)
    handles = [Line2D([], [], ls="", **ring, label="lowest mean latency")] if several else []
    if (run.summary["method_name"] == "base").any():
        reference = "base, 95 % band"
        handles.append(Line2D([], [], color=BASE_COLOUR, lw=1.0, ls=(0, (4, 3)), label=reference))
    if greedy:
        dot: dict[str, Any] = {"ls": "", "marker": "o", "ms": 6.5, "mec": MUTED}
        handles.append(Line2D([], [], **dot, mfc=MUTED, label="equal to base's greedy token (%)"))
        handles.append(Line2D([], [], **dot, mfc="white", mew=1.4, label="equal to the cloud's arg max (%)"))
    if max(len(said.cases) for said in shown) <= MOST_LABELS and not form.compact:
        return handles, 0
    most = 12 if form.compact else MOST_IN_LEGEND
    bases = run.summary.loc[run.summary["method_name"] == "base", "label"]
    front = [name for said in shown for name in said.front]
    names = best_labels(run, most, [*bases, *front] if front and len(run.labels()) > most else ())
    handles += [handle(name, look[name], form, line=False) for name in names]
    return handles, len(run.labels()) - len(names)


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return the text at a point by label. If three or more labels differ only in one value, all but the first show only the value."""
    families: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        families.setdefault(label.rpartition("=")[0] or label, []).append(label)
    return {
        label: label.removeprefix(f"{stem}=") if place and len(own) > 2 and "=" not in stem else label
        for stem, own in families.items()
        for place, label in enumerate(own)
    }


def _same_scales(
    uppers: Sequence[Axes], lowers: Sequence[Axes], cases: pd.DataFrame, metric: Metric, shares: Sequence[_Share]
) -> None:
    """Set the same scales of latency and quality for all panels, wide enough for all intervals and labels."""
    ends = cases[["latency_mean_s", *interval_columns("latency_mean_s")]].to_numpy(dtype=float)
    scale_x([*uppers, *lowers], ends, LOG_FROM)
    low, high = _range(ends)
    room = high - low + 0.1 * high
    log = uppers[0].get_xscale() == "log"
    limits = (low / 1.35, high * 1.6) if log else (max(0.0, low - 0.15 * room), high + 0.22 * room)
    for ax in (*uppers, *lowers):
        ax.set_xlim(*limits)
    quality = _with_ends(cases, metric.name)
    if np.isfinite(quality).any():
        low, high = _range(quality)
        room = 0.14 * (high - low) + 1e-2 * abs(high)
        for ax in uppers:
            ax.set_ylim(low - room, high + room)
    if not lowers:
        return
    columns = [share.scale * _with_ends(cases, share.name) for share in shares]
    low, high = _range(np.concatenate([column.ravel() for column in columns]))
    room = 0.05 * max(high, 10.0)  # enough for whole markers at 0, too little for a tick below 0
    for ax in lowers:
        ax.set_ylim(min(0.0, low) - room, max(high, 10.0) + room)


def _with_ends(cases: pd.DataFrame, name: str) -> np.ndarray:
    """Return the values of a metric and, if the cases have them, the ends of its intervals."""
    return cases[[one for one in (name, *interval_columns(name)) if one in cases]].to_numpy(dtype=float)


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest finite value, or 0 and 100 if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 100.0)


def speedup_table(run: Run, form: Form = PAGE) -> Figure:
    """Draw a table of speed-ups: a row per method, a column per condition. A cell has the speed-up, also as colour, and the latency (s)."""
    conditions, labels = [name for name, _ in run.conditions()], run.labels()
    columns = spread(conditions, 5 if form.compact else MOST_COLUMNS)
    rows = best_labels(run, MOST_ROWS)
    first = run.summary.drop_duplicates(["label", "condition"]).set_index(["label", "condition"])
    cells = first.reindex(pd.MultiIndex.from_product([rows, columns]))
    speed = cells["speedup"].to_numpy(dtype=float).reshape(len(rows), len(columns))
    seconds = cells["latency_mean_s"].to_numpy(dtype=float).reshape(len(rows), len(columns))
    width = form.width or max(6.8, 2.8 + 0.75 * len(columns))
    small = FontProperties(size="small").get_size_in_points()
    names = [clipped(label, 24 if form.compact else 36) for label in rows]
    each = (width - max(text_width(name, small) for name in names) - 0.3) / len(columns)
    texts = [clipped(name, 40) for name in columns]
    longest = max(text_width(text, small) for text in texts)
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if longest > each - 0.08 else {}
    more = max(0.0, 0.64 * longest - 0.6) if turned else 0.0  # additional height of rotated labels
    figure = new_figure(width, 1.6 + more + (0.3 if form.compact else 0.42) * len(rows), form)
    ax = figure.subplots()
    logs = np.log2(np.where(speed > 0, speed, math.nan))
    top = max(1.0, float(np.nanmax(np.abs(logs)))) if np.isfinite(logs).any() else 1.0
    drawn = ax.imshow(logs, cmap=mpl.colormaps["PuOr"].with_extremes(bad=GRID), vmin=-top, vmax=top, aspect="auto")
    shades = drawn.to_rgba(logs)[..., :3] @ (0.299, 0.587, 0.114)  # lightness of each cell
    for y, x in np.ndindex(*speed.shape):
        if math.isfinite(seconds[y, x]):
            gain = [f"{times(float(speed[y, x]))}×"] if math.isfinite(speed[y, x]) else []
            text = "\n".join([*gain, f"{significant(float(seconds[y, x]))} s"])
            colour = "white" if shades[y, x] < 0.5 else INK
            ax.text(x, y, text, ha="center", va="center", fontsize=5.5 if form.compact else 7, color=colour)
    ax.set_xticks(range(len(columns)), texts, **turned)
    ax.set_yticks(range(len(rows)), names)
    ax.tick_params(length=0, labelcolor=INK, labelsize="small")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if form.titles:
        title = f"Speed-up against base{f' under {len(conditions)} conditions' if len(conditions) > 1 else ''}"
        wrapped_title(ax, title, each * len(columns))
    notes = [
        "In each cell the speed-up, with the latency under it. Violet is faster than base, orange slower, on a log scale.",
        left_out(len(columns), len(conditions), "conditions", EVENLY),
        left_out(len(rows), len(labels), "methods", "base and the fastest"),
    ]
    finish(figure, form, (), notes, run.as_if)
    return figure


def panel_axes(run: Run) -> list[str]:
    """Return the swept keys that can divide a run into panels: all except settings of methods."""
    return [key for key in run.swept if not key.startswith("methods.")]

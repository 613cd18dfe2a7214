"""Latency, cloud calls and quality along a swept number, and where a method breaks even with base."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.figure import INK, footnote, legend, new_figure, scale_x, spread, wrapped_title
from reports.findings import is_base, quality_metric
from reports.load import Run, interval_columns
from reports.looks import Look, looks
from reports.words import axis_label, clipped, condition, number, significant, split_unit

MOST_COLUMNS, MOST_IN_LEGEND = 3, 24
LOG_FROM = 8.0  # the axis is logarithmic where its largest value is this many times its smallest


class BreakEven(NamedTuple):
    """Where a method's mean latency equals base's.

    Attributes:
        label: the method.
        at: value of the axis.
        low, high: 95 % interval of `at`, from the interval of the speed-up.
        latency_s: the latency there.
    """

    label: str
    at: float
    low: float
    high: float
    latency_s: float


def sweep_name(key: str) -> str:
    """File name, without ending, of the plot along a swept key."""
    return "sweep_" + "".join(letter if letter.isalnum() else "_" for letter in key)


def numeric_axes(run: Run) -> list[str]:
    """Swept keys with at least two different finite numbers."""
    return [
        key
        for key in run.swept
        if pd.api.types.is_numeric_dtype(run.summary[key])
        and not pd.api.types.is_bool_dtype(run.summary[key])
        and run.summary[key][np.isfinite(run.summary[key].astype(float))].nunique() > 1
    ]


def sweep(run: Run, key: str) -> Figure:
    """Latency, cloud calls and quality against one swept number; a column per choice of the other conditions (up to three)."""
    own = key.startswith("methods.")
    table = _series(run, key, own)
    columns = list(dict.fromkeys(table["column"]))
    shown = spread(columns, MOST_COLUMNS)
    look = looks(zip(table["series"], table["method_name"], strict=True))
    quality = quality_metric(run)
    rows = (
        ("latency_mean_s", "mean latency (s)"),
        ("cloud_call_pct", "cloud calls (% of tokens)"),
        (quality.name, quality.title),
    )
    figure = new_figure(max(4.2 * len(shown), 6.8), 7.6)
    grid = figure.subplots(3, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=[1.4, 1, 1])
    evens: list[BreakEven] = []
    for place, column in enumerate(shown):
        cases = table[table["column"] == column]
        for ax, (metric, text) in zip(grid[:, place], rows, strict=True):
            _lines(ax, cases, key, metric, look)
            if place == 0:
                ax.set_ylabel(text)
        here = [] if own else break_evens(cases, key)
        evens += here
        for even in here:
            grid[0][place].plot([even.low, even.high], [even.latency_s] * 2, color=INK, lw=2.2, alpha=0.45, zorder=5)
            grid[0][place].plot(even.at, even.latency_s, "x", color=INK, ms=8, mew=2.0, zorder=6)
        title = f"{column}: {_along(cases, key, here)}" if column else _along(cases, key, here)
        wrapped_title(grid[0][place], title, figure.get_figwidth() / len(shown) - 0.9)
        grid[2][place].set_xlabel(axis_label(key))
    values = table[key].to_numpy(dtype=float)
    scale_x([*grid.flat], values, LOG_FROM)
    for row in (0, 1):
        grid[row][0].set_ylim(bottom=0)
    names = list(look)[:MOST_IN_LEGEND]
    legend(figure, [Line2D([], [], label=clipped(name), **look[name].line()) for name in names])
    notes = ["Bands are 95 % intervals."]
    if evens:
        notes.append("Crosses: break-even with base, interpolated between the runs, with its 95 % interval.")
    if np.isinf(values).any():
        beyond = ", ".join(dict.fromkeys(map(number, values[np.isinf(values)])))
        notes.append(f"Not on the axis: {split_unit(key)[0]} {beyond}.")
    if own:
        notes.append("Level lines with two markers: methods without this setting.")
    if len(shown) < len(columns):
        notes.append(f"{len(shown)} of {len(columns)} conditions, evenly spaced.")
    if len(names) < len(look):
        notes.append(f"The legend leaves out {len(look) - len(names)} of {len(look)} lines.")
    footnote(figure, " ".join(notes), run.as_if)
    return figure


def _series(run: Run, key: str, own: bool) -> pd.DataFrame:
    """The summary with two more columns: series (the label without the swept setting) and column (the other conditions)."""
    setting = key.rpartition(".")[2]
    others = tuple(other for other in run.swept if other != key and not other.startswith("methods."))
    rows = [{str(name): value for name, value in row.items()} for row in run.summary.to_dict("records")]
    series = [row["label"].replace(f" {setting}={number(row[key])}", "") if own else row["label"] for row in rows]
    return run.summary.assign(series=series, column=[condition(row, others) for row in rows])


def _lines(ax: Axes, cases: pd.DataFrame, key: str, metric: str, look: dict[str, Look]) -> None:
    """One metric against the swept number: a line per series, level where the axis does not concern the method."""
    ends = interval_columns(metric)
    for series, rows in cases.groupby("series", sort=False):
        style = look[str(series)]
        points = rows[np.isfinite(rows[key].astype(float)) & np.isfinite(rows[metric])].sort_values(key)
        if points.empty:
            level = rows[metric][np.isfinite(rows[metric])]
            if len(level):
                ax.plot([0.02, 0.98], [float(level.iloc[0])] * 2, transform=ax.get_yaxis_transform(), **style.line())
            continue
        ax.plot(points[key], points[metric], **style.line())
        if ends[0] in points:
            low, high = (points[end].to_numpy(dtype=float) for end in ends)
            ax.fill_between(points[key], low, high, color=style.colour, alpha=0.13, lw=0)


def _along(cases: pd.DataFrame, key: str, evens: Sequence[BreakEven]) -> str:
    """Which method has the lowest mean latency along the axis, and where one breaks even with base."""
    name, unit = split_unit(key)
    ran = cases[np.isfinite(cases["latency_mean_s"])]
    if ran.empty:
        return "no request was answered"
    if key.startswith("methods."):
        best = ran.loc[ran["latency_mean_s"].idxmin()]
        with_gain = math.isfinite(best["speedup"]) and not is_base(best)
        gain = f" ({significant(best['speedup'], 2)}× base)" if with_gain else ""
        return f"lowest mean latency: {best['label']}{gain}"
    winners: list[tuple[str, float, float]] = []  # label, first and last value of the axis
    for value, rows in ran[np.isfinite(ran[key].astype(float))].groupby(key):
        label = str(rows.loc[rows["latency_mean_s"].idxmin(), "label"])
        at: Any = value
        if winners and winners[-1][0] == label:
            winners[-1] = (label, winners[-1][1], float(at))
        else:
            winners.append((label, float(at), float(at)))
    if not winners:
        return f"no finite {name}"
    text = f"{winners[0][0]} has the lowest mean at every {name}"
    if len(winners) > 1:
        spans = [f"{winners[0][0]} up to {number(winners[0][2])} {unit}".rstrip()]
        spans += [f"{label} from {number(first)} {unit}".rstrip() for label, first, _ in winners[1:]]
        text = f"lowest mean by {name}: {', '.join(spans)}"
    if not evens:
        return text
    last = max(evens, key=lambda even: even.at)
    return f"{text}; {last.label} breaks even with base at about {significant(last.at, 2)} {unit}".rstrip()


def break_evens(cases: pd.DataFrame, key: str) -> list[BreakEven]:
    """Where methods break even with base along the axis.

    A method breaks even between a run at which it is significantly faster than base and the next run at which it is significantly
    slower, or the other way round, however many runs without a significant difference lie between. The gap to base is interpolated
    linearly between the runs. Where it changes its sign several times there, the root of a straight line through it counts.
    """
    lines = {
        str(label): rows[np.isfinite(rows[key].astype(float)) & np.isfinite(rows["latency_mean_s"])].sort_values(key)
        for label, rows in cases.groupby("label", sort=False)
    }
    base = next((rows for rows in lines.values() if len(rows) and is_base(rows.iloc[0])), None)
    if base is None:
        return []
    its = base.drop_duplicates(key).set_index(key)["latency_mean_s"]
    found = []
    for label, rows in lines.items():
        rows = rows.drop_duplicates(key)
        rows = rows[rows[key].isin(its.index) & np.isfinite(rows["speedup_lo"]) & np.isfinite(rows["speedup_hi"])]
        if rows.empty or is_base(rows.iloc[0]):
            continue
        x, own = rows[key].to_numpy(dtype=float), rows["latency_mean_s"].to_numpy(dtype=float)
        gap = own - its[rows[key]].to_numpy(dtype=float)
        # Ends of the gap's interval: own - base = own (1 - speedup).
        ends = [own * (1 - rows[name].to_numpy(dtype=float)) for name in ("speedup_hi", "speedup_lo")]
        side = np.sign(np.where(rows["speedup_lo"] > 1, 1, 0) - np.where(rows["speedup_hi"] < 1, 1, 0))
        decided = np.nonzero(side)[0]
        for i, j in itertools.pairwise(decided):
            if side[i] == side[j]:
                continue
            at = _root(x[i : j + 1], gap[i : j + 1])
            low, high = sorted(_root(x[i : j + 1], end[i : j + 1]) for end in ends)
            latency_s = float(np.interp(at, x[i : j + 1], own[i : j + 1]))
            found.append(BreakEven(label, at, min(low, at), max(high, at), latency_s))
    return found


def _root(x: np.ndarray, y: np.ndarray) -> float:
    """Where y, linear between the points, crosses 0 between the first point and the last, which lie on different sides."""
    changes = np.nonzero((y[:-1] < 0) != (y[1:] < 0))[0]
    if len(changes) == 1:
        i = int(changes[0])
        return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
    slope, level = np.polyfit(x - x[0], y, 1)
    return float(np.clip(x[0] - level / slope, x[0], x[-1])) if slope else float((x[0] + x[-1]) / 2)

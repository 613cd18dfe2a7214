"""Plots along a swept number: latency, cloud calls, quality, speed-up, and break-evens with base."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figure import (
    EVENLY,
    INK,
    PAGE,
    Form,
    between,
    cross,
    finish,
    from_zero,
    handle,
    left_out,
    logarithmic,
    new_figure,
    scale_x,
    spread,
    wrapped_title,
)
from reports.findings import best, has_quality, is_base, quality_metric
from reports.load import Run, in_step, panels_along
from reports.looks import Look, looks
from reports.metrics import CALLS, LATENCY, SPEEDUP
from reports.words import apart_note, axis_label, number, own_setting, significant, split_unit, times
from simulator.results.columns import interval_columns
from simulator.results.statistics import bend

MOST_COLUMNS, MOST_IN_LEGEND = 3, 24
MOST_LINES = 8  # of the plot of speed-ups
MOST_COUNTED = 3  # methods in the title of points that are not joined
LOG_FROM = 8.0  # least ratio of largest and smallest value for a logarithmic axis
LOG_SPEEDUPS_FROM = 4.0  # the same for the axis of speed-ups


class BreakEvenWithBase(NamedTuple):
    """The value of the axis at which a method's mean latency equals base's.

    Attributes:
        label: the method.
        at: value of the axis.
        low, high: 95 % interval of `at`, from the interval of the speed-up.
        latency_s: mean latency at this value.
    """

    label: str
    at: float
    low: float
    high: float
    latency_s: float


def sweep_name(key: str) -> str:
    """Return the file name, without extension, of the plot along a swept key."""
    return "sweep_" + "".join(letter if letter.isalnum() else "_" for letter in key)


def numeric_axes(run: Run) -> list[str]:
    """Return the swept keys with at least two different finite numbers."""
    return [
        key
        for key in run.swept
        if pd.api.types.is_numeric_dtype(run.summary[key])
        and not pd.api.types.is_bool_dtype(run.summary[key])
        and run.summary[key][np.isfinite(run.summary[key].astype(float))].nunique() > 1
    ]


def condition_axes(run: Run) -> list[str]:
    """Return the numeric axes that are no settings of methods, the RTT first."""
    return sorted(
        (key for key in numeric_axes(run) if not key.startswith("methods.")), key=lambda key: key != "network.rtt_ms"
    )


def sweep(run: Run, key: str, form: Form = PAGE) -> Figure:
    """Draw latency, cloud calls and, if known, quality against one swept number.

    There is a column per combination of the other conditions, up to three. Points that differ in them, as random points do, are in one
    column and not joined.
    """
    own = key.startswith("methods.")
    table, line, apart, level = _series(run, key, own)
    columns = list(dict.fromkeys(table["column"]))
    shown = spread(columns, 1 if form.compact else MOST_COLUMNS)
    look = looks(zip(table["series"], table["method_name"], strict=True) if own else run.series)
    rows = [LATENCY, CALLS, *([quality_metric(run)] if has_quality(run) else [])]
    heights = [1.4, 1, 1][: len(rows)]
    figure = new_figure(max(4.2 * len(shown), 6.8), (4.2 if form.compact else 6.6) * sum(heights) / 3.4, form)
    grid = figure.subplots(len(rows), len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    values, seconds = (table[name].to_numpy(dtype=float) for name in (key, "latency_mean_s"))
    scale_x([*grid.flat], values, LOG_FROM)
    if np.nanmax(seconds, initial=0.0) > LOG_FROM * np.nanmin(seconds, initial=math.inf) > 0:
        for ax in grid[0]:
            logarithmic(ax, "y")
    evens: list[BreakEvenWithBase] = []
    for place, column in enumerate(shown):
        cases = table[table["column"] == column]
        for ax, metric in zip(grid[:, place], rows, strict=True):
            _lines(ax, cases, key, metric.name, look, form, line=line, levels=level)
            if place == 0:
                ax.set_ylabel(metric.upright)
        here = break_evens(cases, key) if line and not own else []
        evens += here
        for even in here:
            cross(grid[0][place], even.at, even.latency_s, look[even.label], form, (even.low, even.high))
        result = _along(cases, key, here) if line or own else _most_often(cases)
        title = f"{column}: {result}" if column else result
        wide = figure.get_figwidth() / len(shown) - (0.5 if form.compact else 0.9)
        wrapped_title(grid[0][place], title if form.titles else column, wide)
        grid[-1][place].set_xlabel(axis_label(key))
    if grid[0][0].get_yscale() == "linear":
        grid[0][0].set_ylim(bottom=0)
    from_zero(grid[1][0])
    names = best(table, "series", 10 if form.compact else MOST_IN_LEGEND, at_best=own)
    notes = [
        f"{'Bands' if line else 'Bars'} are 95 % intervals; latency is the mean per image.",
        apart_note(apart, key, line),
    ]
    if evens:
        notes.append(
            "Crosses: break-even with base, interpolated between the runs; 95 % interval, widened where latencies are not linear."
        )
    if np.isinf(values).any():
        beyond = ", ".join(dict.fromkeys(map(number, values[np.isinf(values)])))
        notes.append(f"Not on the axis: {split_unit(key)[0]} {beyond}.")
    if own and level and table[key].isna().any():
        notes.append("Level lines with two markers: methods without this setting.")
    notes.append(left_out(len(shown), len(columns), "conditions", EVENLY))
    notes.append(left_out(len(names), len(look), "lines are in the legend", "base and the fastest"))
    handles = [handle(name, look[name], form, line=line) for name in names]
    finish(figure, form, handles, notes, run.as_if)
    return figure


def speedup_along(run: Run, key: str, form: Form = PAGE) -> Figure:
    """Draw speed-ups and break-evens along one swept number: a panel per combination of the other conditions, the fastest methods.

    Points that differ in the other conditions, as random points do, are in one panel and not joined.
    """
    table, line, apart, _ = _series(run, key, own=False)
    table = table[np.isfinite(table[key].astype(float))]
    columns = list(dict.fromkeys(table["column"]))
    shown = spread(columns, MOST_COLUMNS)
    look = looks(run.series)
    others = table[(table["method_name"] != "base") & np.isfinite(table["speedup"])]
    gains = others.groupby("label", sort=False)["speedup"].max().nlargest(MOST_LINES, keep="first")
    names = [name for name in run.labels() if name in gains.index]
    across = 1 if form.compact else len(shown)
    figure = new_figure(max(4.4 * across, 6.8), (1.9 if form.compact else 3.6) * math.ceil(len(shown) / across), form)
    grid = figure.subplots(math.ceil(len(shown) / across), across, squeeze=False, sharex=True, sharey=True)
    scale_x([*grid.flat], table[key].to_numpy(dtype=float), LOG_FROM)
    ends = table.loc[table["label"].isin(names), ["speedup", "speedup_lo", "speedup_hi"]].to_numpy(dtype=float)
    if np.isfinite(ends).any():
        _speedup_scale([*grid.flat], ends)
    evens: list[BreakEvenWithBase] = []
    for ax, column in zip(grid.flat, shown, strict=True):
        cases = table[(table["column"] == column) & (table["label"].isin(names) | (table["method_name"] == "base"))]
        its = cases[cases["method_name"] == "base"].drop_duplicates(key).set_index(key)["latency_mean_s"]
        _lines(ax, cases[cases["method_name"] != "base"], key, "speedup", look, form, its, line=line)
        ax.axhline(1.0, color=INK, lw=1.0 * form.marker, ls=(0, (4, 3)), zorder=1)
        here = break_evens(cases, key) if line else []
        evens += here
        for even in here:
            cross(ax, even.at, 1.0, look[even.label], form, (even.low, even.high))
        name, unit = split_unit(key)
        said = [
            f"{even.label} breaks even at {significant(even.at, 2)} {unit} ({significant(even.low, 2)} to {significant(even.high, 2)})"
            for even in sorted(here, key=lambda even: -even.at)[:2]
        ]
        title = (
            "; ".join(said) or f"no break-even with base in this range of {name}" if line else _faster_than_base(cases)
        )
        if not np.isfinite(cases.loc[cases["method_name"] != "base", "speedup"]).any():
            title = "no speed-up is known"
        wide = figure.get_figwidth() / across - (0.5 if form.compact else 0.9)
        wrapped_title(ax, (f"{column}: {title}" if column else title) if form.titles else column, wide)
    for ax in grid[-1]:
        ax.set_xlabel(axis_label(key))
    for row in grid:
        row[0].set_ylabel(SPEEDUP.heading)
    notes = [
        f"Above the dashed line a method is faster than base. {'Bands' if line else 'Bars'}: 95 % intervals, paired by request.",
        apart_note(apart, key, line),
        "Crosses: break-even, interpolated between the runs; 95 % interval, widened where latencies are not linear."
        if evens
        else "",
        left_out(len(names), others["label"].nunique(), "methods", "those with the greatest speed-up"),
        left_out(len(shown), len(columns), "conditions", EVENLY),
    ]
    finish(figure, form, [handle(name, look[name], form, line=line) for name in names], notes, run.as_if)
    return figure


def _speedup_scale(axes: Sequence[Axes], ends: np.ndarray) -> None:
    """Scale the y axis for speed-ups and the ends of their intervals [N, 3]. A wide range is logarithmic, symmetric in 2x and 1/2x."""
    top = max(1.0, float(np.nanmax(ends)))
    gains = ends[:, 0][np.isfinite(ends[:, 0]) & (ends[:, 0] > 0)]
    if len(gains) and top >= LOG_SPEEDUPS_FROM * min(1.0, gains.min()):
        for ax in axes:
            logarithmic(ax, "y")
        # The interval of few requests may extend to a speed-up of 0 or less.
        least = min(1.0, float(gains.min()))  # base's line at 1 must be visible
        axes[0].set_ylim(max(min(1.0, float(np.nanmin(ends))), 0.7 * least) / 1.1, 1.12 * top)
    else:
        axes[0].set_ylim(0, 1.05 * top)


class _Series(NamedTuple):
    """The cases along a swept key.

    Attributes:
        table: the summary with two more columns: series (the label without the swept setting) and column (the other conditions).
        line: whether the points of a series are joined.
        apart: other swept keys in which the points of a series differ.
        level: whether the conditions of a column are the same, so that a method without the setting has one value in it.
    """

    table: pd.DataFrame
    line: bool
    apart: tuple[str, ...]
    level: bool


def _series(run: Run, key: str, own: bool) -> _Series:
    """Divide the cases into series and columns. own: the key is a setting of a method."""
    panels = panels_along(run.summary, run.swept, key)
    table = run.summary.assign(series=run.summary["label"], column=panels.names)
    if not own:
        return _Series(table, panels.joined, panels.apart, not panels.apart)
    method = (own_setting(key) or ("",))[0]
    settings = [other for other in run.swept if other != key and (own_setting(other) or ("",))[0] == method]
    with_key = [other for other in settings if in_step(table, key, other)]
    for omitted in ((), with_key, settings):
        table = table.assign(series=_labels_without(run.summary, (key, *omitted)))
        if table.groupby(["series", "column"])[key].nunique().max() > 1:
            break
    line = panels.joined and len(omitted) <= len(with_key)
    apart = tuple(other for other in omitted if table[other].nunique() > 1)
    return _Series(table, line, (*panels.apart, *apart), not panels.apart)


def _labels_without(summary: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Return the labels without the values of some swept settings."""
    labels = []
    for label, *values in zip(summary["label"], *(summary[key] for key in keys), strict=True):
        for key, value in zip(keys, values, strict=True):
            label = label.replace(f" {key.rpartition('.')[2]}={number(value)}", "")
        labels.append(label)
    return labels


def _lines(
    ax: Axes,
    cases: pd.DataFrame,
    key: str,
    metric: str,
    look: dict[str, Look],
    form: Form,
    base_s: "pd.Series[float] | None" = None,
    *,
    line: bool = True,
    levels: bool = True,
) -> None:
    """Draw one metric against the swept number: a line per series, horizontal if the axis does not apply to the method.

    Latencies are linear between the runs, on logarithmic axes too, as for break-evens. A speed-up is the ratio of two such lines.

    Args:
        ax: the panel.
        cases: cases of one column of the figure.
        key: the swept key.
        metric: column of the summary.
        look: looks by series.
        form: size and titles.
        base_s: for speed-ups, the latency of base by swept number.
        line: whether the points are joined; else their intervals are bars.
        levels: whether methods without the axis are drawn.
    """
    names = (metric, *interval_columns(metric))
    for series, rows in cases.groupby("series", sort=False):
        one = look[str(series)]
        style = one.line(6.0 * form.marker, 1.6 * form.marker)
        points = rows[np.isfinite(rows[key].astype(float)) & np.isfinite(rows[metric])].sort_values(key)
        if points.empty and not levels:
            continue
        if points.empty:
            level = rows[metric][np.isfinite(rows[metric])]
            if len(level):
                ax.plot([0.02, 0.98], [float(level.iloc[0])] * 2, transform=ax.get_yaxis_transform(), **style)
            continue
        x = points[key].to_numpy(dtype=float)
        if not line:
            ax.plot(x, points[metric], **{**style, "ls": ""})
            if ends := [points[name] for name in names[1:] if name in points]:
                ax.vlines(x, *ends, color=one.colour, lw=1.0 * form.marker, alpha=0.5, gid=one.gid, zorder=1)
            continue
        fine = between(x, ax) if metric in (LATENCY.name, SPEEDUP.name) else x
        its = None if base_s is None else base_s.reindex(points[key]).to_numpy(dtype=float)
        y, *ends = (_filled(fine, x, points[name].to_numpy(dtype=float), its) for name in names if name in points)
        ax.plot(fine, y, markevery=np.searchsorted(fine, x).tolist(), **style)
        if ends:
            ax.fill_between(fine, ends[0], ends[1], color=one.colour, alpha=0.13, lw=0, gid=one.gid)


def _filled(fine: np.ndarray, x: np.ndarray, y: np.ndarray, base_s: np.ndarray | None) -> np.ndarray:
    """Interpolate values between the runs, see `_lines`. The end of an interval is linear itself if it has a speed-up of 0 or less."""
    filled: np.ndarray = np.interp(fine, x, y)
    if base_s is not None and np.isfinite(base_s).all() and (y > 0).all():
        filled = np.interp(fine, x, base_s) / np.interp(fine, x, base_s / y)
    return filled


def _along(cases: pd.DataFrame, key: str, evens: Sequence[BreakEvenWithBase]) -> str:
    """Describe which method has the lowest mean latency along the axis, and the last break-even with base."""
    name, unit = split_unit(key)
    ran = cases[np.isfinite(cases["latency_mean_s"])]
    if ran.empty:
        return "no request was answered"
    if key.startswith("methods."):
        best = ran.loc[ran["latency_mean_s"].idxmin()]
        with_gain = math.isfinite(best["speedup"]) and not is_base(best)
        gain = f" ({times(best['speedup'])}× base)" if with_gain else ""
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
    text = f"{winners[0][0]} has the lowest mean throughout"
    if len(winners) > 1:
        spans = [f"{winners[0][0]} up to {number(winners[0][2])} {unit}".rstrip()]
        spans += [f"{label} from {number(first)} {unit}".rstrip() for label, first, _ in winners[1:]]
        text = f"lowest mean by {name}: {', '.join(spans)}"
    if not evens:
        return text
    last = max(evens, key=lambda even: even.at)
    return f"{text}; {last.label} breaks even with base at about {significant(last.at, 2)} {unit}".rstrip()


def _most_often(cases: pd.DataFrame) -> str:
    """Describe at how many points which methods have the lowest mean latency."""
    ran = cases[np.isfinite(cases["latency_mean_s"])]
    if ran.empty:
        return "no request was answered"
    won = ran.loc[ran.groupby("condition", sort=False)["latency_mean_s"].idxmin(), "label"].value_counts()
    return f"lowest mean latency: {_counts(won, int(won.sum()))}"


def _faster_than_base(cases: pd.DataFrame) -> str:
    """Describe at how many points which methods are significantly faster than base."""
    others = cases[cases["method_name"] != "base"]
    faster = others.loc[others["speedup_lo"] > 1, "label"].value_counts()
    return (
        f"faster than base: {_counts(faster, others['condition'].nunique())}"
        if len(faster)
        else "none is faster than base"
    )


def _counts(found: "pd.Series[int]", of: int) -> str:
    """Return the first few counts in words: `code at all 16 points` or `code at 12, ciar at 4 of 16 points`."""
    if len(found) == 1 and found.iloc[0] == of:
        return f"{found.index[0]} at all {of} points"
    return f"{', '.join(f'{label} at {count}' for label, count in found.head(MOST_COUNTED).items())} of {of} points"


def break_evens(cases: pd.DataFrame, key: str) -> list[BreakEvenWithBase]:
    """Return the break-evens of methods with base along the axis.

    A method breaks even between a run at which it is significantly faster than base and the next run at which it is significantly
    slower, or vice versa. Runs without a significant difference may lie between them. The difference to base is interpolated linearly
    between the runs. If it is not linear, the interval is widened as in `ciar-sim regime`. If it changes its sign several times, the
    break-even is the root of a straight line fitted to it.
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
        # Ends of the interval of the difference: own - base = own (1 - speedup).
        ends = [own * (1 - rows[name].to_numpy(dtype=float)) for name in ("speedup_hi", "speedup_lo")]
        side = np.sign(np.where(rows["speedup_lo"] > 1, 1, 0) - np.where(rows["speedup_hi"] < 1, 1, 0))
        decided = np.nonzero(side)[0]
        for i, j in itertools.pairwise(decided):
            if side[i] == side[j]:
                continue
            at = _root(x[i : j + 1], gap[i : j + 1])
            places = [_root(x[i : j + 1], end[i : j + 1]) for end in ends]
            changes = _changes(gap[i : j + 1])
            if len(changes) == 1:
                places += bend(x, gap, int(i + changes[0]), at)
            latency_s = float(np.interp(at, x[i : j + 1], own[i : j + 1]))
            found.append(BreakEvenWithBase(label, at, min(*places, at), max(*places, at), latency_s))
    return found


def _changes(y: np.ndarray) -> np.ndarray:
    """Return the indices after which y changes its sign."""
    return np.nonzero((y[:-1] < 0) != (y[1:] < 0))[0]


def _root(x: np.ndarray, y: np.ndarray) -> float:
    """Return the root of y, linear between the points. The first and last point have different signs."""
    changes = _changes(y)
    if len(changes) == 1:
        i = int(changes[0])
        return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
    slope, level = np.polyfit(x - x[0], y, 1)
    return float(np.clip(x[0] - level / slope, x[0], x[-1])) if slope else float((x[0] + x[-1]) / 2)

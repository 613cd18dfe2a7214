"""Latency and quality along a swept setting, and break-even points."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.figure import HUES, LOG_SWEEP_FROM, _figure, _foot, _scale_x, _wrapped_title, colours
from reports.findings import is_base
from reports.load import Run
from reports.quality_plot import quality_metric
from reports.words import axis_label, number, significant, split_unit
from reports.words import condition as condition_text


def sweep_name(key: str) -> str:
    """File name, without ending, of the plot along a swept key."""
    return "sweep_" + "".join(letter if letter.isalnum() else "_" for letter in key)


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
    table["series"] = [
        row["label"].replace(f" {setting}={number(row[key])}", "") if own else row["label"] for row in rows_of
    ]
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
        notes.append(
            f"Not on the axis: {split_unit(key)[0]} {', '.join(dict.fromkeys(map(number, values[np.isinf(values)])))}."
        )
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
        gain = (
            f" ({significant(best['speedup'], 2)}× base)"
            if math.isfinite(best["speedup"]) and not is_base(best)
            else ""
        )
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
            found.append(
                (label, float(x[i] + share * (x[i + 1] - x[i])), float(line[i] + share * (line[i + 1] - line[i])))
            )
    return found

"""The regime map: which method wins under which conditions, with its break-evens and their intervals."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figure import GRID, INK, footnote, legend, logarithmic, new_figure, render, styled
from reports.looks import Look, looks, mix
from reports.metrics import LATENCY
from reports.words import axis_label, clipped

NOBODY = "none"
MOST_MARKERS = 12  # along an axis; of more cells every second, third ... has one


class RegimeMap(NamedTuple):
    """What the figure shows.

    Attributes:
        cells: A row per condition: the conditions by dotted path, winner, sure (its lead is significant).
        break_evens: A row per change of the winner along x: x, low, high, below, above; and y where there is one.
        latency: A row per condition and method: latency_s, floor_kept.
        x, y: Dotted paths; y is None with one condition.
        log_x, log_y: Whether the axes are logarithmic.
        names: Name of the method by its label.
        note: For the footnote.
    """

    cells: pd.DataFrame
    break_evens: pd.DataFrame
    latency: pd.DataFrame
    x: str
    y: str | None
    log_x: bool
    log_y: bool
    names: Mapping[str, str]
    note: str


def regime_files(drawn: RegimeMap) -> dict[str, bytes]:
    """regime.png and regime.svg."""
    with styled():
        figure = _map(drawn) if drawn.y is not None else _curves(drawn)
        return {f"regime.{form}": render(figure, form) for form in ("png", "svg")}


def _map(drawn: RegimeMap) -> Figure:
    """Cells in the hue and with the marker of their winner, pale where its lead is not significant; break-evens as lines along y."""
    assert drawn.y is not None
    look = looks(drawn.names.items())
    figure = new_figure(6.8, 4.8)
    ax = figure.subplots()
    xs, ys = (np.unique(drawn.cells[key].to_numpy(float)) for key in (drawn.x, drawn.y))
    winners = drawn.cells.pivot(index=drawn.y, columns=drawn.x, values="winner").to_numpy()
    sure = drawn.cells.pivot(index=drawn.y, columns=drawn.x, values="sure").to_numpy(bool)
    colours = np.array(
        [
            [to_rgb(_colour(look, winner, lead)) for winner, lead in zip(*row, strict=True)]
            for row in zip(winners, sure, strict=True)
        ]
    )
    ax.pcolormesh(_edges(xs, drawn.log_x), _edges(ys, drawn.log_y), colours, rasterized=True)
    steps = [-(-len(values) // MOST_MARKERS) for values in (xs, ys)]
    for row in range(steps[1] // 2, len(ys), steps[1]):
        for column in range(steps[0] // 2, len(xs), steps[0]):
            if (winner := winners[row, column]) != NOBODY:
                one = look[winner]
                ax.plot(xs[column], ys[row], ls="", **one._replace(colour=mix(one.colour, "black", 0.35)).point(5.0))
    _lines(ax, drawn)
    _scales(ax, drawn)
    ax.set_ylabel(axis_label(drawn.y))
    ax.grid(visible=False)
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="", label=clipped(name), **look[name].point(9.0)) for name in look if (winners == name).any()
    ]
    if not sure.all():
        handles.append(Patch(facecolor=mix(INK, "white", 0.75), label="lead not significant (pale)"))
    if (winners == NOBODY).any():
        handles.append(Patch(facecolor=GRID, label="no method keeps the floor"))
    if len(drawn.break_evens):
        handles.append(Line2D([], [], color=INK, lw=1.4, marker="|", ms=7, label="break-even, 95 % interval"))
    legend(figure, handles)
    footnote(figure, f"Who has the lowest mean latency. {drawn.note}")
    return figure


def _lines(ax: Axes, drawn: RegimeMap) -> None:
    """Break-evens of the same two methods in neighbouring rows are joined."""
    levels = np.unique(drawn.cells[drawn.y].to_numpy(float))
    for _, found in drawn.break_evens.groupby(["below", "above"], sort=False):
        rows = np.searchsorted(levels, found[drawn.y].to_numpy(float))
        at, y = (found[key].to_numpy(float) for key in (drawn.x, drawn.y))
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            ax.plot(at[part], y[part], color=INK, lw=1.4, zorder=4)
        bars = np.stack([at - found["low"].to_numpy(float), found["high"].to_numpy(float) - at])
        ax.errorbar(at, y, xerr=np.maximum(bars, 0.0), fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.0, zorder=4)


def _curves(drawn: RegimeMap) -> Figure:
    """Mean latency of every method along x; open and dashed where it does not keep the floor; break-evens as vertical lines."""
    look = looks(drawn.names.items())
    figure = new_figure(6.8, 4.4)
    ax = figure.subplots()
    below_floor = False
    for name, rows in drawn.latency.groupby("method", sort=False):
        one: Look = look[str(name)]
        kept = bool(rows["floor_kept"].all())
        below_floor |= not kept
        if not kept:
            one = one._replace(colour=mix(one.colour, "white", 0.55), fill="none", dash=(0, (2, 2)))
        ax.plot(rows[drawn.x], rows["latency_s"], label=clipped(str(name)), zorder=3 if kept else 2, **one.line(4.5))
    _scales(ax, drawn)
    for _, row in drawn.break_evens.iterrows():
        ax.axvspan(float(row["low"]), float(row["high"]), color=INK, alpha=0.12, lw=0)
        ax.axvline(float(row[drawn.x]), color=INK, lw=1.2)
    ax.set_ylabel(LATENCY.heading)
    ax.set_ylim(bottom=0.0)
    handles = list(ax.get_legend_handles_labels()[0])
    if len(drawn.break_evens):
        handles.append(Line2D([], [], color=INK, lw=1.2, label="break-even, 95 % interval"))
    legend(figure, handles)
    pale = " Pale and open: does not keep the floor, or it is not shown that it does." if below_floor else ""
    footnote(figure, f"{drawn.note}{pale}")
    return figure


def _scales(ax: Axes, drawn: RegimeMap) -> None:
    ax.set_xlabel(axis_label(drawn.x))
    for which, key, log in (("x", drawn.x, drawn.log_x), ("y", drawn.y, drawn.log_y)):
        if key is None:
            continue
        values = np.unique(drawn.cells[key].to_numpy(float))
        if log:
            logarithmic(ax, which)
        if len(values) > 1:
            edges = _edges(values, log) if drawn.y is not None else values
            ax.set(**{f"{which}lim": (float(edges[0]), float(edges[-1]))})


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Edges of the cells around values, float [n + 1]: half way between neighbours."""
    if len(values) == 1:
        return values[0] * np.array([0.9, 1.1]) if values[0] else np.array([-0.5, 0.5])
    scaled = np.log(values) if log else values
    middles = (scaled[1:] + scaled[:-1]) / 2
    edges = np.concatenate([[2 * scaled[0] - middles[0]], middles, [2 * scaled[-1] - middles[-1]]])
    return np.exp(edges) if log else edges


def _colour(look: Mapping[str, Look], winner: str, sure: bool) -> str:
    if winner == NOBODY:
        return GRID
    return mix(look[winner].colour, "white", 0.25 if sure else 0.65)

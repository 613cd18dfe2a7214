"""The regime map: the fastest method under each condition, and the break-evens with their intervals."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figure import GRID, INK, PAGE, Form, between, finish, logarithmic, new_figure, render, styled
from reports.looks import Look, looks, mix
from reports.metrics import LATENCY
from reports.words import axis_label, clipped, rejoined
from simulator.core.errors import RunFolderError
from simulator.core.files import read_file
from simulator.results.files import csv_bytes, csv_text, json_bytes

NOBODY = "none"
MOST_MARKERS = 12  # along an axis; with more cells only every second, third ... cell has one


class RegimeMap(NamedTuple):
    """Content of the figure.

    Attributes:
        cells: A row per condition: the conditions by dotted path, winner, sure (its lead is significant).
        break_evens: A row per change of the winner along x: x, low, high, below, above, and y if there is one.
        latency: A row per condition and method: latency_s, floor_kept.
        x: Dotted path of the first condition.
        y: Dotted path of the second condition; None with one condition.
        log_x: Whether the axis of x is logarithmic.
        log_y: Whether the axis of y is logarithmic.
        names: Name of the method by label.
        note: Text of the footnote.
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

    def files(self) -> dict[str, bytes]:
        """Return the files of a map's folder by name: regime.png, regime.svg and the files that `read_map` reads."""
        tables = {"regime": self.cells, "break_evens": self.break_evens, "latency": self.latency}
        rest = {
            name: value for name, value in self._asdict().items() if name not in ("cells", "break_evens", "latency")
        }
        with styled():
            figure = regime_map(self)
            drawn = {f"regime.{form}": render(figure, form) for form in ("png", "svg")}
        return {f"{name}.csv": csv_bytes(table) for name, table in tables.items()} | {
            "regime.json": json_bytes(rest),
            **drawn,
        }


def read_map(folder: Path) -> RegimeMap:
    """Read the map that `ciar-sim regime` wrote into a folder.

    Raises:
        RunFolderError: The folder is not that of a map, or is damaged.
    """
    try:
        rest: dict[str, Any] = json.loads(read_file(folder / "regime.json"))
        tables = [_table(folder / f"{name}.csv") for name in ("regime", "break_evens", "latency")]
        made = RegimeMap(tables[0], tables[1], tables[2], **rest)
        keys = [made.x] if made.y is None else [made.x, made.y]
        for table, columns in zip(
            tables, (["winner", "sure"], ["low", "high", "below", "above"], ["method"]), strict=True
        ):
            table[[*keys, *columns]]
        missing = {*made.latency["method"], *made.cells["winner"]} - {*made.names, NOBODY}
        if missing:
            raise KeyError(min(map(str, missing)))
        _check(made, keys)
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{folder}: not the folder of a regime map: {Path(error.filename).name} is missing"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{folder}: not a readable regime map: {type(error).__name__}: {error}") from None
    return made


def _table(path: Path) -> pd.DataFrame:
    """Read a CSV file in which only empty cells are missing values, since a label may be `nan` or `NA`."""
    content = read_file(path)
    csv_text(content)  # refuses lines whose cells pandas would shift
    return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""])


def _check(made: RegimeMap, keys: Sequence[str]) -> None:
    """Raise TypeError or ValueError if the content is not what `ciar-sim regime` writes."""
    numbers = (
        (made.cells, keys),
        (made.break_evens, [*keys, "low", "high"]),
        (made.latency, [*keys, "latency_s", "floor_kept"]),
    )
    for table, columns in numbers:
        for name in columns:
            if not (pd.api.types.is_numeric_dtype(table[name]) or table.empty):
                raise ValueError(f"{name} must hold numbers")
    for table, columns in ((made.cells, keys), (made.latency, [*keys, "method"])):
        if table.empty or table[list(keys)].isna().any(axis=None) or table.duplicated(columns).any():
            raise ValueError(f"a row for each {' and '.join(columns)} is needed")
    if not pd.api.types.is_bool_dtype(made.cells["sure"]):
        raise ValueError("sure must hold True and False")
    if not all(isinstance(text, str) for text in (made.note, *keys, *made.names.values())):
        raise TypeError("note, axes and names must be texts")
    for key, log in zip(keys, (made.log_x, made.log_y), strict=False):
        if not isinstance(log, bool) or (log and (made.cells[key] <= 0).any()):
            raise ValueError(f"{key} must be above 0 on a logarithmic axis")


def regime_map(drawn: RegimeMap, form: Form = PAGE, methods: Sequence[str] = ()) -> Figure:
    """Draw the map over two conditions, or the curves over one.

    Args:
        drawn: Content of the figure.
        form: Size and titles.
        methods: Labels or names of the curves to draw, empty for all. They cannot be chosen for a map, whose winners are of all methods.

    Raises:
        RunFolderError: There is no such method, or methods were chosen for a map.
    """
    methods = rejoined(",".join(methods), {*drawn.names, *drawn.names.values()})
    for name in methods:
        if drawn.y is not None:
            raise RunFolderError(f"--methods {name}: a map over two conditions shows who wins among all its methods")
        if name not in {*drawn.names, *drawn.names.values()}:
            raise RunFolderError(f"--methods {name}: no method of this map; it has {', '.join(drawn.names)}")
    kept = [name for name, method in drawn.names.items() if not methods or {name, method} & set(methods)]
    with styled(form):
        return _map(drawn, form) if drawn.y is not None else _curves(drawn, form, kept)


def _map(drawn: RegimeMap, form: Form) -> Figure:
    """Draw the map: cells have the hue and marker of their winner, pale if its lead is not significant. Break-evens are lines along y."""
    assert drawn.y is not None
    look = looks(drawn.names.items())
    figure = new_figure(6.8, 2.6 if form.compact else 4.3, form)
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
                ax.plot(
                    xs[column],
                    ys[row],
                    ls="",
                    **one._replace(colour=mix(one.colour, "black", 0.35)).point(5.0 * form.marker),
                )
    _lines(ax, drawn)
    _scales(ax, drawn)
    ax.set_ylabel(axis_label(drawn.y))
    ax.grid(visible=False)
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="", label=clipped(name), **look[name].point(9.0 * form.marker))
        for name in look
        if (winners == name).any()
    ]
    if not sure.all():
        handles.append(Patch(facecolor=mix(INK, "white", 0.75), label="lead not significant (pale)"))
    if (winners == NOBODY).any():
        handles.append(Patch(facecolor=GRID, label=f"no winner: {_why_nobody(drawn)}"))
    if len(drawn.break_evens):
        handles.append(Line2D([], [], color=INK, lw=1.4, marker="|", ms=7, label="break-even, 95 % interval"))
    finish(figure, form, handles, [f"The method with the lowest mean latency. {drawn.note}"])
    return figure


def _why_nobody(drawn: RegimeMap) -> str:
    """Return why cells have no winner. It is never the floor, which base keeps; where base failed, there are no latencies."""
    keys = [drawn.x, str(drawn.y)]
    empty = drawn.cells.loc[drawn.cells["winner"] == NOBODY, keys]
    return "no request was answered" if len(empty.merge(drawn.latency[keys])) else "base failed"


def _lines(ax: Axes, drawn: RegimeMap) -> None:
    """Draw break-evens. Those of the same two methods in neighbouring rows are joined."""
    levels = np.unique(drawn.cells[drawn.y].to_numpy(float))
    for _, found in drawn.break_evens.groupby(["below", "above"], sort=False):
        rows = np.searchsorted(levels, found[drawn.y].to_numpy(float))
        at, y = (found[key].to_numpy(float) for key in (drawn.x, drawn.y))
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            ax.plot(at[part], y[part], color=INK, lw=1.4, zorder=4)
        bars = np.stack([at - found["low"].to_numpy(float), found["high"].to_numpy(float) - at])
        ax.errorbar(at, y, xerr=np.maximum(bars, 0.0), fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.0, zorder=4)


def _curves(drawn: RegimeMap, form: Form, kept: Sequence[str]) -> Figure:
    """Draw the mean latency of every method along x, pale if it does not keep the quality floor, and break-evens as vertical lines."""
    look = looks(drawn.names.items())
    figure = new_figure(6.8, 2.4 if form.compact else 3.9, form)
    ax = figure.subplots()
    _scales(ax, drawn)
    below_floor = False
    for name, rows in drawn.latency[drawn.latency["method"].isin(kept)].groupby("method", sort=False):
        one: Look = look[str(name)]
        keeps = bool(rows["floor_kept"].all())
        below_floor |= not keeps
        if not keeps:
            one = one._replace(colour=mix(one.colour, "white", 0.55), fill="none", dash=(0, (2, 2)))
        x, seconds = (rows[key].to_numpy(float) for key in (drawn.x, "latency_s"))
        fine = between(x, ax)  # linear between the runs, as break-evens are computed
        ax.plot(
            fine,
            np.interp(fine, x, seconds),
            markevery=np.searchsorted(fine, x).tolist(),
            label=clipped(str(name)),
            zorder=3 if keeps else 2,
            clip_on=False,
            **one.line(4.5 * form.marker, 1.6 * form.marker),
        )
    for _, row in drawn.break_evens.iterrows():
        ax.axvspan(float(row["low"]), float(row["high"]), color=INK, alpha=0.12, lw=0)
        ax.axvline(float(row[drawn.x]), color=INK, lw=1.2)
    ax.set_ylabel(LATENCY.heading)
    ax.set_ylim(bottom=0.0)
    handles = list(ax.get_legend_handles_labels()[0])
    if len(drawn.break_evens):
        handles.append(Line2D([], [], color=INK, lw=1.2, label="break-even, 95 % interval"))
    pale = " Pale, open markers: not shown to keep the floor." if below_floor else ""
    finish(figure, form, handles, [f"{drawn.note}{pale}"])
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
            # No cell of positive values reaches below 0.
            least = max(float(edges[0]), 0.0) if values[0] > 0 else float(edges[0])
            ax.set(**{f"{which}lim": (least, float(edges[-1]))})


def _edges(values: np.ndarray, log: bool) -> np.ndarray:
    """Return the edges of the cells around values, float [n + 1], halfway between neighbours."""
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

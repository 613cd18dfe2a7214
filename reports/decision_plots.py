"""Plots of the answers written by `ciar-sim capacity --out` and `ciar-sim recommend --out`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figure import (
    EVENLY,
    INK,
    MUTED,
    PAGE,
    Form,
    finish,
    handle,
    left_out,
    new_figure,
    spread,
    styled,
    wrapped_title,
)
from reports.looks import Look, looks
from reports.metrics import LATENCY
from reports.words import clipped, condition, number, rejoined, significant
from simulator.core.errors import RunFolderError, reason
from simulator.core.files import read_file

MOST_ROWS, MOST_PANELS, MOST_NAMED = 24, 6, 8
_COLUMNS = {
    "capacity": ("method", "rate_per_s", "rate_lo_per_s", "rate_hi_per_s", "devices", "devices_lo", "devices_hi"),
    "recommend": ("method", "latency_mean_s", "loss_pct", "loss_lo_pct", "loss_hi_pct", "floor", "in_time"),
}

UNNAMED = "#aab0b8"  # colour of points that are not in the legend


class Answer(NamedTuple):
    """A decision, as in its JSON.

    Attributes:
        table: A row per alternative; the columns before the figures are the conditions.
        facts: The rest of the JSON, with `names`: the name of the method by label.
    """

    table: pd.DataFrame
    facts: Mapping[str, Any]

    @property
    def look(self) -> dict[str, Look]:
        """The look of each alternative."""
        return self.look_of([str(label) for label in self.facts["names"]])

    def look_of(self, labels: Sequence[str]) -> dict[str, Look]:
        """Return the looks of these labels only. With fewer settings of a method their shades differ more."""
        return looks((label, str(self.facts["names"][label])) for label in labels)


def read_answer(file: Path, kind: str) -> Answer:
    """Read a decision of the given kind from a JSON file.

    Raises:
        RunFolderError: The file cannot be read, or is not such a decision.
    """
    how = f"write one with ciar-sim {kind} ... --out {kind}.json"
    try:
        facts: dict[str, Any] = json.loads(read_file(file))
        if facts["decision"] != kind:
            raise RunFolderError(f"{file}: holds the answer of ciar-sim {facts['decision']}, not of {kind}; {how}")
        table = pd.DataFrame(facts.pop("table"))
        for name in _COLUMNS[kind]:
            if name in ("devices_lo", "devices_hi") and name not in table:  # an answer of an earlier version
                table[name] = math.nan
            if name not in ("method", "floor", "in_time"):
                table[name] = pd.to_numeric(table[name])  # may contain "inf" and null
        missing = {*map(str, table["method"])} - {*facts["names"]}
        if missing:
            raise KeyError(min(missing))
        table[list(_COLUMNS[kind])]
        _check(facts, kind)
    except OSError as error:
        raise RunFolderError(f"{file}: cannot be read: {reason(error)}; {how}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{file}: is not the answer of ciar-sim {kind}: {type(error).__name__}: {error}; {how}"
        ) from None
    return Answer(table, facts)


def _check(facts: Mapping[str, Any], kind: str) -> None:
    """Raise TypeError or ValueError if the facts that are drawn are not what the decision writes."""
    if not all(isinstance(name, str) for name in facts["names"].values()):
        raise TypeError("names must be those of methods")
    figure = facts["slo_p95_s" if kind == "capacity" else "max_loss_pct"]
    if isinstance(figure, bool) or not isinstance(figure, int | float) or not 0 <= figure < 1e9:
        raise ValueError(f"{figure!r:.40} is no {'objective' if kind == 'capacity' else 'loss'}")
    if kind == "recommend":
        verified = facts.get("verified") or []
        if not isinstance(facts["metric"], str) or not isinstance(verified, list):
            raise TypeError("metric must be a text, and verified a list")
        for one in verified:
            if not isinstance(one["held"], bool) or one["method"] not in facts["names"]:
                raise ValueError("verified must name methods and whether they held")


def decision_plot(answer: Answer, kind: str, form: Form = PAGE, methods: Sequence[str] = ()) -> Figure:
    """Draw the plot of a decision.

    Args:
        answer: The decision.
        kind: "capacity" or "recommend".
        form: Size and titles.
        methods: Labels or names of the alternatives to draw, empty for all.

    Raises:
        RunFolderError: There is no such method.
    """
    names: Mapping[str, str] = answer.facts["names"]
    methods = rejoined(",".join(methods), {*names, *names.values()})
    for name in methods:
        if name not in {*names, *names.values()}:
            raise RunFolderError(f"--methods {name}: no method of this answer; it has {', '.join(names)}")
    if methods:
        kept = [bool({label, names[label]} & set(methods)) for label in answer.table["method"]]
        answer = answer._replace(table=answer.table[kept])
    with styled(form):
        return (_capacity if kind == "capacity" else _recommend)(answer, form)


def _capacity(answer: Answer, form: Form) -> Figure:
    """Draw the largest load of each alternative in descending order: requests per second, or devices of a closed loop."""
    table = answer.table.sort_values(["devices", "rate_per_s"], ascending=False, kind="stable")
    conditions = tuple(name for name in list(table.columns)[1 : list(table.columns).index("rate_per_s")])
    by_rate = bool(table["rate_per_s"].notna().any())
    column = "rate_per_s" if by_rate else "devices"
    shown = table.head(MOST_ROWS)
    rows_in, around_in = (0.2, 0.75) if form.compact else (0.34, 0.95)  # around: title, ticks and axis label
    figure = new_figure(6.8, around_in + rows_in * len(shown), form)
    ax = figure.subplots()
    look, size = answer.look, form.marker
    bounds = ("rate_lo_per_s", "rate_hi_per_s") if by_rate else ("devices_lo", "devices_hi")
    known = shown[[column, *bounds]].to_numpy(float)
    top = float(known[np.isfinite(known)].max(initial=0.0)) or 1.0
    for place, (_, row) in enumerate(shown.iterrows()):
        one, value = look[str(row["method"])], float(row[column])
        endless = math.isinf(value)
        at = top if endless else value
        ax.plot([0, at], [place, place], color=one.colour, lw=1.2 * size, alpha=0.45, zorder=1)
        ends = [float(row[name]) for name in bounds]
        if np.isfinite(ends).all():
            bar = np.maximum([[at - ends[0]], [ends[1] - at]], 0.0)
            ax.errorbar(
                at, place, xerr=bar, fmt="none", ecolor=one.colour, elinewidth=1.6 * size, capsize=3 * size, zorder=2
            )
        ax.plot(at, place, ls="", zorder=3, clip_on=False, **one.point(7.0 * size))
        text = "above all tried" if endless else _load(row, by_rate)
        right = max(at, ends[1]) if np.isfinite(ends[1]) else at
        ax.text(
            right + (0.06 if form.compact else 0.03) * top, place, text, va="center", fontsize=6 if form.compact else 8
        )
    labels = [
        " ".join(filter(None, [str(row["method"]), condition(_plain(row), conditions)])) for _, row in shown.iterrows()
    ]
    ax.set_yticks(range(len(shown)), [clipped(label, 24 if form.compact else 40) for label in labels], color=INK)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlim(0, top * (1.9 if form.compact else 1.4))
    ax.set_xlabel("highest rate (requests per second)" if by_rate else "largest number of devices")
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    slo_s = float(answer.facts["slo_p95_s"])
    if form.titles:
        wrapped_title(ax, f"Load carried with a p95 latency within {number(slo_s)} s", figure.get_figwidth() - 1.5)
    notes = [
        "Bars: 95 % interval.",
        left_out(len(shown), len(table), "cases", "those that carry most"),
    ]
    finish(figure, form, (), notes)
    return figure


def _load(row: pd.Series, by_rate: bool) -> str:
    devices = f"{row['devices']:,.0f} device{'s' * (row['devices'] != 1)}"
    if not by_rate:
        return devices
    return f"{significant(float(row['rate_per_s']))}/s, {devices}" if row["rate_per_s"] > 0 else "carries none"


def _recommend(answer: Answer, form: Form) -> Figure:
    """Draw quality loss against mean latency, a panel per condition. The area beyond the floor is shaded, the recommendation ringed."""
    table, facts = answer.table, answer.facts
    conditions = tuple(name for name in table.columns[: list(table.columns).index("method")])
    where = [condition(_plain(row), conditions) for _, row in table.iterrows()]
    panels = list(dict.fromkeys(where))
    shown = spread(panels, MOST_PANELS)
    across = 1 if form.compact else min(len(shown), 3)
    high = 2.1 if form.compact else 3.2
    figure = new_figure(max(6.8, 3.8 * across), high * math.ceil(len(shown) / across), form)
    grid = figure.subplots(math.ceil(len(shown) / across), across, squeeze=False, sharey=True)
    held = pd.DataFrame(facts.get("verified") or [])
    held = held[held["held"].astype(bool)] if len(held) else held
    floor, size = float(facts["max_loss_pct"]), form.marker
    named = _named(answer, where, list(held["method"]) if len(held) else [])
    look = answer.look_of(named)
    grey = {name: one._replace(colour=UNNAMED) for name, one in answer.look.items() if name not in look}
    ends = table[["loss_pct", "loss_lo_pct", "loss_hi_pct"]].to_numpy(float)
    known = [*ends[np.isfinite(ends)].tolist(), 0.0, floor]
    room = 0.08 * max(max(known) - min(known), 1.0)
    limits = min(known) - room, max(known) + room
    ringed = False
    for ax, panel in zip(grid.flat, shown, strict=False):
        ax.axhspan(floor, limits[1], color=INK, alpha=0.07, lw=0, zorder=0)
        ax.axhline(floor, color=INK, lw=1.0 * size, ls=(0, (4, 3)), zorder=1)
        of_panel = table[[place == panel for place in where]]
        chosen = _chosen(held, panel, conditions)
        for _, row in of_panel.iterrows():
            label = str(row["method"])
            allowed = row["floor"] == "keeps" and bool(row["in_time"])
            ringed |= label == chosen
            one = look[label] if label in look else grey[label]
            _candidate(ax, row, one._replace(fill="full" if allowed else "none"), label == chosen, size)
        title = panel if not form.titles else f"{panel or 'recommended'}: {chosen or 'base'}"
        wrapped_title(ax, title, figure.get_figwidth() / across - (0.5 if form.compact else 0.9))
        ax.set_xlabel(LATENCY.heading)
        ax.set_xlim(left=0.0)
    for ax in list(grid.flat)[len(shown) :]:
        ax.set_axis_off()
    for row in grid:
        row[0].set_ylim(*limits)
        row[0].set_ylabel(f"{facts['metric']} lost{'' if form.compact else ' against base'} (%)")
    others = {one.marker: one for name, one in grey.items() if name in set(table["method"])}
    filled = look | {f"{one.method}, other settings": one for one in others.values()}
    handles: list[Line2D | Patch] = [
        handle(name, one._replace(fill="full"), form, line=False) for name, one in filled.items()
    ]
    dot: dict[str, Any] = {"ls": "", "marker": "o"}
    unmet = "not shown to meet floor and objective"
    handles.append(Line2D([], [], **dot, ms=6 * size, mfc="white", mec=MUTED, label=unmet))
    handles.append(Patch(facecolor=INK, alpha=0.1, label=f"more than {number(floor)} % lost"))
    if ringed:
        handles.append(Line2D([], [], **dot, ms=10 * size, mfc="none", mec=INK, label="recommended"))
    notes = [
        "Left is faster, low is better. Bars are 95 % intervals of the loss.",
        left_out(len(shown), len(panels), "conditions", EVENLY),
    ]
    finish(figure, form, handles, notes)
    return figure


def _named(answer: Answer, where: Sequence[str], held: Sequence[str]) -> list[str]:
    """Return the labels in the legend, in the order of the answer: all, or base, the verified ones and the front of latency and loss.

    The front is cut to the room in the legend; the labels with the lowest losses come first.
    """
    table, names = answer.table, answer.facts["names"]
    there = [label for label in names if label in set(table["method"])]
    if len(there) <= MOST_NAMED:
        return there
    kept = dict.fromkeys([*(label for label in there if names[label] == "base"), *held])
    front = []
    for panel in dict.fromkeys(where):
        best = math.inf
        for _, row in table[[place == panel for place in where]].sort_values("latency_mean_s").iterrows():
            if row["loss_pct"] < best:  # False of NaN
                best = float(row["loss_pct"])
                front.append((best, str(row["method"])))
    for _, label in sorted(front):
        if len(kept) < MOST_NAMED:
            kept[label] = None
    return [label for label in there if label in kept]


def _candidate(ax: Axes, row: pd.Series, one: Look, chosen: bool, size: float) -> None:
    x, y = float(row["latency_mean_s"]), float(row["loss_pct"])
    if not (math.isfinite(x) and math.isfinite(y)):
        return
    low, high = float(row["loss_lo_pct"]), float(row["loss_hi_pct"])
    if math.isfinite(low) and math.isfinite(high):
        bar = np.maximum([[y - low], [high - y]], 0.0)
        ax.errorbar(x, y, yerr=bar, fmt="none", ecolor=one.colour, elinewidth=1.2 * size, alpha=0.75)
    ax.plot(x, y, ls="", zorder=4, **one.point(7.0 * size))
    if chosen:
        ax.plot(x, y, "o", zorder=5, ms=14 * size, mfc="none", mec=INK, mew=1.3 * size)


def _chosen(held: pd.DataFrame, panel: str, conditions: tuple[str, ...]) -> str | None:
    """Return the alternative that was verified under a condition; None for base."""
    for _, row in held.iterrows():
        if condition(_plain(row), conditions) == panel:
            return str(row["method"])
    return None


def _plain(row: pd.Series) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}

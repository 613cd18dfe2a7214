"""Plots over two settings of a method, over load, and of the distribution of latency."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from reports.figure import (
    EVENLY,
    GRID,
    INK,
    PAGE,
    Form,
    cross,
    finish,
    from_zero,
    handle,
    left_out,
    logarithmic,
    new_figure,
    scale_x,
    spread,
    text_width,
    wrapped_title,
)
from reports.findings import Finding, best_labels, is_base, pareto_front, quality_metric
from reports.load import Run, panels_along
from reports.looks import looks
from reports.metrics import BUSY, CALLS, GOODPUT, LATENCY, P95, Metric
from reports.words import apart_note, axis_label, joined, number, own_setting, shortened, significant, split_unit

# Rows of heat maps, lines of a panel, cells of a heat map up to which values are written into them.
MOST_CONDITIONS, MOST_LINES, MOST_WRITTEN = 3, 8, 120
MOST_KNEES = 3  # named in a title
KNEE = 2.0  # without an objective, p95 at the knee as a multiple of that at the lowest load
FRONT = "#e4572e"  # outline of the Pareto front
HEAT = mpl.colormaps["cividis"].with_extremes(bad=GRID)


def heat_maps(run: Run, x: str, y: str, form: Form = PAGE) -> Figure:
    """Draw heat maps of latency, cloud calls and quality over two settings of one method: a row per condition, up to three.

    Settings that fill less than half of their grid, as those of `tune` and random points do, are drawn as points.
    """
    own = run.summary[run.summary[x].notna() & run.summary[y].notna()]
    own = own[np.isfinite(own[x].astype(float)) & np.isfinite(own[y].astype(float))]
    conditions = list(dict.fromkeys(own["condition"]))
    shown = spread(conditions, 1 if form.compact else MOST_CONDITIONS)
    maps = (LATENCY, CALLS, quality_metric(run))
    xs, ys = (sorted(set(map(float, own[key]))) for key in (x, y))
    tried = {name: own[own["condition"] == name].drop_duplicates([x, y]) for name in shown}
    in_grid = max(map(len, tried.values()), default=0) >= 0.5 * len(xs) * len(ys)
    across, down = (1, len(maps)) if form.compact else (len(maps), len(shown))
    figure = new_figure(11.5, (1.5 if form.compact else 2.9) * down, form)
    grid = figure.subplots(down, across, squeeze=False)
    edge = 2.0 * form.marker
    outline: dict[str, Any] = {
        "ec": FRONT,
        "lw": edge,
        "zorder": 3,
        "path_effects": [withStroke(linewidth=2.0 * edge, foreground="white")],
    }
    for row, (name, cases) in enumerate(tried.items()):
        front = cases[cases["label"].isin(pareto_front(cases, maps[2].loss))]
        base = next((one for _, one in run.summary[run.summary["condition"] == name].iterrows() if is_base(one)), None)
        for place, metric in enumerate(maps):
            ax = grid[place][0] if form.compact else grid[row][place]
            if in_grid:
                drawn: Any = _cells(ax, cases, (x, y), (xs, ys), metric, form)
                for _, best in front.iterrows():
                    corner = xs.index(float(best[x])) - 0.5, ys.index(float(best[y])) - 0.5
                    ax.add_patch(Rectangle(corner, 1, 1, fill=False, clip_on=False, **outline))
            else:
                values = metric.scale * cases[metric.name]
                drawn = ax.scatter(
                    cases[x], cases[y], s=70 * form.marker**2, c=values, cmap=HEAT, ec=GRID, lw=0.5, zorder=2
                )
                ax.scatter(front[x], front[y], s=110 * form.marker**2, fc="none", **outline)
                scale_x([ax], np.array(xs), 8.0)
                ax.margins(0.08)
            figure.colorbar(drawn, ax=ax, pad=0.02).outline.set_visible(False)
            its = "" if base is None else f"; base\u00a0{significant(metric.scale * float(base[metric.name]))}"
            where = f"{name}: " if len(conditions) > 1 and form.titles and place == 0 else ""
            wrapped_title(ax, f"{where}{metric.heading}{its}", figure.get_figwidth() / across - 0.9)
            if place == 0 or form.compact:
                ax.set_ylabel(_setting(y))
            if row == len(shown) - 1 and (not form.compact or place == len(maps) - 1):
                ax.set_xlabel(_setting(x))
    notes = [
        f"Outlined: the Pareto front of latency and {maps[2].title} among these settings, by the means. {maps[2].reading}",
        left_out(len(shown), len(conditions), "conditions", EVENLY),
    ]
    finish(figure, form, (), notes, run.as_if)
    return figure


def _cells(
    ax: Axes,
    cases: pd.DataFrame,
    keys: tuple[str, str],
    values: tuple[list[float], list[float]],
    metric: Metric,
    form: Form,
) -> AxesImage:
    """Draw a metric as a cell per pair of values, with its number if it fits. keys: swept keys along x and y; values: of each."""
    (x, y), (xs, ys) = keys, values
    table = cases.pivot_table(index=y, columns=x, values=metric.name, dropna=False)
    shown = metric.scale * table.reindex(index=ys, columns=xs).to_numpy(dtype=float)
    drawn = ax.imshow(shown, cmap=HEAT, origin="lower", aspect="auto")
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    box = ax.get_position()
    assert isinstance(ax.figure, Figure)
    # Inches without labels.
    wide, tall = 0.75 * box.width * ax.figure.get_figwidth(), 0.75 * box.height * ax.figure.get_figheight()
    size = 5.0 if form.compact else 7.0
    text: dict[tuple[int, ...], str] = {}
    for digits in (3, 2):  # as many as fit
        text = {place: significant(float(shown[place]), digits) for place in np.ndindex(*shown.shape)}
        if fits := max(text_width(one, size) for one in text.values()) < wide / len(xs):
            break
    if shown.size <= MOST_WRITTEN and fits:
        for j, i in text:
            if math.isfinite(shown[j, i]):
                dark = shown[j, i] < low + 0.48 * (high - low)
                ax.text(i, j, text[j, i], ha="center", va="center", fontsize=size, color="white" if dark else INK)
    names = [[number(short) for short in map(shortened(own).get, own)] for own in (xs, ys)]
    ticks = float(FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points())
    every_x = math.ceil(len(xs) * (max(text_width(one, ticks) for one in names[0]) + 0.08) / wide)
    every_y = math.ceil(len(ys) * 1.3 * ticks / 72 / tall)
    ax.set_xticks(range(0, len(xs), every_x), names[0][::every_x])
    ax.set_yticks(range(0, len(ys), every_y), names[1][::every_y])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return drawn


def setting_pair(run: Run) -> tuple[str, str] | None:
    """Return two swept numbers of one method, its threshold first, or None. Some condition must have several settings of it."""
    by_method: dict[str, list[str]] = {}
    for key in run.swept:
        own = own_setting(key)
        values = pd.to_numeric(run.summary[key], errors="coerce")
        if own and values[np.isfinite(values)].nunique() > 1:
            by_method.setdefault(own[0], []).append(key)
    keys = next((keys for keys in by_method.values() if len(keys) > 1), None)
    if keys is None:
        return None
    first = next((key for key in keys if key.endswith((".threshold", ".call_pct"))), keys[0])
    second = next(key for key in keys if key != first)
    several = run.summary.dropna(subset=[first, second]).groupby("condition").size().max() > 1
    return (first, second) if several else None


def _setting(key: str) -> str:
    own = own_setting(key)
    return axis_label(key).removeprefix(f"{own[0]} ") if own else axis_label(key)


def latency_cdf(run: Run, findings: Sequence[Finding], form: Form = PAGE) -> Figure:
    """Draw the share of requests answered within a latency: a panel per condition, with the methods that have the lowest means."""
    ran = [said for said in findings if said.fastest != "none"]
    shown = spread(ran, 3 if form.compact else 6)
    names = best_labels(run, MOST_LINES)
    look = looks(run.series)
    across = 1 if form.compact else min(len(shown), 3)
    down = math.ceil(len(shown) / across)
    figure = new_figure(max(4.2 * across, 6.8), (1.8 if form.compact else 3.2) * down, form)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    requests, warm = run.requests.groupby("case"), run.setting("workload.warmup_s", 0.0)
    least, most = math.inf, 0.0
    for place, ax in enumerate(grid.flat):
        if place >= len(shown):
            ax.set_axis_off()
            continue
        said = shown[place]
        for _, row in said.cases[said.cases["label"].isin(names)].iterrows():
            if not np.isfinite(row["latency_mean_s"]):
                continue
            own = requests.get_group(row["case"])
            seconds = np.sort(
                own.loc[own["requested_s"] >= run.setting_of(row, "workload.warmup_s", warm), "latency_s"]
            )
            least, most = min(least, float(seconds[0])), max(most, float(seconds[-1]))
            one = look[str(row["label"])]
            share = np.arange(len(seconds) + 1) / len(seconds) * 100
            line = {"color": one.colour, "ls": one.dash, "lw": 1.5 * form.marker, "drawstyle": "steps-post"}
            ax.plot(np.concatenate([seconds[:1], seconds]), share, **line)
            for percent in (50, 95):
                at = float(row[f"latency_p{percent}_s"])
                ax.plot(at, percent, ls="", zorder=4, **one.point(6.0 * form.marker))
        ax.axhline(95, color=INK, lw=0.8, ls=(0, (1, 2)), zorder=1)
        wrapped_title(
            ax, said.titled(form.titles, len(findings)), figure.get_figwidth() / across - (0.5 if form.compact else 0.9)
        )
        if place % across == 0:
            ax.set_ylabel("requests answered (%)")
        if place + across >= len(shown):
            ax.set_xlabel("latency of a request (s)")
            ax.xaxis.set_tick_params(labelbottom=True)
    scale_x([*grid.flat][: len(shown)], np.array([least, most]), 4.0)
    grid[0][0].set_ylim(0, 101)
    notes = [
        "Markers: p50 and p95. Dotted: 95 %. Requests before the warm-up are left out.",
        left_out(len(names), len(run.labels()), "methods", "base and the fastest"),
        left_out(len(shown), len(ran), "conditions", EVENLY),
    ]
    handles = [handle(name, look[name], form) for name in names]
    finish(figure, form, handles, notes, run.as_if)
    return figure


# Numbers that rise with the load: not think_s or time_scale, and none of the run's own times.
_LOADS = re.compile(
    r"workload\.(devices|arrivals\.(poisson|bursty)_per_s)|cloud\.(tiers\.[^.]+\.)?background\.utilisation"
)


def load_axes(run: Run) -> list[str]:
    """Return the swept numbers that set the load: arrival rate, number of devices or background jobs."""
    values = {key: pd.to_numeric(run.summary[key], errors="coerce") for key in run.swept if _LOADS.fullmatch(key)}
    return [key for key, column in values.items() if column[np.isfinite(column)].nunique() > 1]


def load_curves(run: Run, key: str, form: Form = PAGE) -> Figure:
    """Draw p95 and goodput (else the cloud's utilisation) against the load, with the latency objective and the knee of each method.

    The knee is the load at which p95 exceeds the objective (`workload.slo_s`), or without one twice its value at the lowest load. It is
    interpolated between the runs. There is a column per combination of the other conditions, up to three. Points that differ in them, as
    random points do, are in one column, not joined, and have no knee.
    """
    panels = panels_along(run.summary, run.swept, key)
    table = run.summary.assign(column=panels.names)
    columns = list(dict.fromkeys(table["column"]))
    shown = spread(columns, 1 if form.compact else MOST_CONDITIONS)
    names = best_labels(run, MOST_LINES)
    look = looks(run.series)
    lower: Metric = GOODPUT if np.isfinite(run.summary["goodput_per_s"]).any() else BUSY
    slo, own_slo_s = "workload.slo_s", run.setting("workload.slo_s", math.nan)
    slos_s = {str(row["column"]): run.setting_of(row, slo, own_slo_s) for _, row in table.iterrows()}
    figure = new_figure(max(4.4 * len(shown), 6.8), 3.2 if form.compact else 5.6, form)
    grid = figure.subplots(2, len(shown), squeeze=False, sharex=True, sharey="row", height_ratios=[1.3, 1])
    drawn = table.loc[table["label"].isin(names), "latency_p95_s"].to_numpy(dtype=float)
    highest, lowest = (float(end(drawn)) for end in (np.nanmax, np.nanmin)) if np.isfinite(drawn).any() else (0.0, 1.0)
    scale_x([*grid.flat], table[key].to_numpy(dtype=float), 8.0)
    if highest > 8 * lowest > 0:
        for ax in grid[0]:
            logarithmic(ax, "y")
    else:
        grid[0][0].set_ylim(0, 1.08 * max(highest, *(bound for bound in slos_s.values() if math.isfinite(bound)), 0.0))
    crossed = False
    for place, column in enumerate(shown):
        own, slo_s = table[table["column"] == column], slos_s[column]
        upper, under = grid[0][place], grid[1][place]
        knees: dict[str, float] = {}  # load by label; -inf if p95 is beyond the bound at the lowest load already
        for label in names:
            rows = own[(own["label"] == label) & np.isfinite(own["latency_p95_s"])].sort_values(key)
            if rows.empty:
                continue
            style = look[label].line(5.5 * form.marker, 1.5 * form.marker) | ({} if panels.joined else {"ls": ""})
            x, p95 = rows[key].to_numpy(dtype=float), rows["latency_p95_s"].to_numpy(dtype=float)
            upper.plot(x, p95, **style)
            under.plot(x, lower.scale * rows[lower.name], **style)
            if not panels.joined:
                continue
            bound = slo_s if math.isfinite(slo_s) else KNEE * p95[0]
            at = knee(x, p95, bound, log_x=upper.get_xscale() == "log", log_y=upper.get_yscale() == "log")
            if math.isfinite(at):
                cross(upper, at, bound, look[label], form)
                knees[label] = at
                crossed = True
            elif p95[0] > bound:
                knees[label] = -math.inf
        if math.isfinite(slo_s):
            upper.axhline(slo_s, color=INK, lw=1.0 * form.marker, ls=(0, (4, 3)), zorder=1)
        title = _knees_in_words(knees, slo_s, split_unit(key)[1])
        if not panels.joined:
            title = f"{P95.title} at {own['condition'].nunique()} points"
        if not np.isfinite(own["latency_p95_s"]).any():
            title = "no request was answered"
        if form.titles or column:
            wide = figure.get_figwidth() / len(shown) - (0.5 if form.compact else 0.9)
            wrapped_title(upper, (f"{column}: {title}" if column else title) if form.titles else column, wide)
        if place == 0:
            upper.set_ylabel(P95.heading)
            under.set_ylabel(lower.heading)
        under.set_xlabel(axis_label(key))
        from_zero(under)
    notes = [
        _objective([slos_s[column] for column in shown]),
        "Crosses: the knee, interpolated between the runs." if crossed else "",
        apart_note(panels.apart, key, panels.joined),
        left_out(len(names), len(run.labels()), "methods", "base and the fastest"),
        left_out(len(shown), len(columns), "conditions", EVENLY),
    ]
    finish(figure, form, [handle(name, look[name], form, line=panels.joined) for name in names], notes, run.as_if)
    return figure


def _knees_in_words(knees: Mapping[str, float], slo_s: float, unit: str) -> str:
    """Describe at which load which methods pass the objective or, without one, a multiple of their p95 at the lowest load.

    knees: load by label; -inf for a method beyond the bound at the lowest load already.
    """
    limit = f"{number(slo_s)} s" if math.isfinite(slo_s) else f"{KNEE:g}× its lowest"
    found = sorted((at, label) for label, at in knees.items() if math.isfinite(at))
    above = [label for label, at in knees.items() if not math.isfinite(at)]
    said = [f"{label} at {significant(at, 2)} {unit}".strip() for at, label in found[-MOST_KNEES:][::-1]]
    if above:
        few = joined(above) if len(above) <= MOST_KNEES else f"{len(above)} methods"
        said.append(f"{few} at the lowest load already")
    return f"p95 passes {limit}: {', '.join(said)}" if said else f"p95 stays within {limit}"


def _objective(slos_s: Sequence[float]) -> str:
    """Return what the footnote says of the objectives of the columns."""
    if not any(map(math.isfinite, slos_s)):
        return "The scenario has no workload.slo_s."
    return f"Dashed: the objective, {number(slos_s[0])} s." if len(set(slos_s)) == 1 else "Dashed: the objective."


def knee(x: np.ndarray, y: np.ndarray, bound: float, *, log_x: bool = False, log_y: bool = False) -> float:
    """Return the x at which y first exceeds the bound, or NaN. The curve is interpolated linearly on the scales of the plot."""
    if log_y:
        y, bound = np.log(y), math.log(bound)
    for i in range(1, len(x)):
        if y[i - 1] <= bound < y[i]:
            ends = np.log(x[i - 1 : i + 1]) if log_x else x[i - 1 : i + 1]
            at = float(ends[0] + (ends[1] - ends[0]) * (bound - y[i - 1]) / (y[i] - y[i - 1]))
            return math.exp(at) if log_x else at
    return math.nan

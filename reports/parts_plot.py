"""Stacked bars of the parts of the mean latency of each method."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch

from reports.figure import EVENLY, INK, PAGE, Form, finish, left_out, new_figure, spread, text_width, wrapped_title
from reports.findings import Finding, is_base
from reports.load import Run
from reports.looks import PART_COLOURS
from reports.metrics import LATENCY
from reports.words import clipped, significant, times

MOST_PANELS, MOST_BARS = 6, 12
SHARED_UP_TO = 4.0  # largest ratio of the longest bars of two panels up to which panels share a scale


def latency_parts(run: Run, findings: Sequence[Finding], form: Form = PAGE) -> Figure:
    """Draw the ten parts of the mean latency as stacked bars: a bar per case, a panel per condition."""
    ran = [said for said in findings if said.fastest != "none"]
    shown = [(said, _bars(said.cases)) for said in spread(ran, MOST_PANELS)]
    heights = [len(cases) + 1.6 for _, cases in shown]
    figure = new_figure(10.0, (0.19 if form.compact else 0.30) * sum(heights) + 0.4, form)
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    names = {_name(label, form) for _, cases in shown for label in cases["label"]}
    ticks = FontProperties(size=mpl.rcParams["ytick.labelsize"]).get_size_in_points()
    wide = figure.get_figwidth() - max(text_width(name, ticks) for name in names) - (0.25 if form.compact else 0.6)
    longest = [float(cases["latency_mean_s"].max()) for _, cases in shown]
    shared = max(longest) <= SHARED_UP_TO * min(longest)
    for ax, (said, cases), own in zip(axes, shown, longest, strict=True):
        wrapped_title(ax, said.titled(form.titles, len(ran)), wide)
        _panel(ax, said, cases, max(longest) if shared else own, form)
    axes[-1].set_xlabel(LATENCY.heading)
    handles = [
        Patch(color=colour, label=part.removesuffix("_s").replace("_", " "))
        for part, colour in PART_COLOURS.items()
        if any((cases[part] > 0).any() for _, cases in shown)
    ]
    notes = [
        "The mean per image, along the critical path; the parts of a bar add up to it.",
        "Blue: device. Orange: network. Green: cloud. Purple: caption encoder.",
    ]
    if not shared:
        notes.append("Each panel has its own scale.")
    notes.append(left_out(len(shown), len(ran), "conditions", EVENLY))
    if any(len(cases) < np.isfinite(said.cases["latency_mean_s"]).sum() for said, cases in shown):
        notes.append(f"{MOST_BARS} methods of each: base and the fastest.")
    finish(figure, form, handles, notes, run.as_if)
    return figure


def _name(label: str, form: Form) -> str:
    return clipped(label, 22 if form.compact else 36)


def _bars(cases: pd.DataFrame) -> pd.DataFrame:
    """Return the cases that get a bar, in order: base and the fastest."""
    ran = cases[np.isfinite(cases["latency_mean_s"])]
    slower = ran["method_name"] != "base"
    kept = ran.assign(slower=slower).sort_values(["slower", "latency_mean_s"], kind="stable").index[:MOST_BARS]
    return pd.DataFrame(ran.loc[ran.index.isin(kept)])


def _panel(ax: Axes, said: Finding, cases: pd.DataFrame, top: float, form: Form) -> None:
    """Draw the bars of one condition. top: the longest bar of the scale, in seconds."""
    left, at = np.zeros(len(cases)), np.arange(len(cases))
    for part, colour in PART_COLOURS.items():
        seconds = np.nan_to_num(cases[part].to_numpy(dtype=float))
        some = seconds > 0
        edges = np.where(seconds[some] > 0.01 * top, 0.5, 0.0)  # an edge would cover a short part
        ax.barh(at[some], seconds[some], left=left[some], height=0.72, color=colour, ec="white", lw=edges)
        left = left + seconds
    for place, (_, row) in enumerate(cases.iterrows()):
        with_gain = not is_base(row) and math.isfinite(row["speedup"])
        gain = f"  ({times(row['speedup'])}× base)" if with_gain else ""
        weight = "bold" if row["label"] == said.fastest else "normal"
        text = f"{significant(row['latency_mean_s'])} s{gain}"
        ax.text(
            left[place] + 0.008 * top, place, text, va="center", fontsize=6 if form.compact else 8, fontweight=weight
        )
    ax.set_yticks(at, [_name(label, form) for label in cases["label"]], color=INK)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(cases) - 0.45, -0.55)
    ax.set_xlim(0, top * (1.8 if form.compact else 1.2))
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)

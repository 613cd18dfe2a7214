"""The parts of the mean latency of each method, stacked."""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.figure import INK, MOST_BARS, MOST_CONDITIONS, PART_COLOURS, SHARED_UP_TO, _figure, _foot, _wrapped_title
from reports.findings import finding, is_base
from reports.load import PARTS, Run
from reports.words import significant

# ---- where the seconds go ---------------------------------------------------------------------------------------------


def latency_parts(run: Run) -> Figure:
    """The ten parts of the mean latency as stacked bars, a bar per case, a panel per condition."""
    groups = [(condition, cases[np.isfinite(cases["latency_mean_s"])]) for condition, cases in run.conditions()]
    groups = [(condition, cases) for condition, cases in groups if len(cases)]
    titles = {
        condition: finding(condition, cases, where=len(groups) > 1) for condition, cases in groups
    }  # of all, shown or not
    groups = [(condition, cases.iloc[:MOST_BARS]) for condition, cases in groups]
    shown = [
        groups[i]
        for i in sorted({round(i) for i in np.linspace(0, len(groups) - 1, min(len(groups), MOST_CONDITIONS))})
    ]
    heights = [len(cases) + 1.6 for _, cases in shown]
    figure = _figure(10.0, 0.30 * sum(heights) + 1.9)
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    longest = [float(cases["latency_mean_s"].max()) for _, cases in shown]
    shared = max(longest) <= SHARED_UP_TO * min(longest)
    for ax, (condition, cases), longest_here in zip(axes, shown, longest, strict=True):
        said = titles[condition]
        _wrapped_title(ax, said.title, 7.2)
        top = max(longest) if shared else longest_here
        left = np.zeros(len(cases))
        at = np.arange(len(cases))
        for part in PARTS:
            seconds = cases[part].to_numpy(dtype=float)
            ax.barh(at, seconds, left=left, height=0.72, color=PART_COLOURS[part], ec="white", lw=0.5)
            left = left + np.nan_to_num(seconds)
        for place, (_, row) in enumerate(cases.iterrows()):
            gain = (
                ""
                if is_base(row) or not math.isfinite(row["speedup"])
                else f"  ({significant(row['speedup'], 2)}× base)"
            )
            bold = "bold" if row["label"] == said.fastest else "normal"
            text = f"{significant(row['latency_mean_s'])} s{gain}"
            ax.text(left[place] + 0.008 * top, place, text, va="center", fontsize=8, fontweight=bold)
        ax.set_yticks(at, [textwrap.shorten(label, 36, placeholder="…") for label in cases["label"]], color=INK)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(cases) - 0.45, -0.55)
        ax.set_xlim(0, top * 1.2)
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
    axes[-1].set_xlabel("mean seconds per image along the critical path (s)")
    handles = [Patch(color=PART_COLOURS[part], label=part.removesuffix("_s").replace("_", " ")) for part in PARTS]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8, handlelength=1.1, handleheight=1.1)
    notes = ["Blue: device. Orange: network. Green: cloud. Purple: caption encoder."]
    if not shared:
        notes.append("Each panel has its own scale.")
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} conditions.")
    if max(len(cases) for _, cases in run.conditions()) > MOST_BARS:
        notes.append(f"The first {MOST_BARS} methods of each.")
    _foot(figure, run, " ".join(notes))
    return figure

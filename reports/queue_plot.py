"""The cloud's queue over time."""

import textwrap

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.figure import MOST_CONDITIONS, MOST_LABELS, _figure, _foot, colours
from reports.load import Run

# ---- the cloud over time ---------------------------------------------------------------------------------------------


def queue_over_time(run: Run) -> Figure:
    """Requests that wait in the cloud against time, a panel per condition, a line per method; the methods with the longest queues."""
    queue = run.queue.assign(waiting=run.queue["queued"] + run.queue["admission"])
    groups = list(run.conditions())
    shown = [
        groups[i]
        for i in sorted({round(i) for i in np.linspace(0, len(groups) - 1, min(len(groups), MOST_CONDITIONS))})
    ]
    hue, mean = colours(run), queue.groupby("case")["waiting"].mean()
    figure = _figure(10.0, 1.9 * len(shown) + 1.4)
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    seen: dict[str, None] = {}
    for ax, (condition, cases) in zip(axes, shown, strict=True):
        ax.set_title(condition)
        longest = (
            cases.assign(mean=cases["case"].map(mean)).dropna(subset="mean").nlargest(MOST_LABELS, "mean", keep="first")
        )
        for _, row in longest.sort_index().iterrows():
            one = queue[queue["case"] == row["case"]]
            ax.plot(one["time_s"], one["waiting"], drawstyle="steps-post", color=hue[row["label"]], lw=1.1)
            seen[row["label"]] = None
        ax.set_ylim(bottom=0)
        ax.set_ylabel("waiting")
        ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes[-1].set_xlabel("simulated time (s)")
    handles = [Line2D([], [], color=hue[label], label=textwrap.shorten(label, 36, placeholder="…")) for label in seen]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=8)
    notes = [
        "Requests that wait in the cloud, for a batch or for admission, looked at 240 times in the duration of the arrivals."
    ]
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} conditions.")
    if max(len(cases) for _, cases in groups) > MOST_LABELS:
        notes.append(f"The {MOST_LABELS} methods of each with the longest queues.")
    _foot(figure, run, " ".join(notes))
    return figure

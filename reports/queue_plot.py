"""The cloud's queue over time."""

from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.figure import Figure

from reports.figure import EVENLY, PAGE, Form, finish, handle, left_out, new_figure, spread, wrapped_title
from reports.findings import Finding
from reports.load import Run
from reports.looks import looks

MOST_PANELS, MOST_LINES = 6, 8


def queue_over_time(run: Run, findings: Sequence[Finding], form: Form = PAGE) -> Figure:
    """Draw the requests waiting in the cloud over time: a panel per condition, with lines of the methods that have the longest queues."""
    queue = run.queue.assign(waiting=run.queue["queued"] + run.queue["admission"])
    shown = spread(findings, MOST_PANELS)
    look = looks(run.series)
    mean = queue.groupby("case")["waiting"].mean()
    figure = new_figure(10.0, (1.2 if form.compact else 1.9) * len(shown), form)
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    drawn: dict[str, None] = {}
    for ax, said in zip(axes, shown, strict=True):
        wrapped_title(ax, said.condition if len(findings) > 1 else "", figure.get_figwidth() - 0.9)
        known = said.cases.assign(mean=said.cases["case"].map(mean)).dropna(subset="mean")
        for _, row in known.nlargest(MOST_LINES, "mean", keep="first").sort_index().iterrows():
            one = queue[queue["case"] == row["case"]]
            style = look[row["label"]]
            ax.plot(
                one["time_s"],
                one["waiting"],
                drawstyle="steps-post",
                color=style.colour,
                ls=style.dash,
                lw=1.1 * form.marker,
                gid=style.gid,
            )
            drawn[row["label"]] = None
        ax.set_ylim(0, max(1.0, ax.get_ylim()[1]))
        ax.set_ylabel("waiting\nrequests")
        ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes[-1].set_xlabel("simulated time (s)")
    notes = [
        "Requests that wait in the cloud, for a batch or for admission: 240 samples over the duration of the "
        "arrivals, and on at this interval to the end."
    ]
    notes.append(left_out(len(shown), len(findings), "conditions", EVENLY))
    if max(len(said.cases) for said in findings) > MOST_LINES:
        notes.append(f"The {MOST_LINES} methods of each with the longest queues.")
    handles = [handle(name, look[name]._replace(marker=""), form) for name in drawn]
    finish(figure, form, handles, notes, run.as_if)
    return figure

"""Plots of a result: `result.plot.figure("speed-up")`, or `result.plot.latency_quality(ax=ax)` on your own axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ciar_sim.arguments import check_number, check_texts
from simulator.core.errors import CiarSimError
from simulator.core.yamlfile import did_you_mean


@dataclass(frozen=True)
class Plots:
    """The plots of a run folder. Those of the report are also stored in its plots/."""

    folder: Path

    def figure(
        self,
        kind: str,
        *,
        width: float | None = None,
        height: float | None = None,
        methods: Sequence[str] = (),
        where: Sequence[str] = (),
        by: str | None = None,
        titles: bool = True,
    ) -> Any:
        """Draw a plot as `ciar-sim plot` does.

        Args:
            kind: The kind of plot, such as "speed-up".
            width: Width in inches, 3.3 for a column of a paper; None: wide.
            height: Height in inches; None: chosen by the plot.
            methods: Names or labels of the methods to draw; empty for all.
            where: Swept values to draw, such as "network.preset=lte"; empty for all.
            by: Swept key for the panels of latency-quality, or for the x axis of sweep, speed-up and load.
            titles: Whether to draw headings and a footnote.

        Returns:
            A matplotlib figure.

        Raises:
            CiarSimError: There is no such kind, or the run does not have the data for it; the message says what it needs.
        """
        from ciar_sim.cli.plot import LEAST, MOST
        from reports.figure import Form
        from reports.kinds import KINDS, plot
        from reports.load import load_run

        if kind not in KINDS:
            raise CiarSimError(f"plot {kind}: not a kind of plot{did_you_mean(kind, KINDS)}")
        for name, inches in (("width", width), ("height", height)):
            if inches is not None:
                check_number(name, inches, LEAST, MOST)
        names, values = check_texts("methods", methods), check_texts("where", where)
        return plot(load_run(self.folder), kind, Form(width, height, titles), names, by, values)

    def latency_quality(self, ax: Any = None, *, condition: str | None = None, metric: str | None = None) -> Any:
        """Draw mean latency against a quality metric: a point per method with 95 % intervals, and the Pareto front as stairs.

        Args:
            ax: Matplotlib axes to draw on; None: a new figure.
            condition: One of the run's conditions, such as "wifi"; required if there are several.
            metric: A quality column; None: that of the report.

        Returns:
            The axes.

        Raises:
            CiarSimError: No such condition or metric.
        """
        import numpy as np

        from reports.figure import INK, error_bars, new_figure, styled
        from reports.findings import find, pareto_front, quality_metric
        from reports.load import load_run
        from reports.looks import looks
        from reports.metrics import LATENCY

        run = load_run(self.folder)
        found = {said.condition: said for said in find(run)}
        if condition is None and len(found) == 1:
            condition = next(iter(found))
        if condition not in found:
            raise CiarSimError(f"condition {condition}: not one of this run{did_you_mean(condition, found)}")
        own = quality_metric(run)
        name = metric or own.name
        numbers = [str(column) for column in run.summary if run.summary[column].dtype.kind in "fi"]
        if name not in numbers:
            raise CiarSimError(f"metric {name}: not a column of numbers of this run{did_you_mean(name, numbers)}")
        if ax is not None and not hasattr(ax, "errorbar"):
            raise CiarSimError(f"ax: must be axes of matplotlib, got {type(ax).__name__}; of several axes choose one")
        cases = found[condition].cases
        cases = cases[np.isfinite(cases["latency_mean_s"]) & np.isfinite(cases[name])]
        with styled():
            if ax is None:
                ax = new_figure(4.6, 3.4).subplots()
            look = looks(run.series)
            for _, row in cases.iterrows():
                one = look[str(row["label"])]
                x, y = float(row["latency_mean_s"]), float(row[name])
                ends = error_bars(row, "latency_mean_s"), error_bars(row, name)
                ax.errorbar(x, y, xerr=ends[0], yerr=ends[1], fmt="none", ecolor=one.colour, elinewidth=1.2, alpha=0.75)
                ax.plot(x, y, ls="", label=str(row["label"]), zorder=4, **one.point())
            if name == own.name:
                front = cases[cases["label"].isin(pareto_front(cases, own.loss))].sort_values("latency_mean_s")
                ax.plot(front["latency_mean_s"], front[name], drawstyle="steps-post", color=INK, lw=0.9, zorder=2)
            ax.set_xlabel(LATENCY.heading)
            ax.set_ylabel(own.heading if name == own.name else name)
            ax.legend()
        return ax

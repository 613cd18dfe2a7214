"""Plots and page of a run, drawn from its folder only. Repetition gives the same bytes."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from reports.advice import advice, condition_keys, more_advice
from reports.figure import Form, left_out, render, spread, styled
from reports.findings import Finding, find, has_quality
from reports.image_grid import grid_prompts, image_grid
from reports.kinds import of_methods
from reports.load import Run, load_run, panels_along
from reports.page import page
from reports.parts_plot import latency_parts
from reports.quality_plot import TWO_ROWS_UP_TO, latency_quality, speedup_table
from reports.queue_plot import queue_over_time
from reports.setting_plots import heat_maps, load_axes, load_curves, setting_pair
from reports.sweep_plot import condition_axes, numeric_axes, speedup_along, sweep, sweep_name
from simulator.core.errors import RunFolderError, reason
from simulator.core.files import why_unusable, write_atomically
from simulator.core.forked import LostProcessError, can_fork, forked

MOST_AT_A_GLANCE = 4  # methods of the first plot
MOST_CASES = 2000  # in plots and page
MOST_PROCESSES = 4  # that draw at once; each has some hundred megabytes
PATIENCE_S = 600.0  # for a plot of a drawing process


def build_report(folder: Path) -> Path:
    """Write plots/*.png, plots/*.svg and report.html into a run folder.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: the folder is not a complete run folder, or cannot be written.
    """
    return write_report(thinned(load_run(folder), MOST_CASES), folder)


def write_report(run: Run, folder: Path) -> Path:
    """Write the report of a run in memory into a folder. Return the path of the page. Raises RunFolderError if writing fails."""
    if why := why_unusable(folder):
        raise RunFolderError(f"cannot write the report into {folder}: {why}")
    findings = find(run)
    plots = draw_plots(run, findings)
    report = folder / "report.html"
    text = page(run, findings, plots)
    try:
        (folder / "plots").mkdir(exist_ok=True)
        for old in (folder / "plots").iterdir():
            if old.suffix in (".png", ".svg") and old.name not in plots:
                old.unlink()
        for name, data in plots.items():
            write_atomically(folder / "plots" / name, data)
        write_atomically(report, text.encode("utf-8", "replace"))  # names of folders may hold other bytes
    except OSError as error:
        raise RunFolderError(f"cannot write the report into {folder}: {reason(error)}") from None
    return report


def answer(run: Run) -> list[str]:
    """Return the sentences at the top of the page as lines for the terminal."""
    run = thinned(run, MOST_CASES)
    findings, keys = find(run), condition_keys(run)
    return [*advice(findings, keys).splitlines(), *more_advice(findings, keys).splitlines()]


def thinned(run: Run, most: int) -> Run:
    """Reduce a run to at most `most` cases, at evenly spaced values of the keys with the most values, and add a warning.

    Plots and pages of more cases take too long to draw and to read. The tables of the folder have all cases.
    """
    table, keys = run.summary, [key for key in run.swept if run.summary[key].nunique() > 2]
    while len(table) > most and keys:
        key = max(keys, key=lambda key: table[key].nunique())
        values = table[key].dropna().unique()
        if len(values) <= 2:
            break
        table = table[table[key].isna() | table[key].isin(spread(list(values), (len(values) + 1) // 2))]
    if len(table) > most:
        table = table.iloc[spread(range(len(table)), most)]
    if len(table) == len(run.summary):
        return run
    note = (
        f"the report shows {len(table):,} of {len(run.summary):,} cases, at evenly spaced values; summary.csv has all"
    )
    told = {**run.provenance, "warnings": [*(run.provenance.get("warnings") or []), note]}
    queue = run.queue[run.queue["case"].isin(table["case"])]
    return replace(run, summary=table.reset_index(drop=True), provenance=told, queue=queue)


def draw_plots(run: Run, findings: tuple[Finding, ...]) -> dict[str, bytes]:
    """Draw all plots for which the run has data. Return file name -> bytes, in the order of the page."""
    plots: dict[str, Callable[[], Figure | None]] = {}
    if any(said.fastest != "none" for said in findings):
        if has_quality(run):
            plots["at_a_glance"] = lambda: at_a_glance(run, findings)
            plots["latency_quality"] = lambda: latency_quality(run, findings)
            if pair := setting_pair(run):
                plots["heat_maps"] = partial(heat_maps, run, *pair)
        if len(findings) > TWO_ROWS_UP_TO:
            plots["speedup_table"] = lambda: speedup_table(run)
        if loads := load_axes(run):
            plots["load_curves"] = lambda: load_curves(run, loads[0])
        plots["latency_parts"] = lambda: latency_parts(run, findings)
        plots |= {sweep_name(key): partial(sweep, run, key) for key in numeric_axes(run)}
    if (run.queue["queued"] + run.queue["admission"]).any():
        plots["queue_over_time"] = lambda: queue_over_time(run, findings)
    if grid_prompts(run):
        plots["image_grid"] = lambda: image_grid(run)

    def files(name: str) -> dict[str, bytes]:
        with styled():
            figure = plots[name]()
            return {} if figure is None else {f"{name}.{form}": render(figure, form) for form in ("png", "svg")}

    return _in_processes(files, list(plots))


def _in_processes(files: Callable[[str], dict[str, bytes]], names: list[str]) -> dict[str, bytes]:
    """Return the files of all plots in order, drawn in processes where there are further cores. What these fail to draw is drawn here."""
    processes = min(len(names), MOST_PROCESSES, len(os.sched_getaffinity(0))) if can_fork() else 1
    drawn: dict[str, dict[str, bytes]] = {}
    if processes > 1:
        with suppress(LostProcessError):
            drawn.update(forked(files, names, processes, PATIENCE_S))
    return {file: data for name in names for file, data in (drawn[name] if name in drawn else files(name)).items()}


def at_a_glance(run: Run, findings: tuple[Finding, ...]) -> Figure | None:
    """Draw the first plot of the page, with at most four methods. Return None if the full plot is as simple.

    The methods are base, the one most often fastest at base's quality, the one most often fastest, and the next in these rankings. With
    many conditions along a swept number it shows speed-ups, else latency against quality.
    """
    ran = [said for said in findings if said.fastest != "none"]
    bases = [str(name) for name in run.summary.loc[run.summary["method_name"] == "base", "label"]]
    advised = [name for name, _ in Counter(name for said in ran for name in said.at_base_quality).most_common()]
    fastest = [name for name, _ in Counter(said.fastest for said in ran).most_common()]
    front = [name for said in ran for name in said.front]
    others = [name for name in advised if name not in bases]
    names = list(dict.fromkeys([*bases[:1], *others[:1], *fastest[:1], *advised, *fastest, *front, *run.labels()]))
    # Two numbers are an axis if points of equal other conditions are joined along it, but not beside many names.
    along = [
        key
        for key in condition_axes(run)
        if run.summary[key].nunique() > 2 or panels_along(run.summary, run.swept, key).joined
    ]
    if len(names) <= MOST_AT_A_GLANCE and len(findings) <= TWO_ROWS_UP_TO:
        return None
    few = of_methods(run, names[:MOST_AT_A_GLANCE])
    form = Form(
        note=left_out(
            MOST_AT_A_GLANCE, len(names), "methods", "base, the fastest at its quality, the fastest, and the next"
        )
    )
    if along and len(findings) > TWO_ROWS_UP_TO and np.isfinite(few.summary["speedup"]).any():
        return speedup_along(few, along[0], form)
    shown = dict(few.conditions())
    # The headings name the fastest method of the run, whether drawn or not.
    drawn = [replace(said, cases=shown[said.condition]) for said in findings if said.condition in shown]
    return latency_quality(few, drawn, form, shares=False)

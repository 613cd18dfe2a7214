"""The plots that `ciar-sim plot` draws from a run folder, by name."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports.figure import Form, styled
from reports.findings import Finding, find, has_quality
from reports.image_grid import grid_prompts, image_grid, uncertainty_maps
from reports.load import Run
from reports.parts_plot import latency_parts
from reports.quality_plot import faceted, latency_quality, panel_axes, speedup_table
from reports.queue_plot import queue_over_time
from reports.setting_plots import heat_maps, latency_cdf, load_axes, load_curves, setting_pair
from reports.sweep_plot import condition_axes, numeric_axes, speedup_along, sweep
from reports.words import absent, number, rejoined, shortened
from simulator.core.errors import RunFolderError
from simulator.core.yamlfile import did_you_mean


class PlotRequest(NamedTuple):
    """Arguments of a plot.

    Attributes:
        run: the run, with the selected methods and values only.
        form: size and titles.
        by: a swept key; None for the plot's own choice.
    """

    run: Run
    form: Form
    by: str | None

    def axis(self, fitting: Sequence[str], what: str, example: str) -> str:
        """Return the key to draw along: `by`, or the first that fits.

        Args:
            fitting: swept keys that fit the plot.
            what: description of such keys, for the message.
            example: option that sweeps such a key, for the message.

        Raises:
            RunFolderError: `by` does not fit, or no key does.
        """
        if self.by is not None and self.by not in fitting:
            there = f"; those of this run that do: {', '.join(fitting)}" if fitting else ""
            raise RunFolderError(f"--by {self.by}: is not a swept {what} of this run{there}")
        if not fitting:
            raise RunFolderError(f"this run sweeps no {what}; one that does: {example}")
        return self.by or fitting[0]


def _latency_quality(asked: PlotRequest) -> Figure:
    if not has_quality(asked.run):
        raise RunFolderError("this run has no quality of images; one of a pair with weights has")
    by = None if asked.by is None else asked.axis(panel_axes(asked.run), "condition", "--axis network.preset=wifi,lte")
    return latency_quality(asked.run, faceted(asked.run, _findings(asked), by), asked.form)


def _heat_maps(asked: PlotRequest) -> Figure:
    pair = setting_pair(asked.run)
    if pair is None:
        raise RunFolderError(
            "this run sweeps no two numbers of one method under one condition; one that does: "
            "--axis methods.ciar.threshold=0.5,1,1.5 --axis methods.ciar.prefix_rate=0,0.1,0.3"
        )
    return heat_maps(asked.run, *pair, asked.form)


def _speedup(asked: PlotRequest) -> Figure:
    if not np.isfinite(asked.run.summary["speedup"]).any() or set(asked.run.summary["method_name"]) == {"base"}:
        raise RunFolderError("a speed-up needs base and another method under the same conditions")
    key = asked.axis(
        condition_axes(asked.run), "number beside the methods' settings", "--axis network.rtt_ms=5,20,80,320"
    )
    return speedup_along(asked.run, key, asked.form)


def _sweep(asked: PlotRequest) -> Figure:
    return sweep(
        asked.run, asked.axis(numeric_axes(asked.run), "number", "--axis network.rtt_ms=5,20,80,320"), asked.form
    )


def _load(asked: PlotRequest) -> Figure:
    example = "--axis workload.arrivals.poisson_per_s=0.05,0.1,0.2"
    key = asked.axis(load_axes(asked.run), "rate of arrivals, number of devices or work of others", example)
    return load_curves(asked.run, key, asked.form)


def _cdf(asked: PlotRequest) -> Figure:
    return latency_cdf(asked.run, _findings(asked), asked.form)


def _breakdown(asked: PlotRequest) -> Figure:
    return latency_parts(asked.run, _findings(asked), asked.form)


def _queue(asked: PlotRequest) -> Figure:
    if not (asked.run.queue["queued"] + asked.run.queue["admission"]).any():
        raise RunFolderError("no request waited in the cloud; a run with more load has a queue, see workload.arrivals")
    return queue_over_time(asked.run, _findings(asked), asked.form)


def _uncertainty(asked: PlotRequest) -> Figure:
    if not any(one.kind == "uncertainty" for one in asked.run.images) or not grid_prompts(asked.run):
        raise RunFolderError("this run has no maps of uncertainty; they come with the method ciar")
    return uncertainty_maps(asked.run, asked.form)


def _images(asked: PlotRequest) -> Figure:
    if not grid_prompts(asked.run):
        raise RunFolderError("this run has no images; a run with answered requests keeps those of its first prompts")
    return image_grid(asked.run, asked.form)


def _speedup_table(asked: PlotRequest) -> Figure:
    return speedup_table(asked.run, asked.form)


def _findings(asked: PlotRequest) -> tuple[Finding, ...]:
    findings = find(asked.run)
    if not any(said.fastest != "none" for said in findings):
        raise RunFolderError("no request of this run was answered, so there is nothing to draw")
    return findings


KINDS: dict[str, Callable[[PlotRequest], Figure]] = {
    "latency-quality": _latency_quality,
    "heat-maps": _heat_maps,
    "speed-up": _speedup,
    "sweep": _sweep,
    "latency-cdf": _cdf,
    "breakdown": _breakdown,
    "load": _load,
    "queue": _queue,
    "speed-up-table": _speedup_table,
    "uncertainty": _uncertainty,
    "images": _images,
}


ALONG = ("latency-quality", "sweep", "speed-up", "load")  # kinds for which `by` chooses the panels or the axis


def plot(
    run: Run, kind: str, form: Form, methods: Sequence[str] = (), by: str | None = None, where: Sequence[str] = ()
) -> Figure:
    """Draw a plot of a run.

    Args:
        run: the run.
        kind: one of `KINDS`.
        form: size and titles.
        methods: names or labels of the methods to draw; empty for all.
        by: swept key of the panels of latency-quality, or of the axis of sweep, speed-up and load.
        where: "path=value,..." of swept keys; only cases with these values are drawn.

    Raises:
        RunFolderError: the run does not have the data for this plot; the message says what is needed.
    """
    if by is not None and kind not in ALONG:
        raise RunFolderError(f"--by {by}: goes with {', '.join(ALONG[:-1])} and {ALONG[-1]}, not with {kind}")
    with styled(form):
        return KINDS[kind](PlotRequest(of_values(of_methods(run, methods), where), form, by))


def of_values(run: Run, where: Sequence[str]) -> Run:
    """Select the cases of a run with certain swept values. Cases to which a path does not apply are kept.

    Args:
        run: the run.
        where: "path=value,...", as in `network.preset=lte`.

    Raises:
        RunFolderError: a path is not swept or has no such value, or no case is left; the message names the valid ones.
    """
    summary = run.summary
    for option in where:
        # A path may contain a label, and a label may contain an equals sign.
        path = next(
            (key for key in run.swept if option.strip().startswith(f"{key}=")), option.partition("=")[0].strip()
        )
        text = option.strip()[len(path) :].lstrip()[1:]
        if path not in run.swept:
            there = ", ".join(run.swept)
            raise RunFolderError(
                f"--where {option}: {path} is not swept in this run; {f'swept: {there}' if there else 'nothing is'}"
            )
        column = run.summary[path]
        shown = shortened(column) if pd.api.types.is_float_dtype(column) else {}
        names = {
            value: {number(value), number(shown.get(value, value))} for value in column[~column.map(absent)].unique()
        }
        kept = set()
        for name in rejoined(text, {name for own in names.values() for name in own}) or [""]:
            found = {value for value, own in names.items() if name in own or _equal(value, name)}
            if not found:
                there = ", ".join(number(shown.get(value, value)) for value in names)
                raise RunFolderError(f"--where {option}: {path} has no value {name!r} in this run; it has {there}")
            kept |= found
        summary = summary[summary[path].map(lambda value, kept=kept: absent(value) or value in kept)]
    if summary.empty:
        raise RunFolderError(f"--where {' '.join(where)}: no case has all of these values")
    if len(summary) == len(run.summary):
        return run
    queue = run.queue[run.queue["case"].isin(summary["case"])]
    return replace(run, summary=summary.reset_index(drop=True), queue=queue, whole=run.series)


def _equal(value: object, text: str) -> bool:
    """Return whether a text is a number that equals the value, as 5.0 equals 5."""
    try:
        return isinstance(value, int | float | np.number) and not isinstance(value, bool) and float(text) == value
    except ValueError:
        return False


def of_methods(run: Run, methods: Sequence[str]) -> Run:
    """Select methods of a run by label or name. Comparisons are still with base, even if base is not selected.

    Raises:
        RunFolderError: the run has no method of that name.
    """
    summary = run.summary
    known = list(dict.fromkeys([*map(str, summary["label"]), *map(str, summary["method_name"])]))
    methods = rejoined(",".join(methods), known)
    if not methods:
        return run
    for name in methods:
        if name not in known:
            raise RunFolderError(f"--methods {name!r}: this run has no such method{did_you_mean(name, known)}")
    kept = summary["label"].isin(list(methods)) | summary["method_name"].isin(list(methods))
    names = set(summary.loc[kept, "label"])
    images = tuple(one for one in run.images if one.method in names or one.method in methods)
    return replace(run, summary=pd.DataFrame(summary[kept]), images=images, whole=run.series)

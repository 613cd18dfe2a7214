"""Run scenarios from Python: the functions of `ciar-sim run` and `ciar-sim sweep`, which return tables and images.

    import ciar_sim

    result = ciar_sim.run("quickstart", sets={"prompts.count": 2}, out="runs/two-prompts")
    result.summary[["method", "latency_mean_s", "cloud_call_pct"]]
    again = ciar_sim.open_run("runs/two-prompts")  # later, or of the command line

This module composes simulator, models and reports; the command line calls it too. Longer than other files, because it documents the
arguments of every public function.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciar_sim.arguments import (
    check_number,
    check_place,
    check_resources,
    check_scenario,
    check_text,
    choice_of,
    options_of_axes,
    options_of_sets,
)
from ciar_sim.decide.decision import Decision
from simulator.core.errors import CiarSimError, RunFolderError, counted, error_context, reason
from simulator.core.files import read_file

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ciar_sim.decide.bench import Resources
    from ciar_sim.plot import Plots
    from simulator.experiment.loading import LoadedScenario
    from simulator.experiment.scenario import Scenario
    from simulator.experiment.simulating import Progress
    from simulator.experiment.state import State
    from simulator.experiment.workers import Workers

MOST_IN_TIMELINE = 10_000
LONGEST_SLO_S = 1e6

__all__ = [
    "CiarSimError",
    "Decision",
    "Result",
    "capacity",
    "compare",
    "open_run",
    "recommend",
    "regime",
    "run",
    "sweep",
]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A finished run.

    Attributes:
        folder: The run folder; docs/file-formats.md lists its files.
        summary: One row per case, as in `summary.csv`.
        warnings: Limits of the figures, as in `provenance.json`.
        failed: A message for each case that could not be simulated and is in no table.
        pareto: After `tune`, the rows of the summary on the Pareto front of latency and quality under each condition.
        quality: Name of the quality column of `pareto`.
        work: Numbers of sessions and cases that were recorded, simulated or taken from the cache; empty for an opened run.
    """

    folder: Path
    summary: "pd.DataFrame"
    warnings: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    pareto: "pd.DataFrame | None" = None
    quality: str = ""
    work: str = ""

    def __repr__(self) -> str:
        counts = [(len(self.summary), "case"), (len(self.warnings), "warning"), (len(self.failed), "failed case")]
        told = ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts if count)
        return f"Result({str(self.folder)!r}: {told})"

    @cached_property
    def requests(self) -> "pd.DataFrame":
        """One row per answered request, as in `requests.parquet`."""
        import pandas as pd

        with (self.folder / "requests.parquet").open("rb") as file:  # pyarrow takes names in UTF-8 only
            return pd.read_parquet(file)

    @cached_property
    def images(self) -> "dict[tuple[str, int], np.ndarray]":
        """Images of the first prompts by (method, prompt number), each uint8 [H, W, 3]. Raises RunFolderError without them."""
        import numpy as np
        from PIL import Image

        folder = self.folder / "images"
        try:
            return {
                (entry["method"], entry["prompt"]): np.asarray(Image.open(folder / entry["file"]))
                for entry in json.loads(read_file(folder / "index.json"))
                if entry["kind"] == "image"
            }
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{folder} cannot be read: {reason(error)}") from None

    @property
    def plot(self) -> "Plots":
        """Every plot of `ciar-sim plot` as a figure, and latency against quality on axes that you provide."""
        from ciar_sim.plot import Plots

        return Plots(self.folder)

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"


def run(
    scenario: str | Path | Mapping[str, Any],
    *,
    sets: Mapping[str, Any] | None = None,
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    zips: Sequence[Sequence[str]] = (),
    random: int | None = None,
    tune: int | str | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    torch_device: str = "auto",
    max_batch: int = 64,
    jobs: "int | Workers | None" = None,
    case_timeout_s: float | None = None,
    timeline: int = 2,
    progress: "Progress | None" = None,
    force: bool = False,
    record_jobs: int | None = None,
) -> Result:
    """Run every method of a scenario with every swept value and write the run folder.

    Args:
        scenario: A scenario file, the name of a shipped scenario, or the scenario as a mapping, which may hold tuples, `Path`s and
            numbers of numpy. Paths in a mapping are relative to the current folder.
        sets: Values to change, by dotted path: `{"cloud.replicas": 2}`.
        axes: Axes to add to the sweep, by dotted path, values or a range: `{"network.rtt_ms": [5, 50]}` or
            `{"network.rtt_ms": {"min": 5, "max": 200, "steps": 6, "scale": "log"}}`; they replace axes with the same path.
        zips: Groups of paths of axes whose values change together: `[("network.up_mbps", "network.down_mbps")]`.
        random: Number of points spread evenly over all axes, instead of the grid.
        tune: Number of trials of a search for settings of the methods, for low latency and high quality: `40`, or `"40:f1_scenes"`.
        out: The run folder; None: `runs/<name>`. An earlier run of the same scenario there is replaced.
        cache: Folder of recordings; None: `$CIAR_SIM_CACHE`, or else the user's cache folder.
        torch_device: Where forward passes run: `auto`, `cpu`, `cuda` or `cuda:N`.
        max_batch: Sessions recorded at once.
        jobs: Number of processes that simulate; None: one per core where that pays off; or `simulator.experiment.workers.Workers` for
            a Dask cluster. It does not change the results.
        case_timeout_s: A case whose simulation takes longer fails, without affecting others; None: no limit.
        timeline: Number of requests of every case, from the first on, in `timeline.json.gz`.
        progress: Called with a stage, the amount done, and its total.
        force: Whether to replace a run of another scenario as well.
        record_jobs: Number of processes that record on a CPU; None: one per core where that pays off.

    Raises:
        CiarSimError: The scenario, an argument, or a file that they name is not usable. No partial file remains.
    """
    from ciar_sim.decide.bench import Resources, silent
    from ciar_sim.shipped import scenario_path
    from simulator.experiment.loading import load_with_source
    from simulator.experiment.workers import Workers

    check_scenario(scenario)
    if out is not None:
        check_place("out", out)
    if not isinstance(jobs, Workers):
        jobs = check_resources(jobs=jobs).get("jobs")
    max_batch = check_resources(cache, torch_device, max_batch, progress=progress)["max_batch"]
    if record_jobs is not None:
        record_jobs = check_number("record_jobs", record_jobs, 1, whole=True)
    if case_timeout_s is not None:
        case_timeout_s = check_number("case_timeout_s", case_timeout_s, 0, 6e7, over=True)
    timeline = check_number("timeline", timeline, 0, MOST_IN_TIMELINE, whole=True)

    written = scenario if isinstance(scenario, Mapping) else scenario_path(scenario)
    choice = choice_of(zips, random, tune)
    loaded = load_with_source(written, options_of_axes(axes), options_of_sets(sets), choice)
    resources = Resources(None if cache is None else Path(cache), torch_device, max_batch, jobs, progress or silent)
    return execute(loaded, None if out is None else Path(out), resources, case_timeout_s, timeline, force, record_jobs)


def sweep(
    scenario: str | Path | Mapping[str, Any],
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    **options: Any,
) -> Result:
    """`run` over a grid: `sweep("quickstart", {"network.rtt_ms": [5, 50]})`. The options are those of `run`."""
    return run(scenario, axes=axes, **options)


def open_run(folder: str | Path) -> Result:
    """Open a finished run from its folder, as `run` returned it: `open_run("runs/quickstart").summary`.

    Args:
        folder: A run folder of `run` or of the command line.

    Raises:
        CiarSimError: It is not a run folder, the run is unfinished, or a file in it is missing or damaged.
    """
    from reports.load import load_run
    from simulator.core import yamlfile
    from simulator.experiment.tuning import pareto_rows
    from simulator.results.columns import BETTER
    from simulator.results.files import csv_text

    check_place("folder", folder, "a run folder")
    folder = Path(folder)
    found = load_run(folder)  # refuses what is damaged
    summary = _as_returned(found.summary, csv_text((folder / "summary.csv").read_bytes()))
    written = yamlfile.parse(found.scenario, str(folder / "scenario.yaml")).data
    sweep = written.get("sweep") if isinstance(written, dict) else None
    tune = sweep.get("tune") if isinstance(sweep, dict) else None
    quality = (tune.get("quality") if isinstance(tune, dict) else None) or found.judged.align
    if tune is not None and not (quality in BETTER and quality in summary):
        raise RunFolderError(f"{folder / 'scenario.yaml'}: sweep.tune.quality is {quality}, no column of summary.csv")
    return Result(
        folder,
        summary,
        tuple(found.provenance.get("warnings") or ()),
        tuple(found.provenance.get("failed") or ()),
        None if tune is None else pareto_rows(summary, found.swept, quality),
        quality,
    )


def _as_returned(numbers: "pd.DataFrame", cells: "pd.DataFrame") -> "pd.DataFrame":
    """Return the columns of summary.csv with the types that `run` returns. numbers: the table of floats; cells: the table of texts."""
    import pandas as pd

    columns = {}
    for name, column in cells.items():
        if numbers[name].dtype == object:
            columns[name] = column.astype(object).where(column != "", None)  # empty: a setting of other methods
        elif column.str.fullmatch(r"-?\d+").all():
            columns[name] = pd.Series([int(cell) for cell in column], dtype="int64")
        else:
            columns[name] = numbers[name]
    return pd.DataFrame(columns)


def recommend(
    scenario: str | Path | Mapping[str, Any],
    *,
    max_loss_pct: float = 5.0,
    metric: str | None = None,
    slo_p95_s: float | None = None,
    sets: Mapping[str, Any] | None = None,
    axes: Mapping[str, Sequence[Any] | Mapping[str, Any]] | None = None,
    **options: Any,
) -> Decision:
    """Recommend the best method and settings for a scenario's network and load, verified on other prompts with another seed.

    Args:
        scenario: As in `run`, or a run folder.
        max_loss_pct: Largest acceptable loss of quality, in percent of base's quality.
        metric: Quality metric, such as align_scenes; None: agreement with the caption, if the images have it.
        slo_p95_s: Objective for p95 of the latency.
        sets: As in `run`.
        axes: As in `run`; those over settings of methods give the candidates.
        options: cache, torch_device, max_batch, jobs and progress, as in `run`.

    Raises:
        CiarSimError: The scenario or an argument is not usable.
    """
    from ciar_sim.decide.recommend import recommend as decide
    from ciar_sim.decide.recommend import scenario_of

    check_scenario(scenario)
    max_loss_pct = check_number("max_loss_pct", max_loss_pct, 0)
    if slo_p95_s is not None:
        slo_p95_s = check_number("slo_p95_s", slo_p95_s, 0, LONGEST_SLO_S, over=True)
    written = scenario if isinstance(scenario, Mapping) else scenario_of(scenario)
    return decide(
        written, max_loss_pct, metric, slo_p95_s, _resources(options), options_of_sets(sets), options_of_axes(axes)
    )


def capacity(
    scenario: str | Path | Mapping[str, Any],
    *,
    slo_p95_s: float,
    requests: int = 1000,
    precision_pct: float = 2.5,
    sets: Mapping[str, Any] | None = None,
    **options: Any,
) -> Decision:
    """Find the largest load, in devices and requests per second, that each method carries within an objective for p95 of the latency.

    Args:
        scenario: As in `run`, with timed arrivals.
        slo_p95_s: The objective in seconds.
        requests: Number of requests per replication, after its warm-up.
        precision_pct: The search ends early when the 95 % interval of the load reaches at most this many percent to either side.
        sets: As in `run`.
        options: As in `recommend`.

    Raises:
        CiarSimError: The scenario or an argument is not usable.
    """
    from ciar_sim.decide.capacity import capacity as decide
    from ciar_sim.shipped import scenario_path
    from simulator.experiment.loading import load_with_source

    check_scenario(scenario)
    slo_p95_s = check_number("slo_p95_s", slo_p95_s, 0, LONGEST_SLO_S, over=True)
    requests = check_number("requests", requests, 20, 10_000_000, whole=True)
    precision_pct = check_number("precision_pct", precision_pct, 0.1, 50)
    written = scenario if isinstance(scenario, Mapping) else scenario_path(scenario)
    return decide(
        load_with_source(written, (), options_of_sets(sets)), slo_p95_s, _resources(options), requests, precision_pct
    )


def regime(
    scenario: str | Path | Mapping[str, Any],
    x: str,
    y: str | None = None,
    *,
    max_loss_pct: float = 5.0,
    metric: str | None = None,
    sets: Mapping[str, Any] | None = None,
    **options: Any,
) -> Decision:
    """Map the fastest method that keeps a quality floor over one or two conditions, with break-evens.

    Args:
        scenario: As in `run`, or a run folder.
        x: The first condition: `path=min:max[:points][:log]` or `path=value,value`.
        y: The second condition, in the same form.
        max_loss_pct: As in `recommend`.
        metric: As in `recommend`.
        sets: As in `run`.
        options: As in `recommend`.

    Raises:
        CiarSimError: The scenario or an argument is not usable.
    """
    from ciar_sim.decide.recommend import scenario_of
    from ciar_sim.decide.regime import regime as decide

    check_scenario(scenario)
    max_loss_pct = check_number("max_loss_pct", max_loss_pct, 0)
    for name, axis in (("x", x), ("y", "" if y is None else y)):
        check_text(name, axis, "network.rtt_ms=1:300:log")
    written = scenario if isinstance(scenario, Mapping) else scenario_of(scenario)
    return decide(written, x, y, max_loss_pct, metric, _resources(options), options_of_sets(sets))


def compare(*runs: "str | Path | Result") -> Decision:
    """Compare runs with the first one: differences in latency, quality and cost with 95 % intervals, paired where possible.

    Args:
        runs: Run folders, or results of `run`; at least two.

    Raises:
        CiarSimError: Not run folders, or nothing in common.
    """
    from ciar_sim.decide.compare import compare as decide

    for one in runs:
        if not isinstance(one, Result):
            check_place("runs", one, "run folders or results, each an argument of its own")
    return decide([one.folder if isinstance(one, Result) else Path(one) for one in runs])


def _resources(options: Mapping[str, Any]) -> "Resources":
    from ciar_sim.decide.bench import Resources

    unknown = sorted(set(options) - {entry.name for entry in fields(Resources)})
    if unknown:
        raise TypeError(f"unknown option {unknown[0]}; allowed: {', '.join(entry.name for entry in fields(Resources))}")
    given = {**options, **check_resources(**options)}
    if given.get("cache") is not None:
        given["cache"] = Path(given["cache"])
    return Resources(**given)


def execute(
    loaded: "LoadedScenario",
    out: Path | None,
    resources: "Resources",
    case_timeout_s: float | None,
    timeline: int,
    force: bool,
    record_jobs: int | None,
) -> Result:
    """Run a loaded scenario with its models, its cache and the report. Arguments as in `run`."""
    from ciar_sim.cli.common import default_cache
    from ciar_sim.cli.models import Models
    from ciar_sim.speed import Stopwatch
    from ciar_sim.speed import where as place_of_speed
    from reports.build import build_report
    from simulator.experiment.kept import CaseCache
    from simulator.experiment.rerun import check_replaced, digest
    from simulator.experiment.run import run_scenario
    from simulator.experiment.scenario import resolved_yaml
    from simulator.experiment.simulating import SimulationOptions
    from simulator.protocol.cache import CachedSource, RecordingCache
    from simulator.protocol.pairs import pair_manifest
    from simulator.results.folder import clear_unfinished, mark_unfinished

    _check_torch_device(resources.torch_device)
    scenario = loaded.scenario
    cache = resources.cache or default_cache()
    folder = out or run_folder(scenario)
    watch = Stopwatch(resources.progress)
    models = Models(scenario.pair, resources.torch_device, resources.max_batch, cache, watch, record_jobs)
    source = CachedSource(RecordingCache(cache), models.record)
    check_replaced(folder, scenario, force)
    marked = mark_unfinished(
        folder, resolved_yaml(scenario), {"cache": str(cache.resolve()), "asked_sha256": digest(scenario)}
    )
    try:
        with loaded.source.located():
            with error_context("pair"):
                scorer = models.scorer()
            outcome = run_scenario(
                scenario,
                folder,
                source,
                models.captions,
                models.profile,
                build_report,
                watch,
                scorer,
                SimulationOptions(resources.jobs, case_timeout_s, timeline, CaseCache(cache)),
            )
    except (CiarSimError, OSError):
        if marked:
            clear_unfinished(folder)
        raise
    requests = float(outcome.summary["images"].sum()) * outcome.simulated / max(len(outcome.summary), 1)
    weights = pair_manifest(scenario.pair).weights_hash
    watch.remember(cache, place_of_speed(weights, resources.torch_device), source.recorded, requests)
    work = (
        f"recorded {counted(source.recorded, 'session')} ({source.reused} from the cache), "
        f"simulated {counted(outcome.simulated, 'case')} ({len(outcome.summary) - outcome.simulated} from the cache)"
    )
    return Result(
        outcome.folder, outcome.summary, outcome.warnings, outcome.failed, outcome.pareto, outcome.quality, work
    )


def run_folder(scenario: "Scenario", own: bool = False) -> Path:
    """Return the default run folder, `runs/<name>`. own: add a digest of the scenario, so that each sweep has its own folder."""
    from simulator.experiment.rerun import digest

    return Path("runs") / (f"{scenario.name}-{digest(scenario)[:8]}" if own else scenario.name)


def foresee(loaded: "LoadedScenario", cache: Path | None, jobs: int | None = None) -> "State":
    """Return what of a scenario is already recorded and simulated. Nothing is computed or written.

    jobs: as in `simulator.experiment.state.state_of`.
    """
    from ciar_sim.cli.common import default_cache
    from ciar_sim.cli.models import Models
    from simulator.experiment.kept import CaseCache
    from simulator.experiment.state import state_of
    from simulator.protocol.cache import RecordingCache

    scenario, cache = loaded.scenario, cache or default_cache()
    models = Models(scenario.pair, "auto", 1, cache, lambda stage, done, total: None)
    with loaded.source.located():
        return state_of(scenario, RecordingCache(cache), CaseCache(cache), models.captions, models.stored_profile, jobs)


def rehearse(loaded: "LoadedScenario", resources: "Resources", workers: "Workers") -> "State":
    """Return what of a scenario is already recorded and simulated, as `foresee`, and refuse what a run would refuse.

    Raises:
        CiarSimError: The scenario cannot be run here, as far as that is known without a model in memory and without a simulation.
    """
    from ciar_sim.cli.common import default_cache
    from ciar_sim.cli.models import Models
    from simulator.experiment.plan import caption_context
    from simulator.protocol.cache import RecordingCache

    _check_torch_device(resources.torch_device)
    cache = resources.cache or default_cache()
    models = Models(loaded.scenario.pair, resources.torch_device, resources.max_batch, cache, resources.progress)
    with loaded.source.located(), error_context("pair"):
        models.scorer()
    state = foresee(loaded, cache, workers.most)
    if state.missing or state.more_sessions:
        RecordingCache(cache).check_writable()
        with loaded.source.located(), caption_context(state.prompts):
            models.check(state.unrecorded_captions())
    if len(state.simulated) < len(state.cases) + state.more_cases:
        workers.check()
    return state


def _check_torch_device(name: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise CiarSimError(f"--torch-device {name}: allowed: auto, cpu, cuda, cuda:N")

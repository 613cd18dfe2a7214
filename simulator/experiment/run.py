"""Execution of a scenario, which writes its run folder.

This module uses no models. It gets recordings from a `RecordingSource` and captions and profiles from callables; `ciar_sim` provides them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from simulator.core.errors import error_context
from simulator.experiment.cost_table import CostTable
from simulator.experiment.estimate import check_size
from simulator.experiment.images import ImageScorer, kept_images, score_cases
from simulator.experiment.kept import MemoryCases
from simulator.experiment.plan import Plan
from simulator.experiment.provenance import provenance_of
from simulator.experiment.scenario import Case, Scenario, resolved_yaml
from simulator.experiment.search import Told, search_thresholds, with_found
from simulator.experiment.simulating import FailedCase, Progress, Simulated, SimulationOptions, simulate_cases
from simulator.experiment.sweep import check_methods, expand
from simulator.experiment.tuning import Objectives, pareto_rows, trial_cases, tuned_cases, tuned_quality
from simulator.pricing.profile import Profile
from simulator.protocol.cache import RecordingSource
from simulator.protocol.pairs import pair_manifest
from simulator.results.folder import check_run_folder, write_run
from simulator.results.tables import CaseRecords, summary_table


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: The run folder.
        summary: Its summary.
        events: Number of simulated events.
        warnings: The warnings of provenance.json.
        failed: One message for each case that could not be simulated.
        simulated: Number of cases that were not in the cache.
        pareto: Rows of the summary on the Pareto front of latency and quality; None without `sweep.tune`.
        quality: The quality column of this front.
    """

    folder: Path
    summary: pd.DataFrame
    events: int
    warnings: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    simulated: int = 0
    pareto: pd.DataFrame | None = None
    quality: str = ""


def run_scenario(
    scenario: Scenario,
    folder: Path,
    source: RecordingSource,
    scenes: Callable[[int, int], list[str]],
    profile: Callable[[], Profile],
    draw: Callable[[Path], object] | None = None,
    progress: Progress = lambda stage, done, total: None,
    scorer: ImageScorer | None = None,
    options: SimulationOptions | None = None,
) -> Outcome:
    """Run every case of a scenario and write its run folder.

    Args:
        scenario: What to run.
        folder: The run folder, written completely or not at all.
        source: Source of recordings.
        scenes: Captions that the pair's prompts are drawn from, by (seed, count).
        profile: Returns the compute times measured on this machine; called only if the scenario uses them.
        draw: Adds plots and report to the folder.
        progress: Called with the progress of the run.
        scorer: Scores images; without it the quality columns that need it are NaN.
        options: How cases are simulated; None: in this process, without a cache.

    Raises:
        CiarSimError: The scenario, or every case of it, cannot be run. Nothing is written.
    """
    options = options or SimulationOptions()
    check_run_folder(folder)
    with error_context("pair"):
        manifest = pair_manifest(scenario.pair)
    quality = tuned_quality(scenario, manifest)
    cases, trials = expand(scenario), trial_cases(scenario)
    check_size([*cases, *trials], options.workers.most)
    check_methods([*cases, *trials], manifest)
    # Before recording, so that a scenario that cannot be priced is refused at once.
    costs = CostTable(manifest, [*cases, *trials], profile)
    if options.kept is None and trials:  # trials are cases of the run too
        options = replace(options, kept=MemoryCases())
    store = options.kept
    before = store.added if store else 0

    def measured(asked: Sequence[Case]) -> _Measured:
        cases, calibrated = search_thresholds(asked, manifest, scenes, source)
        plan = Plan(cases, manifest, scenes)
        plan.record(source)
        simulated, failed = simulate_cases(cases, costs, plan, source, progress, options)
        records = score_cases(simulated, plan, scorer)
        return _Measured(cases, calibrated, plan, simulated, failed, records)

    if trials:
        tuned = tuned_cases(scenario, quality, lambda tried: measured(tried).objectives(quality))
        cases = _in_order([*cases, *tuned])
    run = measured(cases)
    provenance = provenance_of(scenario, manifest, costs, run.plan, run.calibrated, run.simulated, run.failed, scorer)
    progress("writing", 0, 1)
    summary = write_run(
        folder,
        scenario_yaml=resolved_yaml(with_found(scenario, cases, run.cases)),
        cases=run.records,
        provenance=provenance,
        timeline=[(case.title, result.drawn) for case, result, _ in run.simulated],
        images=kept_images(run.simulated, run.plan, manifest.grid),
        draw=draw,
    )
    progress("writing", 1, 1)
    return Outcome(
        folder,
        summary,
        sum(result.events for _, result, _ in run.simulated),
        tuple(provenance["warnings"]),
        tuple(one.message for one in run.failed),
        store.added - before if store else len(run.simulated),
        pareto_rows(summary, scenario.sweep.axes, quality) if scenario.sweep.tune else None,
        quality,
    )


@dataclass(frozen=True)
class _Measured:
    """Cases with calibrated settings, their sessions, and the results of simulation and scoring."""

    cases: list[Case]
    calibrated: Told
    plan: Plan
    simulated: list[Simulated]
    failed: list[FailedCase]
    records: list[CaseRecords]

    def objectives(self, quality: str) -> Objectives:
        """Return mean latency (s) and quality of the cases by index. Failed cases are missing."""
        summary = summary_table(self.records)
        qualities = summary[quality] if quality in summary else [math.nan] * len(summary)  # without a judge
        columns = zip(summary["latency_mean_s"], qualities, strict=True)
        return {one.case.index: values for one, values in zip(self.simulated, columns, strict=True)}


def _in_order(cases: Sequence[Case]) -> list[Case]:
    """Sort cases by method and renumber them."""
    return [
        replace(case, index=index)
        for index, case in enumerate(sorted(cases, key=lambda one: (one.position, one.index)))
    ]

"""A run from a scenario to its folder.

No models here: recordings come from a `RecordingSource`, captions and measured profiles from callables; `ciar_sim/cli/` composes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from simulator.core.errors import error_context
from simulator.experiment.cost_table import CostTable
from simulator.experiment.estimate import check_size
from simulator.experiment.images import ImageScorer, kept_images, score_cases
from simulator.experiment.inputs import TIMELINE_SESSIONS
from simulator.experiment.plan import Plan
from simulator.experiment.provenance import provenance_of
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.experiment.search import search_thresholds, with_found
from simulator.experiment.simulating import Progress, simulate_cases
from simulator.experiment.sweep import check_methods, expand
from simulator.pricing.profile import Profile
from simulator.protocol.cache import RecordingSource
from simulator.protocol.pairs import pair_manifest
from simulator.results.folder import check_run_folder, write_run
from simulator.results.timeline import Span


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: The run folder.
        summary: Its summary.
        events: Number of simulated events.
        warnings: Those of provenance.json.
        failed: A message for each case that could not be simulated.
    """

    folder: Path
    summary: pd.DataFrame
    events: int
    warnings: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def run_scenario(
    scenario: Scenario,
    folder: Path,
    source: RecordingSource,
    scenes: Callable[[int, int], list[str]],
    profile: Callable[[], Profile],
    draw: Callable[[Path], object] | None = None,
    progress: Progress = lambda stage, done, total: None,
    jobs: int = 1,
    scorer: ImageScorer | None = None,
    case_timeout_s: float | None = None,
    timeline_sessions: int = TIMELINE_SESSIONS,
) -> Outcome:
    """Run every case of a scenario and write its run folder.

    Args:
        scenario: What to run.
        folder: The run folder, written whole or not at all.
        source: Gives recordings of sessions.
        scenes: Captions that the pair's prompts are drawn from, by (seed, count).
        profile: Compute times measured on this machine, called only where the scenario uses them.
        draw: Adds plots and report to the folder.
        progress: Called as work goes on.
        jobs: Processes that simulate cases; it changes no result.
        scorer: Scores images; without it the quality columns that need it are NaN.
        case_timeout_s: A case whose simulation takes longer fails; None waits for ever.
        timeline_sessions: Requests of every case, from the first on, that timeline.json.gz shows.

    Raises:
        CiarSimError: The scenario cannot be run, or no case of it; nothing is written.
    """
    check_run_folder(folder)
    with error_context("pair"):
        manifest = pair_manifest(scenario.pair)
    cases = expand(scenario)
    check_size(cases, jobs)
    check_methods(cases, manifest)
    costs = CostTable(manifest, cases, profile)  # before recording: what cannot be priced is refused at once
    asked = cases
    cases, calibrated = search_thresholds(asked, manifest, scenes, source)
    plan = Plan(cases, manifest, scenes)
    recordings = plan.record(source)
    simulated, failed = simulate_cases(
        cases, costs, plan, recordings, source, progress, jobs, case_timeout_s, timeline_sessions
    )
    records = score_cases(simulated, plan, recordings, scorer)
    provenance = provenance_of(scenario, manifest, costs, plan, recordings, calibrated, simulated, failed, scorer)
    progress("writing", 0, 1)
    summary = write_run(
        folder,
        scenario_yaml=resolved_yaml(with_found(scenario, asked, cases)),
        cases=records,
        provenance=provenance,
        spans=[Span(case.title, *span) for case, result, _ in simulated for span in result.spans],
        queues={case.title: result.samples for case, result, _ in simulated},
        images=kept_images(simulated, plan, recordings, manifest.grid),
        draw=draw,
    )
    progress("writing", 1, 1)
    events = sum(result.events for _, result, _ in simulated)
    return Outcome(folder, summary, events, tuple(provenance["warnings"]), tuple(one.message for one in failed))

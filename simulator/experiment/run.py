"""One run from a scenario to its folder: recordings, compute times, a simulation per case, tables and plots.

No models here: recordings come from a `RecordingSource`, captions and measured profiles from callables; `ciar_sim/cli/` composes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from simulator.core.errors import PromptError, ScenarioError, error_context
from simulator.experiment.branches import Branches, images_of
from simulator.experiment.cost_table import _CostTable
from simulator.experiment.fleet import _replicas
from simulator.experiment.inputs import SimulatedCase, simulate_case
from simulator.experiment.pictures import _pictures, quality_columns
from simulator.experiment.plan import Plan, conditions_of, search_thresholds
from simulator.experiment.provenance import _divergence_warnings, _provenance, _warnings
from simulator.experiment.scenario import Case, Scenario, resolved_yaml
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.sweep import expand
from simulator.pricing.profile import Profile
from simulator.protocol.cache import RecordingSource
from simulator.protocol.methods import METHODS
from simulator.protocol.pairs import pair_manifest
from simulator.protocol.recording import Recording, SessionSpec
from simulator.results.folder import check_run_folder, write_run
from simulator.results.tables import Case as CaseRecords
from simulator.results.tables import OfSet
from simulator.results.timeline import Span


class ImageScorer(Protocol):
    """What looks at pictures. No models here: it is handed in."""

    def __call__(
        self, recordings: Sequence[Recording], captions: Sequence[str]
    ) -> tuple[Mapping[str, np.ndarray], OfSet]:
        """Quality columns with an entry per picture, and the quality of the set of pictures at given indices."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What its numbers rest on."""
        ...


class Progress(Protocol):
    """What a run tells about its way: the total of a stage, then how much of it is done."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run leaves: its folder and the summary that stands in it."""

    folder: Path
    summary: pd.DataFrame
    events: int


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
) -> Outcome:
    """Run every case of a scenario and write its run folder.

    scenes: captions of the scene grammar by (seed, count). profile: measured compute times of this machine, asked for only where the
    scenario wants them. draw: adds plots and report to the folder. jobs: processes that simulate cases; it changes no result.
    judge: looks at the pictures; without one the quality columns that need it are NaN.
    Raises a CiarSimError: nothing is left half-written.
    """
    check_run_folder(folder)
    manifest = pair_manifest(scenario.pair)
    cases = expand(scenario)
    for case in cases:
        with error_context("methods", case.position):
            case.method.at_threshold(0.0).settings.check(case.scenario.decoding, manifest)
    _check_fallback(cases)
    costs = _CostTable(manifest, cases, profile)  # before the recordings: an impossible choice is refused at once
    cases, calibrated = search_thresholds(cases, manifest, scenes, source)
    plan = Plan(cases, manifest, scenes)
    with error_context("prompts", kind=PromptError):
        recordings = dict(zip(plan.specs, source.recordings(list(plan.specs.values())), strict=True))
    results, branches = _simulated(cases, costs, plan, recordings, source, progress, jobs)
    extrapolated = {
        key for case, result in zip(cases, results, strict=True) if result.extrapolated for key in costs.keys(case)
    }
    prompts = plan.captions
    records = []
    for case, result in zip(cases, results, strict=True):
        mine = [recordings[key] for key in plan.of_case[case.index]]
        images = images_of(result.columns["prompt"], result.columns["timed_out_call"], mine, branches[case.index])
        reference = [recordings[plan.reference[case.index][prompt]] for prompt in images.prompts]
        captions = [plan.captions[case.index][prompt] for prompt in images.prompts]
        scored, of_set = scorer(images.recordings, captions) if scorer else ({}, lambda images: {})
        price = case.scenario.cloud.price_usd_per_gpu_hour
        workload = case.scenario.workload
        fleet = workload if isinstance(workload, FleetWorkload) else None
        records.append(
            CaseRecords(
                method=case.method.label,
                name=case.method.name,
                swept=case.swept,
                columns={**result.columns, **images.columns()},
                quality={**quality_columns(images.recordings, reference), **scored},
                of_set=of_set,
                sequential=fleet is None,
                replicas=_replicas(case.scenario, result),
                gpu_usd_per_hour=math.nan if price is None else price,
                refused=result.refused,
                unfinished=result.unfinished,
                warmup_s=fleet.warmup_s if fleet else 0.0,
                duration_s=fleet.duration_s if fleet else math.nan,
                slo_s=fleet.slo_s if fleet and fleet.slo_s is not None else math.nan,
                samples=result.samples,
            )
        )
    spans = [
        Span(f"{case.method.label} {conditions_of(case)}".strip(), *span)
        for case, result in zip(cases, results, strict=True)
        for span in result.spans
    ]
    progress("writing", 0, 1)
    summary = write_run(
        folder,
        scenario_yaml=resolved_yaml(scenario),
        cases=records,
        provenance={
            **_provenance(scenario, manifest, costs, extrapolated, cases, prompts, calibrated),
            **({"quality": dict(scorer.provenance)} if scorer else {}),
            "warnings": [
                *(
                    f"compute times lay outside what was measured, and are extrapolated: {key}"
                    for key in costs.beyond(extrapolated)
                ),
                *(text for case, result in zip(cases, results, strict=True) for text in _warnings(case, result)),
                *_divergence_warnings(cases, plan, recordings, branches),
            ],
        },
        spans=spans,
        pictures=_pictures(cases, plan, recordings, manifest.grid),
        draw=draw,
    )
    progress("writing", 1, 1)
    return Outcome(folder, summary, sum(result.events for result in results))


def _simulated(
    cases: Sequence[Case],
    costs: "_CostTable",
    plan: Plan,
    recordings: Mapping[str, Recording],
    source: RecordingSource,
    progress: Progress,
    jobs: int,
) -> tuple[list["SimulatedCase"], dict[int, Branches]]:
    """Every case simulated, and by case what was recorded of sessions that gave a reply up.

    Only the simulation tells which reply is late, and only a recording what follows: so a case is simulated again with what it missed
    until it misses nothing.
    """
    results: dict[int, SimulatedCase] = {}
    branches: dict[int, Branches] = {case.index: {} for case in cases}
    while left := [case for case in cases if case.index not in results]:
        work = []
        for case in left:
            parts, cloud, kv_tokens = costs.programs(
                case, [recordings[key] for key in plan.of_case[case.index]], branches[case.index]
            )
            work.append(delayed(simulate_case)(case.scenario, parts, cloud, kv_tokens))
        missing: list[tuple[int, tuple[int, int], SessionSpec]] = []
        for case, result in zip(left, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True):
            if not result.missing:
                results[case.index] = result
            for prompt, call in result.missing:
                spec = replace(plan.specs[plan.of_case[case.index][prompt]], missed_calls=(call,))
                missing.append((case.index, (prompt, call), spec))
            progress("simulating", len(results), len(cases))
        for (index, place, _), recording in zip(
            missing, source.recordings([spec for _, _, spec in missing]), strict=True
        ):
            branches[index][place] = recording
    return [results[case.index] for case in cases], branches


def _check_fallback(cases: Sequence[Case]) -> None:
    """Raises ScenarioError where nobody could follow the policy."""
    bound = [case for case in cases if case.scenario.fallback.policy != "wait"]
    if bound and not any(
        case.method.at_threshold(0.0).settings.can_fall_back(case.scenario.decoding) for case in bound
    ):
        able = [name for name, settings in METHODS.items() if settings().can_fall_back(bound[0].scenario.decoding)]
        with error_context("fallback", "policy"):
            raise ScenarioError(
                f"fallback.policy {bound[0].scenario.fallback.policy}: no method of the scenario can do without a reply of the cloud; "
                f"of all methods these can: {', '.join(able)}; and code with decoding.text_encoder: device"
            )

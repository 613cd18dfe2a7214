"""Progress of a scenario: what is already recorded and simulated, for dry runs and reports on unfinished runs."""

from collections.abc import Callable
from dataclasses import dataclass

from simulator.core.errors import ComputeError, UnrecordedError, error_context
from simulator.experiment.cost_table import CostTable
from simulator.experiment.estimate import check_size, size_of
from simulator.experiment.images import ImageScorer, score_cases
from simulator.experiment.kept import CaseCache
from simulator.experiment.plan import Plan
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.prompts import PromptList, Prompts
from simulator.experiment.schema.workload import FleetWorkload
from simulator.experiment.search import most_sessions, search_thresholds
from simulator.experiment.simulating import SimulationOptions, key_of, simulate_cases
from simulator.experiment.sweep import check_methods, expand
from simulator.experiment.tuning import trial_cases, tuned_quality
from simulator.pricing.profile import Profile
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.pairs import PairManifest, pair_manifest
from simulator.results.tables import CaseRecords


@dataclass(frozen=True)
class State:
    """Progress of a scenario.

    Attributes:
        cases: Its cases, without the trials of `sweep.tune`.
        simulated: The cases whose results are in the cache.
        sessions: Number of distinct sessions of the cases whose settings are known.
        missing: Keys of the sessions that are not recorded.
        more_sessions: Upper bound of the sessions of calibrations and trials whose settings are not known yet.
        more_cases: Number of trials of `sweep.tune`.
        requests: Approximate number of requests of the cases not yet simulated.
        plan: Sessions by case.
        costs: Compute times; None if they are not measured yet.
        manifest: Manifest of the pair.
        prompts: The prompts of its cases and trials, each once.
    """

    cases: list[Case]
    simulated: list[Case]
    sessions: int
    missing: list[str]
    more_sessions: int
    more_cases: int
    requests: float
    plan: Plan
    costs: CostTable | None
    manifest: PairManifest
    prompts: list[Prompts]

    def unrecorded_captions(self) -> list[str]:
        """Return the listed captions that must be recorded yet; drawn ones are the pair's own. All, if some sessions are not known."""
        lists = [one for one in self.prompts if isinstance(one, PromptList)]
        if self.more_sessions:
            return list(dict.fromkeys(caption for one in lists for caption in (*one.captions, *one.calibration)))
        listed = {caption for one in lists for caption in one.captions}
        return list(dict.fromkeys(text for key in self.missing if (text := self.plan.specs[key].prompt) in listed))


class _NotMeasured(Exception):
    """Compute times of this machine are not measured yet."""


def state_of(
    scenario: Scenario,
    recordings: RecordingCache,
    kept: CaseCache,
    scenes: Callable[[int, int], list[str]],
    profile: Callable[[], Profile],
    jobs: int | None = None,
) -> State:
    """Look up what is already recorded and simulated. Nothing is computed or written.

    Args:
        scenario: The scenario.
        recordings: The cache of recordings.
        kept: The cache of simulated cases.
        scenes: Captions of the pair's subject by (seed, count).
        profile: Returns the compute times measured on this machine; raises ComputeError if there are none yet.
        jobs: Number of cases simulated at the same time, for the check of memory; None skips the check.

    Raises:
        CiarSimError: The scenario cannot be run.
    """
    with error_context("pair"):
        manifest = pair_manifest(scenario.pair)
    cases, trials = expand(scenario), trial_cases(scenario)
    if jobs is not None:
        check_size([*cases, *trials], jobs)
    tuned_quality(scenario, manifest)  # refuses one that the images do not have
    check_methods([*cases, *trials], manifest)
    try:
        cases, _ = search_thresholds(cases, manifest, scenes, CachedSource(recordings))
        known = cases
    except UnrecordedError:  # calibration is not finished
        known = [case for case in cases if case.method.target is None]
    plan = Plan(known, manifest, scenes)

    def measured() -> Profile:
        try:
            return profile()
        except ComputeError:
            raise _NotMeasured from None

    try:
        costs = CostTable(manifest, [*cases, *trials], measured)
    except _NotMeasured:
        costs = None
    simulated = [] if costs is None else [case for case in known if kept.has(key_of(case, costs, plan))]
    there = {case.index for case in simulated}
    left = [*(case for case in cases if case.index not in there), *trials]
    settled = {case.index for case in known}
    unknown = [case for case in cases if case.index not in settled]
    return State(
        cases,
        simulated,
        len(plan.specs),
        [key for key in plan.specs if not recordings.has(key)],
        most_sessions(unknown, manifest, _prompts) + sum(_prompts(case.scenario) for case in trials),
        len(trials),
        sum(_requests(case.scenario) for case in left),
        plan,
        costs,
        manifest,
        list(dict.fromkeys(case.scenario.prompts for case in (*cases, *trials))),
    )


def finished_records(
    state: State, recordings: RecordingCache, kept: CaseCache, scorer: ImageScorer | None
) -> list[CaseRecords]:
    """Return the records of the cases that are simulated and whose sessions are all recorded."""
    missing = set(state.missing)
    ready = [
        case
        for case in state.simulated
        if not missing.intersection([*state.plan.of_case[case.index], *state.plan.reference[case.index]])
    ]
    if not ready or state.costs is None:
        return []
    source = CachedSource(recordings)
    plan = state.plan
    plan.record(
        source, dict.fromkeys(key for case in ready for of in (plan.of_case, plan.reference) for key in of[case.index])
    )
    simulated, _ = simulate_cases(
        ready, state.costs, plan, source, lambda stage, done, total: None, SimulationOptions(kept=kept)
    )
    return score_cases(simulated, plan, scorer)


def _prompts(scenario: Scenario) -> int:
    prompts = scenario.prompts
    return len(prompts.captions) if isinstance(prompts, PromptList) else getattr(prompts, "count", 0)


def _requests(scenario: Scenario) -> float:
    return size_of(scenario).requests if isinstance(scenario.workload, FleetWorkload) else float(_prompts(scenario))

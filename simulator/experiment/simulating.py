"""Simulates the cases of a run, and records what follows where a reply is given up."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from joblib import Parallel, delayed

from simulator.experiment.branches import Branches
from simulator.experiment.cost_table import CostTable
from simulator.experiment.inputs import SimulatedCase, simulate_case
from simulator.experiment.plan import Plan
from simulator.experiment.scenario import Case
from simulator.protocol.cache import RecordingSource
from simulator.protocol.recording import Recording, SessionSpec


class Progress(Protocol):
    """Called with a stage, the work done in it, and its total."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...


class Simulated(NamedTuple):
    """A case, its result, and the recordings of sessions that gave up a reply."""

    case: Case
    result: SimulatedCase
    branches: Branches


def simulate_cases(
    cases: Sequence[Case],
    costs: CostTable,
    plan: Plan,
    recordings: Mapping[str, Recording],
    source: RecordingSource,
    progress: Progress,
    jobs: int,
) -> list[Simulated]:
    """Every case simulated.

    Which replies are late is known only from the simulation, and what a device does then only from a recording: a case is
    simulated again with the recordings it lacked until it lacks none.
    """
    results: dict[int, SimulatedCase] = {}
    branches: dict[int, Branches] = {case.index: {} for case in cases}
    while left := [case for case in cases if case.index not in results]:
        work = []
        for case in left:
            of_prompts = [recordings[key] for key in plan.of_case[case.index]]
            parts, cloud, kv_tokens = costs.programs(case, of_prompts, branches[case.index])
            work.append(delayed(simulate_case)(case.scenario, parts, cloud, kv_tokens))
        missing: list[tuple[int, tuple[int, int], SessionSpec]] = []
        for case, result in zip(left, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True):
            if not result.missing:
                results[case.index] = result
            for prompt, call in result.missing:
                spec = replace(plan.specs[plan.of_case[case.index][prompt]], missed_calls=(call,))
                missing.append((case.index, (prompt, call), spec))
            progress("simulating", len(results), len(cases))
        recorded = source.recordings([spec for _, _, spec in missing])
        for (index, place, _), recording in zip(missing, recorded, strict=True):
            branches[index][place] = recording
    return [Simulated(case, results[case.index], branches[case.index]) for case in cases]

"""Simulates the cases of a run, and records what follows where a reply is given up."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from joblib import Parallel, delayed

from simulator.core.errors import CiarSimError, SimulationError
from simulator.core.limits import free_memory_bytes, limited_memory, limited_time
from simulator.experiment.branches import Branches
from simulator.experiment.cost_table import CostTable
from simulator.experiment.inputs import TIMELINE_SESSIONS, SimulatedCase, simulate_case
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


class FailedCase(NamedTuple):
    """A case that could not be simulated. error: what the user can mend, where it is that."""

    case: Case
    message: str
    error: CiarSimError | None


def simulate_cases(
    cases: Sequence[Case],
    costs: CostTable,
    plan: Plan,
    recordings: Mapping[str, Recording],
    source: RecordingSource,
    progress: Progress,
    jobs: int,
    case_timeout_s: float | None = None,
    timeline_sessions: int = TIMELINE_SESSIONS,
) -> tuple[list[Simulated], list[FailedCase]]:
    """Every case simulated, and those that failed: a case that raises, needs too much memory or too long ends alone.

    Which replies are late is known only from the simulation, and what a device does then only from a recording: a case is
    simulated again with the recordings it lacked until it lacks none.

    Raises:
        CiarSimError: No case could be simulated.
    """
    failed: dict[int, FailedCase] = {}
    free_bytes = free_memory_bytes() / jobs
    results: dict[int, SimulatedCase] = {}
    branches: dict[int, Branches] = {case.index: {} for case in cases}
    while left := [case for case in cases if case.index not in results and case.index not in failed]:
        work = []
        for case in left:
            of_prompts = [recordings[key] for key in plan.of_case[case.index]]
            parts, cloud, kv_tokens = costs.programs(case, of_prompts, branches[case.index])
            inputs = (case.scenario, parts, cloud, kv_tokens, timeline_sessions)
            work.append(delayed(_attempt)(case_timeout_s, free_bytes, *inputs))
        missing: list[tuple[int, tuple[int, int], SessionSpec]] = []
        for case, result in zip(left, Parallel(n_jobs=jobs, return_as="generator")(work), strict=True):
            if isinstance(result, _Failure):
                failed[case.index] = FailedCase(case, f"{case.title}: {result.message}", result.error)
                continue
            if not result.missing:
                results[case.index] = result
            for prompt, call in result.missing:
                spec = replace(plan.specs[plan.of_case[case.index][prompt]], missed_calls=(call,))
                missing.append((case.index, (prompt, call), spec))
            progress("simulating", len(results), len(cases))
        recorded = source.recordings([spec for _, _, spec in missing])
        for (index, place, _), recording in zip(missing, recorded, strict=True):
            branches[index][place] = recording
    if not results:
        first = next(iter(failed.values()))
        raise first.error or SimulationError(first.message)
    done = [Simulated(case, results[case.index], branches[case.index]) for case in cases if case.index in results]
    return done, [failed[index] for index in sorted(failed)]


class _Failure(NamedTuple):
    message: str
    error: CiarSimError | None


def _attempt(case_timeout_s: float | None, free_bytes: float, *inputs: Any) -> SimulatedCase | _Failure:
    """The case simulated, or why it could not be."""
    try:
        with limited_memory(free_bytes), limited_time(case_timeout_s):
            return simulate_case(*inputs)
    except CiarSimError as error:
        return _Failure(str(error), error)
    except MemoryError:
        return _Failure(f"needs more than the {free_bytes / 1e9:.1f} GB of memory that are free", None)
    except Exception as error:  # a fault of this program; the other cases are not its
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return _Failure(f"{type(error).__name__}: {error} ({where})", None)

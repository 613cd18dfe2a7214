"""Simulates the cases of a run, and records what follows where a reply is given up."""

import hashlib
import pickle
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from simulator.core.errors import CiarSimError, DivergedError, SimulationError
from simulator.core.limits import free_memory_bytes, limited_memory, limited_time
from simulator.experiment.branches import Branches
from simulator.experiment.cost_table import CostTable, Priced, cloud_tiers, fleet_parts, forget, kinds_by_tier
from simulator.experiment.inputs import TIMELINE_SESSIONS, SimulatedCase, simulate_case
from simulator.experiment.kept import CaseCache, KeptCase, case_key
from simulator.experiment.plan import Plan
from simulator.experiment.scenario import Case
from simulator.experiment.workers import Workers
from simulator.protocol.cache import RecordingSource
from simulator.protocol.recording import Recording
from simulator.results.timeline import drawn

TIMELINE_CASES = (
    200  # that the timeline shows: no viewer shows more, and their parts of it are most of a result's memory
)


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
    jobs: int | Workers | None = 1,
    case_timeout_s: float | None = None,
    timeline_sessions: int = TIMELINE_SESSIONS,
    kept: CaseCache | None = None,
    draw: bool = True,
) -> tuple[list[Simulated], list[FailedCase]]:
    """Every case simulated, and those that failed: a case that raises, needs too much memory or too long ends alone.

    Which replies are late is known only from the simulation, and what a device does then only from a recording: a case is
    simulated again with the recordings it lacked until it lacks none.

    Args:
        cases: The cases.
        costs: Compute times.
        plan: The sessions of each case.
        recordings: Of these sessions, by key.
        source: Of recordings that a case turns out to need.
        progress: Called after each case.
        jobs: Where cases are simulated; a number is that of processes, None one for each core where that pays.
        case_timeout_s: A case that takes longer fails; None waits for ever.
        timeline_sessions: Requests, from the first on, in the timeline; of the first `TIMELINE_CASES` cases.
        kept: Simulated cases of earlier runs; those of this run are added as they end.
        draw: False: results hold the spans of these requests, of all cases, in place of a part of the timeline; nothing is kept.

    Raises:
        CiarSimError: No case could be simulated.
    """
    workers = jobs if isinstance(jobs, Workers) else Workers(jobs)
    results: dict[int, SimulatedCase] = {}
    branches: dict[int, Branches] = {case.index: {} for case in cases}
    failed: dict[int, FailedCase] = {}
    keys: dict[int, str] = {}
    shown = {case.index for case in cases[:TIMELINE_CASES]}

    def done(index: int, result: SimulatedCase) -> None:
        results[index] = result if index in shown else replace(result, drawn=b"")

    def record(missing: Sequence[tuple[int, tuple[int, int]]]) -> None:
        """Records what devices do after the given calls of the given prompts.

        Where one chooses another way in company, each is recorded alone; a case whose session then diverges too fails.
        """
        specs = [
            replace(plan.specs[plan.of_case[index][prompt]], missed_calls=(call,)) for index, (prompt, call) in missing
        ]
        with suppress(DivergedError):
            for (index, place), recording in zip(missing, source.recordings(specs), strict=True):
                branches[index][place] = recording
            return
        for (index, place), spec in zip(missing, specs, strict=True):
            try:
                (branches[index][place],) = source.recordings([spec])
            except DivergedError as error:
                case = next(case for case in cases if case.index == index)
                results.pop(index, None)
                failed[index] = FailedCase(case, f"{case.title}: {error}", error)

    if kept is not None:
        keys = {case.index: key_of(case, costs, plan, timeline_sessions) for case in cases}
        broken: list[tuple[int, tuple[int, int]]] = []
        for index, key in keys.items():
            if found := kept.get(key):
                broken += [(index, place) for place in found.branches]
                done(index, found.result)
        record(broken)
    stage = f"simulating, {len(results)} of {len(cases)} kept" if results else "simulating"
    progress(stage, len(results), len(cases))
    workers = workers.settled([case for case in cases if case.index not in results])
    free_bytes = float("inf") if workers.remote else free_memory_bytes() / workers.most
    while left := [case for case in cases if case.index not in results and case.index not in failed]:
        missing: list[tuple[int, tuple[int, int]]] = []
        limits = _Limits(case_timeout_s, free_bytes, timeline_sessions, draw)
        for task, content in workers.run(attempt, _tasks(left, costs, plan, recordings, branches, workers, limits)):
            index = task.case.index
            if isinstance(content, Failure):
                failed[index] = FailedCase(task.case, f"{task.case.title}: {content.message}", content.error)
                continue
            result = KeptCase.from_bytes(content).result
            missing += [(index, place) for place in result.missing]
            if not result.missing:
                if kept is not None:
                    kept.put(keys[index], content)
                done(index, result)
            progress(stage, len(results), len(cases))
        record(sorted(missing))  # in the order of the cases, whichever ended first
    if not results:
        first = failed[min(failed)]
        raise first.error or SimulationError(first.message)
    simulated = [Simulated(case, results[case.index], branches[case.index]) for case in cases if case.index in results]
    return simulated, [failed[index] for index in sorted(failed)]


def key_of(case: Case, costs: CostTable, plan: Plan, timeline_sessions: int = TIMELINE_SESSIONS) -> str:
    """The key under which the result of a case is kept."""
    return case_key(case, plan.of_case[case.index], costs.fingerprint(case), timeline_sessions)


class _Limits(NamedTuple):
    timeout_s: float | None
    free_bytes: float
    timeline_sessions: int
    draw: bool


@dataclass(frozen=True, eq=False)
class Task:
    """A case to simulate, as it is sent to a worker; its priced sessions travel with it.

    Attributes:
        case: The case.
        priced: Its sessions with their times; pickled where the worker is another process.
        name: Equal for equal `priced`.
        kv_tokens: KV positions that fit a replica of each cloud.
        broken: (prompt, call) of the sessions in `priced` that gave a reply up.
        limits: Time and memory that it may take, and what is wanted of its timeline.
    """

    case: Case
    priced: Priced | bytes
    name: str
    kv_tokens: tuple[float, ...]
    broken: tuple[tuple[int, int], ...]
    limits: _Limits


class Failure(NamedTuple):
    """Why a case could not be simulated. error: what the user can mend, where it is that."""

    message: str
    error: CiarSimError | None


_PICKLES = 8  # priced sessions that are held at a time: cases that share them come one after another


def _tasks(
    cases: Sequence[Case],
    costs: CostTable,
    plan: Plan,
    recordings: Mapping[str, Recording],
    branches: Mapping[int, Branches],
    workers: Workers,
    limits: _Limits,
) -> Iterator[Task]:
    """The tasks of cases, made one by one."""
    pickles: OrderedDict[str, bytes] = OrderedDict()
    for case in cases:
        broken = branches[case.index]
        keys = plan.of_case[case.index]
        priced = costs.priced(case, [recordings[key] for key in keys], broken)
        told = repr((keys, sorted(broken), costs.fingerprint(case), case.scenario.placement))
        name = hashlib.sha256(told.encode()).hexdigest()
        content: Priced | bytes = priced
        if workers.apart:
            if name not in pickles:
                pickles[name] = pickle.dumps(priced, protocol=pickle.HIGHEST_PROTOCOL)
            content = pickles[name]
            if len(pickles) > _PICKLES:
                pickles.popitem(last=False)
        yield Task(case, content, name, costs.kv_tokens(case, priced), tuple(sorted(broken)), limits)


_opened: OrderedDict[str, Priced] = OrderedDict()  # of a worker: the sessions of the cases before


def _open(name: str, data: bytes) -> Priced:
    found = _opened.get(name)
    if found is None:
        found = _opened[name] = pickle.loads(data)
        if len(_opened) > _PICKLES:
            _opened.popitem(last=False)
    return found


def attempt(task: Task) -> bytes | Failure:
    """The case simulated, as `KeptCase.to_bytes`, or why it could not be. Runs in any process."""
    limits = task.limits
    try:
        with limited_memory(limits.free_bytes), limited_time(limits.timeout_s):
            priced = _open(task.name, task.priced) if isinstance(task.priced, bytes) else task.priced
            for kind in priced.kinds:
                for side in (kind.cloud, kind.companion):
                    forget(side)
            scenario = task.case.scenario
            parts, tiers = fleet_parts(scenario, priced), cloud_tiers(scenario, priced, task.kv_tokens)
            result = simulate_case(scenario, parts, tiers, limits.timeline_sessions)
            told = priced.extrapolated.union(*(own[0].extrapolated for own in kinds_by_tier(scenario, priced)))
            result = replace(result, extrapolated=tuple(sorted(told)))
            if limits.draw:
                result = replace(result, spans=[], drawn=drawn(result.spans, result.samples, result.columns))
            return KeptCase(result, task.broken).to_bytes()
    except CiarSimError as error:
        return Failure(str(error), error)
    except MemoryError:
        return Failure(f"needs more than the {limits.free_bytes / 1e9:.1f} GB of memory that are free", None)
    except Exception as error:  # a fault of this program; the other cases are not its
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return Failure(f"{type(error).__name__}: {error} ({where})", None)

"""Simulation of the cases of a run, and recording of the branches that the simulation needs."""

import hashlib
import math
import pickle
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from simulator.results.timeline import drawn

TIMELINE_CASES = (
    200  # number of cases in the timeline: viewers cannot show more, and it is most of the memory of a result
)


class Progress(Protocol):
    """Callback with a stage, the amount of work done in it, and the total."""

    def __call__(self, stage: str, done: float, total: float) -> None: ...


class Simulated(NamedTuple):
    """A case, its result, and the branches that it used."""

    case: Case
    result: SimulatedCase
    branches: Branches


class FailedCase(NamedTuple):
    """A case that could not be simulated. error: the error if the user can correct it, else None."""

    case: Case
    message: str
    error: CiarSimError | None


@dataclass(frozen=True)
class SimulationOptions:
    """How cases are simulated. None of it affects the columns of a result.

    Attributes:
        jobs: Where cases are simulated: a number of processes, or None for up to one per core.
        case_timeout_s: A case that takes longer fails; None for no limit.
        timeline_sessions: Number of first requests in the timeline, for the first `TIMELINE_CASES` cases.
        kept: Cache of simulated cases, to which the cases of this run are added as they end.
        draw: False: results have the spans of these requests, for all cases, instead of a part of the timeline. Not with `kept`.
    """

    jobs: int | Workers | None = 1
    case_timeout_s: float | None = None
    timeline_sessions: int = TIMELINE_SESSIONS
    kept: CaseCache | None = None
    draw: bool = True

    @property
    def workers(self) -> Workers:
        """The processes that simulate."""
        return self.jobs if isinstance(self.jobs, Workers) else Workers(self.jobs)


def simulate_cases(
    cases: Sequence[Case],
    costs: CostTable,
    plan: Plan,
    source: RecordingSource,
    progress: Progress,
    options: SimulationOptions = SimulationOptions(),
) -> tuple[list[Simulated], list[FailedCase]]:
    """Simulate all cases. Return the simulated and the failed ones; an exception or a limit of time or memory fails one case only.

    Only the simulation shows which replies are late, and only a recording shows what a device does then. A case is therefore simulated
    again, with the branches that were missing, until none is missing.

    Args:
        cases: The cases.
        costs: Compute times.
        plan: The sessions of each case, recorded.
        source: Source of the branches that a case needs.
        progress: Called after each case.
        options: How they are simulated.

    Raises:
        CiarSimError: No case could be simulated.
    """
    simulation = _Simulation(cases, costs, plan, source, options)
    simulation.take_kept()
    stage = f"simulating, {len(simulation.results)} of {len(cases)} kept" if simulation.results else "simulating"
    progress(stage, len(simulation.results), len(cases))
    workers = options.workers.settled(simulation.left())
    free_bytes = float("inf") if workers.remote else free_memory_bytes() / workers.most
    limits = _Limits(options.case_timeout_s, free_bytes, options.timeline_sessions, options.draw)
    while left := simulation.left():
        missing: list[Branch] = []
        tasks = _Tasks(costs, plan, simulation.branches, workers.apart, limits)
        for case, content in workers.run(attempt, left, tasks.of):
            if isinstance(content, Failure):
                simulation.fail(case, content.message, content.error)
                continue
            missing += simulation.add(case, content)
            progress(stage, len(simulation.results), len(cases))
        simulation.record(sorted(missing))  # sorted, so that the order in which cases end does not matter
    return simulation.ended()


Branch = tuple[int, tuple[int, int]]  # index of a case, and (prompt, call) of the reply that its session gives up


class _Simulation:
    """Results and branches of the cases so far, by index of the case."""

    def __init__(
        self, cases: Sequence[Case], costs: CostTable, plan: Plan, source: RecordingSource, options: SimulationOptions
    ) -> None:
        self.cases, self.plan, self.source, self.kept = cases, plan, source, options.kept
        self.results: dict[int, SimulatedCase] = {}
        self.branches: dict[int, Branches] = {case.index: {} for case in cases}
        self.failed: dict[int, FailedCase] = {}
        self._shown = {case.index for case in cases[:TIMELINE_CASES]}
        keyed = cases if options.kept is not None else ()
        self._keys = {case.index: key_of(case, costs, plan, options.timeline_sessions) for case in keyed}

    def left(self) -> list[Case]:
        """Return the cases that are still to be simulated."""
        return [case for case in self.cases if case.index not in self.results and case.index not in self.failed]

    def take_kept(self) -> None:
        """Take the results in the cache, and record the branches that they need."""
        if self.kept is None:
            return
        needed: list[Branch] = []
        for case in self.cases:
            if found := self.kept.get(self._keys[case.index]):
                needed += [(case.index, place) for place in found.branches]
                self._done(case, found.result)
        self.record(needed)

    def add(self, case: Case, content: bytes) -> list[Branch]:
        """Take the result of `attempt`, if it lacks no branch. Return the branches that it lacks."""
        result = KeptCase.from_bytes(content).result
        if not result.missing:
            if self.kept is not None:
                self.kept.put(self._keys[case.index], content)
            self._done(case, result)
        return [(case.index, place) for place in result.missing]

    def fail(self, case: Case, message: str, error: CiarSimError | None) -> None:
        """Note that a case could not be simulated."""
        self.failed[case.index] = FailedCase(case, f"{case.title}: {message}", error)

    def record(self, missing: Sequence[Branch]) -> None:
        """Record branches.

        If one diverges from its session when batched with others, each is recorded alone. A case whose branch diverges even then fails.
        """
        plan = self.plan
        specs = [
            replace(plan.specs[plan.of_case[index][prompt]], missed_calls=(call,)) for index, (prompt, call) in missing
        ]
        with suppress(DivergedError):
            for (index, place), recording in zip(missing, self.source.recordings(specs), strict=True):
                self.branches[index][place] = recording
            return
        for (index, place), spec in zip(missing, specs, strict=True):
            try:
                (self.branches[index][place],) = self.source.recordings([spec])
            except DivergedError as error:
                self.results.pop(index, None)
                self.fail(next(case for case in self.cases if case.index == index), str(error), error)

    def ended(self) -> tuple[list[Simulated], list[FailedCase]]:
        """Return the simulated and the failed cases. Raises CiarSimError if none was simulated."""
        if not self.results:
            first = self.failed[min(self.failed)]
            raise first.error or SimulationError(first.message)
        simulated = [
            Simulated(case, self.results[case.index], self.branches[case.index])
            for case in self.cases
            if case.index in self.results
        ]
        return simulated, [self.failed[index] for index in sorted(self.failed)]

    def _done(self, case: Case, result: SimulatedCase) -> None:
        self.results[case.index] = result if case.index in self._shown else replace(result, drawn=b"")


def key_of(case: Case, costs: CostTable, plan: Plan, timeline_sessions: int = TIMELINE_SESSIONS) -> str:
    """Return the key of the result of a case in the cache."""
    return case_key(case, plan.of_case[case.index], costs.fingerprint(case), timeline_sessions)


class _Limits(NamedTuple):
    timeout_s: float | None
    free_bytes: float
    timeline_sessions: int
    draw: bool


@dataclass(frozen=True, eq=False)
class Task:
    """A case to simulate, in the form sent to a worker.

    Attributes:
        case: The case.
        priced: Its priced sessions; pickled if the worker is another process.
        name: Digest that is equal for equal `priced`.
        kv_tokens: KV positions that fit a replica of each cloud.
        broken: (prompt, call) of the sessions in `priced` that gave up a reply.
        limits: Limits of time and memory, and options of the timeline.
    """

    case: Case
    priced: Priced | bytes
    name: str
    kv_tokens: tuple[float, ...]
    broken: tuple[tuple[int, int], ...]
    limits: _Limits


class Failure(NamedTuple):
    """The reason why a case could not be simulated. error: the error if the user can correct it, else None."""

    message: str
    error: CiarSimError | None


_PICKLES = 8  # size of the caches of priced sessions; consecutive cases share them


@dataclass
class _Tasks:
    """Builds the tasks of cases. pickled: whether the worker is another process without the memory of this one."""

    costs: CostTable
    plan: Plan
    branches: Mapping[int, Branches]
    pickled: bool
    limits: _Limits
    pickles: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def of(self, case: Case) -> Task:
        broken = self.branches[case.index]
        priced = self.costs.priced(case, self.plan.recorded(case), broken)
        told = repr(
            (self.plan.of_case[case.index], sorted(broken), self.costs.fingerprint(case), case.scenario.placement)
        )
        name = hashlib.sha256(told.encode()).hexdigest()
        content: Priced | bytes = priced
        if self.pickled:
            if name not in self.pickles:
                self.pickles[name] = pickle.dumps(priced, protocol=pickle.HIGHEST_PROTOCOL)
            content = self.pickles[name]
            if len(self.pickles) > _PICKLES:
                self.pickles.popitem(last=False)
        return Task(case, content, name, self.costs.kv_tokens(case, priced), tuple(sorted(broken)), self.limits)


_opened: OrderedDict[str, Priced] = OrderedDict()  # in a worker: priced sessions of earlier cases by name


def _open(name: str, data: bytes) -> Priced:
    found = _opened.get(name)
    if found is None:
        found = _opened[name] = pickle.loads(data)
        if len(_opened) > _PICKLES:
            _opened.popitem(last=False)
    return found


def attempt(task: Task) -> bytes | Failure:
    """Simulate a case in any process. Return the result as `KeptCase.to_bytes`, or the reason why it failed."""
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
        if math.isinf(limits.free_bytes):  # not known, as of a worker of a cluster
            return Failure("needs more memory than its process can have", None)
        return Failure(f"needs more than the {limits.free_bytes / 1e9:.1f} GB of memory that are free", None)
    except Exception as error:  # a fault of this program must not end the other cases
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return Failure(f"{type(error).__name__}: {error} ({where})", None)

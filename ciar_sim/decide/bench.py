"""Cases recorded and priced once, then simulated in memory under any load and any seed of the arrivals; no run folder is written."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.core.errors import CiarSimError, error_context
from simulator.experiment.cost_table import CostTable
from simulator.experiment.estimate import check_size
from simulator.experiment.images import score_cases
from simulator.experiment.kept import CaseCache
from simulator.experiment.loading import LoadedScenario
from simulator.experiment.plan import Plan
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.search import search_thresholds
from simulator.experiment.simulating import Progress, Simulated, SimulationOptions, simulate_cases
from simulator.experiment.sweep import check_methods, expand
from simulator.experiment.workers import Workers
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.pairs import pair_manifest
from simulator.results.tables import CaseRecords


def silent(stage: str, done: float, total: float) -> None:
    """No progress."""


@dataclass(frozen=True)
class Resources:
    """Where recordings are kept and made, and how many processes simulate. Options as in `ciar_sim.run`."""

    cache: Path | None = None
    torch_device: str = "auto"
    max_batch: int = 64
    jobs: int | Workers | None = None
    progress: Progress = silent


ALLOWED = 0.05  # share of requests that may miss an objective for p95


@dataclass(frozen=True)
class Measured:
    """A simulated case.

    Attributes:
        case: The case.
        latency_s: Latency by request, in order of arrival, without the warm-up.
        columns: All columns of the same requests (`CaseResult.columns`).
        refused: Requests that the cloud refused, warm-up included.
        unfinished: Requests still open at the end, warm-up included.
        lost: Refused and unfinished requests after the warm-up.
        came: All requests, warm-up included.
    """

    case: Case
    latency_s: pd.Series
    columns: Mapping[str, np.ndarray]
    refused: int
    unfinished: int
    lost: int
    came: int

    @cached_property
    def mean_s(self) -> float:
        """Mean latency; NaN without an answer."""
        return float(self.latency_s.mean())

    @property
    def p95_s(self) -> float:
        """95th percentile of the latencies, linear between order statistics, as in summary.csv; NaN without an answer."""
        return float(self.latency_s.quantile(0.95)) if len(self.latency_s) else math.nan

    @property
    def asked(self) -> int:
        """Number of requests after the warm-up."""
        return len(self.latency_s) + self.lost

    def late(self, slo_s: float) -> int:
        """Return how many requests miss an objective: those that take longer, and those without an answer."""
        return int(np.count_nonzero(self.latency_s.to_numpy() > slo_s)) + self.lost

    def within(self, slo_s: float) -> bool:
        """Return whether p95 of the latency meets an objective: at most 5 % of the requests miss it. False without requests."""
        return self.asked > 0 and self.late(slo_s) <= ALLOWED * self.asked


class Bench:
    """A scenario's models, cache and scorer."""

    def __init__(self, loaded: LoadedScenario, resources: Resources) -> None:
        from ciar_sim.cli.common import default_cache
        from ciar_sim.cli.models import Models

        self.loaded, self.resources = loaded, resources
        self.scenario = loaded.scenario
        cache = resources.cache or default_cache()
        self.models = Models(self.scenario.pair, resources.torch_device, resources.max_batch, cache, resources.progress)
        self.source, self.kept = CachedSource(RecordingCache(cache), self.models.record), CaseCache(cache)
        self.manifest = pair_manifest(self.scenario.pair)
        with self.loaded.source.located(), error_context("pair"):
            self.scorer = self.models.scorer()

    def cases(self) -> list[Case]:
        """The cases of the scenario."""
        with self.loaded.source.located():
            return expand(self.scenario)

    def prepare(self, cases: Sequence[Case]) -> "Prepared":
        """The cases recorded and priced. They are numbered anew, in this order."""
        with self.loaded.source.located():
            return Prepared(self, [replace(case, index=index) for index, case in enumerate(cases)])


@dataclass
class Prepared:
    """Cases with their recordings and compute times.

    Attributes:
        bench: Its models and cache.
        cases: The cases, thresholds calibrated.
        failed: A message for each case that could not be simulated.
    """

    bench: Bench
    cases: list[Case]
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        bench = self.bench
        check_size(self.cases, SimulationOptions(bench.resources.jobs).workers.most)
        check_methods(self.cases, bench.manifest)
        self.costs = CostTable(bench.manifest, self.cases, bench.models.profile)
        self.cases, _ = search_thresholds(self.cases, bench.manifest, bench.models.captions, bench.source)
        self.plan = Plan(self.cases, bench.manifest, bench.models.captions)
        self.plan.record(bench.source)
        self._simulated: dict[int, Simulated] = {}
        self._quality: dict[Any, CaseRecords] = {}

    @property
    def prompts(self) -> int:
        """Different captions of the cases."""
        return len({caption for captions in self.plan.captions.values() for caption in captions})

    def measure(self, timeline_sessions: int = 0) -> dict[int, Measured]:
        """Every case simulated as its scenario says, by index; one that fails is left out and its message kept.

        timeline_sessions: Requests of each case, from the first on, whose spans are kept.
        """
        # A case with all its spans is too large to keep.
        done = self._simulate(self.cases, timeline_sessions, None if timeline_sessions else self.bench.kept)
        self._simulated = {one.case.index: one for one in done}
        return {index: measured(one) for index, one in self._simulated.items()}

    def results(self) -> list[Simulated]:
        """The cases measured last."""
        return list(self._simulated.values())

    def again(self, variants: Sequence[tuple[Case, Scenario]]) -> list[Measured]:
        """Some of the cases under other loads or seeds of the arrivals, replayed from the same recordings.

        Raises:
            CiarSimError: One of them cannot be simulated.
        """
        for case in {case.index: case for case, _ in variants}.values():
            # Priced here once: what a forked process prices is gone with it, and replays are many.
            self.costs.priced(case, self.plan.recorded(case), {})
        first = max(self.plan.of_case) + 1
        made = []
        for number, (case, scenario) in enumerate(variants, start=first):
            made.append(replace(case, index=number, scenario=scenario))
            self.plan.of_case[number] = self.plan.of_case[case.index]
        before = len(self.failed)
        done = [measured(one) for one in self._simulate(made)]
        for case in made:
            del self.plan.of_case[case.index]
        if len(self.failed) > before:
            raise CiarSimError(self.failed[before])
        return done

    def _simulate(
        self, cases: Sequence[Case], timeline_sessions: int = 0, kept: CaseCache | None = None
    ) -> list[Simulated]:
        bench, resources = self.bench, self.bench.resources
        options = SimulationOptions(resources.jobs, None, timeline_sessions, kept, draw=not timeline_sessions)
        with bench.loaded.source.located():
            done, failed = simulate_cases(cases, self.costs, self.plan, bench.source, resources.progress, options)
        self.failed += [one.message for one in failed]
        return done

    def quality(self, case: Case) -> CaseRecords:
        """Quality of a measured case's images: cases with the same images are scored once."""
        one = self._simulated[case.index]
        key = (tuple(self.plan.of_case[case.index]), case.index if one.branches else -1)
        if key not in self._quality:
            self._quality[key] = score_cases([one], self.plan, self.bench.scorer)[0]
        return self._quality[key]


def measured(one: Simulated) -> Measured:
    """Return a simulated case without the requests of its warm-up."""
    columns = one.result.columns
    counted = columns["requested_s"] >= one.case.scenario.workload.warmup_s
    kept = np.flatnonzero(counted)
    kept = kept[np.lexsort((columns["request"][kept], columns["requested_s"][kept]))]
    chosen = {name: column[kept] for name, column in columns.items()}
    latency_s = pd.Series(chosen["latency_s"], index=chosen["request"])
    refused, unfinished = one.result.refused, one.result.unfinished
    # Requests are numbered in order of time, and those without an answer have no row.
    before = int(columns["request"][~counted].max(initial=-1)) + 1
    came = len(columns["request"]) + refused + unfinished
    return Measured(one.case, latency_s, chosen, refused, unfinished, came - before - len(kept), came)


def candidate(case: Case) -> str:
    """The method with its swept settings: `ciar threshold=0.5`."""
    from reports.words import label

    row = {"method": case.method.label, "method_name": case.method.name, **case.swept}
    return label(row, tuple(case.swept))


def condition(case: Case) -> dict[str, Any]:
    """Swept values besides the methods' own settings."""
    return {path: value for path, value in case.swept.items() if not path.startswith("methods.")}


def base_of(cases: Sequence[Case], what: str) -> Case:
    """The case of base, which the others are compared with.

    Raises:
        CiarSimError: There is none.
    """
    for case in cases:
        if case.method.name == "base":
            return case
    raise CiarSimError(f"{what} compares methods with base, and the scenario has none: add base to methods")

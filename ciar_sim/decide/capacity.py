"""How large a load each method carries within a latency objective: bisection over replicated simulations.

A load is tested by the share of requests that miss the objective (the late, the refused and the unfinished), in independent
replications: fresh seeds of arrivals, links and cloud over the same recordings. At p95 it carries the load where that share is at most
5 %. The test looks after 4, 8 and 16 replications and stops as soon as an interval of the share, at a confidence shared between the
looks (Bonferroni), lies on one side of 5 %. Late requests come in bursts, and most replications may hold none: see `late_share`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError
from scipy.special import stdtrit

from ciar_sim.decide.bench import Bench, Means, Prepared, candidate, condition
from ciar_sim.decide.decision import Decision, failed_cases, span
from reports.words import number, significant
from simulator.core.errors import CiarSimError
from simulator.experiment.estimate import check_size, size_of
from simulator.experiment.loading import LoadedScenario
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.workload import (
    BurstyArrivals,
    ClosedArrivals,
    FleetWorkload,
    PoissonArrivals,
    TraceArrivals,
)
from simulator.results.statistics import CONFIDENCE

LOOKS = (4, 8, 16)  # replications after which the test may end
ALLOWED = 0.05  # share of requests that may miss the objective at p95
LEAST, MOST = 2.0**-14, 2.0**14  # times the scenario's load that are searched
MOST_REQUESTS = 50_000  # of a replication, or GROWTH times those of the scenario's load; what is never late would be doubled for hours
GROWTH = 16
LONGEST_S = 5e7  # of a replication; a workload may last 1e8 s
SLOWEST = 1e6  # time_scale of arrivals of a file
LOADS = ("workload.arrivals.", "workload.devices")  # swept paths that are what is searched
CYCLES = 5  # of a burst and a calm that a replication holds at least: without bursts any load is carried
# Where a load seems carried and its queue grows: a load above what the cloud serves by so much, and not less, is to be found out, and
# requests of such a replication at most.
OVERLOAD, LONGER_REQUESTS = 0.02, 20_000
WIDE = 5  # times the precision: how near the ends are brought where loads between them stay undecided
# Of a replication's duration, where the scenario names no warm-up. A cloud that was empty fills slowly: after a fifth, of 400 requests of
# M/D/1 at 95 % load a third as many are late as there are in the long run.
WARM = 1 / 3


@dataclass(frozen=True)
class Load:
    """One tested load.

    Attributes:
        times: The load, as a multiple of the scenario's.
        late: Share of the requests of all replications that miss the objective.
        late_lo: Lower end of its interval at the last look.
        late_hi: Upper end.
        replications: Simulations behind it.
        verdict: 1 carried, -1 not carried, 0 not decided after the last look.
    """

    times: float
    late: float
    late_lo: float
    late_hi: float
    replications: int
    verdict: int


@dataclass(frozen=True)
class Found:
    """The greatest load, as a multiple of the scenario's: an estimate, the greatest shown to be carried and the least shown not to be."""

    times: float
    low: float
    high: float
    loads: tuple[Load, ...]


def capacity(
    loaded: LoadedScenario, slo_s: float, means: Means, requests: int = 400, precision_pct: float = 2.0
) -> Decision:
    """The greatest load that each case of the scenario carries with p95 of the latency within an objective.

    Devices and rate grow together: every device asks as often as in the scenario.

    Args:
        loaded: The scenario; its arrivals are in time, not sequential.
        slo_s: The objective in seconds.
        means: Cache, processes, progress.
        requests: Per replication, without its warm-up. A closed loop keeps the scenario's duration, arrivals of a file keep their number.
        precision_pct: The search ends where the loads that are carried and not carried are so near.

    Raises:
        CiarSimError: The scenario has no such load, or cannot be simulated.
    """
    bench = Bench(loaded, means)
    workload = loaded.scenario.workload
    if not isinstance(workload, FleetWorkload):
        raise CiarSimError(
            f"{loaded.source.where(('workload',))}: capacity needs arrivals in time, got sequential ones; "
            "allowed: workload: {devices: N, arrivals: {poisson_per_s: RATE}, duration_s: SECONDS}"
        )
    prepared = bench.prepare(_without_loads(bench.cases()))
    rows, tests, all_found = [], [], []
    failed: list[CiarSimError] = []
    for place, case in enumerate(prepared.cases):
        means.progress("searching capacities", place, len(prepared.cases))
        try:
            found = _search_of(case, prepared, slo_s, requests, precision_pct / 100)
        except CiarSimError as error:
            failed.append(error)
            continue
        all_found.append(found)
        rows.append(_row(case, found))
        tests += [{"method": candidate(case), **condition(case), **vars(load)} for load in found.loads]
    if not rows:
        raise failed[0]
    means.progress("searching capacities", len(prepared.cases), len(prepared.cases))
    table = pd.DataFrame(rows)
    names = {candidate(case): case.method.name for case in prepared.cases}
    facts: dict[str, Any] = {
        "decision": "capacity",
        "names": names,
        "slo_p95_s": slo_s,
        "confidence": CONFIDENCE,
        "requests": requests,
        "precision_pct": precision_pct,
        "failed": [str(error) for error in failed],
    }
    sentences = (*_sentences(table, all_found, slo_s), *failed_cases(facts["failed"]))
    return Decision(sentences, table, {"loads": pd.DataFrame(tests)}, facts)


def _search_of(case: Case, prepared: Prepared, slo_s: float, requests: int, precision: float) -> Found:
    """What a case carries. Raises CiarSimError where it cannot be simulated."""
    workload = case.scenario.workload
    assert isinstance(workload, FleetWorkload)
    devices = workload.devices if isinstance(workload.arrivals, ClosedArrivals) else 0
    idle, most = idle_times(case.scenario, requests, slo_s), most_times(case, requests, slo_s)
    return search(_Tester(prepared, case, slo_s, requests), precision, idle, most, devices)


def _without_loads(cases: Sequence[Case]) -> list[Case]:
    """The cases without swept loads, which are what is searched: of those that differ in nothing else the first."""
    first: dict[str, Case] = {}
    for case in cases:
        swept = {path: value for path, value in case.swept.items() if not path.startswith(LOADS)}
        key = json.dumps([case.position, swept], sort_keys=True, default=str)
        first.setdefault(key, replace(case, swept=swept))
    return list(first.values())


class _Tester:
    """Tests loads of one case."""

    def __init__(self, prepared: Prepared, case: Case, slo_s: float, requests: int) -> None:
        self.prepared, self.case, self.slo_s, self.requests = prepared, case, slo_s, requests

    def __call__(self, times: float) -> Load:
        """The load tested; over a longer time where it seems carried only because its queue has no time to grow."""
        scenario = scaled(self.case.scenario, times, self.requests, self.slo_s)
        load, overtaken = self._tested(times, scenario)
        longer = self._longer(scenario) if overtaken and load.verdict >= 0 else None
        return load if longer is None else self._tested(times, longer)[0]

    def _longer(self, scenario: Scenario) -> Scenario | None:
        """The scenario over the time in which waits grow beyond the objective if the load is `OVERLOAD` above what the cloud serves: they
        grow by that share of the time, and one request in twenty must be late. None where it is as long, or its arrivals are given."""
        workload = scenario.workload
        assert isinstance(workload, FleetWorkload)
        if not isinstance(workload.arrivals, PoissonArrivals | BurstyArrivals):
            return None
        needed_s = self.slo_s / OVERLOAD / (1 - ALLOWED)
        longer = min(needed_s / workload.duration_s, LONGER_REQUESTS / size_of(scenario).requests)
        if longer < 1.01:
            return None
        ends = {"duration_s": longer * workload.duration_s, "warmup_s": longer * workload.warmup_s}
        return scenario.model_copy(update={"workload": workload.model_copy(update=ends)})

    def _tested(self, times: float, scenario: Scenario) -> tuple[Load, bool]:
        """The verdict over replications of a scenario at this load, and whether requests overtook the cloud in one of them; 0 as soon as
        they did, unless the load is not carried anyway or the scenario is long enough."""
        done: list[tuple[np.ndarray, int]] = []
        overtaken = False
        for look in LOOKS:
            seeds = [scenario.seed + 1 + number for number in range(len(done), look)]
            variants = [(self.case, scenario.model_copy(update={"seed": seed % 2**63})) for seed in seeds]
            measured = self.prepared.again(variants)
            done += [(one.latency_s.to_numpy(), one.refused + one.unfinished) for one in measured]
            overtaken |= any(one.overtaken for one in measured)
            if not all(len(latency_s) + lost for latency_s, lost in done):  # of none, none is late at any load
                raise CiarSimError(
                    f"workload.duration_s: at {significant(times)} times this load a replication has no request after its warm-up, so it "
                    "cannot be tested; give a longer duration_s"
                )
            share, low, high = late_share(done, self.slo_s)
            if high <= ALLOWED or low > ALLOWED:
                return Load(times, share, low, high, look, 1 if high <= ALLOWED else -1), overtaken
            if overtaken and self._longer(scenario) is not None:
                break
        return Load(times, share, low, high, look, 0), overtaken


def late_share(replications: Sequence[tuple[np.ndarray, int]], slo_s: float) -> tuple[float, float, float]:
    """Share of the requests of all replications that miss the objective, and its interval at the confidence of one look.

    Late requests come in bursts, so that the share's spread grows with the share, and few replications that hold no burst show neither.
    Therefore it is the interval of the logarithm, and its upper end has the spread at the latency that 5 % of the requests exceed, where
    that reaches further: the spread that the share would have if the objective were just met.

    Args:
        replications: Of each the latencies of its answered requests in seconds, and how many were refused or unfinished: those miss any
            objective.
        slo_s: The objective.
    """
    asked = sum(len(latency_s) + lost for latency_s, lost in replications)
    share, half = share_beyond(replications, slo_s)
    answered = np.concatenate([latency_s for latency_s, _ in replications])
    rank = math.ceil((1 - ALLOWED) * asked) - 1  # of the latency that at most 5 % exceed
    exceeded_s = float(np.partition(answered, rank)[rank]) if rank < len(answered) else math.inf
    _, at_p95 = share_beyond(replications, exceeded_s)
    low, high = (share * math.exp(sign * half / share) if share else 0.0 for sign in (-1, 1))
    return share, low, min(1.0, max(high, share + at_p95))


def share_beyond(replications: Sequence[tuple[np.ndarray, int]], slo_s: float) -> tuple[float, float]:
    """Share of the requests of all replications that are late, and half of its Student interval at the confidence of one look.

    A ratio of means and not the mean of the replications' shares: the one with a burst has more requests, and more of them late.
    """
    late = np.array([np.count_nonzero(latency_s > slo_s) + lost for latency_s, lost in replications], float)
    asked = np.array([len(latency_s) + lost for latency_s, lost in replications], float)
    share = float(late.sum() / asked.sum())
    quantile = float(stdtrit(len(late) - 1, 1 - (1 - CONFIDENCE) / 2 / len(LOOKS)))
    return share, quantile * float(np.std(late - share * asked, ddof=1) / asked.mean()) / math.sqrt(len(late))


def idle_times(scenario: Scenario, requests: int, slo_s: float) -> float:
    """A load at which requests hardly ever meet, as a multiple of the scenario's: what is not carried there is carried nowhere.

    With Poisson arrivals 1 % of the requests then come within the objective of another one. A closed loop has one device, and the rate
    is never so low that `requests` of them take longer than a workload may.
    """
    workload = scenario.workload
    assert isinstance(workload, FleetWorkload)
    rate = rate_of(workload)
    if not rate > 0.0:
        return 1.0 / workload.devices
    longest = requests / (rate * LONGEST_S)
    if isinstance(workload.arrivals, TraceArrivals):  # all of it is asked, ever slower
        longest = max(workload.duration_s / LONGEST_S, workload.arrivals.time_scale / SLOWEST)
    return min(0.5, max(0.01 / (rate * slo_s), longest, LEAST))


def most_times(case: Case, requests: int, slo_s: float) -> float:
    """The greatest load that is tried, as a multiple of the scenario's: a power of two, as far as a workload and this machine can."""
    first = size_of(scaled(case.scenario, 1.0, requests, slo_s)).requests
    times = 1.0
    while times < MOST:
        try:
            larger = scaled(case.scenario, 2 * times, requests, slo_s)
            check_size([replace(case, scenario=larger)])
        except CiarSimError:
            break
        if size_of(larger).requests > max(MOST_REQUESTS, GROWTH * first):
            break
        times *= 2
    return times


def search(test: "_Tester", precision: float, idle: float, most: float = MOST, devices: int = 0) -> Found:
    """Doubles the load until one is not carried, or takes the idle one where the first is not, then bisects (geometric means).

    Where the test leaves a load undecided, the ends are brought nearer to it, from the side that is farther off, until they are within
    `WIDE` times the precision of each other or there is no load left between.

    Args:
        test: Of a load.
        precision: The search ends where the loads that are carried and not carried are so near.
        idle: A load that is carried if any is.
        most: The greatest load that is tried.
        devices: Of the scenario, where only whole devices are different loads, as in a closed loop; 0: all are.
    """
    loads = [test(1.0)]
    if loads[0].verdict <= 0:
        loads.append(test(idle))
        if loads[1].verdict <= 0:
            high = min((load.times for load in loads if load.verdict < 0), default=math.inf)
            return Found(0.0, 0.0, high, tuple(loads))
    while all(load.verdict >= 0 for load in loads):
        times = max(load.times for load in loads) * 2
        if times > most:
            low = max(load.times for load in loads if load.verdict > 0)
            return Found(math.inf, low, math.inf, tuple(loads))
        loads.append(test(times))
    while True:
        low = max(load.times for load in loads if load.verdict > 0)
        high = min(load.times for load in loads if load.verdict < 0 and load.times > low)
        open_ = [load.times for load in loads if low < load.times < high]
        if open_ and high / low <= 1 + WIDE * precision:
            break
        gaps = [(low, min(open_)), (max(open_), high)] if open_ else [(low, high)]
        gaps.sort(key=lambda gap: gap[0] / gap[1])  # the widest first
        tried = [load for gap in gaps if (load := _between(*gap, precision, devices)) is not None]
        if not tried:
            break
        loads.append(test(tried[0]))
    ordered = sorted((load for load in loads if low <= load.times <= high), key=lambda load: load.times)
    late = np.maximum.accumulate([load.late for load in ordered])
    times = float(np.exp(np.interp(ALLOWED, late, np.log([load.times for load in ordered]))))
    return Found(times, low, high, tuple(sorted(loads, key=lambda load: load.times)))


def _between(low: float, high: float, precision: float, devices: int) -> float | None:
    """A load between two others; None where they are too near."""
    if high / low <= 1 + precision:
        return None
    if not devices:
        return math.sqrt(low * high)
    least, most = round(low * devices), round(high * devices)
    middle = min(max(round(math.sqrt(least * most)), least + 1), most - 1)
    return middle / devices if least < middle < most else None


def scaled(scenario: Scenario, times: float, requests: int, slo_s: float) -> Scenario:
    """The scenario at a multiple of its load: devices and their rate grow together; a share of a device is a whole one."""
    workload = scenario.workload
    assert isinstance(workload, FleetWorkload)
    arrivals = workload.arrivals
    change: dict[str, object] = {"devices": max(1, math.ceil(workload.devices * times - 1e-9))}
    match arrivals:
        case PoissonArrivals(poisson_per_s=rate):
            change["arrivals"] = arrivals.model_copy(update={"poisson_per_s": rate * times})
        case BurstyArrivals(bursty_per_s=rate):
            change["arrivals"] = arrivals.model_copy(update={"bursty_per_s": rate * times})
        case TraceArrivals(time_scale=scale):
            change["arrivals"] = arrivals.model_copy(update={"time_scale": scale / times})
    if isinstance(arrivals, PoissonArrivals | BurstyArrivals):
        counted_s = max(requests / (rate * times), 10.0 * slo_s)
        if isinstance(arrivals, BurstyArrivals):
            counted_s = max(counted_s, min(CYCLES * (arrivals.burst_s + arrivals.calm_s), LONGEST_S))
        warm_s = workload.warmup_s or counted_s * WARM / (1 - WARM)
        change |= {"duration_s": counted_s + warm_s, "warmup_s": warm_s}
    elif isinstance(arrivals, TraceArrivals):
        # The same requests, closer together; the run ends no sooner than they can be late.
        change |= {"duration_s": max(workload.duration_s / times, slo_s), "warmup_s": workload.warmup_s / times}
    elif isinstance(arrivals, ClosedArrivals) and not workload.warmup_s:
        change["warmup_s"] = WARM * workload.duration_s
    try:
        data = {**workload.model_dump(by_alias=True), **change}
        return scenario.model_copy(update={"workload": FleetWorkload.model_validate(data)})
    except ValidationError as error:
        raise CiarSimError(
            f"workload: {times:g} times this load cannot be simulated: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None


def _row(case: Case, found: Found) -> dict[str, object]:
    workload = case.scenario.workload
    assert isinstance(workload, FleetWorkload)
    rate, (devices, low, high) = rate_of(workload), devices_of(workload, found)
    return {
        "method": candidate(case),
        **condition(case),
        "rate_per_s": found.times * rate,
        "rate_lo_per_s": found.low * rate,
        "rate_hi_per_s": found.high * rate,
        "devices": devices,
        "devices_lo": low,
        "devices_hi": high,
        "loads_tested": len(found.loads),
        "replications": sum(load.replications for load in found.loads),
    }


def devices_of(workload: FleetWorkload, found: Found) -> tuple[float, float, float]:
    """Whole devices at the found load, the most shown to be carried and the fewest shown not to be.

    Of a closed loop these are the ones that were simulated; of others, whose rate is what counts, the shares of the scenario's.
    """
    closed = isinstance(workload.arrivals, ClosedArrivals)

    def whole(times: float, up: bool) -> float:
        devices = workload.devices * times
        if math.isinf(devices):
            return devices
        count = math.ceil(devices - 1e-9) if up else math.floor(devices + 1e-9)
        return count if closed or not times else max(count, 1)  # a rate below that of a device is one of a device

    low, high = whole(found.low, closed), whole(found.high, True)
    at = whole(found.times, False)
    return max(at, low), low, high


def rate_of(workload: FleetWorkload) -> float:
    """Mean requests per second of the fleet; NaN for a closed loop, whose rate follows from the latency."""
    match workload.arrivals:
        case PoissonArrivals(poisson_per_s=rate) | BurstyArrivals(bursty_per_s=rate):
            return rate
        case TraceArrivals() as trace:
            times, _ = trace.times()
            return float(np.count_nonzero(times < workload.duration_s)) / workload.duration_s
    return math.nan


def _sentences(table: pd.DataFrame, all_found: Sequence[Found], slo_s: float) -> tuple[str, ...]:
    """Who carries most, and what each carries. all_found: in the order of the table."""
    objective = f"p95 of the latency within {number(slo_s)} s"
    told = []
    for place, row in table.sort_values("devices", ascending=False, kind="stable").iterrows():
        name, found = _name(row, table), all_found[place]  # type: ignore[call-overload]
        if found.times == 0.0:
            idle = min(found.loads, key=lambda load: load.times)
            why = "it misses that even where requests hardly ever meet"
            if idle.verdict == 0:
                why = (
                    f"even where requests hardly ever meet, {100 * idle.late:.1f} % are late, "
                    f"too near the allowed {100 * ALLOWED:g} % to decide"
                )
            told.append(
                f"{name} {'carries no' if idle.verdict else 'is not shown to carry any'} load with {objective}: {why}."
            )
            continue
        if math.isinf(found.times):
            told.append(
                f"{name} carries at least {found.low:g} times this load with {objective}; higher loads were not tried."
            )
            continue
        rate = row["rate_per_s"]
        if math.isnan(rate):
            load = f"{row['devices']:,.0f} device{'s' * (row['devices'] != 1)} ({row['devices_lo']:,.0f} to {row['devices_hi']:,.0f})"
        else:
            interval = span(row["rate_lo_per_s"], row["rate_hi_per_s"])
            load = f"{significant(rate)} requests per second{interval}, {row['devices']:,.0f} device{'s' * (row['devices'] != 1)}"
        told.append(f"{name} carries {load}, with {objective}.")
    return tuple(told)


def _name(row: pd.Series, table: pd.DataFrame) -> str:
    conditions = list(table.columns)[1 : list(table.columns).index("rate_per_s")]
    return f"{row['method']}{''.join(f', {name}={row[name]}' for name in conditions)}"

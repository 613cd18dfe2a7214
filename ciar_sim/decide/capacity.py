"""The largest load that each method carries within a latency objective, from replicated simulations at many loads.

The objective is met where at most 5 % of the requests miss it: they take longer, are refused, or never end. A bisection over short
simulations brackets the load at which 5 % do. Long simulations around it, with fresh seeds of arrivals, links and cloud over the same
recordings, then give that load and its interval (`crossing`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ciar_sim.decide.bench import ALLOWED, Bench, Measured, Prepared, Resources, candidate, condition
from ciar_sim.decide.crossing import crossing
from ciar_sim.decide.decision import Decision, failed_cases, span
from ciar_sim.decide.loads import MOST, idle_times, most_times, rate_of, scaled
from reports.words import number, significant
from simulator.core.errors import CiarSimError
from simulator.experiment.loading import LoadedScenario
from simulator.experiment.scenario import Case
from simulator.experiment.schema.workload import ClosedArrivals, FleetWorkload, PoissonArrivals
from simulator.results.statistics import CONFIDENCE

LOOKS = (4, 8, 16)  # replications after which the test of a single load may end
LOADS = ("workload.arrivals.", "workload.devices")  # swept paths that are what is searched
IN_BRACKET = 2  # replications of a load
WIDTH = 1.25  # ratio of the ends of a bracket that is narrow enough
AT_FIRST, AT_ONCE = 4, 8  # replications of the first round, from end to end of the bracket, and of each further one
# Replications after which the search may end, where they have as many requests as 20 of the usual length, and after which it ends.
ENOUGH, USUAL, AT_MOST = 12, 20, 44
# Confidence of the interval after each round. It holds the closed form of M/D/1 in 95 to 99 % of the seeds: it is looked at several times,
# and bursts make the jackknife's interval a little short.
LOOK_CONFIDENCE = 0.98
EMPTY = 0.005  # by which replications that begin empty overestimate the load, at 30 service times within the objective
OFF = 0.7  # logit from the limit at which replications are placed: 5 % becomes 2.5 and 10 %
NARROWEST, WIDEST = 1.5, 0.4  # distance of these loads from the estimate: in units of the precision, and as a logarithm


class Tried(NamedTuple):
    """A replication.

    Attributes:
        times: The load, as a multiple of the scenario's.
        late: Requests that missed the objective.
        asked: All requests, without those of the warm-up.
        came: Logarithm of the number of Poisson requests, warm-up included, divided by its expectation; 0 for other arrivals.
        spread: Standard deviation of `came`.
    """

    times: float
    late: int
    asked: int
    came: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True)
class Load:
    """All replications of one load.

    Attributes:
        times: The load, as a multiple of the scenario's.
        late: Share of the requests of all replications that miss the objective.
        requests: Requests of all replications, without their warm-up.
        replications: Simulations behind it.
    """

    times: float
    late: float
    requests: int
    replications: int


@dataclass(frozen=True)
class Found:
    """The largest load that is carried, as a multiple of the scenario's.

    Attributes:
        times: The estimate; 0 if not even the idle load is shown to be carried, infinite if every load that was tried is.
        low: Lower end of its 95 % interval.
        high: Upper end.
        loads: All loads that were simulated, the smallest first.
        missed: With `times` 0: whether the idle load is shown not to be carried.
    """

    times: float
    low: float
    high: float
    loads: tuple[Load, ...]
    missed: bool = False


def capacity(
    loaded: LoadedScenario, slo_s: float, resources: Resources, requests: int = 1000, precision_pct: float = 2.5
) -> Decision:
    """Return the largest load that each case of the scenario carries with p95 of the latency within an objective.

    Devices and rate grow together: every device asks as often as in the scenario.

    Args:
        loaded: The scenario; its arrivals are in time, not sequential.
        slo_s: The objective in seconds.
        resources: Cache, processes, progress.
        requests: Per replication, without its warm-up. A closed loop keeps the scenario's duration, arrivals of a file keep their number.
        precision_pct: The search ends early where half of the interval is at most this share of the load.

    Raises:
        CiarSimError: The scenario has no such load, or cannot be simulated.
    """
    bench = Bench(loaded, resources)
    workload = loaded.scenario.workload
    if not isinstance(workload, FleetWorkload):
        raise CiarSimError(
            f"{loaded.source.where(('workload',))}: capacity needs arrivals in time, got sequential ones; "
            "allowed: workload: {devices: N, arrivals: {poisson_per_s: RATE}, duration_s: SECONDS}"
        )
    prepared = bench.prepare(_without_loads(bench.cases()))
    rows, tests, all_found = [], [], []
    failed: list[tuple[Case, CiarSimError]] = []
    for place, case in enumerate(prepared.cases):
        resources.progress("searching capacities", place, len(prepared.cases))
        try:
            found = _search_of(case, prepared, slo_s, requests, precision_pct / 100)
        except CiarSimError as error:
            failed.append((case, error))
            continue
        all_found.append(found)
        rows.append(_row(case, found))
        tests += [{"method": candidate(case), **condition(case), **vars(load)} for load in found.loads]
    if not rows:
        raise failed[0][1]
    resources.progress("searching capacities", len(prepared.cases), len(prepared.cases))
    table = pd.DataFrame(rows)
    names = {candidate(case): case.method.name for case in prepared.cases}
    facts: dict[str, Any] = {
        "decision": "capacity",
        "names": names,
        "slo_p95_s": slo_s,
        "confidence": CONFIDENCE,
        "requests": requests,
        "precision_pct": precision_pct,
        "failed": [f"{case.title}: {str(error).removeprefix(f'{case.title}: ')}" for case, error in failed],
    }
    sentences = (*_sentences(table, all_found, slo_s), *failed_cases(facts["failed"]))
    return Decision(sentences, table, {"loads": pd.DataFrame(tests)}, facts)


def _search_of(case: Case, prepared: Prepared, slo_s: float, requests: int, precision: float) -> Found:
    """Search the largest load of a case.

    Raises:
        CiarSimError: The case cannot be simulated.
    """
    workload = case.scenario.workload
    assert isinstance(workload, FleetWorkload)
    devices = workload.devices if isinstance(workload.arrivals, ClosedArrivals) else 0
    idle, most = idle_times(case.scenario, requests, slo_s), most_times(case, requests, slo_s)
    return search(Replayed(prepared, case, slo_s, requests), precision, requests, idle, most, devices)


def _without_loads(cases: Sequence[Case]) -> list[Case]:
    """Return the cases without swept loads, which are what is searched: the first of those that differ in nothing else."""
    first: dict[str, Case] = {}
    for case in cases:
        swept = {path: value for path, value in case.swept.items() if not path.startswith(LOADS)}
        key = json.dumps([case.position, swept], sort_keys=True, default=str)
        first.setdefault(key, replace(case, swept=swept))
    return list(first.values())


class Replays(Protocol):
    """Simulates loads of one case."""

    def tried(self, loads: Sequence[float], long: bool) -> list[Tried]:
        """Simulate a replication of each load, with seeds of its own."""

    def verdict(self, times: float) -> tuple[int, list[Tried]]:
        """Test a single load: 1 carried, -1 not carried, 0 not decided; and its replications."""


class Replayed:
    """Replays the recordings of one case under any load."""

    def __init__(self, prepared: Prepared, case: Case, slo_s: float, requests: int) -> None:
        self.prepared, self.case, self.slo_s, self.requests = prepared, case, slo_s, requests
        self._seeds = 0

    def tried(self, loads: Sequence[float], long: bool) -> list[Tried]:
        """Simulate a replication of each load, of full length or as short as those of the bracket."""
        return [self._counted(times, one) for times, one in zip(loads, self._replications(loads, long), strict=True)]

    def verdict(self, times: float) -> tuple[int, list[Tried]]:
        """Test a load after 4, 8 and 16 short replications; the test ends as soon as the interval of the share lies on one side of 5 %."""
        done: list[Measured] = []
        verdict = 0
        for look in LOOKS:
            done += self._replications([times] * (look - len(done)), long=False)
            _, low, high = late_share([(one.latency_s.to_numpy(), one.lost) for one in done], self.slo_s)
            verdict = 1 if high <= ALLOWED else -1 if low > ALLOWED else 0
            if verdict:
                break
        return verdict, [self._counted(times, one) for one in done]

    def _counted(self, times: float, one: Measured) -> Tried:
        workload = one.case.scenario.workload
        counts = times, one.late(self.slo_s), one.asked
        if not isinstance(workload, FleetWorkload) or not isinstance(workload.arrivals, PoissonArrivals):
            return Tried(*counts)
        expected = rate_of(workload) * workload.duration_s
        return Tried(*counts, math.log(max(one.came, 1) / expected), 1.0 / math.sqrt(expected))

    def _replications(self, loads: Sequence[float], long: bool) -> list[Measured]:
        """Simulate a replication of each load.

        Raises:
            CiarSimError: A load cannot be simulated, or has no request after its warm-up.
        """
        variants = []
        for times in loads:
            self._seeds += 1
            seed = (self.case.scenario.seed + self._seeds) % 2**63
            scenario = scaled(self.case.scenario, times, self.requests, self.slo_s, long)
            variants.append((self.case, scenario.model_copy(update={"seed": seed})))
        done = self.prepared.again(variants)
        for times, one in zip(loads, done, strict=True):
            if not one.asked:  # of none, none is late at any load
                raise CiarSimError(
                    f"workload.duration_s: at {significant(times)} times this load a replication has no request after its warm-up, so it "
                    "cannot be tested; give a longer duration_s"
                )
        return done


def late_share(replications: Sequence[tuple[np.ndarray, int]], slo_s: float) -> tuple[float, float, float]:
    """Return the share of the requests of all replications that miss the objective, and the ends of its interval for one look.

    Late requests come in bursts: the spread of the share grows with the share, and a few replications without a burst show neither.
    Therefore the interval is that of the logarithm. Its upper end has at least the spread of the share of requests that exceed the 95th
    percentile: the spread that the share would have if the objective were just met.

    Args:
        replications: For each, the latencies of its answered requests in seconds and the number of requests without an answer, which miss
            any objective.
        slo_s: The objective in seconds.
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
    """Return the share of the requests of all replications that are late, and half of its Student interval for one look.

    The share is a ratio of means, not the mean of the replications' shares: a replication with a burst has more requests, and more of them
    are late.
    """
    late = np.array([np.count_nonzero(latency_s > slo_s) + lost for latency_s, lost in replications], float)
    asked = np.array([len(latency_s) + lost for latency_s, lost in replications], float)
    share = float(late.sum() / asked.sum())
    quantile = float(stdtrit(len(late) - 1, 1 - (1 - CONFIDENCE) / 2 / len(LOOKS)))
    return share, quantile * float(np.std(late - share * asked, ddof=1) / asked.mean()) / math.sqrt(len(late))


def search(
    replays: Replays, precision: float, requests: int, idle: float, most: float = MOST, devices: int = 0
) -> Found:
    """Find the load at which 5 % of the requests miss the objective.

    Args:
        replays: Simulates loads.
        precision: The search ends early where half of the interval is at most this share of the load.
        requests: Of a replication, where its duration does not follow from the objective.
        idle: A load that is carried if any is.
        most: The largest load that is tried.
        devices: Of the scenario, where only whole devices are different loads, as in a closed loop; 0: all are.
    """
    tried: list[Tried] = []
    bracket = _bracket(replays, tried, idle, most, devices)
    if isinstance(bracket, Found):
        return bracket
    low, high = (math.log(end) for end in bracket)
    placed = np.linspace(low, high, AT_FIRST).tolist()
    runs: list[Tried] = []
    while True:
        runs += replays.tried([_whole(math.exp(load), devices) for load in placed], long=True)
        loads, late, asked, *came = (np.array(column, float) for column in zip(*runs, strict=True))
        at = crossing(np.log(loads), np.stack(came, axis=1), late, asked, ALLOWED, LOOK_CONFIDENCE)
        ends = [math.exp(at.at - at.half - EMPTY), math.exp(at.at + at.half)]
        narrow = at.half <= precision or (devices > 0 and len({math.floor(devices * end) for end in ends}) == 1)
        enough = len(runs) >= USUAL or (len(runs) >= ENOUGH and asked.sum() >= USUAL * requests)
        if (enough and narrow) or len(runs) >= AT_MOST:
            return Found(math.exp(at.at), ends[0], ends[1], _by_load([*tried, *runs]))
        off = min(max(OFF / at.slope, NARROWEST * precision), WIDEST)
        placed = (at.at + off * np.linspace(-1, 1, AT_ONCE)).tolist()


def _bracket(
    replays: Replays, tried: list[Tried], idle: float, most: float, devices: int
) -> tuple[float, float] | Found:
    """Two loads, one carried and the next not, by the share of late requests in a few short replications; or that there are none.

    tried: Gets the replications.
    """

    def carried(times: float) -> bool:
        done = replays.tried([times] * IN_BRACKET, long=False)
        tried.extend(done)
        return sum(one.late for one in done) <= ALLOWED * sum(one.asked for one in done)

    def shown(times: float) -> int:
        verdict, done = replays.verdict(times)
        tried.extend(done)
        return verdict

    low, high = 1.0, 1.0
    if carried(1.0):
        while low == high:
            if 2 * low > most:
                if shown(low) > 0:
                    return Found(math.inf, low, math.inf, _by_load(tried))
                high, low = low, low / 2
            elif carried(2 * low):
                low = high = 2 * low
            else:
                high = 2 * low
    else:
        low = idle
        if (verdict := shown(idle)) <= 0:
            return Found(0.0, 0.0, idle if verdict else math.inf, _by_load(tried), bool(verdict))
    while high / low > WIDTH:
        middle = _whole(math.sqrt(low * high), devices)
        if not low < middle < high:
            break
        low, high = (middle, high) if carried(middle) else (low, middle)
    return low, high


def _whole(times: float, devices: int) -> float:
    """The nearest load of whole devices, one at least; the load itself where `devices` is 0."""
    return max(round(times * devices), 1) / devices if devices else times


def _by_load(tried: Sequence[Tried]) -> tuple[Load, ...]:
    """The replications of each load together."""
    loads: dict[float, list[Tried]] = {}
    for one in sorted(tried):
        loads.setdefault(one.times, []).append(one)
    return tuple(
        Load(
            times,
            sum(one.late for one in some) / sum(one.asked for one in some),
            sum(one.asked for one in some),
            len(some),
        )
        for times, some in loads.items()
    )


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
    """Return the whole devices at the found load and at both ends of its interval: the most that do not exceed them."""
    closed = isinstance(workload.arrivals, ClosedArrivals)

    def whole(times: float) -> float:
        devices = workload.devices * times
        if math.isinf(devices):
            return devices
        count = math.floor(devices + 1e-9)
        return count if closed or not times else max(count, 1)  # a rate below that of a device is one of a device

    return whole(found.times), whole(found.low), whole(found.high)


def _sentences(table: pd.DataFrame, all_found: Sequence[Found], slo_s: float) -> tuple[str, ...]:
    """Return a sentence for each row of the table, the largest load first. all_found: in the order of the table."""
    objective = f"p95 of the latency within {number(slo_s)} s"
    told = []
    for place, row in table.sort_values("devices", ascending=False, kind="stable").iterrows():
        name, found = _name(row, table), all_found[place]  # type: ignore[call-overload]
        if found.times == 0.0:
            idle = min(found.loads, key=lambda load: load.times)
            why = "it misses that even where requests hardly ever meet"
            if not found.missed:
                why = (
                    f"even where requests hardly ever meet, {100 * idle.late:.1f} % are late, "
                    f"too near the allowed {100 * ALLOWED:g} % to decide"
                )
            told.append(
                f"{name} {'carries no' if found.missed else 'is not shown to carry any'} load with {objective}: {why}."
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

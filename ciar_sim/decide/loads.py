"""A scenario at other loads: devices and arrival rate grow together, and a replication is as long as its load needs."""

import math
from dataclasses import replace

import numpy as np
from pydantic import ValidationError

from simulator.core.errors import CiarSimError
from simulator.engine.workload import device_counts
from simulator.experiment.estimate import check_size, size_of
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.workload import (
    BurstyArrivals,
    ClosedArrivals,
    FleetWorkload,
    PoissonArrivals,
    TraceArrivals,
)

LEAST, MOST = 2.0**-14, 2.0**14  # range of the search, as multiples of the scenario's load
MOST_REQUESTS = 50_000  # of a replication, or GROWTH times those of the scenario's load; what is never late would be doubled for hours
GROWTH = 16
LONGEST_S = 5e7  # of a replication; a workload may last 1e8 s
SLOWEST = 1e6  # time_scale of arrivals of a file
CYCLES = 5  # bursts and calms of a replication at least: without bursts any load is carried
SHORT_REQUESTS = 400  # at most, of a replication of the bracket
# Length of a replication in objectives. At a load 2 % above what the cloud serves, waits grow by 2 % of the time: only after 50
# objectives do they exceed one. The bracket needs to recognise an overload of 10 %.
SHORT, LONG = 10.0, 50.0
LONG_REQUESTS = 20_000  # of a replication at most, as far as LONG decides
# Of a replication's duration, where the scenario names no warm-up. A cloud that was empty fills slowly: after a fifth, of 400 requests of
# M/D/1 at 95 % load a third as many are late as there are in the long run.
WARM = 1 / 3
EVEN = 1e-3  # error of the kinds' shares of a fleet with fewer devices than the scenario's own


def idle_times(scenario: Scenario, requests: int, slo_s: float) -> float:
    """Return a load at which requests hardly ever meet, as a multiple of the scenario's. What is not carried there never is.

    With Poisson arrivals, 1 % of the requests then come within one objective of another request. A closed loop then has one device, or as
    many as its kinds need. The rate is never so low that `requests` of them take longer than a workload may last.
    """
    workload = scenario.workload
    assert isinstance(workload, FleetWorkload)
    rate = rate_of(workload)
    if not rate > 0.0:
        return fleet_of(workload, 1) / workload.devices
    longest = requests / (rate * LONGEST_S)
    if isinstance(workload.arrivals, TraceArrivals):  # all of it is asked, ever slower
        longest = max(workload.duration_s / LONGEST_S, workload.arrivals.time_scale / SLOWEST)
    return min(0.5, max(0.01 / (rate * slo_s), longest, LEAST))


def most_times(case: Case, requests: int, slo_s: float) -> float:
    """Return the largest load that is tried, as a multiple of the scenario's: a power of two, limited by the workload and this machine."""
    first = size_of(scaled(case.scenario, 1.0, requests, slo_s, long=False)).requests
    times = 1.0
    while times < MOST:
        try:
            larger = scaled(case.scenario, 2 * times, requests, slo_s, long=False)
            check_size([replace(case, scenario=larger)])
        except CiarSimError:
            break
        if size_of(larger).requests > max(MOST_REQUESTS, GROWTH * first):
            break
        times *= 2
    return times


def scaled(scenario: Scenario, times: float, requests: int, slo_s: float, long: bool = True) -> Scenario:
    """Return the scenario at a multiple of its load: devices and their rate grow together; a share of a device is a whole one.

    With a lower rate than the scenario's there are as many devices as the kinds of a fleet need for their shares (`fleet_of`).

    long: Whether Poisson and bursty arrivals last as long as an overload of 2 % takes to be late, or only as long as the bracket needs.
    """
    workload = scenario.workload
    assert isinstance(workload, FleetWorkload)
    arrivals = workload.arrivals
    devices = max(1, math.ceil(workload.devices * times - 1e-9))
    closed = isinstance(arrivals, ClosedArrivals)  # its devices are its load
    change: dict[str, object] = {"devices": devices if closed else fleet_of(workload, devices)}
    match arrivals:
        case PoissonArrivals(poisson_per_s=rate):
            change["arrivals"] = arrivals.model_copy(update={"poisson_per_s": rate * times})
        case BurstyArrivals(bursty_per_s=rate):
            change["arrivals"] = arrivals.model_copy(update={"bursty_per_s": rate * times})
        case TraceArrivals(time_scale=scale):
            change["arrivals"] = arrivals.model_copy(update={"time_scale": scale / times})
    if isinstance(arrivals, PoissonArrivals | BurstyArrivals):
        if long:
            counted_s = max(requests / (rate * times), min(LONG * slo_s, LONG_REQUESTS / (rate * times)), SHORT * slo_s)
        else:
            counted_s = max(min(requests, SHORT_REQUESTS) / (rate * times), SHORT * slo_s)
        if isinstance(arrivals, BurstyArrivals):
            counted_s = max(counted_s, min(CYCLES * (arrivals.burst_s + arrivals.calm_s), LONGEST_S))
        warm_s = workload.warmup_s or counted_s * WARM / (1 - WARM)
        change |= {"duration_s": counted_s + warm_s, "warmup_s": warm_s}
    elif isinstance(arrivals, TraceArrivals):
        # The same requests, closer together; the run ends no sooner than they can be late.
        change |= {"duration_s": max(workload.duration_s / times, slo_s), "warmup_s": workload.warmup_s / times}
    elif closed and not workload.warmup_s:
        change["warmup_s"] = WARM * workload.duration_s
    try:
        data = {**workload.model_dump(by_alias=True), **change}
        return scenario.model_copy(update={"workload": FleetWorkload.model_validate(data)})
    except ValidationError as error:
        raise CiarSimError(
            f"workload: {times:g} times this load cannot be simulated: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None


def fleet_of(workload: FleetWorkload, devices: int) -> int:
    """Return the fewest devices, at least `devices`, of which the kinds of the fleet have their shares.

    With few devices, rounding would change the shares of the requests, or leave a kind without a device. The scenario's own number is
    always enough, and so is any larger one.
    """
    shares = [kind.share for kind in workload.fleet]

    def even(count: int) -> bool:
        counts = device_counts(shares, count)
        return min(counts) > 0 and all(
            abs(one / count - share) <= EVEN for one, share in zip(counts, shares, strict=True)
        )

    if not shares or devices >= workload.devices:
        return devices
    return next((count for count in range(devices, workload.devices) if even(count)), workload.devices)


def rate_of(workload: FleetWorkload) -> float:
    """Return the mean requests per second of the fleet; NaN for a closed loop, whose rate follows from the latency."""
    match workload.arrivals:
        case PoissonArrivals(poisson_per_s=rate) | BurstyArrivals(bursty_per_s=rate):
            return rate
        case TraceArrivals() as trace:
            times, _ = trace.times()
            return float(np.count_nonzero(times < workload.duration_s)) / workload.duration_s
    return math.nan

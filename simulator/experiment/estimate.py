"""Estimate of a run's memory before recording. A run that cannot fit this machine's memory is refused."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.core.errors import ScenarioError, error_context
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.network import paths_of
from simulator.experiment.schema.queue import PausingFlow
from simulator.experiment.schema.workload import (
    BurstyArrivals,
    ClosedArrivals,
    FleetWorkload,
    PoissonArrivals,
    TraceArrivals,
)

# Measured with tracemalloc and rounded down: if an estimate is too low, the run is attempted.
REQUEST_BYTES = 1500  # columns of a request during the simulation and while tables are built
DEVICE_BYTES = 7000  # with plain links
THINKING_BYTES = 4000  # two random streams that a device of a closed loop has in addition
REPLICA_BYTES = 1200
BURST_BYTES = 100
TURN_BYTES = 70  # of cross traffic with pauses
LEAST_LATENCY_S = 0.1  # assumed latency of a request in a closed loop


@dataclass(frozen=True)
class Size:
    """Expected number of objects that a case keeps in memory."""

    requests: float = 0.0
    devices: float = 0.0
    thinking: float = 0.0
    replicas: float = 0.0
    bursts: float = 0.0
    turns: float = 0.0

    @property
    def state_bytes(self) -> float:
        """Memory in bytes during the simulation, without requests."""
        devices_bytes = DEVICE_BYTES * self.devices + THINKING_BYTES * self.thinking
        others_bytes = REPLICA_BYTES * self.replicas + BURST_BYTES * self.bursts + TURN_BYTES * self.turns
        return devices_bytes + others_bytes


def size_of(scenario: Scenario) -> Size:
    """Return the expected size of one case. For arrivals from a file the number of requests is exact."""
    workload = scenario.workload
    replicas = float(sum(serving.replicas for serving in scenario.servings.values()))
    if not isinstance(workload, FleetWorkload):
        return Size(requests=1.0, devices=1.0, replicas=replicas)
    duration_s, thinking, bursts = workload.duration_s, 0.0, 0.0
    match workload.arrivals:
        case PoissonArrivals(poisson_per_s=rate):
            requests = rate * duration_s
        case BurstyArrivals(bursty_per_s=rate, burst_s=burst_s, calm_s=calm_s):
            requests, bursts = rate * duration_s, 2.0 * duration_s / (burst_s + calm_s)
        case ClosedArrivals(think_s=think_s):
            thinking = float(workload.devices)
            requests = workload.devices * duration_s / (think_s + LEAST_LATENCY_S)
        case TraceArrivals() as arrivals:
            requests = float(np.count_nonzero(arrivals.times()[0] < duration_s))
    devices = min(float(workload.devices), requests)
    turns = _turns(scenario, workload, devices) if requests else 0.0
    return Size(requests, devices, thinking, replicas, bursts, turns)


def _turns(scenario: Scenario, workload: FleetWorkload, devices: float) -> float:
    """Return the number of busy and quiet periods of cross traffic, which each device (or cell) keeps until its last request."""
    kinds = [(kind.share, kind.network or scenario.network) for kind in workload.fleet] or [(1.0, scenario.network)]
    turns = 0.0
    for share, network in kinds:
        for path in paths_of(network):
            cross = path.cross_traffic
            for flow in () if cross is None else (cross.up, cross.down):
                if isinstance(flow, PausingFlow):
                    places = max(1.0, share * devices / path.devices_per_cell)
                    turns += places * 2.0 * workload.duration_s / (flow.busy_s + flow.quiet_s)
    return turns


def memory_bytes() -> float:
    """Return the memory of this machine in bytes, or the limit of its container if that is lower."""
    found = [float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)


def check_size(cases: Sequence[Case], jobs: int = 1) -> None:
    """Refuse a run that cannot fit this machine's memory, or a file of arrivals without one before duration_s.

    Args:
        cases: the cases of the run.
        jobs: number of cases simulated at the same time.

    Raises:
        ScenarioError: with the place of the setting that causes it.
    """
    sizes = [size_of(case.scenario) for case in cases]
    for case, size in zip(cases, sizes, strict=True):
        workload = case.scenario.workload
        if isinstance(workload.arrivals, TraceArrivals) and not size.requests:
            trace = Path(workload.arrivals.trace)
            times, _ = workload.arrivals.times()
            first = f"the first of {len(times)} is at {times[0]:g} s" if len(times) else "it has none"
            with error_context("workload", "arrivals", "trace"):
                raise ScenarioError(
                    f"workload.arrivals.trace {trace.name}: no arrival comes before duration_s ({workload.duration_s:g} s), {first}"
                )
    requests = sum(size.requests for size in sizes)
    largest = max(sizes, key=lambda size: size.state_bytes)
    needed = REQUEST_BYTES * requests + min(jobs, len(cases)) * largest.state_bytes
    there = memory_bytes()
    if needed <= there:
        return
    of_cases = f" in {len(cases)} cases" if len(cases) > 1 else ""
    blame: list[tuple[float, tuple[str, ...], str]] = [
        (REQUEST_BYTES * requests, ("workload", "arrivals"), f"makes about {requests:.3g} requests{of_cases}"),
        (
            DEVICE_BYTES * largest.devices + THINKING_BYTES * largest.thinking,
            ("workload", "devices"),
            f"makes {max(largest.devices, largest.thinking):.3g} devices",
        ),
        (REPLICA_BYTES * largest.replicas, ("cloud", "replicas"), f"makes {largest.replicas:.3g} replicas"),
        (BURST_BYTES * largest.bursts, ("workload", "arrivals"), f"makes about {largest.bursts:.3g} bursts and calms"),
        (
            TURN_BYTES * largest.turns,
            ("workload", "duration_s"),
            f"makes about {largest.turns:.3g} turns of cross traffic",
        ),
    ]
    _, place, what = max(blame)
    with error_context(*place):
        raise ScenarioError(
            f"{'.'.join(place)} {what}: the run needs some {needed / 1e9:.3g} GB of memory, and this machine has {there / 1e9:.3g} GB"
        )

"""Simulation of one case: its arrivals, cloud rules and fleet as inputs of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cloud.rules import Autoscale, Background, CloudRules, CloudTier, Crash
from simulator.core.errors import ScenarioError, error_context
from simulator.engine.case import CaseInputs, CaseResult
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import (
    ClosedLoop,
    Requests,
    bursty_arrivals,
    poisson_arrivals,
    timed_arrivals,
)
from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.cloud import Serving
from simulator.experiment.schema.workload import (
    BurstyArrivals,
    ClosedArrivals,
    FleetWorkload,
    PoissonArrivals,
    TraceArrivals,
)
from simulator.pricing.costs import Costs
from simulator.pricing.own import device_memory
from simulator.pricing.program import SessionProgram
from simulator.pricing.roofline import RooflineCosts

QUEUE_SAMPLES = 240  # samples of the cloud's state per duration_s of a fleet
TIMELINE_SESSIONS = 2  # default number of requests per case whose spans are kept


@dataclass(frozen=True)
class SimulatedCase(CaseResult):
    """A case's result.

    Attributes:
        extrapolated: Compute times outside the measured range: `device` or `cloud`, and the choice of models and hardware.
        drawn: Its part of the timeline (`simulator.results.timeline`), instead of spans.
    """

    extrapolated: tuple[str, ...] = ()
    drawn: bytes = b""


def simulate_case(
    scenario: Scenario,
    parts: Sequence[FleetPart],
    tiers: Sequence[CloudTier],
    timeline_sessions: int = TIMELINE_SESSIONS,
) -> SimulatedCase:
    """Simulate one case. Each request replays the program of its prompt and kind of device.

    Args:
        scenario: The scenario of the case.
        parts: The kinds of devices, with links and programs.
        tiers: The clouds.
        timeline_sessions: Number of first requests whose spans are kept.
    """
    workload, prompts = scenario.workload, len(parts[0].programs)

    def simulated(arrivals: Requests | ClosedLoop, **times_s: Any) -> SimulatedCase:
        inputs = CaseInputs(
            parts, tiers, arrivals, scenario.seed, timeline_sessions, fallback=scenario.fallback.rule(), **times_s
        )
        return SimulatedCase(**vars(simulate(inputs)))

    if isinstance(workload, FleetWorkload):
        return simulated(
            _arrivals(scenario.seed, workload, prompts),
            until_s=2.0 * workload.duration_s,
            sample_every_s=workload.duration_s / QUEUE_SAMPLES,
            warmup_s=workload.warmup_s,
            duration_s=workload.duration_s,
        )
    # Sequential: every prompt once, with enough time between requests that they do not overlap.
    spacing_s = 64.0
    while True:
        result = simulated(Requests(np.arange(prompts) * spacing_s, np.zeros(prompts, np.int64), np.arange(prompts)))
        if result.columns["latency_s"].max() < spacing_s:
            return result
        spacing_s *= 4


def check_memory(scenario: Scenario, programs: Sequence[SessionProgram], costs: Costs, drafter: Costs | None) -> None:
    """Refuse a method whose weights, KV cache and decoders exceed the memory of a kind of device.

    Args:
        scenario: The scenario of the case.
        programs: One per prompt.
        costs: Compute costs of the device.
        drafter: Compute costs of the drafter on the device, of a method that has one; the device's model is not loaded then.

    Raises:
        ScenarioError: Names the memory of each part and that of the device.
    """
    if scenario.placement == "cloud" or not isinstance(costs, RooflineCosts):
        return
    rows = 2 if scenario.decoding.guidance > 1 else 1
    decodes = any(program.device_passes for program in programs)
    own = drafter.shape if isinstance(drafter, RooflineCosts) else None
    held = device_memory(costs, rows, decodes, scenario.decoding.text_encoder == "device", own)
    there = costs.hardware.memory_gb * 1e9
    if sum(held.values()) > there:
        parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.3g}" for name, size in held.items() if size)
        with error_context("compute", "device"):
            raise ScenarioError(
                f"{scenario.methods[0].label} does not fit the device: it needs {sum(held.values()) / 1e9:.3g} GB ({parts}), "
                f"and {costs.hardware.title} has {costs.hardware.memory_gb:g} GB"
            )


def _arrivals(seed: int, workload: FleetWorkload, prompts: int) -> Requests | ClosedLoop:
    devices, duration_s = workload.devices, workload.duration_s
    match workload.arrivals:
        case PoissonArrivals(poisson_per_s=rate):
            return poisson_arrivals(seed, rate, duration_s, devices, prompts)
        case BurstyArrivals(bursty_per_s=rate, burst_factor=factor, burst_s=burst_s, calm_s=calm_s):
            return bursty_arrivals(seed, rate, factor, burst_s, calm_s, duration_s, devices, prompts)
        case ClosedArrivals(think_s=think_s):
            return ClosedLoop(seed, think_s, duration_s, prompts)
        case TraceArrivals() as trace:
            times, _ = trace.times()
            return timed_arrivals(seed, times[times < duration_s], devices, prompts)
    raise AssertionError(workload.arrivals)


def cloud_tier(c: Serving, seed: int, costs: Costs, kv_tokens: float, companion: Costs | None = None) -> CloudTier:
    """Return a cloud in the form that the engine takes.

    Args:
        c: Its section of the scenario.
        seed: Seed of the jobs of other tenants.
        costs: Compute costs.
        kv_tokens: KV positions that fit a replica.
        companion: Compute costs of the device's model, if it runs in this cloud too.
    """
    rules = CloudRules(
        queue=c.queue,
        routing=c.routing,
        max_sessions=c.max_sessions,
        max_waiting=c.max_waiting,
        kv_tokens=kv_tokens,
        evict=c.kv_full == "evict",
        crashes=tuple(Crash(x.replica, x.at_s, x.down_s) for x in c.crashes),
        autoscale=Autoscale(**c.autoscale.model_dump()) if c.autoscale else None,
        background=Background(c.background.utilisation, c.background.job_ms * 1e-3) if c.background else None,
        seed=seed,
    )
    return CloudTier(costs, c.replicas, c.max_batch, rules, companion)

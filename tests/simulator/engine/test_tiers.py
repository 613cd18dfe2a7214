"""Several tiers in one case: each behaves as it would alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.cloud.rules import CloudRules, CloudTier
from simulator.engine.case import CaseInputs, CaseResult
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import Requests, poisson_arrivals
from simulator.network.access import Network
from tests.simulator.build import DEVICE_COSTS, UniformCosts, call, forward, program, reply

FREE = Network(math.inf, math.inf, 0.0, 0.0)
SERVICE_S = (1 / 64, 1 / 32)  # of a pass in each tier
NEAR, FAR = (UniformCosts(pass_s=seconds) for seconds in SERVICE_S)
EACH = 5_000  # devices of a tier


def fleet(sent_to: tuple[int, int], arrivals: Requests, **changes: object) -> CaseResult:
    """Simulate two halves of a fleet, each served by a tier; a request is one pass in the cloud."""
    parts = []
    for tier in sent_to:
        one = program([*call(0, 0)], [[forward("cloud"), reply(0)]], cloud_costs=(NEAR, FAR)[tier])
        parts.append(FleetPart(EACH, [one], DEVICE_COSTS, FREE, tier=tier))
    given = CaseInputs(parts, [CloudTier(costs, 1, 1) for costs in (NEAR, FAR)], arrivals, seed=0)
    return simulate(replace(given, **changes))  # type: ignore[arg-type]


def lindley(requested_s: np.ndarray, service_s: float) -> list[float]:
    """Return the waits of a queue with one server and equal services, from its arrivals."""
    waits, free_s = [], 0.0
    for time_s in requested_s.tolist():
        waits.append(max(free_s - time_s, 0.0))
        free_s = max(free_s, time_s) + service_s
    return waits


def test_two_tiers_are_two_queues() -> None:
    """Poisson arrivals divided at random are Poisson, so each tier is an M/D/1 queue. The waits are those of Lindley's recursion for every
    request; their mean over 6,000 requests is rho s / (2 (1 - rho)) within 12 %, three standard errors of the busier queue."""
    rate_per_s = 40.0  # of both tiers: the near one has a load of 20 / 64, the far one of 20 / 32
    result = fleet((0, 1), poisson_arrivals(0, rate_per_s, 300.0, 2 * EACH, 1))
    far = result.columns["device"] >= EACH
    for half, service_s in zip((False, True), SERVICE_S, strict=True):
        waits = result.columns["cloud_queue_s"][far == half]
        assert waits == pytest.approx(lindley(result.columns["requested_s"][far == half], service_s), abs=1e-9)
        busy = rate_per_s / 2 * service_s
        assert waits.mean() == pytest.approx(busy * service_s / (2 * (1 - busy)), rel=0.12)


def test_a_tier_does_what_it_would_alone() -> None:
    """The halves of a fleet share only the clock: requests of one are served as if the other did not exist."""
    both = poisson_arrivals(0, 40.0, 20.0, 2 * EACH, 1)
    mine = both.device < EACH
    alone = Requests(both.requested_s[mine], both.device[mine], both.prompt[mine])
    together = fleet((0, 1), both)
    single = fleet((0, 1), alone)
    assert together.columns["latency_s"][mine].tolist() == single.columns["latency_s"].tolist()
    assert together.cloud_busy_s[0] == pytest.approx(single.cloud_busy_s[0])
    assert len(together.cloud_busy_s) == len(together.cloud_up_s) == 2
    # Before the first request replicas count as up.
    up_s = sum(together.cloud_up_s) + 2 * together.columns["requested_s"][0]
    assert together.utilisation == pytest.approx(sum(together.cloud_busy_s) / up_s)


def test_crashes_and_refusals_stay_in_their_tier() -> None:
    requests = Requests(np.zeros(6), np.array([0, 1, 2, EACH, EACH + 1, EACH + 2]), np.zeros(6, np.int64))
    strict = CloudTier(FAR, 1, 1, CloudRules(max_sessions=1, max_waiting=0))
    result = fleet((0, 1), requests, tiers=[CloudTier(NEAR, 1, 1), strict], sample_every_s=1 / 128, timeline_sessions=6)
    assert result.refused == 2
    assert (result.columns["device"] < EACH).sum() == 3
    replicas = {dict(span.args)["replica"] for span in result.spans if span.track == "cloud"}
    assert replicas == {0, 1}
    looked = {name: float(values[1]) for name, values in result.samples.items()}
    assert looked == {"time_s": 1 / 128, "queued": 2, "admission": 0, "serving": 2, "sessions": 4, "replicas_up": 2}


def test_each_tier_has_memory_of_its_own() -> None:
    requests = Requests(np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    small = CloudTier(FAR, 1, 1, CloudRules(kv_tokens=1))
    assert len(fleet((0, 0), requests, tiers=[CloudTier(NEAR, 1, 1), small]).columns["latency_s"]) == 1
    with pytest.raises(ValueError, match="less than one session needs"):
        fleet((0, 1), requests, tiers=[CloudTier(NEAR, 1, 1), small])

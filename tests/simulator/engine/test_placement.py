"""Placement of the device's program in the cloud, compared with a split, and closed forms of speculative decoding.

Speculation takes R rounds of gamma drafting passes of t_d s and a test of t_v s; the cloud alone takes T passes of t_v s.
"""

import math

import numpy as np
import pytest

from benchmarks.workload_w import ANSWER, DRAFTED, rounds_of
from simulator.cloud.rules import CloudRules
from simulator.core.rng import stream
from simulator.engine.case import CaseResult
from simulator.engine.workload import Requests
from simulator.network.access import Network
from simulator.pricing.costs import Costs
from simulator.pricing.program import COMPANION, OTHER, PASS, SessionProgram, compile_colocated, compile_session
from tests.simulator.build import (
    PRICING,
    Op,
    UniformCosts,
    arrivals,
    base,
    call,
    case,
    compute,
    forward,
    recording,
    reply,
)

DRAFT_S, VERIFY_S, GAMMA, ROUNDS, TOKENS = 1 / 256, 1 / 64, 4, 10, 40
DEVICE = UniformCosts(pass_s=DRAFT_S, image_decoder_s=0.0)
CLOUD = UniformCosts(pass_s=VERIFY_S, caption_encoder_s=0.0)


def speculation(rounds: int = ROUNDS) -> tuple[list[Op], list[list[Op]]]:
    device = [x for number in range(rounds) for x in [*[forward()] * GAMMA, *call(number, 0)]]
    return device, [[forward("cloud", GAMMA + 1, 5 * number), reply(0, ids=2)] for number in range(rounds)]


def both(ops: tuple[list[Op], list[list[Op]]], companion: Costs = DEVICE) -> tuple[SessionProgram, SessionProgram]:
    """Return the program split and co-located."""
    one = recording(*ops)
    return compile_session(one, DEVICE, CLOUD, PRICING), compile_colocated(one, DEVICE, companion, CLOUD, PRICING)


def alone(program: SessionProgram, rtt_s: float) -> float:
    network = Network(1e12, 1e12, rtt_s / 2, rtt_s / 2)
    return float(case([program], arrivals((0, 0, 0)), network=network).columns["latency_s"][0])


def saturated(program: SessionProgram, sessions: int = 40, max_batch: int = 1) -> CaseResult:
    """Simulate sessions that start together, each on its own device."""
    requests = Requests(np.zeros(sessions), np.arange(sessions), np.zeros(sessions, np.int64))
    free = Network(math.inf, math.inf, 0.0, 0.0)
    return case([program], requests, network=free, devices=sessions, max_batch=max_batch, companion=DEVICE)


@pytest.mark.parametrize("rtt_s", [0.0, 0.001, 0.05, 0.3])
def test_co_located_speculation_is_never_slower_than_split_on_equal_hardware(rtt_s: float) -> None:
    split, together = (alone(one, rtt_s) for one in both(speculation()))
    work_s = ROUNDS * (GAMMA * DRAFT_S + VERIFY_S)
    assert split == pytest.approx(work_s + ROUNDS * rtt_s, rel=1e-3)
    assert together == pytest.approx(work_s + rtt_s, rel=1e-3)
    assert together <= split + 1e-6


def test_a_split_beats_the_cloud_alone_below_the_rtt_of_the_closed_form() -> None:
    """T t_v + RTT = R (gamma t_d + t_v + RTT) at RTT = (T t_v - R (gamma t_d + t_v)) / (R - 1). The winner changes within 2 % of it."""
    split, _ = both(speculation())
    cloud_alone = base(TOKENS, device_costs=DEVICE, cloud_costs=CLOUD)
    even_s = (TOKENS * VERIFY_S - ROUNDS * (GAMMA * DRAFT_S + VERIFY_S)) / (ROUNDS - 1)
    assert alone(split, 0.98 * even_s) < alone(cloud_alone, 0.98 * even_s)
    assert alone(split, 1.02 * even_s) > alone(cloud_alone, 1.02 * even_s)


def test_offloaded_drafting_multiplies_what_a_cloud_serves() -> None:
    """A round costs the cloud t_v instead of gamma t_d + t_v, so it serves 1 + gamma t_d / t_v times the sessions, within 2 %."""
    split, together = both(speculation())
    gain = saturated(together).makespan_s / saturated(split).makespan_s
    assert gain == pytest.approx(1.0 + GAMMA * DRAFT_S / VERIFY_S, rel=0.02)


@pytest.mark.parametrize("sessions", [1, 2, 16])
def test_passes_of_the_device_s_model_are_batched_in_the_cloud(sessions: int) -> None:
    """N sessions take as long as one plus one draft: each of the R (gamma + 1) passes runs once for all of them, except the very first.
    That one runs for the first session alone, which finds the replica idle; the others catch up before the cloud model's first pass."""
    _, together = both(speculation())
    result = saturated(together, sessions, max_batch=16)
    once = 0 if sessions == 1 else 1
    assert result.makespan_s == pytest.approx(ROUNDS * (GAMMA * DRAFT_S + VERIFY_S) + once * DRAFT_S)
    iterations = ROUNDS * (GAMMA + 1) + once
    assert result.mean_batch == pytest.approx(sessions * ROUNDS * (GAMMA + 1) / iterations)
    assert sum(result.cloud_busy_s) == pytest.approx(result.columns["cloud_gpu_s"].sum())


def test_passes_of_the_device_s_model_go_before_those_of_the_cloud_s() -> None:
    """Both sessions need a pass of the cloud model. It waits for the drafts of the slower session, and then both share it."""
    device = [*[forward()] * 3, *call(0)]
    _, late = both((device, [[forward("cloud"), reply(0)]]))
    _, early = both(([forward(), *call(0)], [[forward("cloud"), reply(0)]]))
    requests = Requests(np.zeros(2), np.arange(2), np.arange(2))
    free = Network(math.inf, math.inf, 0.0, 0.0)
    result = case([early, late], requests, network=free, companion=DEVICE, timeline_sessions=2)
    assert result.columns["latency_s"].tolist() == [4 * DRAFT_S + VERIFY_S] * 2
    passes = [span for span in result.spans if span.track == "cloud" and span.name == "call 0"]
    assert [(span.start_s, dict(span.args)["batch"]) for span in passes] == [(4 * DRAFT_S, 2)] * 2


def test_a_full_batch_of_the_cloud_s_model_waits_for_nobody() -> None:
    """As above with a batch of one: the pass of the cloud model follows its draft at once, and the other drafts wait."""
    _, early = both(([forward(), *call(0)], [[forward("cloud"), reply(0)]]))
    _, late = both(([*[forward()] * 3, *call(0)], [[forward("cloud"), reply(0)]]))
    requests = Requests(np.zeros(2), np.arange(2), np.arange(2))
    free = Network(math.inf, math.inf, 0.0, 0.0)
    result = case([early, late], requests, network=free, companion=DEVICE, max_batch=1)
    assert result.columns["latency_s"].tolist() == [DRAFT_S + VERIFY_S, 4 * DRAFT_S + 2 * VERIFY_S]


@pytest.mark.parametrize("evict", [False, True])
def test_co_located_work_is_served_whatever_the_discipline(evict: bool) -> None:
    _, together = both(speculation(3))
    for queue in ("fifo", "shortest-first", "earliest-deadline", "priority"):
        rules = CloudRules(queue=queue, evict=evict, kv_tokens=together.kv_tokens + 1 if evict else math.inf)
        requests = Requests(np.zeros(5), np.arange(5), np.zeros(5, np.int64))
        result = case([together], requests, companion=DEVICE, rules=rules, max_batch=2)
        assert len(result.columns["latency_s"]) == 5


@pytest.mark.parametrize("acceptance", [0.3, 0.8, 0.95])
def test_tokens_of_a_round_are_those_expected(acceptance: float) -> None:
    """Leviathan et al. 2023, equation 1: (1 - a^(gamma + 1)) / (1 - a) tokens per round. By Wald's identity, the rounds of an answer times
    that number are its tokens plus the surplus of the last round, about half a round on average."""
    draws = stream(0, "test")
    rounds = np.mean([rounds_of(draws, acceptance, redraft=True) for _ in range(600)])
    expected = (1.0 - acceptance ** (DRAFTED + 1)) / (1.0 - acceptance)
    assert rounds * expected == pytest.approx(ANSWER + (expected - 1.0) / 2, rel=0.02)


def test_only_the_result_crosses_the_network() -> None:
    device, cloud = speculation(2)
    _, together = both(
        ([*device, compute("phi"), compute("image_decoder")], cloud), UniformCosts(pass_s=1 / 32, phi_s=1 / 8)
    )
    ((request_bytes, lead, items, (reply_bytes, first)),) = together.calls
    assert (request_bytes, lead, first) == (0, (), True)
    assert reply_bytes == 4 * 2 + len(b"\x92\xa6Tokens\xc4\x08")  # 4 ids in a blob, in an array with its name
    kinds = [COMPANION] * GAMMA + [PASS] + [COMPANION] * GAMMA + [PASS] + [OTHER]
    assert [item[6] for item in items] == kinds
    assert [item[5] for item in items if item[6] in (COMPANION, OTHER)] == [1 / 32] * 8 + [1 / 8]
    assert not any(item[7] for item in items)


def test_where_the_device_makes_no_pass_placement_changes_nothing() -> None:
    ops = ([*call(0), compute("image_decoder")], [[forward("cloud"), reply()]])
    split, together = both(ops)
    assert together == split


def test_a_method_without_calls_sends_its_caption() -> None:
    one = recording([compute("caption_encoder"), forward(), forward()], first_by_cloud=False)
    one.meta["spec"] = {"prompt": "a red circle"}
    together = compile_colocated(one, DEVICE, DEVICE, CLOUD, PRICING)
    assert len(together.calls) == 1
    assert together.bytes_up > len("a red circle")
    assert together.device_s == 0.0

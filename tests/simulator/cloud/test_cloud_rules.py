"""Queue order, routing, admission, memory, crashes, autoscaling, and other tenants."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cloud.background import standing
from simulator.cloud.cloud import Cloud
from simulator.cloud.queues import queue_of
from simulator.cloud.replica import Replica, recomputed
from simulator.cloud.rules import Autoscale, Background, CloudRules, CloudTier, Crash, Discipline, Routing
from simulator.core.rng import stream
from simulator.engine.device import FleetPart
from simulator.engine.workload import ClosedLoop, Requests
from simulator.network.access import Network
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.pricing.costs import Work
from simulator.pricing.program import OTHER, PASS, Item
from simulator.results.columns import PARTS
from tests.simulator.build import (
    CLOUD_COSTS,
    DEVICE_COSTS,
    NETWORK,
    UniformCosts,
    arrivals,
    base,
    call,
    case,
    emit,
    forward,
    program,
    reply,
)
from tests.simulator.cloud.test_cloud import FREE, Client, Loop, opened
from tests.simulator.engine.test_engine import cases


@dataclass
class TokenCosts(UniformCosts):
    """Costs under which a pass takes a second for each new position."""

    def pass_seconds(self, work: Work) -> float:
        return float(work.tokens)


def other(seconds: float) -> Item:
    return (0, 0, 0, 0, 0, seconds, OTHER, ())


@pytest.mark.parametrize(
    ("queue", "order"),
    [("fifo", [0, 1, 2]), ("shortest-first", [2, 0, 1]), ("earliest-deadline", [1, 2, 0]), ("priority", [1, 0, 2])],
)
def test_who_is_served_first(queue: Discipline, order: list[int]) -> None:
    loop, blocker, clients = Loop(), Client(), [Client() for _ in range(3)]
    replica = Replica(CloudTier(CLOUD_COSTS, 1, 1, CloudRules(queue=queue)), loop.at)
    replica.submit(blocker, 0.0, (other(1.0),))
    for client, seconds, deadline_s, priority in zip(clients, (2.0, 3.0, 1.0), (9.0, 7.0, 8.0), (0, 5, 0), strict=True):
        client.deadline_s, client.priority = deadline_s, priority
        replica.submit(client, 0.0, (other(seconds),))
    loop.run()
    assert sorted(range(3), key=lambda i: clients[i].done_s[0]) == order


def test_shortest_first_counts_what_is_left_of_a_call() -> None:
    """When the long call has 1 s left, it is served before another call of 2 s."""
    loop, long, short = Loop(), Client(), Client()
    replica = Replica(CloudTier(CLOUD_COSTS, 1, 1, CloudRules(queue="shortest-first")), loop.at)
    replica.submit(long, 0.0, (other(3.0), other(1.0)))
    loop.run(1.0)
    replica.submit(short, 1.0, (other(2.0),))
    loop.run()
    assert (long.done_s, short.done_s) == ([4.0], [6.0])


def test_a_session_put_back_keeps_its_place() -> None:
    """With full memory, the session with 4 s left returns to the queue, where its completed work must not count twice."""
    queue, long, short = queue_of("shortest-first"), Client(), Client()
    long.items, short.items = (other(1.0), other(4.0)), (other(3.5),)
    for index in range(2):
        long.index = index
        queue.append(long)
        assert queue.popleft() is long
    queue.appendleft(long)
    queue.append(short)
    assert [queue.popleft(), queue.popleft()] == [short, long]


@pytest.mark.parametrize(
    ("routing", "chosen"),
    [("least-loaded", [0, 1, 2, 0]), ("round-robin", [0, 1, 2, 0]), ("join-shortest-queue", [0, 1, 2, 1])],
)
def test_routing(routing: Routing, chosen: list[int]) -> None:
    """Session 0 has work in the cloud; the others have none."""
    loop = Loop()
    cloud = Cloud(CloudTier(CLOUD_COSTS, 3, 4, CloudRules(routing=routing)), loop.at)
    clients = [Client() for _ in range(4)]
    found = []
    for client in clients:
        replica = opened(cloud, client)
        found.append(replica.number)
        if client is clients[0]:
            replica.submit(client, 0.0, (other(1.0),))
    assert found == chosen


def test_a_session_waits_for_admission_until_another_has_its_last_answer() -> None:
    one = program(call(0), [[forward("cloud"), forward("cloud", kv=1), reply()]])
    columns = case(
        [one], arrivals((0, 0, 0), (0, 1, 0), (0, 2, 0)), network=FREE, rules=CloudRules(max_sessions=1)
    ).columns
    assert columns["cloud_queue_s"].tolist() == [0.0, 2 / 64, 4 / 64]


def test_who_cannot_wait_is_refused_and_stands_in_no_column() -> None:
    one = program(call(0), [[forward("cloud"), reply()]])
    requests = arrivals((0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 1, 0))
    result = case([one], requests, network=FREE, rules=CloudRules(max_sessions=1, max_waiting=1))
    assert result.refused == 1
    assert result.columns["request"].tolist() == [0, 1, 3]
    assert result.columns["latency_s"].tolist() == [1 / 64, 2 / 64, 1 / 64]


def passes(count: int) -> list[dict[str, int]]:
    """Return passes of one row and one new position, without the caption, so that the cache has 1, 2, ... positions."""
    return [forward("cloud", 1, n, rows=1, kv_caption=0) for n in range(count)]


def test_sessions_wait_for_memory() -> None:
    """Two sessions of 3 positions each do not fit into 5: the second waits until the 3 passes of the first are done."""
    one = program(call(0), [[*passes(3), reply()]], cloud_costs=TokenCosts())
    both = arrivals((0, 0, 0), (0, 1, 0))
    latency_s = [
        case([one], both, network=FREE, cloud=TokenCosts(), rules=CloudRules(kv_tokens=fits))
        .columns["latency_s"]
        .tolist()
        for fits in (5, 6)
    ]
    assert latency_s == [
        [3.0, 6.0],
        [5.0, 6.0],
    ]  # with room for both: alone, then together twice (2 s each), then alone


def test_what_was_evicted_is_computed_again() -> None:
    """Memory for 3 positions, one pass at a time. A and B take turns: A0 B0 A1, then B1 evicts A; A2 evicts B and feeds all 3 positions
    again (3 s), and then B2 does the same."""
    one = program(call(0), [[*passes(3), reply()]], cloud_costs=TokenCosts())
    rules = CloudRules(kv_tokens=3, evict=True)
    result = case([one], arrivals((0, 0, 0), (0, 1, 0)), network=FREE, cloud=TokenCosts(), max_batch=1, rules=rules)
    assert result.columns["latency_s"].tolist() == [1 + 1 + 1 + 1 + 3, 1 + 1 + 1 + 1 + 3 + 3]


def test_recomputing_feeds_what_was_cached() -> None:
    costs = TokenCosts()
    item: Item = (*Work.of_pass(2, 3, 10), 1.0, PASS, ((5, True),))
    assert recomputed(item, costs) == (*Work.of_pass(2, 13, 0), 26.0, PASS, ((5, True),))
    assert recomputed(other(1.0), costs) == other(1.0)


def test_memory_for_less_than_one_session_is_refused() -> None:
    one = program(call(0), [[*passes(3), reply()]])
    with pytest.raises(ValueError, match="less than one session needs"):
        case([one], arrivals((0, 0, 0)), rules=CloudRules(kv_tokens=2.0))


def test_a_crash_costs_the_news_of_it_the_request_again_and_the_lost_work() -> None:
    """The crash comes in the middle of the second of two passes; another replica takes over."""
    one = program(call(0), [[forward("cloud"), forward("cloud", kv=1), reply()]])
    up_s, reply_s = 2.0**-10 + 1 / 32, 2.0**-10 + 1 / 16
    crash = Crash(0, up_s + 1.5 / 64, 10.0)
    columns = case([one], arrivals((0, 0, 0)), replicas=2, rules=CloudRules(crashes=(crash,))).columns
    assert columns["latency_s"].tolist() == [up_s + 1.5 / 64 + 1 / 16 + up_s + 2 / 64 + reply_s]
    parts = [columns[name][0] for name in ("uplink_s", "cloud_queue_s", "cloud_compute_s", "downlink_s")]
    assert parts == [
        2 * up_s,
        0.5 / 64,
        3 / 64,
        1 / 16 + reply_s,
    ]  # the interrupted pass counts as queueing, the completed but lost pass as computing


def test_parts_that_have_left_are_not_made_again_after_a_crash() -> None:
    """The part of the first pass has been sent, so only the second pass is repeated. One replica, down for a second."""
    one = program(call(0), [[forward("cloud"), emit(), forward("cloud", kv=1), reply()]])
    result = case([one], arrivals((0, 0, 0)), network=FREE, rules=CloudRules(crashes=(Crash(0, 1.5 / 64, 1.0),)))
    assert result.columns["latency_s"].tolist() == [1.5 / 64 + 1.0 + 1 / 64]
    assert result.cloud_up_s == [2.5 / 64]


def test_what_the_device_sends_after_a_crash_grows_with_the_session() -> None:
    """Between two calls it is the request that opened the session, 2 bytes for each of 5 ids in the cache, and one fp16 vector."""
    from tests.simulator.build import send, wait

    one = program(
        [send(0, 100, feature_vectors=1), wait(0), forward(), *call(1)],
        [[forward("cloud", 5, 0), reply()], [forward("cloud", 1, 5), reply()]],
    )
    assert one.context_bytes == (0, 100 + 2 * 5 + 2 * 8)


def test_after_a_crash_the_connection_is_opened_again_and_what_is_sent_again_is_counted() -> None:
    """Each of the two connections takes a round trip of 3/32 s; the request of 128 bytes is sent twice."""
    one = program(call(0), [[forward("cloud"), reply()]])
    tcp = Network(math.inf, math.inf, 1 / 32, 1 / 16, transport=TRANSPORTS["tcp"])
    landed_s = 3 / 32 + 1 / 32
    rules = CloudRules(crashes=(Crash(0, landed_s + 0.5 / 64, 10.0),))
    results = [
        case([one], arrivals((0, 0, 0)), network=tcp, replicas=2, rules=r, timeline_sessions=1)
        for r in (rules, CloudRules())
    ]
    crashed, whole = (result.columns for result in results)
    assert whole["connect_s"].tolist() == [3 / 32]
    assert crashed["connect_s"].tolist() == [2 * 3 / 32]
    assert crashed["bytes_up"].tolist() == [2 * 128]
    assert whole["bytes_up"].tolist() == [128]
    for result in results:  # the spans of the timeline have the same bytes
        assert (
            sum(dict(span.args)["bytes"] for span in result.spans if span.track == "uplink")
            == result.columns["bytes_up"][0]
        )
    assert crashed["latency_s"].tolist() == [landed_s + 0.5 / 64 + 1 / 16 + 3 / 32 + 1 / 32 + 1 / 64 + 1 / 16]


def test_sessions_of_one_device_open_one_connection_after_a_crash() -> None:
    one = program(call(0), [[forward("cloud"), reply()]])
    tcp = Network(math.inf, math.inf, 1 / 32, 1 / 16, transport=TRANSPORTS["tcp"])
    rules = CloudRules(crashes=(Crash(0, 3 / 32 + 1 / 32 + 0.5 / 64, 10.0),))
    columns = case(
        [one], arrivals((0, 0, 0), (0, 0, 0)), network=tcp, replicas=2, rules=rules, devices=1, max_batch=1
    ).columns
    assert columns["connect_s"].tolist()[0] == 2 * 3 / 32
    assert columns["connect_s"].max() == 2 * 3 / 32


def test_a_replica_starts_where_sessions_wait_and_stops_when_idle() -> None:
    one = program(call(0), [[forward("cloud"), reply()]], cloud_costs=UniformCosts(pass_s=4.0))
    rules = CloudRules(max_sessions=1, autoscale=Autoscale(2, 1.0, start_up_s=1.0, idle_s=2.0))
    requests = arrivals((0, 0, 0), (0, 1, 0), (20, 2, 0))
    result = case([one], requests, network=FREE, cloud=UniformCosts(pass_s=4.0), rules=rules)
    assert result.columns["cloud_queue_s"].tolist() == [0.0, 1.0, 0.0]
    assert result.cloud_up_s == [24.0, 4.0 + 2.0]
    assert result.utilisation == 12.0 / 30.0
    for warmup_s, busy in (
        (3.0, (1.0 + 2.0 + 4.0) / (21.0 + 4.0)),
        (10.0, 4.0 / 14.0),
    ):  # the second is up from 1 s to 7 s
        warm = case([one], requests, network=FREE, cloud=UniformCosts(pass_s=4.0), rules=rules, warmup_s=warmup_s)
        assert warm.utilisation == pytest.approx(busy)
        assert warm.cloud_up_s == result.cloud_up_s


def test_a_replica_that_comes_too_late_for_any_session_stops_when_idle() -> None:
    """Both sessions are served by 2 s. The second replica is up from 5 s on and stops after 2 s without work."""
    one = program(call(0), [[forward("cloud"), reply()]], cloud_costs=UniformCosts(pass_s=1.0))
    rules = CloudRules(autoscale=Autoscale(2, 1.0, start_up_s=5.0, idle_s=2.0))
    requests = arrivals((0, 0, 0), (0, 1, 0), (20, 2, 0))
    result = case([one], requests, network=FREE, cloud=UniformCosts(pass_s=1.0), rules=rules)
    assert result.cloud_up_s == [21.0, 2.0]


def test_other_tenants_take_their_share() -> None:
    """200 s at a utilisation of a quarter with jobs of 1/64 s: the busy time is Poisson with standard deviation sqrt(50 / 64).

    The tolerance is 4.5 standard deviations; one or two jobs present at the start are far less.
    """
    one = program(call(0), [[forward("cloud"), reply()]])
    rules = CloudRules(background=Background(0.25, 1 / 64), seed=3)
    result = case([one], arrivals((0, 0, 0), (200, 0, 0)), network=FREE, rules=rules)
    assert abs(result.cloud_busy_s[0] - 2 / 64 - 50.0) < 4.5 * math.sqrt(50 / 64)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_a_run_begins_with_the_jobs_that_a_busy_replica_holds(max_batch: int) -> None:
    """The work in an M/D/1 queue, in units of a job: mean u / (2 (1 - u)), variance u / (3 (1 - u)) plus the squared mean.

    600 draws; means within 4.5 standard errors.
    """
    u = 0.7
    draws = stream(0, "test")
    held = [standing(Background(u, 0.5), max_batch, draws) for _ in range(600)]
    assert all(0.0 < left_s <= 0.5 * max_batch or (left_s, waiting) == (0.0, 0) for left_s, waiting in held)
    work = np.array([left_s / 0.5 + waiting for left_s, waiting in held])
    mean = u / (2 * (1 - u))
    deviation = math.sqrt(u / (3 * (1 - u)) + mean**2)
    assert abs(work.mean() - mean) < 4.5 * deviation / math.sqrt(600)
    assert work.std() == pytest.approx(deviation, rel=0.2)
    assert abs(np.mean(work == 0.0) - (1 - u)) < 4.5 * math.sqrt(u * (1 - u) / 600)


@pytest.mark.parametrize("max_batch", [1, 8])
def test_the_first_request_waits_for_other_tenants_as_long_as_a_later_one(max_batch: int) -> None:
    """Jobs of 1 s at a utilisation of 0.6: served one at a time, a request waits 0.6 / (2 * 0.4) s for them; 300 seeds.

    In batches, jobs that arrive while a request waits share its iteration and lengthen it, for the first request as for a later one.
    """
    one = program(call(0), [[forward("cloud"), reply()]])
    times = arrivals((1.0, 0, 0), (40.3, 1, 0))
    found = np.empty((300, 2))
    for seed in range(300):
        rules = CloudRules(background=Background(0.6, 1.0), seed=seed)
        columns = case([one], times, network=FREE, rules=rules, max_batch=max_batch).columns
        found[seed] = columns["cloud_queue_s"] + columns["cloud_compute_s"] - 1 / 64
    errors = found.std(axis=0) / math.sqrt(300)
    assert abs(found[:, 0].mean() - found[:, 1].mean()) < 4.5 * np.hypot(*errors)
    if max_batch == 1:
        assert np.all(np.abs(found.mean(axis=0) - 0.6 / (2 * 0.4)) < 4.5 * errors)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (CloudRules(crashes=(Crash(1, 0.0, 1.0),)), "replica 1 cannot crash, there are 1"),
        (CloudRules(max_sessions=0), "max_sessions must be >= 1"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: CloudRules, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cloud(CloudTier(CLOUD_COSTS, 1, 1, rules), Loop().at)


@st.composite
def loaded_cases(draw: st.DrawFn) -> dict[str, object]:
    inputs = draw(cases())
    need = max(p.kv_tokens for p in inputs["programs"])  # type: ignore[attr-defined]
    first_s, last_s = inputs["requests"].requested_s[[0, -1]]  # type: ignore[attr-defined]
    replicas = int(inputs["replicas"])  # type: ignore[call-overload]
    crash = st.builds(Crash, st.integers(0, replicas - 1), st.floats(first_s, last_s + 0.3), st.floats(0.001, 1.0))
    radio = RadioFigures(0.1, 0.5, 0.05, 0.04, 0.3, 1000.0, 0.01, 2.0, 1.0, 0.5, 1e-6, 1e-6)
    changes: list[dict[str, Any]] = [
        {},
        {"radio": radio},
        {"devices_per_cell": 2},
        {"transport": TRANSPORTS["grpc"], "up_loss": 0.05, "radio": radio},
    ]
    inputs["network"] = replace(inputs["network"], **draw(st.sampled_from(changes)))  # type: ignore[type-var]
    inputs["rules"] = CloudRules(
        queue=draw(st.sampled_from(["fifo", "shortest-first", "earliest-deadline", "priority"])),
        routing=draw(st.sampled_from(["least-loaded", "round-robin", "join-shortest-queue"])),
        max_sessions=draw(st.sampled_from([None, 1, 2])),
        max_waiting=draw(st.sampled_from([None, 0, 2])),
        kv_tokens=draw(st.sampled_from([math.inf, need, 1.5 * need])),
        evict=draw(st.booleans()),
        crashes=tuple(draw(st.lists(crash, max_size=3))),
        autoscale=draw(st.sampled_from([None, Autoscale(replicas + 2, 1.0, 0.05, 0.2)])),
        background=draw(st.sampled_from([None, Background(0.2, 0.01), Background(0.9, 0.2)])),
    )
    return inputs


@given(loaded_cases())
def test_under_any_rules_every_request_is_answered_or_refused(inputs: dict[str, object]) -> None:
    result = case(**inputs)  # type: ignore[arg-type]
    columns = result.columns
    busy, up = np.array(result.cloud_busy_s), np.array(result.cloud_up_s)
    assert np.all(busy <= up + 1e-6)
    assert result.utilisation <= 1.0 + 1e-6
    rules: CloudRules = inputs["rules"]  # type: ignore[assignment]
    most = inputs["replicas"] if rules.autoscale is None else rules.autoscale.max_replicas
    assert len(up) <= most
    assert len(columns["request"]) + result.refused == len(inputs["requests"])  # type: ignore[arg-type]
    assert result.unfinished == 0
    total = sum(columns[part] for part in PARTS)
    assert np.all(np.abs(total - columns["latency_s"]) <= 1e-6)
    assert all(np.all(columns[part] >= -1e-6) for part in PARTS)


def test_a_run_that_is_ended_says_what_it_left() -> None:
    one = program(call(0), [[forward("cloud"), reply()]])
    result = case([one], arrivals(*[(0, 0, 0)] * 5), network=FREE, until_s=2.5 / 64, max_batch=1)
    assert (len(result.columns["request"]), result.unfinished, result.makespan_s) == (2, 3, 2.5 / 64)


def test_a_fleet_of_two_kinds_has_its_own_hardware_links_and_priorities() -> None:
    """Device 0 computes 4 times as long as devices 1 and 2, which have twice the uplink delay, and priority."""
    slow, fast = UniformCosts(pass_s=1 / 64, power_w=1.0), UniformCosts(pass_s=1 / 256, power_w=8.0)
    device, cloud = [forward(), *call(0)], [[forward("cloud"), reply()]]
    far = Network(NETWORK.up_bps, NETWORK.down_bps, 2 * NETWORK.up_delay_s, NETWORK.down_delay_s)
    parts = [
        FleetPart(1, [program(device, cloud, device_costs=slow)], slow, NETWORK),
        FleetPart(2, [program(device, cloud, device_costs=fast)], fast, far, priority=1),
    ]
    columns = case([], arrivals((0, 0, 0), (1, 1, 0), (2, 2, 0)), parts=parts).columns
    assert columns["device_compute_s"].tolist() == [1 / 64, 1 / 256, 1 / 256]
    assert columns["uplink_s"].tolist() == [2.0**-10 + 1 / 32] + [2.0**-10 + 1 / 16] * 2
    assert columns["device_energy_j"].tolist() == [1 / 64, 8 / 256, 8 / 256]


def test_in_a_closed_loop_a_device_asks_again_once_it_has_thought() -> None:
    """A device has one open request at most, all requests come before the end, and the rate is that of the closed loop."""
    result = case([base(2)], ClosedLoop(1, think_s=0.5, duration_s=400.0, prompts=1), devices=4)  # type: ignore[arg-type]
    columns = result.columns
    assert np.all(np.diff(columns["requested_s"]) >= 0)
    assert columns["requested_s"].max() < 400.0
    for device in range(4):
        mine = columns["device"] == device
        assert np.all(columns["requested_s"][mine][1:] > columns["done_s"][mine][:-1])
    # Each device is a renewal process with mean cycle Z + R and deviation Z: the count is within 4.5 standard deviations.
    cycle_s = 0.5 + columns["latency_s"].mean()
    expected = 4 * 400.0 / cycle_s
    assert abs(len(columns["request"]) - expected) < 4.5 * math.sqrt(expected) * 0.5 / cycle_s + 4


def test_a_closed_loop_asks_the_same_whatever_the_fleet() -> None:
    few, many = (case([base(2)], ClosedLoop(1, 0.5, 20.0, 1), devices=n).columns for n in (1, 3))  # type: ignore[arg-type]
    assert few["requested_s"][0] == many["requested_s"][many["device"] == 0][0]


def test_devices_of_one_kind_or_in_two_parts_are_the_same() -> None:
    requests = Requests(np.arange(8) * 0.05, np.arange(8) % 4, np.zeros(8, np.int64))
    whole = case([base(3)], requests, devices=4).columns
    parts = [FleetPart(2, [base(3)], DEVICE_COSTS, NETWORK) for _ in range(2)]
    split = case([], requests, parts=parts).columns
    assert all(
        np.array_equal(whole[name], split[name], equal_nan=True) for name in whole if whole[name].dtype.kind == "f"
    )

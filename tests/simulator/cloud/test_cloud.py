"""The cloud: batches per iteration, queues, routing, and the time charged to each session."""

import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from simulator.cloud.cloud import Cloud
from simulator.cloud.replica import Replica
from simulator.cloud.rules import CloudRules, CloudTier
from simulator.cloud.work import CloudSession
from simulator.engine.clock import Alarm
from simulator.network.access import Network
from simulator.pricing.costs import Work
from simulator.pricing.program import ENCODE, PASS, Down, Item
from tests.simulator.build import CLOUD_COSTS, UniformCosts, arrivals, base, call, case, forward, program, reply

FREE = Network(math.inf, math.inf, 0.0, 0.0)


class Loop:
    """Virtual time without SimPy: alarms run in order of time, then of scheduling."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.queue: list[tuple[float, int, Alarm]] = []
        self.count = 0

    def at(self, time_s: float, callbacks: tuple[Callable[[Any], None], ...], subject: Any) -> Alarm:
        self.count += 1
        alarm = Alarm(callbacks, subject, time_s)
        heapq.heappush(self.queue, (time_s, self.count, alarm))
        return alarm

    def run(self, until_s: float = math.inf) -> None:
        while self.queue and self.queue[0][0] <= until_s:
            self.now_s, _, alarm = heapq.heappop(self.queue)
            for callback in alarm.callbacks:
                callback(alarm)


class Client(CloudSession):
    """A session that notes when its work was done and its parts were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.done_s: list[float] = []
        self.parts: list[tuple[float, int]] = []
        self.iterations: list[tuple[float, float, float]] = []
        self.charged = self.traced = True

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        self.parts += [(now_s, size) for size, _ in parts]

    def served(self, now_s: float) -> None:
        self.done_s.append(now_s)

    def trace_iteration(self, start_s: float, end_s: float, replica: int, batch: Sequence[CloudSession]) -> None:
        self.iterations.append((self.ready_s, start_s, end_s))


def one_pass(rows: int = 2, seconds: float = 1.0, parts: tuple[Down, ...] = ()) -> Item:
    return (*Work.of_pass(rows, 1, 0), seconds, PASS, parts)


def encoder(seconds: float) -> Item:
    return (0, 0, 0, 0, 0, seconds, ENCODE, ())


def replica(loop: Loop, max_batch: int = 16, costs: UniformCosts | None = None) -> Replica:
    return Replica(CloudTier(costs or UniformCosts(pass_s=1.0), 1, max_batch), loop.at)


def test_what_becomes_ready_during_an_iteration_waits_for_the_next_one() -> None:
    loop, first, second, third = Loop(), Client(), Client(), Client()
    r = replica(loop)
    r.submit(first, 0.0, (one_pass(),) * 2)
    loop.run(0.25)
    r.submit(second, 0.25, (one_pass(),))
    r.submit(third, 0.75, (one_pass(),) * 3)
    loop.run()
    assert (first.done_s, second.done_s, third.done_s) == ([2.0], [2.0], [4.0])
    assert third.iterations == [(0.75, 1.0, 2.0), (2.0, 2.0, 3.0), (3.0, 3.0, 4.0)]
    assert (third.cloud_queue_s + 0.75, second.cloud_queue_s + 0.25) == (0.75 + 1.0, 0.25 + 1.0)
    assert (r.iterations, r.items_done, r.busy_s) == (4, 6, 4.0)


def test_a_full_batch_leaves_the_rest_in_order_and_sessions_take_turns() -> None:
    loop, clients = Loop(), [Client() for _ in range(3)]
    r = replica(loop, max_batch=2)
    for client in clients:
        r.submit(client, 0.0, (one_pass(),) * 2)
    loop.run()
    # Session 0 runs alone (the replica was idle), then 1 and 2, then 0 and 1, then 2.
    starts = [[start for _, start, _ in client.iterations] for client in clients]
    assert starts == [[0.0, 2.0], [1.0, 2.0], [1.0, 3.0]]


def test_a_batch_is_priced_as_the_sum_of_its_work() -> None:
    class Spy(UniformCosts):
        asked: Work | None = None

        def pass_seconds(self, work: Work) -> float:
            self.asked = work
            return 4.0

    loop, costs, blocker, one, two = Loop(), Spy(), Client(), Client(), Client()
    r = replica(loop, costs=costs)
    r.submit(blocker, 0.0, (one_pass(),))
    r.submit(one, 0.0, ((*Work.of_pass(2, 3, 10), 9.0, PASS, ()),))
    r.submit(two, 0.0, ((*Work.of_pass(1, 1, 5), 9.0, PASS, ()),))
    loop.run()
    a, b = Work.of_pass(2, 3, 10), Work.of_pass(1, 1, 5)
    assert costs.asked == Work(*(x + y for x, y in zip(a, b, strict=True)))
    assert one.done_s == two.done_s == [5.0]
    assert (one.gpu_share_s, two.gpu_share_s) == pytest.approx((4.0 * 2 / 3, 4.0 / 3))


def test_other_work_lengthens_the_iteration_it_is_in_and_is_booked_to_its_session() -> None:
    loop, blocker, runs, encodes = Loop(), Client(), Client(), Client()
    r = replica(loop)
    r.submit(blocker, 0.0, (one_pass(),))
    r.submit(runs, 0.0, (one_pass(),))
    r.submit(encodes, 0.0, (encoder(0.25), one_pass()))
    loop.run()
    assert (runs.done_s, encodes.done_s) == ([2.25], [3.25])
    assert (runs.cloud_queue_s, runs.cloud_compute_s, runs.encode_s) == (1.0, 1.25, 0.0)
    assert (encodes.cloud_queue_s, encodes.cloud_compute_s, encodes.encode_s) == (1.0, 2.0, 0.25)
    assert (runs.gpu_share_s, encodes.gpu_share_s) == (1.0, 0.25 + 1.0)
    assert r.busy_s == blocker.gpu_share_s + runs.gpu_share_s + encodes.gpu_share_s


def test_a_batch_of_other_work_alone_takes_its_sum() -> None:
    loop, blocker, clients = Loop(), Client(), [Client(), Client()]
    r = replica(loop)
    r.submit(blocker, 0.0, (one_pass(),))
    for client in clients:
        r.submit(client, 0.0, (encoder(0.5),))
    loop.run()
    assert [client.done_s for client in clients] == [[2.0], [2.0]]


def test_only_time_after_the_mark_is_booked() -> None:
    loop, client = Loop(), Client()
    r = replica(loop)
    client.charged = False
    r.submit(client, 0.0, (one_pass(), encoder(1.0), one_pass()))
    loop.run(0.5)
    client.charged, client.booked_until_s = True, 0.5  # in the middle of the first iteration
    loop.run()
    assert (client.cloud_queue_s, client.cloud_compute_s, client.encode_s) == (0.0, 1.5, 1.0)
    assert client.gpu_share_s == 3.0


def test_parts_leave_when_their_item_is_done() -> None:
    loop, client = Loop(), Client()
    replica(loop).submit(
        client, 0.0, (one_pass(parts=((7, True), (8, False))), one_pass(), one_pass(parts=((9, False),)))
    )
    loop.run()
    assert client.parts == [(1.0, 7), (1.0, 8), (3.0, 9)]


def opened(cloud: Cloud, client: CloudSession) -> Replica:
    replica = cloud.open(client, 0.0)
    assert replica is not None
    return replica


def test_routing_is_to_the_fewest_open_sessions_and_sticks() -> None:
    cloud = Cloud(CloudTier(CLOUD_COSTS, 3, 4), Loop().at)
    clients = [Client() for _ in range(5)]
    assert [cloud.replicas.index(opened(cloud, client)) for client in clients] == [0, 1, 2, 0, 1]
    cloud.close(clients[2], 0.0)
    cloud.close(clients[1], 0.0)
    cloud.close(clients[1], 0.0)  # closing again has no effect
    again = [Client() for _ in range(3)]
    assert [cloud.replicas.index(opened(cloud, client)) for client in again] == [2, 1, 2]


@pytest.mark.parametrize(("replicas", "max_batch"), [(0, 1), (1, 0)])
def test_a_cloud_that_cannot_be_is_refused(replicas: int, max_batch: int) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        Cloud(CloudTier(CLOUD_COSTS, replicas, max_batch), Loop().at)


def test_two_base_sessions_interleave() -> None:
    """Both run 8 passes; the second finishes one encoder and one pass later than alone, not twice as late."""
    two = case([base(8)], arrivals((0.0, 0, 0), (0.0, 1, 0)), network=FREE, timeline_sessions=2)
    alone = 1 / 32 + 8 / 64 + 1 / 16
    # The encoder of the second shares an iteration with the first pass of the first; from then on they step together.
    assert two.columns["latency_s"].tolist() == [alone + 1 / 32, alone + 1 / 32 + 1 / 64]
    passes = [[s.start_s for s in two.spans if s.request == n and s.track == "cloud"] for n in (0, 1)]
    assert passes[0][2:] == passes[1][1:-1]
    assert len(passes[0]) == len(passes[1]) == 9


def test_max_batch_one_serves_one_pass_at_a_time() -> None:
    result = case([base(4)], arrivals((0.0, 0, 0), (0.0, 1, 0)), network=FREE, max_batch=1)
    assert result.mean_batch == 1.0
    last = result.columns["latency_s"].max()
    assert last == 2 * (1 / 32 + 4 / 64) + 1 / 16


def test_the_cloud_is_looked_at_at_equal_intervals() -> None:
    """Three sessions of one pass each, served one at a time, with two places on the replica; a sample every 1/128 s."""
    one = program(call(0), [[forward("cloud"), reply()]])
    requests = arrivals(*((1 / 256, number, 0) for number in range(3)))
    settings = {"network": FREE, "max_batch": 1, "rules": CloudRules(max_sessions=2)}
    looked = case([one], requests, **settings, sample_every_s=1 / 128)
    # Passes take 4/256 s: they end at 5/256, 9/256 and 13/256.
    assert looked.samples["time_s"].tolist() == [number / 128 for number in range(7)]
    assert looked.samples["serving"].tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert looked.samples["queued"].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert looked.samples["admission"].tolist() == [0, 1, 1, 0, 0, 0, 0]
    assert looked.samples["sessions"].tolist() == [0, 2, 2, 2, 2, 1, 1]
    assert looked.samples["replicas_up"].tolist() == [1] * 7
    plain = case([one], requests, **settings)
    assert all(np.array_equal(plain.columns[name], looked.columns[name]) for name in plain.columns)
    assert plain.makespan_s == looked.makespan_s
    assert not len(plain.samples["time_s"])

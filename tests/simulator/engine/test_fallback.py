"""Replies that come late: what the device waits for, books and sends, and what the cloud does meanwhile."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cloud.rules import CloudRules, Crash
from simulator.core.errors import DeadlockError, RecordingError
from simulator.core.rng import stream
from simulator.engine.case import PARTS, CaseInputs, CaseResult
from simulator.engine.clock import Alarm
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.impatience import DeadlineSession
from simulator.engine.run import simulate
from simulator.engine.workload import Arrivals
from simulator.experiment.branches import abandoned, common_prefix
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink, Link
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity
from simulator.pricing.program import SessionProgram
from simulator.protocol.recording import AWAIT
from tests.simulator.build import (
    CLOUD_COSTS,
    DEVICE_COSTS,
    NETWORK,
    Op,
    UniformCosts,
    arrivals,
    call,
    compute,
    forward,
    program,
    recording,
    reply,
    send,
    wait,
)

UP_S, DOWN_S = (
    2.0**-10 + 1 / 32,
    2.0**-10 + 1 / 16,
)  # of a request of 128 and a reply of 256 bytes; a pass takes 1/64 in between
CALL_S = UP_S + 1 / 64 + DOWN_S
DEAD = Capacity([0.0], [0.0], 1.0)


def asking(count: int, optional: bool = True) -> SessionProgram:
    """`count` times a device pass and a call with one cloud pass; then the image decoder."""
    device = [row for number in range(count) for row in (forward(), *call(number, optional=optional))]
    return program([*device, compute("image_decoder")], [[forward("cloud"), reply()] for _ in range(count)])


def giving_up(at: int, passes: int = 3) -> SessionProgram:
    """The branch of `asking` that misses the reply to call `at` and makes `passes` more passes by itself."""
    device = [row for number in range(at + 1) for row in (forward(), *call(number, optional=True))]
    cloud = [[forward("cloud", decides=int(number < at)), reply()] for number in range(at + 1)]
    return program([*device, *[forward()] * passes, compute("image_decoder")], cloud)


Branches = dict[tuple[int, int], SessionProgram]


def run(
    programs: Sequence[SessionProgram],
    requests: Arrivals,
    rule: Fallback | None,
    branches: Branches | None = None,
    network: Network = NETWORK,
    devices: int = 8,
    **changes: Any,
) -> CaseResult:
    ends = {key: abandoned(programs[key[0]], branch, key[1]) for key, branch in (branches or {}).items()}
    part = FleetPart(devices, programs, DEVICE_COSTS, network, abandoned=ends)
    fields: dict[str, Any] = {
        "cloud": CLOUD_COSTS,
        "replicas": 1,
        "max_batch": 16,
        "seed": 0,
        "fallback": rule,
        **changes,
    }
    return simulate(
        CaseInputs([], DEVICE_COSTS, network=network, devices=devices, arrivals=requests, fleet=[part], **fields)
    )


def equal(one: CaseResult, other: CaseResult) -> bool:
    return all(
        np.array_equal(one.columns[name], other.columns[name], equal_nan=True)
        for name in one.columns
        if name != "timed_out_call"
    )


def parts_of(result: CaseResult, request: int = 0) -> dict[str, float]:
    return {name: float(result.columns[name][request]) for name in PARTS if result.columns[name][request]}


def one(**more: Any) -> CaseResult:
    return run([asking(2)], arrivals((0, 0, 0)), **more)


class TestGivingUp:
    def test_a_reply_in_time_changes_nothing(self) -> None:
        patient, bound = one(rule=None), one(rule=Fallback(CALL_S))
        assert bound.columns["timed_out_call"].tolist() == [-1]
        assert equal(bound, patient)

    @pytest.mark.parametrize(
        "deadline_s", [UP_S / 2, UP_S + 1 / 128, CALL_S - 1 / 128], ids=["going up", "in the cloud", "going down"]
    )
    def test_the_device_waits_for_its_deadline_and_goes_on_alone(self, deadline_s: float) -> None:
        result = one(rule=Fallback(deadline_s), branches={(0, 0): giving_up(0)})
        assert result.missing == ()
        columns = result.columns
        assert columns["timed_out_call"].tolist() == [0]
        assert columns["latency_s"].tolist() == [1 / 256 + deadline_s + 3 / 256 + 1 / 16]
        assert parts_of(result) == {"device_compute_s": 4 / 256, "wait_s": deadline_s, "image_decode_s": 1 / 16}
        assert [columns[name][0] for name in ("calls", "cloud_passes", "bytes_up", "bytes_down", "device_passes")] == [
            1,
            0,
            128,
            256,
            4,
        ]
        assert columns["cloud_gpu_s"].tolist() == result.cloud_busy_s == [1 / 64]  # for nothing

    def test_the_second_call_is_given_up_where_the_second_is_late(self) -> None:
        """The cloud is busy with another session's pass when the second call comes."""
        slow = UniformCosts(pass_s=4.0)
        long = program(call(0), [[forward("cloud"), reply()]], cloud_costs=slow)
        requests = arrivals((0.0, 0, 0), (CALL_S, 1, 1))
        result = run([asking(2), long], requests, Fallback(0.5), {(0, 1): giving_up(1)})
        assert result.columns["timed_out_call"].tolist() == [1, -1]
        expected = {
            "device_compute_s": 5 / 256,
            "uplink_s": UP_S,
            "cloud_compute_s": 1 / 64,
            "downlink_s": DOWN_S,
            "wait_s": 0.5,
            "image_decode_s": 1 / 16,
        }
        assert parts_of(result) == expected
        assert result.columns["cloud_passes"].tolist() == [1, 1]
        assert result.cloud_busy_s == [2 / 64 + 4.0]
        assert result.makespan_s > 4.0 > result.columns["done_s"][0]  # the late answer is made all the same

    def test_its_place_in_the_cloud_is_free_once_the_cloud_has_answered(self) -> None:
        """One place only: the next session is admitted when the pass given up is done, not before and not never."""
        slow = UniformCosts(pass_s=2.0)
        first = program([*call(0, optional=True), forward()], [[forward("cloud"), reply()]], cloud_costs=slow)
        branch = program(
            [*call(0, optional=True), *[forward()] * 2], [[forward("cloud", decides=0), reply()]], cloud_costs=slow
        )
        second = program(call(0), [[forward("cloud"), reply()]], cloud_costs=slow)
        result = run(
            [first, second],
            arrivals((0, 0, 0), (1, 1, 1)),
            Fallback(0.25),
            {(0, 0): branch},
            rules=CloudRules(max_sessions=1),
        )
        assert result.columns["cloud_queue_s"].tolist() == [0.0, UP_S + 2.0 - (1.0 + UP_S)]

    def test_first_token_by_a_pass_made_before_the_await_is_known_when_it_is_over(self) -> None:
        device = [forward(), *call(0, optional=True), *[forward()] * 3]
        branch = program(device, [[forward("cloud", decides=0), reply()]], first_by_cloud=False)
        result = one(rule=Fallback(1 / 64), branches={(0, 0): branch})
        assert result.columns["first_token_s"].tolist() == [1 / 256 + 1 / 64]

    def test_a_reply_that_comes_late_brings_no_first_token(self) -> None:
        whole = program([*call(0, optional=True), forward()], [[forward("cloud"), reply()]])
        branch = program(
            [*call(0, optional=True), *[forward()] * 2], [[forward("cloud", decides=0), reply()]], first_by_cloud=False
        )
        result = run([whole], arrivals((0, 0, 0)), Fallback(CALL_S - 1 / 64), {(0, 0): branch})
        assert result.columns["first_token_s"].tolist() == [CALL_S - 1 / 64 + 1 / 256]

    def test_what_is_not_recorded_is_asked_for(self) -> None:
        requests = arrivals((0, 0, 0), (0, 1, 1), (1, 2, 0))
        assert run([asking(2), asking(3)], requests, Fallback(UP_S)).missing == ((0, 0), (1, 0))

    def test_a_reply_that_cannot_be_done_without_is_waited_for(self) -> None:
        patient = run([asking(2, optional=False)], arrivals((0, 0, 0)), Fallback(UP_S))
        assert patient.columns["latency_s"].tolist() == one(rule=None).columns["latency_s"].tolist()

    def test_on_a_dead_link_the_device_goes_on_and_without_a_fallback_it_says_who_waits(self) -> None:
        dead = Network(DEAD, DEAD, 0.01, 0.01)
        branches = {(0, 0): giving_up(0)}
        result = one(rule=Fallback(2.0), branches=branches, network=dead)
        assert parts_of(result)["wait_s"] == 2.0
        assert (result.columns["bytes_up"][0], result.columns["bytes_down"][0], result.unfinished) == (128, 0, 0)
        again = one(rule=Fallback(2.0, attempts=3), branches=branches, network=dead)
        assert (again.columns["bytes_up"][0], again.columns["retries"][0]) == (3 * 128, 2)
        for rule in (None, Fallback(2.0, attempts=3, gives_up=False)):
            with pytest.raises(
                DeadlockError, match="request 0 of device 0 waits for call 0 to reach the cloud, but the uplink has no"
            ):
                one(rule=rule, network=dead)

    def test_a_crash_after_it_gave_up_concerns_nobody(self) -> None:
        crash = CloudRules(crashes=(Crash(0, 1 / 256 + UP_S + 1 / 128, 5.0),))
        result = one(rule=Fallback(UP_S + 1 / 256), branches={(0, 0): giving_up(0)}, rules=crash)
        assert parts_of(result)["wait_s"] == UP_S + 1 / 256
        assert result.cloud_busy_s == [1 / 128]

    def test_a_crash_is_one_way_of_being_late(self) -> None:
        crash = CloudRules(crashes=(Crash(0, 1 / 256 + UP_S + 1 / 128, 5.0),))
        result = one(rule=Fallback(0.5), branches={(0, 0): giving_up(0)}, rules=crash)
        assert parts_of(result) == {"device_compute_s": 4 / 256, "wait_s": 0.5, "image_decode_s": 1 / 16}
        waiting = one(rule=Fallback(0.5, attempts=2, gives_up=False), rules=crash)
        assert waiting.columns["timed_out_call"].tolist() == [-1]
        assert waiting.columns["latency_s"][0] > 5.0

    def test_a_branch_that_asks_the_cloud_again_is_refused(self) -> None:
        with pytest.raises(RecordingError, match="asks the cloud again"):
            abandoned(asking(2), asking(2), 0)

    def test_a_branch_of_a_slightly_other_beginning_only_gives_its_end(self) -> None:
        ops: list[Op] = [forward(), *call(0, optional=True), forward(), forward()]
        cloud = [[forward("cloud"), reply()]]
        assert common_prefix(recording([*ops, forward()], cloud), recording(ops, cloud), 0)
        ops = [forward(), *ops]
        assert not common_prefix(recording(ops[1:], cloud), recording(ops, cloud), 0)
        whole = abandoned(asking(2), program(ops, cloud), 0)
        assert whole.steps == (*asking(2).steps[:1], (2 / 256, -1.0, -1, -1))
        assert whole.device_s == 3 / 256


class TestTryingAgain:
    def test_the_waits_grow_by_the_rule(self) -> None:
        rule = Fallback(2.0, attempts=5)
        assert [rule.wait_s(k, 0.0) for k in range(3)] == [2.0, 2.0 * 1.6, 2.0 * 1.6**2]
        assert rule.wait_s(1, 1.0) == pytest.approx(3.2 * 1.2)
        assert rule.wait_s(40, -1.0) == pytest.approx(120.0 * 0.8)
        assert Fallback(300.0).wait_s(3, 0.0) == 300.0

    def outage(self, begin_s: float, end_s: float) -> Network:
        """8 Mbit/s both ways over TCP, 50 ms each way; nothing from begin to end, in 1000 s of which device 0 begins somewhere."""
        place_s = 1000.0 * float(stream(0, "link.offset", 0).random())
        rate = Capacity([0.0, place_s + begin_s, place_s + end_s], [8e6, 0.0, 8e6], 1000.0)
        return Network(rate, rate, 0.05, 0.05, transport=replace(TRANSPORTS["tcp"], handshake_rtts=0))

    def waits_s(self, deadline_s: float, count: int) -> list[float]:
        """The first waits of request 0 for call 0."""
        draws = [float(stream(0, "fallback.backoff", 0, 0, k).uniform(-1.0, 1.0)) for k in range(1, count)]
        return [deadline_s, *(deadline_s * 1.6**k * (1 + 0.2 * draw) for k, draw in enumerate(draws, start=1))]

    def test_a_new_connection_need_not_wait_for_the_timer_of_the_old_one(self) -> None:
        """An outage of 20 s swallows the request. TCP tries again 0.3, 0.9, 2.1, 4.5, 9.3, 18.9 and 38.1 s after a request left; the first
        try after the end gets through.
        """
        network, start_s, rest_s = self.outage(0.001, 20.0), 1 / 256, 0.1 + 1 / 64 + 1 / 16
        waiting = run([asking(1)], arrivals((0, 0, 0)), None, network=network)
        assert waiting.columns["latency_s"][0] == pytest.approx(start_s + 38.1 + rest_s, abs=0.01)
        for attempts in (4, 5):
            again = run([asking(1)], arrivals((0, 0, 0)), Fallback(2.0, attempts, gives_up=False), network=network)
            lost_s = sum(self.waits_s(2.0, attempts - 1))
            tried_s = next(0.3 * (2**k - 1) for k in range(9) if start_s + lost_s + 0.3 * (2**k - 1) >= 20.0)
            assert again.columns["retries"].tolist() == [attempts - 1]
            assert again.columns["wait_s"][0] == pytest.approx(lost_s)
            assert again.columns["latency_s"][0] == pytest.approx(start_s + lost_s + tried_s + rest_s, abs=0.01)
            assert (again.columns["bytes_up"].tolist(), again.columns["bytes_down"].tolist()) == (
                [attempts * 128],
                [256],
            )

    def test_what_the_cloud_has_done_it_does_not_do_again(self) -> None:
        """The request arrives, the reply falls into an outage: the second request costs bytes, and a reply."""
        network = self.outage(0.06, 20.0)
        result = run([asking(1)], arrivals((0, 0, 0)), Fallback(5.0, attempts=3, gives_up=False), network=network)
        columns = result.columns
        assert columns["cloud_gpu_s"].tolist() == result.cloud_busy_s == [1 / 64]
        assert [columns[name][0] for name in ("calls", "retries", "bytes_up", "bytes_down")] == [1, 2, 3 * 128, 2 * 256]
        assert sum(columns[part][0] for part in PARTS) == pytest.approx(columns["latency_s"][0], abs=1e-12)
        assert columns["wait_s"][0] == pytest.approx(sum(self.waits_s(5.0, 2)))
        assert columns["cloud_compute_s"][0] == 0.0  # it lies in a wait that brought nothing

    def test_a_pass_under_way_goes_on_and_its_reply_waits_for_the_new_connection(self) -> None:
        slow = UniformCosts(pass_s=1.0)
        asks = program([*call(0, optional=True)], [[forward("cloud"), reply()]], cloud_costs=slow)
        network = Network(8e6, 8e6, 0.25, 0.25)
        result = run(
            [asks], arrivals((0, 0, 0)), Fallback(1.125, attempts=2, gives_up=False), network=network, cloud=slow
        )
        columns = result.columns
        # 0.25 up, a pass until 1.25; the second request leaves at 1.125 and arrives at 1.375; 0.25 down.
        tiny = 8 * 128 / 8e6
        assert columns["latency_s"][0] == pytest.approx(1.375 + tiny + 0.25 + 2 * tiny, abs=1e-12)
        expected = {"wait_s": 1.125, "cloud_compute_s": 0.125 + tiny, "uplink_s": 0.125, "downlink_s": 0.25 + 2 * tiny}
        assert parts_of(result) == pytest.approx(expected, abs=1e-12)
        assert result.cloud_busy_s == [1.0]
        assert columns["bytes_down"].tolist() == [256]

    def test_after_the_last_attempt_it_gives_up(self) -> None:
        network = self.outage(0.001, 100.0)
        result = run(
            [asking(2)], arrivals((0, 0, 0)), Fallback(2.0, attempts=3), {(0, 0): giving_up(0)}, network=network
        )
        assert result.columns["timed_out_call"].tolist() == [0]
        assert parts_of(result)["wait_s"] == pytest.approx(sum(self.waits_s(2.0, 3)))
        assert result.columns["done_s"][0] < 20.0
        assert result.unfinished == 0
        assert result.columns["cloud_gpu_s"].tolist() == [1 / 64]  # after the outage, for nothing


# --- under any load


def session(chance: np.random.Generator) -> tuple[SessionProgram, dict[int, SessionProgram]]:
    """A session whose awaits are optional or not, and its branches."""
    count = int(chance.integers(1, 5))
    device: list[Op] = []
    unsent, open_calls = 0, list[int]()
    while unsent < count or open_calls:
        what = chance.choice(["pass", "send", "call", "wait"])
        if what == "pass":
            device.append(forward())
        if what in ("send", "call") and unsent < count:
            device.append(send(unsent, int(chance.integers(1, 5000))))
            open_calls.append(unsent)
            unsent += 1
        if what in ("wait", "call") and open_calls:
            number = open_calls.pop()
            if what == "call" or chance.random() < 0.5:
                device.append(wait(number, optional=chance.random() < 0.7))
    device.append(compute("image_decoder"))
    works = [forward("cloud", rows=1), forward("cloud"), compute("caption_encoder")]
    cloud = [[*chance.choice(works, chance.integers(0, 4)), reply(int(chance.integers(1, 3000)))] for _ in range(count)]  # type: ignore[arg-type]
    costs = (UniformCosts(0.0123), UniformCosts(pass_s=0.0101, row_s=0.00317))
    branches = {}
    for index, row in enumerate(device):
        if row["kind"] == AWAIT and row["what"]:
            sent = 1 + max(x["call"] for x in device[: index + 1])
            alone = [*device[: index + 1], *[forward()] * int(chance.integers(0, 6)), compute("image_decoder")]
            branches[row["call"]] = program(alone, cloud[:sent], True, *costs)
    return program(device, cloud, True, *costs), branches


@st.composite
def late_cases(draw: st.DrawFn) -> dict[str, Any]:
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    fleet = int(chance.integers(1, 5))
    pictures = [session(chance) for _ in range(chance.integers(1, 4))]
    n = int(chance.integers(1, 13))
    times = np.cumsum(chance.exponential(draw(st.sampled_from([0.01, 0.1, 1.0])), n))
    rate = float(chance.uniform(1e5, 1e7))
    radio = RadioFigures(0.1, 0.5, 0.05, 0.04, 0.3, 1000.0, 0.01, 2.0, 1.0, 0.5, 1e-6, 1e-6)
    tunnel: dict[str, Any] = {
        "up_bps": Capacity.with_outages(rate, 3.0, 1.5),
        "down_bps": Capacity.with_outages(rate, 3.0, 1.5),
    }
    changes: list[dict[str, Any]] = [
        {},
        tunnel,
        {**tunnel, "transport": TRANSPORTS["grpc"]},
        {**tunnel, "devices_per_cell": 2},
        {"radio": radio},
        {**tunnel, "radio": radio, "transport": TRANSPORTS["tcp"]},
        {"transport": TRANSPORTS["grpc"], "up_loss": 0.05, "down_loss": 0.05},
    ]
    network = Network(rate, 2 * rate, 0.02, 0.03, draw(st.sampled_from([0.0, 0.004])), 0.0)
    crashes = [Crash(0, float(at_s), 0.4) for at_s in chance.uniform(0.0, times[-1] + 0.3, draw(st.integers(0, 2)))]
    rules = CloudRules(
        max_sessions=draw(st.sampled_from([None, 1, 2])),
        max_waiting=draw(st.sampled_from([None, None, 0, 2])),
        crashes=tuple(crashes),
        kv_tokens=draw(st.sampled_from([math.inf, 1e6])),
        evict=draw(st.booleans()),
    )
    return {
        "programs": [whole for whole, _ in pictures],
        "branches": {
            (number, at): branch for number, (_, branches) in enumerate(pictures) for at, branch in branches.items()
        },
        "requests": Arrivals(times, chance.integers(0, fleet, n), chance.integers(0, len(pictures), n)),
        "rule": Fallback(draw(st.sampled_from([0.01, 0.05, 0.2, 1.0])), draw(st.integers(1, 4)), draw(st.booleans())),
        "network": replace(network, **draw(st.sampled_from(changes))),
        "devices": fleet,
        "replicas": draw(st.integers(1, 2)),
        "max_batch": draw(st.integers(1, 4)),
        "cloud": UniformCosts(pass_s=0.0101, row_s=0.00317),
        "rules": rules,
    }


@contextmanager
def counted() -> Iterator[tuple[dict[str, int], list[Any]]]:
    """Payload that was given to the links, by direction, and the links."""
    sent: dict[str, int] = {"up": 0, "down": 0}
    links: list[Any] = []
    way: dict[int, str] = {}
    given = AccessNetwork.links

    def links_of(self: AccessNetwork, device: int) -> Any:
        up, down, radio = given(self, device)
        way[id(up)], way[id(down)] = "up", "down"
        links.extend([up, down])
        return up, down, radio

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccessNetwork, "links", links_of)
        for kind in (Link, ImpairedLink):
            whole = kind.send

            def send_counted(self: Any, now_s: float, size_bytes: int, whole: Any = whole) -> float:
                sent[way[id(self)]] += size_bytes
                return float(whole(self, now_s, size_bytes))

            patch.setattr(kind, "send", send_counted)
        yield sent, links


@settings(max_examples=100, deadline=None)
@given(late_cases())
def test_under_any_load_parts_add_up_and_every_request_is_answered(inputs: dict[str, Any]) -> None:
    with counted() as (sent, links):
        result = run(**inputs)
    columns = result.columns
    assert result.missing == ()
    assert result.unfinished == 0
    assert len(columns["request"]) + result.refused == len(inputs["requests"])
    assert np.all(np.abs(sum(columns[part] for part in PARTS) - columns["latency_s"]) <= 1e-9)
    assert all(np.all(columns[part] >= -1e-9) for part in PARTS)
    if not inputs["rules"].crashes and not result.refused:  # what a crash has sent again is in no column
        assert (columns["bytes_up"].sum(), columns["bytes_down"].sum()) == (sent["up"], sent["down"])
        assert columns["cloud_gpu_s"].sum() == pytest.approx(sum(result.cloud_busy_s))
    rule = inputs["rule"]
    assert np.all((columns["timed_out_call"] == -1) | rule.gives_up)
    assert rule.attempts > 1 or not columns["retries"].any()
    assert all(link.dropped_bits <= link.sent_bits * (1 + 1e-12) for link in links if isinstance(link, ImpairedLink))


@settings(max_examples=40, deadline=None)
@given(late_cases())
def test_a_deadline_that_is_never_reached_changes_nothing(inputs: dict[str, Any]) -> None:
    patient, bound = run(**{**inputs, "rule": None}), run(**{**inputs, "rule": Fallback(1e6)})
    assert equal(bound, patient)
    assert not bound.columns["retries"].any()


@settings(max_examples=40, deadline=None)
@given(late_cases())
def test_no_request_takes_longer_than_its_deadlines_allow(inputs: dict[str, Any]) -> None:
    """Where every await is optional and no other request is about, a request computes, and waits one deadline for each await at most."""
    programs = [replace(whole, optional=frozenset(range(len(whole.calls)))) for whole in inputs["programs"]]
    requests = inputs["requests"]
    alone = Arrivals(np.arange(len(requests)) * 1e4, requests.device, requests.prompt)
    rule = Fallback(inputs["rule"].deadline_s)
    columns = run(**{**inputs, "programs": programs, "requests": alone, "rule": rule, "rules": CloudRules()}).columns
    awaits = np.array([sum(step[3] >= 0 for step in programs[prompt].steps) for prompt in columns["prompt"]])
    computed_s = (
        np.array([programs[prompt].device_s for prompt in columns["prompt"]]) + 5 * 0.0123
    )  # a branch makes 5 passes more at most
    assert np.all(columns["latency_s"] <= computed_s + awaits * rule.deadline_s + 1e-9)


def test_a_request_that_overtakes_another_is_taken_up_after_it() -> None:
    """Another session of the device may open a connection in between; then request 2 arrives at 2 s and request 1 at 5 s."""
    session = DeadlineSession.__new__(DeadlineSession)
    session.prepare(frozenset())
    session.landed, session.answered, session.awaiting = 1, 0, -1  # the cloud is still busy with call 0
    session.in_flight = {1: Alarm((), session, 5.0), 2: Alarm((), session, 2.0), 3: Alarm((), session, 9.0)}
    session.land(2.0)
    assert (session.landed, sorted(session.in_flight)) == (1, [1, 2, 3])
    session.land(5.0)
    assert (session.landed, sorted(session.in_flight)) == (3, [3])
    session.land_again(9.0, 3)
    assert (session.landed, sorted(session.in_flight)) == (4, [])

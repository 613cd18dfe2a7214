"""Late replies: the device's waits, its time accounting and retries, and the work in the cloud meanwhile."""

from dataclasses import replace
from typing import Any

import pytest

from simulator.cloud.rules import CloudRules, Crash
from simulator.core.errors import DeadlockError, RecordingError
from simulator.core.rng import stream
from simulator.engine.case import CaseResult
from simulator.engine.fallback import Fallback
from simulator.experiment.branches import abandoned, common_prefix
from simulator.network.access import Network
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity
from simulator.results.columns import PARTS
from tests.simulator.build import (
    Op,
    UniformCosts,
    arrivals,
    call,
    forward,
    program,
    recording,
    reply,
)
from tests.simulator.engine.fallback_cases import CALL_S, DEAD, DOWN_S, UP_S, asking, equal, giving_up, parts_of, run


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
        assert columns["cloud_gpu_s"].tolist() == result.cloud_busy_s == [1 / 64]  # wasted, but counted

    def test_the_second_call_is_given_up_where_the_second_is_late(self) -> None:
        """The cloud is busy with a pass of another session when the second call arrives."""
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
        assert result.makespan_s > 4.0 > result.columns["done_s"][0]  # the cloud still computes the late reply

    def test_its_place_in_the_cloud_is_free_once_the_cloud_has_answered(self) -> None:
        """With one place, the next session is admitted exactly when the abandoned pass is done."""
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
        """Return a link of 8 Mbit/s both ways over TCP, 50 ms each way, with an outage from `begin_s` to `end_s`.

        The rates repeat after 1000 s. Device 0 starts at a drawn place of them; the outage is relative to that place.
        """
        place_s = 1000.0 * float(stream(0, "link.offset", 0).random())
        rate = Capacity([0.0, place_s + begin_s, place_s + end_s], [8e6, 0.0, 8e6], 1000.0)
        return Network(rate, rate, 0.05, 0.05, transport=replace(TRANSPORTS["tcp"], handshake_rtts=0))

    def waits_s(self, deadline_s: float, count: int) -> list[float]:
        """Return the first `count` waits of request 0 for call 0."""
        draws = [float(stream(0, "fallback.backoff", 0, 0, k).uniform(-1.0, 1.0)) for k in range(1, count)]
        return [deadline_s, *(deadline_s * 1.6**k * (1 + 0.2 * draw) for k, draw in enumerate(draws, start=1))]

    def test_a_new_connection_need_not_wait_for_the_timer_of_the_old_one(self) -> None:
        """An outage of 20 s loses the request. TCP retransmits 0.3, 0.9, 2.1, 4.5, 9.3, 18.9 and 38.1 s after a request was sent; the
        first transmission after the outage arrives.
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
        """The request arrives, but the reply falls into an outage: the second request costs its bytes and another reply, but no pass."""
        network = self.outage(0.06, 20.0)
        result = run([asking(1)], arrivals((0, 0, 0)), Fallback(5.0, attempts=3, gives_up=False), network=network)
        columns = result.columns
        assert columns["cloud_gpu_s"].tolist() == result.cloud_busy_s == [1 / 64]
        assert [columns[name][0] for name in ("calls", "retries", "bytes_up", "bytes_down")] == [1, 2, 3 * 128, 2 * 256]
        assert sum(columns[part][0] for part in PARTS) == pytest.approx(columns["latency_s"][0], abs=1e-12)
        assert columns["wait_s"][0] == pytest.approx(sum(self.waits_s(5.0, 2)))
        assert columns["cloud_compute_s"][0] == 0.0  # the pass lies within a wait without result

    def test_a_pass_under_way_goes_on_and_its_reply_waits_for_the_new_connection(self) -> None:
        slow = UniformCosts(pass_s=1.0)
        asks = program([*call(0, optional=True)], [[forward("cloud"), reply()]], cloud_costs=slow)
        network = Network(8e6, 8e6, 0.25, 0.25)
        result = run(
            [asks], arrivals((0, 0, 0)), Fallback(1.125, attempts=2, gives_up=False), network=network, cloud=slow
        )
        columns = result.columns
        # 0.25 s up, a pass until 1.25 s; the second request is sent at 1.125 s and arrives at 1.375 s; 0.25 s down.
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
        assert result.columns["cloud_gpu_s"].tolist() == [1 / 64]  # after the outage, wasted

"""Whole cases: exact latencies on an idle system, parts that add up under load, and repeatable results."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.engine.case import CaseResult
from simulator.engine.device import Device
from simulator.engine.workload import Requests, poisson_arrivals
from simulator.network.access import Network
from simulator.pricing.costs import Work
from simulator.pricing.program import SessionProgram
from simulator.protocol.ops import COMPUTE_KINDS
from simulator.protocol.recording import AWAIT, COMPUTE, EMIT, FORWARD, REPLY, SEND
from simulator.results.columns import PARTS
from simulator.results.timeline import TRACKS
from tests.simulator.build import (
    CLOUD_COSTS,
    DEVICE_COSTS,
    NETWORK,
    Op,
    UniformCosts,
    arrivals,
    base,
    call,
    case,
    compute,
    emit,
    forward,
    one_forward_calls,
    prefill,
    program,
    reply,
    send,
    wait,
)

CIAR: tuple[list[Op], list[list[Op]]] = (
    [
        *call(0),
        prefill(new=2),
        compute("phi"),
        forward(),
        compute("phi"),
        forward(),
        *call(1, 384),
        forward(),
        *call(2),
        compute("image_decoder"),
    ],
    [
        [compute("caption_encoder"), prefill("cloud"), forward("cloud", 1, 0), reply(512, ids=2, caption_rows=3)],
        [forward("cloud", 4, 1), reply(128)],
        [forward("cloud", 1, 5), reply(128)],
    ],
)
CODE: tuple[list[Op], list[list[Op]]] = (
    [*call(0), prefill(new=3), *[forward(new=1, kv=n) for n in range(3, 9)], compute("image_decoder")],
    [[compute("caption_encoder"), prefill("cloud"), *[forward("cloud", 1, n) for n in range(2)], reply(1024, ids=3)]],
)
DEVICE_ONLY: tuple[list[Op], list[list[Op]]] = (
    [compute("caption_encoder"), prefill(), *[forward(new=1, kv=n) for n in range(5)], compute("image_decoder")],
    [],
)
IMAGE: tuple[list[Op], list[list[Op]]] = (
    call(0),
    [[compute("caption_encoder"), prefill("cloud"), compute("image_decoder"), reply(4096, 0, image_bytes=4000)]],
)
STREAM: tuple[list[Op], list[list[Op]]] = (
    [*call(0), compute("image_decoder")],
    [[compute("caption_encoder"), prefill("cloud"), emit(64), forward("cloud"), emit(), forward("cloud"), reply(128)]],
)
# The link is slower than the passes: parts queue on it, and the reply waits behind them.
SLOW_STREAM: tuple[list[Op], list[list[Op]]] = (
    [*call(0), compute("image_decoder")],
    [[prefill("cloud"), *[x for _ in range(5) for x in (emit(8192), forward("cloud"))], reply(8192)]],
)


def seconds_of(row: Op, costs: UniformCosts) -> float:
    if row["kind"] == COMPUTE:
        return costs.compute_seconds(COMPUTE_KINDS[row["what"]])
    return costs.pass_seconds(Work.of_pass(row["rows"], 1, 0))


def by_hand(device: Sequence[Op], cloud: Sequence[Sequence[Op]], first_by_cloud: bool) -> tuple[float, float]:
    """Return (latency_s, first_token_s) of a single session that awaits each call at once: the sum of its ops in order."""
    now_s, down_free_s, first_s = 0.0, 0.0, math.nan

    def down(row: Op) -> float:
        nonlocal down_free_s, first_s
        down_free_s = max(down_free_s, now_s) + 8 * row["payload_bytes"] / NETWORK.down_bps
        arrival_s = down_free_s + NETWORK.down_delay_s
        if first_by_cloud and first_s != first_s and (row["ids"] or row.get("image_bytes")):
            first_s = arrival_s
        return arrival_s

    for row in device:
        if row["kind"] in (FORWARD, COMPUTE):
            now_s += seconds_of(row, DEVICE_COSTS)
            if row["kind"] == FORWARD and not first_by_cloud and first_s != first_s:
                first_s = now_s
        elif row["kind"] == SEND:
            now_s += 8 * row["payload_bytes"] / NETWORK.up_bps + NETWORK.up_delay_s
            for work in cloud[row["call"]]:
                if work["kind"] in (FORWARD, COMPUTE):
                    now_s += seconds_of(work, CLOUD_COSTS)
                elif work["kind"] == EMIT:
                    down(work)
                elif work["kind"] == REPLY:
                    now_s = down(work)
        else:
            assert row["kind"] == AWAIT
    return now_s, first_s


@pytest.mark.parametrize(
    ("ops", "first_by_cloud"),
    [(CIAR, True), (CODE, True), (DEVICE_ONLY, False), (IMAGE, True), (STREAM, True), (SLOW_STREAM, True)],
    ids=["ciar", "code", "device-only", "image", "stream", "slow-stream"],
)
def test_a_session_alone_takes_exactly_the_sum_of_its_ops(
    ops: tuple[list[Op], list[list[Op]]], first_by_cloud: bool
) -> None:
    result = case([program(*ops, first_by_cloud=first_by_cloud)], arrivals((0, 0, 0)), timeline_sessions=1)
    columns = result.columns
    assert (columns["latency_s"][0], columns["first_token_s"][0]) == by_hand(*ops, first_by_cloud)
    assert sum(columns[part][0] for part in PARTS) == columns["latency_s"][0]
    assert columns["device_queue_s"][0] == columns["cloud_queue_s"][0] == columns["wait_s"][0] == 0.0
    device_s = sum(seconds_of(row, DEVICE_COSTS) for row in ops[0] if row["kind"] in (FORWARD, COMPUTE))
    cloud_s = sum(seconds_of(row, CLOUD_COSTS) for rows in ops[1] for row in rows if row["kind"] in (FORWARD, COMPUTE))
    assert columns["device_energy_j"][0] == device_s * DEVICE_COSTS.power_w
    assert columns["cloud_gpu_s"][0] == sum(result.cloud_busy_s) == cloud_s
    assert columns["decode_s"][0] == columns["latency_s"][0] - columns["encode_s"][0] - columns["image_decode_s"][0]
    assert result.makespan_s == columns["done_s"][0]
    assert max(span.end_s for span in result.spans) == columns["done_s"][0]


def test_the_parts_of_a_ciar_session_alone() -> None:
    columns = case([program(*CIAR)], arrivals((0, 0, 0))).columns
    assert columns["encode_s"][0] == 1 / 32  # the encoder runs in the cloud, but counts as encoding
    assert columns["device_compute_s"][0] == 4 / 256
    assert columns["uplink_s"][0] == (128 + 384 + 128) * 2.0**-17 + 3 / 32
    assert columns["cloud_compute_s"][0] == 4 / 64
    assert columns["downlink_s"][0] == (512 + 128 + 128) * 2.0**-18 + 3 / 16
    assert columns["image_decode_s"][0] == 1 / 16
    assert [columns[name][0] for name in ("calls", "cloud_passes", "bytes_up", "bytes_down")] == [3, 4, 640, 768]
    assert columns["cloud_call_pct"][0] == 100.0


def test_latency_grows_by_a_round_trip_per_call() -> None:
    far = Network(NETWORK.up_bps, NETWORK.down_bps, NETWORK.up_delay_s + 1, NETWORK.down_delay_s + 2)
    near_s, far_s = (
        case([program(*CIAR)], arrivals((0, 0, 0)), network=n).columns["latency_s"][0] for n in (NETWORK, far)
    )
    assert far_s - near_s == 3 * (1 + 2)


class TestEagerSends:
    """A call sent before its await: the device waits only for what remains of it."""

    # A single call of 128 bytes arrives after u, is processed in c, and its reply of 256 bytes takes d.
    u = 2.0**-10 + 1 / 32
    c = 1 / 64
    d = 2.0**-10 + 1 / 16

    def parts(self, device: list[Op], calls: int = 1, pass_s: float = 0.0) -> tuple[float, ...]:
        priced = program(device, [[forward("cloud"), reply()]] * calls, device_costs=UniformCosts(pass_s))
        columns = case([priced], arrivals((0, 0, 0))).columns
        names = ("latency_s", "device_compute_s", "uplink_s", "cloud_queue_s", "cloud_compute_s", "downlink_s")
        assert sum(columns[part][0] for part in PARTS) == columns["latency_s"][0]
        return tuple(float(columns[name][0]) for name in names)

    def test_await_during_the_uplink(self) -> None:
        x = 2.0**-6
        expected = (self.u + self.c + self.d, x, self.u - x, 0, self.c, self.d)
        assert self.parts([send(0), forward(), wait(0)], pass_s=x) == expected

    def test_await_during_the_pass(self) -> None:
        x = self.u + 2.0**-7
        expected = (self.u + self.c + self.d, x, 0, 0, 2.0**-7, self.d)
        assert self.parts([send(0), forward(), wait(0)], pass_s=x) == expected

    def test_await_during_the_downlink(self) -> None:
        x = self.u + self.c + 2.0**-5
        expected = (self.u + self.c + self.d, x, 0, 0, 0, self.d - 2.0**-5)
        assert self.parts([send(0), forward(), wait(0)], pass_s=x) == expected

    def test_await_of_a_reply_that_is_here(self) -> None:
        assert self.parts([send(0), forward(), wait(0), forward()], pass_s=1.0) == (2.0, 2.0, 0, 0, 0, 0)

    def test_calls_are_served_in_order_and_the_last_awaits_both(self) -> None:
        serial = 2.0**-10  # the second message is serialised after the first
        expected = (self.u + 2 * self.c + self.d, 0, self.u + serial, 0, 2 * self.c - serial, self.d)
        assert self.parts([send(0), send(1), wait(1), wait(0)], calls=2) == expected

    def test_the_first_of_two_awaited_then_the_second(self) -> None:
        expected = (self.u + 2 * self.c + self.d, 0, self.u, 0, self.c, self.d + self.c)
        assert self.parts([send(0), send(1), wait(0), wait(1)], calls=2) == expected

    def test_a_call_never_awaited_is_served_all_the_same(self) -> None:
        result = case([program([send(0), forward()], [[forward("cloud"), reply()]])], arrivals((0, 0, 0)))
        assert result.columns["latency_s"][0] == 1 / 256
        assert result.columns["cloud_gpu_s"][0] == 1 / 64
        assert result.makespan_s == self.u + self.c

    def test_many_calls_without_work_are_answered_in_one_go(self) -> None:
        """Far more uploads wait behind a pass than Python's recursion limit allows."""
        n = 5000
        device = [send(number, 1) for number in range(n)]
        cloud = [[forward("cloud"), reply()], *[[reply(ids=0)]] * (n - 1)]
        slow = UniformCosts(pass_s=8.0)
        result = case([program([*device, wait(n - 1)], cloud, cloud_costs=slow)], arrivals((0, 0, 0)))
        assert result.columns["done_s"][0] == pytest.approx(8.0 + 1 / 32 + 2**-17 + 1 / 16 + 2**-10 * n)


def test_sessions_of_a_device_take_turns_on_it() -> None:
    local = program([forward()] * 4, first_by_cloud=False)
    columns = case([local], arrivals((0.0, 0, 0), (0.0, 0, 0), (1 / 128, 0, 0), (1 / 64, 1, 0))).columns
    assert columns["device_queue_s"].tolist() == [0.0, 4 / 256, 8 / 256 - 2 / 256, 0.0]
    assert columns["latency_s"].tolist() == [4 / 256, 8 / 256, 10 / 256, 4 / 256]
    assert columns["first_token_s"].tolist() == [1 / 256, 5 / 256, 7 / 256, 1 / 256]


def test_a_request_comes_between_the_steps_of_another_session() -> None:
    """Session 0 computes 1/256 s, calls, and computes again; session 1 takes the device just before the reply arrives."""
    back_s = 1 / 256 + 2.0**-10 + 1 / 32 + 1 / 64 + 2.0**-10 + 1 / 16
    two_blocks = program([forward(), *call(0), forward()], [[forward("cloud"), reply()]])
    local = program([forward()] * 8, first_by_cloud=False)
    columns = case([two_blocks, local], arrivals((0.0, 0, 0), (back_s - 1 / 256, 0, 1))).columns
    assert columns["device_queue_s"].tolist() == [7 / 256, 0.0]
    assert columns["latency_s"].tolist() == [back_s + 8 / 256, 8 / 256]


def test_sessions_of_a_device_share_its_wires() -> None:
    slow = Network(2.0**13, 2.0**13, 0.0, 0.0)  # a message of 128 bytes takes 1/8 s
    one = program(call(0), [[forward("cloud"), reply(128)]])
    columns = case([one], arrivals((0.0, 0, 0), (0.0, 0, 0), (0.0, 1, 0)), network=slow).columns
    assert columns["uplink_s"].tolist() == [1 / 8, 2 / 8, 1 / 8]
    assert columns["cloud_queue_s"].tolist() == [0.0, 0.0, 1 / 64]
    assert columns["downlink_s"].tolist() == [1 / 8, 1 / 8, 1 / 8]


# Random programs under random loads. Times come from one generator, because hypothesis prefers equal times: ties are resolved by order of
# creation, which has its own tests.

CLOUD = UniformCosts(pass_s=0.0101, row_s=0.00317, phi_s=0.0013)


@st.composite
def programs(draw: st.DrawFn) -> SessionProgram:
    count = draw(st.integers(0, 4))
    device: list[Op] = []
    unsent = 0
    open_calls: list[int] = []
    for _ in range(draw(st.integers(0, 10)) + 3 * count):
        what = draw(st.sampled_from(["pass", "pass", "compute", "call", "send", "wait"]))
        if what == "pass":
            device.append(forward(rows=draw(st.integers(1, 2))))
        elif what == "compute":
            device.append(compute(draw(st.sampled_from(COMPUTE_KINDS))))
        elif what == "wait" and open_calls:
            device.append(wait(open_calls.pop(draw(st.integers(0, len(open_calls) - 1)))))
        elif what in ("call", "send") and unsent < count:
            device.append(send(unsent, draw(st.integers(1, 5000))))
            if what == "call":
                device.append(wait(unsent))
            else:
                open_calls.append(unsent)
            unsent += 1
    work = st.one_of(
        st.builds(lambda rows, new: forward("cloud", new, rows=rows), st.integers(1, 2), st.integers(1, 9)),
        st.sampled_from([compute(kind) for kind in COMPUTE_KINDS]),
        st.builds(emit, st.integers(1, 3000), st.integers(0, 1)),
    )
    answers = st.builds(reply, st.integers(1, 3000), st.integers(0, 1))
    cloud = [[*draw(st.lists(work, max_size=5)), draw(answers)] for _ in range(unsent)]
    return program(device, cloud, draw(st.booleans()), UniformCosts(0.0123, 0.0017), CLOUD)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    fleet = draw(st.integers(1, 4))
    images = draw(st.lists(programs(), min_size=1, max_size=3))
    n = draw(st.integers(1, 12))
    start_s = draw(st.sampled_from([0.0, 1e6]))
    times = start_s + np.cumsum(generator.exponential(draw(st.sampled_from([0.01, 0.1, 1.0])), n))
    jitter = draw(st.sampled_from([0.0, 0.0031]))
    up_bps, down_bps = generator.uniform(1e5, 1e7, 2)
    up_delay_s, down_delay_s = generator.uniform(1e-3 if jitter else 0.0, 0.05, 2)
    return {
        "programs": images,
        "requests": Requests(times, generator.integers(0, fleet, n), generator.integers(0, len(images), n)),
        "network": Network(up_bps, down_bps, up_delay_s, down_delay_s, jitter, 2 * jitter),
        "devices": fleet,
        "replicas": draw(st.integers(1, 3)),
        "max_batch": draw(st.integers(1, 4)),
        "cloud": CLOUD,
        "timeline_sessions": draw(st.sampled_from([0, 100])),
    }


def same(a: CaseResult, b: CaseResult) -> bool:
    return a.columns.keys() == b.columns.keys() and all(
        np.array_equal(a.columns[name], b.columns[name], equal_nan=a.columns[name].dtype.kind == "f")
        for name in a.columns
    )


@given(cases())
def test_under_any_load_every_request_is_done_and_its_parts_add_up(inputs: dict[str, object]) -> None:
    result = case(**inputs)  # type: ignore[arg-type]
    columns = result.columns
    total = sum(columns[part] for part in PARTS)
    assert np.all(np.abs(total - columns["latency_s"]) <= 1e-9)
    assert all(np.all(columns[part] >= -1e-9) for part in PARTS)
    assert np.all(columns["done_s"] >= columns["requested_s"])  # also fails for NaN: every request is answered
    assert columns["cloud_gpu_s"].sum() == pytest.approx(sum(result.cloud_busy_s))
    assert np.all(columns["device_compute_s"] <= columns["latency_s"] + 1e-9)
    for span in result.spans:
        assert span.track in TRACKS
        assert span.start_s <= span.end_s
        assert span.start_s >= columns["requested_s"][span.request]
    for device in range(8):  # a device does one thing at a time
        busy = sorted((s.start_s, s.end_s) for s in result.spans if s.device == device and s.track == "device")
        assert all(end <= start for (_, end), (start, _) in pairwise(busy))


@given(cases())
def test_working_ahead_of_the_clock_changes_nothing_but_the_events(inputs: dict[str, object]) -> None:
    network = inputs["network"]
    assert isinstance(network, Network)
    # Without jitter, sessions of one batch may send at the same time, and such ties are resolved differently.
    assume(network.up_jitter_s > 0.0)

    def never_ahead(self: Device, change: int) -> None:
        self.open_sessions += change

    may_run_ahead = case(**inputs)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "count", never_ahead)
        plain = case(**inputs)  # type: ignore[arg-type]
    assert same(may_run_ahead, plain)
    assert sorted(may_run_ahead.spans) == sorted(plain.spans)
    assert may_run_ahead.events <= plain.events


def loaded(**changes: object) -> CaseResult:
    requests = poisson_arrivals(3, 1.0, 60.0, 6, 2)
    network = Network(20e6, 20e6, 0.02, 0.02, 0.002, 0.002)
    return case([one_forward_calls(40, 2), base(32)], requests, network=network, **changes)


def test_the_same_inputs_give_the_same_columns() -> None:
    assert same(loaded(), loaded())
    assert not same(loaded(), loaded(seed=1))


def test_a_timeline_changes_nothing() -> None:
    traced, plain = loaded(timeline_sessions=3), loaded()
    assert same(traced, plain)
    assert (plain.spans, {span.request for span in traced.spans}) == ([], {0, 1, 2})
    assert {span.track for span in traced.spans} == set(TRACKS)


@pytest.mark.parametrize("devices", [1, 4, 1000])
def test_a_call_of_one_forward_costs_at_most_four_events(devices: int) -> None:
    """Iterations are included. One session per batch; devices are contended to idle."""
    requests = poisson_arrivals(0, 0.5, 200.0, devices, 1)
    result = case([one_forward_calls(40, 2)], requests, devices=devices, max_batch=1)
    assert result.events <= 4 * result.columns["calls"].sum()
    if devices == 1000:
        assert result.events <= 2.2 * result.columns["calls"].sum()


def test_no_requests_give_no_rows_and_nan() -> None:
    result = case([base(2)], arrivals())
    assert all(len(column) == 0 for column in result.columns.values())
    assert math.isnan(result.makespan_s)
    assert math.isnan(result.mean_batch)
    assert result.events == 0


def test_an_unknown_power_gives_an_unknown_energy() -> None:
    columns = case([base(2)], arrivals((0, 0, 0)), device=UniformCosts(power_w=math.nan)).columns
    assert math.isnan(columns["device_energy_j"][0])


@pytest.mark.parametrize(
    ("requests", "changes", "says"),
    [
        (arrivals((0, 9, 0)), {}, "outside the fleet of 8"),
        (arrivals((0, 0, 1)), {}, "outside the 1 programs"),
        (arrivals((1, 0, 0), (0, 0, 0)), {}, "in order of time"),
        (arrivals((0, 0, 0)), {"devices": 0}, "devices must be"),
        (arrivals((0, 0, 0)), {"replicas": 0}, "replicas and max_batch"),
    ],
)
def test_a_case_that_cannot_be_is_refused(requests: Requests, changes: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        case([base(2)], requests, **changes)

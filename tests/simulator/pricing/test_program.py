"""Compiling a recording: merged device work, repriced bytes and passes, and refused recordings."""

import numpy as np
import pytest

from simulator.core.errors import RecordingError
from simulator.pricing.costs import Pricing, Work
from simulator.pricing.program import ENCODE, IMAGE_DECODE, OTHER, PASS, compile_session
from simulator.protocol.messages import ELEMENT_KINDS, Widths, repriced_bytes
from simulator.protocol.ops import COMPUTE_KINDS, Forward
from simulator.protocol.recording import Recording
from tests.simulator.build import (
    CLOUD_COSTS,
    DEVICE_COSTS,
    PRICING,
    WIDTHS,
    Op,
    UniformCosts,
    call,
    compute,
    emit,
    forward,
    op,
    prefill,
    program,
    recording,
    reply,
    send,
    wait,
)


class Spy(UniformCosts):
    """Costs that remember the work that they priced."""

    def pass_seconds(self, work: Work) -> float:
        self.__dict__.setdefault("asked", []).append(work)
        return super().pass_seconds(work)


def test_device_work_between_network_ops_is_one_step() -> None:
    p = program(
        [
            *call(0),
            prefill(),
            compute("phi"),
            forward(),
            forward("drafter"),
            *call(1),
            forward(),
            compute("image_decoder"),
        ],
        [[reply()], [forward("cloud"), reply()]],
    )
    assert p.steps == ((0.0, -1.0, 0, 0), (3 / 256, -1.0, 1, 1), (1 / 256 + 1 / 16, -1.0, -1, -1))
    assert p.device_s == 4 / 256 + 1 / 16
    assert (p.encode_s, p.image_decode_s) == (0.0, 1 / 16)


def test_sends_and_awaits_apart_are_steps_of_their_own() -> None:
    p = program([send(0), forward(), send(1), send(2), wait(1), wait(0), forward(), wait(2)], [[reply()]] * 3)
    sends_and_waits = [step[2:] for step in p.steps]
    assert sends_and_waits == [(0, -1), (1, -1), (2, 1), (-1, 0), (-1, 2)]
    assert [step[0] for step in p.steps] == [0.0, 1 / 256, 0.0, 0.0, 1 / 256]


def test_a_call_holds_its_items_its_parts_and_its_reply() -> None:
    cloud = [
        emit(16, ids=0),
        compute("caption_encoder"),
        prefill("cloud"),
        emit(20),
        emit(24),
        compute("phi"),
        compute("image_decoder"),
        reply(40),
    ]
    ((up, lead, items, answer),) = program(call(0, 100), [cloud]).calls
    assert (up, lead, answer) == (100, ((16, False),), (40, False))
    assert [item[6] for item in items] == [ENCODE, PASS, OTHER, IMAGE_DECODE]
    assert [item[5] for item in items] == [1 / 32, 1 / 64, 0.0, 1 / 16]
    assert items[1][:5] == Work.of_pass(2, 4, 0)
    assert items[1][7] == ((20, True), (24, False))


def test_a_tree_pays_for_its_logits_and_for_what_its_nodes_see() -> None:
    """Root, two children, a child of the first: 1, 2, 2 and 3 attended pairs in the tree, not 1, 2, 3 and 4; logits at every node."""
    cloud = Spy()
    tree = Forward("cloud", [5, 6, 7, 8], tree=[-1, 0, 0, 1], outputs="all")
    assert tree.hidden == 2
    opening = prefill("cloud", 3, logits_all=1)  # of three tokens and the caption's last slot
    compile_session(
        recording(call(0), [[opening, forward("cloud", 4, 10, logits_all=1, hidden=tree.hidden), reply()]]),
        Spy(),
        cloud,
        PRICING,
    )
    first, second = cloud.__dict__["asked"]
    assert first == Work(2, 2 * 7, 2 * 7, 2 * 28, 2 * 4)
    assert second == Work(2, 2 * 4, 2 * 18, 2 * (4 * 14 + 1 + 2 + 2 + 3), 2 * 4)


def test_pairs_that_a_tree_hides_count_for_new_entries_only() -> None:
    """The second beam of the drafter: each of its two entries sees one of the first beam's two."""
    assert Forward("drafter", [3, 4], tree=[-1, -1], outputs="all").hidden == 1
    assert Forward("drafter", [5, 6], tree=[-1, -1, 0, 1], outputs="all").hidden == (3 - 2) + (4 - 2)
    assert Forward("cloud", [1, 2, 3], tree=[-1, 0, 1]).hidden == Forward("cloud", [1, 2, 3]).hidden == 0


def test_caption_slots_are_those_of_the_pricing() -> None:
    device, cloud = Spy(), Spy()
    ops = recording(
        [prefill(new=3), forward(new=1, kv=3), *call(0)], [[prefill("cloud", 5), forward("cloud", 2, 5), reply()]]
    )
    compile_session(ops, device, cloud, Pricing(120, WIDTHS))
    assert device.__dict__["asked"] == [Work.of_pass(2, 123, 0), Work.of_pass(2, 1, 123)]
    assert cloud.__dict__["asked"] == [Work.of_pass(2, 125, 0), Work.of_pass(2, 2, 125)]


def test_messages_are_repriced_at_the_widths_of_the_pricing() -> None:
    wide = Widths(dim=1280, vocab_size=16384, caption_dim=2048, image_pixels=256, caption_slots=120)
    ops = recording(
        [send(0, 300, ids=4, feature_vectors=3), wait(0)],
        [[op(4, payload_bytes=90, caption_rows=2), forward("cloud"), reply(50, ids=7)]],
    )
    counts = dict.fromkeys(ELEMENT_KINDS, 0)
    same, other = (compile_session(ops, DEVICE_COSTS, CLOUD_COSTS, Pricing(4, widths)) for widths in (WIDTHS, wide))
    assert (same.bytes_up, same.bytes_down) == (300, 90 + 50)
    assert other.bytes_up == repriced_bytes(300, {**counts, "feature_vectors": 3}, WIDTHS, wide) > 300 + 3 * 2 * 1272
    assert other.bytes_down == repriced_bytes(90, {**counts, "caption_rows": 2}, WIDTHS, wide) + 50


def test_counts_are_those_of_the_recording() -> None:
    cloud = [[forward("cloud", decides=0), forward("cloud"), reply()], [forward("cloud"), reply()]]
    p = program([forward(), *call(0), forward("drafter", decides=0), *call(1)], cloud)
    assert (len(p.calls), p.device_passes, p.cloud_passes, p.cloud_call_pct) == (2, 2, 2, 50.0)


def test_the_first_token_is_looked_for_where_it_was_decided() -> None:
    device = [*call(0), forward(decides=0), forward(), forward(), *call(1)]
    cloud = [[reply(ids=0)], [forward("cloud"), emit(ids=2), reply()]]
    by_device = program(device, cloud, first_by_cloud=False)
    assert [step[1] for step in by_device.steps] == [-1.0, 2 / 256]
    assert [by_device.calls[0][3][1], by_device.calls[1][2][0][7][0][1], by_device.calls[1][3][1]] == [False] * 3
    by_cloud = program(device, cloud)  # the cloud decided all tokens: the device's picks do not count
    assert [step[1] for step in by_cloud.steps] == [-1.0, -1.0]
    assert [by_cloud.calls[0][3][1], by_cloud.calls[1][2][0][7][0][1], by_cloud.calls[1][3][1]] == [False, True, False]


def test_an_image_is_a_first_token() -> None:
    p = program(call(0), [[compute("image_decoder"), reply(900, ids=0, image_bytes=890)]])
    assert p.calls[0][3] == (900, True)


def test_a_call_may_stay_without_await() -> None:
    assert program([send(0), forward()], [[reply(ids=0)]]).steps == ((0.0, -1.0, 0, -1), (1 / 256, -1.0, -1, -1))


def test_a_session_without_calls() -> None:
    p = program([compute("caption_encoder"), prefill(), compute("image_decoder")], first_by_cloud=False)
    assert p.steps == ((1 / 32 + 1 / 256 + 1 / 16, 1 / 32 + 1 / 256, -1, -1),)
    assert (p.calls, p.encode_s, p.bytes_up, p.cloud_call_pct) == ((), 1 / 32, 0, 0.0)


@pytest.mark.parametrize(
    ("device", "cloud", "says"),
    [
        ([wait(0)], [], "op 0: call 0 is awaited before it is sent"),
        ([send(0), wait(1), send(1)], [[reply()], [reply()]], "op 1: call 1 is awaited before it is sent"),
        ([*call(0), wait(0)], [[reply()]], "op 2: call 0 is awaited twice"),
        ([send(1)], [[reply()]], "op 0: call 1 is sent where call 0 is next"),
        (call(0), [], "call 0 of 1 has no reply"),
        (call(0), [[forward("cloud")]], "call 0 of 1 has no reply"),
        (call(0), [[reply(), emit()]], "op 3: the cloud works on call 0 where call 1 of 1 is next"),
        (call(0), [[reply()], [reply()]], "op 3: the cloud works on call 1 where call 1 of 1 is next"),
        ([forward("cloud")], [], "op 0: the device cannot run a pass of the cloud model"),
        (call(0), [[forward("device"), reply()]], "op 2: the cloud cannot run a pass of the device model"),
        ([emit()], [], "op 0: emit is not an op of the device"),
        (call(0), [[wait(0)]], "op 2: await is not an op of the cloud"),
        ([op(99)], [], "op 0: unknown kind 99; allowed: forward, compute, send, await, emit, reply"),
        ([op(1, what=9)], [], f"op 0: unknown compute kind 9; allowed: {', '.join(COMPUTE_KINDS)}"),
        ([forward(new=0)], [], "op 0: a pass of 2 rows and 0 new positions"),
        ([forward(rows=0)], [], "op 0: a pass of 0 rows and 1 new positions"),
    ],
)
def test_an_order_that_cannot_be_is_refused(device: list[Op], cloud: list[list[Op]], says: str) -> None:
    with pytest.raises(RecordingError) as error:
        program(device, cloud)
    assert str(error.value) == says


def test_the_table_itself_is_checked() -> None:
    good = recording(call(0), [[reply()]])

    def refused(ops: np.ndarray) -> None:
        with pytest.raises(RecordingError, match=r"must stand before|another format"):
            compile_session(Recording(**{**good.__dict__, "ops": ops}), DEVICE_COSTS, CLOUD_COSTS, PRICING)

    refused(good.ops[::-1])
    refused(good.ops[["side", "kind"]])

"""Compiles a recording into the program that the simulator replays: it prices the op table once and turns it into plain tuples.

A device program becomes a list of steps. A step computes, then sends a call, then awaits one; each part is optional. A `Call`
after any number of device passes is thus one step, and replaying it reads one tuple.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simulator.core.errors import RecordingError
from simulator.pricing.costs import Costs, Pricing, Work
from simulator.protocol.messages import ELEMENT_KINDS, Start, Tokens, Widths, encode, pack_ids, repriced_bytes
from simulator.protocol.ops import COMPUTE_KINDS, ROLES
from simulator.protocol.recording import (
    AWAIT,
    CLOUD,
    COMPUTE,
    DEVICE,
    EMIT,
    FORWARD,
    FROM_CLOUD,
    OP_DTYPE,
    REPLY,
    SEND,
    Recording,
)

# Kinds of an item of work. PASS: a pass of the cloud model. COMPANION: a pass of the device's model, run in the cloud. Passes of one model
# are batched over sessions. The seconds of ENCODE and later kinds are a latency part of their own.
PASS, COMPANION, OTHER, ENCODE, IMAGE_DECODE = range(5)
_PART = {"caption_encoder": ENCODE, "phi": OTHER, "image_decoder": IMAGE_DECODE, "interval_samples": OTHER}
_KIND_NAMES = ("forward", "compute", "send", "await", "emit", "reply")

# Programs are plain tuples, because the engine unpacks several per call. These are the indices of their fields.
DOWN_BYTES: Final = 0
ITEM_ROWS: Final = 0
ITEM_TOKENS: Final = 1
ITEM_KV_TOKENS: Final = 2
ITEM_ATTENDED: Final = 3
ITEM_LOGITS: Final = 4
ITEM_SECONDS: Final = 5
ITEM_KIND: Final = 6
ITEM_PARTS: Final = 7
CALL_BYTES: Final = 0
CALL_LEAD: Final = 1
CALL_ITEMS: Final = 2
CALL_REPLY: Final = 3
STEP_SECONDS: Final = 0
STEP_FIRST: Final = 1
STEP_SEND: Final = 2
STEP_AWAIT: Final = 3
# Down: payload bytes; whether this message contains the session's first image token.
Down = tuple[int, bool]
# Item: rows, tokens, kv_tokens, attended, logits (the fields of Work; 0 unless it is PASS or COMPANION), seconds when run alone, kind, and
# the parts of the reply that leave when it is done.
Item = tuple[int, int, int, int, int, float, int, tuple[Down, ...]]
# CallProgram: request payload bytes, parts of the reply that leave before any work, items in order, the reply.
CallProgram = tuple[int, tuple[Down, ...], tuple[Item, ...], Down]
# DeviceStep: device seconds (0: no computing); seconds from the start of the step until the first image token is known, -1 if not in this
# step; call sent after computing, -1 for none; call awaited after that, -1 for none.
DeviceStep = tuple[float, float, int, int]


@dataclass(frozen=True, slots=True)
class SessionProgram:
    """One priced session.

    Attributes:
        steps: Steps of the device, in order.
        calls: Calls, in order of their numbers.
        device_s: Seconds of computing on the device, caption encoder and image decoder included.
        encode_s: Seconds of the caption encoder on the device.
        image_decode_s: Seconds of the image decoder on the device.
        bytes_up: Payload of all requests.
        bytes_down: Payload of all replies.
        device_passes: `Recording.device_passes`.
        cloud_passes: `Recording.cloud_passes`.
        cloud_call_pct: `Recording.cloud_call_pct`.
        kv_tokens: Largest number of positions in the cloud model's cache, over all rows.
        context_bytes: By call: payload that the device first sends to a replica without the session's state. It consists of the first
            request, the ids of the image tokens in the cache before the call's first pass, and the features sent before.
        optional: Calls whose reply the device can do without.
    """

    steps: tuple[DeviceStep, ...]
    calls: tuple[CallProgram, ...]
    device_s: float
    encode_s: float
    image_decode_s: float
    bytes_up: int
    bytes_down: int
    device_passes: int
    cloud_passes: int
    cloud_call_pct: float
    kv_tokens: int = 0
    context_bytes: tuple[int, ...] = ()
    optional: frozenset[int] = frozenset()


def compile_session(recording: Recording, device: Costs, cloud: Costs, pricing: Pricing) -> SessionProgram:
    """Price a recording.

    A caption that the recording fed or cached counts as `pricing.caption_slots` positions, and messages have `pricing.widths`.

    Args:
        recording: The session.
        device: Costs of work on the device, at batch size 1.
        cloud: Costs of work in the cloud; items have the seconds at batch size 1.
        pricing: Shape at which captions, messages and drafters are priced.

    Raises:
        RecordingError: The order of the ops is impossible: an await of a call never sent, a call without a reply, an op on the wrong side;
            or the costs of a drafter are unknown.
    """
    ops = recording.ops
    if ops.dtype != OP_DTYPE:
        raise RecordingError("the op table has another format than this program's")
    side = ops["side"]
    if np.any(side[1:] < side[:-1]) or np.any(side > CLOUD):
        raise RecordingError("the ops of the device must stand before those of the cloud")
    table = _rows(recording)
    cut = int(np.count_nonzero(side == DEVICE))
    pricer = _Pricer(recording, cloud, pricing)
    # The first token comes from whoever decided token 0: a device pass whose position the cloud decided does not count.
    from_cloud = len(recording.decided_by) > 0 and int(recording.decided_by[0]) == FROM_CLOUD
    steps, sizes_up, totals = _device_steps(table[:cut], pricer, device, find_first=not from_cloud)
    calls = _cloud_calls(table[cut:], cut, sizes_up, pricer, find_first=from_cloud)
    return SessionProgram(
        steps=tuple(steps),
        calls=tuple(calls),
        device_s=sum(step[STEP_SECONDS] for step in steps),
        encode_s=totals[ENCODE],
        image_decode_s=totals[IMAGE_DECODE],
        bytes_up=sum(sizes_up),
        bytes_down=down_bytes(calls),
        device_passes=recording.device_passes(),
        cloud_passes=recording.cloud_passes(),
        cloud_call_pct=recording.cloud_call_pct() if len(recording.tokens) else float("nan"),
        kv_tokens=max((item[ITEM_KV_TOKENS] for _, _, items, _ in calls for item in items), default=0),
        context_bytes=_context_bytes(table, sizes_up, pricing.widths),
        optional=frozenset(op["call"] for op in table[:cut] if op["kind"] == AWAIT and op["what"]),
    )


def _rows(recording: Recording) -> list[dict[str, int]]:
    """Return the op table as one mapping per op."""
    return [dict(zip(OP_DTYPE.names or (), row, strict=True)) for row in recording.ops.tolist()]


def down_bytes(calls: Sequence[CallProgram]) -> int:
    """Return the payload of the replies to these calls, all parts included."""
    return sum(
        size_bytes
        for _, lead, items, reply in calls
        for size_bytes, _ in (*lead, *(part for item in items for part in item[ITEM_PARTS]), reply)
    )


def compile_colocated(
    recording: Recording, device: Costs, companion: Costs, cloud: Costs, pricing: Pricing
) -> SessionProgram:
    """Price a recording with both programs in the cloud (`placement: cloud`).

    The session has one call, whose reply is the token ids of the image in one message. Messages between the two programs take no time;
    the work of a call runs where the device sent it. The image decoder stays on the device. A session without a pass on the device is
    priced as by `compile_session`.

    Args:
        recording: The session.
        device: Costs of the device, for the image decoder.
        companion: Costs of the device's model on the cloud's hardware, which batches its passes over sessions. Passes of a drafter run
            one by one, as in the cloud.
        cloud: Costs of the cloud model.
        pricing: As in `compile_session`.

    Raises:
        RecordingError: As in `compile_session`.
    """
    split = compile_session(recording, device, cloud, replace(pricing, device_drafter=pricing.drafter))
    own = [op for op in _rows(recording) if op["side"] == DEVICE]
    if not any(op["kind"] == FORWARD for op in own):
        return split
    pricer = _Pricer(recording, cloud, pricing)
    items: list[Item] = []
    for index, op in enumerate(own):
        if op["kind"] == FORWARD:
            work = pricer.work(op, f"op {index}")
            if op["what"] == ROLES.index("drafter"):
                items.append((0, 0, 0, 0, 0, pricer.drafter_seconds(pricing.drafter, work, f"op {index}"), OTHER, ()))
            else:
                items.append((*work, companion.pass_seconds(work), COMPANION, ()))
        elif op["kind"] == COMPUTE and (kind := COMPUTE_KINDS[op["what"]]) != "image_decoder":
            items.append((0, 0, 0, 0, 0, companion.compute_seconds(kind), _PART[kind], ()))
        elif op["kind"] == SEND:
            items += [(*item[:ITEM_PARTS], ()) for item in split.calls[op["call"]][CALL_ITEMS]]
    prompt = str(recording.meta.get("spec", {}).get("prompt", ""))
    request_bytes = (
        split.calls[0][CALL_BYTES] if split.calls else len(encode(Start(prompt, len(recording.tokens), {}, 0)))
    )
    reply_bytes = len(encode(Tokens(pack_ids(recording.tokens))))
    decoding_s = split.image_decode_s
    return SessionProgram(
        steps=((0.0, -1.0, 0, 0), *([(decoding_s, -1.0, -1, -1)] if decoding_s > 0.0 else [])),
        calls=((request_bytes, (), tuple(items), (reply_bytes, True)),),
        device_s=decoding_s,
        encode_s=0.0,
        image_decode_s=decoding_s,
        bytes_up=request_bytes,
        bytes_down=reply_bytes,
        device_passes=0,
        cloud_passes=split.cloud_passes,
        cloud_call_pct=split.cloud_call_pct,
        kv_tokens=split.kv_tokens,
        context_bytes=(0,),
    )


def _context_bytes(ops: list[dict[str, int]], sizes_up: list[int], widths: Widths) -> tuple[int, ...]:
    """Return `SessionProgram.context_bytes`. A call without a pass of the cloud model finds the cache of the call before it."""
    features = [0] * len(sizes_up)
    ids: dict[int, int] = {}
    for op in ops:
        if op["kind"] == SEND:
            features[op["call"]] = sum(op[kind] * widths.bytes_of(kind) for kind in ("feature_vectors", "int8_vectors"))
        elif op["kind"] == FORWARD and op["side"] == CLOUD and op["what"] == ROLES.index("cloud"):
            ids.setdefault(op["call"], op["kv_tokens"])
    context, known, sent = [], 0, 0
    for call in range(len(sizes_up)):
        known = ids.get(call, known)
        context.append(sizes_up[0] + known * widths.bytes_of("ids") + sent if call else 0)
        sent += features[call]
    return tuple(context)


class _Pricer:
    """Prices single ops of one recording and keeps track of whether the first image token was found."""

    def __init__(self, recording: Recording, cloud: Costs, pricing: Pricing) -> None:
        self.pair = recording.widths
        self.cloud = cloud
        self.pricing = pricing
        self.first_found = False

    def work(self, op: dict[str, int], where: str) -> Work:
        """Return the work of a pass. Raises RecordingError for one without rows or new positions."""
        slots = self.pricing.caption_slots
        new = slots * op["caption"] + op["new_tokens"]
        if new < 1 or op["rows"] < 1:
            raise RecordingError(f"{where}: a pass of {op['rows']} rows and {new} new positions")
        # The last caption slot predicts the first token, so a caption in the pass adds one position with logits.
        logits = op["new_tokens"] + op["caption"] if op["logits_all"] else 1
        return Work.of_pass(op["rows"], new, slots * op["kv_caption"] + op["kv_tokens"], logits, op["hidden"])

    @staticmethod
    def drafter_seconds(costs: Costs | None, work: Work, where: str) -> float:
        """Return the seconds of a drafter's pass at its costs. Raises RecordingError if they are unknown."""
        if costs is None:
            raise RecordingError(f"{where}: the costs of a drafter are unknown")
        return costs.pass_seconds(work)

    def payload_bytes(self, op: dict[str, int]) -> int:
        """Return the payload of a message at the priced widths."""
        counts = {kind: op[kind] for kind in ELEMENT_KINDS}
        return repriced_bytes(op["payload_bytes"], counts, self.pair, self.pricing.widths)

    def down(self, op: dict[str, int], find_first: bool) -> Down:
        """Price a message to the device. The first one with token ids (or the image) contains the first image token."""
        first = find_first and not self.first_found and (op["ids"] > 0 or op["image_bytes"] > 0)
        self.first_found = self.first_found or first
        return self.payload_bytes(op), first


def _device_steps(
    ops: list[dict[str, int]], pricer: _Pricer, costs: Costs, find_first: bool
) -> tuple[list[DeviceStep], list[int], list[float]]:
    """Return the steps, the request bytes of each call, and the device seconds by kind of work (PASS to IMAGE_DECODE)."""
    steps: list[DeviceStep] = []
    sizes: list[int] = []
    awaited: set[int] = set()
    totals = [0.0] * 5
    seconds, first_s, sent = 0.0, -1.0, -1
    for index, op in enumerate(ops):
        kind, what, call, where = op["kind"], op["what"], op["call"], f"op {index}"
        if kind in (FORWARD, COMPUTE) and sent >= 0:  # computing after a send starts a new step
            steps.append((seconds, first_s, sent, -1))
            seconds, first_s, sent = 0.0, -1.0, -1
        if kind == FORWARD:
            role = _named(ROLES, what, where, "role")
            if role == "cloud":
                raise RecordingError(f"{where}: the device cannot run a pass of the cloud model")
            work = pricer.work(op, where)
            drafter = pricer.pricing.device_drafter
            cost = pricer.drafter_seconds(drafter, work, where) if role == "drafter" else costs.pass_seconds(work)
            seconds += cost
            totals[PASS] += cost
            if find_first and role == "device" and op["decides"] and not pricer.first_found:
                pricer.first_found, first_s = True, seconds
        elif kind == COMPUTE:
            name = _named(COMPUTE_KINDS, what, where, "compute kind")
            cost = costs.compute_seconds(name)
            seconds += cost
            totals[_PART[name]] += cost
        elif kind == SEND:
            if call != len(sizes):
                raise RecordingError(f"{where}: call {call} is sent where call {len(sizes)} is next")
            if sent >= 0:
                steps.append((seconds, first_s, sent, -1))
                seconds, first_s = 0.0, -1.0
            sent = call
            sizes.append(pricer.payload_bytes(op))
        elif kind == AWAIT:
            if not 0 <= call < len(sizes):
                raise RecordingError(f"{where}: call {call} is awaited before it is sent")
            if call in awaited:
                raise RecordingError(f"{where}: call {call} is awaited twice")
            awaited.add(call)
            steps.append((seconds, first_s, sent, call))
            seconds, first_s, sent = 0.0, -1.0, -1
        else:
            raise RecordingError(f"{where}: {_named(_KIND_NAMES, kind, where, 'kind')} is not an op of the device")
    if seconds > 0.0 or first_s >= 0.0 or sent >= 0:
        steps.append((seconds, first_s, sent, -1))
    return steps, sizes, totals


def _cloud_calls(
    ops: list[dict[str, int]], offset: int, sizes_up: list[int], pricer: _Pricer, find_first: bool
) -> list[CallProgram]:
    """Price the calls. offset: index of the first of these ops in the recording, for messages."""
    calls: list[CallProgram] = []
    lead: list[Down] = []
    items: list[Item] = []
    for index, op in enumerate(ops):
        kind, what, where = op["kind"], op["what"], f"op {offset + index}"
        if op["call"] != len(calls) or op["call"] >= len(sizes_up):
            found = f"call {op['call']} where call {len(calls)} of {len(sizes_up)} is next"
            raise RecordingError(f"{where}: the cloud works on {found}")
        if kind == FORWARD:
            role = _named(ROLES, what, where, "role")
            if role == "device":
                raise RecordingError(f"{where}: the cloud cannot run a pass of the device model")
            work = pricer.work(op, where)
            if role == "cloud":
                items.append((*work, pricer.cloud.pass_seconds(work), PASS, ()))
            else:  # a drafter is not batched
                items.append((0, 0, 0, 0, 0, pricer.drafter_seconds(pricer.pricing.drafter, work, where), OTHER, ()))
        elif kind == COMPUTE:
            name = _named(COMPUTE_KINDS, what, where, "compute kind")
            items.append((0, 0, 0, 0, 0, pricer.cloud.compute_seconds(name), _PART[name], ()))
        elif kind == EMIT:
            part = pricer.down(op, find_first)
            if items:
                items[-1] = (*items[-1][:ITEM_PARTS], (*items[-1][ITEM_PARTS], part))
            else:
                lead.append(part)
        elif kind == REPLY:
            calls.append((sizes_up[len(calls)], tuple(lead), tuple(items), pricer.down(op, find_first)))
            lead, items = [], []
        else:
            raise RecordingError(f"{where}: {_named(_KIND_NAMES, kind, where, 'kind')} is not an op of the cloud")
    if lead or items or len(calls) < len(sizes_up):
        raise RecordingError(f"call {len(calls)} of {len(sizes_up)} has no reply")
    return calls


def _named(names: tuple[str, ...], index: int, where: str, noun: str) -> str:
    if index >= len(names):
        raise RecordingError(f"{where}: unknown {noun} {index}; allowed: {', '.join(names)}")
    return names[index]

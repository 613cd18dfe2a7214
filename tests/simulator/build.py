"""Small hand-made recordings, costs whose times are binary fractions, and cases of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cloud.rules import CloudRules, CloudTier
from simulator.engine.case import CaseInputs, CaseResult
from simulator.engine.device import FleetPart
from simulator.engine.run import simulate
from simulator.engine.workload import Requests
from simulator.network.access import Network
from simulator.pricing.costs import Costs, Pricing, Work
from simulator.pricing.program import SessionProgram, compile_session
from simulator.protocol.messages import Widths
from simulator.protocol.ops import COMPUTE_KINDS, ROLES
from simulator.protocol.recording import (
    AWAIT,
    CLOUD,
    COMPUTE,
    DEVICE,
    EMIT,
    FORWARD,
    FROM_CLOUD,
    FROM_DEVICE,
    OP_DTYPE,
    REPLY,
    SCORES,
    SEND,
    Recording,
)

WIDTHS = Widths(dim=8, vocab_size=32, caption_dim=4, image_pixels=64, caption_slots=4)
Op = dict[str, int]


@dataclass
class UniformCosts:
    """Costs for tests: a pass takes `pass_s` plus `row_s` per row, other work a fixed time per kind."""

    pass_s: float = 1 / 64
    row_s: float = 0.0
    caption_encoder_s: float = 1 / 32
    phi_s: float = 0.0
    image_decoder_s: float = 1 / 16
    interval_samples_s: float = 0.0
    power_w: float = 2.0
    extrapolated: bool = False

    def pass_seconds(self, work: Work) -> float:
        return self.pass_s + self.row_s * work.rows

    def compute_seconds(self, kind: str) -> float:
        return float(getattr(self, f"{kind}_s"))


DEVICE_COSTS = UniformCosts(pass_s=1 / 256)
CLOUD_COSTS = UniformCosts(pass_s=1 / 64)
PRICING = Pricing(caption_slots=4, widths=WIDTHS, drafter=CLOUD_COSTS, device_drafter=DEVICE_COSTS)
# At 1 Mibit/s, 128 bytes take 2**-10 s: every time on these links is a binary fraction.
NETWORK = Network(up_bps=2.0**20, down_bps=2.0**21, up_delay_s=1 / 32, down_delay_s=1 / 16)


def op(kind: int, **columns: int) -> Op:
    return {"kind": kind, "call": -1, **columns}


def forward(role: str = "device", new: int = 1, kv: int = 0, **columns: int) -> Op:
    what = ROLES.index(role)
    defaults = {"what": what, "rows": 2, "new_tokens": new, "kv_tokens": kv, "kv_caption": 1, "decides": 1}
    return op(FORWARD, **{**defaults, **columns})


def prefill(role: str = "device", new: int = 0, **columns: int) -> Op:
    return forward(role, new, 0, caption=1, kv_caption=0, **columns)


def compute(kind: str) -> Op:
    return op(COMPUTE, what=COMPUTE_KINDS.index(kind))


def send(call: int, size: int = 128, **columns: int) -> Op:
    return op(SEND, call=call, payload_bytes=size, **columns)


def wait(call: int, optional: bool = False) -> Op:
    return op(AWAIT, call=call, what=int(optional))


def call(number: int, size: int = 128, optional: bool = False) -> list[Op]:
    return [send(number, size), wait(number, optional)]


def emit(size: int = 128, ids: int = 1) -> Op:
    return op(EMIT, payload_bytes=size, ids=ids)


def reply(size: int = 256, ids: int = 1, **columns: int) -> Op:
    return op(REPLY, payload_bytes=size, ids=ids, **columns)


def recording(
    device: Sequence[Op], cloud: Sequence[Sequence[Op]] = (), tokens: int = 4, first_by_cloud: bool = True
) -> Recording:
    """Return a recording from the ops of the device, in program order, and the ops of the cloud for each call."""
    rows: list[dict[str, Any]] = [{"side": DEVICE, **row} for row in device]
    rows += [{**row, "side": CLOUD, "call": number} for number, group in enumerate(cloud) for row in group]
    ops = np.zeros(len(rows), OP_DTYPE)
    for index, row in enumerate(rows):
        for column, value in row.items():
            ops[column][index] = value
    return Recording(
        ops=ops,
        tokens=np.zeros(tokens, np.uint16),
        decided_by=np.full(tokens, FROM_CLOUD if first_by_cloud else FROM_DEVICE, np.uint8),
        scores=np.zeros((tokens, len(SCORES)), np.float32),
        image=np.zeros((8, 8, 3), np.uint8),
        nll=np.zeros(tokens, np.float32),
        argmax=np.zeros(tokens, np.uint16),
        widths=WIDTHS,
    )


def program(
    device: Sequence[Op],
    cloud: Sequence[Sequence[Op]] = (),
    first_by_cloud: bool = True,
    device_costs: Costs = DEVICE_COSTS,
    cloud_costs: Costs = CLOUD_COSTS,
) -> SessionProgram:
    return compile_session(recording(device, cloud, first_by_cloud=first_by_cloud), device_costs, cloud_costs, PRICING)


def one_forward_calls(count: int, device_passes: int = 1, **costs: Any) -> SessionProgram:
    """Return a program that repeats `count` times: device passes, then a call with one cloud pass."""
    device = [x for number in range(count) for x in [*[forward()] * device_passes, *call(number)]]
    return program(device, [[forward("cloud"), reply()] for _ in range(count)], **costs)


def base(tokens: int, **costs: Any) -> SessionProgram:
    """Return the cloud alone, streamed: caption encoder, then for each token a pass and a part; the last part is the reply."""
    passes = [prefill("cloud"), *(forward("cloud", 1, n) for n in range(tokens - 1))]
    cloud = [compute("caption_encoder"), *(x for each in passes for x in (each, emit()))][:-1]
    return program([*call(0), compute("image_decoder")], [[*cloud, reply(128)]], **costs)


def arrivals(*requests: tuple[float, int, int]) -> Requests:
    """Return requests from (time in s, device, prompt)."""
    columns = list(zip(*requests, strict=True)) or [(), (), ()]
    return Requests(np.array(columns[0], float), np.array(columns[1], np.int64), np.array(columns[2], np.int64))


def case(programs: Sequence[SessionProgram], requests: Requests, **changes: Any) -> CaseResult:
    """Simulate requests on a small default fleet; `changes` are fields of FleetPart, CloudTier (costs: `cloud`) and CaseInputs."""
    part = FleetPart(
        changes.pop("devices", 8),
        programs,
        changes.pop("device", DEVICE_COSTS),
        changes.pop("network", NETWORK),
        slo_s=changes.pop("slo_s", math.inf),
    )
    tier = CloudTier(
        changes.pop("cloud", CLOUD_COSTS),
        changes.pop("replicas", 1),
        changes.pop("max_batch", 16),
        changes.pop("rules", CloudRules()),
        changes.pop("companion", None),
    )
    return simulate(CaseInputs(changes.pop("parts", [part]), [tier], requests, **{"seed": 0, **changes}))

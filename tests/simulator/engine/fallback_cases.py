"""Sessions with calls, their branches after a missed reply, and a helper that simulates a case of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.engine.case import CaseResult
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.workload import Requests
from simulator.experiment.branches import abandoned
from simulator.network.access import Network
from simulator.network.wire import Capacity
from simulator.pricing.program import SessionProgram
from simulator.results.columns import PARTS
from tests.simulator.build import (
    DEVICE_COSTS,
    NETWORK,
    call,
    case,
    compute,
    forward,
    program,
    reply,
)

# A request of 128 bytes, a reply of 256 bytes, and a pass of 1/64 s in between.
UP_S, DOWN_S = (
    2.0**-10 + 1 / 32,
    2.0**-10 + 1 / 16,
)
CALL_S = UP_S + 1 / 64 + DOWN_S
DEAD = Capacity([0.0], [0.0], 1.0)


def asking(count: int, optional: bool = True) -> SessionProgram:
    """Return a program of `count` times a device pass and a call with one cloud pass, then the image decoder."""
    device = [row for number in range(count) for row in (forward(), *call(number, optional=optional))]
    return program([*device, compute("image_decoder")], [[forward("cloud"), reply()] for _ in range(count)])


def giving_up(at: int, passes: int = 3) -> SessionProgram:
    """Return the branch of `asking` that gives up the reply to call `at` and makes `passes` more passes on the device."""
    device = [row for number in range(at + 1) for row in (forward(), *call(number, optional=True))]
    cloud = [[forward("cloud", decides=int(number < at)), reply()] for number in range(at + 1)]
    return program([*device, *[forward()] * passes, compute("image_decoder")], cloud)


Branches = dict[tuple[int, int], SessionProgram]


def run(
    programs: Sequence[SessionProgram],
    requests: Requests,
    rule: Fallback | None,
    branches: Branches | None = None,
    network: Network = NETWORK,
    devices: int = 8,
    **changes: Any,
) -> CaseResult:
    ends = {key: abandoned(programs[key[0]], branch, key[1]) for key, branch in (branches or {}).items()}
    part = FleetPart(devices, programs, DEVICE_COSTS, network, abandoned=ends)
    return case(programs, requests, parts=[part], fallback=rule, **changes)


def equal(one: CaseResult, other: CaseResult) -> bool:
    return all(
        np.array_equal(one.columns[name], other.columns[name], equal_nan=True)
        for name in one.columns
        if name != "timed_out_call"
    )


def parts_of(result: CaseResult, request: int = 0) -> dict[str, float]:
    return {name: float(result.columns[name][request]) for name in PARTS if result.columns[name][request]}

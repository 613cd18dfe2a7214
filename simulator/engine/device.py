"""A device of a fleet: when it is free, its links, its radio, its temperature."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulator.engine.thermal import ThermalState, Throttling
from simulator.network.access import AccessNetwork, Network
from simulator.pricing.costs import Costs
from simulator.pricing.program import SessionProgram

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class FleetPart:
    """Devices of one kind: how many, one program per prompt priced for them, their costs and network. priority: higher is served
    first by a queue of that discipline. slo_s: after a request comes its deadline. throttling: of a device that grows hot.
    broken_off: the programs of sessions that stopped waiting, by prompt and call.
    """

    devices: int
    programs: Sequence[SessionProgram]
    device: Costs
    network: Network
    priority: int = 0
    slo_s: float = math.inf
    throttling: Throttling | None = None
    abandoned: Mapping[tuple[int, int], SessionProgram] = field(default_factory=dict)


class Device:
    """A device: taken until `free_s`. horizon_s: before it, only the one open session can ask anything of it. ahead: whether it may
    work ahead of the clock at all, which it must not where other devices queue for its wires.
    """

    __slots__ = (
        "down",
        "free_s",
        "lost_s",
        "may_run_ahead",
        "next_request_s",
        "number",
        "open_sessions",
        "part",
        "radio",
        "reopened_s",
        "safe_until_s",
        "thermal",
        "up",
    )

    def __init__(self, number: int, part: FleetPart, access: AccessNetwork, may_run_ahead: bool = True) -> None:
        self.number = number
        self.part = part
        self.up, self.down, self.radio = access.links(number)
        self.free_s = 0.0
        self.open_sessions = 0
        self.next_request_s = math.inf
        self.thermal = None if part.throttling is None else ThermalState(part.throttling)
        self.lost_s = (
            self.reopened_s
        ) = -math.inf  # when a crash last took the connection, and when the device began another one
        self.may_run_ahead = may_run_ahead and access.network.devices_per_cell == 1
        self.safe_until_s = -math.inf

    def count(self, change: int) -> None:
        """A session opens (+1) or ends (-1)."""
        self.open_sessions += change
        self.safe_until_s = self.next_request_s if self.open_sessions == 1 and self.may_run_ahead else -math.inf

"""Devices of a fleet: processor, links, radio and temperature of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from simulator.cloud.cloud import Cloud
from simulator.engine.thermal import ThermalState, Throttling
from simulator.network.access import AccessNetwork, Network
from simulator.pricing.costs import Costs
from simulator.pricing.program import SessionProgram


@dataclass(frozen=True)
class FleetPart:
    """Devices of one kind.

    Attributes:
        devices: number of devices.
        programs: one per prompt, priced for these devices.
        device: compute costs.
        priority: higher values are served first with the priority queue.
        slo_s: seconds from a request to its deadline.
        throttling: thermal throttling, None for none.
        abandoned: programs of sessions that stopped waiting, by (prompt, call).
        tier: index of the cloud that serves these devices.
    """

    devices: int
    programs: Sequence[SessionProgram]
    device: Costs
    network: Network
    priority: int = 0
    slo_s: float = math.inf
    throttling: Throttling | None = None
    abandoned: Mapping[tuple[int, int], SessionProgram] = field(default_factory=dict)
    tier: int = 0


class Device:
    """One device, which serves its sessions first come, first served.

    Attributes:
        cloud: the cloud that serves it.
        free_s: time at which its processor is free.
        safe_until_s: until this time only its one open session can use it, so that session may run ahead of the clock.
        may_run_ahead: whether that is ever allowed; not if other devices queue for its wires.
        lost_s: time at which a crash last broke the connection.
        reopened_s: time at which the device last opened a new connection after a crash.
    """

    __slots__ = (
        "cloud",
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

    def __init__(
        self, number: int, part: FleetPart, access: AccessNetwork, cloud: Cloud, may_run_ahead: bool = True
    ) -> None:
        self.number = number
        self.cloud = cloud
        self.part = part
        self.up, self.down, self.radio = access.links(number)
        self.free_s = 0.0
        self.open_sessions = 0
        self.next_request_s = math.inf
        self.thermal = None if part.throttling is None else ThermalState(part.throttling)
        self.lost_s = self.reopened_s = -math.inf
        self.may_run_ahead = may_run_ahead and not access.network.shared
        self.safe_until_s = -math.inf

    def count(self, change: int) -> None:
        """Count a session that opens (+1) or ends (-1), and update `safe_until_s`."""
        self.open_sessions += change
        self.safe_until_s = self.next_request_s if self.open_sessions == 1 and self.may_run_ahead else -math.inf

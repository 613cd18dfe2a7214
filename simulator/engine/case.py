"""Inputs and result of one simulated case."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.cloud.rules import CloudRules
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.workload import ClosedLoop, Requests
from simulator.network.access import Network
from simulator.pricing.costs import Costs
from simulator.pricing.program import SessionProgram
from simulator.results.timeline import Span


@dataclass(frozen=True)
class CloudTier:
    """One of several clouds, which never share work.

    Attributes:
        costs: compute costs.
        replicas: at the begin.
        max_batch: sessions per iteration.
        rules: how it schedules work.
        companion: costs of the device's model, where that runs here as well.
    """

    costs: Costs
    replicas: int
    max_batch: int
    rules: CloudRules = field(default_factory=CloudRules)
    companion: Costs | None = None


@dataclass(frozen=True)
class CaseInputs:
    """Everything that decides the result of a case.

    Attributes:
        programs: one per prompt, priced with the same `cloud`.
        devices: in the fleet.
        max_batch: sessions per cloud iteration.
        seed: of all random draws of links, cloud and fallback.
        timeline_sessions: so many requests, from the first on, keep spans.
        rules: how the cloud schedules work.
        until_s: the simulation ends then at the latest, with requests still open.
        slo_s: as in `FleetPart`.
        sample_every_s: interval of `CaseResult.samples`.
        warmup_s: `CaseResult.utilisation` is measured from here on.
        duration_s: until here, or until the last event where that is later.
        fleet: parts of a fleet of several kinds, numbered one after another; programs, device, network and slo_s are then unused.
        fallback: what devices do when a reply is late, None for waiting.
        companion: costs of the device's model in the cloud, of sessions whose device's program runs there, too.
        tiers: clouds that parts of the fleet are sent to; cloud, companion, replicas, max_batch and rules are then unused.
    """

    programs: Sequence[SessionProgram]
    device: Costs
    cloud: Costs
    network: Network
    devices: int
    replicas: int
    max_batch: int
    arrivals: Requests | ClosedLoop
    seed: int
    timeline_sessions: int = 0
    rules: CloudRules = field(default_factory=CloudRules)
    until_s: float = math.inf
    slo_s: float = math.inf
    sample_every_s: float = math.inf
    warmup_s: float = 0.0
    duration_s: float = 0.0
    fleet: Sequence[FleetPart] = ()
    fallback: Fallback | None = None
    companion: Costs | None = None
    tiers: Sequence[CloudTier] = ()

    def parts(self) -> Sequence[FleetPart]:
        """`fleet`, or the one kind of devices that stands for it."""
        return self.fleet or [FleetPart(self.devices, self.programs, self.device, self.network, 0, self.slo_s)]

    def clouds(self) -> Sequence[CloudTier]:
        """`tiers`, or the one cloud that stands for them."""
        return self.tiers or [CloudTier(self.cloud, self.replicas, self.max_batch, self.rules, self.companion)]


@dataclass(frozen=True)
class CaseResult:
    """Result of a case.

    `columns` holds arrays with one entry per answered request, in order of request. The ten `PARTS` lie along the critical path
    of a request and add up to its latency_s = done_s - requested_s:

    - connect_s: opening of the device's connection, for requests that wait for it.
    - encode_s, image_decode_s: caption encoder and image decoder, wherever they run.
    - device_queue_s, device_compute_s: waiting for the device, and passes on it, throttling included.
    - uplink_s, downlink_s: messages on their way, the queue for the wire included.
    - cloud_queue_s, cloud_compute_s: outside and inside an iteration. A call that waits for earlier calls of its session books
      theirs; of a call sent before its await, only the time from the await on counts.
    - wait_s: waiting for a sleeping radio, and waits in vain, for replies given up or asked for again.

    Other columns (int64: request, device, prompt, calls, device_passes, cloud_passes, bytes_up, bytes_down, timed_out_call,
    retries; float64: the rest):

    - decode_s = latency_s - connect_s - encode_s - image_decode_s. cloud_call_pct: as recorded.
    - bytes_up, bytes_down: payload, repetitions after a crash or a retry included.
    - first_token_s: from the request until the device knows the first image token; NaN where the session makes none.
    - device_energy_j: computing and radio. The radio's silence after a message is booked to the request of that message.
    - device_static_j: what of it the radio uses without carrying a message: promotions, and the silence after messages.
      device_active_j: the rest of it, computing and transfers.
    - cloud_gpu_s: iteration seconds times the session's share of rows, and its own other work.
    - timed_out_call: the call that was given up, -1 for none. retries: how often open requests were sent again.

    Figures of the cloud are those of all its tiers together.

    Attributes:
        events: SimPy events processed.
        cloud_busy_s: seconds in iterations until the last event, per replica; jobs of other tenants included.
        makespan_s: time of the last event; NaN without any.
        mean_batch: sessions per cloud iteration; NaN without any.
        cloud_up_s: seconds up until the last event, per replica.
        utilisation: seconds in iterations over seconds up, summed over replicas, from `warmup_s` to `duration_s` or the last event,
            whichever is later; NaN without requests.
        refused: requests that the cloud did not take.
        unfinished: requests still open at `until_s`.
        samples: the cloud at equal intervals (`simulator.cloud.cloud.SAMPLED`), arrays of equal length; empty without sampling.
        missing: (prompt, call) of sessions that stopped waiting and whose program is not in `FleetPart.abandoned`. The result is
            then provisional: the simulation is to be repeated with these programs.
    """

    columns: dict[str, np.ndarray]
    spans: list[Span]
    events: int
    cloud_busy_s: list[float]
    makespan_s: float
    mean_batch: float
    cloud_up_s: list[float]
    utilisation: float
    refused: int = 0
    unfinished: int = 0
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[tuple[int, int], ...] = ()

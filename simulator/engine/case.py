"""Inputs and result of one simulated case."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.cloud.rules import CloudTier
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.workload import ClosedLoop, Requests
from simulator.results.timeline import Span


@dataclass(frozen=True)
class CaseInputs:
    """Everything that determines the result of a case.

    Attributes:
        parts: the devices of the fleet by kind, numbered consecutively.
        tiers: the clouds; they do not share work.
        arrivals: requests, or devices that ask again and again.
        seed: seed of all random draws of links, cloud and fallback.
        timeline_sessions: number of requests, from the first on, whose spans are kept.
        until_s: latest end of the simulation; requests may still be open.
        sample_every_s: interval of `CaseResult.samples`.
        warmup_s: start of the measurement of `CaseResult.utilisation`.
        duration_s: its end, or the last event if that is later.
        fallback: what devices do when a reply is late; None: they wait.
    """

    parts: Sequence[FleetPart]
    tiers: Sequence[CloudTier]
    arrivals: Requests | ClosedLoop
    seed: int
    timeline_sessions: int = 0
    until_s: float = math.inf
    sample_every_s: float = math.inf
    warmup_s: float = 0.0
    duration_s: float = 0.0
    fallback: Fallback | None = None

    @property
    def devices(self) -> int:
        """Number of devices in the fleet."""
        return sum(part.devices for part in self.parts)


@dataclass(frozen=True)
class CaseResult:
    """Result of a case.

    `columns` holds arrays with one entry per answered request, in order of requests. The ten `PARTS` lie along the critical path
    of a request and add up to its latency_s = done_s - requested_s:

    - connect_s: opening the device's connection, for requests that wait for it.
    - encode_s, image_decode_s: caption encoder and image decoder, wherever they run.
    - device_queue_s, device_compute_s: waiting for the device, and passes on it, including throttling.
    - uplink_s, downlink_s: message transfers, including the queue for the wire.
    - cloud_queue_s, cloud_compute_s: outside and inside an iteration. A call that waits for earlier calls of its session books
      theirs; of a call sent before its await, only the time from the await on counts.
    - wait_s: waiting for a sleeping radio, and for replies that were given up or requested again.

    Other columns (int64: request, device, prompt, calls, device_passes, cloud_passes, bytes_up, bytes_down, timed_out_call,
    retries; float64: the rest):

    - decode_s = latency_s - connect_s - encode_s - image_decode_s. cloud_call_pct: as recorded.
    - bytes_up, bytes_down: payload, including repetitions after a crash or a retry.
    - first_token_s: from the request until the device has the first image token; NaN if the session has none.
    - device_energy_j: computing and radio. The radio's tail after a message is assigned to the request of that message.
    - device_static_j: the part that the radio uses without carrying a message: promotions, and tails after messages.
      device_active_j: the rest, computing and transfers.
    - cloud_gpu_s: iteration seconds times the session's share of rows, plus its other work.
    - timed_out_call: the call that was given up, -1 for none. retries: number of times that open requests were sent again.

    Figures of the cloud cover all its tiers together.

    Attributes:
        events: SimPy events processed.
        cloud_busy_s: seconds in iterations until the last event, per replica, including jobs of other tenants.
        makespan_s: time of the last event; NaN without any.
        mean_batch: sessions per cloud iteration; NaN without any.
        cloud_up_s: seconds up until the last event, per replica.
        utilisation: seconds in iterations divided by seconds up, summed over replicas, from `warmup_s` to `duration_s` or the last
            event, whichever is later; NaN without requests.
        refused: number of requests that the cloud refused.
        unfinished: number of requests still open at `until_s`.
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

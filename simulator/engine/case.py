"""What one simulated case needs, and what it yields."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.cloud.rules import CloudRules
from simulator.engine.device import FleetPart
from simulator.engine.fallback import Fallback
from simulator.engine.measures import Span
from simulator.engine.workload import Arrivals, ClosedLoop
from simulator.network.access import Network
from simulator.pricing.costs import Costs
from simulator.pricing.program import SessionProgram

PARTS = (
    "connect_s",
    "encode_s",
    "device_queue_s",
    "device_compute_s",
    "uplink_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "downlink_s",
    "wait_s",
    "image_decode_s",
)


@dataclass(frozen=True)
class CaseInputs:
    """Everything that decides a case. programs: one per prompt, compiled with the same `cloud`. devices: in the fleet.
    max_batch: sessions per cloud iteration. seed: of all that chance does to the links. timeline_sessions: requests, from the first on, to
    keep spans of. rules: how the cloud takes up work. until_s: the simulation ends then at the latest, with requests under way.
    sample_every_s: the cloud is looked at that often (`CaseResult.samples`). warmup_s: before it, replicas are not counted
    (`CaseResult.mean_replicas`). slo_s: as in `FleetPart`. fleet: where its devices are
    of several kinds, numbered part after part; then programs, device, network and slo_s are not looked at. fallback: what
    devices do whose reply is late, None for waiting.
    """

    programs: Sequence[SessionProgram]
    device: Costs
    cloud: Costs
    network: Network
    devices: int
    replicas: int
    max_batch: int
    arrivals: Arrivals | ClosedLoop
    seed: int
    timeline_sessions: int = 0
    rules: CloudRules = field(default_factory=CloudRules)
    until_s: float = math.inf
    slo_s: float = math.inf
    sample_every_s: float = math.inf
    warmup_s: float = 0.0
    fleet: Sequence[FleetPart] = ()
    fallback: Fallback | None = None


@dataclass(frozen=True)
class CaseResult:
    """What came of a case. columns: arrays with one entry per answered request, in order of request:

    - request, device, prompt, calls, device_passes, cloud_passes, bytes_up, bytes_down (payload): int64; the rest float64. bytes_up
      holds what was sent again after a crash, device_compute_s what a hot device took longer.
    - requested_s, done_s; latency_s = done_s - requested_s; the ten PARTS of it along the critical path, which add up
      to it; decode_s = latency_s - connect_s - encode_s - image_decode_s; cloud_call_pct as recorded.
    - first_token_s: from the request until the device knows the first image token, by a message or by its own pass; the
      picture counts as its first token. NaN where the session makes none.
    - device_energy_j: computing, and the radio: transfers, promotions, and the silence after each message until the next one or until
      the radio is idle, booked to the request of that message. cloud_gpu_s: iteration seconds times the session's share of
      rows, and its own other work.
    - given_up: int64, the call whose reply the device did not wait for, -1 for none; its program is that of the session broken off
      there. retries: int64, how often the device sent its open requests again. What was sent again, or not sent, is in the bytes.

    The parts: encode_s and image_decode_s are the session's own such work, wherever it runs. uplink_s and downlink_s
    hold the wait for the wire. cloud_queue_s and cloud_compute_s are outside and inside an iteration; a call that waits
    for earlier calls of its session in the cloud books theirs. Of a call already under way when its await begins, only
    the rest counts. connect_s is the opening of the device's connection, for requests that wait for it; wait_s is waiting for
    a sleeping radio, and all of a wait that was in vain: for a reply that the device gave up, or asked for again.

    events: SimPy events processed. cloud_busy_s: per replica. makespan_s: when the last event happened. mean_batch:
    sessions per cloud iteration. The last two are NaN where nothing happened. cloud_up_s: per replica, until then.
    mean_replicas: up, from the first request or `warmup_s`, whichever is later, until then; NaN where nothing happened since. refused:
    requests that the cloud did not take. unfinished: requests under way when the simulation was ended at `until_s`.
    samples: the cloud at equal intervals, see `simulator.cloud.cloud.SAMPLED`; arrays of equal length, empty where none were asked for.
    missing: prompt and call of sessions that stopped waiting and whose program is not in `abandoned`: this result is none then, but
    stands in for one to find out what else is missing.
    """

    columns: dict[str, np.ndarray]
    spans: list[Span]
    events: int
    cloud_busy_s: list[float]
    makespan_s: float
    mean_batch: float
    cloud_up_s: list[float]
    mean_replicas: float
    refused: int = 0
    unfinished: int = 0
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    missing: tuple[tuple[int, int], ...] = ()

"""What a session measures of itself, and its spans for the timeline."""

import math
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    pass

_NEVER = math.inf
TRACKS = ("device", "uplink", "queue", "cloud", "downlink")  # of a span
ID_BYTES = 2  # of a token id on the wire


class Span(NamedTuple):
    """What a session did or waited for. track: one of TRACKS; uplink and downlink run from sending to arrival."""

    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float


# What each session measures for itself; everything else follows from its program.
MEASURED = (
    "done_s",
    "first_token_s",
    "connect_s",
    "device_queue_s",
    "uplink_s",
    "downlink_s",
    "wait_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "encode_s",
    "image_decode_s",
    "gpu_share_s",
    "throttled_s",
    "resent_bytes",
)
measured_of = attrgetter(*MEASURED)

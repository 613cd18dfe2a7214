"""The per-session measurements of a run, and the spans of its timeline."""

import math
from operator import attrgetter
from typing import NamedTuple

NEVER = math.inf  # when a message arrives that a dead link never carries
TRACKS = ("device", "uplink", "queue", "cloud", "downlink")  # of a span
ID_BYTES = 2  # of a token id on the wire


class Span(NamedTuple):
    """One bar of the timeline: work or a wait of a session.

    Attributes:
        track: one of TRACKS; uplink and downlink run from sending to arrival.
        args: more about it: "call" (of the session), "bytes" (payload), "replica", "batch" (sessions in the iteration), "requests"
            (those of them), "rows", "tokens" and "kv_tokens" (of the pass).
    """

    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float
    args: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


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

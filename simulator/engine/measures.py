"""The per-session measurements of a run."""

import math
from operator import attrgetter

NEVER = math.inf  # arrival time of a message that the link never carries
ID_BYTES = 2  # of a token id on the wire


# Parts that a session books while its device waits for a reply.
AWAITED = (
    "connect_s",
    "uplink_s",
    "downlink_s",
    "wait_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "encode_s",
    "image_decode_s",
)
# Measurements of each session; all other columns follow from its program.
MEASURED = ("done_s", "first_token_s", "device_queue_s", *AWAITED, "gpu_share_s", "throttled_s", "resent_bytes")
measured_of = attrgetter(*MEASURED)

"""The columns of requests.parquet and summary.csv."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from simulator.results.statistics import Interval, bounded

RUN_FORMAT = 1

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
_TIMES = ("requested_s", "done_s", "latency_s", "decode_s", "first_token_s")
USE = (
    "calls",
    "device_passes",
    "cloud_passes",
    "cloud_call_pct",
    "bytes_up",
    "bytes_down",
    "device_energy_j",
    "cloud_gpu_s",
)
ENERGY = ("device_active_j", "device_static_j")  # always the last columns
_FALLBACK = ("retries", "fallback_pct", "fallback_cloud_nll_cost")
# Columns with int64 values; the others are float64.
COUNTS = (
    "request",
    "device",
    "prompt",
    "image",
    "calls",
    "device_passes",
    "cloud_passes",
    "bytes_up",
    "bytes_down",
    "retries",
)
REQUEST_COLUMNS = ("request", "device", "prompt", "image", *_TIMES, *PARTS, *USE, *_FALLBACK, *ENERGY)
QUALITY_COLUMNS = ("cloud_nll", "cloud_greedy_pct", "base_greedy_pct")  # of an image; a case may have more


class Judged(NamedTuple):
    """Names of the quality columns from a judge: `align` of an image, `fd` and `f1` of a set of images."""

    align: str
    fd: str
    f1: str


def judged(subject: str) -> Judged:
    """Return the columns of the judge of a subject, see `simulator.protocol.pairs.SUBJECTS`."""
    return Judged(*(f"{name}_{subject}" for name in Judged._fields))


JUDGED = tuple(judged(subject) for subject in ("scenes", "photos"))


def judged_in(names: Iterable[str]) -> Judged:
    """Return the columns of the judge that gave any of these columns; those of scenes if none did."""
    there = set(names)
    return next((columns for columns in JUDGED if there.intersection(columns)), JUDGED[0])


# Quality columns that a search can optimise: -1: lower is better, 1: higher is better. Not cloud_nll, which is two-sided.
BETTER = {name: sign for columns in JUDGED for name, sign in ((columns.align, 1), (columns.f1, 1), (columns.fd, -1))}
SETTINGS = ("threshold", "budget")  # of a method, given or calibrated
RANGES = {  # of quantities with a limited range; columns that end in _pct are in [0, 100]
    "latency_mean_s": (0.0, math.inf),
    "speedup": (0.0, math.inf),
    "cloud_nll": (0.0, math.inf),
    **{columns.align: (0.0, 1.0) for columns in JUDGED},
    **{columns.fd: (0.0, math.inf) for columns in JUDGED},
    **{columns.f1: (0.0, 1.0) for columns in JUDGED},
    "fid": (0.0, math.inf),
    "f1": (0.0, 1.0),
}


def interval_columns(name: str) -> tuple[str, str]:
    """Return the names of the columns with the ends of a 95 % interval: speedup -> speedup_lo, speedup_hi; x_s -> x_lo_s, x_hi_s."""
    stem, unit = (name.removesuffix("_s"), "_s") if name.endswith("_s") else (name, "")
    return f"{stem}_lo{unit}", f"{stem}_hi{unit}"


def with_ends(name: str, interval: Interval) -> dict[str, float]:
    """Return the columns of a quantity and of its interval, which is cut to the range of the quantity."""
    lowest, highest = (0.0, 100.0) if name.endswith("_pct") else RANGES.get(name, (-math.inf, math.inf))
    return dict(zip((name, *interval_columns(name)), bounded(interval, lowest, highest), strict=True))


# Columns of queue.parquet, after case.
SAMPLED = ("time_s", "queued", "admission", "serving", "sessions", "replicas_up")
# Columns of tiers.csv, after those that name the case. They are defined as in summary.csv, over the requests of the tier's devices.
TIER_COLUMNS = (
    "tier",
    "devices",
    "images",
    "latency_mean_s",
    "latency_mean_lo_s",
    "latency_mean_hi_s",
    "latency_p50_s",
    "latency_p95_s",
    "latency_p99_s",
    "uplink_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "downlink_s",
    "cloud_gpu_s",
    "cost_usd",
)

_MEAN = "mean over requests of the column of this name in requests.parquet: "

COLUMNS: dict[str, str] = {
    "case": "index of the case: one method with one choice of swept values",
    "method": "label of the method: its name with the settings that distinguish it, or the scenario's label",
    "method_name": "name of the method, such as base, independent of its label",
    "images": "requests answered, each with one image; those before workload.warmup_s are in requests.parquet, but in no other figure",
    "latency_mean_s": "mean of latency_s = done_s - requested_s: from the request to the decoded image on the device",
    "latency_mean_lo_s, latency_mean_hi_s": "95 % interval of latency_mean_s by batch means: requests in order of arrival cut "
    "into k = min(requests, 20) runs, mean +- t(k - 1) sqrt(k / (k - 1) sum_j (sum over run j of (x - mean))^2) / requests; "
    "cut at 0; NaN below two requests",
    "latency_p50_s, latency_p95_s, latency_p99_s": "percentiles of latency_s, linear between order statistics",
    "decode_s": _MEAN + "the part that papers measure, without caption encoder and image decoder",
    "first_token_s": _MEAN + "from requested_s until the device holds the first image token",
    "speedup": "mean latency_s of base over mean latency_s of the method, both over the requests that both answered; "
    "base is the first base case with the same swept values, those of methods.* aside; NaN without base",
    "speedup_lo, speedup_hi": "95 % interval of speedup, paired by request: delta method, the batch-means half-width of "
    "base latency_s - speedup * latency_s, over mean latency_s; cut at 0",
    "latency_minus_fastest_s": "mean over the requests that both answered of latency_s minus that of the method with the lowest "
    "latency_mean_s under the same swept values, those of methods.* aside",
    "latency_minus_fastest_lo_s, latency_minus_fastest_hi_s": "95 % interval of latency_minus_fastest_s, paired by request, by "
    "batch means as for latency_mean_s",
    "connect_s": _MEAN
    + "opening the device's connection, for requests that wait for it: the first, and those after a silence of idle_timeout_s",
    "encode_s": _MEAN + "the caption encoder",
    "device_queue_s": _MEAN + "waiting until the device is free",
    "device_compute_s": _MEAN + "forward passes on the device",
    "uplink_s": _MEAN + "uplink messages: queueing, serialisation, propagation, retransmission",
    "cloud_queue_s": _MEAN + "waiting for a replica or a batch",
    "cloud_compute_s": _MEAN + "forward passes in the cloud",
    "downlink_s": _MEAN + "downlink messages, likewise",
    "wait_s": _MEAN + "waiting for the radio to wake up, and for replies that missed their deadline. The ten parts lie "
    "on the critical path and add up to latency_s",
    "image_decode_s": _MEAN + "the image decoder",
    "calls": _MEAN + "requests that the device sent to the cloud",
    "device_passes": _MEAN + "forward passes on the device, of its model or of a drafter",
    "cloud_passes": _MEAN + "cloud forward passes that decide tokens",
    "cloud_call_pct": _MEAN + 'cloud passes that decide tokens per image token, in percent (the paper\'s "Cloud Call")',
    "bytes_up": _MEAN + "payload bytes sent by the device, framing not counted",
    "bytes_down": _MEAN + "payload bytes sent to the device, framing not counted",
    "device_energy_j": _MEAN
    + "seconds of computing on the device times its power, and the radio where the network has one: transfers, "
    "promotions, and the tail after each message until the next one or until the radio is idle",
    "device_active_j": _MEAN + "part of device_energy_j that is spent on computing and on transfers",
    "device_static_j": _MEAN
    + "part of device_energy_j that the radio uses without a transfer: promotions and tails; the idle power of "
    "the device is unknown and in no column",
    "cloud_gpu_s": _MEAN
    + "GPU time of the request: of each batched pass its share of the rows (two rows with guidance), plus its "
    "caption encoding and image decoding; work lost in a crash is not counted",
    "retries": _MEAN + "times that the device opened a new connection and sent its open requests again",
    "fallback_pct": _MEAN + "tokens, in percent, that the device decided alone after a missed deadline",
    "fallback_cloud_nll_cost": "mean over prompts of the mean over their requests with a fallback of cloud_nll of the image minus that of "
    "the same prompt's image without one; read like cloud_nll; NaN without any fallback",
    "fallback_cloud_nll_cost_lo, fallback_cloud_nll_cost_hi": "95 % Student t interval over prompts; NaN below two",
    "cost_usd": "cloud_gpu_s * price per GPU hour / 3600, per image; NaN without a price",
    "cloud_utilisation": "seconds that replicas computed over seconds that they were up, from workload.warmup_s to duration_s, or to the "
    "last event if that is later, including work for other tenants and for unanswered requests; 1 means always busy; NaN for a "
    "sequential workload, where the cloud waits between requests by definition",
    "refused": "requests that the cloud rejected, including those of the warm-up; no other column counts them",
    "unfinished": "requests still open when the run stopped at twice the workload's duration_s, including those of the warm-up; "
    "no other column counts them",
    "goodput_per_s": "requests answered within the slo_s of their device (its kind's, else workload.slo_s), per second of warmup_s to "
    "duration_s; NaN without any SLO",
    "under_way_mean": "sum of latency_s over the seconds from warmup_s to duration_s, or to the last done_s where that is later: mean "
    "number of open requests (Little's law); NaN for a sequential workload or without requests",
    "cloud_waiting_mean": "the same for cloud_queue_s: mean number of requests that wait in the cloud",
    "distinct_images": "number of different images: a method makes one per prompt, however often it is requested, and a further one for "
    "each call whose reply missed the deadline. A mean over distinct images is a mean over prompts: of several images of a prompt each is "
    "weighted by the requests that received it",
    "cloud_nll": "mean over distinct images of the negative log-likelihood under the cloud model, in nats per token. It is two-sided: a "
    "value far above or below base's means different images. Lower is not better: greedy device tokens alone lower it",
    "cloud_nll_minus_base": "mean over the distinct images of prompts that both have of cloud_nll minus base's for the same "
    "prompt; NaN without base",
    "cloud_nll_minus_base_lo, cloud_nll_minus_base_hi": "95 % Student t interval of cloud_nll_minus_base, paired by prompt; NaN "
    "below two prompts",
    "align_minus_base": "as cloud_nll_minus_base, of the agreement with the caption (align_...); NaN without a judge",
    "align_minus_base_lo, align_minus_base_hi": "95 % Student t interval of align_minus_base, paired by prompt; NaN below two prompts",
    "cloud_greedy_pct": "mean over distinct images of the share of tokens, in percent, equal to the cloud's arg max given the "
    "method's own preceding tokens",
    "base_greedy_pct": "mean over distinct images of the share of positions, in percent, equal to base's greedy tokens for the "
    "same prompt",
    "align_scenes": "mean over distinct images of the share of the caption's attributes that the scene network reads from the image: "
    "presence, shape, colour and size of every object; texture and colour of the background; NaN where the caption or the "
    "image is not a scene",
    "fd_scenes": "Fréchet distance of the distinct images to real renders, in the features of the scene network; it falls with the number "
    "of images, so compare equal numbers; NaN with fewer images than provenance.json says under quality",
    "f1_scenes": "harmonic mean of improved precision and recall (k = 3) of the distinct images and as many real renders, in the same "
    "features; NaN with fewer images than provenance.json says under quality",
    "fd_scenes_lo, fd_scenes_hi, f1_scenes_lo, f1_scenes_hi": "95 % interval for this number of distinct images, by subsampling halves of "
    "them without replacement; the real renders are fixed",
    "align_photos": "mean over distinct images of the share of type and colour of the caption that the photo network reads from the image; "
    "NaN where the caption names neither a type nor a colour that it knows",
    "fd_photos": "Fréchet distance of the distinct images to held-out photographs, in the features of the photo network; it falls with the "
    "number of images, so compare equal numbers; NaN with fewer images than provenance.json says under quality",
    "f1_photos": "harmonic mean of improved precision and recall (k = 3) of the distinct images and as many held-out photographs, in the "
    "same features; NaN with fewer images than provenance.json says under quality",
    "fd_photos_lo, fd_photos_hi, f1_photos_lo, f1_photos_hi": "95 % interval for this number of distinct images, by subsampling halves of "
    "them without replacement; the photographs are fixed",
    "threshold": "threshold in force, given or calibrated: a token with at least this score goes to the cloud; with threshold_mode budget "
    "or even it applies to the first 8 scores of an image; for random 1 - upload_rate; NaN for a method without a threshold",
    "budget": "share of scored tokens that go to the cloud, given or calibrated, with threshold_mode budget or even; NaN with other modes",
    "statistical": "1 if the sessions are made from published rates of cloud calls and no model ran; the column exists in such runs only",
    "<quality>_lo, <quality>_hi": "95 % Student t interval of the mean over distinct images, limited to the range of the quantity; "
    "NaN with fewer than two images, or if it would cover the whole range",
}


def definitions(names: Iterable[str]) -> dict[str, str]:
    """Return `COLUMNS` without those of other judges, and without `statistical` if `names` lacks it."""
    own = judged_in(names)
    others = {name for columns in JUDGED if columns != own for name in columns} | {"statistical"}.difference(names)
    return {key: text for key, text in COLUMNS.items() if not others.intersection(key.replace("_lo", "").split(", "))}

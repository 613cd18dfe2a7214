"""What a run leaves behind: a row per request, a row per case, a timeline, pictures, and the folder that holds them.

Every number is a pure function of the records, defined as an equation over named columns in `COLUMNS` (written into
provenance.json, so that a run folder explains itself). No samples give NaN, never 0. Nothing here draws random numbers.
"""

import gzip
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.special import stdtrit

from simulator.errors import RunFolderError

RUN_FORMAT = 1
CONFIDENCE = 0.95
BATCHES = 20  # of the batch-means interval: 10 to 30 lose little width (Schmeiser 1982)

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
_USE = ("calls", "device_passes", "cloud_passes", "cloud_call_pct", "bytes_up", "bytes_down", "device_energy_j", "cloud_gpu_s")
_FALLBACK = ("retries", "fallback_pct", "fallback_cloud_nll_cost")
_COUNTS = (
    "request", "device", "prompt", "image", "calls", "device_passes", "cloud_passes", "bytes_up", "bytes_down", "retries",
)  # int64, others float64  # fmt: skip
REQUEST_COLUMNS = ("request", "device", "prompt", "image", *_TIMES, *PARTS, *_USE, *_FALLBACK)
QUALITY_COLUMNS = ("cloud_nll", "cloud_greedy_pct", "base_greedy_pct", "align_scenes")  # of an image; a case may bring more
SET_COLUMNS = ("fd_scenes", "f1_scenes")  # of a set of images; a case may bring more
SAMPLED = ("time_s", "queued", "admission", "serving", "sessions", "replicas_up")  # columns of queue.parquet, with case
TRACKS = ("device", "uplink", "queue", "cloud", "downlink")
PICTURE_KINDS = ("image", "uncertainty", "decided")

_MEAN = "mean over requests of the column of this name in requests.parquet: "
Interval = tuple[float, float, float]  # value, low, high
OfSet = Callable[[np.ndarray], Mapping[str, Interval]]  # of the images of these numbers, int [n] -> name -> interval

COLUMNS: dict[str, str] = {
    "case": "index of the case: one method under one choice of swept values",
    "method": "label of the method: its name with the settings it differs by, or what the scenario calls it",
    "method_name": "the method's own name, such as base, whatever its label",
    "images": "requests answered, each with one image; those before workload.warmup_s are in requests.parquet, but in no other figure",
    "latency_mean_s": "mean of latency_s = done_s - requested_s: from the prompt typed to the last pixel on the device",
    "latency_mean_lo_s, latency_mean_hi_s": "95 % interval of latency_mean_s by batch means: requests in order of arrival cut "
    "into k = min(requests, 20) runs, mean +- t(k - 1) sqrt(k / (k - 1) sum_j (sum over run j of (x - mean))^2) / requests; "
    "NaN below two requests",
    "latency_p50_s, latency_p95_s, latency_p99_s": "percentiles of latency_s, linear between order statistics",
    "decode_s": _MEAN + "the part that papers time, without caption encoder and image decoder",
    "first_token_s": _MEAN + "from requested_s until the device holds the first image token",
    "speedup": "mean latency_s of base over mean latency_s of the method, both over the requests that both answered; "
    "base is the first base case with the same swept values, those of methods.* aside; NaN without base",
    "speedup_lo, speedup_hi": "95 % interval of speedup, paired by request: delta method, the batch-means half-width of "
    "base latency_s - speedup * latency_s, over mean latency_s",
    "latency_minus_fastest_s": "mean over the requests that both answered of latency_s minus that of the method with the lowest "
    "latency_mean_s under the same swept values, those of methods.* aside",
    "latency_minus_fastest_lo_s, latency_minus_fastest_hi_s": "95 % interval of latency_minus_fastest_s, paired by request, by "
    "batch means as for latency_mean_s",
    "connect_s": _MEAN + "opening the connection, for the first request of each device",
    "encode_s": _MEAN + "the caption encoder",
    "device_queue_s": _MEAN + "waiting until the device is free",
    "device_compute_s": _MEAN + "forward passes on the device",
    "uplink_s": _MEAN + "messages on their way up: queue, serialisation, propagation, losses made good",
    "cloud_queue_s": _MEAN + "waiting for a replica or a batch",
    "cloud_compute_s": _MEAN + "forward passes in the cloud",
    "downlink_s": _MEAN + "messages on their way down",
    "wait_s": _MEAN + "waiting for a sleeping radio, and in vain for replies that were given up or asked for again; the ten parts lie "
    "along the critical path and add up to latency_s",
    "image_decode_s": _MEAN + "the image decoder",
    "calls": _MEAN + "requests that the device sent to the cloud",
    "device_passes": _MEAN + "forward passes on the device, of its model or of a drafter",
    "cloud_passes": _MEAN + "cloud forward passes that decide tokens",
    "cloud_call_pct": _MEAN + 'cloud passes that decide tokens per image token, in percent (the paper\'s "Cloud Call")',
    "bytes_up": _MEAN + "payload bytes sent by the device, framing not counted",
    "bytes_down": _MEAN + "payload bytes sent to the device, framing not counted",
    "device_energy_j": _MEAN + "seconds of computing on the device times its power, and the radio where the network has one: transfers, "
    "promotions, and the silence after each message until the next or until the radio is idle",
    "cloud_gpu_s": _MEAN + "GPU time, a batch shared among its members",
    "retries": _MEAN + "how often the device opened another connection and sent its open requests again",
    "fallback_pct": _MEAN + "tokens, in percent, that the device decided alone because it gave a reply up",
    "fallback_cloud_nll_cost": "mean over prompts of the mean over their requests with a fallback of cloud_nll of the image minus that of "
    "the image the prompt has without; read as cloud_nll; NaN where there was no fallback",
    "fallback_cloud_nll_cost_lo, fallback_cloud_nll_cost_hi": "95 % Student t interval over prompts; NaN below two",
    "cost_usd": "cloud_gpu_s * price per GPU hour / 3600, per image; NaN without a price",
    "cloud_utilisation": "sum of cloud_gpu_s / (replicas * (last done_s - first requested_s)); 1 is always busy; "
    "NaN for a sequential workload, whose pauses between requests stand for nothing",
    "refused": "requests that the cloud did not take, warm-up included; they are in no other column",
    "unfinished": "requests under way when the run was ended at twice the workload's duration_s, warm-up included; in no other column",
    "goodput_per_s": "requests answered within workload.slo_s, per second of warmup_s to duration_s; NaN without an SLO",
    "under_way_mean": "sum of latency_s / (last done_s - first requested_s): requests under way at a time (Little's law); NaN as above",
    "cloud_waiting_mean": "the same of cloud_queue_s: requests that wait in the cloud",
    "distinct_images": "different images among the requests: a method makes one per prompt, however often asked, and another one for each "
    "call of it that was given up. A mean over distinct images is one over prompts: those of one prompt count as its requests got them",
    "cloud_nll": "mean over distinct images of the nats per token under the cloud model. Greedy device tokens lower it by "
    "themselves: a value far from base's on either side means other pictures, lower is not better",
    "cloud_nll_minus_base": "mean over the distinct images of prompts that both have of cloud_nll minus base's for the same "
    "prompt; NaN without base",
    "cloud_nll_minus_base_lo, cloud_nll_minus_base_hi": "95 % Student t interval of cloud_nll_minus_base, paired by prompt; NaN "
    "below two prompts",
    "cloud_greedy_pct": "mean over distinct images of the share of tokens, in percent, equal to the cloud's arg max given the "
    "method's own preceding tokens",
    "base_greedy_pct": "mean over distinct images of the share of positions, in percent, equal to base's greedy tokens for the "
    "same prompt",
    "align_scenes": "mean over distinct images of the share of the caption's attributes that the scene network reads from the picture: "
    "of every object that it is there, its shape, colour and size; of the background texture and colour; NaN where the caption or the "
    "picture is not of that kind",
    "fd_scenes": "Fréchet distance of the distinct images to real renders, in the features of the scene network; it falls with the number "
    "of images, so compare equal numbers; NaN with fewer images than provenance.json says under quality",
    "f1_scenes": "harmonic mean of improved precision and recall (k = 3) of the distinct images and as many real renders, in the same "
    "features; NaN with fewer images than provenance.json says under quality",
    "fd_scenes_lo, fd_scenes_hi, f1_scenes_lo, f1_scenes_hi": "95 % interval for as many distinct images, by subsampling halves of them "
    "without replacement; the real renders are taken as given",
    "<quality>_lo, <quality>_hi": "95 % Student t interval of the mean over distinct images; NaN below two",
}


@dataclass(frozen=True)
class Case:
    """One method under one choice of swept values, and its records.

    method: label. name: the method's own name. swept: dotted path -> value, without keys that do not concern the method.
    columns: `REQUEST_COLUMNS`, an entry per answered request. quality: "image" and quality columns, an entry per distinct
    image. of_set: quality of a set of images, given their numbers; the same names for any. replicas: of the cloud, on average.
    gpu_usd_per_hour: NaN where no price is known. sequential: the requests never meet, spaced at will. refused, unfinished: requests
    without an answer. warmup_s: requests before are no part of the summary. duration_s: of the arrivals. slo_s: a latency that is
    good enough. Both NaN where there is none. samples: `SAMPLED` of the cloud at equal intervals, empty where it was not looked at.
    """

    method: str
    name: str
    swept: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]
    quality: Mapping[str, np.ndarray] = field(default_factory=dict)
    of_set: OfSet = lambda prompts: {}
    replicas: float = 1
    gpu_usd_per_hour: float = math.nan
    sequential: bool = False
    refused: int = 0
    unfinished: int = 0
    warmup_s: float = 0.0
    duration_s: float = math.nan
    slo_s: float = math.nan
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)


class Span(NamedTuple):
    """A stretch of time of one session for the timeline. track: one of `TRACKS`."""

    case: str
    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Picture:
    """A picture for images/.

    kind: "image" is uint8 [H, W, 3]; "uncertainty" and "decided" (0 by the cloud, 1 by the device) are float [h, w], a value per
    token, NaN for none. text: the prompt in words.
    """

    method: str
    prompt: int
    text: str
    kind: str
    pixels: np.ndarray


# ---- statistics -------------------------------------------------------------------------------------------------------


def percentile(values: np.ndarray, percent: float) -> float:
    """The percentile, linear between order statistics (Hyndman and Fan type 7); NaN without values."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def mean(values: np.ndarray) -> float:
    """The mean; NaN without values."""
    return float(np.mean(values)) if len(values) else math.nan


def half_width(values: np.ndarray, batches: int) -> float:
    """Half of the 95 % interval of the mean by batch means, for values in time order; NaN below two values.

    Cuts n values into k = min(n, batches) runs as equal as can be and treats the runs as independent:
    t(k - 1) sqrt(k / (k - 1) sum_j S_j^2) / n with S_j = sum over run j of (x - mean). k = n is the Student t interval.
    """
    n = len(values)
    if n < 2:
        return math.nan
    k = min(n, batches)
    sums = np.array([run.sum() for run in np.array_split(values - np.mean(values), k)])
    spread = math.sqrt(k / (k - 1) * float(np.sum(sums**2))) / n
    return float(stdtrit(k - 1, 0.5 + CONFIDENCE / 2)) * spread  # Student's quantile, without loading all of scipy.stats


def ratio(above: np.ndarray, below: np.ndarray, batches: int) -> tuple[float, float, float]:
    """mean(above) / mean(below) of paired values in time order, with its 95 % interval (delta method over batch means)."""
    denominator = mean(below)
    if not denominator > 0:
        return math.nan, math.nan, math.nan
    value = mean(above) / denominator
    half = half_width(above - value * below, batches) / denominator
    return value, value - half, value + half


# ---- tables -----------------------------------------------------------------------------------------------------------


def requests_table(cases: Sequence[Case]) -> pd.DataFrame:
    """A row per answered request: case, method, method_name, swept values by dotted path, `REQUEST_COLUMNS`, quality of its image."""
    if not cases:
        raise ValueError("a run has at least one case")
    quality = _quality_names(cases)
    frames = [_case_frame(index, case, quality) for index, case in enumerate(cases)]
    table = pd.concat(frames, ignore_index=True)
    owner = table["case"].to_numpy(dtype=np.int64)
    front = {"case": owner}
    front |= {key: column.take(owner).array for key, column in (_method_columns(cases) | _swept_columns(cases)).items()}
    return pd.DataFrame(front | {name: table[name].to_numpy() for name in (*REQUEST_COLUMNS, *quality)})


def queue_table(cases: Sequence[Case]) -> pd.DataFrame:
    """The cloud over time: case and `SAMPLED`, a row per look; no row for a case whose requests never meet."""
    frames = []
    for index, case in enumerate(cases):
        columns = {name: np.asarray(case.samples.get(name, ()), np.float64 if name == "time_s" else np.int64) for name in SAMPLED}
        frames.append(pd.DataFrame({"case": np.full(len(columns["time_s"]), index, np.int64), **columns}))
    return pd.concat(frames, ignore_index=True)


def summary_table(requests: pd.DataFrame, cases: Sequence[Case]) -> pd.DataFrame:
    """A row per case, also for a case without requests. Its columns are defined in `COLUMNS`."""
    quality = _quality_names(cases)
    of_sets = tuple(dict.fromkeys([*SET_COLUMNS, *(name for case in cases for name in case.of_set(np.empty(0, np.int64)))]))
    by_case = requests.groupby("case").indices
    records = [_in_order(requests.iloc[by_case.get(index, [])]) for index in range(len(cases))]
    records = [record[record["requested_s"] >= case.warmup_s] for case, record in zip(cases, records, strict=True)]
    bases: dict[str, int] = {}
    for index, case in enumerate(cases):
        if case.name == "base":
            bases.setdefault(_conditions(case), index)
    fastest: dict[str, int] = {}
    means = [mean(record["latency_s"].to_numpy()) for record in records]
    for index, case in enumerate(cases):
        if not math.isnan(means[index]) and means[index] < means[fastest.setdefault(_conditions(case), index)]:
            fastest[_conditions(case)] = index
    rows = []
    for case, record in zip(cases, records, strict=True):
        base, first = (found.get(_conditions(case)) for found in (bases, fastest))
        others = [None if index is None else records[index] for index in (base, first)]
        rows.append(_metrics(case, record, others[0], others[1], quality, of_sets))
    front = {"case": np.arange(len(cases))} | _method_columns(cases) | _swept_columns(cases)
    return pd.concat([pd.DataFrame(front), pd.DataFrame(rows)], axis=1)


def _metrics(
    case: Case, record: pd.DataFrame, base: pd.DataFrame | None, fastest: pd.DataFrame | None, quality: Sequence[str],
    of_sets: Sequence[str],
) -> dict[str, float]:
    latency = record["latency_s"].to_numpy()
    half = half_width(latency, BATCHES)
    if base is None:
        speedup = (math.nan, math.nan, math.nan)
    else:
        own, its = _paired(record, base, "request", "latency_s")
        speedup = ratio(its, own, BATCHES)
    row: dict[str, float] = {"images": len(record), "latency_mean_s": mean(latency)}
    row |= {"latency_mean_lo_s": row["latency_mean_s"] - half, "latency_mean_hi_s": row["latency_mean_s"] + half}
    row |= {f"latency_p{percent}_s": percentile(latency, percent) for percent in (50, 95, 99)}
    row |= {name: mean(record[name].to_numpy()) for name in ("decode_s", "first_token_s")}
    row |= dict(zip(("speedup", "speedup_lo", "speedup_hi"), speedup, strict=True))
    own, its = _paired(record, fastest, "request", "latency_s")
    later, half = mean(own - its), half_width(own - its, BATCHES)
    row |= {"latency_minus_fastest_s": later, "latency_minus_fastest_lo_s": later - half, "latency_minus_fastest_hi_s": later + half}
    row |= {name: mean(record[name].to_numpy()) for name in (*PARTS, *_USE, "retries", "fallback_pct")}
    cost = record.groupby("prompt")["fallback_cloud_nll_cost"].mean().dropna().to_numpy()  # NaN is left out
    centre, half = mean(cost), half_width(cost, len(cost))
    names = [f"fallback_cloud_nll_cost{end}" for end in ("", "_lo", "_hi")]
    row |= dict(zip(names, (centre, centre - half, centre + half), strict=True))
    row["cost_usd"] = row["cloud_gpu_s"] * case.gpu_usd_per_hour / 3600.0
    span = float(record["done_s"].max() - record["requested_s"].min()) if len(record) and not case.sequential else math.nan
    row["cloud_utilisation"] = float(record["cloud_gpu_s"].sum()) / (case.replicas * span) if span > 0 else math.nan
    row |= {"refused": case.refused, "unfinished": case.unfinished}
    good = math.nan if math.isnan(case.slo_s) else float((latency <= case.slo_s).sum())
    row["goodput_per_s"] = good / (case.duration_s - case.warmup_s)
    for name, column in (("under_way_mean", "latency_s"), ("cloud_waiting_mean", "cloud_queue_s")):
        row[name] = float(record[column].sum()) / span if span > 0 else math.nan
    images = record.drop_duplicates("image").sort_values("image")
    row["distinct_images"] = len(images)
    of_prompt = _by_prompt(record, quality)
    for name in quality:
        values = of_prompt[name].to_numpy()
        centre, half = mean(values), half_width(values, len(values))
        row |= {name: centre, f"{name}_lo": centre - half, f"{name}_hi": centre + half}
    found = case.of_set(images["image"].to_numpy())
    for name in of_sets:
        row |= dict(zip((name, f"{name}_lo", f"{name}_hi"), found.get(name, (math.nan,) * 3), strict=True))
    own, its = _paired(of_prompt, None if base is None else _by_prompt(base, quality), "prompt", "cloud_nll")
    known = np.isfinite(own - its)
    more, half = mean((own - its)[known]), half_width((own - its)[known], int(known.sum()))
    row |= {"cloud_nll_minus_base": more, "cloud_nll_minus_base_lo": more - half, "cloud_nll_minus_base_hi": more + half}
    return row


def _by_prompt(record: pd.DataFrame, quality: Sequence[str]) -> pd.DataFrame:
    """A row per prompt: the quality of its image, or the mean over its requests where fallbacks made several."""
    first = record.drop_duplicates("prompt").sort_values("prompt")
    if record["image"].nunique() == len(first):
        return first
    rows = [{"prompt": prompt, **{name: mean(of[name].to_numpy()) for name in quality}} for prompt, of in record.groupby("prompt")]
    return pd.DataFrame(rows)


def _paired(one: pd.DataFrame, other: pd.DataFrame | None, key: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The column of both where both have the key, in the order of the first; empty without the other."""
    if other is None:
        return np.empty(0), np.empty(0)
    pairs = one[[key, name]].merge(other[[key, name]], on=key, suffixes=("", "_other"))
    return pairs[name].to_numpy(dtype=np.float64), pairs[f"{name}_other"].to_numpy(dtype=np.float64)


def _in_order(record: pd.DataFrame) -> pd.DataFrame:
    return record.sort_values(["requested_s", "request"], kind="stable")


def _conditions(case: Case) -> str:
    """What a method is compared under: every swept value but the methods' own settings."""
    outside = {key: value for key, value in case.swept.items() if not key.startswith("methods.")}
    return json.dumps(outside, sort_keys=True, default=str)


def _dtype(name: str) -> type:
    return np.int64 if name in ("case", *_COUNTS) else np.float64


def _case_frame(index: int, case: Case, quality: Sequence[str]) -> pd.DataFrame:
    missing = [name for name in REQUEST_COLUMNS if name not in case.columns]
    if missing:
        raise ValueError(f"case {index} ({case.method}): no columns {', '.join(missing)}")
    frame = pd.DataFrame({name: np.asarray(case.columns[name], dtype=_dtype(name)) for name in REQUEST_COLUMNS})
    excess = np.abs(frame[list(PARTS)].sum(axis=1) - frame["latency_s"])
    if (excess > 1e-6).any():
        raise ValueError(f"case {index} ({case.method}): the parts miss latency_s by up to {excess.max():.3g} s")
    frame.insert(0, "case", np.full(len(frame), index, dtype=np.int64))
    known = pd.DataFrame({name: np.asarray(values) for name, values in case.quality.items()})
    if "image" not in known:
        return frame.assign(**{name: np.full(len(frame), math.nan) for name in quality})
    if known["image"].duplicated().any():
        raise ValueError(f"case {index} ({case.method}): two quality rows for one image")
    by_image = known.set_index("image").reindex(columns=list(quality)).astype(np.float64)
    return frame.assign(**{name: by_image[name].reindex(frame["image"]).to_numpy() for name in quality})


def _quality_names(cases: Sequence[Case]) -> tuple[str, ...]:
    more = {name for case in cases for name in case.quality} - {"image", *QUALITY_COLUMNS}
    return (*QUALITY_COLUMNS, *sorted(more))


def _method_columns(cases: Sequence[Case]) -> dict[str, pd.Series]:
    texts = {"method": [case.method for case in cases], "method_name": [case.name for case in cases]}
    return {name: pd.Series(values, dtype=object) for name, values in texts.items()}


def _swept_columns(cases: Sequence[Case]) -> dict[str, pd.Series]:
    """Swept values by dotted path, in order of first appearance: numbers where all are numbers, else text, JSON if need be."""
    keys = dict.fromkeys(key for case in cases for key in case.swept)
    return {key: _column([case.swept.get(key) for case in cases]) for key in keys}


def _column(values: Sequence[Any]) -> pd.Series:
    present = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        whole = len(present) == len(values) and all(isinstance(value, int) for value in values)
        return pd.Series([math.nan if value is None else value for value in values], dtype="int64" if whole else "float64")
    text = [value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]
    return pd.Series(text, dtype=object)


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet; equal tables give equal bytes (fixed options, no metadata, no time)."""
    arrays = {}
    for name in table:
        kind, values = table[name].dtype.kind, table[name].to_numpy()
        numbers = {"i": pa.int64(), "f": pa.float64()}.get(kind)
        arrays[name] = pa.array(values, numbers) if numbers else pa.array(values, pa.string(), from_pandas=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer, version="2.6", compression="zstd", row_group_size=1 << 20, store_schema=False)
    return buffer.getvalue()


def csv_bytes(table: pd.DataFrame) -> bytes:
    """The table as CSV: floats in the shortest form that reads back as the same number, NaN as NaN, absent text empty."""
    columns = {name: table[name] if table[name].dtype.kind in "fiu" else table[name].fillna("") for name in table}
    text = pd.DataFrame(columns).to_csv(index=False, na_rep="NaN", float_format=_shortest, lineterminator="\n")
    return text.encode()


def _shortest(value: Any) -> str:
    return repr(float(value))


# ---- timeline ---------------------------------------------------------------------------------------------------------


def timeline(spans: Iterable[Span]) -> dict[str, Any]:
    """Chrome trace events (opens in Perfetto): a process per session, a thread per track, further threads where spans overlap."""
    sessions: dict[tuple[str, int, int], list[Span]] = {}
    for span in spans:
        sessions.setdefault((span.case, span.request, span.device), []).append(span)
    events: list[dict[str, Any]] = []
    for pid, ((case, request, device), own) in enumerate(sessions.items(), start=1):
        title = f"{case}: request {request}, device {device}"
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}})
        events.append({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}})
        for place, track in enumerate(TRACKS):
            free_at: list[int] = []  # ns at which each thread of the track is free
            for span in sorted((span for span in own if span.track == track), key=lambda s: (s.start_s, s.end_s)):
                start, end = round(span.start_s * 1e9), round(span.end_s * 1e9)
                lane = next((i for i, free in enumerate(free_at) if free <= start), len(free_at))
                tid = 100 * (place + 1) + lane
                if lane == len(free_at):
                    name = track if lane == 0 else f"{track} {lane + 1}"
                    thread = {"ph": "M", "pid": pid, "tid": tid}
                    events.append({**thread, "name": "thread_name", "args": {"name": name}})
                    events.append({**thread, "name": "thread_sort_index", "args": {"sort_index": tid}})
                free_at[lane : lane + 1] = [end]
                time = {"ts": start / 1e3, "dur": (end - start) / 1e3}  # microseconds
                events.append({"ph": "X", "pid": pid, "tid": tid, "cat": track, "name": span.name, **time})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def timeline_bytes(spans: Iterable[Span]) -> bytes:
    text = json.dumps(timeline(spans), separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


# ---- the run folder ---------------------------------------------------------------------------------------------------

_FILES = ("scenario.yaml", "requests.parquet", "queue.parquet", "summary.csv", "provenance.json", "timeline.json.gz", "report.html")
_FOLDERS = ("images", "plots")  # of pictures and index.json
_PICTURE_FILES = (".png", ".svg")


def check_run_folder(folder: Path) -> None:
    """Raises RunFolderError where `write_run` would refuse the folder: call it before the work, not after an hour of it."""
    cannot = f"cannot write the run folder {folder}:"
    try:
        if not (folder.exists() or folder.is_symlink()):
            place = next(parent for parent in folder.absolute().parents if parent.exists())
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise RunFolderError(f"{cannot} {place} is not a folder that can be written")
            return
        if not folder.is_dir():
            raise RunFolderError(f"{cannot} it exists and is not a folder")
        names = sorted(path.name for path in folder.iterdir())
        if names and not _is_ours(folder):
            raise RunFolderError(f"{cannot} it holds {names[0]} and is no run of ciar-sim; name another")
        if foreign := _foreign(folder):
            raise RunFolderError(f"{cannot} {foreign[0]} in it is not from ciar-sim; move it away")
        if not os.access(folder.resolve().parent, os.W_OK | os.X_OK):
            raise RunFolderError(f"{cannot} {folder.resolve().parent} cannot be written")
    except OSError as error:
        raise RunFolderError(f"{cannot} {error.strerror or error}") from None


def _foreign(folder: Path) -> list[str]:
    """Names, relative to a run folder, of what `write_run` and the report would not have put there. Hidden files are foreign."""
    found = []
    for path in folder.iterdir():
        if path.name in _FOLDERS and path.is_dir():
            for inner in path.iterdir():
                drawn = inner.suffix in _PICTURE_FILES and not inner.name.startswith(".")
                if not inner.is_file() or not (drawn or inner.name == "index.json"):
                    found.append(f"{path.name}/{inner.name}")
        elif path.name not in _FILES or not path.is_file():
            found.append(path.name)
    return sorted(found)


def _is_ours(folder: Path) -> bool:
    try:
        provenance = json.loads((folder / "provenance.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(provenance, dict) and provenance.get("program") == "ciar-sim"


def write_run(
    folder: Path,
    *,
    scenario_yaml: str,
    cases: Sequence[Case],
    provenance: Mapping[str, Any],
    spans: Iterable[Span] = (),
    pictures: Sequence[Picture] = (),
    draw: Callable[[Path], object] | None = None,
) -> pd.DataFrame:
    """Write a run folder, all of it or nothing, and give back its summary.

    Everything is made in a sibling folder, `draw` (`reports.build.build_report`) adds the plots there, and the two change places
    at the end; an earlier run of ciar-sim is replaced. Of `provenance` the report shows all; it knows the keys name (str),
    as_if (str or None), compute (what -> how its time was obtained) and notes (list of what is not modelled).
    Raises RunFolderError where the folder is something else or cannot be written, ValueError for two pictures of one kind of one
    prompt of one method.
    """
    check_run_folder(folder)
    places = [(picture.method, picture.prompt, picture.kind) for picture in pictures]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise ValueError(f"two pictures of one place: {twice[0]}")
    requests = requests_table(cases)
    summary = summary_table(requests, cases)
    marks = {"program": "ciar-sim", "run_format": RUN_FORMAT, "columns": COLUMNS}
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {folder}: {error.strerror or error}") from None
    try:
        new, old = beside / "new", beside / "old"
        new.mkdir()
        (new / "scenario.yaml").write_bytes(scenario_yaml.encode())
        (new / "requests.parquet").write_bytes(parquet_bytes(requests))
        (new / "queue.parquet").write_bytes(parquet_bytes(queue_table(cases)))
        (new / "summary.csv").write_bytes(csv_bytes(summary))
        (new / "provenance.json").write_bytes(_json_bytes({**provenance, **marks}))
        (new / "timeline.json.gz").write_bytes(timeline_bytes(spans))
        _write_pictures(new / "images", pictures)
        if draw is not None:
            draw(new)
        check_run_folder(folder)  # again: drawing took its time
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            if old.exists():
                os.rename(old, target)
            raise
    except OSError as error:
        raise RunFolderError(f"cannot write the run folder {folder}: {error.strerror or error}") from None
    finally:
        if target.exists() or not (beside / "old").exists():  # never delete the only copy
            shutil.rmtree(beside, ignore_errors=True)
    return summary


def _write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """images/*.png and images/index.json, a list of {file, method, prompt, text, kind, low, high} in the order given.

    kind "image": RGB; low and high are null. "uncertainty", "decided": grey with alpha, a pixel per token:
    value = low + grey / 255 * (high - low), alpha 0 where there is none.
    """
    folder.mkdir()
    index: list[dict[str, Any]] = []
    taken: set[str] = set()
    for picture in pictures:
        if picture.kind not in PICTURE_KINDS:
            raise ValueError(f"picture kind must be one of {', '.join(PICTURE_KINDS)}, got {picture.kind!r}")
        stem = re.sub(r"[^a-z0-9.]+", "-", picture.method.lower()).strip("-.") + f"_{picture.prompt}"
        stem += "" if picture.kind == "image" else f"_{picture.kind}"
        file = next(name for i in range(len(taken) + 1) if (name := f"{stem}{f'-{i + 1}' * (i > 0)}.png") not in taken)
        taken.add(file)
        low: float | None = None
        high: float | None = None
        if picture.kind == "image":
            image = Image.fromarray(np.ascontiguousarray(picture.pixels, dtype=np.uint8))
        else:
            values = np.asarray(picture.pixels, dtype=np.float64)
            known = np.isfinite(values)
            low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 1.0)
            if picture.kind == "decided":
                low, high = 0.0, 1.0
            scaled = np.where(known, values - low, 0.0) * (255.0 / (high - low) if high > low else 0.0)
            image = Image.fromarray(np.stack([np.rint(scaled), 255.0 * known], axis=-1).astype(np.uint8))
        image.save(folder / file, format="PNG", compress_level=9)
        entry = {"file": file, "method": picture.method, "prompt": int(picture.prompt), "text": picture.text}
        index.append({**entry, "kind": picture.kind, "low": low, "high": high})
    (folder / "index.json").write_bytes(_json_bytes(index))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null, infinities become text; numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

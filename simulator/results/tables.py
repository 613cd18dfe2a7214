"""The tables of a run: a row per request, a row per case, and the cloud over time.

Every number is a pure function of the records, defined as an equation over named columns in `COLUMNS` (written into
provenance.json, so that a run folder explains itself). No samples give NaN, never 0. Nothing here draws random numbers.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from simulator.results.columns import (
    COUNTS,
    ENERGY,
    PARTS,
    QUALITY_COLUMNS,
    REQUEST_COLUMNS,
    SAMPLED,
    SETTINGS,
    TIER_COLUMNS,
    USE,
    judged_in,
    with_ends,
)
from simulator.results.statistics import (
    BATCHES,
    UNKNOWN,
    Interval,
    mean,
    mean_interval,
    percentile,
    ratio,
    student_interval,
)

Columns = dict[str, np.ndarray]  # equally long, by name
OfSet = Callable[[np.ndarray], Mapping[str, Interval]]  # of the images of these numbers, int [n] -> name -> interval


@dataclass(frozen=True)
class CaseRecords:
    """One method under one choice of swept values, and its records.

    Attributes:
        method: Label.
        name: The method's own name.
        swept: Dotted path -> value, without keys that do not concern the method.
        columns: `REQUEST_COLUMNS`, an entry per answered request.
        quality: "image" and quality columns, an entry per distinct image.
        of_set: Quality of the set of images with given numbers; the same names for any set.
        utilisation: Of the cloud.
        gpu_usd_per_hour: Price where each kind of devices is served; NaN without one.
        sequential: Whether requests never overlap.
        refused: Requests that the cloud did not take.
        unfinished: Requests still open at the end.
        warmup_s: Requests before this time are not in the summary.
        duration_s: Of the arrivals; NaN for sequential ones.
        slos_s: Latency objective of each kind of devices; infinite without one.
        devices: Of each kind; the kinds are numbered one after another.
        tiers: The tier of the cloud that serves each kind; None without tiers.
        settings: `SETTINGS` that the method has.
        samples: `SAMPLED` of the cloud at equal intervals, empty where it was not sampled.
        statistical: Its sessions are made from published figures.
    """

    method: str
    name: str
    swept: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]
    quality: Mapping[str, np.ndarray] = field(default_factory=dict)
    of_set: OfSet = lambda prompts: {}
    utilisation: float = math.nan
    gpu_usd_per_hour: Sequence[float] = (math.nan,)
    sequential: bool = False
    refused: int = 0
    unfinished: int = 0
    warmup_s: float = 0.0
    duration_s: float = math.nan
    slos_s: Sequence[float] = (math.inf,)
    devices: Sequence[int] = (1,)
    tiers: Sequence[str | None] = (None,)
    settings: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, np.ndarray] = field(default_factory=dict)
    statistical: bool = False


def request_blocks(cases: Sequence[CaseRecords], most_rows: int) -> Iterator[Columns]:
    """The columns of requests.parquet in blocks of so many rows, the last one shorter; a row per answered request.

    They are case, method and its name, swept values by dotted path, `REQUEST_COLUMNS`, quality, `ENERGY`.
    """
    if not cases:
        raise ValueError("a run has at least one case")
    quality = _quality_names(cases)
    names = dict.fromkeys([*(name for name in REQUEST_COLUMNS if name not in ENERGY), *quality, *ENERGY])
    shared = {name: column.to_numpy() for name, column in (_method_columns(cases) | _swept_columns(cases)).items()}
    for first, last, rows in _ranges([len(case.columns.get("request", ())) for case in cases], most_rows):
        found = [_request_columns(index, cases[index], quality) for index in range(first, last)]
        owner = np.repeat(np.arange(first, last), [len(columns["request"]) for columns in found])[rows]
        block = {"case": owner} | {name: values[owner] for name, values in shared.items()}
        yield block | {name: np.concatenate([columns[name] for columns in found])[rows] for name in names}


def queue_blocks(cases: Sequence[CaseRecords], most_rows: int) -> Iterator[Columns]:
    """The cloud over time, in blocks: case and `SAMPLED`, a row per sample; no row for a case whose requests never overlap."""
    for first, last, rows in _ranges([len(case.samples.get("time_s", ())) for case in cases], most_rows):
        chosen = [cases[index].samples for index in range(first, last)]
        owner = np.repeat(np.arange(first, last), [len(samples.get("time_s", ())) for samples in chosen])
        block = {"case": owner[rows]}
        for name in SAMPLED:
            dtype = np.float64 if name == "time_s" else np.int64
            block[name] = np.concatenate([np.asarray(samples.get(name, ()), dtype) for samples in chosen])[rows]
        yield block


def _ranges(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int, slice]]:
    """Blocks of rows: the cases from first to last (not included) that they lie in, and which of the rows of these they are."""
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    for start in range(0, max(total, 1), most):
        stop = min(start + most, total)
        first = int(np.searchsorted(ends, start, side="right")) if total else 0
        last = int(np.searchsorted(ends, stop, side="left")) + 1 if total else len(lengths)
        before = int(ends[first]) - lengths[first]
        yield first, last, slice(start - before, stop - before)


def tiers_table(cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """A row per case and tier of the cloud that serves devices in it: `TIER_COLUMNS`. No rows for clouds without tiers."""
    rows, owners = [], []
    for index, case in enumerate(cases):
        named = [tier for tier in dict.fromkeys(case.tiers) if tier is not None]
        record = _record(index, case, ()) if named else {}
        for tier in named:
            kind = _kinds(case, record)
            mine = np.array([own == tier for own in case.tiers])
            of = {name: values[mine[kind]] for name, values in record.items()}
            latency = of["latency_s"]
            prices = np.array(case.gpu_usd_per_hour)[kind[mine[kind]]]
            values = (
                tier,
                int(np.array(case.devices)[mine].sum()),
                len(latency),
                *with_ends("latency_mean_s", mean_interval(latency, BATCHES)).values(),
                *(percentile(latency, percent) for percent in (50, 95, 99)),
                *(mean(of[name]) for name in ("uplink_s", "cloud_queue_s", "cloud_compute_s", "downlink_s")),
                mean(of["cloud_gpu_s"]),
                mean(of["cloud_gpu_s"] * prices) / 3600.0,
            )
            rows.append(dict(zip(TIER_COLUMNS, values, strict=True)))
            owners.append(index)
    columns = {"case": pd.Series(np.arange(len(cases)))} | _method_columns(cases) | _swept_columns(cases)
    front = {key: column.take(owners).array for key, column in columns.items()}
    return pd.concat([pd.DataFrame(front), pd.DataFrame(rows, columns=list(TIER_COLUMNS))], axis=1)


def summary_table(cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """A row per case, also for a case without requests. Its columns are defined in `COLUMNS`."""
    quality = _quality_names(cases)
    _, *set_columns = judged_in(quality)
    of_sets = tuple(
        dict.fromkeys([*set_columns, *(name for case in cases for name in case.of_set(np.empty(0, np.int64)))])
    )

    @cache
    def pairing(index: int) -> _Pairing:
        return _Pairing.of(_record(index, cases[index], quality))

    bases: dict[str, int] = {}
    fastest: dict[str, int] = {}
    means = [mean(np.asarray(case.columns["latency_s"], np.float64)[_counted(case)]) for case in cases]
    conditions = [_conditions(case) for case in cases]
    for index, (case, condition) in enumerate(zip(cases, conditions, strict=True)):
        if case.name == "base":
            bases.setdefault(condition, index)
        if not math.isnan(means[index]) and means[index] < means[fastest.setdefault(condition, index)]:
            fastest[condition] = index
    rows = []
    for index, (case, condition) in enumerate(zip(cases, conditions, strict=True)):
        record = _record(index, case, quality)
        base, first = (
            None if found is None else pairing(found) for found in (bases.get(condition), fastest.get(condition))
        )
        rows.append(_metrics(case, record, base, first, quality, of_sets))
    front = {"case": np.arange(len(cases))} | _method_columns(cases) | _swept_columns(cases)
    table = pd.concat([pd.DataFrame(front), pd.DataFrame(rows)], axis=1)
    if any(case.statistical for case in cases):
        table["statistical"] = [int(case.statistical) for case in cases]
    return table


class _Pairing(NamedTuple):
    """What of a case others are compared with: latencies by request, and cloud_nll by prompt."""

    requests: np.ndarray
    latency_s: np.ndarray
    prompts: np.ndarray
    cloud_nll: np.ndarray

    @classmethod
    def of(cls, record: Columns) -> "_Pairing":
        prompts, by_prompt = _by_prompt(record, ("cloud_nll",))
        return cls(record["request"], record["latency_s"], prompts, by_prompt["cloud_nll"])


def _metrics(
    case: CaseRecords,
    record: Columns,
    base: _Pairing | None,
    fastest: _Pairing | None,
    quality: Sequence[str],
    of_sets: Sequence[str],
) -> dict[str, float]:
    """The figures of a case; quality, of_sets: the columns of images and of sets of images."""
    row = _latency(record, base, fastest)
    row |= {name: mean(record[name]) for name in (*PARTS, *USE, "retries", "fallback_pct")}
    row |= _fallback_cost(record)
    row |= _load(case, record)
    row |= _quality(case, record, base, quality, of_sets)
    row |= {name: mean(record[name]) for name in ENERGY}
    return row | {name: float(case.settings.get(name, math.nan)) for name in SETTINGS}


def _latency(record: Columns, base: _Pairing | None, fastest: _Pairing | None) -> dict[str, float]:
    """Requests, their latency, and how it compares with base's and the fastest's over the same requests."""
    latency, requests = record["latency_s"], record["request"]
    row: dict[str, float] = {"images": len(latency), **with_ends("latency_mean_s", mean_interval(latency, BATCHES))}
    row |= {f"latency_p{percent}_s": percentile(latency, percent) for percent in (50, 95, 99)}
    row |= {name: mean(record[name]) for name in ("decode_s", "first_token_s")}
    speedup = later = UNKNOWN
    if base is not None:
        own, its = _paired(requests, latency, base.requests, base.latency_s)
        speedup = ratio(its, own, BATCHES)
    if fastest is not None:
        own, its = _paired(requests, latency, fastest.requests, fastest.latency_s)
        later = mean_interval(own - its, BATCHES)
    return row | with_ends("speedup", speedup) | with_ends("latency_minus_fastest_s", later)


def _fallback_cost(record: Columns) -> dict[str, float]:
    """What fallbacks cost in cloud_nll, over prompts; NaN counts for a request without one."""
    cost = record["fallback_cloud_nll_cost"]
    known = ~np.isnan(cost)
    prompts = record["prompt"][known]
    of_prompt = pd.Series(cost[known]).groupby(prompts).mean().to_numpy() if len(prompts) else np.empty(0)
    return with_ends("fallback_cloud_nll_cost", student_interval(of_prompt))


def _load(case: CaseRecords, record: Columns) -> dict[str, float]:
    """What the cloud costs, how busy it is, and how many requests it serves in time."""
    latency, kind, prices = record["latency_s"], _kinds(case, record), case.gpu_usd_per_hour
    if len(set(prices)) == 1:
        cost_usd = mean(record["cloud_gpu_s"]) * prices[0] / 3600.0
    else:
        cost_usd = mean(record["cloud_gpu_s"] * np.array(prices)[kind]) / 3600.0
    in_time = latency <= np.array(case.slos_s)[kind]
    good = float(in_time.sum()) if math.isfinite(min(case.slos_s)) else math.nan
    row = {
        "cost_usd": cost_usd,
        "cloud_utilisation": math.nan if case.sequential else case.utilisation,
        "refused": case.refused,
        "unfinished": case.unfinished,
        "goodput_per_s": good / (case.duration_s - case.warmup_s),
    }
    counted_s = math.nan
    if len(latency) and not case.sequential:  # to the end of the arrivals, or to the last answer where that is later
        end_s = 0.0 if math.isnan(case.duration_s) else case.duration_s
        counted_s = max(float(record["done_s"].max()), end_s) - case.warmup_s
    for name, column in (("under_way_mean", "latency_s"), ("cloud_waiting_mean", "cloud_queue_s")):
        row[name] = float(record[column].sum()) / counted_s if counted_s > 0 else math.nan
    return row


def _quality(
    case: CaseRecords, record: Columns, base: _Pairing | None, quality: Sequence[str], of_sets: Sequence[str]
) -> dict[str, float]:
    """The quality of the distinct images, and how it compares with base's over the same prompts."""
    images = np.unique(record["image"])
    row: dict[str, float] = {"distinct_images": len(images)}
    prompts, of_prompt = _by_prompt(record, quality)
    for name in quality:
        row |= with_ends(name, student_interval(of_prompt[name]))
    found = case.of_set(images)
    for name in of_sets:
        row |= with_ends(name, found.get(name, UNKNOWN))
    more = np.empty(0)
    if base is not None:
        own, its = _paired(prompts, of_prompt["cloud_nll"], base.prompts, base.cloud_nll)
        more = own - its
    return row | with_ends("cloud_nll_minus_base", student_interval(more[np.isfinite(more)]))


def _kinds(case: CaseRecords, record: Columns) -> np.ndarray:
    """int [n]: the kind of device of each request."""
    return np.searchsorted(np.cumsum(case.devices)[:-1], record["device"], side="right")


def _by_prompt(record: Columns, quality: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The prompts in order, and of each the quality of its image, or the mean over its requests where fallbacks made several."""
    prompts, first = np.unique(record["prompt"], return_index=True)
    if len(np.unique(record["image"])) == len(prompts):
        return prompts, {name: record[name][first] for name in quality}
    members = [record["prompt"] == prompt for prompt in prompts]
    return prompts, {name: np.array([mean(record[name][of]) for of in members]) for name in quality}


def _paired(
    keys: np.ndarray, values: np.ndarray, other_keys: np.ndarray, other_values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The values of both where both have the key, in the order of the first. No key occurs twice."""
    if not len(other_keys):
        return np.empty(0), np.empty(0)
    order = np.argsort(other_keys)
    place = order[np.minimum(np.searchsorted(other_keys, keys, sorter=order), len(order) - 1)]
    both = other_keys[place] == keys
    return values[both], other_values[place[both]]


def _record(index: int, case: CaseRecords, quality: Sequence[str]) -> Columns:
    """The columns of the requests that count, in order of arrival."""
    counted = _counted(case)
    return {name: values[counted] for name, values in _request_columns(index, case, quality).items()}


def _counted(case: CaseRecords) -> np.ndarray:
    """Places of the requests that count, in order of arrival."""
    requested_s = np.asarray(case.columns["requested_s"], np.float64)
    order = np.lexsort((np.asarray(case.columns["request"], np.int64), requested_s))
    return order[requested_s[order] >= case.warmup_s]


def _conditions(case: CaseRecords) -> str:
    """The condition under which methods are compared: every swept value but the methods' own settings."""
    outside = {key: value for key, value in case.swept.items() if not key.startswith("methods.")}
    return json.dumps(outside, sort_keys=True, default=str)


def _dtype(name: str) -> type:
    return np.int64 if name in ("case", *COUNTS) else np.float64


def _request_columns(index: int, case: CaseRecords, quality: Sequence[str]) -> Columns:
    """`REQUEST_COLUMNS` and the quality of the image that each request got.

    Raises:
        ValueError: A column is missing, parts and latency disagree, or an image has two qualities.
    """
    missing = [name for name in REQUEST_COLUMNS if name not in case.columns]
    if missing:
        raise ValueError(f"case {index} ({case.method}): no columns {', '.join(missing)}")
    columns: Columns = {name: np.asarray(case.columns[name], dtype=_dtype(name)) for name in REQUEST_COLUMNS}
    excess = np.abs(np.sum([columns[part] for part in PARTS], axis=0) - columns["latency_s"])
    # A time has 16 digits, so that the parts of a request years after the start are less exact than a microsecond.
    if (excess > np.maximum(1e-6, 1e-12 * np.abs(columns["done_s"]))).any():
        raise ValueError(f"case {index} ({case.method}): the parts miss latency_s by up to {excess.max():.3g} s")
    images = np.asarray(case.quality.get("image", ()), dtype=np.int64)
    order = np.argsort(images)
    ordered = images[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError(f"case {index} ({case.method}): two quality rows for one image")
    place = np.searchsorted(ordered, columns["image"])
    known = np.flatnonzero(place < len(images))
    known = known[ordered[place[known]] == columns["image"][known]]
    for name in quality:
        columns[name] = np.full(len(place), math.nan)
        if name in case.quality:
            columns[name][known] = np.asarray(case.quality[name], dtype=np.float64)[order[place[known]]]
    return columns


def _quality_names(cases: Sequence[CaseRecords]) -> tuple[str, ...]:
    names = {name for case in cases for name in case.quality} - {"image", *QUALITY_COLUMNS}
    align = judged_in(names).align
    return (*QUALITY_COLUMNS, align, *sorted(names - {align}))


def _method_columns(cases: Sequence[CaseRecords]) -> dict[str, pd.Series]:
    texts = {"method": [case.method for case in cases], "method_name": [case.name for case in cases]}
    return {name: pd.Series(values, dtype=object) for name, values in texts.items()}


def _swept_columns(cases: Sequence[CaseRecords]) -> dict[str, pd.Series]:
    """Swept values by dotted path, in order of first appearance: numbers where all are numbers, else text, JSON if need be."""
    keys = dict.fromkeys(key for case in cases for key in case.swept)
    return {key: _column([case.swept.get(key) for case in cases]) for key in keys}


def _column(values: Sequence[Any]) -> pd.Series:
    present = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present):
        whole = len(present) == len(values) and all(isinstance(value, int) for value in values)
        return pd.Series(
            [math.nan if value is None else value for value in values], dtype="int64" if whole else "float64"
        )
    text = [value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True) for value in values]
    return pd.Series(text, dtype=object)


def plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null, infinities become text; numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

"""The tables of a run: one row per request, one row per case, and the cloud over time.

Every number is a pure function of the records. `COLUMNS` defines it in terms of other columns; the definitions are written into
provenance.json. Without samples a number is NaN, never 0. Nothing here draws random numbers.
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

Columns = dict[str, np.ndarray]  # by name, all of the same length
OfSet = Callable[[np.ndarray], Mapping[str, Interval]]  # numbers of images, int [n] -> quality of this set, by name


@dataclass(frozen=True)
class CaseRecords:
    """The records of one case: one method under one choice of swept values.

    Attributes:
        method: Label of the method.
        name: Name of the method.
        swept: Dotted path -> value, without keys that do not affect the method.
        columns: `REQUEST_COLUMNS`, one entry per answered request.
        quality: "image" and the quality columns, one entry per distinct image.
        of_set: Returns the quality of a set of images; the names are the same for any set.
        utilisation: Utilisation of the cloud.
        gpu_usd_per_hour: By kind of device: price of the cloud that serves it; NaN without one.
        sequential: Whether the workload is sequential, so that requests never overlap.
        refused: Number of requests refused by the cloud.
        unfinished: Number of requests still open at the end.
        warmup_s: Requests before this time are not in the summary.
        duration_s: End of the arrivals; NaN for a sequential workload.
        slos_s: By kind of device: latency objective; infinite without one.
        devices: By kind of device: number of devices. The devices of the first kind have the lowest numbers, and so on.
        tiers: By kind of device: tier of the cloud that serves it; None without tiers.
        settings: `SETTINGS` that the method has.
        samples: `SAMPLED` of the cloud at equal intervals; empty if not sampled.
        statistical: Whether the sessions are generated from published figures.
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
    """Yield requests.parquet in blocks of `most_rows` rows (the last one may be shorter), with one row per answered request.

    The columns are case, method, method_name, swept values by dotted path, `REQUEST_COLUMNS` without `ENERGY`, quality, `ENERGY`.

    Raises:
        ValueError: There is no case, or the records of one are inconsistent.
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
    """Yield queue.parquet in blocks: case and `SAMPLED`, one row per sample. Sequential cases have no rows."""
    for first, last, rows in _ranges([len(case.samples.get("time_s", ())) for case in cases], most_rows):
        chosen = [cases[index].samples for index in range(first, last)]
        owner = np.repeat(np.arange(first, last), [len(samples.get("time_s", ())) for samples in chosen])
        block = {"case": owner[rows]}
        for name in SAMPLED:
            dtype = np.float64 if name == "time_s" else np.int64
            block[name] = np.concatenate([np.asarray(samples.get(name, ()), dtype) for samples in chosen])[rows]
        yield block


def _ranges(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int, slice]]:
    """Cut the rows of all cases into blocks of `most` rows.

    Args:
        lengths: Number of rows of each case.
        most: Rows in a block.

    Yields:
        By block: the first case, the last case plus one, and the slice of the block in the rows of these cases.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1])
    for start in range(0, max(total, 1), most):
        stop = min(start + most, total)
        first = int(np.searchsorted(ends, start, side="right")) if total else 0
        last = int(np.searchsorted(ends, stop, side="left")) + 1 if total else len(lengths)
        before = int(ends[first]) - lengths[first]
        yield first, last, slice(start - before, stop - before)


def tiers_table(cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """Return `TIER_COLUMNS`, one row per case and tier that serves devices in it. Clouds without tiers have no rows."""
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
    """Return one row per case, also for a case without requests. `COLUMNS` defines the columns."""
    quality = _quality_names(cases)
    _, *set_columns = judged_in(quality)
    of_sets = tuple(
        dict.fromkeys([*set_columns, *(name for case in cases for name in case.of_set(np.empty(0, np.int64)))])
    )

    compared = [name for name in ("cloud_nll", judged_in(quality).align) if name in quality]

    @cache
    def pairing(index: int) -> _Pairing:
        return _Pairing.of(_record(index, cases[index], quality), compared)

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
    """The values of a case that others are compared with: latency by request, and some quality columns by prompt."""

    requests: np.ndarray
    latency_s: np.ndarray
    prompts: np.ndarray
    quality: dict[str, np.ndarray]

    @classmethod
    def of(cls, record: Columns, quality: Sequence[str]) -> "_Pairing":
        return cls(record["request"], record["latency_s"], *_by_prompt(record, quality))


def _metrics(
    case: CaseRecords,
    record: Columns,
    base: _Pairing | None,
    fastest: _Pairing | None,
    quality: Sequence[str],
    of_sets: Sequence[str],
) -> dict[str, float]:
    """Return the summary of a case.

    Args:
        case: The case.
        record: Columns of its counted requests.
        base: Base under the same condition; None without it.
        fastest: The case with the lowest mean latency under the same condition; None without it.
        quality: Quality columns of single images.
        of_sets: Quality columns of sets of images.
    """
    row = _latency(record, base, fastest)
    row |= {name: mean(record[name]) for name in (*PARTS, *USE, "retries", "fallback_pct")}
    row |= _fallback_cost(record)
    row |= _load(case, record)
    row |= _quality(case, record, base, quality, of_sets)
    row |= {name: mean(record[name]) for name in ENERGY}
    return row | {name: float(case.settings.get(name, math.nan)) for name in SETTINGS}


def _latency(record: Columns, base: _Pairing | None, fastest: _Pairing | None) -> dict[str, float]:
    """Return the number of requests, their latency, and its comparison with base and the fastest case over the same requests."""
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
    """Return the mean change of cloud_nll by fallbacks, over prompts. Requests without a fallback are NaN in the records."""
    cost = record["fallback_cloud_nll_cost"]
    known = ~np.isnan(cost)
    prompts = record["prompt"][known]
    of_prompt = pd.Series(cost[known]).groupby(prompts).mean().to_numpy() if len(prompts) else np.empty(0)
    return with_ends("fallback_cloud_nll_cost", student_interval(of_prompt))


def _load(case: CaseRecords, record: Columns) -> dict[str, float]:
    """Return cost, utilisation, goodput and numbers of requests of the cloud."""
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
    if len(latency) and not case.sequential:  # to the end of the arrivals, or to the last answer if that is later
        end_s = 0.0 if math.isnan(case.duration_s) else case.duration_s
        counted_s = max(float(record["done_s"].max()), end_s) - case.warmup_s
    for name, column in (("under_way_mean", "latency_s"), ("cloud_waiting_mean", "cloud_queue_s")):
        row[name] = float(record[column].sum()) / counted_s if counted_s > 0 else math.nan
    return row


def _quality(
    case: CaseRecords, record: Columns, base: _Pairing | None, quality: Sequence[str], of_sets: Sequence[str]
) -> dict[str, float]:
    """Return the quality of the distinct images, and its comparison with base over the same prompts."""
    images = np.unique(record["image"])
    row: dict[str, float] = {"distinct_images": len(images)}
    prompts, of_prompt = _by_prompt(record, quality)
    for name in quality:
        row |= with_ends(name, student_interval(of_prompt[name]))
    found = case.of_set(images)
    for name in of_sets:
        row |= with_ends(name, found.get(name, UNKNOWN))
    for column, name in (("cloud_nll_minus_base", "cloud_nll"), ("align_minus_base", judged_in(quality).align)):
        more = np.empty(0)
        if base is not None and name in base.quality:
            own, its = _paired(prompts, of_prompt[name], base.prompts, base.quality[name])
            more = own - its
        row |= with_ends(column, student_interval(more[np.isfinite(more)]))
    return row


def _kinds(case: CaseRecords, record: Columns) -> np.ndarray:
    """Return the kind of device of each request, int [n]."""
    return np.searchsorted(np.cumsum(case.devices)[:-1], record["device"], side="right")


def _by_prompt(record: Columns, quality: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the prompts in order, and the quality of the image of each; the mean over its requests if fallbacks led to several images."""
    prompts, first = np.unique(record["prompt"], return_index=True)
    if len(np.unique(record["image"])) == len(prompts):
        return prompts, {name: record[name][first] for name in quality}
    members = [record["prompt"] == prompt for prompt in prompts]
    return prompts, {name: np.array([mean(record[name][of]) for of in members]) for name in quality}


def _paired(
    keys: np.ndarray, values: np.ndarray, other_keys: np.ndarray, other_values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return both values of the keys that both have, in the order of the first. Keys are unique."""
    if not len(other_keys):
        return np.empty(0), np.empty(0)
    order = np.argsort(other_keys)
    place = order[np.minimum(np.searchsorted(other_keys, keys, sorter=order), len(order) - 1)]
    both = other_keys[place] == keys
    return values[both], other_values[place[both]]


def _record(index: int, case: CaseRecords, quality: Sequence[str]) -> Columns:
    """Return the columns of the counted requests, in order of arrival."""
    counted = _counted(case)
    return {name: values[counted] for name, values in _request_columns(index, case, quality).items()}


def _counted(case: CaseRecords) -> np.ndarray:
    """Return the indices of the requests after the warm-up, in order of arrival."""
    requested_s = np.asarray(case.columns["requested_s"], np.float64)
    order = np.lexsort((np.asarray(case.columns["request"], np.int64), requested_s))
    return order[requested_s[order] >= case.warmup_s]


def _conditions(case: CaseRecords) -> str:
    """Return the condition under which methods are compared: all swept values except settings of methods."""
    outside = {key: value for key, value in case.swept.items() if not key.startswith("methods.")}
    return json.dumps(outside, sort_keys=True, default=str)


def _dtype(name: str) -> type:
    return np.int64 if name in ("case", *COUNTS) else np.float64


def _request_columns(index: int, case: CaseRecords, quality: Sequence[str]) -> Columns:
    """Return `REQUEST_COLUMNS` and the quality of the image of each request; NaN if unknown.

    Raises:
        ValueError: A column is missing, the parts do not add up to latency_s, or an image has two rows of quality.
    """
    missing = [name for name in REQUEST_COLUMNS if name not in case.columns]
    if missing:
        raise ValueError(f"case {index} ({case.method}): no columns {', '.join(missing)}")
    columns: Columns = {name: np.asarray(case.columns[name], dtype=_dtype(name)) for name in REQUEST_COLUMNS}
    excess = np.abs(np.sum([columns[part] for part in PARTS], axis=0) - columns["latency_s"])
    # float64 has 16 digits: the parts of a request years after the start are less exact than a microsecond.
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
    """Return swept values by dotted path, in order of first appearance: numbers if all are numbers, else text (JSON for other types)."""
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
    """Convert a value to plain JSON data: NaN becomes null, infinities become text, numpy scalars become Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

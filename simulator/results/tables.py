"""The tables of a run: a row per request, a row per case, and the cloud over time.

Every number is a pure function of the records, defined as an equation over named columns in `COLUMNS` (written into
provenance.json, so that a run folder explains itself). No samples give NaN, never 0. Nothing here draws random numbers.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from simulator.results.columns import (
    COUNTS,
    ENERGY,
    PARTS,
    QUALITY_COLUMNS,
    RANGES,
    REQUEST_COLUMNS,
    SAMPLED,
    SETTINGS,
    TIER_COLUMNS,
    USE,
    judged_in,
)
from simulator.results.statistics import (
    BATCHES,
    Interval,
    bounded,
    half_width,
    mean,
    percentile,
    ratio,
    student_interval,
)

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
        refused, unfinished: Requests without an answer.
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


def requests_table(cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """A row per answered request: case, method and its name, swept values by dotted path, `REQUEST_COLUMNS`, quality, `ENERGY`."""
    if not cases:
        raise ValueError("a run has at least one case")
    quality = _quality_names(cases)
    frames = [_case_frame(index, case, quality) for index, case in enumerate(cases)]
    table = pd.concat(frames, ignore_index=True)
    owner = table["case"].to_numpy(dtype=np.int64)
    front = {"case": owner}
    front |= {key: column.take(owner).array for key, column in (_method_columns(cases) | _swept_columns(cases)).items()}
    names = dict.fromkeys([*(name for name in REQUEST_COLUMNS if name not in ENERGY), *quality, *ENERGY])
    return pd.DataFrame(front | {name: table[name].to_numpy() for name in names})


def queue_table(cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """The cloud over time: case and `SAMPLED`, a row per sample; no row for a case whose requests never overlap."""
    frames = []
    for index, case in enumerate(cases):
        columns = {
            name: np.asarray(case.samples.get(name, ()), np.float64 if name == "time_s" else np.int64)
            for name in SAMPLED
        }
        frames.append(pd.DataFrame({"case": np.full(len(columns["time_s"]), index, np.int64), **columns}))
    return pd.concat(frames, ignore_index=True)


def tiers_table(requests: pd.DataFrame, cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """A row per case and tier of the cloud that serves devices in it: `TIER_COLUMNS`. No rows for clouds without tiers."""
    by_case = requests.groupby("case").indices
    rows, owners = [], []
    for index, case in enumerate(cases):
        record = _in_order(requests.iloc[by_case.get(index, [])])
        record = record[record["requested_s"] >= case.warmup_s]
        kind = _kinds(case, record)
        for tier in dict.fromkeys(case.tiers):
            if tier is None:
                continue
            mine = np.array([own == tier for own in case.tiers])
            of = record[mine[kind]]
            latency = of["latency_s"].to_numpy()
            half = half_width(latency, BATCHES)
            centre, low, high = bounded((mean(latency), mean(latency) - half, mean(latency) + half))
            prices = np.array(case.gpu_usd_per_hour)[kind[mine[kind]]]
            values = (
                tier,
                int(np.array(case.devices)[mine].sum()),
                len(of),
                *(centre, low, high),
                *(percentile(latency, percent) for percent in (50, 95, 99)),
                *(mean(of[name].to_numpy()) for name in ("uplink_s", "cloud_queue_s", "cloud_compute_s", "downlink_s")),
                mean(of["cloud_gpu_s"].to_numpy()),
                mean(of["cloud_gpu_s"].to_numpy() * prices) / 3600.0,
            )
            rows.append(dict(zip(TIER_COLUMNS, values, strict=True)))
            owners.append(index)
    front = {
        key: column.take(owners).array
        for key, column in (
            {"case": pd.Series(np.arange(len(cases)))} | _method_columns(cases) | _swept_columns(cases)
        ).items()
    }
    return pd.concat([pd.DataFrame(front), pd.DataFrame(rows, columns=list(TIER_COLUMNS))], axis=1)


def summary_table(requests: pd.DataFrame, cases: Sequence[CaseRecords]) -> pd.DataFrame:
    """A row per case, also for a case without requests. Its columns are defined in `COLUMNS`."""
    quality = _quality_names(cases)
    _, *set_columns = judged_in(quality)
    of_sets = tuple(
        dict.fromkeys([*set_columns, *(name for case in cases for name in case.of_set(np.empty(0, np.int64)))])
    )
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
    table = pd.concat([pd.DataFrame(front), pd.DataFrame(rows)], axis=1)
    if any(case.statistical for case in cases):
        table["statistical"] = [int(case.statistical) for case in cases]
    return table


def _metrics(
    case: CaseRecords,
    record: pd.DataFrame,
    base: pd.DataFrame | None,
    fastest: pd.DataFrame | None,
    quality: Sequence[str],
    of_sets: Sequence[str],
) -> dict[str, float]:
    latency = record["latency_s"].to_numpy()
    half = half_width(latency, BATCHES)
    if base is None:
        speedup = (math.nan, math.nan, math.nan)
    else:
        own, its = _paired(record, base, "request", "latency_s")
        speedup = bounded(ratio(its, own, BATCHES))
    row: dict[str, float] = {"images": len(record), "latency_mean_s": mean(latency)}
    _, low, high = bounded((row["latency_mean_s"], row["latency_mean_s"] - half, row["latency_mean_s"] + half))
    row |= {"latency_mean_lo_s": low, "latency_mean_hi_s": high}
    row |= {f"latency_p{percent}_s": percentile(latency, percent) for percent in (50, 95, 99)}
    row |= {name: mean(record[name].to_numpy()) for name in ("decode_s", "first_token_s")}
    row |= dict(zip(("speedup", "speedup_lo", "speedup_hi"), speedup, strict=True))
    own, its = _paired(record, fastest, "request", "latency_s")
    later, half = mean(own - its), half_width(own - its, BATCHES)
    row |= {
        "latency_minus_fastest_s": later,
        "latency_minus_fastest_lo_s": later - half,
        "latency_minus_fastest_hi_s": later + half,
    }
    row |= {name: mean(record[name].to_numpy()) for name in (*PARTS, *USE, "retries", "fallback_pct")}
    cost = record.groupby("prompt")["fallback_cloud_nll_cost"].mean().dropna().to_numpy()  # NaN is left out
    centre, half = mean(cost), half_width(cost, len(cost))
    names = [f"fallback_cloud_nll_cost{end}" for end in ("", "_lo", "_hi")]
    row |= dict(zip(names, (centre, centre - half, centre + half), strict=True))
    kind = _kinds(case, record)
    prices = case.gpu_usd_per_hour
    if len(set(prices)) == 1:
        row["cost_usd"] = row["cloud_gpu_s"] * prices[0] / 3600.0
    else:
        row["cost_usd"] = mean(record["cloud_gpu_s"].to_numpy() * np.array(prices)[kind]) / 3600.0
    row["cloud_utilisation"] = math.nan if case.sequential else case.utilisation
    row |= {"refused": case.refused, "unfinished": case.unfinished}
    bounded_by = np.array(case.slos_s)[kind]
    good = float((latency <= bounded_by).sum()) if math.isfinite(min(case.slos_s)) else math.nan
    row["goodput_per_s"] = good / (case.duration_s - case.warmup_s)
    counted_s = math.nan
    if len(record) and not case.sequential:  # to the end of the arrivals, or to the last answer where that is later
        counted_s = (
            max(float(record["done_s"].max()), 0.0 if math.isnan(case.duration_s) else case.duration_s) - case.warmup_s
        )
    for name, column in (("under_way_mean", "latency_s"), ("cloud_waiting_mean", "cloud_queue_s")):
        row[name] = float(record[column].sum()) / counted_s if counted_s > 0 else math.nan
    images = record.drop_duplicates("image").sort_values("image")
    row["distinct_images"] = len(images)
    of_prompt = _by_prompt(record, quality)
    for name in quality:
        row |= _with_ends(name, student_interval(of_prompt[name].to_numpy()))
    found = case.of_set(images["image"].to_numpy())
    for name in of_sets:
        row |= _with_ends(name, found.get(name, (math.nan,) * 3))
    own, its = _paired(of_prompt, None if base is None else _by_prompt(base, quality), "prompt", "cloud_nll")
    known = np.isfinite(own - its)
    more, half = mean((own - its)[known]), half_width((own - its)[known], int(known.sum()))
    row |= {
        "cloud_nll_minus_base": more,
        "cloud_nll_minus_base_lo": more - half,
        "cloud_nll_minus_base_hi": more + half,
    }
    row |= {name: mean(record[name].to_numpy()) for name in ENERGY}
    return row | {name: float(case.settings.get(name, math.nan)) for name in SETTINGS}


def _kinds(case: CaseRecords, record: pd.DataFrame) -> np.ndarray:
    """int [n]: the kind of device of each request."""
    return np.searchsorted(np.cumsum(case.devices)[:-1], record["device"].to_numpy(), side="right")


def _with_ends(name: str, interval: Interval) -> dict[str, float]:
    """Quality columns of a value and its interval, within the values that the quantity can have."""
    lowest, highest = (0.0, 100.0) if name.endswith("_pct") else RANGES.get(name, (-math.inf, math.inf))
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), bounded(interval, lowest, highest), strict=True))


def _by_prompt(record: pd.DataFrame, quality: Sequence[str]) -> pd.DataFrame:
    """A row per prompt: the quality of its image, or the mean over its requests where fallbacks made several."""
    first = record.drop_duplicates("prompt").sort_values("prompt")
    if record["image"].nunique() == len(first):
        return first
    rows = [
        {"prompt": prompt, **{name: mean(of[name].to_numpy()) for name in quality}}
        for prompt, of in record.groupby("prompt")
    ]
    return pd.DataFrame(rows)


def _paired(one: pd.DataFrame, other: pd.DataFrame | None, key: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The column of both where both have the key, in the order of the first; empty without the other."""
    if other is None:
        return np.empty(0), np.empty(0)
    pairs = one[[key, name]].merge(other[[key, name]], on=key, suffixes=("", "_other"))
    return pairs[name].to_numpy(dtype=np.float64), pairs[f"{name}_other"].to_numpy(dtype=np.float64)


def _in_order(record: pd.DataFrame) -> pd.DataFrame:
    return record.sort_values(["requested_s", "request"], kind="stable")


def _conditions(case: CaseRecords) -> str:
    """The condition under which methods are compared: every swept value but the methods' own settings."""
    outside = {key: value for key, value in case.swept.items() if not key.startswith("methods.")}
    return json.dumps(outside, sort_keys=True, default=str)


def _dtype(name: str) -> type:
    return np.int64 if name in ("case", *COUNTS) else np.float64


def _case_frame(index: int, case: CaseRecords, quality: Sequence[str]) -> pd.DataFrame:
    missing = [name for name in REQUEST_COLUMNS if name not in case.columns]
    if missing:
        raise ValueError(f"case {index} ({case.method}): no columns {', '.join(missing)}")
    frame = pd.DataFrame({name: np.asarray(case.columns[name], dtype=_dtype(name)) for name in REQUEST_COLUMNS})
    excess = np.abs(frame[list(PARTS)].sum(axis=1) - frame["latency_s"])
    # A time has 16 digits, so that the parts of a request years after the start are less exact than a microsecond.
    if (excess > np.maximum(1e-6, 1e-12 * np.abs(frame["done_s"]))).any():
        raise ValueError(f"case {index} ({case.method}): the parts miss latency_s by up to {excess.max():.3g} s")
    frame.insert(0, "case", np.full(len(frame), index, dtype=np.int64))
    known = pd.DataFrame({name: np.asarray(values) for name, values in case.quality.items()})
    if "image" not in known:
        return frame.assign(**{name: np.full(len(frame), math.nan) for name in quality})
    if known["image"].duplicated().any():
        raise ValueError(f"case {index} ({case.method}): two quality rows for one image")
    by_image = known.set_index("image").reindex(columns=list(quality)).astype(np.float64)
    return frame.assign(**{name: by_image[name].reindex(frame["image"]).to_numpy() for name in quality})


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

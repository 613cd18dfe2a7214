"""Read a run folder, and say in words what its numbers allow to be said. Nothing here computes a metric anew."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from simulator.errors import RunFolderError

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
)  # of a latency, in the order of summary.csv
_INTERVALS = ("cloud_nll", "cloud_nll_minus_base", "cloud_greedy_pct", "base_greedy_pct", "speedup")
FEW = 5  # with fewer requests the findings give no interval of a latency
NEEDED = (
    *("images", "latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"),
    *("latency_minus_fastest_s", "latency_minus_fastest_lo_s", "latency_minus_fastest_hi_s"),
    *("decode_s", "first_token_s", "calls", "cloud_call_pct", "bytes_up", "bytes_down", "device_energy_j", "cloud_gpu_s"),
    *("cost_usd", "cloud_utilisation", "distinct_images", *PARTS),
    *(name + end for name in _INTERVALS for end in ("", "_lo", "_hi")),
)  # columns of summary.csv that a report reads
SCENES = ("fd_scenes", "f1_scenes", "align_scenes")
OPTIONAL = tuple(name + end for name in SCENES for end in ("", "_lo", "_hi"))  # NaN where a run has none

# At the end of a setting's name -> as it is written.
UNITS = {"ms": "ms", "s": "s", "mbps": "Mbit/s", "pct": "%", "bytes": "B", "j": "J", "tokens": "tokens"}


@dataclass(frozen=True)
class Picture:
    """An entry of images/index.json with its pixels. kind "image": uint8 [H, W, 3]; else float [h, w], NaN for none."""

    method: str
    prompt: int
    text: str
    kind: str
    pixels: np.ndarray
    png: bytes


@dataclass(frozen=True)
class Finding:
    """What the cases under the same conditions say. fastest: a label of the summary, "none" if nothing ran."""

    condition: str
    fastest: str
    title: str  # a few words, for plots
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    summary: summary.csv with two more columns, label (the method with its swept settings) and condition (what else is swept).
    queue: queue.parquet, the cloud over time.
    """

    name: str
    scenario: str
    provenance: dict[str, Any]
    swept: tuple[str, ...]
    summary: pd.DataFrame
    pictures: tuple[Picture, ...]
    queue: pd.DataFrame

    @property
    def as_if(self) -> str:
        """What stands under every table and plot where latency is priced as if the models were others; empty if it is not."""
        return str(self.provenance.get("as_if") or "")

    def conditions(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Cases to be compared with each other, in order: everything swept but the methods' own settings is equal."""
        for condition in dict.fromkeys(self.summary["condition"]):
            yield condition, self.summary[self.summary["condition"] == condition]

    def labels(self) -> list[str]:
        return list(dict.fromkeys(self.summary["label"]))


def load_run(folder: Path) -> Run:
    """The run in a folder. Raises RunFolderError where it is none, or where a file is missing or damaged."""
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: {'not a folder' if folder.exists() else 'it does not exist'}")
    if not (folder / "provenance.json").is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no provenance.json")
    provenance = _json(folder, "provenance.json")
    if not isinstance(provenance, dict) or provenance.get("program") != "ciar-sim":
        raise RunFolderError(f"{folder} is not a run folder: its provenance.json is not from ciar-sim")
    if provenance.get("run_format") != 1:
        raise RunFolderError(f"{folder} has run format {provenance.get('run_format')}, this program reads 1; run it again")
    try:
        text = pd.read_csv(io.BytesIO(_bytes(folder, "summary.csv")), dtype=str, keep_default_na=False)
        columns = list(text.columns)
        swept = tuple(columns[columns.index("method_name") + 1 : columns.index("images")])
        if missing := sorted({"case", "method", *NEEDED} - set(columns)):
            raise ValueError(f"no column {missing[0]}")
        table = pd.DataFrame({name: _typed(text[name], name in ("method", "method_name"), name in swept) for name in columns})
        table = table.assign(**{name: math.nan for name in OPTIONAL if name not in columns})
    except ValueError as error:
        raise RunFolderError(f"{folder / 'summary.csv'} cannot be read: {error}") from None
    if not (folder / "requests.parquet").is_file():
        raise RunFolderError(f"{folder} is not a whole run folder: it has no requests.parquet")
    name = str(provenance.get("name") or "run")
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    telling = tuple(key for key in swept if key in _NAMED or table[key].nunique(dropna=False) > 1)
    table["label"] = [label(row, swept) for row in rows]
    table["condition"] = [condition(row, telling) or name for row in rows]
    return Run(name, _bytes(folder, "scenario.yaml").decode(), provenance, swept, table, _pictures(folder), _queue(folder))


def _typed(cells: pd.Series, is_text: bool, may_be_text: bool) -> pd.Series:
    """Numbers, or text as it stands (a label may be NA); a swept column is text where any cell is none of a number."""
    if is_text:
        return cells.astype(object)
    try:
        return pd.Series([float(cell) for cell in cells], dtype=np.float64)
    except ValueError:
        if may_be_text:
            return cells.astype(object)
        raise


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a whole run folder: it has no {name}") from None
    except OSError as error:
        raise RunFolderError(f"{folder / name} cannot be read: {error.strerror or error}") from None


def _queue(folder: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(_bytes(folder, "queue.parquet")), columns=["case", "time_s", "queued", "admission"])
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder / 'queue.parquet'} cannot be read: {error}") from None


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads(_bytes(folder, name))
    except ValueError as error:
        raise RunFolderError(f"{folder / name} cannot be read: {error}") from None


def _pictures(folder: Path) -> tuple[Picture, ...]:
    if not (folder / "images" / "index.json").is_file():
        return ()
    pictures = []
    try:
        for entry in _json(folder, "images/index.json"):
            png = _bytes(folder, f"images/{entry['file']}")
            with Image.open(io.BytesIO(png)) as image:
                pixels = np.asarray(image)
            if entry["kind"] != "image":
                value = entry["low"] + pixels[..., 0] / 255.0 * (entry["high"] - entry["low"])
                pixels = np.where(pixels[..., 1] > 0, value, math.nan)
            pictures.append(Picture(entry["method"], entry["prompt"], entry["text"], entry["kind"], pixels, png))
    except (OSError, KeyError, TypeError, IndexError) as error:
        raise RunFolderError(f"{folder / 'images'} cannot be read: {error}") from None
    return tuple(pictures)


# ---- words ------------------------------------------------------------------------------------------------------------


_NAMED = ("network", "network.preset", "network.trace")  # their values are names that need no key before them


def own_setting(key: str) -> tuple[str, str] | None:
    """Method (label or name) and setting of a swept key: "methods.ciar v1.2.threshold" -> ("ciar v1.2", "threshold")."""
    front, _, setting = key.rpartition(".")
    return (front.removeprefix("methods."), setting) if front.startswith("methods.") else None


def split_unit(key: str) -> tuple[str, str]:
    """Name and unit of a dotted path: "network.rtt_ms" -> ("RTT", "ms"), "cloud.replicas" -> ("cloud replicas", "")."""
    own = own_setting(key)  # the label of a method may hold dots
    words = [*own] if own else [word for word in key.split(".") if word not in ("network", "workload", "arrivals")]
    name, _, unit = words[-1].rpartition("_") if words else (key, "", "")
    if "_per_" in (words[-1] if words else ""):
        name, _, unit = words[-1].partition("_per_")
        unit = f"per {unit}"
    elif unit not in UNITS or not name:
        name, unit = words[-1] if words else key, ""
    text = " ".join([*words[:-1], name]).replace("_", " ")
    return " ".join("RTT" if word == "rtt" else word for word in text.split()), UNITS.get(unit, unit)


def number(value: Any) -> str:
    """A swept value as text: 0.5, 20, lte."""
    return f"{value:.12g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without exponents where they would not help; a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits - 1}e}"
    decimals = digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.999 has one less
    return f"{value:.{decimals}f}" if decimals <= digits + 2 else f"{value:.{digits - 1}e}"


def absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def label(row: dict[str, Any], swept: tuple[str, ...]) -> str:
    """The method with the swept settings of its own that its label does not name yet: "ciar threshold=0.5"."""
    text = str(row["method"])
    for key in swept:
        own = own_setting(key)
        if own and own[0] in (row["method"], row["method_name"]) and not absent(row[key]):
            said = f"{own[1]}={number(row[key])}"
            text += "" if said in text.split() else f" {said}"
    return text


def condition(row: dict[str, Any], swept: tuple[str, ...]) -> str:
    """What is swept besides the methods' own settings: "wifi", "RTT 20 ms", "lte, cloud replicas 4"."""
    parts = []
    for key in swept:
        if key.startswith("methods.") or absent(row[key]):
            continue
        if key in _NAMED:
            parts.append(str(row[key]))
        else:
            name, unit = split_unit(key)
            parts.append(f"{name} {number(row[key])} {unit}".strip())
    return ", ".join(parts)


def axis_label(key: str) -> str:
    name, unit = split_unit(key)
    return f"{name} ({unit})" if unit else name


# ---- findings ---------------------------------------------------------------------------------------------------------


def finding(condition: str, cases: pd.DataFrame, *, where: bool = True) -> Finding:
    """Which method is fastest under one set of conditions, by how much, and whether its pictures are base's.

    A method is told apart from the fastest where the interval of the speed-up excludes 1 if one of them is base, otherwise where
    the interval of the difference excludes 0. Both are paired by request.
    """
    on = f"{condition}: " if where else ""
    ran = cases[np.isfinite(cases["latency_mean_s"])].sort_values("latency_mean_s", kind="stable")
    if ran.empty:
        sentence = "No request was answered, so there is nothing to compare."
        return Finding(condition, "none", f"{on}no request was answered", (sentence,))
    rows = [row for _, row in ran.iterrows()]
    best, others = rows[0], rows[1:]
    name = str(best["label"])
    seconds = _seconds(best)
    if not others:
        return Finding(condition, name, f"{on}{name} takes {significant(best['latency_mean_s'])} s", (f"{name}: {seconds}.",))
    bases = [row for row in rows if is_base(row)]
    equal = [str(row["label"]) for row in others if not told_apart(best, row)]
    if math.isnan(best["latency_mean_lo_s"]):
        title = f"{on}{name} has the lowest mean, from one request"
        first = f"{name} has the lowest mean latency, {seconds}, but one request gives no interval: nothing can be concluded."
        return Finding(condition, name, title, (first, *_pictures_sentence(best, rows, bases)))
    gain = _gain(best, bases)
    if equal:
        title = f"{on}not told apart: {_join([name, *equal] if len(equal) < 3 else [name, f'{len(equal)} others'])}"
        first = f"{_join([name, *equal])} are not told apart: the paired intervals allow no difference or are missing. "
        first += f"{name} has the lowest mean, {seconds}{', ' + gain if gain else ''}."
    elif is_base(best):
        second = others[0]
        longer, least, most = (significant(1 / second[column], 2) for column in ("speedup", "speedup_hi", "speedup_lo"))
        title = f"{on}{name} is fastest ({second['label']} takes {longer}× as long)"
        range_ = "" if _few(best) else f" ({least} to {most})"
        first = f"{name} is fastest: {seconds}. The next, {second['label']}, takes {longer}× as long{range_}."
    else:
        speed = f" ({significant(best['speedup'], 2)}× base)" if bases else ""
        title = f"{on}{name} is fastest{speed}{_at_base_s_quality(best, rows, bases)}"
        first = f"{name} is fastest: {seconds}{', ' + gain if gain else ''}."
        first += "" if bases else " Base was not run, so there is no speed-up to give."
    return Finding(condition, name, title, (first, *_pictures_sentence(best, rows, bases)))


def _gain(best: pd.Series, bases: list[pd.Series]) -> str:
    if not bases or is_base(best):
        return ""
    if _few(best):
        return f"{significant(best['speedup'])}× base's speed"
    return interval(best, "speedup", "speedup_lo", "speedup_hi", unit="× base's speed")


def _few(row: pd.Series) -> bool:
    return bool(row["images"] < FEW)


def _seconds(row: pd.Series) -> str:
    if _few(row):
        return f"{significant(row['latency_mean_s'])} s per image (too few requests for an interval)"
    return interval(row, "latency_mean_s", "latency_mean_lo_s", "latency_mean_hi_s", unit=" s per image")


def is_base(row: pd.Series) -> bool:
    return bool(row["method_name"] == "base")


def told_apart(fastest: pd.Series, other: pd.Series) -> bool:
    """Whether the latency of a case differs from the fastest's by more than their paired 95 % interval allows."""
    for base, method in ((fastest, other), (other, fastest)):
        if is_base(base) and not is_base(method):
            return bool(method["speedup_lo"] > 1 or method["speedup_hi"] < 1)
    return bool(other["latency_minus_fastest_lo_s"] > 0)


def same_pictures(one: pd.Series) -> bool:
    """Whether the interval of cloud_nll minus base's, paired by prompt, allows no difference."""
    return bool(one["cloud_nll_minus_base_lo"] <= 0 <= one["cloud_nll_minus_base_hi"])


def _pictures_sentence(best: pd.Series, rows: list[pd.Series], bases: list[pd.Series]) -> tuple[str, ...]:
    if not bases or is_base(best) or not math.isfinite(best["cloud_nll_minus_base_lo"]):
        return ()
    base = bases[0]
    own, its = (interval(row, "cloud_nll", "cloud_nll_lo", "cloud_nll_hi") for row in (best, base))
    apart = interval(best, "cloud_nll_minus_base", "cloud_nll_minus_base_lo", "cloud_nll_minus_base_hi")
    beside = f"{own} beside base's {its} nats per token, paired difference {apart}"
    images = f"{int(best['distinct_images'])} distinct images"
    if same_pictures(best):
        return (f"Its pictures are not told apart from base's by cloud_nll: {beside}, on {images}.",)
    first = f"Its pictures are not base's: cloud_nll {beside}, on {images}."
    near = [row for row in rows if not is_base(row) and same_pictures(row)]
    if not near:
        return (first, "No other method here has a cloud_nll that is not told apart from base's.")
    speed = f"{near[0]['label']}, {_gain(near[0], bases)}"
    if near[0]["speedup_lo"] > 1:
        return (first, f"Fastest with a cloud_nll not told apart from base's: {speed}.")
    return (first, f"Of those with a cloud_nll not told apart from base's, none is told to be faster than base; the fastest: {speed}.")


def _at_base_s_quality(best: pd.Series, rows: list[pd.Series], bases: list[pd.Series]) -> str:
    """For a title: where the fastest has other pictures, who is fastest of those that have base's."""
    if not bases or is_base(best) or not math.isfinite(best["cloud_nll_minus_base_lo"]) or same_pictures(best):
        return ""
    base = str(bases[0]["label"])
    near = next((row for row in rows if not is_base(row) and same_pictures(row)), None)
    if near is None or near["speedup_hi"] < 1:
        who = base
    else:
        who = str(near["label"]) if near["speedup_lo"] > 1 else f"{base} or {near['label']}"
    return f"; at {base}'s quality: {who}"


def interval(row: pd.Series, mean: str, low: str, high: str, unit: str = "") -> str:
    """ "3.21 s (3.10 to 3.33)", without brackets where there is no interval or it has no width."""
    text = f"{significant(row[mean])}{unit}"
    if not (math.isfinite(row[low]) and math.isfinite(row[high])) or row[low] == row[high]:
        return text
    return f"{text} ({significant(row[low])} to {significant(row[high])})"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]

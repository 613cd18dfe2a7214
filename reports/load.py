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

from reports.words import _NAMED, condition, label
from simulator.core.errors import RunFolderError

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
NEEDED = (
    *(
        "images",
        "latency_mean_s",
        "latency_mean_lo_s",
        "latency_mean_hi_s",
        "latency_p50_s",
        "latency_p95_s",
        "latency_p99_s",
    ),
    *("latency_minus_fastest_s", "latency_minus_fastest_lo_s", "latency_minus_fastest_hi_s"),
    *(
        "decode_s",
        "first_token_s",
        "calls",
        "cloud_call_pct",
        "bytes_up",
        "bytes_down",
        "device_energy_j",
        "cloud_gpu_s",
    ),
    *("cost_usd", "cloud_utilisation", "distinct_images", *PARTS),
    *(name + end for name in _INTERVALS for end in ("", "_lo", "_hi")),
)  # columns of summary.csv that a report reads
SCENES = ("fd_scenes", "f1_scenes", "align_scenes")
OPTIONAL = tuple(name + end for name in SCENES for end in ("", "_lo", "_hi"))  # NaN where a run has none


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
        for name in dict.fromkeys(self.summary["condition"]):
            yield name, self.summary[self.summary["condition"] == name]

    def labels(self) -> list[str]:
        return list(dict.fromkeys(self.summary["label"]))


def load_run(folder: Path) -> Run:
    """The run in a folder. Raises RunFolderError where it is none, or where a file is missing or damaged."""
    if not folder.is_dir():
        raise RunFolderError(
            f"{folder} is not a run folder: {'not a folder' if folder.exists() else 'it does not exist'}"
        )
    if not (folder / "provenance.json").is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no provenance.json")
    provenance = _json(folder, "provenance.json")
    if not isinstance(provenance, dict) or provenance.get("program") != "ciar-sim":
        raise RunFolderError(f"{folder} is not a run folder: its provenance.json is not from ciar-sim")
    if provenance.get("run_format") != 1:
        raise RunFolderError(
            f"{folder} has run format {provenance.get('run_format')}, this program reads 1; run it again"
        )
    try:
        text = pd.read_csv(io.BytesIO(_bytes(folder, "summary.csv")), dtype=str, keep_default_na=False)
        columns = list(text.columns)
        swept = tuple(columns[columns.index("method_name") + 1 : columns.index("images")])
        if missing := sorted({"case", "method", *NEEDED} - set(columns)):
            raise ValueError(f"no column {missing[0]}")
        table = pd.DataFrame(
            {name: _typed(text[name], name in ("method", "method_name"), name in swept) for name in columns}
        )
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
    return Run(
        name, _bytes(folder, "scenario.yaml").decode(), provenance, swept, table, _pictures(folder), _queue(folder)
    )


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
        return pd.read_parquet(
            io.BytesIO(_bytes(folder, "queue.parquet")), columns=["case", "time_s", "queued", "admission"]
        )
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

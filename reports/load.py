"""Reader of run folders. It computes no metrics: all numbers are those of summary.csv."""

import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from PIL import Image

from reports.words import NAMED_KEYS, condition, label, shortened
from simulator.core.errors import RunFolderError, reason
from simulator.core.files import read_file
from simulator.results.columns import COLUMNS, JUDGED, QUALITY_COLUMNS, RUN_FORMAT, Judged, interval_columns, judged_in
from simulator.results.files import csv_text
from simulator.results.folder import SCENARIO_SHA256, RunImage, is_unfinished, scenario_digest

TYPES: dict[str, tuple[type, str]] = {  # of the entries of provenance.json that are used
    "warnings": (list, "a list of texts"),
    "notes": (list, "a list of texts"),
    "columns": (dict, "a mapping"),
}
REQUIRED = ("case", "method", "method_name", "images", "latency_mean_s")  # others are NaN if summary.csv lacks them


def summary_columns() -> tuple[str, ...]:
    """Return the names of the metrics of summary.csv and of their intervals, in the order of definition."""
    quality = [end for name in (*QUALITY_COLUMNS, *itertools.chain(*JUDGED)) for end in interval_columns(name)]
    named = [name for names in COLUMNS for name in names.split(", ") if "<" not in name]
    return tuple(dict.fromkeys([*named, *quality]))


@dataclass(frozen=True)
class StoredImage(RunImage):
    """An image of a run folder, with the bytes of its file."""

    png: bytes


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Attributes:
        name: name of the scenario.
        scenario: text of scenario.yaml.
        provenance: provenance.json.
        swept: swept keys, as dotted paths.
        summary: summary.csv with two more columns: label (the method with its swept settings) and condition (the other swept values).
        images: the stored images and maps.
        queue: queue.parquet, the cloud's queue over time.
        folder: the path of the folder.
        whole: for a selection of cases, (label, method name) of every case of the complete run, so that looks stay the same.
    """

    name: str
    scenario: str
    provenance: dict[str, Any]
    swept: tuple[str, ...]
    summary: pd.DataFrame
    images: tuple[StoredImage, ...]
    queue: pd.DataFrame
    folder: Path
    whole: tuple[tuple[str, str], ...] = ()

    @property
    def series(self) -> tuple[tuple[str, str], ...]:
        """(label, method name) of every case of the complete run, by which looks are assigned."""
        return self.whole or tuple(zip(self.summary["label"], self.summary["method_name"], strict=True))

    @property
    def judged(self) -> Judged:
        """The columns of the pair's judge."""
        return judged_in(self.provenance.get("columns") or self.summary.columns)

    @property
    def as_if(self) -> str:
        """Description of the models that passes are priced as, if they are not the pair's own; else empty."""
        return str(self.provenance.get("as_if") or "")

    def conditions(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield name and cases of each condition in order. The cases differ only in the method and its settings."""
        for name, cases in self.summary.groupby("condition", sort=False):
            yield str(name), cases

    def labels(self) -> list[str]:
        """Return the distinct labels in order of appearance."""
        return list(dict.fromkeys(self.summary["label"]))

    @cached_property
    def requests(self) -> pd.DataFrame:
        """The columns case, request, requested_s and latency_s of every answered request.

        Raises:
            RunFolderError: requests.parquet cannot be read.
        """
        data = _bytes(self.folder, "requests.parquet")
        try:
            table = _table(data, ["case", "request", "requested_s", "latency_s"])
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.folder / 'requests.parquet'} cannot be read: {error}") from None
        return table

    def require_own_scenario(self) -> None:
        """Raise RunFolderError if scenario.yaml is not as the run wrote it. Folders of earlier versions cannot be checked."""
        written = self.provenance.get(SCENARIO_SHA256)
        if written is not None and written != scenario_digest(self.scenario):
            file = self.folder / "scenario.yaml"
            raise RunFolderError(
                f"{file} is not as the run wrote it: it was edited or cut, and its sessions are not those of {self.folder}; restore it, or "
                f"run it: ciar-sim run {file} --out FOLDER"
            )

    @cached_property
    def _resolved(self) -> Any:
        try:
            return yaml.safe_load(self.scenario)
        except yaml.YAMLError:
            return {}

    def setting(self, path: str, default: float) -> float:
        """Return a number of scenario.yaml by dotted path, or the default if there is none."""
        value = self._resolved
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default

    def setting_of(self, case: pd.Series, path: str, default: float) -> float:
        """Return the value of a case if the path is swept, else the default."""
        value = case.get(path, default)
        return default if pd.isna(value) else float(value)


def load_run(folder: Path) -> Run:
    """Read the run in a folder.

    Raises:
        RunFolderError: the folder is not a run folder, or a file in it is missing, damaged or cannot be read.
    """
    try:
        return _read_run(folder)
    except OSError as error:  # from looking for files, if a folder cannot be entered
        raise RunFolderError(f"{error.filename or folder} cannot be read: {reason(error)}") from None


def _read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise RunFolderError(
            f"{folder} is not a run folder: {'not a folder' if folder.exists() else 'it does not exist'}"
        )
    if is_unfinished(folder):
        raise RunFolderError(f"{folder} is unfinished: `ciar-sim report {folder}` says what is missing")
    if not (folder / "provenance.json").is_file():
        raise RunFolderError(f"{folder} is not a run folder: it has no provenance.json")
    provenance = _json(folder, "provenance.json")
    if not isinstance(provenance, dict) or provenance.get("program") != "ciar-sim":
        raise RunFolderError(f"{folder} is not a run folder: its provenance.json is not from ciar-sim")
    if provenance.get("run_format") != RUN_FORMAT:
        raise RunFolderError(
            f"{folder} has run format {provenance.get('run_format')}, this program reads {RUN_FORMAT}; run it again"
        )
    for key, (kind, words) in TYPES.items():
        found: Any = provenance.get(key) or kind()
        if not isinstance(found, kind) or (isinstance(found, list) and not all(isinstance(one, str) for one in found)):
            raise RunFolderError(f"{folder / 'provenance.json'} cannot be read: {key} must be {words}")
    try:
        text = csv_text(_bytes(folder, "summary.csv"))
        columns = list(text.columns)
        if missing := [name for name in REQUIRED if name not in columns]:
            raise ValueError(f"no column {missing[0]}")
        swept = tuple(columns[columns.index("method_name") + 1 : columns.index("images")])
        table = pd.DataFrame(
            {name: _typed(text[name], name in ("method", "method_name"), name in swept) for name in columns}
        )
        table = table.assign(**{name: math.nan for name in summary_columns() if name not in columns})
    except ValueError as error:
        raise RunFolderError(f"{folder / 'summary.csv'} cannot be read: {error}") from None
    if table.empty:
        raise RunFolderError(f"{folder / 'summary.csv'} holds no case")
    if table["case"].tolist() != list(range(len(table))):
        raise RunFolderError(f"{folder / 'summary.csv'} cannot be read: its cases are not numbered from 0 on")
    if not (folder / "requests.parquet").is_file():
        raise RunFolderError(f"{folder} is not a whole run folder: it has no requests.parquet")
    name = str(provenance.get("name") or "run")
    scenario = _bytes(folder, "scenario.yaml").decode(errors="replace")
    summary = with_words(table, swept, name)
    images = _with_labels(_images(folder), _labels(table, swept, {}), summary["label"])
    run = Run(name, scenario, provenance, swept, summary, images, _queue(folder), folder)
    check_requests(run.requests, summary, folder)  # before anything is drawn
    return run


def check_requests(requests: pd.DataFrame, summary: pd.DataFrame, folder: Path) -> None:
    """Raise RunFolderError if requests (case, request, latency_s) do not match the summary: one is truncated, or of another run."""
    wrong = f"{folder}: requests.parquet and summary.csv are not of one run, or one is cut: "
    of_case = dict(iter(requests.groupby("case")["latency_s"]))
    if others := sorted(set(of_case) - set(summary["case"])):
        raise RunFolderError(f"{wrong}case {others[0]:g} is in the former alone")
    twice = requests[requests.duplicated(["case", "request"])]
    if len(twice):
        raise RunFolderError(
            f"{wrong}request {twice['request'].iloc[0]:g} of case {twice['case'].iloc[0]:g} is there twice"
        )
    for case, images, mean_s in summary[["case", "images", "latency_mean_s"]].itertuples(index=False):
        there = of_case.get(case, ())
        if len(there) < images:
            raise RunFolderError(f"{wrong}case {case:g} has {len(there)} requests there and {images:g} images here")
        if len(there) == images > 0 and not math.isclose(np.mean(there), mean_s, rel_tol=1e-6, abs_tol=1e-9):
            raise RunFolderError(
                f"{wrong}case {case:g} has a mean of {np.mean(there):g} s there and of {mean_s:g} s here"
            )


def with_words(summary: pd.DataFrame, swept: tuple[str, ...], name: str) -> pd.DataFrame:
    """Add the columns label and condition to a summary. The condition is `name` if nothing is swept.

    Swept numbers have no more digits than needed to distinguish them: ranges, random points and trials have six.
    """
    labels = _labels(summary, swept, shown_numbers({key: summary[key] for key in swept}))
    if len(set(labels)) < len(set(_labels(summary, swept, {}))):  # a shown number is in the label of another method
        labels = _labels(summary, swept, {})
    distinct = tuple(key for key in swept if key in NAMED_KEYS or summary[key].nunique(dropna=False) > 1)
    return summary.assign(
        label=labels,
        condition=[words or name for words in condition_names(summary, distinct)],
    )


def _labels(summary: pd.DataFrame, swept: tuple[str, ...], shown: Mapping[str, pd.Series]) -> list[str]:
    """Return the label of every row. shown: columns of swept keys in place of those of the summary."""
    named = summary.assign(**shown)[["method", "method_name", *swept]]
    return [label({str(key): value for key, value in row.items()}, swept) for row in named.to_dict("records")]


def shown_numbers(table: Mapping[str, pd.Series]) -> dict[str, pd.Series]:
    """Return the columns of swept keys with no more digits than needed to distinguish the numbers of a column."""
    found = dict(table)
    for key, column in table.items():
        if pd.api.types.is_float_dtype(column):
            shown = shortened(column)
            found[key] = column.map(lambda value, shown=shown: shown.get(value, value))
    return found


def condition_names(summary: pd.DataFrame, keys: tuple[str, ...]) -> list[str]:
    """Describe the condition of every row by some of the swept keys. Numbers have no more digits than needed to distinguish them."""
    table = shown_numbers({key: summary[key] for key in keys})
    return [condition(dict(zip(keys, row, strict=True)), keys) for row in zip(*table.values(), strict=True)] or [
        ""
    ] * len(summary)


class Panels(NamedTuple):
    """The panels of a plot along a swept key.

    Attributes:
        names: Panel of every case, named by the other conditions; empty if there are none.
        joined: Whether a panel shows a curve along the key. If not, as for random points, its points differ in `apart` too.
        apart: Keys of the other conditions that the panels do not name.
    """

    names: list[str]
    joined: bool
    apart: tuple[str, ...]


def panels_along(summary: pd.DataFrame, swept: tuple[str, ...], key: str) -> Panels:
    """Divide the cases of a run by the conditions other than a swept key.

    Numbers that rise or fall with the key (`zip`) are no other condition. If no panel then has two values of the key, as with random
    points, only names remain, such as network presets, and the points of a panel are not a curve.
    """
    others = tuple(other for other in swept if other != key and not other.startswith("methods."))
    numbers = [other for other in others if pd.api.types.is_numeric_dtype(summary[other])]
    with_key = [other for other in numbers if in_step(summary, key, other)]
    for left_out, joined in (((), True), (with_key, True), (numbers, False), (others, False)):
        kept = tuple(other for other in others if other not in left_out)
        names = condition_names(summary, kept)
        # Two of some random points may have all else in common by chance; they are no curve.
        if (summary.groupby(pd.Series(names, index=summary.index))[key].nunique() > 1).mean() >= 0.5:
            return Panels(names, joined, tuple(other for other in left_out if summary[other].nunique() > 1))
    return Panels(condition_names(summary, others), True, ())  # one value of the key in all


def in_step(summary: pd.DataFrame, key: str, other: str) -> bool:
    """Return whether each value of a swept key has its own value of another one, which rises or falls with it."""
    if not all(pd.api.types.is_numeric_dtype(summary[one]) for one in (key, other)):
        return False
    pairs = summary.loc[summary[key].notna(), [key, other]].drop_duplicates().sort_values(key)
    steps = np.diff(pairs[other].to_numpy(dtype=float))
    return not pairs[key].duplicated().any() and bool((steps > 0).all() or (steps < 0).all())


def _typed(cells: pd.Series, is_text: bool, may_be_text: bool) -> pd.Series:
    """Convert cells to numbers. Names remain text (a label may be NA), and so does a swept column with any cell that is not a number.

    An empty cell is NaN, as in a table that pandas or a spreadsheet has saved again.
    """
    if is_text:
        return cells.astype(object)
    try:
        return pd.Series([float(cell or "nan") for cell in cells], dtype=np.float64)
    except ValueError:
        if may_be_text:
            return cells.astype(object)
        line, cell = next((line, cell) for line, cell in enumerate(cells, start=2) if not _is_number(cell))
        raise ValueError(f"line {line}: {cells.name} must be a number or NaN, got {cell[:40]!r}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return read_file(folder / name)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a whole run folder: it has no {name}") from None
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        raise RunFolderError(f"{folder / name} cannot be read: {reason(error)}") from None


def _table(data: bytes, columns: list[str]) -> pd.DataFrame:
    """Read numeric columns of a Parquet file without pyarrow's slow-loading dataset module. Raises ValueError if one is invalid."""
    file = pq.ParquetFile(io.BytesIO(data))
    there = file.schema_arrow.names
    for name in columns:
        if there.count(name) != 1:
            raise ValueError(f"{there.count(name) or 'no'} column{'s' * (name in there)} {name}")
    table: pd.DataFrame = file.read(columns).to_pandas(ignore_metadata=True)  # keeps a stored pandas index as a column
    for name in columns:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise ValueError(f"column {name} holds {table[name].dtype}, needed numbers")
        if not np.isfinite(table[name]).all():
            raise ValueError(f"column {name} holds values that are not finite")
    return table


def _queue(folder: Path) -> pd.DataFrame:
    try:
        return _table(_bytes(folder, "queue.parquet"), ["case", "time_s", "queued", "admission"])
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder / 'queue.parquet'} cannot be read: {error}") from None


def _json(folder: Path, name: str) -> Any:
    try:
        return json.loads(_bytes(folder, name))
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{folder / name} cannot be read: {error}") from None


def _with_labels(
    images: tuple[StoredImage, ...], whole: Iterable[str], labels: Iterable[str]
) -> tuple[StoredImage, ...]:
    """Name images by the labels of their cases. whole: labels with all digits, as in images/index.json, perhaps before other words."""
    known = {f"{old} ": f"{new} " for old, new in zip(whole, labels, strict=True) if old != new}
    found = []
    for one in images:
        name = f"{one.method} "
        old = max((old for old in known if name.startswith(old)), key=len, default="")
        found.append(replace(one, method=(known[old] + name.removeprefix(old)).rstrip()) if old else one)
    return tuple(found)


def _images(folder: Path) -> tuple[StoredImage, ...]:
    if not (folder / "images" / "index.json").is_file():
        return ()
    images = []
    try:
        for entry in _json(folder, "images/index.json"):
            if Path(entry["file"]).name != entry["file"]:
                raise RunFolderError(
                    f"{folder / 'images'} cannot be read: {entry['file']!r} is not the name of a file in it"
                )
            for key, kind in (("method", str), ("prompt", int), ("text", str), ("kind", str)):
                if not isinstance(entry[key], kind):
                    raise TypeError(f"{key} of {entry['file']} in index.json is {str(entry[key])[:40]!r}")
            png = _bytes(folder, f"images/{entry['file']}")
            try:
                with Image.open(io.BytesIO(png)) as image:
                    pixels = np.asarray(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise TypeError(f"{entry['file']} is not a complete PNG file ({type(error).__name__})") from None
            if entry["kind"] != "image":
                value = entry["low"] + pixels[..., 0] / 255.0 * (entry["high"] - entry["low"])
                pixels = np.where(pixels[..., 1] > 0, value, math.nan)
            images.append(StoredImage(entry["method"], entry["prompt"], entry["text"], entry["kind"], pixels, png))
    except (OSError, KeyError, TypeError, IndexError) as error:
        raise RunFolderError(f"{folder / 'images'} cannot be read: {error}") from None
    return tuple(images)

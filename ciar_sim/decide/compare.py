"""Comparison of finished runs: paired differences of latency, quality and cost, with intervals."""

import copy
import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ciar_sim.decide.decision import Decision
from reports.load import Run, load_run
from reports.words import own_setting, significant
from simulator.core import yamlfile
from simulator.core.errors import CiarSimError, RunFolderError, ScenarioError
from simulator.results.columns import ENERGY, PARTS, REQUEST_COLUMNS, USE, interval_columns
from simulator.results.statistics import BATCHES, half_width

# Relative and absolute rounding error of equal figures: sums in another order, and differences of times in a run of hours.
ROUNDING, ROUNDING_S = 1e-9, 1e-12
USED = ("latency_s", "decode_s", "first_token_s", *PARTS, *USE, *ENERGY)  # columns of requests that are compared


def compare(folders: Sequence[Path]) -> Decision:
    """Compare every run with the first one, case by case.

    Cases are paired if label and swept values are equal, or if both runs have one case only. Within a pair, requests are paired if both
    runs have the same ones (number, prompt, time), and images if prompts, seed and decoding are the same. Otherwise the difference is that
    of two independent means.

    Args:
        folders: Run folders, at least two.

    Raises:
        CiarSimError: A folder is not a run folder, or two runs have no case in common.
    """
    if len(folders) < 2:
        raise CiarSimError(f"compare needs two runs or more, got {len(folders)}")
    runs = [_Loaded(folder) for folder in folders]
    rows: list[dict[str, Any]] = []
    sentences: list[str] = []
    for other in runs[1:]:
        pairs = _pairs(runs[0], other)
        if not pairs:
            raise CiarSimError(
                f"{other.folder} and {runs[0].folder} have no case in common: methods {', '.join(other.run.labels())} "
                f"and {', '.join(runs[0].run.labels())}"
            )
        alike: dict[str, list[str]] = {}
        for name, one, two in pairs:
            found = _differences(runs[0], one, other, two)
            rows += [{"run": str(other.folder), "case": name, **row} for row in found]
            alike.setdefault(_said(found), []).append(name)
        told = [f"{_named(names)}: {text}." for text, names in alike.items()]
        which = f" ({other.folder} against {runs[0].folder})"
        # With two runs the folders are named once, with more after each sentence.
        sentences += [f"{text}{which if not place or len(runs) > 2 else ''}" for place, text in enumerate(told)]
        sentences += _unpaired(runs[0], {one for _, one, _ in pairs}, other)
        sentences += _unpaired(other, {two for _, _, two in pairs}, runs[0])
    facts = {"reference": str(runs[0].folder), "confidence": 0.95}
    return Decision(tuple(sentences), pd.DataFrame(rows), {}, facts)


class _Loaded:
    """A run folder with its requests, and the settings that determine its images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Run = load_run(folder)
        try:
            self.requests: pd.DataFrame = (
                pq.ParquetFile(folder / "requests.parquet").read().to_pandas(ignore_metadata=True)
            )
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{folder / 'requests.parquet'} cannot be read: {error}") from None
        wrong = f"{folder / 'requests.parquet'} cannot be read:"
        if missing := [name for name in ("case", "request", "prompt", "requested_s") if name not in self.requests]:
            raise RunFolderError(f"{wrong} no column {missing[0]}")
        texts = {"method", "method_name", *self.run.swept}
        for name, column in self.requests.items():
            if pd.api.types.is_numeric_dtype(column) or name in texts:
                continue
            if name in self.run.summary or name in REQUEST_COLUMNS:
                raise RunFolderError(f"{wrong} column {name} holds {column.dtype}, needed numbers")
            texts.add(str(name))  # a column that a user has added
        if self.requests["prompt"].isna().any():
            raise RunFolderError(f"{wrong} column prompt holds values that are not finite")
        self.requests = self.requests.drop(columns=[name for name in texts if name in self.requests])
        self.scenario = _plain(folder, self.run.scenario)

    def row(self, case: int) -> pd.Series:
        """Return the row of summary.csv of a case."""
        return self.run.summary[self.run.summary["case"] == case].iloc[0]

    def of(self, case: int) -> pd.DataFrame:
        """Return the requests of a case in order of arrival, without those of its warm-up."""
        path = "workload.warmup_s"
        warmup_s = self.run.setting_of(self.row(case), path, self.run.setting(path, 0.0))
        mine = self.requests[(self.requests["case"] == case) & (self.requests["requested_s"] >= warmup_s)]
        return mine.sort_values(["requested_s", "request"], kind="stable")

    def images(self, case: int) -> dict[str, Any]:
        """Return the settings that determine the images of a case, with its swept values."""
        found = {key: copy.deepcopy(self.scenario.get(key)) for key in ("prompts", "seed", "decoding")}
        if isinstance(found["prompts"], dict) and "list" not in found["prompts"]:
            found["prompts"] = {"skip": 0, **found["prompts"]}  # runs of earlier versions do not have it
        for path in self.run.swept:
            section, _, key = path.partition(".")
            if section in found:
                value = self.row(case)[path]
                found[section] = {**(found[section] or {}), key: value} if key else value
        return found


def _plain(folder: Path, text: str) -> dict[str, Any]:
    """Return scenario.yaml as plain data, without validation."""
    try:
        data = yamlfile.parse(text, str(folder / "scenario.yaml")).data
    except ScenarioError as error:
        raise RunFolderError(str(error)) from None
    if not isinstance(data, dict):
        raise RunFolderError(f"{folder / 'scenario.yaml'} cannot be read: it is not a mapping")
    return data


def _pairs(one: _Loaded, two: _Loaded) -> list[tuple[str, int, int]]:
    """Return name and case numbers of the pairs of cases. Raises CiarSimError if a condition is swept in one run only."""
    common = [key for key in one.run.swept if key in two.run.swept]
    varied = [
        key for run in (one.run, two.run) for key in run.swept if key not in common and run.summary[key].nunique() > 1
    ]

    def key(row: Any) -> tuple[str, ...]:
        return (str(row["label"]), *(str(row[name]) for name in common))

    tables = (one.run.summary, two.run.summary)
    if all(len(table) == 1 for table in tables):
        (name, case), (other, its) = ((str(table["label"].iloc[0]), int(table["case"].iloc[0])) for table in tables)
        return [(name if name == other else f"{other} against {name}", case, its)]
    if varied:
        raise CiarSimError(
            f"{two.folder} and {one.folder}: {varied[0]} is swept in one of them only, so their cases cannot be paired"
        )
    there = {key(row): int(row["case"]) for _, row in two.run.summary.iterrows()}
    return [
        (_name(row, common), int(row["case"]), there[key(row)])
        for _, row in one.run.summary.iterrows()
        if key(row) in there
    ]


def _name(row: Any, swept: Sequence[str]) -> str:
    """Return label and condition. The label contains swept settings of methods."""
    with_condition = any(own_setting(key) is None for key in swept)
    return ", ".join(dict.fromkeys([str(row["label"]), *([str(row["condition"])] if with_condition else [])]))


def _unpaired(one: _Loaded, paired: Set[int], other: _Loaded) -> list[str]:
    """Return a sentence about the cases of a run that the other run does not have."""
    rows = [row for _, row in one.run.summary.iterrows() if int(row["case"]) not in paired]
    names = [_name(row, one.run.swept) for row in rows]
    return [f"{_named(names)}: not in {other.folder}, and not compared."] if names else []


def _differences(one: _Loaded, case: int, two: _Loaded, other: int) -> list[dict[str, Any]]:
    """Return a row per column: its mean in both runs, the difference with its interval, and the pairing."""
    first, second = one.of(case), two.of(other)
    keys = ["request", "prompt", "requested_s"]
    images, others = one.images(case), two.images(other)
    same = images["prompts"] == others["prompts"] and len(first) == len(second)
    same = same and np.array_equal(first[keys].to_numpy(), second[keys].to_numpy())
    names = [name for name in USED if name in first and name in second]
    rows = [
        _row(name, first[name].to_numpy(float), second[name].to_numpy(float), same, "request", BATCHES)
        for name in names
    ]
    rows.append(_of_summary(one, case, two, other, "cost_usd"))
    known = {"case", "method", "method_name", *one.run.swept, *REQUEST_COLUMNS}
    quality = [name for name in first.columns if name not in known and name in second]
    same = images == others
    for name in quality:
        before, after = (table.groupby("prompt")[name].mean().dropna() for table in (first, second))
        if same:
            both = pd.concat([before, after], axis=1, join="inner").to_numpy(float)
            rows.append(_row(name, both[:, 0], both[:, 1], True, "prompt", len(both)))
        else:
            most = max(len(before), len(after))
            rows.append(_row(name, before.to_numpy(float), after.to_numpy(float), False, "prompt", most))
    sets = [
        name
        for name in one.run.summary.columns
        if f"{name}_lo" in one.run.summary
        and name not in (*quality, "speedup")
        and name.startswith(("fd_", "f1", "fid"))
    ]
    rows += [_of_summary(one, case, two, other, name) for name in sets if name in two.run.summary]
    return [row for row in rows if math.isfinite(row["difference"])]


def _row(name: str, before: np.ndarray, after: np.ndarray, paired: bool, key: str, batches: int) -> dict[str, Any]:
    values = [float(side.mean()) if len(side) else math.nan for side in (before, after)]
    if paired:
        half = half_width(after - before, batches)
    else:  # Welch: independent means, each with its own interval
        half = math.hypot(half_width(before, min(batches, len(before))), half_width(after, min(batches, len(after))))
    return _told(name, values[0], values[1], half, f"by {key}" if paired else "no")


def _of_summary(one: _Loaded, case: int, two: _Loaded, other: int, name: str) -> dict[str, Any]:
    """Return the difference of two figures of summary.csv, with an interval from their own intervals."""
    sides = []
    for loaded, number in ((one, case), (two, other)):
        row = loaded.row(number)
        ends = [float(row.get(end, math.nan)) for end in interval_columns(name)]
        value = float(row.get(name, math.nan))
        sides.append((value, max(ends[1] - value, value - ends[0])))  # one end may be clipped, for example at 0
    return _told(name, sides[0][0], sides[1][0], math.hypot(sides[0][1], sides[1][1]), "no")


def _told(name: str, before: float, after: float, half: float, paired: str) -> dict[str, Any]:
    more = after - before
    rounding = ROUNDING * max(abs(before), abs(after)) + ROUNDING_S
    if abs(more) <= rounding and not half > rounding:
        more, half, verdict = 0.0, 0.0 if half == half else math.nan, "equal"
    elif math.isnan(half):
        verdict = "no interval"
    else:
        verdict = "no difference" if abs(more) <= half else "more" if more > 0 else "less"
    return {
        "column": name,
        "first": before,
        "other": after,
        "difference": more,
        "low": more - half,
        "high": more + half,
        "verdict": verdict,
        "paired": paired,
    }


MOST_NAMED = 3  # cases named in one sentence


def _named(names: Sequence[str]) -> str:
    few = "; ".join(names[:MOST_NAMED])
    return few if len(names) <= MOST_NAMED else f"{len(names)} cases ({few} and {len(names) - MOST_NAMED} more)"


def _said(rows: Sequence[dict[str, Any]]) -> str:
    """Describe the difference in latency, and the quality columns that differ."""
    found = {row["column"]: row for row in rows}
    latency = found.get("latency_s")
    if latency is None:
        return "no request was answered in both runs"
    ends = f"({significant(latency['low'])} to {significant(latency['high'])})"
    more = latency["difference"]
    match latency["verdict"]:
        case "equal":
            text = "the latency is the same"
        case "no difference":
            text = f"no difference in latency: {significant(more)} s {ends}"
        case "no interval":
            text = f"{significant(abs(more))} s {'slower' if more > 0 else 'faster'}, without an interval"
        case _:
            text = f"{significant(abs(more))} s {'slower' if more > 0 else 'faster'} {ends if more > 0 else _turned(latency)}"
    quality = [row for column, row in found.items() if column not in (*USED, "cost_usd")]
    if not quality:
        return text
    told = [row for row in quality if row["verdict"] in ("more", "less")]
    differs = "; ".join(f"{row['column']} {significant(row['first'])} to {significant(row['other'])}" for row in told)
    verdicts = {row["verdict"] for row in quality}
    unknown = "no interval" in verdicts and "no difference" not in verdicts
    return f"{text}; {differs or ('the quality has no interval' if unknown else 'no difference in quality')}"


def _turned(row: dict[str, Any]) -> str:
    return f"({significant(-row['high'])} to {significant(-row['low'])})"

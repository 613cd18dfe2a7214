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
from simulator.core.errors import CiarSimError, RunFolderError, ScenarioError, counted
from simulator.core.files import path_text
from simulator.results.columns import ENERGY, PARTS, REQUEST_COLUMNS, USE, interval_columns
from simulator.results.statistics import BATCHES, half_width

# Relative and absolute rounding error of equal figures: sums in another order, and differences of times in a run of hours.
ROUNDING, ROUNDING_S = 1e-9, 1e-12
KEYS = ["request", "prompt", "requested_s"]  # what identifies a request in both runs
# Share of each run's requests that the other must have too. A closed loop that waits longer asks at other times: what it still shares are
# the first requests of its devices, which say nothing about the rest.
PAIRED = 0.9
PART = "by request, in part"
MOST_ROWS, LARGEST = 100, 30  # rows of a table that is shown whole, and of the largest differences of a longer one
USED = ("latency_s", "decode_s", "first_token_s", *PARTS, *USE, *ENERGY)  # columns of requests that are compared


def compare(folders: Sequence[Path]) -> Decision:
    """Compare every run with the first one, case by case.

    Cases are paired if label and swept values are equal, or if both runs have one case only. Within a pair, requests are paired that both
    runs have (number, prompt, time), if these are at least `PAIRED` of each run's; the others are left out. Images are paired if prompts,
    seed and decoding are the same. Otherwise the difference is that of two independent means.

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
            rows += [{"run": path_text(other.folder), "case": name, **row} for row in found]
            alike.setdefault(_said(found), []).append(name)
            if left := _left_out(runs[0].of(one), other.of(two), found):
                alike.setdefault(left, []).append(name)
        told = [f"{_named(names)}: {text}." for text, names in alike.items()]
        which = f" ({path_text(other.folder)} against {path_text(runs[0].folder)})"
        # With two runs the folders are named once, with more after each sentence.
        sentences += [f"{text}{which if not place or len(runs) > 2 else ''}" for place, text in enumerate(told)]
        sentences += _unpaired(runs[0], {one for _, one, _ in pairs}, other)
        sentences += _unpaired(other, {two for _, _, two in pairs}, runs[0])
    facts = {"reference": path_text(runs[0].folder), "confidence": 0.95}
    table = pd.DataFrame(rows)
    if len(table) <= MOST_ROWS:
        return Decision(tuple(sentences), table, {}, facts)
    largest = _largest(table)
    shown = f"the {len(largest)} largest" if len(largest) else "none, because none is significant,"
    sentences.append(
        f"The table shows {shown} of {len(table):,} differences: those in latency, cost and quality, relative to the first run. "
        "--out FILE.csv and --json have all."
    )
    return Decision(tuple(sentences), table, {"largest": largest}, facts, ("largest",))


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the largest differences in latency, cost and quality that are significant, relative to the first run, largest first."""
    kept = table[~table["column"].isin(set(USED) - {"latency_s"}) & table["verdict"].isin(["more", "less"])]
    size = (kept["difference"] / kept["first"].where(kept["first"] != 0.0)).abs().fillna(math.inf)
    return kept.loc[size.sort_values(ascending=False, kind="stable").index].head(LARGEST)


def _left_out(first: pd.DataFrame, second: pd.DataFrame, rows: Sequence[dict[str, Any]]) -> str:
    """Describe how many requests were not paired where the others were; empty if all were, or none."""
    if not any(row["paired"] == PART for row in rows):
        return ""
    common = len(first.merge(second, on=KEYS))
    ones = [f"{len(table) - common} of {len(table)}" for table in (first, second)]
    return f"compared on the {counted(common, 'request')} that both runs answered; {ones[0]} and {ones[1]} are left out"


class _Loaded:
    """A run folder with its requests, and the settings that determine its images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Run = load_run(folder)
        try:
            with (folder / "requests.parquet").open("rb") as file:  # pyarrow takes names in UTF-8 only
                self.requests: pd.DataFrame = pq.ParquetFile(file).read().to_pandas(ignore_metadata=True)
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

    def usd(self, case: int, requests: pd.DataFrame) -> np.ndarray | None:
        """Return the cost of some requests of a case; None without a price, or if several clouds have prices of their own."""
        cloud, cost_usd = self.scenario.get("cloud"), float(self.row(case).get("cost_usd", math.nan))
        if (
            not math.isfinite(cost_usd)
            or "cloud_gpu_s" not in requests
            or (isinstance(cloud, dict) and cloud.get("tiers"))
        ):
            return None
        mean_s = float(self.of(case)["cloud_gpu_s"].mean())
        return requests["cloud_gpu_s"].to_numpy(float) * (cost_usd / mean_s if mean_s > 0 else 0.0)

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
    return [f"{_named(names)}: not in {path_text(other.folder)}, and not compared."] if names else []


def _differences(one: _Loaded, case: int, two: _Loaded, other: int) -> list[dict[str, Any]]:
    """Return a row per column: its mean in both runs, the difference with its interval, and the pairing."""
    first, second = one.of(case), two.of(other)
    images, others = one.images(case), two.images(other)
    mine, its, paired = _by_request(first, second) if images["prompts"] == others["prompts"] else (first, second, "no")
    names = [name for name in USED if name in first and name in second]
    rows = [_row(name, mine[name].to_numpy(float), its[name].to_numpy(float), paired, BATCHES) for name in names]
    usd, others_usd = one.usd(case, mine), two.usd(other, its)
    if usd is None or others_usd is None:
        rows.append(_of_summary(one, case, two, other, "cost_usd"))
    else:
        rows.append(_row("cost_usd", usd, others_usd, paired, BATCHES))
    known = {"case", "method", "method_name", *one.run.swept, *REQUEST_COLUMNS}
    quality = [name for name in first.columns if name not in known and name in second]
    same = images == others
    for name in quality:
        before, after = (table.groupby("prompt")[name].mean().dropna() for table in (first, second))
        if same:
            both = pd.concat([before, after], axis=1, join="inner").to_numpy(float)
            rows.append(_row(name, both[:, 0], both[:, 1], "by prompt", len(both)))
        else:
            most = max(len(before), len(after))
            rows.append(_row(name, before.to_numpy(float), after.to_numpy(float), "no", most))
    sets = [
        name
        for name in one.run.summary.columns
        if f"{name}_lo" in one.run.summary
        and name not in (*quality, "speedup")
        and name.startswith(("fd_", "f1", "fid"))
    ]
    rows += [_of_summary(one, case, two, other, name) for name in sets if name in two.run.summary]
    return [row for row in rows if math.isfinite(row["difference"])]


def _by_request(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the requests that both have, in order of arrival, and how they are paired; all of both if too few are common."""
    places, others = (pd.MultiIndex.from_frame(table[KEYS]) for table in (first, second))
    if places.equals(others):
        return first, second, "by request"
    common = places.intersection(others, sort=False)
    if len(common) < max(PAIRED * max(len(first), len(second)), 2):
        return first, second, "no"
    return first[places.isin(common)], second[others.isin(common)], PART


def _row(name: str, before: np.ndarray, after: np.ndarray, paired: str, batches: int) -> dict[str, Any]:
    values = [float(side.mean()) if len(side) else math.nan for side in (before, after)]
    if paired != "no":
        half = half_width(after - before, batches)
    else:  # Welch: independent means, each with its own interval
        half = math.hypot(half_width(before, min(batches, len(before))), half_width(after, min(batches, len(after))))
    return _told(name, values[0], values[1], half, paired)


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
    cost = found.get("cost_usd")
    if cost and cost["verdict"] in ("more", "less"):
        text += f"; cost per image {significant(cost['first'])} to {significant(cost['other'])} USD"
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

"""Regime maps: the fastest method that keeps a quality floor, over one or two conditions, and its break-evens."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ciar_sim.decide.bench import Bench, Measured, Prepared, Resources, base_of, candidate, condition
from ciar_sim.decide.break_even import BreakEven, Line, break_evens
from ciar_sim.decide.decision import Decision, failed_cases, span
from ciar_sim.decide.quality import KEEPS, QualityLoss, chosen_metric, loss
from reports.words import condition as condition_words
from reports.words import number, sentence, significant, split_unit
from simulator.core.errors import CiarSimError, ScenarioError
from simulator.core.problems import explain
from simulator.experiment.loading import Written, load_with_source
from simulator.experiment.options import axis_values
from simulator.experiment.scenario import Case
from simulator.experiment.schema.sweep import Range

X_POINTS, Y_POINTS = 25, 9
NOBODY = "none"  # winner of a cell without one
ALIASES = {"cloud.background": "cloud.background.utilisation", "workload.rate": "workload.arrivals.poisson_per_s"}


class Axis(NamedTuple):
    """An axis of the map.

    Attributes:
        path: Dotted path.
        values: Values in ascending order.
        log: Whether the axis is drawn logarithmically.
        written: The axis as a value of the option --axis.
    """

    path: str
    values: tuple[float, ...]
    log: bool
    written: str


class Axes(NamedTuple):
    """The axes of the map: across, and up if it has two."""

    across: Axis
    up: Axis | None

    def of(self, case: Case) -> tuple[float, float | None]:
        """Return the cell of a case: its values across and up."""
        return float(case.swept[self.across.path]), None if self.up is None else float(case.swept[self.up.path])

    def columns(self, x: float, y: float | None) -> dict[str, Any]:
        """Return the columns of a table that name a cell."""
        return {**({} if self.up is None else {self.up.path: y}), self.across.path: x}


def axis(option: str, text: str, points: int) -> Axis:
    """Parse an axis, `path=min:max[:points][:log]` or `path=value,value`.

    Args:
        option: Name of the option, for errors.
        text: Its value.
        points: Default number of values of a range.

    Raises:
        CiarSimError: The text is neither.
    """
    path, equals, written = (part.strip() for part in text.partition("="))
    path = ALIASES.get(path, path)
    form = "path=min:max[:points][:log] or path=value,value,..."
    if not path or not equals:
        raise CiarSimError(f"{option} {text}: must be {form}")
    given = axis_values(written, f"{option} {text}")
    if isinstance(given, dict):
        try:
            made = Range.model_validate({"steps": points, **given})
        except ValidationError as error:
            raise CiarSimError(f"{option} {text}: {path} {explain(error.errors()[0])[1]}; needed {form}") from None
        asked = f"{path}={number(made.min)}:{number(made.max)}:{made.steps}:{made.scale}"
        return Axis(path, tuple(map(float, made.values())), made.scale == "log", asked)
    numbers = [float(value) for value in given if type(value) in (int, float) and math.isfinite(value)]
    if not numbers or len(numbers) < len(given):
        raise CiarSimError(f"{option} {text}: must be {form}, all of them numbers")
    values = tuple(sorted(set(numbers)))
    asked = f"{path}={','.join(map(number, values))}"
    return Axis(path, values, len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 10, asked)


def regime(
    scenario: Written,
    x: str,
    y: str | None,
    max_loss_pct: float,
    metric: str | None,
    resources: Resources,
    sets: Sequence[str] = (),
) -> Decision:
    """Find the winner over one or two conditions, with break-evens.

    The tables are `table` (a row per cell), `break_evens`, `quality` and `latency`.

    Args:
        scenario: The scenario; base must be among its methods. Settings of methods may be swept.
        x, y: `path=min:max[:points][:log]` or `path=value,value`.
        max_loss_pct: Largest acceptable loss of quality, in percent of base's quality.
        metric: Quality metric; None: the first that the images have.
        resources: Cache, processes, progress.
        sets: `path=value`: changes to the scenario.

    Raises:
        CiarSimError: An axis or the scenario is not usable.
    """
    given = {"--x": x} if y is None else {"--x": x, "--y": y}
    axes = [
        axis(option, text, points) for (option, text), points in zip(given.items(), (X_POINTS, Y_POINTS), strict=False)
    ]
    if own := next((one.path for one in axes if one.path.startswith("methods.")), None):
        raise CiarSimError(
            f"{own}: is of one method, and a map is over what all have; swept in the scenario, each value is a candidate"
        )
    fixed, sets = of_sweep(scenario, sets)
    options = [*fixed, *(one.written for one in axes)]
    try:
        loaded = load_with_source(scenario, options, [*sets, *_background(axes, scenario, sets)])
    except ScenarioError as error:  # the message names --axis instead of --x or --y
        message = str(error)
        for (option, text), one in zip(given.items(), axes, strict=True):
            message = message.replace(f"--axis {one.written}: sweep.{one.path}", f"{option} {text}: {one.path}", 1)
            message = message.replace(f"--axis {one.written}", f"{option} {text}", 1)
        raise ScenarioError(message) from None
    # The loaded values, which are rounded if the setting takes whole numbers only.
    axes = [one._replace(values=tuple(map(float, loaded.scenario.sweep.axes[one.path]))) for one in axes]
    bench = Bench(loaded, resources)
    cases = bench.cases()
    swept = {path for case in cases for path in condition(case)} - {option.partition("=")[0] for option in fixed}
    if more := sorted(swept - {one.path for one in axes}):
        raise CiarSimError(
            f"{more[0]}: is swept in addition to the axes of the map; give it one value with --set {more[0]}=VALUE"
        )
    prepared = bench.prepare(cases)
    base_of(prepared.cases, "regime")
    return _answer(prepared, Axes(axes[0], axes[1] if len(axes) > 1 else None), max_loss_pct, metric)


def of_sweep(scenario: Written, sets: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split options into those that give a swept condition a single value, to be used as axes, and the others."""
    swept = load_with_source(scenario).scenario.sweep.axes
    fixed = [option for option in sets if option.partition("=")[0].strip() in swept]
    return fixed, [option for option in sets if option not in fixed]


def _background(axes: Sequence[Axis], scenario: Written, sets: Sequence[str]) -> list[str]:
    """Return an option that adds other tenants to the cloud, if an axis is one of their settings and the scenario has none."""
    if not any(one.path.startswith("cloud.background.") for one in axes):
        return []
    there = load_with_source(scenario, (), sets).scenario.cloud.background is not None
    return [] if there else ["cloud.background={utilisation: 0.5}"]


def _answer(prepared: Prepared, axes: Axes, max_loss_pct: float, asked: str | None) -> Decision:
    across, up = axes
    measured = prepared.measure()
    known = [case for case in prepared.cases if case.index in measured]
    bases = {axes.of(case): case for case in known if case.method.name == "base"}
    if not bases:
        raise CiarSimError(f"regime: no case of base could be simulated: {prepared.failed[0]}")
    metric = chosen_metric([prepared.quality(case) for case in bases.values()], asked)
    losses = {
        case.index: loss(prepared.quality(case), prepared.quality(base), metric, case.method.lossless)
        for case in known
        if (base := bases.get(axes.of(case))) is not None
    }
    keeps = {index for index, one in losses.items() if one.verdict(max_loss_pct) == KEEPS}
    cells = {case.index: measured[case.index] for case in known if case.index in losses}
    lines = _lines(prepared.cases, cells, keeps, axes)
    # Only levels in dB may be below 0.
    least = 0.0 if across.values[0] >= 0 and not across.path.endswith("_db") else -math.inf
    changes = [(line, [one._replace(low=max(one.low, least)) for one in break_evens(line)]) for line in lines]
    table = _cells(lines, axes)
    quality = _quality(prepared.cases, losses, max_loss_pct, axes)
    facts = {
        "x": across.path,
        "y": up.path if up else None,
        "log": [across.log, bool(up and up.log)],
        "max_loss_pct": max_loss_pct,
        "metric": metric,
        "cases": len(prepared.cases),
        "failed": prepared.failed,
        "method_names": {candidate(case): case.method.name for case in prepared.cases},
    }
    more = {"break_evens": _changes(changes, axes), "quality": quality, "latency": _latency(lines, axes)}
    floor = f"at most {number(max_loss_pct)} % of {metric} lost against base"
    sentences = (
        *_winners(changes, table, axes, floor),
        *_undecided(quality, across.path),
        *failed_cases(prepared.failed),
    )
    return Decision(sentences, table, more, facts, ("quality", "break_evens"))


def _lines(cases: Sequence[Case], measured: Mapping[int, Measured], keeps: Set[int], axes: Axes) -> list[Line]:
    """Return a line per value of y. measured: by index of the case, only if base was measured too; keeps: indices that keep the floor."""
    of_cell = {(candidate(case), *axes.of(case)): case.index for case in cases}
    lines = []
    for value in (None,) if axes.up is None else axes.up.values:
        indices = {
            name: [of_cell.get((name, at, value), -1) for at in axes.across.values]
            for name in dict.fromkeys(candidate(case) for case in cases)
        }
        cells = {name: [measured.get(index) for index in mine] for name, mine in indices.items()}
        kept = {name: np.array([index in keeps for index in mine], bool) for name, mine in indices.items()}
        lines.append(Line(value, np.array(axes.across.values), cells, kept))
    return lines


def _quality(cases: Sequence[Case], losses: Mapping[int, QualityLoss], max_loss_pct: float, axes: Axes) -> pd.DataFrame:
    """Return the quality loss of each candidate against base, and whether it keeps the floor: a row per candidate.

    If the axes change the images (a seed, guidance, fallbacks), there is a row per candidate and cell.
    """
    names = list(dict.fromkeys(candidate(case) for case in cases))
    # Compared as text, because a loss without an interval contains NaN, which is not equal to itself.
    alike = len({(candidate(cases[index]), str(one)) for index, one in losses.items()}) <= len(names)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for index, one in losses.items():
        case = cases[index]
        place = {} if alike else axes.columns(*axes.of(case))
        row = {
            "loss_pct": one.pct,
            "loss_lo_pct": one.low,
            "loss_hi_pct": one.high,
            "floor": one.verdict(max_loss_pct),
            "lossless": one.lossless,
            "prompts": one.prompts,
            "prompts_needed": one.prompts_needed(max_loss_pct),
        }
        rows.setdefault((candidate(case), *place.values()), {"method": candidate(case), **place, **row})
    ordered = sorted(rows.values(), key=lambda row: names.index(row["method"]))
    return pd.DataFrame(ordered)


def _changes(changes: Sequence[tuple[Line, Sequence[BreakEven]]], axes: Axes) -> pd.DataFrame:
    """Return a row per break-even."""
    names = ("low", "high", "below", "above")
    rows = [
        {**axes.columns(at, line.y), **dict(zip(names, rest, strict=True))}
        for line, some in changes
        for at, *rest in some
    ]
    return pd.DataFrame(rows, columns=[*axes.columns(0.0, None), *names])


def _latency(lines: Sequence[Line], axes: Axes) -> pd.DataFrame:
    """Return a row per measured candidate and cell."""
    return pd.DataFrame(
        [
            {
                **axes.columns(float(at), line.y),
                "method": name,
                "latency_s": one.mean_s,
                "floor_kept": bool(kept),
            }
            for line in lines
            for name in line.cells
            for at, one, kept in zip(line.x, line.cells[name], line.keeps[name], strict=True)
            if one is not None
        ]
    )


def _cells(lines: Sequence[Line], axes: Axes) -> pd.DataFrame:
    """Return a row per cell: the winner, its latency, the next candidate, and the difference with its interval."""
    rows = []
    for line in lines:
        winners = line.winners()
        for place, winner in enumerate(winners):
            means = {name: line.means(name)[place] for name in line.cells if name != winner}
            second = min(means, key=lambda name: means[name], default="")
            second = second if second and math.isfinite(means[second]) else ""
            lead, half = line.ahead(place, winner, second) if winner and second else (math.nan, math.nan)
            seconds = line.means(winner)[place] if winner else math.nan
            rows.append(
                {
                    **axes.columns(float(line.x[place]), line.y),
                    "winner": winner or NOBODY,
                    "latency_s": seconds,
                    "next": second or NOBODY,
                    "ahead_s": lead,
                    "ahead_lo_s": lead - half,
                    "ahead_hi_s": lead + half,
                    "sure": bool(lead - half > 0) if second else bool(winner),
                }
            )
    return pd.DataFrame(rows)


def _winners(
    changes: Sequence[tuple[Line, Sequence[BreakEven]]], table: pd.DataFrame, axes: Axes, floor: str
) -> list[str]:
    """Return sentences about the winners and break-evens of each line. table: that of `_cells`; floor: the quality floor in words."""
    across, up = axes
    shares = table["winner"].value_counts(normalize=True, sort=False).sort_values(ascending=False, kind="stable")
    told = []
    if up is not None:
        parts = [
            f"{name} wins {100 * share:.0f} %" if name != NOBODY else f"{100 * share:.0f} % have no winner"
            for name, share in shares.items()
        ]
        told.append(f"Of the map, with {floor}: {', '.join(parts)}.")
    same = up is not None and not any(some for _, some in changes) and len(shares) == 1
    for line, some in [] if same else changes:
        where = "" if up is None else f"At {_value(up.path, line.y or 0.0)}: "
        winners = line.winners()
        text = in_words(winners, some, across.path, why_nobody(line, winners))
        begins = text if where or (winners[0] and not some) else sentence(text)  # labels are not capitalised
        told.append(f"{where}{begins}{'' if up else f', with {floor}'}.")
    return told


def _undecided(quality: pd.DataFrame, across: str) -> list[str]:
    """Return a sentence for each candidate whose loss is not decided by the prompts. across: path of the axis across."""
    told = []
    for name, rows in quality.groupby("method", sort=False):
        unclear = rows[rows["floor"] == "unclear"]
        if unclear.empty:
            continue
        row = unclear.iloc[int(unclear["prompts_needed"].fillna(math.inf).to_numpy(float).argmin())]
        needed = row["prompts_needed"]
        where, there = "", ""
        if across in rows:  # the images differ between cells
            axes = tuple(rows.columns[1 : list(rows.columns).index("loss_pct")])
            where, there = f" of {len(unclear)} of {len(rows)} cells", f" at {condition_words(dict(row), axes)}"
        more = (
            f"about {needed:,.0f} prompts would decide it{there}"
            if math.isfinite(needed)
            else "more prompts are needed to decide it"
        )
        one = row["prompts"] == 1
        told.append(
            f"{name} is left out{where}: {row['prompts']} prompt{' does' if one else 's do'} not show whether it keeps the floor"
            f" (loss{there} {significant(row['loss_pct'])} %{span(row['loss_lo_pct'], row['loss_hi_pct'])}); {more}."
        )
    return told


def why_nobody(line: Line, winners: Sequence[str]) -> str:
    """Return why a line has points without a winner. It is never the floor, which base itself keeps."""
    places = [place for place, winner in enumerate(winners) if not winner]
    measured = any(cells[place] is not None for cells in line.cells.values() for place in places)
    return "no request was answered" if measured else "base failed"


def in_words(winners: Sequence[str], some: Sequence[BreakEven], path: str, why_nobody: str) -> str:
    """Describe break-evens: `below RTT 28 ms (26 to 30) ciar, above it base`, or `base wins throughout` without any."""
    if not some:
        return f"{winners[0]} wins throughout" if winners[0] else f"{why_nobody} throughout, so no method wins"
    parts = []
    for place, one in enumerate(some):
        here = f"{_value(path, one.at)}{span(one.low, one.high)}"
        if place == 0:
            parts.append(f"below {here} {one.below or f'none ({why_nobody})'}")
        parts.append(f"above {'it' if place == 0 else here} {one.above or f'none ({why_nobody})'}")
    return ", ".join(parts)


def _value(path: str, value: float) -> str:
    name, unit = split_unit(path)
    return f"{name} {significant(value)} {unit}".strip()


def drawing(decision: Decision) -> dict[str, bytes]:
    """Return the files of the map by name: those of `reports.regime_plot.RegimeMap`, and quality.csv."""
    from reports.regime_plot import RegimeMap
    from simulator.results.files import csv_bytes

    facts = decision.facts
    note = f"Quality floor: at most {number(facts['max_loss_pct'])} % of {facts['metric']} lost against base."
    drawn = RegimeMap(
        decision.table,
        decision.more["break_evens"],
        decision.more["latency"],
        facts["x"],
        facts["y"],
        facts["log"][0],
        facts["log"][1],
        facts["method_names"],
        note,
    )
    return {**drawn.files(), "quality.csv": csv_bytes(decision.more["quality"])}

"""Who wins where: the fastest method that keeps a quality floor, over one or two conditions, and where that changes.

A break-even lies where the difference of two mean latencies, on the same requests, changes its sign. Between grid points the latencies are
taken as linear, which for the round trip of a lossless link they are; where they bend, the interval holds what the bend leaves open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ciar_sim.decide.bench import Bench, Means, Measured, Prepared, base_of, candidate, condition
from ciar_sim.decide.decision import Decision, span
from ciar_sim.decide.quality import KEEPS, chosen_metric, loss
from reports.words import number, significant, split_unit
from simulator.core.errors import CiarSimError
from simulator.core.problems import explain
from simulator.experiment.loading import Written, load_with_source
from simulator.experiment.options import axis_values
from simulator.experiment.schema.sweep import Range
from simulator.results.statistics import BATCHES, half_width

X_POINTS, Y_POINTS = 25, 9
ALIASES = {"cloud.background": "cloud.background.utilisation", "workload.rate": "workload.arrivals.poisson_per_s"}


class Axis(NamedTuple):
    """An axis of the map: a dotted path, its values in ascending order, and whether it is drawn logarithmic."""

    path: str
    values: tuple[float, ...]
    log: bool


def axis(option: str, text: str, points: int) -> Axis:
    """The axis of `path=min:max[:points][:log]` or `path=value,value`.

    Args:
        option: Name of the option, for errors.
        text: What it says.
        points: Values of a range that names no number of them.

    Raises:
        CiarSimError: It is neither.
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
        return Axis(path, tuple(map(float, made.values())), made.scale == "log")
    numbers = [float(value) for value in given if type(value) in (int, float) and math.isfinite(value)]
    if not numbers or len(numbers) < len(given):
        raise CiarSimError(f"{option} {text}: must be {form}, all of them numbers")
    values = tuple(sorted(set(numbers)))
    return Axis(path, values, len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 10)


class BreakEven(NamedTuple):
    """Where the winner changes along x: its value with its interval, the winner below and the winner above."""

    at: float
    low: float
    high: float
    below: str
    above: str


@dataclass(frozen=True)
class Line:
    """The candidates along x at one value of y.

    Attributes:
        y: The value; None without a second axis.
        x: float [n].
        cells: By candidate, the measured case of each x; None where it failed.
        keeps: By candidate, whether it keeps the floor at each x, bool [n].
    """

    y: float | None
    x: np.ndarray
    cells: Mapping[str, Sequence[Measured | None]]
    keeps: Mapping[str, np.ndarray]

    def means(self, name: str) -> np.ndarray:
        """Mean latency at each x, infinite where the candidate does not keep the floor or failed, float [n]."""
        cells = zip(self.cells[name], self.keeps[name], strict=True)
        return np.array([one.mean_s if one is not None and keeps else math.inf for one, keeps in cells])

    def winners(self) -> list[str]:
        """The fastest of those that keep the floor, at each x; empty text where nobody does."""
        names = list(self.cells)
        means = np.stack([self.means(name) for name in names])
        means = np.where(np.isnan(means), math.inf, means)
        best = means.argmin(axis=0)
        return [names[row] if math.isfinite(means[row, place]) else "" for place, row in enumerate(best)]

    def ahead(self, place: int, first: str, second: str) -> tuple[float, float]:
        """Mean of second minus first over the requests that both answered, and half of its 95 % interval."""
        return difference(self.cells[first][place], self.cells[second][place])


def difference(one: Measured | None, other: Measured | None) -> tuple[float, float]:
    """Mean of other minus one over the requests that both answered, and half of its 95 % interval by batch means."""
    if one is None or other is None:
        return math.nan, math.nan
    both = pd.concat([one.latency_s, other.latency_s], axis=1, join="inner").to_numpy(float)
    later = both[:, 1] - both[:, 0]
    return (float(later.mean()) if len(later) else math.nan), half_width(later, BATCHES)


def break_evens(line: Line) -> list[BreakEven]:
    """Where the winner changes along x, in order."""
    winners = line.winners()
    found: list[BreakEven] = []
    for place in range(len(line.x) - 1):
        found += _between(line, place, winners[place], winners[place + 1])
    return found


def _between(line: Line, place: int, below: str, above: str) -> list[BreakEven]:
    """The changes between two neighbours of the grid. A third candidate may win between them."""
    if below == above:
        return []
    x0, x1 = float(line.x[place]), float(line.x[place + 1])
    if not below or not above:
        return [BreakEven((x0 + x1) / 2, x0, x1, below, above)]
    ends = [line.ahead(at, below, above) for at in (place, place + 1)]
    keeps = [line.keeps[name][at] for name in (below, above) for at in (place, place + 1)]
    # The floor, not the latency, decides between the two.
    if not all(keeps) or any(math.isnan(value) for value, _ in ends):
        return [BreakEven((x0 + x1) / 2, x0, x1, below, above)]
    crossing = _with_bend(line, place, below, above, crossing_of(x0, x1, ends[0], ends[1]))
    others = [name for name in line.cells if name not in (below, above) and line.keeps[name][[place, place + 1]].all()]
    share = (crossing[0] - x0) / (x1 - x0)

    def at(name: str) -> float:
        means = line.means(name)
        return float((1 - share) * means[place] + share * means[place + 1])

    third = min(others, key=at, default=None)
    if third is None or not at(third) < at(below) * (1 - 1e-12):
        return [BreakEven(*crossing, below, above)]
    return [*_between(line, place, below, third), *_between(line, place, third, above)]


def _with_bend(
    line: Line, place: int, below: str, above: str, crossing: tuple[float, float, float]
) -> tuple[float, float, float]:
    """A crossing whose interval also holds what the neighbouring cells say of a bend between the two points.

    Of a difference that bends one way, the chord between the points lies on one side, and those of the neighbouring cells, extended into
    this one, on the other: the zero is between the chord's and the nearest of theirs. Of a straight line all are one.
    """
    at, low, high = crossing
    x0, x1 = float(line.x[place]), float(line.x[place + 1])
    zeros = []
    for near, far, never in ((place, place - 1, x1), (place + 1, place + 2, x0)):
        if not 0 <= far < len(line.x):
            continue
        (here, _), (there, _) = (line.ahead(one, below, above) for one in (near, far))
        slope = (there - here) / float(line.x[far] - line.x[near])
        zero = float(line.x[near]) - here / slope if slope else never
        if math.isfinite(zero):
            zeros.append(zero if x0 <= zero <= x1 else never)
    left, right = (zero for zero in zeros if zero < at), (zero for zero in zeros if zero >= at)
    return at, min(low, max(left, default=at)), max(high, min(right, default=at))


def crossing_of(
    x0: float, x1: float, first: tuple[float, float], last: tuple[float, float]
) -> tuple[float, float, float]:
    """Where a difference that is linear from x0 to x1 is zero, and the ends of its interval there.

    first, last: The difference and half of its interval at x0 and at x1, of unlike signs. The interval of the crossing is the half
    interpolated to it, over the slope.
    """
    slope = (last[0] - first[0]) / (x1 - x0)
    if slope == 0:
        return x0, x0, x1
    at = x0 - first[0] / slope
    share = (at - x0) / (x1 - x0)
    half = abs(((1 - share) * first[1] + share * last[1]) / slope)
    return at, at - half, at + half


def regime(
    scenario: Written,
    x: str,
    y: str | None,
    max_loss_pct: float,
    metric: str | None,
    means: Means,
    sets: Sequence[str] = (),
) -> Decision:
    """Who wins over one or two conditions, with break-evens. Tables: `table` (a row per cell), `break_evens`, `quality`.

    Args:
        scenario: The scenario; base must be among its methods. Methods' own settings may be swept.
        x, y: `path=min:max[:points][:log]` or `path=value,value`.
        max_loss_pct: Quality that may be lost against base, in percent of base's.
        metric: Quality metric; None: the first that the images have.
        means: Cache, processes, progress.
        sets: `path=value`: changes to the scenario.

    Raises:
        CiarSimError: An axis or the scenario is not usable.
    """
    across = axis("--x", x, X_POINTS)
    up = None if y is None else axis("--y", y, Y_POINTS)
    axes = [one for one in (across, up) if one is not None]
    if own := next((one.path for one in axes if one.path.startswith("methods.")), None):
        raise CiarSimError(
            f"{own}: is of one method, and a map is over what all have; swept in the scenario, each value is a candidate"
        )
    fixed, sets = of_sweep(scenario, sets)
    options = [*fixed, *(_option(one) for one in axes)]
    loaded = load_with_source(scenario, options, [*sets, *_background(axes, scenario, sets)])
    bench = Bench(loaded, means)
    cases = bench.cases()
    swept = {path for case in cases for path in condition(case)} - {option.partition("=")[0] for option in fixed}
    if more := sorted(swept - {one.path for one in axes}):
        raise CiarSimError(
            f"{more[0]}: is swept beside the axes of the map; give it one value with --set {more[0]}=VALUE"
        )
    prepared = bench.prepare(cases)
    base_of(prepared.cases, "regime")
    return _answer(prepared, across, up, max_loss_pct, metric)


def _option(one: Axis) -> str:
    return f"{one.path}={','.join(number(value) for value in one.values)}"


def of_sweep(scenario: Written, sets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options that give a swept condition one value, as axes, and the others."""
    swept = load_with_source(scenario).scenario.sweep.axes
    fixed = [option for option in sets if option.partition("=")[0].strip() in swept]
    return fixed, [option for option in sets if option not in fixed]


def _background(axes: Sequence[Axis], scenario: Written, sets: Sequence[str]) -> list[str]:
    """The option that gives the cloud other tenants, where an axis is about them and the scenario has none."""
    if not any(one.path.startswith("cloud.background.") for one in axes):
        return []
    there = load_with_source(scenario, (), sets).scenario.cloud.background is not None
    return [] if there else ["cloud.background={utilisation: 0.5}"]


def _answer(prepared: Prepared, across: Axis, up: Axis | None, max_loss_pct: float, asked: str | None) -> Decision:
    measured = prepared.measure()
    known = [case for case in prepared.cases if case.index in measured]
    bases = {_at(case, across, up): case for case in known if case.method.name == "base"}
    if not bases:
        raise CiarSimError(f"regime: no case of base could be simulated: {prepared.failed[0]}")
    metric = chosen_metric([prepared.quality(case) for case in bases.values()], asked)
    losses = {
        case.index: loss(prepared.quality(case), prepared.quality(base), metric)
        for case in known
        if (base := bases.get(_at(case, across, up))) is not None
    }
    names = list(dict.fromkeys(candidate(case) for case in prepared.cases))
    of_cell = {(candidate(case), *_at(case, across, up)): case for case in known if case.index in losses}
    lines = []
    least = (
        0.0 if across.values[0] >= 0 and not across.path.endswith("_db") else -math.inf
    )  # no quantity but a level falls below 0
    for value in (None,) if up is None else up.values:
        cells: dict[str, list[Measured | None]] = {}
        keeps: dict[str, np.ndarray] = {}
        for name in names:
            mine = [of_cell.get((name, at, value)) for at in across.values]
            cells[name] = [None if case is None else measured[case.index] for case in mine]
            keeps[name] = np.array(
                [case is not None and losses[case.index].verdict(max_loss_pct) == KEEPS for case in mine], bool
            )
        lines.append(Line(value, np.array(across.values), cells, keeps))
    changes = [(line, [one._replace(low=max(one.low, least)) for one in break_evens(line)]) for line in lines]
    table = _cells(lines, across, up)
    quality = pd.DataFrame(
        [
            {
                "method": name,
                "loss_pct": one.pct,
                "loss_lo_pct": one.low,
                "loss_hi_pct": one.high,
                "floor": one.verdict(max_loss_pct),
                "prompts": one.prompts,
                "prompts_needed": one.prompts_needed(max_loss_pct),
            }
            for name in names
            if (one := next((losses[i] for i in losses if candidate(prepared.cases[i]) == name), None)) is not None
        ]
    )
    rows = [
        {
            **({} if up is None else {up.path: line.y}),
            **dict(zip((across.path, "low", "high", "below", "above"), one, strict=True)),
        }
        for line, some in changes
        for one in some
    ]
    even = pd.DataFrame(rows, columns=[*([up.path] if up else []), across.path, "low", "high", "below", "above"])
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
    latency = pd.DataFrame(
        [
            {
                **({} if up is None else {up.path: line.y}),
                across.path: float(at),
                "method": name,
                "latency_s": one.mean_s,
                "floor_kept": bool(kept),
            }
            for line in lines
            for name in names
            for at, one, kept in zip(line.x, line.cells[name], line.keeps[name], strict=True)
            if one is not None
        ]
    )
    sentences = _sentences(changes, table, quality, across, up, max_loss_pct, metric)
    return Decision(
        sentences,
        table,
        {"break_evens": even, "quality": quality, "latency": latency},
        facts,
        ("quality", "break_evens"),
    )


def _at(case: Any, across: Axis, up: Axis | None) -> tuple[float, float | None]:
    return float(case.swept[across.path]), None if up is None else float(case.swept[up.path])


def _cells(lines: Sequence[Line], across: Axis, up: Axis | None) -> pd.DataFrame:
    """A row per cell: the winner, its latency, who comes next, and how far behind with the interval."""
    rows = []
    for line in lines:
        winners = line.winners()
        for place, winner in enumerate(winners):
            row: dict[str, Any] = {across.path: float(line.x[place])}
            if up is not None:
                row = {up.path: line.y, **row}
            means = {name: line.means(name)[place] for name in line.cells if name != winner}
            second = min(means, key=lambda name: means[name], default="")
            second = second if second and math.isfinite(means[second]) else ""
            lead, half = line.ahead(place, winner, second) if winner and second else (math.nan, math.nan)
            seconds = line.means(winner)[place] if winner else math.nan
            rows.append(
                {
                    **row,
                    "winner": winner or "none",
                    "latency_s": seconds,
                    "next": second or "none",
                    "ahead_s": lead,
                    "ahead_lo_s": lead - half,
                    "ahead_hi_s": lead + half,
                    "sure": bool(lead - half > 0) if second else bool(winner),
                }
            )
    return pd.DataFrame(rows)


def _sentences(
    changes: Sequence[tuple[Line, Sequence[BreakEven]]],
    table: pd.DataFrame,
    quality: pd.DataFrame,
    across: Axis,
    up: Axis | None,
    max_loss_pct: float,
    metric: str,
) -> tuple[str, ...]:
    floor = f"at most {number(max_loss_pct)} % of {metric} lost against base"
    shares = table["winner"].value_counts(normalize=True, sort=False).sort_values(ascending=False, kind="stable")
    told = []
    if up is not None:
        parts = [f"{name} wins {100 * share:.0f} %" for name, share in shares.items()]
        told.append(f"Of the map, with {floor}: {', '.join(parts)}.")
    same = up is not None and not any(some for _, some in changes) and len(shares) == 1
    for line, some in [] if same else changes:
        where = "" if up is None else f"At {_value(up.path, line.y or 0.0)}: "
        text = in_words(line.winners(), some, across.path)
        told.append(f"{where}{text[:1].upper() + text[1:] if not where else text}{'' if up else f', with {floor}'}.")
    unclear = [name for name, verdict in zip(quality["method"], quality["floor"], strict=True) if verdict == "unclear"]
    for name in unclear:
        row = quality[quality["method"] == name].iloc[0]
        needed = row["prompts_needed"]
        more = f"about {needed:,.0f} prompts would tell" if math.isfinite(needed) else "more prompts are needed to tell"
        told.append(
            f"{name} is left out: {row['prompts']} prompts do not show whether it keeps the floor"
            f" (loss {significant(row['loss_pct'])} %{span(row['loss_lo_pct'], row['loss_hi_pct'])}); {more}."
        )
    return tuple(told)


def in_words(winners: Sequence[str], some: Sequence[BreakEven], path: str) -> str:
    """`below RTT 28 ms (26 to 30) ciar, above it base`; `base throughout` where nothing changes."""
    if not some:
        return f"{winners[0] or 'none'} wins throughout" if winners[0] else "no method keeps the floor"
    parts = []
    for place, one in enumerate(some):
        here = f"{_value(path, one.at)}{span(one.low, one.high)}"
        if place == 0:
            parts.append(f"below {here} {one.below or 'none'}")
        parts.append(f"above {'it' if place == 0 else here} {one.above or 'none'}")
    return ", ".join(parts)


def _value(path: str, value: float) -> str:
    name, unit = split_unit(path)
    return f"{name} {significant(value)} {unit}".strip()


def drawing(decision: Decision) -> dict[str, bytes]:
    """Files of the map: those of `reports.regime_plot.RegimeMap`, and quality.csv."""
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

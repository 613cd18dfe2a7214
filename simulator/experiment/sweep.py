"""The cases of a scenario: for each method the grid of the axes that apply to it."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from simulator.core.errors import ScenarioError, error_context
from simulator.core.part import written
from simulator.core.problems import dotted, explain
from simulator.core.yamlfile import Place
from simulator.experiment.axes import axis_place, grouped, put, value_at
from simulator.experiment.scenario import Case, Scenario
from simulator.experiment.schema.sweep import Range, Sweep
from simulator.protocol.methods import METHODS
from simulator.protocol.outline import check_scales
from simulator.protocol.pairs import PairManifest, looking_once
from simulator.protocol.statistical import check_statistical

MOST_CASES = 1_000_000


@looking_once()
def expand(scenario: Scenario) -> list[Case]:
    """Return the cases of a scenario: for each method in order, the grid of the axes that apply to it. The last axis changes fastest.

    An axis on another method's setting does not multiply this method's cases. Zipped paths form one axis. A method whose settings
    `sweep.tune` chooses has no cases here: see `simulator.experiment.tuning`.

    Raises:
        ScenarioError: Values are not valid in combination, two methods have the same name, or there are too many cases.
    """
    tuned = tuned_positions(scenario)
    grids = {
        position: grid_of(scenario, position) for position in range(len(scenario.methods)) if position not in tuned
    }
    number = sum(math.prod(len(rows) for _, rows in grid) for grid in grids.values())
    if number > MOST_CASES:
        with error_context("sweep"):
            raise ScenarioError(f"sweep: makes {number} cases; allowed: {MOST_CASES}")
    cases: list[Case] = []
    for position, grid in grids.items():
        for values in itertools.product(*(rows for _, rows in grid)):
            chosen = dict(zip([path for paths, _ in grid for path in paths], itertools.chain(*values), strict=True))
            cases.append(case_at(scenario, position, chosen, len(cases)))
    _check_names(cases)
    _check_names_of_trials(scenario, tuned)
    return cases


def _check_names(cases: Sequence[Case]) -> None:
    """Raise ScenarioError if a method with swept settings has the same name as another method.

    Lines of a plot, rows of a table and images would be ambiguous.
    """
    labels = {case.position: case.method.label for case in cases}
    owners: dict[str, int] = {}
    for case in cases:
        name = case.named(("methods.",))
        owner = owners.setdefault(name, case.position)
        if owner != case.position:
            longer = max(owner, case.position, key=lambda position: len(labels[position]))
            shorter = owner + case.position - longer
            with error_context("methods", longer):
                raise ScenarioError(
                    f"methods[{longer}] label {labels[longer]} is also what the sweep makes of {labels[shorter]}; give it another label"
                )


def _check_names_of_trials(scenario: Scenario, tuned: Mapping[int, Sequence[str]]) -> None:
    """Raise ScenarioError if a label may be the name of another method's trial, whose values are not known yet."""
    for position, paths in tuned.items():
        label = scenario.methods[position].label
        words = "".join(rf"( {re.escape(path.rpartition('.')[2])}=\S+)?" for path in paths)
        for other, method in enumerate(scenario.methods):
            if other != position and re.fullmatch(re.escape(label) + words, method.label):
                with error_context("methods", other):
                    raise ScenarioError(
                        f"methods[{other}] label {method.label} may also be what sweep.tune makes of {label}; give it another label"
                    )


Grid = list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]  # zipped paths, and rows of their values


def grid_of(scenario: Scenario, position: int, conditions_only: bool = False) -> Grid:
    """Return the axes that apply to a method. conditions_only: without settings of methods."""
    grid: Grid = []
    for group in grouped(scenario.sweep):
        mine = []
        for path in group:
            place = axis_place(scenario, path)
            if place[0] != "methods" or (place[1] == position and not conditions_only):
                mine.append(path)
        axes = [scenario.sweep.axes[path] for path in mine]
        columns = [axis.values() if isinstance(axis, Range) else axis for axis in axes]
        if columns:
            grid.append((tuple(mine), list(dict.fromkeys(zip(*columns, strict=True)))))
    return grid


def tuned_positions(scenario: Scenario) -> dict[int, list[str]]:
    """Return the paths that `sweep.tune` chooses, by position of the method."""
    found: dict[int, list[str]] = {}
    if scenario.sweep.tune is not None:
        for path in scenario.sweep.axes:
            place = axis_place(scenario, path)
            if place[0] == "methods":
                found.setdefault(int(place[1]), []).append(path)
    return found


def case_at(scenario: Scenario, position: int, chosen: dict[str, Any], index: int) -> Case:
    """Return the case of a method with chosen values by dotted path.

    Raises:
        ScenarioError: The values are not valid in combination.
    """
    data: Any = scenario.model_dump(by_alias=True, exclude={"sweep", "methods"})
    data.update(sweep={}, methods=[scenario.methods[position].model_dump(by_alias=True)])
    places: dict[str, Place] = {}
    for path, value in chosen.items():
        place = axis_place(scenario, path)
        places[path] = ("methods", 0, *place[2:]) if place[0] == "methods" else place
        data = put(data, places[path], value)
    tier, label = data["methods"][0]["tier"], data["methods"][0]["label"]
    if tier is not None:
        if "cloud.tier" in chosen:
            raise ScenarioError(
                f"sweep: cloud.tier does nothing to {label}, which has its own tier; sweep methods.{label}.tier"
            )
        data = put(data, ("cloud", "tier"), tier)
    try:
        resolved = Scenario.model_validate(data)
    except ValidationError as error:
        where, message = explain(error.errors()[0])
        told = ", ".join(f"{path}={written(value)}" for path, value in chosen.items())
        at = f"sweep: with {told}" if chosen else label
        raise ScenarioError(f"{at}: {dotted(where)} {message}") from None
    resolved = _sharing(resolved, scenario, position)
    swept = {path: value_at(resolved, place) for path, place in places.items()}
    return Case(index, position, resolved.methods[0], swept, resolved)


_NO_SWEEP = Sweep()


def _sharing(resolved: Scenario, scenario: Scenario, position: int) -> Scenario:
    """Replace parts that equal those of the whole scenario by the same objects, so that thousands of cases share their memory."""
    parts = {name: getattr(scenario, name) for name in Scenario.model_fields}
    parts |= {"sweep": _NO_SWEEP, "methods": (scenario.methods[position],)}
    return resolved.model_copy(update={name: part for name, part in parts.items() if part == getattr(resolved, name)})


def check_methods(cases: Sequence[Case], manifest: PairManifest) -> None:
    """Raise ScenarioError if a method cannot run on the pair, or no method of the scenario supports the fallback policy."""
    for case in cases:
        with error_context("methods", case.position):
            check_scales(case.method.name, manifest)
            case.method.check(case.decoding, manifest)
            if manifest.statistics is not None:
                if case.method.target is not None:
                    raise ScenarioError(
                        f"{case.method.label}: a threshold cannot be calibrated on statistics; give any number, the published rate holds"
                    )
                check_statistical(case.method.name, case.method.settings, manifest)
    bound = [case for case in cases if case.scenario.fallback.policy != "wait"]
    if not bound or any(case.method.can_fall_back(case.scenario.decoding) for case in bound):
        return
    decoding = bound[0].scenario.decoding
    able = [name for name, kind in METHODS.items() if kind.settings().can_fall_back(decoding)]
    with_text = decoding.model_copy(update={"text_encoder": "device"})
    others = [name for name, kind in METHODS.items() if kind.settings().can_fall_back(with_text) and name not in able]
    more = f"; and {', '.join(others)} with decoding.text_encoder: device" if others else ""
    with error_context("fallback", "policy"):
        raise ScenarioError(
            f"fallback.policy {bound[0].scenario.fallback.policy}: no method of the scenario can do without a reply of the cloud; "
            f"of all methods these can: {', '.join(able)}{more}"
        )

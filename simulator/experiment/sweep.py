"""The cases of a scenario: for each method the grid of the axes that concern it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from simulator.core.errors import ScenarioError, error_context
from simulator.core.part import found_text, written
from simulator.core.problems import dotted, explain
from simulator.core.yamlfile import Place, did_you_mean
from simulator.experiment.scenario import FIXED, Case, Scenario
from simulator.experiment.schema.network import NEEDED, ExplicitNetwork, PresetNetwork
from simulator.experiment.source import Source
from simulator.protocol.methods import METHODS
from simulator.protocol.pairs import PairManifest


def expand(scenario: Scenario) -> list[Case]:
    """The cases of a scenario: for each method, in order, the grid of the axes that concern it (the last changes fastest).

    An axis on another method's setting does not multiply this method's cases. Raises ScenarioError where values that are
    allowed one by one do not go together.
    """
    cases: list[Case] = []
    for position in range(len(scenario.methods)):
        mine = [axis for axis in _axes(scenario) if axis[1][0] != "methods" or axis[1][1] == position]
        places = [("methods", 0, *place[2:]) if place[0] == "methods" else place for _, place, _ in mine]
        base = scenario.model_dump(by_alias=True)
        base.update(sweep={}, methods=[base["methods"][position]])
        for values in itertools.product(*(values for _, _, values in mine)):
            data = base
            for place, value in zip(places, values, strict=True):
                data = _put(data, place, value)
            try:
                resolved = Scenario.model_validate(data)
            except ValidationError as error:
                place, message = explain(error.errors()[0])
                chosen = ", ".join(f"{axis[0]}={written(value)}" for axis, value in zip(mine, values, strict=True))
                raise ScenarioError(f"sweep: with {chosen}: {dotted(place)} {message}") from None
            swept = {axis[0]: _get(resolved, place) for axis, place in zip(mine, places, strict=True)}
            cases.append(Case(len(cases), position, resolved.methods[0], swept, resolved))
    return cases


def _axes(scenario: Scenario) -> Iterator[tuple[str, Place, tuple[Any, ...]]]:
    for path, values in scenario.sweep.items():
        yield path, axis_place(scenario, path), values


def check_methods(cases: Sequence[Case], manifest: PairManifest) -> None:
    """Raises ScenarioError where a method cannot be run on the pair, or no method of the scenario can follow the fallback policy."""
    for case in cases:
        with error_context("methods", case.position):
            case.method.check(case.scenario.decoding, manifest)
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


def axis_place(scenario: Scenario, path: str) -> Place:
    """The place of the setting that an axis of the sweep names."""
    return method_place(scenario, path, ScenarioError) if path.startswith("methods.") else tuple(path.split("."))


def check_sweep(scenario: Scenario, source: Source) -> Scenario:
    """The scenario with the values of its sweep as the settings read them.

    Raises ScenarioError where an axis names no setting, or the setting does not take one of its values.
    """
    whole = scenario.model_dump(by_alias=True)
    whole["sweep"] = {}
    sweep: dict[str, tuple[Any, ...]] = {}
    targets: dict[Place, str] = {}
    for path, values in scenario.sweep.items():
        at: Place = ("sweep", path)

        def fail(message: str, at: Place = at, path: str = path) -> ScenarioError:
            return ScenarioError(f"{source.where(at)}: sweep.{path} {message}")

        place = _sweep_place(scenario, whole, path, fail)
        if place in targets:
            raise fail(f"and sweep.{targets[place]} are the same setting")
        targets[place] = path
        read: list[Any] = []
        for index, value in enumerate(values):
            try:
                taken = _get(Scenario.model_validate(_put(whole, place, value), context=source.context), place)
            except ValidationError as error:
                where, message = explain(error.errors()[0])
                subject = f"sweep.{path}"
                if where != place:  # two settings that do not go together
                    subject = f"sweep.{path} {written(value)}: {dotted(where)}"
                elif "got " not in message:
                    message = f"{message}, got {found_text(value)}"
                raise ScenarioError(f"{source.where((*at, index))}: {subject} {message}") from None
            if taken in read:
                raise ScenarioError(f"{source.where((*at, index))}: sweep.{path} holds {written(value)} twice")
            read.append(taken)
        sweep[path] = tuple(read)
    return scenario.model_copy(update={"sweep": sweep})


def _sweep_place(scenario: Scenario, whole: dict[str, Any], path: str, fail: Callable[[str], ScenarioError]) -> Place:
    """The place of a setting that may be swept."""
    place: Place = tuple(path.split("."))
    if place[0] in FIXED:
        raise fail("cannot be swept")
    if place[0] == "methods":
        place = method_place(scenario, path, fail)
        label = scenario.methods[int(place[1])].label
        if f" {place[2]}=" in label:
            raise fail(
                f"is part of the label {label}, which would no longer be true; give this method a label of its own"
            )
        return place
    node: Any = whole
    for depth, key in enumerate(place):
        if not isinstance(node, dict) or key not in node:
            if (
                place[0] == "network"
                and isinstance(scenario.network, PresetNetwork)
                and key in ExplicitNetwork.model_fields
            ):
                raise fail(
                    f"needs the explicit form of network ({NEEDED}), which has preset: {scenario.network.preset}"
                )
            if not isinstance(node, dict):
                raise fail(f"names nothing: {dotted(place[:depth])} is {found_text(node)}")
            known = [name for name in node if depth or name not in FIXED]
            raise fail(f"names nothing: {dotted(place[:depth]) or 'a scenario'} has no {key}{did_you_mean(key, known)}")
        node = node[key]
    if isinstance(node, dict | list | tuple):
        inner = f"; it holds {', '.join(node)}" if isinstance(node, dict) else ""
        raise fail(f"names no single setting{inner}")
    return place


def method_place(scenario: Scenario, path: str, fail: Callable[[str], Exception]) -> Place:
    """The place of `methods.<label or unique name>.<setting>`."""
    middle, _, setting = path.removeprefix("methods.").rpartition(".")
    labels = [entry.label for entry in scenario.methods]
    names = [entry.name for entry in scenario.methods]
    if not middle:
        raise fail(f"names no single setting; write methods.LABEL.SETTING with a label of {', '.join(labels)}")
    if middle in labels:
        index = labels.index(middle)
    elif names.count(middle) == 1:
        index = names.index(middle)
    elif middle in names:
        raise fail(f"names {names.count(middle)} methods; use a label: {', '.join(labels)}")
    else:
        raise fail(f"names nothing: no method {middle}{did_you_mean(middle, labels)}")
    settings = METHODS[names[index]].settings.model_fields
    if setting not in settings:
        takes = did_you_mean(setting, settings) if settings else "; it takes no settings"
        raise fail(f"names nothing: {names[index]} has no setting {setting}{takes}")
    return ("methods", index, setting)


def _put(data: Any, place: Place, value: Any) -> Any:
    """A copy of nested data with one value replaced; all other parts are shared with the original."""
    if not place:
        return value
    copy = list(data) if isinstance(data, list | tuple) else dict(data)
    copy[place[0]] = _put(data[place[0]], place[1:], value)  # type: ignore[index]
    return copy


def _get(scenario: Scenario, place: Place) -> Any:
    """The value at a place, as plain data."""
    node: Any = scenario
    for key in place:
        parts: Any = _fields_by_key(node) if isinstance(node, BaseModel) else node
        node = parts[key]
    return node.model_dump(by_alias=True) if isinstance(node, BaseModel) else node


def _fields_by_key(part: BaseModel) -> dict[str, Any]:
    return {field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()}

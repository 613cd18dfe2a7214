"""The axes of a sweep: the settings that they name, and their values."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from simulator.core.errors import ScenarioError
from simulator.core.part import found_text, written
from simulator.core.problems import dotted, explain
from simulator.core.yamlfile import Place, did_you_mean
from simulator.experiment.points import sobol
from simulator.experiment.scenario import FIXED, Scenario
from simulator.experiment.schema.methods import CallTarget, MethodEntry, settings_of
from simulator.experiment.schema.network import NEEDED, ExplicitNetwork, PresetNetwork
from simulator.experiment.schema.sweep import Range, Sweep
from simulator.experiment.source import ScenarioSource
from simulator.protocol.methods import TopP

Values = tuple[Any, ...]
FORMS: dict[str, type[BaseModel]] = {"threshold": CallTarget, "local": TopP}  # settings of methods that may be mappings


def axis_place(scenario: Scenario, path: str) -> Place:
    """Return the place of the setting that an axis of the sweep names."""
    return method_place(scenario, path, ScenarioError) if path.startswith("methods.") else tuple(path.split("."))


def check_sweep(scenario: Scenario, source: ScenarioSource) -> Scenario:
    """Return the scenario with validated values of its sweep. Ranges with steps and random points become lists of values.

    Raises:
        ScenarioError: An axis names no setting, or has a value that the setting does not allow.
    """
    sweep = scenario.sweep
    if not sweep.axes:
        return scenario
    whole = scenario.model_dump(by_alias=True)
    whole["sweep"] = {}
    axes: dict[str, Values | Range] = {}
    targets: dict[Place, str] = {}
    for path, axis in sweep.axes.items():
        fail = partial(source.fail, ("sweep", path))
        place = _sweep_place(scenario, whole, path, fail)
        for other, its in targets.items():
            if other == place:
                raise fail(f"and sweep.{its} are the same setting")
            if other == place[: len(other)] or place == other[: len(place)]:
                raise fail(f"and sweep.{its} concern the same setting; sweep one of them")
        targets[place] = path
        if isinstance(axis, Range) and axis.steps is None:
            if sweep.random is None and (sweep.tune is None or not path.startswith("methods.")):
                raise fail(
                    "needs steps: the number of values in a grid, as 6 in 5:200:6; only random and tune draw from a range without"
                )
            _read(whole, place, path, (axis.min, axis.max), source, True)
            axes[path] = axis
        else:
            axes[path] = _axis_values(sweep, whole, place, path, source)
    if sweep.tune is not None:
        _check_tune(sweep, source)
    written_out = sweep.model_copy()  # model_copy cannot update extra fields, which axes are
    object.__setattr__(written_out, "__pydantic_extra__", axes)
    _check_zip(written_out, source)
    if sweep.random is not None:
        written_out = _random(scenario, whole, written_out, targets)
    return scenario.model_copy(update={"sweep": written_out})


def _axis_values(sweep: Sweep, whole: Mapping[str, Any], place: Place, path: str, source: ScenarioSource) -> Values:
    """Return the values of an axis as validated by the setting. Only axes whose values change with another's may repeat a value."""
    axis = sweep.axes[path]
    values = _values(axis)
    read = _read(whole, place, path, values, source, isinstance(axis, Range))
    if any(path in group for group in sweep.zip):
        return read
    for index, value in enumerate(read):
        if value in read[:index] and not isinstance(axis, Range):
            where = source.where(("sweep", path, index))
            raise ScenarioError(f"{where}: sweep.{path} holds {written(values[index])} twice")
    return tuple(dict.fromkeys(read))  # rounding to whole numbers may give a value twice


def _values(axis: "Values | Range") -> Values:
    return axis.values() if isinstance(axis, Range) else axis


def _read(
    whole: Mapping[str, Any],
    place: Place,
    path: str,
    values: Values,
    source: ScenarioSource,
    ranged: bool,
) -> Values:
    """Return the values as validated by the setting. ranged: the values are of a range, and are rounded for whole-number settings."""
    read = []
    for index, value in enumerate(values):
        try:
            taken = read_value(whole, place, value, ranged, source.context)
        except ValidationError as error:
            where, message = explain(error.errors()[0])
            subject = f"sweep.{path}"
            if where != place:  # invalid in combination with another setting
                subject = f"sweep.{path} {written(value)}: {dotted(where)}"
            elif "got " not in message:
                message = f"{message}, got {found_text(value)}"
            raise ScenarioError(f"{source.where(('sweep', path, index))}: {subject} {message}") from None
        if isinstance(taken, dict):  # figures of a file, which do not fit a cell of a table
            raise ScenarioError(
                f"{source.where(('sweep', path, index))}: sweep.{path} takes names, got {found_text(value)}, a file of figures; run the "
                f"scenario once for each file (--set {path}=FILE --out FOLDER) and compare the folders: ciar-sim report FOLDER FOLDER"
            )
        read.append(taken)
    return tuple(read)


def read_value(
    whole: Mapping[str, Any], place: Place, value: Any, ranged: bool, context: dict[str, Any] | None = None
) -> Any:
    """Return a value as validated by the setting at a place.

    Args:
        whole: The scenario without its sweep, as plain data.
        place: The setting.
        value: The value; a float of a range is rounded if the setting takes whole numbers only.
        ranged: Whether the value is of a range.
        context: Validation context.

    Raises:
        ValidationError: The setting does not allow the value.
    """
    try:
        return value_at(Scenario.model_validate(put(whole, place, value), context=context), place)
    except ValidationError as error:
        if not ranged or all(one["type"] != "int_type" for one in error.errors()):
            raise
    return value_at(Scenario.model_validate(put(whole, place, round(value)), context=context), place)


def _check_tune(sweep: Sweep, source: ScenarioSource) -> None:
    chosen = [path for path in sweep.axes if path.startswith("methods.")]
    if not chosen:
        raise source.fail(
            ("sweep", "tune"), "chooses settings of methods, and no axis is one: add methods.LABEL.SETTING"
        )
    for path in chosen:
        if any(path in group for group in sweep.zip):
            raise source.fail(("sweep", "zip"), f"holds {path}, whose values tune chooses one by one")


def _check_zip(sweep: Sweep, source: ScenarioSource) -> None:
    for index, group in enumerate(sweep.zip):
        lengths = {path: len(values) for path in group if isinstance(values := sweep.axes[path], tuple)}
        at: Place = ("sweep", "zip", index)
        if len(lengths) < len(group):
            raise source.fail(at, f"needs values or steps of {next(path for path in group if path not in lengths)}")
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{path} {length}" for path, length in lengths.items())
            raise source.fail(at, f"needs as many values of each path, got {told}")
        rows = list(zip(*(_values(sweep.axes[path]) for path in group), strict=True))
        if len(set(rows)) < len(rows):
            twice = next(row for number, row in enumerate(rows) if row in rows[:number])
            raise source.fail(at, f"holds {', '.join(map(written, twice))} twice")


def _random(scenario: Scenario, whole: Mapping[str, Any], sweep: Sweep, targets: Mapping[Place, str]) -> Sweep:
    """Return the sweep with its random points as zipped axes."""
    assert sweep.random is not None
    place_of = {path: place for place, path in targets.items()}
    groups = grouped(sweep)
    rows: dict[tuple[Any, ...], None] = {}
    for point in sobol(len(groups), sweep.random, scenario.seed):
        row: dict[str, Any] = {}
        for paths, share in zip(groups, point, strict=True):
            for path in paths:
                axis = sweep.axes[path]
                if isinstance(axis, Range):
                    row[path] = read_value(whole, place_of[path], axis.at(share), True)
                else:
                    row[path] = axis[min(int(share * len(axis)), len(axis) - 1)]
        rows[tuple(row[path] for path in sweep.axes)] = None
    columns = zip(*rows, strict=True)
    axes = dict(zip(sweep.axes, columns, strict=True))
    return Sweep.model_validate({**axes, "zip": [list(axes)]} if len(axes) > 1 else axes)


def grouped(sweep: Sweep) -> list[tuple[str, ...]]:
    """Return the groups of zipped paths in order. A path that is not zipped is a group of its own."""
    found: dict[tuple[str, ...], None] = {}
    for path in sweep.axes:
        found[next((group for group in sweep.zip if path in group), (path,))] = None
    return list(found)


def _sweep_place(scenario: Scenario, whole: dict[str, Any], path: str, fail: Callable[[str], ScenarioError]) -> Place:
    """Return the place of a setting. Raises the error of `fail` if it cannot be swept."""
    place: Place = tuple(path.split("."))
    if place[0] in FIXED:
        raise fail("cannot be swept")
    if place[0] == "methods":
        place = method_place(scenario, path, fail)
        label = scenario.methods[int(place[1])].label
        if f" {place[-1]}=" in label:
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
        # A lone word stands for one of these.
        named = [key for key in ("preset", "hardware") if isinstance(node, dict) and key in node]
        inner = f"; did you mean {path}.{named[0]}?" if named else ";" if isinstance(node, dict) else ""
        inner += f" it holds {', '.join(node)}" if isinstance(node, dict) else ""
        raise fail(f"names no single setting{inner}")
    return place


def method_place(scenario: Scenario, path: str, fail: Callable[[str], Exception]) -> Place:
    """Return the place of `methods.<label or unique name>.<setting>`, or of a key of a setting that is a mapping, as `threshold.call_pct`.

    Raises the error of `fail` if there is none.
    """
    middle, _, setting = path.removeprefix("methods.").rpartition(".")
    labels = [entry.label for entry in scenario.methods]
    names = [entry.name for entry in scenario.methods]
    key = ""
    front, _, outer = middle.rpartition(".")
    if setting and middle not in labels and middle not in names and (front in labels or front in names):
        middle, setting, key = front, outer, setting
    if not middle:
        raise fail(f"names no single setting; write methods.LABEL.SETTING with a label of {', '.join(labels)}")
    if middle in labels:
        index = labels.index(middle)
    elif names.count(middle) == 1:
        index = names.index(middle)
    elif middle in names:
        meant = [label for label, name in zip(labels, names, strict=True) if name == middle]
        raise fail(f"names {len(meant)} methods; use a label: {', '.join(meant)}")
    else:
        raise fail(f"names nothing: no method {middle}{did_you_mean(middle, labels)}")
    settings = settings_of(names[index])
    if setting not in settings:
        takes = did_you_mean(setting, settings) if settings else "; it takes no settings"
        raise fail(f"names nothing: {names[index]} has no setting {setting}{takes}")
    if key:
        _check_key(scenario.methods[index], setting, key, f"{setting} of {middle}", fail)
        return ("methods", index, setting, key)
    return ("methods", index, setting)


def _check_key(entry: MethodEntry, setting: str, key: str, said: str, fail: Callable[[str], Exception]) -> None:
    """Raise the error of `fail` if the value of a setting has no such key. said: the setting and its method, for the message."""
    # Without a threshold the target is the default.
    value = entry.target if setting == "threshold" else getattr(entry, setting)
    if not isinstance(value, BaseModel):
        form = FORMS.get(setting)
        hint = f"; give the method {setting}: {{{key}: ...}}" if form and key in form.model_fields else ""
        raise fail(f"names nothing: {said} is {found_text(getattr(entry, setting))}, which has no keys{hint}")
    if key not in type(value).model_fields:
        raise fail(f"names nothing: {said} has no {key}{did_you_mean(key, type(value).model_fields)}")


def put(data: Any, place: Place, value: Any) -> Any:
    """Return a copy of nested data with one value replaced. All other parts are shared with the original. None is an empty mapping."""
    if not place:
        return value
    copy = list(data) if isinstance(data, list | tuple) else dict(data or {})
    copy[place[0]] = put(copy[place[0]] if place[1:] else None, place[1:], value)  # type: ignore[index]
    return copy


def value_at(scenario: Scenario, place: Place) -> Any:
    """Return the value at a place as plain data."""
    node: Any = scenario
    for key in place:
        parts: Any = _fields_by_key(node) if isinstance(node, BaseModel) else node
        node = parts[key]
    return node.model_dump(by_alias=True) if isinstance(node, BaseModel) else node


def _fields_by_key(part: BaseModel) -> dict[str, Any]:
    return {field.alias or name: getattr(part, name) for name, field in type(part).model_fields.items()}

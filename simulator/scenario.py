"""A scenario: what a run is asked to do, checked before anything heavy is imported, and the cases its sweep makes.

Milliseconds and Mbit/s live in the YAML only; `Scenario.link` is in seconds and bit/s. Every refusal is one line:
`file:line: dotted.key what is wrong, what was found`; for the command line `--axis path=...` stands for `file:line`.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from simulator import catalogue, yamlfile
from simulator.errors import ScenarioError
from simulator.methods import METHODS, Decoding, refuse
from simulator.pairs import known_pairs
from simulator.schema.base import LATER, Part, folder_of, found_text, items, written
from simulator.schema.compute import Cloud, Compute
from simulator.schema.fallback import FallbackPolicy
from simulator.schema.messages import dotted, explain, first_problem, subject
from simulator.schema.methods import AnyEntry, MethodEntry, labelled_entries
from simulator.schema.network import NEEDED, ExplicitNetwork, LinkFigures, Network, PresetNetwork
from simulator.schema.prompts import PromptList, Prompts, ScenePrompts
from simulator.schema.workload import FleetWorkload, SequentialWorkload, Workload
from simulator.yamlfile import Document, Place, did_you_mean

FIXED = ("name", "pair", "sweep")  # first keys of dotted paths that cannot be swept


Scalar = bool | int | Annotated[float, Field(allow_inf_nan=True)] | str
Axis = Annotated[tuple[Scalar, ...], BeforeValidator(items), Field(min_length=1)]


class Scenario(Part):
    """A complete scenario. Units in the names of its fields; `link` gives the network in base units."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=100)
    pair: str = Field(default="scenes", description="scenes (the embedded pair) or the path of a pair's folder")
    prompts: Prompts = Field(default_factory=lambda: ScenePrompts())
    decoding: Decoding = Field(default_factory=lambda: Decoding.model_validate({}))
    methods: Annotated[
        tuple[Annotated[MethodEntry, AnyEntry()], ...],
        BeforeValidator(items),
        Field(min_length=1),
        AfterValidator(labelled_entries),
    ]
    placement: Literal["split", "cloud"] = Field(
        default="split", description="cloud: the device's program runs beside the cloud model, too; only the image's ids travel"
    )
    compute: Compute = Field(default_factory=Compute)
    cloud: Cloud = Field(default_factory=lambda: Cloud())
    network: Network = Field(default_factory=lambda: PresetNetwork(preset="wifi"))
    fallback: FallbackPolicy = Field(default_factory=lambda: FallbackPolicy())
    workload: Workload = Field(default_factory=SequentialWorkload)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    sweep: dict[str, Axis] = Field(default_factory=dict)

    @field_validator("pair", mode="before")
    @classmethod
    def _pair(cls, pair: Any, info: ValidationInfo) -> Any:
        if isinstance(pair, dict):
            refuse(f"as a mapping (backbone, weights) {LATER}; allowed: scenes, or the path of a pair's folder")
        shipped = dict.fromkeys(["scenes", *known_pairs()])
        if isinstance(pair, str) and pair not in shipped and info.context is not None:
            path = (folder_of(info) / pair).resolve()
            if not path.is_dir():
                refuse(f"must be {' or '.join(shipped)}, or the path of a folder, got {found_text(pair)}, which is not there")
            return str(path)
        return pair

    @model_validator(mode="after")
    def _cloud_and_workload(self) -> "Scenario":
        w = self.workload
        kinds = w.fleet if isinstance(w, FleetWorkload) else ()
        if self.cloud.queue == "priority" and len({kind.priority for kind in kinds}) < 2:
            refuse("priority needs kinds of different priority in workload.fleet", "cloud", "queue")
        timed = isinstance(w, FleetWorkload) and (w.slo_s is not None or (kinds and all(kind.slo_s is not None for kind in kinds)))
        if self.cloud.queue == "earliest-deadline" and not timed:
            refuse("earliest-deadline needs deadlines: workload.slo_s, or slo_s of every kind in workload.fleet", "cloud", "queue")
        if self.cloud.crashes and not isinstance(w, FleetWorkload):
            refuse("needs arrivals in time, not sequential ones", "cloud", "crashes")
        if self.fallback.policy != "wait" and self.placement == "cloud":
            refuse(f"{self.fallback.policy} goes with placement split: in the cloud nobody waits for it", "fallback", "policy")
        return self

    @property
    def link(self) -> LinkFigures:
        """The network in base units: bit/s and seconds."""
        return self.network.figures()


@dataclass(frozen=True)
class Case:
    """One cell of the grid: one method under one choice of every swept value that concerns it.

    position: of the method in the scenario's list. swept: dotted path -> value, in file order. scenario: with these values in place,
    this method alone, and no sweep.
    """

    index: int
    position: int
    method: MethodEntry
    swept: dict[str, Any]
    scenario: Scenario


# --- loading


@dataclass
class _Source:
    """Where every part of a scenario was written: a line of the file, or an option of the command line."""

    document: Document
    options: dict[Place, str] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        for end in range(len(place), -1, -1):
            if place[:end] in self.options:
                return self.options[place[:end]]
            if place[:end] in self.document.lines:
                return f"{self.document.name}:{self.document.lines[place[:end]]}"
        return self.document.where(())

    def fail(self, place: Place, message: str) -> ScenarioError:
        return ScenarioError(f"{self.where(place)}: {subject(place)}{message}")


def load_scenario(path: str | Path, axes: Sequence[str] = (), sets: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file, checked to the last value of its sweep.

    sets: `dotted.path=value` (YAML) put in place before anything else. axes: `dotted.path=value,value` added to the
    sweep, in place of an axis of the same path. Raises ScenarioError, which names the file and line, or the option.
    """
    return _load(path, axes, sets)[0]


def where_written(place: Place, path: str | Path, axes: Sequence[str] = (), sets: Sequence[str] = ()) -> str:
    """`file:line` of a part of a scenario that was loaded so, or the option that put it there."""
    return _load(path, axes, sets)[1].where(place)


def _load(path: str | Path, axes: Sequence[str], sets: Sequence[str]) -> tuple[Scenario, _Source]:
    document = yamlfile.read(path)
    context = {"folder": Path(path).resolve().parent}
    source = _Source(document, context=context)
    data = document.data
    if not isinstance(data, dict):
        raise source.fail((), f"a scenario must be a mapping of keys, got {found_text(data)}")
    scenario = _validate(data, source, context)
    if sets:
        data = json.loads(json.dumps(data))  # a copy without aliases, through which an option would reach further
        for option in sets:
            _set_option(data, option, scenario, source)
        scenario = _validate(data, source, context)
    if axes:
        data = {**data, "sweep": {**data.get("sweep", {}), **_axis_options(axes, source)}}
        scenario = _validate(data, source, context)
    return _check_sweep(scenario, source), source


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


def resolved_yaml(scenario: Scenario) -> str:
    """The scenario with every default written out, as YAML that loads to an equal one."""
    return yamlfile.dump(_plain(scenario.model_dump(by_alias=True)))


def json_schema() -> dict[str, Any]:
    """JSON Schema of a scenario file, for editors."""
    schema = TypeAdapter(Scenario).json_schema(by_alias=True)
    methods = schema["properties"]["methods"]
    methods["items"] = {"anyOf": [{"type": "string", "enum": list(METHODS)}, methods["items"]]}
    definitions = schema["$defs"]
    definitions["PresetNetwork"]["properties"]["preset"]["enum"] = list(catalogue.names("networks"))
    for side in ("DeviceCompute", "CloudCompute"):
        definitions[side]["properties"]["hardware"]["examples"] = ["local", *catalogue.names("hardware")]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _validate(data: dict[str, Any], source: _Source, context: dict[str, Any]) -> Scenario:
    try:
        return Scenario.model_validate(data, context=context)
    except ValidationError as error:
        place, message = first_problem(error, source.document)
    raise source.fail(place, message)


# --- options


def _set_option(data: dict[str, Any], option: str, scenario: Scenario, source: _Source) -> None:
    """Put `path=value` into the raw mapping, in place."""
    label = f"--set {option}"
    path, value = _split(option, label, "path=value")
    place: Place = tuple(path.split("."))
    if place[0] == "methods":
        place = _method_place(scenario, path, lambda message: ScenarioError(f"{label}: {path} {message}"))
        entry = data["methods"][place[1]]
        if isinstance(entry, str):
            data["methods"][place[1]] = {"name": entry}
    if any(_same_target(scenario, place, swept) for swept in data.get("sweep", {})):
        raise ScenarioError(f"{label}: {path} is swept in {source.document.name}; use --axis {path}=...")
    parsed = _option_value(value, label)
    node: Any = data
    for key in place[:-1]:
        if isinstance(node, dict):
            node = node.setdefault(key, {})
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
        if not isinstance(node, dict | list):
            raise ScenarioError(f"{label}: {path} names nothing: {key} is {found_text(node)}")
    if isinstance(node, list) and not isinstance(place[-1], int):
        raise ScenarioError(f"{label}: {path} names nothing: it lies in a list; set the whole list")
    node[place[-1]] = parsed
    for end in range(1, len(place) + 1):
        if place[:end] not in source.document.lines:
            source.options.setdefault(place[:end], label)
    source.options[place] = label


def _option_value(text: str, label: str) -> Any:
    try:
        return yamlfile.parse(text, label).data
    except ScenarioError as error:
        raise ScenarioError(str(error).replace(f"{label}:1:", f"{label}:")) from None


def _same_target(scenario: Scenario, place: Place, path: str) -> bool:
    return place == _axis_place(scenario, path)


def _axis_options(axes: Sequence[str], source: _Source) -> dict[str, Any]:
    added: dict[str, Any] = {}
    for option in axes:
        label = f"--axis {option}"
        path, values = _split(option, label, "path=value,value")
        if path in added:
            raise ScenarioError(f"{label}: {path} is given twice")
        added[path] = _option_value(f"[{values}]", label)
        source.options[("sweep", path)] = label
    return added


def _split(option: str, label: str, form: str) -> tuple[str, str]:
    path, equals, value = option.partition("=")
    path = path.strip()
    if path.startswith("methods.") and "=" in value and "=" in option[: option.rfind("=")]:
        path, value = option.rsplit("=", 1)  # a default label holds `=` itself
    if not path or not equals or not value.strip():
        raise ScenarioError(f"{label}: must be {form}")
    return path.strip(), value


# --- sweeping


def _axes(scenario: Scenario) -> Iterator[tuple[str, Place, tuple[Any, ...]]]:
    for path, values in scenario.sweep.items():
        yield path, _axis_place(scenario, path), values


def _axis_place(scenario: Scenario, path: str) -> Place:
    return _method_place(scenario, path, ScenarioError) if path.startswith("methods.") else tuple(path.split("."))


def _check_sweep(scenario: Scenario, source: _Source) -> Scenario:
    """Every axis names a setting, which takes every value by itself. Returns the sweep with values as the settings read them."""
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
        place = _method_place(scenario, path, fail)
        label = scenario.methods[int(place[1])].label
        if f" {place[2]}=" in label:
            raise fail(f"is part of the label {label}, which would no longer be true; give this method a label of its own")
        return place
    node: Any = whole
    for depth, key in enumerate(place):
        if not isinstance(node, dict) or key not in node:
            if place[0] == "network" and isinstance(scenario.network, PresetNetwork) and key in ExplicitNetwork.model_fields:
                raise fail(f"needs the explicit form of network ({NEEDED}), which has preset: {scenario.network.preset}")
            if not isinstance(node, dict):
                raise fail(f"names nothing: {dotted(place[:depth])} is {found_text(node)}")
            known = [name for name in node if depth or name not in FIXED]
            raise fail(f"names nothing: {dotted(place[:depth]) or 'a scenario'} has no {key}{did_you_mean(key, known)}")
        node = node[key]
    if isinstance(node, dict | list | tuple):
        inner = f"; it holds {', '.join(node)}" if isinstance(node, dict) else ""
        raise fail(f"names no single setting{inner}")
    return place


def _method_place(scenario: Scenario, path: str, fail: Callable[[str], Exception]) -> Place:
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
    settings = METHODS[names[index]].model_fields
    if setting not in settings:
        takes = did_you_mean(setting, settings) if settings else "; it takes no settings"
        raise fail(f"names nothing: {names[index]} has no setting {setting}{takes}")
    return ("methods", index, setting)


# --- plain data by place


def _put(data: Any, place: Place, value: Any) -> Any:
    """A copy of nested data with one value replaced; what lies beside the way is shared."""
    if not place:
        return value
    copy = list(data) if isinstance(data, list | tuple) else dict(data)
    copy[place[0]] = _put(data[place[0]], place[1:], value)  # type: ignore[index]
    return copy


def _get(scenario: Scenario, place: Place) -> Any:
    node: Any = scenario.model_dump(by_alias=True)
    for key in place:
        node = node[key]
    return node


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list | tuple) else data


__all__ = [
    "Case",
    "Cloud",
    "Compute",
    "FleetWorkload",
    "LinkFigures",
    "MethodEntry",
    "PromptList",
    "Scenario",
    "ScenePrompts",
    "expand",
    "json_schema",
    "load_scenario",
    "resolved_yaml",
]

"""The options `--set` and `--axis`, which change a scenario before it is validated."""

from collections.abc import Sequence
from typing import Any

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.core.part import found_text
from simulator.core.yamlfile import Place
from simulator.experiment.scenario import Scenario
from simulator.experiment.source import Source
from simulator.experiment.sweep import axis_place, method_place


def set_option(data: dict[str, Any], option: str, scenario: Scenario, source: Source) -> None:
    """Put `path=value` into the plain data of a scenario, in place."""
    label = f"--set {option}"
    path, value = _split(option, label, "path=value")
    place: Place = tuple(path.split("."))
    if place[0] == "methods":
        place = method_place(scenario, path, lambda message: ScenarioError(f"{label}: {path} {message}"))
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
    return place == axis_place(scenario, path)


def axis_options(axes: Sequence[str], source: Source) -> dict[str, Any]:
    """The axes of `path=value,value` options; notes in the source that an option put them there."""
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

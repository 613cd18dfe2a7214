"""The options `--set`, `--axis`, `--zip`, `--random` and `--tune`, which change a scenario before it is validated."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.core.part import found_text
from simulator.core.yamlfile import Place
from simulator.experiment.axes import axis_place, method_place
from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.network import PresetNetwork
from simulator.experiment.source import ScenarioSource


def set_option(data: dict[str, Any], option: str, scenario: Scenario, source: ScenarioSource) -> None:
    """Set `path=value` in the plain data of a scenario, in place. Raises ScenarioError if the option is invalid."""
    label = f"--set {option}"
    path, value = _split(option, label, "path=value")
    place: Place = tuple(path.split("."))
    if place[0] == "methods":
        place = method_place(scenario, path, lambda message: ScenarioError(f"{label}: {path} {message}"))
    sweep = data.get("sweep")  # an earlier option may have set it
    where = "--set sweep" if ("sweep",) in source.options else source.document.name
    for swept in sweep if isinstance(sweep, dict) else ():
        target = axis_place(scenario, swept) if swept in scenario.sweep.axes else tuple(str(swept).split("."))
        if target == place:
            raise ScenarioError(
                f"{label}: {path} is swept in {where}; give its values with --axis {path}=... of ciar-sim sweep"
            )
        if target == place[: len(target)]:
            raise ScenarioError(f"{label}: {path} does nothing: {swept} is swept in {where}")
    parsed = _option_value(value, label)
    _write_out(data, place, scenario)
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


def refuse_contradictions(sets: Sequence[str], axes: Sequence[str]) -> None:
    """Raise ScenarioError if a `--set` has no effect: a later one sets, or an `--axis` sweeps, the same path."""
    swept = {axis.partition("=")[0].strip() for axis in axes}
    seen: set[str] = set()
    for option in sets:
        label = f"--set {option}"
        path, _ = _split(option, label, "path=value")
        if path in seen:
            raise ScenarioError(f"{label}: {path} is given twice")
        if path in swept:
            raise ScenarioError(f"{label}: {path} does nothing: it is swept by --axis {path}=...")
        seen.add(path)


def _write_out(data: dict[str, Any], place: Place, scenario: Scenario) -> None:
    """Replace names that stand for a mapping by the mapping, in place, if the setting lies in it: `network: wifi`, `- ciar`."""
    section, *within = place
    compute = data.get("compute")
    if section == "methods" and isinstance(name := data["methods"][within[0]], str):
        data["methods"][within[0]] = {"name": name}
    elif section == "network" and within and isinstance(scenario.network, PresetNetwork):
        if not isinstance(data.get("network"), dict):  # a name, or left out
            data["network"] = {"preset": scenario.network.preset}
    elif (
        section == "compute"
        and len(within) > 1
        and isinstance(compute, dict)
        and isinstance(name := compute.get(within[0]), str)
    ):
        data["compute"] = {**compute, within[0]: {"hardware": name}}


def _option_value(text: str, label: str) -> Any:
    try:
        return yamlfile.parse(text, label).data
    except ScenarioError as error:
        raise ScenarioError(str(error).replace(f"{label}:1:", f"{label}:")) from None


@dataclass(frozen=True)
class Choice:
    """How points of the axes are chosen, from the command line.

    Attributes:
        zips: Groups of zipped axes, each `path,path`.
        random: Number of random points.
        tune: `trials` or `trials:quality`.
    """

    zips: Sequence[str] = ()
    random: int | None = None
    tune: str | None = None


_RANGE = re.compile(r"([^:,]+):([^:,]+?)(?::(\d{1,9}))?(?::(linear|log))?")


def sweep_options(axes: Sequence[str], choice: Choice, source: ScenarioSource) -> dict[str, Any]:
    """Return what options add to the sweep, and register them in the source. Raises ScenarioError if an option is invalid."""
    added: dict[str, Any] = {}
    for option in axes:
        label = f"--axis {option}"
        path, values = _split(option, label, "path=value,value or path=min:max:steps[:log]")
        if path in added:
            raise ScenarioError(f"{label}: {path} is given twice")
        added[path] = axis_values(values, label)
        source.options[("sweep", path)] = label
    if choice.zips:
        added["zip"] = [[path.strip() for path in group.split(",")] for group in choice.zips]
        for index, group in enumerate(choice.zips):
            source.options[("sweep", "zip", index)] = f"--zip {group}"
    if choice.random is not None:
        added["random"] = choice.random
        source.options[("sweep", "random")] = f"--random {choice.random}"
    if choice.tune is not None:
        label = source.options[("sweep", "tune")] = f"--tune {choice.tune}"
        trials, colon, quality = choice.tune.partition(":")
        if not trials.isdecimal() or len(trials) > 9:
            raise ScenarioError(f"{label}: must be trials or trials:quality, such as 40 or 40:align_scenes")
        added["tune"] = {"trials": int(trials), **({"quality": quality} if colon else {})}
    return added


def axis_values(text: str, label: str) -> Any:
    """Parse `value,value` as a list of values, or `min:max[:steps][:log]` as the mapping of a range.

    Raises:
        ScenarioError: The text is neither.
    """
    if found := _RANGE.fullmatch(text.strip()):
        low, high = (yamlfile.scalar(part.strip()) for part in found.group(1, 2))
        if all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
            _option_value(f"[{found[1]}, {found[2]}]", label)  # the same errors as for a list
            steps = {"steps": int(found[3])} if found[3] else {}
            return {"min": low, "max": high, **steps, **({"scale": found[4]} if found[4] else {})}
    values = _option_value(f"[{text}]", label)
    return values[0] if len(values) == 1 and isinstance(values[0], dict) else values


def _split(option: str, label: str, form: str) -> tuple[str, str]:
    path, equals, value = option.partition("=")
    path = path.strip()
    if path.startswith("methods.") and "=" in value and "=" in option[: option.rfind("=")]:
        path, value = option.rsplit("=", 1)  # a default label contains `=`
    if not path or not equals or not value.strip():
        raise ScenarioError(f"{label}: must be {form}")
    return path.strip(), value

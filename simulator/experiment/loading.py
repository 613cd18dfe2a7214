"""Reads a scenario file and checks it, every value of its sweep included."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.core.part import found_text
from simulator.core.problems import first_problem
from simulator.experiment.axes import check_sweep
from simulator.experiment.options import Choice, set_option, sweep_options
from simulator.experiment.scenario import Scenario
from simulator.experiment.source import ScenarioSource
from simulator.protocol.pairs import looking_once


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario, and where each of its parts is written."""

    scenario: Scenario
    source: ScenarioSource


Written = str | Path | Mapping[str, Any]  # a file, or its content


def load_scenario(
    path: Written, axes: Sequence[str] = (), sets: Sequence[str] = (), choice: Choice | None = None
) -> Scenario:
    """The scenario of a YAML file or of a mapping of the same keys; arguments and errors as in `load_with_source`."""
    return load_with_source(path, axes, sets, choice).scenario


@looking_once()
def load_with_source(
    path: Written, axes: Sequence[str] = (), sets: Sequence[str] = (), choice: Choice | None = None
) -> LoadedScenario:
    """The scenario of a YAML file or of a mapping of the same keys, and where its parts are written.

    Args:
        path: The file, or the mapping; paths in a mapping are relative to the current folder.
        axes: `dotted.path=value,value` or `dotted.path=min:max:steps[:log]`: axes added to the sweep; one of the same path is
            replaced.
        sets: `dotted.path=value` (YAML): values put in place first.
        choice: How points of the axes are chosen, in place of what the file says.

    Raises:
        ScenarioError: The file or an option is not usable; the message names file and line, or the option.
    """
    if isinstance(path, Mapping):
        document, folder = yamlfile.parse(_as_yaml(path), "scenario"), Path.cwd()
    else:
        document, folder = yamlfile.read(path), Path(path).resolve().parent
    source = ScenarioSource(document, context={"folder": folder})
    data = document.data
    if not isinstance(data, dict):
        raise source.fail((), f"a scenario must be a mapping of keys, got {found_text(data)}")
    scenario = _validate(data, source)  # before the options: they name methods by their labels
    if sets:
        data = json.loads(json.dumps(data))  # a copy without aliases: an option changes one place only
        for option in sets:
            set_option(data, option, scenario, source)
    added = sweep_options(axes, choice or Choice(), source)
    if added:
        data = {**data, "sweep": {**data.get("sweep", {}), **added}}
    if sets or added:
        scenario = _validate(data, source)
    return LoadedScenario(check_sweep(scenario, source), source)


def _validate(data: dict[str, Any], source: ScenarioSource) -> Scenario:
    try:
        return Scenario.model_validate(data, context=source.context)
    except ValidationError as error:
        place, message = first_problem(error, source.document)
    raise source.fail(place, message)


def _as_yaml(data: Mapping[str, Any]) -> str:
    """The mapping as a file would hold it, so that it is read as strictly as one."""
    try:
        return yamlfile.dump(dict(data))
    except yaml.representer.RepresenterError as error:
        found = type(error.args[-1]).__name__
        raise ScenarioError(
            f"scenario: holds a value of type {found}; allowed: mappings, lists, text, numbers, booleans, None"
        ) from None

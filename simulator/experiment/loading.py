"""Reads a scenario file and checks it to the last value of its sweep."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.core.part import found_text
from simulator.core.problems import first_problem
from simulator.core.yamlfile import Place
from simulator.experiment.options import _axis_options, _set_option
from simulator.experiment.scenario import Scenario
from simulator.experiment.source import _Source
from simulator.experiment.sweep import _check_sweep

Written = str | Path | Mapping[str, Any]  # a file, or what stands in one


def load_scenario(path: Written, axes: Sequence[str] = (), sets: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file or of a mapping of the same keys, checked to the last value of its sweep.

    sets: `dotted.path=value` (YAML) put in place before anything else. axes: `dotted.path=value,value` added to the
    sweep, in place of an axis of the same path. Raises ScenarioError, which names the file and line, or the option.
    """
    return _load(path, axes, sets)[0]


def where_written(place: Place, path: Written, axes: Sequence[str] = (), sets: Sequence[str] = ()) -> str:
    """`file:line` of a part of a scenario that was loaded so, or the option that put it there."""
    return _load(path, axes, sets)[1].where(place)


def _load(path: Written, axes: Sequence[str], sets: Sequence[str]) -> tuple[Scenario, _Source]:
    if isinstance(path, Mapping):
        document, folder = yamlfile.parse(_as_yaml(path), "scenario"), Path.cwd()
    else:
        document, folder = yamlfile.read(path), Path(path).resolve().parent
    context = {"folder": folder}
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


def _validate(data: dict[str, Any], source: _Source, context: dict[str, Any]) -> Scenario:
    try:
        return Scenario.model_validate(data, context=context)
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

"""Loading of scenario files, with validation of all values of the sweep."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simulator.core import yamlfile
from simulator.core.part import found_text
from simulator.core.problems import first_problem
from simulator.core.written import as_written
from simulator.experiment.axes import check_sweep
from simulator.experiment.options import Choice, refuse_contradictions, set_option, sweep_options
from simulator.experiment.scenario import Scenario
from simulator.experiment.source import ScenarioSource
from simulator.protocol.pairs import looking_once


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario, and the locations of its parts."""

    scenario: Scenario
    source: ScenarioSource


Written = str | Path | Mapping[str, Any]  # a file, or its content


def load_scenario(
    path: Written, axes: Sequence[str] = (), sets: Sequence[str] = (), choice: Choice | None = None
) -> Scenario:
    """Load the scenario of a YAML file or of a mapping with the same keys. Arguments and errors are those of `load_with_source`."""
    return load_with_source(path, axes, sets, choice).scenario


@looking_once()
def load_with_source(
    path: Written, axes: Sequence[str] = (), sets: Sequence[str] = (), choice: Choice | None = None
) -> LoadedScenario:
    """Load the scenario of a YAML file or of a mapping with the same keys, and the locations of its parts.

    Args:
        path: The file, or the mapping; paths in a mapping are relative to the current folder.
        axes: `dotted.path=value,value` or `dotted.path=min:max:steps[:log]`: axes added to the sweep, replacing those of the same path.
        sets: `dotted.path=value` (YAML): values set before axes are added.
        choice: How points of the axes are chosen, replacing the choice in the file.

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
    scenario = _validate(data, source)  # before the options, which refer to methods by label
    refuse_contradictions(sets, axes)
    if sets:
        data = json.loads(json.dumps(data))  # a copy without YAML aliases, so that an option changes one place only
        # The sweep first: what it no longer sweeps can be set.
        for option in sorted(sets, key=lambda option: not option.startswith("sweep=")):
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
    """Convert the mapping to YAML, so that it is parsed as strictly as a file."""
    return yamlfile.dump(as_written(data, "scenario"))

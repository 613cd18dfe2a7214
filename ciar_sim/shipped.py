"""Scenarios shipped with the program, found by name from any folder."""

import os
import re
from pathlib import Path

from simulator.core.errors import ScenarioError
from simulator.core.yamlfile import did_you_mean

SCENARIOS = Path(__file__).parent / "scenarios"  # in a checkout a link to the top-level folder


def shipped_scenarios() -> list[str]:
    """Return the names of the shipped scenarios, sorted."""
    return sorted(path.stem for path in SCENARIOS.glob("*.yaml"))


def scenario_path(name: str | Path) -> Path:
    """Return the path of the file with this name, else of the shipped scenario with this name.

    A name with a folder or an extension is always that of a file; reading it raises the error.

    Raises:
        ScenarioError: Neither exists.
    """
    text = os.fspath(name)
    if os.path.exists(text) or not re.fullmatch(r"[\w-]+", text):
        return Path(text)
    known = shipped_scenarios()
    if text not in known:
        raise ScenarioError(f"{text}: no such file, and no shipped scenario has this name{did_you_mean(text, known)}")
    return SCENARIOS / f"{text}.yaml"

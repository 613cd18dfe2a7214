"""Scenarios that come with the program, found by name from any folder."""

import os
import re
from pathlib import Path

from simulator.core.errors import ScenarioError
from simulator.core.yamlfile import did_you_mean

SCENARIOS = Path(__file__).parent / "scenarios"  # in a checkout a link to the folder at its top


def shipped_scenarios() -> list[str]:
    """Names of the scenarios that come with the program, sorted."""
    return sorted(path.stem for path in SCENARIOS.glob("*.yaml"))


def scenario_path(name: str | Path) -> Path:
    """The file of that name, or else the shipped scenario of that name.

    Raises:
        ScenarioError: Neither exists. A name with a folder or an extension is a file's, and whoever reads it says what is wrong.
    """
    text = os.fspath(name)
    if os.path.exists(text) or not re.fullmatch(r"[\w-]+", text):
        return Path(text)
    known = shipped_scenarios()
    if text not in known:
        raise ScenarioError(f"{text}: no such file, and no shipped scenario has this name{did_you_mean(text, known)}")
    return SCENARIOS / f"{text}.yaml"

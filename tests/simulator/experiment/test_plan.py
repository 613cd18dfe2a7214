"""Captions of a run: distinct ones, and errors when there are too few."""

from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.experiment.loading import load_scenario
from simulator.experiment.plan import captions_of
from simulator.experiment.scenario import Scenario


def few(seed: int, count: int) -> list[str]:
    """Return captions from a source with only three different ones."""
    return [f"caption {(seed + index) % 3}" for index in range(count)]


def wanting(folder: Path, count: int, skip: int = 0) -> Scenario:
    path = folder / "scenario.yaml"
    path.write_text(
        f"name: few\nprompts: {{source: scenes, count: {count}, skip: {skip}}}\nmethods: [base]\nnetwork: {{preset: wifi}}\n"
    )
    return load_scenario(path)


def test_captions_are_different_ones_as_far_as_there_are_enough(tmp_path: Path) -> None:
    assert captions_of(wanting(tmp_path, 3), few) == ["caption 0", "caption 1", "caption 2"]
    with pytest.raises(
        ScenarioError, match=r"prompts\.count: 4 captions wanted, .* only 3 different ones; must be <= 3"
    ):
        captions_of(wanting(tmp_path, 4), few)


def test_captions_that_settings_were_chosen_on_are_left_out(tmp_path: Path) -> None:
    assert captions_of(wanting(tmp_path, 2, skip=1), few) == captions_of(wanting(tmp_path, 3), few)[1:]
    with pytest.raises(
        ScenarioError, match=r"2 captions wanted after 2, .* only 3 different ones; skip \+ count must be <= 3"
    ):
        captions_of(wanting(tmp_path, 2, skip=2), few)

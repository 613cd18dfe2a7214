"""`ciar-sim evaluate samples` on a tiny pair, and its grid."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ciar_sim.cli.main import main
from models.evaluate.samples import grid


def test_the_grid_holds_every_image_in_reading_order() -> None:
    images = [np.full((4, 6, 3), index, np.uint8) for index in range(10)]
    page = grid(images)
    assert page.shape == (4 + 2 + 4, 8 * 8 - 2, 3)
    assert [int(page[0, 8 * column, 0]) for column in range(8)] == list(range(8))
    assert [int(page[6, 8 * column, 0]) for column in range(3)] == [8, 9, 255]  # no image: white


def test_the_command_writes_a_grid_and_says_nothing_of_claims_it_cannot_read(
    tiny_pair_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    arguments = ["evaluate", "samples", "--pair", str(tiny_pair_folder), "--prompts", "3", "--out", str(out)]
    for method in ("base", "device-only"):
        result = CliRunner().invoke(main, [*arguments, "--method", method, "--cache", str(tmp_path)])
        assert result.exit_code == 0, result.output
    with Image.open(out / "samples.png") as image:
        assert image.size == (8 * 34 - 2, 32)
    assert (out / "claims.csv").read_text().splitlines() == ["prompt,caption,claim,right"]


def test_a_pair_of_figures_draws_nothing(tmp_path: Path) -> None:
    asked = ["evaluate", "samples", "--pair", "paper-anole", "--out", str(tmp_path / "o"), "--cache", str(tmp_path)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert "Error: pair paper-anole: has published figures and no weights" in result.output


@pytest.mark.parametrize(("seed", "said"), [("1", "used in training"), ("3", "what the images are compared with")])
def test_scenes_that_the_models_or_the_reference_know_are_refused(
    tiny_pair_folder: Path, tmp_path: Path, seed: str, said: str
) -> None:
    asked = ["evaluate", "samples", "--pair", str(tiny_pair_folder), "--out", str(tmp_path / "o"), "--seed", seed]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2
    assert f"Error: --seed {seed}: scenes of this seed " in result.output
    assert said in result.output

"""The change of pixels around a token, and the evaluation of a pair of photographs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from ciar_sim.cli.main import main
from models.evaluate.pixels import pixel_changes
from models.evaluate.tables import with_pixels
from models.pair import Pair
from models.vq import VQConfig, VQModel, to_uint8
from simulator.protocol.pairs import pair_manifest
from tests.models.photo_pairs import train

pytestmark = pytest.mark.usefixtures("undrawn")


def test_a_change_is_measured_around_the_token_alone() -> None:
    """The decoder is reduced to the codes' patches of 4 x 4 pixels. The window has 8 x 8 pixels."""
    torch.manual_seed(0)
    shape = VQConfig(
        codebook_size=8, codebook_dim=50, ch=32, encoder_ch_mult=(), decoder_ch_mult=(1,), z_channels=32, patch=4
    )
    model = VQModel(shape).eval()
    for weight in (model.decoder.conv_out.weight, model.decoder.conv_out.bias):
        torch.nn.init.zeros_(weight)  # type: ignore[arg-type]
    tokens = torch.zeros(16, dtype=torch.int64)
    one, other = torch.tensor([1, 2, 3]), torch.tensor([4, 2, 5])
    found = pixel_changes(model, tokens, np.array([5, 6, 0]), one, other)
    with torch.inference_mode():
        patches = to_uint8(model.decode_codes(torch.arange(8).repeat_interleave(4).view(8, 4))).numpy().astype(float)
    corner = patches[:, :4, :4]  # [8, 4, 4, 3]
    for index, (a, b, pixels) in enumerate(
        ((1, 4, 64), (2, 2, 64), (3, 5, 36))
    ):  # the image's edge cuts the last window
        squared = np.square(corner[a] - corner[b]).mean(-1).sum()
        assert found[index] == pytest.approx(np.sqrt(squared / pixels))
    assert found[1] == 0 < found[0]


def test_the_tiny_pair_is_compared_in_its_own_squares(tiny_pair: Pair) -> None:
    tokens = torch.arange(16)
    found = pixel_changes(tiny_pair.tokenizer, tokens, np.array([3]), torch.tensor([9]), torch.tensor([11]))
    images = []
    for token in (9, 11):
        changed = tokens.clone()
        changed[3] = token
        images.append(to_uint8(tiny_pair.tokenizer.decode_codes(changed.unsqueeze(0)))[0, :8, 24:].double().numpy())
    assert found[0] == pytest.approx(np.sqrt(np.square(images[0] - images[1]).mean()))


def test_shares_of_small_changes_by_region() -> None:
    nothing = float("nan")
    tokens = pd.DataFrame(
        {
            "region": ["background", "background", "object"],
            "pixel_rms": [7.9, 8.1, nothing],
            "pixel_rms_draws": [0.0, 1.0, nothing],
        }
    )
    found = with_pixels(pd.DataFrame({"region": ["background", "object", "all"]}), tokens)
    assert found["small_change_pct"].tolist() == pytest.approx([50.0, nothing, 50.0], nan_ok=True)
    assert found["small_change_draws_pct"].tolist() == pytest.approx([100.0, nothing, 100.0], nan_ok=True)


def test_scores_of_a_pair_of_photographs_with_regions_of_its_own_images(tmp_path: Path) -> None:
    pair = train(tmp_path)
    assert pair_manifest(pair).guidance == 1.0  # its device was trained with 1
    command = ["evaluate", "uncertainty", "--pair", str(pair), "--prompts", "3", "--sampled-tokens", "4", "--no-timing"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "guidance 1;" in result.output
    assert "## Regions of the images" in result.output
    assert "## In pixels" in result.output
    tokens = pd.read_parquet(tmp_path / "out" / "tokens.parquet")
    assert set(tokens["region"]) <= {"background", "object", "border"}
    assert tokens.groupby("prompt")["pixel_rms"].count().tolist() == [4, 4, 4]
    same = tokens["device_token"] == tokens["cloud_token"]
    assert (tokens.loc[same, "pixel_rms"].dropna() == 0).all()
    for more, said in (
        (["--on", "scenes"], "--on scenes: real images of these captions are not available; allowed: generated"),
        (["--prompts", "9999"], "9999 different captions are needed, "),
    ):
        result = CliRunner().invoke(main, [*command, *more, "--out", str(tmp_path / "other")])
        assert result.exit_code == 2
        assert said in result.output
        assert not (tmp_path / "other").exists()

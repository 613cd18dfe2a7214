"""Other people's metrics, on tiny networks of the same call signatures as their own."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.quality import foreign
from models.quality.statistics import Gaussian, frechet_distance, precision_recall_f1
from simulator.errors import WeightsError
from simulator.rng import stream

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # how the files are made that these tests load


class Colours(nn.Module):
    """Mean and contrast of each colour: features [B, 6] of uint8 [B, 3, H, W]."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        x = img.float()
        means, contrasts = x.mean(dim=[2, 3]), x.std(dim=[2, 3])
        if return_features:
            return torch.cat([means, contrasts], dim=1)
        return means


class NoFeatures(nn.Module):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float()


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.jit.script(Colours()).save(str(tmp_path / "net.pt"))
    return tmp_path / "net.pt"


def images(seed: int, count: int, spread: float = 30.0) -> list[np.ndarray]:
    rng = stream(seed, "test.images")
    middles = 128 + spread * rng.standard_normal((count, 1, 1, 3))
    return list((middles + 20 * rng.standard_normal((count, 16, 12, 3))).clip(0, 255).astype(np.uint8))


def features(some: list[np.ndarray]) -> np.ndarray:
    x = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float()
    return torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1).numpy()


def test_fid_and_f1_are_the_statistics_of_the_network_s_features(net: Path) -> None:
    made, real = images(0, 40, 20.0), images(1, 60)
    network = foreign.FeatureNet(net)
    assert np.allclose(network(made), features(made), atol=1e-3)  # more than one batch
    value, low, high = foreign.fid(network, made, real)
    assert value == pytest.approx(frechet_distance(Gaussian(features(real)), Gaussian(features(made))), rel=1e-4)
    assert 0 <= low < value < high
    value, low, high = foreign.f1(network, made, real)
    assert value == pytest.approx(precision_recall_f1(features(real[:40]), features(made))[2])
    assert 0 <= low <= value <= high <= 1


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        foreign.FeatureNet(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        foreign.FeatureNet(tmp_path / "text.pt")
    torch.jit.script(NoFeatures()).save(str(tmp_path / "pixels.pt"))
    with pytest.raises(WeightsError, match=r"gave a tensor \[2, 3, 16, 12\] for 2 images, needed features \[2, F\]"):
        foreign.FeatureNet(tmp_path / "pixels.pt")(images(0, 2))
    torch.jit.script(nn.Flatten()).save(str(tmp_path / "plain.pt"))
    with pytest.raises(WeightsError, match="cannot be called as a feature network"):
        foreign.FeatureNet(tmp_path / "plain.pt")(images(0, 2))


class TinyClip:
    """Pictures by their mean colour, texts by whether they say red, green or blue."""

    size = 8

    def __init__(self) -> None:
        self.seen: list[str] = []

    def images(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[1:] == (3, 8, 8)
        std, mean = (torch.tensor(values) for values in (foreign.CLIP_STD, foreign.CLIP_MEAN))
        return pixels.mean((2, 3)) * std + mean

    def texts(self, texts: Sequence[str]) -> Tensor:
        self.seen += texts
        return torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts])


def test_clip_scores_are_cosines_of_each_picture_with_its_caption() -> None:
    pictures = [np.full((16, 24, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0), (60, 80, 0))] * 12
    model = TinyClip()
    found = foreign.clip_scores(model, pictures, ["a red ball", "a blue ball", "a green ball"] * 12, prefix="A photo depicts ")
    assert found == pytest.approx(np.array([1.0, 0.0, 0.8] * 12), abs=1e-6)
    assert model.seen[0] == "A photo depicts a red ball"
    assert len(model.seen) == 36
    with pytest.raises(ValueError, match="as many captions"):
        foreign.clip_scores(model, pictures, ["one"])


def test_clip_takes_the_middle_of_a_wide_picture() -> None:
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16, 0] = 255
    assert foreign.clip_scores(TinyClip(), [picture], ["red"]) == pytest.approx(1.0)


def test_a_folder_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json in it"):
        foreign.load_clip(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is installed")
def test_without_transformers_the_error_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"pip install 'ciar-sim\[clip\]'"):
        foreign.load_clip(tmp_path)

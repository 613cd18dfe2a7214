"""The scene network: claims of captions, readings of images, and the accuracy of the shipped network on real renders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import scenes
from models.quality.judges import SCENE_NETWORK as WEIGHTS
from models.quality.network import SceneNetwork, load_scene_network, read_images, save_network
from models.quality.reading import COLORS, PLACES, READING_DTYPE, SHAPES, SIZES, agreement, claim_names, claims_of
from models.train import scene_network
from simulator.core.errors import WeightsError


def perfect(seed: int, index: int) -> np.ndarray:
    """Return the correct reading of a scene."""
    reading = np.zeros(1, READING_DTYPE)[0]
    label = scene_network.labels_of(seed, index + 1)[index]
    for row, name in enumerate(("shape", "color", "size")):
        reading[name] = label[row * len(PLACES) : (row + 1) * len(PLACES)].clip(min=0)
    reading["texture"], reading["background_color"] = label[-2:]
    return reading


@given(st.integers(0, 2**31), st.integers(0, 20))
def test_claims_are_what_the_scene_was_drawn_from(seed: int, index: int) -> None:
    scene = scenes.scene(seed, index)
    claims = claims_of(scene.caption)
    assert claims is not None
    drawn = [
        (PLACES.index(o.place), SHAPES.index(o.shape), COLORS.index(o.color), SIZES.index(o.size))
        for o in scene.objects
    ]
    assert claims.objects == tuple(drawn)
    found = agreement(claims, perfect(seed, index))
    assert found.all()
    assert len(found) == 4 * len(scene.objects) + 2 == len(claim_names(claims))


def test_a_missing_object_takes_its_four_claims_with_it_and_a_wrong_colour_one() -> None:
    caption = "a large red sphere at the top left and a small blue cube at the right on a striped gray background"
    claims = claims_of(caption)
    assert claims is not None
    reading = np.zeros(1, READING_DTYPE)[0]
    reading["texture"], reading["background_color"] = scenes.TEXTURES.index("striped"), 0  # 0: gray
    reading["shape"][0], reading["color"][0], reading["size"][0] = (
        SHAPES.index("sphere"),
        COLORS.index("green"),
        SIZES.index("large"),
    )
    assert agreement(claims, reading).tolist() == [True, True, False, True] + [False] * 4 + [True, True]


@pytest.mark.parametrize(
    "caption", ["", "a red sphere", "a large red sphere on a striped gray background", "a large red sphere at the top"]
)
def test_captions_of_another_form_claim_nothing(caption: str) -> None:
    assert claims_of(caption) is None


def test_the_windows_stand_where_the_places_are() -> None:
    """The gradient-weighted centre of the pixels that determine a place's reading is within 8 pixels of the place."""
    torch.manual_seed(0)
    model = SceneNetwork().eval()
    images = torch.rand(2, 3, 128, 128).mul(2).sub(1).requires_grad_()
    shape = model(images).shape  # [B, P, 7]
    for place, centre in enumerate(scenes.PLACES.values()):
        (gradient,) = torch.autograd.grad(shape[:, place].square().sum(), [images], retain_graph=True)
        weight = gradient.square().sum((0, 1))  # [H, W]
        along = torch.arange(128.0)
        middle = [float((weight.sum(axis) * along).sum() / weight.sum()) for axis in (0, 1)]  # column, row
        assert np.abs(np.subtract(middle, centre)).max() < 8


def test_a_reading_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    model = SceneNetwork().eval()
    images = np.stack([scenes.image(0, index) for index in range(3)])
    together, alone = read_images(model, images), read_images(model, images[2:])
    assert together[2].tobytes() == alone[0].tobytes()
    assert (together["features"] >= 0).all()
    assert together["features"].std() > 0


def test_a_network_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SceneNetwork().eval()
    save_network(tmp_path / "a.safetensors", model, {})
    again = load_scene_network(tmp_path / "a.safetensors")
    save_network(tmp_path / "b.safetensors", again, {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    images = np.stack([scenes.image(0, 0)])
    assert np.abs(read_images(model, images)["features"] - read_images(again, images)["features"]).max() < 1e-2
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a model of this project"):
        load_scene_network(tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        load_scene_network(tmp_path / "d.safetensors")


def test_augmenting_keeps_the_image_and_changes_it() -> None:
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    torch.manual_seed(1)
    once = scene_network.augment(images)
    torch.manual_seed(1)
    assert torch.equal(once, scene_network.augment(images))
    assert once.shape == images.shape
    assert not torch.equal(once, images)
    assert abs(float((once - images).mean())) < 0.1


def test_training_learns_the_background_first(tmp_path: Path) -> None:
    """A few steps of the whole stage: the loss falls, the file loads, and the metrics include the accuracy."""
    training = {"steps": 30, "learning_rate": 3e-3, "warmup_steps": 3, "ema_decay": 0.8}
    model = {"widths": [8, 12, 16], "place_features": 40, "background_features": 24}
    config = {"scenes": {"train": 32, "held_out": 8}, "batch_images": 8, "model": model, "training": training}
    scene_network.run(scene_network.SceneNetworkTraining.model_validate(config), tmp_path / "scene-network")
    rows = (tmp_path / "scene-network" / "loss.csv").read_text().splitlines()
    first, last = (float(row.split(",")[rows[0].split(",").index("loss")]) for row in (rows[1], rows[-1]))
    assert last < 0.8 * first
    assert load_scene_network(tmp_path / "scene-network" / "scene_network.safetensors").config.widths == (8, 12, 16)
    assert '"attribute_accuracy"' in (tmp_path / "scene-network" / "metrics.json").read_text()


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the scene network is not shipped here")
def test_the_shipped_network_reads_real_renders() -> None:
    """The 96 renders, about 1,000 claims, are of a seed used neither for training nor for its metrics."""
    assert WEIGHTS.stat().st_size < 2 * 2**20
    captions = scenes.captions(11, 96)
    found = scene_network.accuracy(
        load_scene_network(WEIGHTS), np.stack([scenes.image(11, i) for i in range(96)]), captions
    )
    assert found["attribute_accuracy"] >= 0.97
    assert found["extra_objects"] < 0.1

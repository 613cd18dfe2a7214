"""Scenes and captions: they are seeded and bounded, and the drawing matches the words."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import scenes
from models.text import CAPTION_SLOTS
from simulator.core.rng import stream


def test_the_same_seed_gives_the_same_bytes_in_any_order() -> None:
    first = [scenes.image(3, index) for index in (0, 5)]
    again = [scenes.image(3, index) for index in (5, 0)]
    assert np.array_equal(first[0], again[1])
    assert np.array_equal(first[1], again[0])
    assert not np.array_equal(first[0], first[1])
    assert scenes.scene(3, 0) != scenes.scene(4, 0)


def test_an_image_is_128_pixels_of_bytes() -> None:
    image = scenes.image(0, 0)
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8


def test_captions_stay_inside_the_vocabulary_and_the_slots() -> None:
    texts = scenes.captions(0, 400)
    words = {word for text in texts for word in text.split()}
    assert words == set(scenes.WORDS), "every word occurs, and no other"
    assert len(scenes.WORDS) < 64
    assert max(len(text.split()) for text in texts) <= CAPTION_SLOTS
    assert all(text == text.lower() for text in texts)
    assert texts[:3] == [scenes.scene(0, index).caption for index in range(3)]


def test_a_caption_reads_as_a_sentence_would() -> None:
    item = scenes.SceneObject("sphere", "red", "large", "at the top left", 30, 30, 22, 0)
    other = scenes.SceneObject("cube", "blue", "small", "at the bottom right", 97, 97, 13, 0)
    scene = scenes.Scene((item, other), scenes.Background("gray", "striped", 0, 20, 0, 0))
    expected = (
        "a large red sphere at the top left and a small blue cube at the bottom right on a striped gray background"
    )
    assert scene.caption == expected


@given(st.integers(0, 2**31), st.integers(0, 10**7))
def test_objects_stand_apart_and_inside_the_image(seed: int, index: int) -> None:
    objects = scenes.scene(seed, index).objects
    assert 1 <= len(objects) <= 3
    assert len({item.place for item in objects}) == len(objects)
    for number, item in enumerate(objects):
        assert 20 <= item.column_px <= 108
        assert 20 <= item.row_px <= 108
        for other in objects[:number]:
            gap = np.hypot(item.column_px - other.column_px, item.row_px - other.row_px)
            assert gap >= 0.95 * (item.radius_px + other.radius_px)


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("color", ["red", "blue"])
def test_an_object_has_its_colour_where_the_map_says(shape: str, color: str) -> None:
    item = scenes.SceneObject(shape, color, "large", "in the center", 64, 64, 24, 0.1)
    scene = scenes.Scene((item,), scenes.Background("gray", "plain", 0, 20, 0, 0))
    image, regions = scenes.render(scene, stream(0, "test")).astype(float), scenes.region_map(scene)
    inside = image[regions == scenes.OBJECT].mean(axis=0)
    assert inside.argmax() == {"red": 0, "blue": 2}[color]
    assert inside.max() > inside.min() + 60
    far = image[:20][regions[:20] == scenes.BACKGROUND].mean(axis=0)
    assert np.ptp(far) < 12, "the background is gray"


def test_the_region_map_parts_object_border_and_background() -> None:
    item = scenes.SceneObject("sphere", "red", "large", "in the center", 64, 64, 24, 0)
    scene = scenes.Scene((item,), scenes.Background("gray", "plain", 0, 20, 0, 0))
    regions = scenes.region_map(scene)
    assert regions.shape == (128, 128)
    assert regions.dtype == np.uint8
    assert regions[64, 64] == scenes.OBJECT
    assert regions[5, 5] == scenes.BACKGROUND
    assert regions[64, 64 + 23] == scenes.BORDER
    steps = np.abs(np.diff(regions.astype(int), axis=1))
    assert not np.any((regions[:, :-1] + regions[:, 1:] == 1) & (steps == 1)), (
        "a border lies between object and background"
    )


def test_noise_is_within_its_range_and_is_all_that_the_generator_draws() -> None:
    scene = dataclasses.replace(scenes.scene(0, 0), objects=())
    scene = dataclasses.replace(scene, background=scenes.Background("gray", "plain", 0, 20, 0, 0))
    one, two = (scenes.render(scene, stream(1, "noise", number)).astype(float) for number in (0, 1))
    sigma = (one - two).std()
    low, high = scenes.NOISE_SIGMA
    assert low * np.sqrt(2) * 0.97 < sigma < high * np.sqrt(2) * 1.03
    assert abs((one - two).mean()) < 0.2

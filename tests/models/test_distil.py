"""Training data and metrics of a distilled device."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.tiny_pair import make_tiny_pair
from models.train.cloud_outputs import CloudOutputs
from models.train.distil import Head, evaluate_device, first_device
from simulator.protocol.methods import Decoding


def test_a_device_that_is_sure_of_other_tokens_is_far_from_the_cloud_and_not_nowhere(tmp_path: Path) -> None:
    """Guidance makes distributions with entries that underflow to 0 in float32. The KL stays finite."""
    pair = make_tiny_pair(tmp_path / "pair", grid=2)
    decoding = Decoding.model_validate({"guidance": 3.0})
    data = CloudOutputs(pair, ["a large red cube at the top on a plain navy background"], 1, decoding, 0, tmp_path)
    device, head = first_device(pair.cloud).eval(), Head(pair.cloud)
    same = evaluate_device(device, head, data, 3.0, "cpu")
    with torch.no_grad():
        head.output.weight.mul_(1000)
        device.transformer.output.weight.mul_(-1000)
    opposed = evaluate_device(device, head, data, 3.0, "cpu")
    assert 0 < same["kl_nats"] < 10
    assert 1000 < opposed["kl_nats"] < float("inf")
    assert opposed["acceptance"] == pytest.approx(0, abs=0.05)


def test_a_caption_that_stands_twice_has_an_image_of_its_own_each_time(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path / "pair", grid=2)
    red, blue = (f"a large {color} cube at the top on a plain navy background" for color in ("red", "blue"))
    decoding = Decoding.model_validate({"guidance": 1.0})

    def images(*captions: str) -> list[tuple[int, ...]]:
        data = CloudOutputs(pair, captions, 32, decoding, 0, tmp_path)
        return [tuple(row) for row in data.gather(np.arange(32)).tokens.tolist()]

    once, twice = images(red, blue), images(red, red, blue)
    assert len(set(once)) == len(set(twice)) == 32
    # The n-th image of a caption is the same in both.
    assert [twice[0], twice[1], twice[3], twice[2], twice[5]] == [once[0], once[2], once[4], once[1], once[3]]

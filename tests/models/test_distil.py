"""What distilling a device tells of it."""

from pathlib import Path

import pytest
import torch

from benchmarks.tiny_pair import make_tiny_pair
from models.train.cloud_outputs import CloudOutputs
from models.train.distil import Head, evaluate_device, first_device
from simulator.protocol.methods import Decoding


def test_a_device_that_is_sure_of_other_tokens_is_far_from_the_cloud_and_not_nowhere(tmp_path: Path) -> None:
    """Guidance makes distributions with entries that float32 holds as 0."""
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

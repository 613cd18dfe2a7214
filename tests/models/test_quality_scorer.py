"""The scorer: its metrics, its cache, and when it returns NaN. The network is untrained, since no test depends on its accuracy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models import scenes
from models.quality.judges import SceneJudge
from models.quality.network import SceneNetwork, load_scene_network, read_images, save_network
from models.quality.reading import agreement, claims_of
from models.quality.scorer import Scorer
from simulator.protocol.messages import Widths
from simulator.protocol.recording import OP_DTYPE, Recording


def recording(image: np.ndarray) -> Recording:
    nothing = np.zeros(0, np.uint16)
    return Recording(np.zeros(0, OP_DTYPE), nothing, nothing, nothing, image, nothing, nothing, Widths(1, 1, 1, 1, 1))


def of(cache: Path, network: Path) -> Scorer:
    """Return a scorer that compares sets of eight images or more with ten renders."""
    scorer = Scorer(cache, SceneJudge(network, 10))
    scorer.fewest = 8
    return scorer


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_network(path, SceneNetwork().eval(), {})
    return path


@pytest.fixture
def scorer(network: Path, tmp_path: Path) -> Scorer:
    return of(tmp_path, network)


@pytest.fixture(scope="module")
def images() -> tuple[list[Recording], list[str]]:
    return [recording(scenes.image(0, index)) for index in range(9)], scenes.captions(0, 9)


def test_alignment_is_the_share_of_claims_that_the_network_reads(
    scorer: Scorer, images: tuple[list[Recording], list[str]]
) -> None:
    recordings, captions = images
    columns, _ = scorer(recordings, [*captions[:-1], "a red cube"])
    model = load_scene_network(scorer.judge.weights)
    for recorded, caption, found in zip(recordings, captions, columns["align_scenes"][:-1], strict=False):
        claims = claims_of(caption)
        assert claims is not None
        assert found == agreement(claims, read_images(model, recorded.image[None])[0]).mean()
    assert math.isnan(columns["align_scenes"][-1])  # a caption without a known form


def test_sets_have_values_with_intervals_from_enough_different_images_on(
    scorer: Scorer, images: tuple[list[Recording], list[str]]
) -> None:
    recordings, captions = images
    twice = [*recordings[:7], *recordings[:7]]
    _, of_set = scorer(twice, captions[:7] * 2)
    assert np.isnan(list(of_set(np.arange(14)).values())).all()  # only seven differ
    _, of_set = scorer(recordings, captions)
    found = of_set(np.arange(9))
    value, low, high = found["fd_scenes"]
    assert 0 <= low < value < high
    assert 0 <= found["f1_scenes"][1] <= found["f1_scenes"][0] <= found["f1_scenes"][2] <= 1
    assert scorer(recordings[::-1], captions[::-1])[1](np.arange(9)) == found  # the order does not matter
    assert set(of_set(np.arange(0))) == set(found)


def test_what_was_read_is_kept_and_a_damaged_file_is_read_again(
    scorer: Scorer,
    network: Path,
    tmp_path: Path,
    images: tuple[list[Recording], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recordings, captions = images
    columns, of_set = scorer(recordings, captions)
    found = of_set(np.arange(9))

    def fail(self: SceneJudge, images: np.ndarray) -> np.ndarray:
        raise AssertionError("the network was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(SceneJudge, "read", fail)
        again = of(tmp_path, network)
        columns_again, of_set = again(recordings, captions)
        assert columns_again["align_scenes"].tobytes() == columns["align_scenes"].tobytes()
        assert of_set(np.arange(9)) == found
    kept = sorted(scorer.root.glob("??/*.npy"))
    assert len(kept) == 9
    kept[0].write_bytes(b"\x93NUMPY")
    kept[1].write_bytes(b"")
    kept[2].write_bytes(b"PK\x05\x06" + bytes(18))  # an empty npz
    assert of(tmp_path, network)(recordings, captions)[1](np.arange(9)) == found
    assert all(path.stat().st_size > 100 for path in kept)


def test_images_of_another_size_are_not_judged(scorer: Scorer) -> None:
    columns, of_set = scorer([recording(np.zeros((32, 32, 3), np.uint8))] * 2, ["a", "b"])
    assert np.isnan(columns["align_scenes"]).all()
    assert np.isnan(list(of_set(np.arange(2)).values())).all()
    assert not scorer.root.exists()


def test_another_network_keeps_its_own(scorer: Scorer, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_network(tmp_path / "other.safetensors", SceneNetwork().eval(), {})
    other = Scorer(tmp_path, SceneJudge(tmp_path / "other.safetensors"))
    assert other.root != scorer.root
    assert other.provenance["scene_network_sha256"] != scorer.provenance["scene_network_sha256"]

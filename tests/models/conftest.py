"""A tiny random pair, shared by the tests that run real forward passes."""

from pathlib import Path

import pytest
import torch

from models.pair import Pair, load_pair, make_tiny_pair


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder, dtype=torch.float64)

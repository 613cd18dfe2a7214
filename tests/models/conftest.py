"""The tiny pair in float64, where batch composition changes no token."""

from pathlib import Path

import pytest
import torch

from models.pair import Pair, load_pair


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder, dtype=torch.float64)

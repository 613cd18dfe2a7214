"""The tiny pair in float64, where batch composition changes no token, and a fixed seed of torch's generator."""

from pathlib import Path

import pytest
import torch

from models.pair import Pair, load_pair


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch. It seeds itself randomly in every process, so unseeded weights would differ between runs."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder, dtype=torch.float64)

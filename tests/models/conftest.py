"""The tiny pair in float64, where batch composition changes no token; and torch's own generator, the same in every run."""

from pathlib import Path

import pytest
import torch

from models.pair import Pair, load_pair


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Torch seeds itself anew in every process, and weights that a test makes without a seed would differ from run to run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pair(tiny_pair_folder: Path) -> Pair:
    return load_pair(tiny_pair_folder, dtype=torch.float64)

"""Shared by all tests: one thread, no windows, and a tiny random pair to run real forward passes with."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The models under test are tiny: a second thread costs more in waiting than it gives in work, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from models.pair import make_tiny_pair

    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    make_tiny_pair(folder, seed=0)
    return folder

"""One run folder with its report, written once for all tests of reports."""

from pathlib import Path

import pytest

from reports.build import build_report
from reports.load import Run, load_run
from tests.reports.build import CASES, write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("runs") / "grid", CASES, draw=build_report)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder)

"""A scenario of the tiny pair with base, a drafting method and CoDe, and a cache of its recordings."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the reports of runs, which decisions do not read."""

    def draw(folder: Path) -> Path:
        (folder / "report.html").write_text("not drawn")
        return folder / "report.html"

    monkeypatch.setattr("reports.build.build_report", draw)


@pytest.fixture
def scenario(tiny_pair_folder: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "pair": str(tiny_pair_folder),
        "prompts": {"source": "scenes", "count": 6},
        "methods": ["base", "speculative", {"name": "code", "prefix_rate": 0.5}],
        "compute": {
            "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
            "cloud": {"model": "pair", "hardware": "a100"},
        },
        "network": {"rtt_ms": 20, "up_mbps": 5, "down_mbps": 20},
    }

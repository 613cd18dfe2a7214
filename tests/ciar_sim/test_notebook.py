"""The notebook in docs: its cells run in order on the tiny pair."""

import json
from pathlib import Path
from typing import Any

import pytest

import ciar_sim

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "deciding.ipynb"
FAST = {"cloud.max_batch": 1, "cloud.max_sessions": 1, "workload.warmup_s": 0}


@pytest.mark.usefixtures("quick_capacity")
def test_the_notebook_runs(tiny_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every cell, made fast by the tiny pair, two prompts, three points of an axis, and an objective close to the latency."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIAR_SIM_CACHE", str(tmp_path / "cache"))
    hardware = {"device": "snapdragon-8-gen-3", "cloud": "a100"}
    tiny: dict[str, Any] = {"pair": str(tiny_pair_folder), "prompts.source": "scenes", "prompts.count": 2}
    tiny["methods.ciar.threshold"] = 0.35
    tiny |= {f"compute.{side}": {"model": "pair", "hardware": name} for side, name in hardware.items()}

    def smaller(name: str, **change: Any) -> None:
        whole = getattr(ciar_sim, name)

        def small(scenario: Any, *, sets: Any = None, **options: Any) -> Any:
            more = FAST if name == "capacity" else {}
            return whole(scenario, sets={**(sets or {}), **tiny, **more}, **{**options, **change})

        monkeypatch.setattr(ciar_sim, name, small, raising=False)

    def draw(folder: Path) -> Path:
        (folder / "report.html").write_text("not drawn")
        return folder / "report.html"

    monkeypatch.setattr("reports.build.build_report", draw)
    smaller("run")
    smaller("recommend")
    smaller("regime", x="network.rtt_ms=1:300:3:log")
    smaller("capacity", slo_p95_s=0.15, requests=20, precision_pct=50)
    notebook = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)  # outputs of one machine do not belong in the documentation
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["axes"].get_xlabel() == "latency (s)"
    assert len(names["axes"].get_legend().get_texts()) == 5
    assert len(names["capacity"].table) == 3
    assert set(names["comparison"].table["run"]) == {"runs/notebook-busy"}
    with pytest.raises(ciar_sim.CiarSimError, match="did you mean RTT 30 ms"):
        names["result"].plot.latency_quality(condition="RTT 30")
    with pytest.raises(ciar_sim.CiarSimError, match="metric beauty"):
        names["result"].plot.latency_quality(condition="RTT 30 ms", metric="beauty")

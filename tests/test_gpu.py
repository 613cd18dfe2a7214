"""The checks of `benchmarks.gpu` rehearsed on the CPU, and the report of their results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import gpu, step
from models.pair import load_pair
from simulator.pricing import catalogue
from simulator.pricing.profile import Profile
from simulator.protocol.methods import METHODS


def test_the_rehearsal_runs_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {method for method, _ in gpu.POOLED.values()} == set(METHODS)
    monkeypatch.setattr(gpu, "CASES", {"base": ("base", {})})
    monkeypatch.setattr(gpu, "POOLED", {"base": ("base", {})})
    monkeypatch.setattr(gpu, "PROFILES", (("llamagen-xl", "bfloat16", "cuda-graphs", 1, 0.0),))
    result = CliRunner().invoke(gpu.main, [str(tmp_path / "out"), "--rehearse"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(found["sections"]) == [
        "tokens",
        "training",
        "training pace",
        "pooling",
        "profile llamagen-xl cuda-graphs",
    ]
    assert not any("error" in section or "skipped" in section for section in found["sections"].values())
    assert found["sections"]["tokens"]["passed"]
    assert found["sections"]["training"]["loss_apart"] == 0.0
    told = (tmp_path / "out" / "results.md").read_text()
    assert "A rehearsal at small sizes" in told
    assert "## training: passed" in told
    stored = Profile.read(tmp_path / "out" / "profile-llamagen-xl-cuda-graphs.json")
    assert (stored.runtime, set(stored.passes)) == ("cuda-graphs", {"device", "drafter", "cloud"})
    # The margin is that between the two tokens at which greedy images first differ; equal images have none.
    pair = load_pair(tmp_path / "out" / "tiny-pair")
    spec = gpu.specs(pair, "base", {}, 1)[0]
    tokens = [5] * pair.manifest.image_tokens
    assert gpu.margin_where_parted(pair, spec, tokens, tokens) is None
    margin = gpu.margin_where_parted(pair, spec, tokens, [*tokens[:3], 7, *tokens[4:]])
    assert margin is not None
    assert margin > 0


def test_a_section_that_fails_or_is_too_late_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "tokens_on_both", broken)
    monkeypatch.setattr(gpu, "training_on_both", lambda machine: {"passed": False, "asked": "all"})
    monkeypatch.setattr(gpu, "training_pace", broken)
    monkeypatch.setattr(
        gpu, "pooling", lambda machine, left_s, note: {"rows": {"base": {"ratio": 9.0}}, "passed": True}
    )
    monkeypatch.setattr(gpu, "PROFILES", ())
    machine = gpu.Machine(gpu.torch.device("cpu"), True, "tiny", (1,), 1)
    found = gpu.run_all(machine, tmp_path, lambda text: None)
    verdicts = {name: gpu.verdict(section) for name, section in found["sections"].items()}
    assert verdicts == {
        "tokens": "failed: RuntimeError: no kernel image",
        "training": "not reached",
        "training pace": "failed: RuntimeError: no kernel image",
        "pooling": "passed",
    }
    assert "| base | ratio 9 |" in (tmp_path / "results.md").read_text()
    monkeypatch.setattr(gpu, "LIMIT_S", -1.0)
    late = gpu.run_all(machine, tmp_path, lambda text: None)
    assert {gpu.verdict(section) for section in late["sections"].values()} == {"skipped, out of time"}


def test_pooling_leaves_out_what_would_take_longer_than_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "load_pair", lambda *given: None)
    monkeypatch.setattr(gpu, "specs", lambda pair, name, settings, count: [name] * count)
    spent_s: list[float] = []

    def seconds(pair: Any, sessions: list[str], max_batch: int) -> float:
        spent_s.append(len(sessions) * (4.0 if max_batch == 1 else 0.5))
        return spent_s[-1] / len(sessions)

    monkeypatch.setattr(gpu, "seconds_per_session", seconds)
    machine = gpu.Machine(gpu.torch.device("cpu"), False, "any", (64, 256), 2)
    found = gpu.pooling(machine, lambda: 300.0 - sum(spent_s))
    # The warm-up takes 4 s, sessions one at a time 16, 64 together 32 and 256 together 128.
    rows = {label: [key for key in row if key in ("64", "256", "skipped")] for label, row in found["rows"].items()}
    assert rows == {
        "base": ["64", "256"],
        "device-only": ["64"],
        "ciar": ["64"],
        "speculative": ["64"],
        **{label: ["skipped"] for label in [*gpu.POOLED][4:]},
    }
    assert found["median_ratio"] == 8.0
    assert found["passed"]

    def scarce(pair: Any, sessions: list[str], max_batch: int) -> float:
        if max_batch == 256:
            raise MemoryError("256 sessions")
        return 4.0 if max_batch == 1 else 0.5

    monkeypatch.setattr(gpu, "seconds_per_session", scarce)
    noted: list[int] = []
    found = gpu.pooling(machine, lambda: 300.0, lambda rows: noted.append(len(rows)))
    assert noted == list(range(1, 1 + len(gpu.POOLED)))  # figures are kept after every method
    assert found["rows"]["vvs"]["64"]["ratio"] == 8.0
    assert found["rows"]["vvs"]["error"] == "MemoryError: 256 sessions"
    assert not found["passed"]


@pytest.mark.parametrize("stage", ["device", "phi"])
def test_a_training_step_is_timed_at_a_models_shape(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = catalogue.model("llamagen-xl").model_copy(update=gpu.SMALL)
    monkeypatch.setattr(catalogue, "model", lambda name: small)
    result = CliRunner().invoke(step.main, ["llamagen-xl", "--train", stage, "--images", "2"])
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        rf"{stage}, a training step on 2 images: \S+ s, \S+ GB at most, [\d,]+ weights trained\n", result.output
    )

"""Scenario files for tests, and helpers that load them or return the error of a refused one."""

from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, resolved_yaml

HEAD = "name: t\nmethods:\n  - base\n  - {name: ciar, threshold: 0.3}\n"  # what follows starts at line 5
EXPLICIT = "network: {rtt_ms: 20, up_mbps: 10, down_mbps: 50}\n"

QUICKSTART = """\
name: quickstart
pair: scenes
prompts: {source: scenes, count: 16, seed: 0}
decoding: {guidance: 3.0, temperature: 1.0, top_k: 0, top_p: 1.0, cloud: sampled, device: greedy}
methods:
  - base
  - device-only
  - {name: code, prefix_rate: 0.3}
  - {name: ciar, threshold: 0.30, prefix_rate: 0.06}
placement: split
compute:
  device: {model: llamagen-xl-1layer, hardware: snapdragon-8-gen-3}
  cloud: {model: llamagen-xl, hardware: a100, runtime: eager}
cloud: {replicas: 1, max_batch: 16, queue: fifo}
network: {rtt_ms: 20, up_mbps: 10, down_mbps: 50, jitter_ms: 2}
workload: {devices: 4, arrivals: {poisson_per_s: 0.05}, duration_s: 600}
seed: 0
sweep:
  methods.ciar.threshold: [0.1, 0.2, .inf]
  network.rtt_ms: [5, 20]
"""
LATER = {"profile", "throttling"}  # optional keys of a compute section


def load(tmp_path: Path, text: str, **options: tuple[str, ...]) -> Scenario:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, **options)


def refusal(tmp_path: Path, text: str, **options: tuple[str, ...]) -> str:
    """Return the error of a refused scenario, in which the file is named t.yaml."""
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


LINE = "network: {rtt_ms: 50, up_mbps: 10, down_mbps: 10, "


def written_out(folder: Path, scenario: Scenario) -> Path:
    path = folder / "resolved.yaml"
    path.write_text(resolved_yaml(scenario))
    return path

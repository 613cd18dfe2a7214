"""Scenarios: what is filled in, every refusal at its place, and the cases of a sweep."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, json_schema, resolved_yaml
from simulator.experiment.schema.compute import Cloud
from simulator.experiment.schema.network import LinkFigures
from simulator.experiment.sweep import expand
from simulator.protocol.methods import METHODS, CiarSettings, Decoding

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
LATER = {"profile", "throttling"}  # of a compute section, None where they are not given


def load(tmp_path: Path, text: str, **options: tuple[str, ...]) -> Scenario:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, **options)


def refusal(tmp_path: Path, text: str, **options: tuple[str, ...]) -> str:
    """The message, with the file named t.yaml."""
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


# --- what is filled in


def test_the_smallest_scenario(tmp_path: Path) -> None:
    s = load(tmp_path, "name: t\nmethods: [base]\n")
    assert s.pair == "scenes"
    assert s.decoding == Decoding()
    assert s.model_dump()["prompts"] == {"source": "scenes", "count": 16, "seed": 0}
    device = {"model": "llamagen-xl-1layer", "hardware": "snapdragon-8-gen-3", "runtime": "eager"}
    assert s.compute.device.model_dump(exclude=LATER) == device
    assert s.compute.cloud.model_dump(exclude=LATER) == {"model": "llamagen-xl", "hardware": "a100", "runtime": "eager"}
    assert s.cloud == Cloud(
        replicas=1, max_batch=16, queue="fifo", routing="least-loaded", kv_memory_gb=None, max_sessions=None
    )
    assert s.model_dump()["network"] == {
        "preset": "wifi",
        "distance_km": 0.0,
        "transport": "grpc",
        "devices_per_cell": 1,
    }
    assert s.model_dump()["workload"] == {"arrivals": "sequential", "devices": 1}
    assert (s.placement, s.seed, s.sweep) == ("split", 0, {})
    assert s.link == LinkFigures(
        down_bps=90e6,
        up_bps=40e6,
        rtt_s=0.02,
        jitter_s=0.004,
        loss=0.001,
        loss_burst_packets=3.0,
        transport="grpc",
        radio="wifi",
    )
    assert len(expand(s)) == 1


def test_the_full_example_of_the_design(tmp_path: Path) -> None:
    s = load(tmp_path, QUICKSTART)
    assert [entry.label for entry in s.methods] == ["base", "device-only", "code", "ciar"]
    assert s.methods[3].settings == CiarSettings(threshold=0.3, prefix_rate=0.06)
    assert s.link == LinkFigures(down_bps=50e6, up_bps=10e6, rtt_s=0.02, jitter_s=0.002)
    assert s.sweep == {"methods.ciar.threshold": (0.1, 0.2, math.inf), "network.rtt_ms": (5.0, 20.0)}


def test_pair_models_run_on_local_hardware_by_default(tmp_path: Path) -> None:
    s = load(tmp_path, HEAD + "compute: {device: {model: pair}, cloud: {model: pair, hardware: jetson-orin}}\n")
    assert s.compute.device.model_dump(exclude=LATER) == {"model": "pair", "hardware": "local", "runtime": None}
    assert s.compute.cloud.model_dump(exclude=LATER) == {
        "model": "pair",
        "hardware": "jetson-agx-orin-64",
        "runtime": "eager",
    }


def test_network_aliases_are_resolved(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD + "network: {preset: wifi-home}\n").model_dump()["network"]["preset"] == "wifi"


def test_labels_of_a_method_that_stands_more_than_once(tmp_path: Path) -> None:
    text = "name: t\nmethods: [base, {name: ciar}, {name: ciar, threshold: 0.3}, {name: ciar, threshold: .inf, score: omega}]\n"
    assert [entry.label for entry in load(tmp_path, text).methods] == [
        "base",
        "ciar",
        "ciar threshold=0.3",
        "ciar threshold=.inf score=omega",
    ]
    text = "name: t\nmethods: [{name: ciar, label: paper}, {name: code, prefix_rate: 0.5}]\n"
    assert [entry.label for entry in load(tmp_path, text).methods] == ["paper", "code"]


def test_prompts_from_a_file_stand_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a red cube\n\n  a blue ring \n")
    s = load(tmp_path, HEAD + "prompts: {file: captions.txt}\n")
    assert s.model_dump(by_alias=True)["prompts"] == {"list": ("a red cube", "a blue ring")}


def test_a_pair_in_a_folder_becomes_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert load(tmp_path, HEAD + "pair: mine\n").pair == str((tmp_path / "mine").resolve())


def test_scenarios_are_frozen(tmp_path: Path) -> None:
    s = load(tmp_path, HEAD)
    with pytest.raises(ValueError):
        s.seed = 3  # type: ignore[misc]


# --- refusals: the line, the key, what was found, what is allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown names, with the nearest
        (
            "name: t\nmethods:\n  - base\n  - ciarr\n",
            "t.yaml:4: methods[1].name is not a known method, got 'ciarr' (text); did you mean ciar? allowed: "
            f"{', '.join(METHODS)}",
        ),
        (
            "name: t\nmethods:\n  - {name: bass}\n",
            "t.yaml:3: methods[0].name is not a known method, got 'bass' (text); did you mean base? allowed: "
            f"{', '.join(METHODS)}",
        ),
        (
            "name: t\nmethods:\n  - base\n  - 5\n",
            "t.yaml:4: methods[1] must be the name of a method or a mapping with a name, got 5",
        ),
        (
            "name: t\nmethods:\n  - {threshold: 0.3}\n",
            f"t.yaml:3: methods[0] must have a name; allowed: {', '.join(METHODS)}",
        ),
        (
            "name: t\nmethods:\n  - {name: base, threshold: 0.3}\n",
            "t.yaml:3: methods[0].threshold is not a setting of base; allowed: name, label, deliver; base takes deliver",
        ),
        (
            "name: t\nmethods:\n  - name: code\n    prefixrate: 0.3\n",
            "t.yaml:4: methods[0].prefixrate is not a setting of code; did you mean prefix_rate? allowed: name, label, "
            "prefix_rate; "
            "code takes prefix_rate",
        ),
        (
            HEAD + "sead: 3\n",
            "t.yaml:5: sead is not a known key; did you mean seed? allowed: name, pair, prompts, decoding, methods, "
            "placement, compute, cloud, "
            "network, fallback, workload, seed, sweep",
        ),
        (
            HEAD + "decoding:\n  guidence: 3\n",
            "t.yaml:6: decoding.guidence is not a known key; did you mean guidance? allowed: guidance, temperature, "
            "top_k, top_p, cloud, "
            "device, text_encoder",
        ),
        (
            HEAD + "network:\n  rtt_s: 0.02\n  up_mbps: 1\n  down_mbps: 1\n",
            "t.yaml:6: network.rtt_s is not a known key; did you mean rtt_ms? allowed: preset, trace, rtt_ms, up_mbps, "
            "down_mbps, jitter_ms, jitter_distribution, jitter_samples_ms, loss_pct, loss_burst_packets, buffer_bytes, transport, radio, "
            "devices_per_cell, outage_every_s, outage_ms, distance_km",
        ),
        (
            HEAD + "cloud: {replica: 2}\n",
            "t.yaml:5: cloud.replica is not a known key; did you mean replicas? allowed: replicas, max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour",
        ),
        (
            HEAD + "placement: splt\n",
            "t.yaml:5: placement must be split or cloud, got 'splt' (text); did you mean split? allowed: split, cloud",
        ),
        # types
        (HEAD + "seed: '1'\n", "t.yaml:5: seed must be a whole number, got '1' (text)"),
        (HEAD + "seed: true\n", "t.yaml:5: seed must be a whole number, got true"),
        (HEAD + "seed: 1e3\n", "t.yaml:5: seed must be a whole number, got 1000.0"),
        (
            HEAD + "network: {rtt_ms: 20ms, up_mbps: 1, down_mbps: 1}\n",
            "t.yaml:5: network.rtt_ms must be a number, got '20ms' (text)",
        ),
        (HEAD + "network: lte\n", "t.yaml:5: network must be a mapping, got 'lte' (text)"),
        (HEAD + "cloud:\n", "t.yaml:5: cloud must be a mapping, got nothing"),
        ("name: 5\nmethods: [base]\n", "t.yaml:1: name must be text, got 5"),
        ("name: t\nmethods: base\n", "t.yaml:2: methods must be a list, got 'base' (text)"),
        # ranges
        (
            HEAD + "network:\n  rtt_ms: 5\n  up_mbps: 0\n  down_mbps: 1\n",
            "t.yaml:7: network.up_mbps must be > 0, got 0",
        ),
        (HEAD + "network: {rtt_ms: 5, up_mbps: 1, down_mbps: -5}\n", "t.yaml:5: network.down_mbps must be > 0, got -5"),
        (HEAD + "network: {rtt_ms: -1, up_mbps: 1, down_mbps: 1}\n", "t.yaml:5: network.rtt_ms must be >= 0, got -1"),
        (
            HEAD + "network: {rtt_ms: .inf, up_mbps: 1, down_mbps: 1}\n",
            "t.yaml:5: network.rtt_ms must be a finite number, got .inf",
        ),
        (
            HEAD + "network: {rtt_ms: 1, up_mbps: .nan, down_mbps: 1}\n",
            "t.yaml:5: network.up_mbps must be a finite number, got .nan",
        ),
        (
            HEAD + "network: {rtt_ms: 1, up_mbps: 1, down_mbps: 1, jitter_ms: -2}\n",
            "t.yaml:5: network.jitter_ms must be >= 0, got -2",
        ),
        (
            HEAD + "workload: {arrivals: {poisson_per_s: 0}, duration_s: 60}\n",
            "t.yaml:5: workload.arrivals.poisson_per_s must be > 0, got 0",
        ),
        (
            HEAD + "workload: {arrivals: {poisson_per_s: .inf}, duration_s: 60}\n",
            "t.yaml:5: workload.arrivals.poisson_per_s must be a finite number, got .inf",
        ),
        (
            HEAD + "workload: {arrivals: {poisson_per_s: 1}, duration_s: -1}\n",
            "t.yaml:5: workload.duration_s must be > 0, got -1",
        ),
        (
            "name: t\nmethods:\n  - name: ciar\n    prefix_rate: 1.0\n",
            "t.yaml:4: methods[0].prefix_rate must be < 1, got 1.0",
        ),
        (
            "name: t\nmethods:\n  - name: code\n    prefix_rate: -0.1\n",
            "t.yaml:4: methods[0].prefix_rate must be >= 0, got -0.1",
        ),
        ("name: t\nmethods:\n  - {name: ciar, threshold: -1}\n", "t.yaml:3: methods[0].threshold must be >= 0, got -1"),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold: .nan}\n",
            "t.yaml:3: methods[0].threshold must be >= 0, got .nan",
        ),
        (HEAD + "decoding: {guidance: 0.5}\n", "t.yaml:5: decoding.guidance must be >= 1, got 0.5"),
        (HEAD + "cloud: {max_batch: 0}\n", "t.yaml:5: cloud.max_batch must be >= 1, got 0"),
        (HEAD + "prompts: {count: 0}\n", "t.yaml:5: prompts.count must be >= 1, got 0"),
        (HEAD + "prompts: {list: [a, '']}\n", "t.yaml:5: prompts.list[1] must be a caption on one line"),
        (HEAD + "prompts: {list: []}\n", "t.yaml:5: prompts.list must hold at least one entry, got an empty list"),
        # missing
        ("name: t\n", "t.yaml:1: methods is missing"),
        ("methods: [base]\n", "t.yaml:1: name is missing"),
        (HEAD + "workload: {arrivals: {poisson_per_s: 1}}\n", "t.yaml:5: workload.duration_s is missing"),
        ("", "t.yaml:1: a scenario must be a mapping of keys, got nothing"),
        ("- base\n", "t.yaml:1: a scenario must be a mapping of keys, got a list"),
        # forms
        (
            HEAD + "network:\n  preset: lte\n  rtt_ms: 5\n",
            "t.yaml:7: network.rtt_ms stands beside preset: two forms at once; give either preset, or trace, or rtt_ms, up_mbps, "
            "down_mbps",
        ),
        (HEAD + "prompts: {list: [a], count: 3}\n", "t.yaml:5: prompts.count is not a known key; allowed: list"),
        (HEAD + "workload: {devices: 3}\n", "t.yaml:5: workload.devices must be 1 with arrivals: sequential, got 3"),
        (
            HEAD + "workload: {arrivals: sequential, duration_s: 5}\n",
            "t.yaml:5: workload.duration_s does not go with arrivals: sequential; use arrivals: {poisson_per_s: RATE}",
        ),
        (
            HEAD + "workload: {arrivals: often}\n",
            "t.yaml:5: workload.arrivals must be sequential or one of {poisson_per_s}, {bursty_per_s}, {think_s} or {trace}, got "
            "'often' (text)",
        ),
        (
            HEAD + "compute:\n  device: {model: pair}\n",
            "t.yaml:5: compute device.model pair and cloud.model llamagen-xl do not belong together; allowed: pair and "
            "pair, or "
            "llamagen-xl-1layer and llamagen-xl",
        ),
        (
            HEAD + "compute: {cloud: {hardware: local}}\n",
            "t.yaml:5: compute.cloud.hardware must be a name of the catalogue with model llamagen-xl, got local; local "
            "goes with model: pair",
        ),
        (
            HEAD + "compute: {device: {model: pair, runtime: eager}, cloud: {model: pair}}\n",
            "t.yaml:5: compute.device.runtime goes with catalogue hardware; local times are measured as they are",
        ),
        (
            "name: t\nmethods:\n  - base\n  - base\n",
            "t.yaml:4: methods[1] label base stands twice; give each method its own label",
        ),
        # not yet
        (
            HEAD + "pair: {backbone: llamagen-xl-stage1}\n",
            "t.yaml:5: pair as a mapping (backbone, weights) is not available yet; allowed: scenes, or the path of a "
            "pair's folder",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold: {}}\n",
            "t.yaml:3: methods[0].threshold must be a number, got an empty mapping",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold: {call_pct: 100}}\n",
            "t.yaml:3: methods[0].threshold.call_pct must be < 100, got 100",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold: {call_pc: 30, prompts: 4}}\n",
            "t.yaml:3: methods[0].threshold.call_pc is not a known key; did you mean call_pct? allowed: call_pct, prompts",
        ),
        (
            "name: t\nmethods:\n  - {name: softmax-corr, threshold: {call_pct: 30}}\n",
            "t.yaml:3: methods[0].threshold by its call rate goes with threshold_mode const, got budget",
        ),
        # names and files
        (
            "name: ../t\nmethods: [base]\n",
            "t.yaml:1: name must be letters, digits, . _ - and no leading . or -, got '../t' (text)",
        ),
        (
            HEAD + "pair: scene\n",
            "t.yaml:5: pair must be scenes, or the path of a folder, got 'scene' (text), which is not there",
        ),
        (
            HEAD + "prompts: {file: no.txt}\n",
            "t.yaml:5: prompts.file cannot be read: no.txt: No such file or directory",
        ),
        # YAML
        (HEAD + "seed: 1\nseed: 2\n", "t.yaml:6: key seed stands twice in the same mapping"),
        (
            HEAD + "seed: !!python/object/apply:os.system [ls]\n",
            "t.yaml:5: tag !!python/object/apply:os.system is not allowed; write plain values without tags",
        ),
        # sweeps
        (HEAD + "sweep:\n  seed: []\n", "t.yaml:6: sweep.seed must hold at least one entry, got an empty list"),
        (HEAD + "sweep:\n  seed: 5\n", "t.yaml:6: sweep.seed must be a list, got 5"),
        (HEAD + "sweep:\n  seed: [[1]]\n", "t.yaml:6: sweep.seed[0] must be a single value, got a list"),
        (HEAD + "sweep:\n  seed:\n    - 1\n    - 2\n    - 1\n", "t.yaml:9: sweep.seed holds 1 twice"),
        (HEAD + EXPLICIT + "sweep:\n  network.rtt_ms: [1, 1.0]\n", "t.yaml:7: sweep.network.rtt_ms holds 1.0 twice"),
        (HEAD + "sweep:\n  seed:\n    - 1\n    - x\n", "t.yaml:8: sweep.seed must be a whole number, got 'x' (text)"),
        (
            HEAD + "sweep: {methods.ciar.threshold: [0.1, -1]}\n",
            "t.yaml:5: sweep.methods.ciar.threshold must be >= 0, got -1",
        ),
        (
            HEAD + "sweep: {methods.ciar.tau: [1]}\n",
            "t.yaml:5: sweep.methods.ciar.tau names nothing: ciar has no setting tau; did you mean beta? "
            f"allowed: {', '.join(CiarSettings.model_fields)}",
        ),
        (
            HEAD + "sweep: {methods.cia.threshold: [1]}\n",
            "t.yaml:5: sweep.methods.cia.threshold names nothing: no method cia; did you mean ciar? allowed: base, ciar",
        ),
        (
            HEAD + "sweep: {methods.base.label: [a]}\n",
            "t.yaml:5: sweep.methods.base.label names nothing: base has no setting label; allowed: deliver",
        ),
        (
            HEAD + "sweep:\n  network.rtt_ms: [5]\n",
            "t.yaml:6: sweep.network.rtt_ms needs the explicit form of network (rtt_ms, up_mbps, down_mbps), "
            "which has preset: wifi",
        ),
        (
            HEAD + EXPLICIT + "sweep: {network.rtt_s: [1]}\n",
            "t.yaml:6: sweep.network.rtt_s names nothing: network has no rtt_s; did you mean rtt_ms? allowed: rtt_ms, "
            "jitter_ms, jitter_distribution, jitter_samples_ms, loss_pct, loss_burst_packets, buffer_bytes, transport, radio, "
            "devices_per_cell, up_mbps, down_mbps, outage_every_s, outage_ms",
        ),
        (
            HEAD + "sweep: {network: [lte]}\n",
            "t.yaml:5: sweep.network names no single setting; it holds preset, distance_km, "
            "transport, devices_per_cell",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, beta: 0.5}\n",
            "t.yaml:3: methods[0].beta goes with threshold_mode ema, got const",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold_mode: ema, budget: 0.3}\n",
            "t.yaml:3: methods[0].budget goes with threshold_mode budget, got ema",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold_mode: ema, threshold: .inf}\n",
            "t.yaml:3: methods[0].threshold must be finite with threshold_mode ema, got .inf",
        ),
        (
            "name: t\nmethods: [{name: ciar, threshold_mode: budget, budget: 1.5}]\n",
            "t.yaml:2: methods[0].budget must be <= 1, got 1.5",
        ),
        ("name: t\nmethods: [{name: ciar, revise: 2}]\n", "t.yaml:2: methods[0].revise must be <= 1, got 2"),
        (
            "name: t\nmethods: [{name: ciar, features: int4}]\n",
            "t.yaml:2: methods[0].features must be fp16, int8, top-64 or off, got 'int4' (text); did you mean int8? "
            "allowed: fp16, int8, top-64, off",
        ),
        ("name: t\nmethods: [{name: discrete, k: 90}]\n", "t.yaml:2: methods[0].k must be a multiple of 20, got 90"),
        ("name: t\nmethods: [{name: discrete, k: 0}]\n", "t.yaml:2: methods[0].k must be >= 20, got 0"),
        (
            "name: t\nmethods: [{name: random, upload_rate: -0.1}]\n",
            "t.yaml:2: methods[0].upload_rate must be >= 0, got -0.1",
        ),
        (
            "name: t\nmethods: [{name: random, threshold: 0.3}]\n",
            "t.yaml:2: methods[0].threshold is not a setting of random; allowed: name, label, prefix_rate, upload_rate; "
            "random takes prefix_rate, upload_rate",
        ),
        (
            HEAD + "sweep: {methods.ciar.budget: [0.2, 0.3]}\n",
            "t.yaml:5: sweep.methods.ciar.budget goes with threshold_mode budget, got const",
        ),
        (HEAD + "sweep: {name: [a, b]}\n", "t.yaml:5: sweep.name cannot be swept"),
        (
            HEAD + "sweep: {cloud.max_bach: [1]}\n",
            "t.yaml:5: sweep.cloud.max_bach names nothing: cloud has no max_bach; did you mean max_batch? allowed: "
            "replicas, max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour",
        ),
        (HEAD + "sweep: {seed.x: [1]}\n", "t.yaml:5: sweep.seed.x names nothing: seed is 0"),
        (
            HEAD + "sweep: {compute.device.model: [pair]}\n",
            "t.yaml:5: sweep.compute.device.model pair: compute device.model pair and cloud.model llamagen-xl do not "
            "belong together; allowed: "
            "pair and pair, or llamagen-xl-1layer and llamagen-xl",
        ),
        (
            "name: t\nmethods: [{name: ciar, threshold: 1, label: a}, {name: ciar, label: b}]\n"
            "sweep: {methods.ciar.threshold: [1]}\n",
            "t.yaml:3: sweep.methods.ciar.threshold names 2 methods; use a label: a, b",
        ),
        (
            "name: t\nmethods: [{name: ciar, label: a}]\nsweep: {methods.ciar.threshold: [1], methods.a.threshold: [2]}\n",
            "t.yaml:3: sweep.methods.a.threshold and sweep.methods.ciar.threshold are the same setting",
        ),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            HEAD + "network: {preset: wfi}\n",
            "t.yaml:5: network.preset is not a known preset, got 'wfi' (text); did you mean wifi? allowed: 3g, ",
        ),
        (
            HEAD + "compute:\n  cloud: {hardware: a10o}\n",
            "t.yaml:6: compute.cloud.hardware is not known, got 'a10o' (text); did you mean a10? allowed: local, b200, ",
        ),
        (
            HEAD + "sweep: {network.preset: [lte, lt]}\n",
            "t.yaml:5: sweep.network.preset is not a known preset, got 'lt' (text); did you mean lte? allowed: 3g, ",
        ),
        (HEAD + "network: {rtt_ms: 1\n", "t.yaml:6: is not YAML: "),
        (
            HEAD + "network: {rtt_ms: -1, up_mbps: 0, down_mbps: 1}\n",
            "t.yaml:5: network.rtt_ms must be >= 0, got -1 (and 1 more)",
        ),
    ],
)
def test_refusals_with_long_ends(tmp_path: Path, text: str, start: str) -> None:
    assert refusal(tmp_path, text).startswith(start)


def test_the_first_line_is_named_when_several_are_wrong(tmp_path: Path) -> None:
    text = "seed: -1\nname: t\nmethods:\n  - {name: ciar, threshold: -2}\n"
    assert refusal(tmp_path, text) == "t.yaml:1: seed must be >= 0, got -1 (and 1 more)"


# --- the command line


def test_sets_and_axes(tmp_path: Path) -> None:
    options = {
        "sets": (
            "seed=7",
            "methods.ciar.score=omega",
            "methods.base.deliver=image",
            "network={preset: lte}",
            "prompts.seed=3",
        )
    }
    s = load(tmp_path, HEAD, axes=("methods.ciar.threshold=0.1,.inf", "network.preset=lte,5g"), **options)
    assert s.seed == 7
    assert s.methods[1].settings == CiarSettings(threshold=0.3, score="omega")
    assert s.methods[0].model_dump() == {"name": "base", "label": "base", "deliver": "image"}
    assert s.model_dump()["prompts"] == {"source": "scenes", "count": 16, "seed": 3}
    assert s.sweep == {"methods.ciar.threshold": (0.1, math.inf), "network.preset": ("lte", "5g-sub6")}


def test_an_axis_takes_the_place_of_one_in_the_file(tmp_path: Path) -> None:
    s = load(tmp_path, QUICKSTART, axes=("network.rtt_ms=1,2,3",))
    assert s.sweep["network.rtt_ms"] == (1.0, 2.0, 3.0)
    assert list(s.sweep) == ["methods.ciar.threshold", "network.rtt_ms"]


def test_a_derived_label_can_be_addressed(tmp_path: Path) -> None:
    text = "name: t\nmethods: [{name: ciar, threshold: 0.3}, {name: ciar, threshold: 0.5}]\n"
    s = load(tmp_path, text, axes=("methods.ciar threshold=0.3.prefix_rate=0.1,0.2",))
    assert s.sweep == {"methods.ciar threshold=0.3.prefix_rate": (0.1, 0.2)}
    assert [case.method.settings.model_dump()["prefix_rate"] for case in expand(s)] == [0.1, 0.2, 0.06]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("seed=x",)}, "--set seed=x: seed must be a whole number, got 'x' (text)"),
        ({"sets": ("seed",)}, "--set seed: must be path=value"),
        (
            {"sets": ("methods.ciar.threshold=-1",)},
            "--set methods.ciar.threshold=-1: methods[1].threshold must be >= 0, got -1",
        ),
        (
            {"sets": ("methods.cia.threshold=1",)},
            "--set methods.cia.threshold=1: methods.cia.threshold names nothing: no method cia; did you mean ciar? "
            "allowed: base, ciar",
        ),
        ({"sets": ("name.x=1",)}, "--set name.x=1: name.x names nothing: name is 't' (text)"),
        ({"sets": ("network.rtt_ms=3",)}, "--set network.rtt_ms=3: network.up_mbps is missing (and 1 more)"),
        (
            {"sets": ("cloud.max_bach=3",)},
            "--set cloud.max_bach=3: cloud.max_bach is not a known key; did you mean max_batch? allowed: replicas, "
            "max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour",
        ),
        ({"axes": ("seed=1,1",)}, "--axis seed=1,1: sweep.seed holds 1 twice"),
        ({"axes": ("seed=",)}, "--axis seed=: must be path=value,value"),
        ({"axes": ("seed=1", "seed=2")}, "--axis seed=2: seed is given twice"),
        ({"axes": ("seed=!x 1",)}, "--axis seed=!x 1: tag !x is not allowed; write plain values without tags"),
        (
            {"axes": ("foo=1",)},
            "--axis foo=1: sweep.foo names nothing: a scenario has no foo; allowed: prompts, decoding, methods, "
            "placement, compute, cloud, network, "
            "fallback, workload, seed",
        ),
    ],
)
def test_options_are_named_in_their_refusals(tmp_path: Path, options: dict[str, tuple[str, ...]], message: str) -> None:
    assert refusal(tmp_path, HEAD, **options) == message


def test_what_is_swept_in_the_file_cannot_be_set(tmp_path: Path) -> None:
    message = refusal(tmp_path, QUICKSTART, sets=("network.rtt_ms=1",))
    assert message == "--set network.rtt_ms=1: network.rtt_ms is swept in t.yaml; use --axis network.rtt_ms=..."


# --- cases


def test_axes_multiply_the_methods_they_concern(tmp_path: Path) -> None:
    cases = expand(load(tmp_path, QUICKSTART))
    assert [case.index for case in cases] == list(range(12))
    assert [case.method.label for case in cases] == ["base"] * 2 + ["device-only"] * 2 + ["code"] * 2 + ["ciar"] * 6
    assert cases[1].swept == {"network.rtt_ms": 20.0}
    assert [tuple(case.swept.values()) for case in cases[6:]] == [
        (0.1, 5.0),
        (0.1, 20.0),
        (0.2, 5.0),
        (0.2, 20.0),
        (math.inf, 5.0),
        (math.inf, 20.0),
    ]
    last = cases[-1]
    assert last.method.settings == CiarSettings(threshold=math.inf)
    assert last.scenario.sweep == {}
    assert last.scenario.methods == (last.method,)
    assert cases[6].scenario.link.rtt_s == 0.005
    assert len({resolved_yaml(case.scenario) for case in cases}) == 12


def test_threshold_modes_can_be_swept_from_any_of_them(tmp_path: Path) -> None:
    for mode in ("const", "ema", "budget", "running"):
        text = f"name: t\nmethods: [{{name: ciar, threshold_mode: {mode}}}]\n"
        text += "sweep: {methods.ciar.threshold_mode: [const, ema, budget, running]}\n"
        cases = expand(load(tmp_path, text))
        assert [case.swept["methods.ciar.threshold_mode"] for case in cases] == ["const", "ema", "budget", "running"]


def test_presets_and_deep_paths_can_be_swept(tmp_path: Path) -> None:
    sweep = "sweep: {network.preset: [lte, geo], workload.arrivals.poisson_per_s: [1, 2.5], compute.cloud.hardware: [a100, l4]}\n"
    cases = expand(
        load(tmp_path, "name: t\nmethods: [base]\nworkload: {arrivals: {poisson_per_s: 1}, duration_s: 9}\n" + sweep)
    )
    assert len(cases) == 8
    assert cases[-1].swept == {
        "network.preset": "geo",
        "workload.arrivals.poisson_per_s": 2.5,
        "compute.cloud.hardware": "l4",
    }
    assert cases[-1].scenario.compute.cloud.hardware == "l4"
    assert cases[-1].scenario.link.rtt_s == pytest.approx(0.68)


def test_values_that_do_not_go_together_are_refused_when_expanding() -> None:
    pair = {"model": "pair"}
    base = {"name": "t", "methods": ["base"], "compute": {"device": pair, "cloud": pair}}
    scenario = Scenario.model_validate({**base, "sweep": {"compute.cloud.model": ["llamagen-xl"]}})
    with pytest.raises(ScenarioError, match=r"^sweep: with compute\.cloud\.model=llamagen-xl: compute"):
        expand(scenario)


# --- written out


@pytest.mark.parametrize(
    "text",
    [
        HEAD,
        QUICKSTART,
        HEAD + "compute: {device: {model: pair}, cloud: {model: pair}}\n",
        "name: '1e3'\nmethods: [{name: ciar, label: 'on'}]\nprompts: {list: ['1e-3', 'null', 'é: {x}']}\n",
    ],
)
def test_the_resolved_scenario_loads_as_the_same_one(tmp_path: Path, text: str) -> None:
    scenario = load(tmp_path, text)
    written = resolved_yaml(scenario)
    again = load(tmp_path, written)
    assert again == scenario
    assert resolved_yaml(again) == written
    assert [(c.index, c.method, c.swept) for c in expand(again)] == [
        (c.index, c.method, c.swept) for c in expand(scenario)
    ]
    assert list(yamlfile.parse(written, "t").data) == [
        field.alias or name for name, field in Scenario.model_fields.items()
    ]


def test_the_schema_is_json_and_knows_every_name() -> None:
    schema = json.loads(json.dumps(json_schema()))
    text = json.dumps(schema)
    for name in METHODS:
        assert f'"{name}"' in text
    assert schema["$defs"]["ExplicitNetwork"]["properties"]["radio"]
    assert "wifi-public" in schema["$defs"]["PresetNetwork"]["properties"]["preset"]["enum"]
    assert set(schema["required"]) == {"name", "methods"}
    assert schema["additionalProperties"] is False


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEY = st.sampled_from(
    [*Scenario.model_fields, "preset", "rtt_ms", "threshold", "list", "file", "model", "device", "arrivals", "captions"]
)
ANY = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=4), max_leaves=8
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(Scenario.model_fields)), ANY, max_size=5))
def test_nothing_but_a_scenario_error_ever_comes_out(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yamlfile.dump({"name": "t", "methods": ["base", "ciar"], **extra}), encoding="utf-8")
    message = ""
    try:
        expand(load_scenario(path))
    except ScenarioError as error:
        message = str(error)
    assert "\n" not in message
    assert message == "" or message.startswith((str(path), "sweep: "))


LINE = "network: {rtt_ms: 50, up_mbps: 10, down_mbps: 10, "


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("loss_pct: -1}", "loss_pct must be >= 0, got -1"),
        ("loss_pct: 100}", "loss_pct must be <= 90, got 100"),
        ("loss_pct: .nan}", "loss_pct must be a finite number, got .nan"),
        ("loss_burst_packets: 0.5}", "loss_burst_packets must be >= 1, got 0.5"),
        ("loss_pct: 80, loss_burst_packets: 2}", "loss_burst_packets must be >= 4 for a loss_pct of 80, got 2"),
        ("jitter_ms: .inf}", "jitter_ms must be a finite number, got .inf"),
        (
            "jitter_ms: 2, jitter_distribution: gama}",
            "jitter_distribution must be normal, lognormal, gamma or pareto, got 'gama' (text); did you mean gamma?",
        ),
        ("jitter_samples_ms: [1, .nan]}", "jitter_samples_ms[1] must be a finite number, got .nan"),
        (
            "jitter_ms: 2, jitter_samples_ms: [1, 2]}",
            "jitter_samples_ms stands beside jitter_ms or jitter_distribution",
        ),
        ("buffer_bytes: 0}", "buffer_bytes must be >= 1, got 0"),
        ("buffer_bytes: 1.5}", "buffer_bytes must be a whole number, got 1.5"),
        ("outage_ms: 5}", "outage_ms needs outage_every_s, which is missing"),
        ("outage_every_s: 1, outage_ms: 1000}", "outage_ms must be < outage_every_s (1 s), got 1000"),
        ("outage_every_s: 0}", "outage_every_s must be > 0, got 0"),
        ("transport: udp}", "transport must be ideal, tcp, grpc or quic, got 'udp' (text)"),
        ("radio: lt}", "radio is not a known radio, got 'lt' (text); did you mean lte?"),
        ("devices_per_cell: 0}", "devices_per_cell must be >= 1, got 0"),
        ("distance_km: 5}", "distance_km goes with preset only"),
        ("los_pct: 5}", "los_pct is not a known key; did you mean loss_pct? allowed: preset, trace, rtt_ms, "),
    ],
)
def test_a_network_that_cannot_be_is_refused(tmp_path: Path, settings: str, message: str) -> None:
    assert refusal(tmp_path, f"{HEAD}{LINE}{settings}\n").startswith(f"t.yaml:5: network.{message}")


def test_a_preset_takes_distance_transport_and_cell_only(tmp_path: Path) -> None:
    s = load(tmp_path, HEAD + "network: {preset: lte, distance_km: 1000, transport: quic, devices_per_cell: 8}\n")
    assert (s.link.rtt_s, s.link.transport, s.link.devices_per_cell) == (pytest.approx(0.082), "quic", 8)
    for key in ("loss_pct: 1", "radio: lte", "jitter_ms: 3"):
        message = refusal(tmp_path, HEAD + "network: {preset: lte, " + key + "}\n")
        assert message.startswith(f"t.yaml:5: network.{key.partition(':')[0]} stands beside preset: two forms at once")
    assert (
        refusal(tmp_path, HEAD + "network: {preset: lte, distance_km: -1}\n")
        == "t.yaml:5: network.distance_km must be >= 0, got -1"
    )
    zero = "network: {rtt_ms: 0, up_mbps: 1, down_mbps: 1, jitter_ms: 1, jitter_distribution: pareto}\n"
    assert "network.jitter_ms needs a delay > 0: rtt_ms is 0" in refusal(tmp_path, HEAD + zero)
    samples = "network: {rtt_ms: 0, up_mbps: 1, down_mbps: 1, jitter_samples_ms: [1, -1]}\n"
    assert "network.jitter_samples_ms needs a delay > 0" in refusal(tmp_path, HEAD + samples)
    wide = "network: {rtt_ms: 2, up_mbps: 1, down_mbps: 1, jitter_ms: 101}\n"
    told = "network.jitter_ms must be at most 100 times the mean one-way delay (1 ms), got 101"
    assert told in refusal(tmp_path, HEAD + wide)
    s = load(
        tmp_path, HEAD + LINE + "loss_pct: 1}\nsweep: {network.loss_pct: [0, 2], network.transport: [tcp, quic]}\n"
    )
    assert [case.scenario.link.loss for case in expand(s)][:4] == [0.0, 0.0, 0.02, 0.02]


def test_a_trace_gives_the_rates(tmp_path: Path) -> None:
    (tmp_path / "both.csv").write_text("time_s,down_mbps,up_mbps\n0,10,5\n1,0,0\n2,20,10\n3,1,1\n")
    (tmp_path / "down.csv").write_text("time_s,down_mbps\n0,10\n1,20\n2,5\n")
    more = {
        "half": ("delay_up_ms", "9"),
        "lost": ("loss_pct", "95"),
        "all": ("rtt_ms,loss_pct", "9,1"),
        "zero": ("rtt_ms", "0"),
    }
    for name, (column, value) in more.items():
        (tmp_path / f"{name}.csv").write_text(f"time_s,down_mbps,up_mbps,{column}\n0,10,5,{value}\n1,20,5,{value}\n")
    s = load(tmp_path, HEAD + "network: {trace: all.csv}\n")
    assert (s.link.rtt_s, s.link.loss) == (None, None)
    assert load_scenario(written_out(tmp_path, s)) == s
    s = load(
        tmp_path, HEAD + "network: {trace: both.csv, rtt_ms: 50, loss_pct: 1}\nsweep: {network.trace: [both.csv]}\n"
    )
    assert (s.link.trace, s.link.up_bps, s.link.down_bps, s.link.loss) == (str(tmp_path / "both.csv"), None, None, 0.01)
    assert expand(s)[0].scenario.link == s.link
    assert load_scenario(written_out(tmp_path, s)) == s
    s = load(tmp_path, HEAD + "network: {trace: down.csv, rtt_ms: 50, up_mbps: 4}\n")
    assert (s.link.up_bps, s.link.down_bps) == (4e6, None)
    for line, message in (
        ("{trace: down.csv, rtt_ms: 50}", "up_mbps is missing: the trace has no rate in this direction"),
        ("{trace: both.csv}", "rtt_ms is missing: the trace has no delays"),
        ("{trace: half.csv}", "rtt_ms is missing: the trace has delays of one direction only"),
        (
            "{trace: lost.csv, rtt_ms: 5}",
            "trace loses 95 % of packets; allowed: 90 % on average, or loss_pct beside it",
        ),
        (
            "{trace: all.csv, loss_burst_packets: 3}",
            "loss_burst_packets goes with loss_pct only: packets of a trace are lost one by one",
        ),
        (
            "{trace: zero.csv, jitter_ms: 3, jitter_distribution: gamma}",
            "jitter_ms needs a delay > 0: rtt_ms is 0, or the trace says so",
        ),
        ("{trace: no.csv, rtt_ms: 50}", "trace must be the path of a file, got 'no.csv' (text), which is not there"),
        ("{trace: t.yaml, rtt_ms: 50}", "trace cannot be used: t.yaml: is of no known trace format"),
        ("{trace: both.csv, preset: lte}", "trace stands beside preset: two forms at once"),
        ("{trace: both.csv, rtt_ms: 5, outage_ms: 3}", "outage_ms goes without trace only"),
        ("{trace: both.csv, rtt_ms: 5, up_mbps: 0}", "up_mbps must be > 0, got 0"),
    ):
        assert refusal(tmp_path, f"{HEAD}network: {line}\n").startswith(f"t.yaml:5: network.{message}")


def written_out(folder: Path, scenario: Scenario) -> Path:
    path = folder / "resolved.yaml"
    path.write_text(resolved_yaml(scenario))
    return path

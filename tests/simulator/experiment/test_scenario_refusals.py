"""Errors of a refused scenario: file, line, key, what was found, what is allowed."""

from pathlib import Path

import pytest

from simulator.experiment.schema.methods import settings_of
from simulator.experiment.schema.network import ExplicitNetwork, PresetNetwork
from simulator.protocol.methods import METHODS
from tests.simulator.experiment.scenario_files import EXPLICIT, HEAD, refusal

# Keys of a network, taken from the schema so that a new key needs no change here.
FORMS = ["preset", "trace", "paths", "rtt_ms", "up_mbps", "down_mbps"]
LINE = list(ExplicitNetwork.model_fields)
PRESET = list(PresetNetwork.model_fields)

# --- whole messages


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
            "t.yaml:3: methods[0].threshold is not a setting of base; allowed: name, label, tier, deliver; base takes tier, deliver",
        ),
        (
            "name: t\nmethods:\n  - name: code\n    prefixrate: 0.3\n",
            "t.yaml:4: methods[0].prefixrate is not a setting of code; did you mean prefix_rate? allowed: name, label, tier, "
            "prefix_rate, local; "
            "code takes tier, prefix_rate, local",
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
            "t.yaml:6: network.rtt_s is not a known key; did you mean rtt_ms? allowed: "
            + ", ".join([*FORMS, *(key for key in LINE if key not in FORMS), "distance_km"]),
        ),
        (
            HEAD + "cloud: {replica: 2}\n",
            "t.yaml:5: cloud.replica is not a known key; did you mean replicas? allowed: replicas, max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour, "
            "tiers, tier",
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
        (HEAD + "network: 5\n", "t.yaml:5: network must be a mapping, got 5"),
        (HEAD + "cloud:\n", "t.yaml:5: cloud must be a mapping such as {replicas: 2}, got nothing"),
        (
            HEAD + "fallback: device\n",
            "t.yaml:5: fallback must be a mapping such as {policy: device, deadline_ms: 500}, got 'device' (text)",
        ),
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
            HEAD + "network:\n  preset: lte\n  outage_ms: 5\n",
            "t.yaml:7: network.outage_ms does not go with preset, which takes "
            f"{', '.join(key for key in PRESET if key != 'preset')}; without preset give trace, or rtt_ms, up_mbps, down_mbps",
        ),
        (
            HEAD + "prompts: {list: [a], count: 3}\n",
            "t.yaml:5: prompts.count is not a known key; allowed: list, calibration",
        ),
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
            "t.yaml:5: compute device.model pair and cloud.model llamagen-xl do not belong together; allowed: pair on both sides, "
            "or on neither",
        ),
        (
            HEAD + "compute: {cloud: {hardware: local}}\n",
            "t.yaml:5: compute.cloud.hardware must be a name of the catalogue with model llamagen-xl, got local; local "
            "goes with model: pair, or with a profile of the model",
        ),
        (
            HEAD + "compute: {device: {model: pair, runtime: eager}, cloud: {model: pair}}\n",
            "t.yaml:5: compute.device.runtime goes with catalogue hardware; local times are measured as they are",
        ),
        (
            "name: t\nmethods:\n  - base\n  - base\n",
            "t.yaml:4: methods[1] label base is used twice; give each method its own label",
        ),
        (
            "name: t\nmethods:\n  - base\n  - {name: device-only, label: ciar}\n",
            "t.yaml:4: methods[1] label ciar is the name of another method; choose one of its own",
        ),
        (
            "name: t\nmethods:\n  - base\n  - {name: device-only, label: none}\n",
            "t.yaml:4: methods[1] label none stands for no method in tables; choose another",
        ),
        (
            "name: t\nmethods:\n  - base\n  - {name: device-only, label: 'here '}\n",
            "t.yaml:4: methods[1].label must be text on one line without blanks at its ends, got 'here ' (text)",
        ),
        (
            HEAD + "pair: {backbone: llamagen-xl-stage1}\n",
            "t.yaml:5: pair.backbone is not a known key; allowed: cloud, weights, device, tokenizer, text, image_size, heads",
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
            "name: t\nmethods:\n  - {name: softmax-corr, threshold: {call_pct: 30}, budget: 0.2}\n",
            "t.yaml:3: methods[0].budget goes without threshold.call_pct: either gives the share, got budget 0.2 and call_pct 30",
        ),
        (
            "name: t\nmethods:\n  - {name: random, threshold: {call_pct: 30}, upload_rate: 0.2}\n",
            "t.yaml:3: methods[0].upload_rate goes without threshold: either gives the share of calls",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, local: sample}\n",
            "t.yaml:3: methods[0].local must be greedy or sampled, got 'sample' (text); did you mean sampled? allowed: greedy, sampled",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, local: {top_p: 2}}\n",
            "t.yaml:3: methods[0].local.top_p must be <= 1, got 2",
        ),
        (
            "name: t\nmethods:\n  - {name: base, local: sampled}\n",
            "t.yaml:3: methods[0].local is not a setting of base; did you mean label? allowed: name, label, tier, "
            "deliver; base takes tier, deliver",
        ),
        # names and files
        (
            "name: ../t\nmethods: [base]\n",
            "t.yaml:1: name must be letters, digits, . _ - and no leading . or -, got '../t' (text)",
        ),
        (
            HEAD + "pair: scene\n",
            "t.yaml:5: pair must be scenes or paper-anole or paper-code or paper-llamagen-xl or paper-llamagen-xl-stage2 or photos, or the "
            "path of a folder, got 'scene' (text), which is not there",
        ),
        (
            HEAD + "prompts: {file: no.txt}\n",
            "t.yaml:5: prompts.file cannot be read: no.txt: No such file or directory",
        ),
        # YAML
        (HEAD + "seed: 1\nseed: 2\n", "t.yaml:6: key seed is given twice in the same mapping"),
        (
            HEAD + "seed: !!python/object/apply:os.system [ls]\n",
            "t.yaml:5: tag !!python/object/apply:os.system is not allowed; write plain values without tags",
        ),
        # sweeps
        (HEAD + "sweep:\n  seed: []\n", "t.yaml:6: sweep.seed must hold at least one entry, got an empty list"),
        (HEAD + "sweep:\n  seed: 5\n", "t.yaml:6: sweep.seed must be a list, got 5"),
        (HEAD + "sweep:\n  seed: [[1]]\n", "t.yaml:6: sweep.seed[0] must be a single value, got a list"),
        (
            HEAD + "sweep:\n  network: [wifi, {preset: lte, loss_pct: 1}]\n",
            "t.yaml:6: sweep.network[1] must be a single value, got a mapping; make network.preset and network.loss_pct axes of their own, "
            "and zip them if they change together",
        ),
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
            f"allowed: {', '.join(settings_of('ciar'))}",
        ),
        (
            HEAD + "sweep: {methods.cia.threshold: [1]}\n",
            "t.yaml:5: sweep.methods.cia.threshold names nothing: no method cia; did you mean ciar? allowed: base, ciar",
        ),
        (
            HEAD + "sweep: {methods.base.label: [a]}\n",
            "t.yaml:5: sweep.methods.base.label names nothing: base has no setting label; allowed: tier, deliver",
        ),
        (
            HEAD + "sweep:\n  network.outage_ms: [5]\n",
            "t.yaml:6: sweep.network.outage_ms needs the explicit form of network (rtt_ms, up_mbps, down_mbps), "
            "which has preset: wifi",
        ),
        (
            HEAD + EXPLICIT + "sweep: {network.rtt_s: [1]}\n",
            "t.yaml:6: sweep.network.rtt_s names nothing: network has no rtt_s; did you mean rtt_ms? allowed: "
            + ", ".join(LINE),
        ),
        (
            HEAD + "sweep: {network: [lte]}\n",
            f"t.yaml:5: sweep.network names no single setting; did you mean network.preset? it holds {', '.join(PRESET)}",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, beta: 0.5}\n",
            "t.yaml:3: methods[0].beta goes with threshold_mode ema, got even",
        ),
        (
            "name: t\nmethods:\n  - {name: ciar, threshold_mode: ema, budget: 0.3}\n",
            "t.yaml:3: methods[0].budget goes with threshold_mode budget or even, got ema",
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
            "t.yaml:2: methods[0].threshold must be a mapping, got 0.3",
        ),
        (
            HEAD + "sweep: {methods.ciar.budget: [0.2, 0.3]}\n",
            "t.yaml:5: sweep.methods.ciar.budget goes with threshold_mode budget or even, got const",
        ),
        (HEAD + "sweep: {name: [a, b]}\n", "t.yaml:5: sweep.name cannot be swept"),
        (
            HEAD + "sweep: {cloud.max_bach: [1]}\n",
            "t.yaml:5: sweep.cloud.max_bach names nothing: cloud has no max_bach; did you mean max_batch? allowed: "
            "replicas, max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour, "
            "tiers, tier",
        ),
        (HEAD + "sweep: {seed.x: [1]}\n", "t.yaml:5: sweep.seed.x names nothing: seed is 0"),
        (
            HEAD + "sweep: {compute.device.model: [pair]}\n",
            "t.yaml:5: sweep.compute.device.model pair: compute device.model pair and cloud.model llamagen-xl do not "
            "belong together; allowed: "
            "pair on both sides, or on neither",
        ),
        (
            "name: t\nmethods: [base, {name: ciar, threshold: 1, label: a}, {name: ciar, label: b}]\n"
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
            HEAD + "compute: {cloud: A100}\n",
            "t.yaml:5: compute.cloud.hardware is not known, got 'A100' (text); did you mean a100? allowed: local, ",
        ),
        (
            HEAD + "compute:\n  cloud: {hardware: a10o}\n",
            "t.yaml:6: compute.cloud.hardware is not known, got 'a10o' (text); did you mean a10? allowed: local, b200, ",
        ),
        (
            HEAD + "compute: {cloud: {hardware: gpu.json}}\n",
            "t.yaml:5: compute.cloud.hardware must be a name or a file of figures that ends in .yaml or .yml, got 'gpu.json' ",
        ),
        (
            HEAD + "sweep: {network.preset: [lte, lt]}\n",
            "t.yaml:5: sweep.network.preset is not a known preset, got 'lt' (text); did you mean lte? allowed: 3g, ",
        ),
        (HEAD + "network: {rtt_ms: 1\n", "t.yaml:6: is not YAML: "),
        # An empty path would mean the folder of the scenario, an empty name the default.
        (HEAD + "pair: ''\n", "t.yaml:5: pair must be a path, got '' (text)"),
        (
            HEAD + "pair: {cloud: llamagen-xl-stage1, weights: ''}\n",
            "t.yaml:5: pair.weights must be a path, got '' (text)",
        ),
        (HEAD + "prompts: {file: ''}\n", "t.yaml:5: prompts.file must be a path, got '' (text)"),
        (
            HEAD + "compute: {device: {hardware: ''}}\n",
            "t.yaml:5: compute.device.hardware must be a name or a file of figures, got '' (text)",
        ),
        (
            HEAD + "network: {rtt_ms: -1, up_mbps: 0, down_mbps: 1}\n",
            "t.yaml:5: network.rtt_ms must be >= 0, got -1 (and 1 more problem)",
        ),
    ],
)
def test_refusals_with_long_ends(tmp_path: Path, text: str, start: str) -> None:
    assert refusal(tmp_path, text).startswith(start)


@pytest.mark.parametrize(
    ("path", "name", "figures"),
    [
        (
            "compute.device.hardware",
            "snapdragon-8-elite",
            "{class: phone, fp16_tflops: 3, bandwidth_gb_s: 60, memory_gb: 8, power_w: 6}",
        ),
        ("compute.cloud.model", "llamagen-xl", "{layers: 24, width: 1536}"),
    ],
)
def test_a_file_of_figures_is_no_value_of_an_axis(tmp_path: Path, path: str, name: str, figures: str) -> None:
    (tmp_path / "mine.yaml").write_text(figures)
    message = refusal(tmp_path, HEAD + f"sweep:\n  {path}:\n    - {name}\n    - mine.yaml\n")
    assert message.startswith(
        f"t.yaml:8: sweep.{path} takes names, got 'mine.yaml' (text), a file of figures; run the scenario once"
    )


def test_the_first_line_is_named_when_several_are_wrong(tmp_path: Path) -> None:
    text = "seed: -1\nname: t\nmethods:\n  - {name: ciar, threshold: -2}\n"
    assert refusal(tmp_path, text) == "t.yaml:1: seed must be >= 0, got -1 (and 1 more problem)"

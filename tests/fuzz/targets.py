"""The inputs to damage, and how each is read.

Longer than other files, because it is one list: a target for each kind of file and text that the program reads.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from tests.fuzz import mutate
from tests.fuzz.verdict import bounded, unclear, verdict

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class World:
    """What all targets share.

    Attributes:
        folder: Where to write inputs.
        pair: Folder of a tiny model pair.
        run_folder: Folder of a small run of that pair.
        cache: Folder of the recordings of that run.
    """

    folder: Path
    pair: Path
    run_folder: Path
    cache: Path


Target = Callable[[random.Random, World], str | None]


def dumped(data: Any) -> str:
    """Return the result of a mutation as YAML."""
    return yaml.dump(data, allow_unicode=True, sort_keys=False, width=10_000)


@cache
def scenarios() -> list[str]:
    files = sorted(ROOT.glob("scenarios/*.yaml")) + sorted(ROOT.glob("benchmarks/*.yaml"))
    return [*(path.read_text() for path in files), *SWEEPS, CALIBRATED]


@cache
def trace_files() -> list[str]:
    """Return a small valid file of every format of network traces and arrivals."""
    from tests.simulator.traces.examples import ARRIVALS, NETWORK

    return [row[0] for table in (NETWORK, ARRIVALS) for row in table.values()]


CALIBRATED = """\
name: calibrated
methods:
  - {name: ciar, threshold: {call_pct: 30, prompts: 8}, threshold_mode: ema, beta: 0.5, local: sampled}
  - {name: random, threshold: {call_pct: 30}, local: {top_p: 0.9}}
  - {name: entropy-lens, budget: 0.2, threshold_mode: budget, threshold: {prompts: 4}}
decoding: {device: {top_p: 0.9}}
"""
SWEPT = "name: swept\nmethods: [base, {name: ciar, threshold: 0.3}]\nnetwork: {preset: lte, rtt_ms: 30}\nsweep:\n"
SWEEPS = [
    SWEPT + "  network.rtt_ms: {min: 5, max: 200, steps: 4, scale: log}\n  methods.ciar.threshold: [0.1, 0.3]\n",
    SWEPT + "  seed: [1, 2]\n  network.up_mbps: [1, 2]\n  zip: [seed, network.up_mbps]\n",
    SWEPT + "  cloud.max_batch: {min: 1, max: 64}\n  network.preset: [lte, geo]\n  random: 5\n",
    SWEPT + "  methods.ciar.threshold: {min: 0.1, max: 0.7}\n  network.preset: [lte, geo]\n  tune: {trials: 4}\n",
]


def damaged_yaml(source: str, rng: random.Random) -> bytes:
    if rng.random() < 0.75:
        return dumped(mutate.structure(yaml.safe_load(source), rng)).encode("utf-8", "surrogatepass")
    if rng.random() < 0.7:
        return mutate.text(source, rng).encode("utf-8", "surrogatepass")
    return mutate.raw(source.encode(), rng)


def scenario(rng: random.Random, world: World) -> str | None:
    from simulator.experiment.loading import load_with_source
    from simulator.experiment.sweep import expand

    def cases() -> None:
        loaded = load_with_source(path)
        with loaded.source.located():
            expand(loaded.scenario)

    path = world.folder / "fuzzed.yaml"
    path.write_bytes(damaged_yaml(rng.choice(scenarios()), rng))
    return verdict(cases, path.name)


SMALL = """\
name: small
pair: {pair}
prompts: {{source: scenes, count: 2}}
methods: [base, device-only, {{name: code, prefix_rate: 0.3}}, {{name: ciar, threshold: 0.35}}]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
cloud: {{replicas: 1, max_batch: 4, queue: fifo, routing: least-loaded, price_usd_per_gpu_hour: 2.0}}
network: {{rtt_ms: 40, up_mbps: 5, down_mbps: 20, jitter_ms: 2, loss_pct: 1, transport: tcp, buffer_ms: 50, cross_traffic: {{up: greedy}},
  congestion_control: bbr, idle_timeout_s: 2,
  wifi: {{stations: 2, tail_pct: 1}},
  rate: {{slow_s: 5, slow_share: 0.5, down: [{{gaps_per_s: 5, gaps_ms: [9, 9, 9, 9, 9, 99], rates: [1, 1, 1, 1, 1, 2]}}],
    up: [{{gaps_per_s: 0, gaps_ms: [], rates: [1, 1, 1, 1, 1, 1]}}]}}}}
fallback: {{policy: device, deadline_ms: 300}}
workload: {{devices: 3, arrivals: {{poisson_per_s: 1}}, duration_s: 5, slo_s: 3}}
decoding: {{guidance: 3.0, temperature: 1.0, top_k: 0, top_p: 1.0}}
seed: 0
"""


CELL = """\
{{paths: [{{rtt_ms: 20, up_mbps: 5, down_mbps: 20, devices_per_cell: 2}},
  {{preset: lte, handover: {{speed_kmh: 90}}, uplink: {{sr_period_ms: 10, grant_ms: 5, slot_ms: 2.5}},
    operators: [{{share: 0.4, inactivity_s: 5}}, {{share: 0.6, drx_after_ms: 50, drx_cycle_ms: 40}}]}}]}}
"""
FAIR = """\
{{rtt_ms: 40, up_mbps: 5, down_mbps: 20, jitter_ms: 2, radio: lte, operators: catalogue, uplink: {{configured_ms: 5}},
  devices_per_cell: 3, sharing: proportional-fair, fading_snr_db: 10}}
"""


def whole_run(rng: random.Random, world: World) -> str | None:
    """Run a mutated small scenario through the command line."""
    path = world.folder / "run.yaml"
    whole = yaml.safe_load(SMALL.format(pair=world.pair))
    other = rng.choice([None, CELL, FAIR])
    if other is not None:
        whole["network"] = yaml.safe_load(other.format())
    if other == FAIR:
        del whole["fallback"]
    data = mutate.structure(whole, rng)
    if isinstance(data, dict):
        data.setdefault("pair", whole["pair"])  # the shipped pair records for longer than the bound of time
    path.write_bytes(dumped(data).encode("utf-8", "surrogatepass"))
    arguments = [
        "run",
        str(path),
        "--out",
        str(world.folder / "out"),
        "--cache",
        str(world.cache),
        "--quiet",
        "--force",
    ]
    return through_cli(arguments, path.name)


def training_file(rng: random.Random, world: World) -> str | None:
    from models.train.run import read_training_file

    path = world.folder / "training.yaml"
    source = rng.choice(sorted((ROOT / "models").glob("*.yaml"))).read_text()
    path.write_bytes(damaged_yaml(source, rng))
    return verdict(lambda: read_training_file(path), path.name)


def manifest(rng: random.Random, world: World) -> str | None:
    from simulator.protocol.pairs import pair_manifest

    statistical = sorted((ROOT / "models" / "weights").glob("paper-*/pair.json"))
    source = rng.choice([world.pair / "pair.json", rng.choice(statistical)]).read_text()
    folder = world.folder / "pair"
    folder.mkdir(exist_ok=True)
    (folder / "pair.json").write_bytes(damaged_json(source, rng))
    return verdict(lambda: pair_manifest(folder), "pair.json")


def damaged_json(source: str, rng: random.Random) -> bytes:
    if rng.random() < 0.6:
        return json.dumps(mutate.structure(json.loads(source), rng)).encode("utf-8", "surrogatepass")
    if rng.random() < 0.6:
        return mutate.text(source, rng).encode("utf-8", "surrogatepass")
    return mutate.raw(source.encode(), rng)


def weights(rng: random.Random, world: World) -> str | None:
    """Load a pair with one damaged file of weights, whose hash in the manifest matches the damaged file."""
    import hashlib
    import shutil

    from models.pair import load_pair

    folder = world.folder / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.pair, folder)
    held = json.loads((folder / "pair.json").read_text())
    entry = rng.choice(held["files"])
    path = folder / entry["name"]
    path.write_bytes(mutate.raw(path.read_bytes(), rng))
    entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "pair.json").write_text(json.dumps(held))
    return verdict(lambda: load_pair(folder), path.stem)


def reshaped(path: Path, rng: random.Random) -> None:
    """Remove, rename, resize or retype one tensor in a weight file."""
    import torch
    from safetensors.torch import load_file, save_file

    content: dict[str, Any] = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    state = next((content[name] for name in ("model", "state_dict") if name in content), content)
    key = rng.choice(sorted(state))
    tensor = state.pop(key)
    match rng.randrange(5):
        case 0 if "." in key:
            parts = key.split(".")
            parts[rng.randrange(len(parts))] = rng.choice(("0", "7", "99", "-1", "x", "9" * 40))
            state[".".join(parts)] = tensor
        case 1:
            state[key] = tensor.to(rng.choice((torch.int32, torch.float16, torch.float64, torch.bool)))
        case 2:
            state[key] = rng.choice((tensor.flatten(), tensor.unsqueeze(0), torch.zeros([])))
        case 3 if tensor.dim():
            sizes = list(tensor.shape)
            sizes[rng.randrange(len(sizes))] = rng.choice((0, 1, 2, 3, 33))
            state[key] = torch.zeros(sizes)
        case _:  # it stays removed
            pass
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        torch.save(content, path)


def backbone(rng: random.Random, world: World) -> str | None:
    """Load a published backbone's folder with one damaged file or one other tensor, or a damaged checkpoint in LlamaGen's layout."""
    import shutil

    from models.backbones.llamagen import load_llamagen
    from models.recording import load_models
    from simulator.protocol.pairs import PairSpec
    from tests.models import folders, llamagen_files, var_files

    if rng.random() < 0.2:
        source = world.folder / "whole.pt"
        if not source.is_file():
            llamagen_files.write_checkpoint(source)
        path = world.folder / "fuzzed.pt"
        path.write_bytes(mutate.raw(source.read_bytes(), rng))
        return verdict(lambda: load_llamagen(path, 4, 2), path.name)
    name = rng.choice(("anole-7b", "lumina-mgpt-768", "janus-pro-7b", "var-d30", "llamagen-c2i-256"))
    whole, folder = world.folder / f"whole-{name}", world.folder / "backbone"
    by_class = {"var-d30": var_files.write, "llamagen-c2i-256": llamagen_files.write_c2i}
    if not whole.is_dir():
        if name in by_class:
            by_class[name](whole)
        else:
            folders.janus(whole) if name.startswith("janus") else folders.chameleon(whole, pixels=8)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    texts = () if name in by_class else ("config.json", "tokenizer.json")
    path = rng.choice([*(folder / one for one in texts), *sorted(path for path in folder.rglob("*") if path.is_file())])
    content = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(damaged_json(content.decode(), rng))
    elif rng.random() < 0.5:
        path.write_bytes(mutate.raw(content, rng))
    else:
        reshaped(path, rng)
    device = str(folder / "device") if name in by_class else None
    prompt = "7" if name in by_class else "a red bus"
    sizes = {"heads": 2, "image_size": 64} if name.startswith("llamagen") else {}
    spec = PairSpec(cloud=name, weights=str(folder), device=device, **sizes)
    return verdict(lambda: load_models(spec).text.encode(prompt), "backbone")


def judge(rng: random.Random, world: World) -> str | None:
    """Read the judge of a pair of photographs with one damaged file."""
    import numpy as np

    from models.quality.judge_files import SETS, JudgeFiles, read_judge
    from models.quality.photo_reading import READING_DTYPE, PhotoClaims

    folder = world.folder / "judge"
    captions = ("a red shirts for casual", "a blue shirts for sports", "a red bags for travel")
    files = JudgeFiles(
        ("bags", "shirts"), ("blue", "red"), captions, 2, {name: np.zeros(2, READING_DTYPE) for name in SETS}
    )
    files.write(folder)
    path = folder / rng.choice(("judge.json", "judge.json", "captions.txt", *(f"{name}.npy" for name in SETS)))
    whole = path.read_bytes()
    path.write_bytes(damaged_json(whole.decode(), rng) if path.suffix == ".json" else mutate.raw(whole, rng))

    def read() -> None:
        found = read_judge(folder)
        PhotoClaims(found.kinds, found.colours).of(found.captions[0])

    return verdict(read, "judge")


def profile(rng: random.Random, world: World) -> str | None:
    from simulator.pricing.costs import Work
    from simulator.pricing.profile import MeasuredCosts, Profile

    table = {"rows": [1, 2], "new_tokens": [1], "kv_tokens": [0, 8], "seconds": [[[0.1, 0.2]], [[0.2, 0.3]]]}
    whole = {
        "format": 1,
        "model": "m",
        "hardware": "h",
        "threads": 1,
        "torch": "2",
        "passes": {"cloud": table, "device": table},
    }
    whole["compute_seconds"] = {"phi": 0.1}
    if rng.random() < 0.5:
        verified = {**table, "new_tokens": [4], "seconds": [[[0.2, 0.3]], [[0.3, 0.4]]]}
        whole |= {"verify": {"cloud": verified}, "runtime": "cuda-graphs", "dtype": "bfloat16", "device": "cuda"}
    path = world.folder / "profile.json"
    path.write_bytes(damaged_json(json.dumps(whole), rng))

    def price() -> None:
        found = Profile.read(path)
        for role in found.passes:
            costs = MeasuredCosts(found, role)
            costs.pass_seconds(Work.of_pass(2, 4, 8, 4))
            costs.pass_seconds(Work.of_pass(1, 1, 0, 1))

    return verdict(price, path.name)


def run_folder(rng: random.Random, world: World) -> str | None:
    """Open or compare a run folder with one damaged file."""
    import shutil

    from ciar_sim.api import open_run
    from ciar_sim.decide.compare import compare

    folder = world.folder / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.run_folder, folder)
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".html", ".svg")))
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(damaged_json(path.read_text(), rng))
    elif path.suffix in (".csv", ".yaml") and rng.random() < 0.8:
        path.write_bytes(mutate.text(path.read_text(), rng).encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(mutate.raw(path.read_bytes(), rng))
    return verdict(lambda: compare([world.run_folder, folder]) if rng.random() < 0.5 else open_run(folder))


PLOT_OPTIONS = (
    *("--methods=base", "--methods=ciar,base", "--methods=ciar threshold=0.1", "--methods=,", "--methods=x"),
    *(
        "--where=network.rtt_ms=5,20",
        "--where=network.rtt_ms=20.0",
        "--where=methods.ciar.threshold=0.5",
        "--where=x=1",
    ),
    *("--where=workload.arrivals.poisson_per_s=0.1", "--where=network.rtt_ms=nan", "--where==", "--where="),
    *("--by=network.rtt_ms", "--by=methods.ciar.prefix_rate", "--by=workload.arrivals.poisson_per_s", "--by=x"),
    *("--size=3.3in", "--size=1.5x1.5", "--size=40in", "--size=0", "--no-titles"),
)


def plot(rng: random.Random, world: World) -> str | None:
    """Draw any kind of plot with any options, from a run (or the answer of a decision) that may be damaged."""
    import shutil

    from ciar_sim.cli.plot import ANSWERS as DECISIONS
    from ciar_sim.cli.plot import KINDS, REGIME_MAP
    from tests.reports.build import ANSWERS, OF_KIND, write_kinds, write_maps

    kinds = world.folder / "kinds"
    if not kinds.is_dir():
        write_kinds(kinds)
        write_maps(kinds)
    kind = rng.choice((*KINDS, *DECISIONS, REGIME_MAP))
    folder = world.folder / "plotted"
    if kind in DECISIONS:
        folder = world.folder / "answer.json"
        whole = json.dumps(ANSWERS[kind])
        folder.write_bytes(damaged_json(whole, rng) if rng.random() < 0.8 else whole.encode())
    else:
        others = ("settings", "rtt", "load", "line", "plane")
        own = rng.choice(("line", "plane")) if kind == REGIME_MAP else OF_KIND[kind]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kinds / (own if rng.random() < 0.8 else rng.choice(others)), folder)
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".parquet", ".yaml"))
        path = rng.choice(files)
        if rng.random() < 0.6:
            content = path.read_bytes()
            if path.suffix == ".json":
                path.write_bytes(damaged_json(content.decode(), rng))
            elif path.suffix == ".parquet":
                path.write_bytes(mutate.raw(content, rng))
            else:
                path.write_bytes(mutate.text(content.decode(), rng).encode("utf-8", "surrogatepass"))
    options = rng.sample(PLOT_OPTIONS, rng.randrange(3))
    return through_cli(["plot", str(folder), kind, "--out", str(world.folder / "plot.svg"), *options], "")


def trace(rng: random.Random, world: World) -> str | None:
    from simulator.traces.read import read

    content = rng.choice(trace_files())
    path = world.folder / "fuzzed-trace"
    binary = rng.random() < 0.25
    path.write_bytes(
        mutate.raw(content.encode(), rng) if binary else mutate.text(content, rng).encode("utf-8", "surrogatepass")
    )
    return verdict(lambda: read([path]), path.name)


def arrivals(rng: random.Random, world: World) -> str | None:
    """Load a scenario that names a damaged file of arrivals."""
    from simulator.experiment.loading import load_scenario

    path = world.folder / "arrivals"
    path.write_bytes(mutate.text(rng.choice(trace_files()), rng).encode("utf-8", "surrogatepass"))
    use = world.folder / "uses.yaml"
    use.write_text("name: x\nmethods: [base]\nworkload: {devices: 2, duration_s: 100, arrivals: {trace: arrivals}}\n")
    return verdict(lambda: load_scenario(use), use.name)


PROMPT_FILES = (
    "a small red circle\na large blue square on a striped ground\n\nthe third one\n",
    "Prompt\tCategory\na small red circle\tx\na large blue square\ty\n",
    'id,caption\n1,"a circle, red"\n2,a square\n',
    '["a small red circle",\n "a large blue square"]',
    '{"tag": 1, "prompt": "a circle"}\n{"prompt": "a square"}\n',
    '{"images": [], "annotations": [{"id": 1, "caption": "a circle"}, {"caption": "a square"}]}',
)


def prompts(rng: random.Random, world: World) -> str | None:
    from simulator.experiment.loading import load_scenario

    content = rng.choice(PROMPT_FILES)
    path = world.folder / "captions.txt"
    path.write_bytes(
        mutate.raw(content.encode(), rng)
        if rng.random() < 0.3
        else mutate.text(content, rng).encode("utf-8", "surrogatepass")
    )
    use = world.folder / "prompts.yaml"
    use.write_text("name: x\nmethods: [base]\nprompts: {file: captions.txt}\n")
    return verdict(lambda: load_scenario(use), use.name)


def message(rng: random.Random, world: World) -> str | None:
    from simulator.protocol import messages

    content = mutate.raw(messages.encode(messages.Verify(ids=bytes(6), features=bytes(32), candidate=bytes(2))), rng)
    return verdict(lambda: messages.decode(content))


def recording(rng: random.Random, world: World) -> str | None:
    """Read a damaged entry of the cache, which counts as absent."""
    from simulator.protocol.cache import RecordingCache

    held = sorted(world.cache.rglob("*.npz"))
    source = rng.choice(held)
    cache_ = RecordingCache(world.folder / "cache")
    path = cache_.path(source.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mutate.raw(source.read_bytes(), rng))
    return verdict(lambda: cache_.get(source.stem))


OPTIONS = (
    "--out",
    "--set",
    "--cache",
    "--torch-device",
    "--max-batch",
    "--jobs",
    "--record-jobs",
    "--quiet",
    "--axis",
    "--json",
    "--x",
    "--slo-p95",
    "--max-loss",
    "--as",
    "--method",
    "--request",
    "--direction",
    "--seed",
)
VALUES = (
    *(
        "x",
        "",
        "nan",
        "inf",
        "-1",
        "0",
        "1e400",
        "2" * 30,
        "\ud800",
        "\x00",
        "a" * 5000,
        "~nobody/x",
        "/dev/null",
        "/proc/1/x",
        ".",
    ),
    *(
        "seed=1",
        "seed=",
        "=1",
        "network.rtt_ms=nan",
        "methods.ciar.threshold=0.1,x",
        "network=[",
        "methods.0=x",
        "pair=\x00",
        "cpu:9",
    ),
    *(
        "cuda:99",
        "auto",
        "sweep={}",
        "seed=1:9:3",
        "network.rtt_ms=1:9:0:log",
        "seed,network.rtt_ms",
        "3:align_scenes",
        "prompts.count=1e9",
        "name=../x",
        "seed=99999999999999999999",
        "workload.devices=-1",
        "network.rtt_ms=1:300:log",
        "network.rtt_ms=1:1e9:9999:log:2",
        "5%",
        "800ms",
        "ianvs",
        "up",
    ),
)


def command_line(rng: random.Random, world: World) -> str | None:
    """Run commands with random options on a scenario that is missing or damaged."""
    (world.folder / "cli.yaml").write_bytes(damaged_yaml(rng.choice(scenarios()), rng))
    argument = rng.choice([str(world.folder / "cli.yaml"), str(world.folder / "none.yaml"), str(world.folder), *VALUES])
    command = rng.choice(
        [
            ["run"],
            ["sweep"],
            ["report"],
            ["recommend"],
            ["regime"],
            ["capacity"],
            ["compare", str(world.run_folder)],
            ["export"],
            ["export", "--as", "netem"],
            ["export", "--as", "messages", "--set", "pair=/no/such/pair"],
            ["traces", "show"],
            ["traces", "generate"],
            ["traces", "fit"],
            ["list"],
            ["schema"],
            ["traces", "import"],
        ]
    )
    arguments = [*command, argument]
    for _ in range(rng.randrange(4)):
        arguments.append(rng.choice(OPTIONS))
        if rng.random() < 0.9:
            arguments.append(rng.choice(VALUES))
    if command[0] in (
        "run",
        "sweep",
        "recommend",
        "regime",
        "capacity",
    ):  # ends before it records
        arguments += ["--set", "pair=/no/such/pair"]
    arguments = [one if one != "." else str(world.folder / "dot") for one in arguments]
    return through_cli(arguments, "")


def through_cli(arguments: list[str], named: str) -> str | None:
    """Return the verdict on a command line: it must exit with 0, or with 1 or 2 and a few lines on stderr."""
    import traceback

    from ciar_sim.cli.main import main

    with bounded():
        result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "".join(traceback.format_exception(result.exception)[-6:])
    if result.exit_code == 0:
        return None
    if result.exit_code not in (1, 2):
        return f"exit code {result.exit_code}"
    message = re.sub(r"(?s)^Usage: .*?\n\n", "", result.stderr).strip()
    return unclear(message, named if result.exit_code == 2 else "")


TARGETS: dict[str, tuple[Target, int]] = {  # with the share of inputs in percent
    "scenario": (scenario, 23),
    "run": (whole_run, 2),
    "training": (training_file, 12),
    "manifest": (manifest, 7),
    "weights": (weights, 3),
    "backbone": (backbone, 1),
    "judge": (judge, 2),
    "profile": (profile, 6),
    "run-folder": (run_folder, 5),
    "plot": (plot, 2),
    "trace": (trace, 13),
    "arrivals": (arrivals, 6),
    "prompts": (prompts, 4),
    "message": (message, 2),
    "recording": (recording, 2),
    "command-line": (command_line, 10),
}
assert sum(share for _, share in TARGETS.values()) == 100

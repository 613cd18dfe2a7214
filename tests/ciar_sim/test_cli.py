"""The command line on a tiny pair: runs, sweeps, listings, and every kind of bad input.

Longer than other files, because its tests share runs.
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

from ciar_sim.cli.main import main
from simulator.results.columns import PARTS

SCENARIO = """\
name: tiny
pair: {pair}
prompts: {{source: scenes, count: 3}}
methods:
  - base
  - device-only
  - {{name: code, prefix_rate: 0.3}}
  - {{name: ciar, threshold: 0.35}}
  - {{name: ciar, threshold: 0.6}}
compute:
  device: {{model: pair, hardware: snapdragon-8-gen-3}}
  cloud: {{model: pair, hardware: a100}}
workload: {{devices: 3, arrivals: {{poisson_per_s: 4}}, duration_s: 10}}
sweep:
  network.preset: [wifi, lte]
"""
# All requests arrive in the warm-up, so there is nothing to plot: plotting takes most of a run's time.
UNPLOTTED = SCENARIO.replace("duration_s: 10", "duration_s: 10, warmup_s: 9.99")
SEQUENTIAL = "{arrivals: sequential}"

Write = Callable[[str], Path]


def with_methods(listed: str) -> str:
    """Return the scenario with these methods, one per line, instead of its own."""
    begin, end = SCENARIO.index("  - base"), SCENARIO.index("compute:")
    return SCENARIO[:begin] + listed + SCENARIO[end:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """A folder with the scenario, its run, its cache, and the program's output."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "scenario.yaml").write_text(SCENARIO.format(pair=tiny_pair_folder))
    result = run(folder / "scenario.yaml", folder / "run", folder / "cache")
    (folder / "printed.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def cache(whole: Path) -> Path:
    """Recordings of `SCENARIO`."""
    return whole / "cache"


@pytest.fixture
def write(tmp_path: Path, tiny_pair_folder: Path) -> Write:
    def one(text: str) -> Path:
        path = tmp_path / "scenario.yaml"
        path.write_text(text.format(pair=tiny_pair_folder))
        return path

    return one


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run(path: Path, out: Path, cache: Path, *options: str) -> Result:
    result = call("run", path, "--out", out, "--cache", cache, *options)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_leaves_a_whole_folder(whole: Path) -> None:
    printed = (whole / "printed.txt").read_text()
    assert "ciar threshold=0.35" in printed
    assert "report.html" in printed
    names = {path.name for path in (whole / "run").iterdir()}
    assert names == {
        "scenario.yaml",
        "requests.parquet",
        "queue.parquet",
        "summary.csv",
        "report.html",
        "plots",
        "images",
        "timeline.json.gz",
        "provenance.json",
    }
    requests = pd.read_parquet(whole / "run" / "requests.parquet")
    summary = pd.read_csv(whole / "run" / "summary.csv")
    assert np.abs(requests[list(PARTS)].sum(axis=1) - requests["latency_s"]).max() < 1e-9
    assert len(summary) == 5 * 2
    calls = summary.groupby("method")["cloud_call_pct"].first()
    assert calls["base"] == 100
    assert calls["device-only"] == 0
    assert calls["code"] == 25  # floor(0.3 * 16) of 16
    low, high = calls[calls.index.str.startswith("ciar")].sort_index()
    assert low > high
    # The same workload for all: equal arrivals and prompts in every case.
    for column in ("requested_s", "prompt", "device"):
        assert requests.groupby("request")[column].nunique().max() == 1
    provenance = json.loads((whole / "run" / "provenance.json").read_text())
    assert provenance["compute"]["cloud"]["origin"] == "roofline"


def test_same_bytes_whatever_the_process_the_jobs_and_the_hash_seed(whole: Path, tmp_path: Path) -> None:
    """Run the resolved scenario again: recorded from an empty cache, with another hash seed, simulated by two processes."""
    program = [sys.executable, "-c", "import sys; from ciar_sim.cli.main import main; main(sys.argv[1:])"]
    again = ["run", str(whole / "run" / "scenario.yaml"), "--out", str(tmp_path / "again"), "--quiet", "--jobs", "2"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([*program, *again, "--cache", str(tmp_path / "cache")], check=True, env=environment)
    for name in (
        "summary.csv",
        "requests.parquet",
        "scenario.yaml",
        "provenance.json",
        "timeline.json.gz",
        "report.html",
    ):
        assert (tmp_path / "again" / name).read_bytes() == (whole / "run" / name).read_bytes(), name


def test_replaying_cached_recordings_never_loads_torch(whole: Path, tmp_path: Path) -> None:
    arguments = ["run", str(whole / "scenario.yaml"), "--out", str(tmp_path / "again"), "--quiet"]
    arguments += ["--cache", str(whole / "cache"), "--set", "workload.warmup_s=9.99"]  # as in UNPLOTTED
    code = (
        "import sys\nimport ciar_sim.cli.main\n"
        "bad = {'torch', 'numpy', 'pandas', 'pydantic', 'matplotlib'} & set(sys.modules)\nassert not bad, bad\n"
        f"ciar_sim.cli.main.main({arguments!r}, standalone_mode=False)\n"
        "assert 'torch' not in sys.modules and 'matplotlib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("undrawn")
def test_sweep_adds_axes(write: Write, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    result = call(
        "sweep",
        write(with_methods("  - base\n  - {{name: code, prefix_rate: 0.3}}\n")),
        "--out",
        out,
        "--cache",
        cache,
        "--quiet",
        "--axis",
        "methods.code.prefix_rate=0.1,0.5",
        "--axis",
        "network.preset=fibre",
        "--set",
        "seed=3",
    )
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(out / "summary.csv")
    assert set(summary["network.preset"]) == {"fibre"}
    code = summary[summary["method"] == "code"]
    assert code["methods.code.prefix_rate"].tolist() == [0.1, 0.5]
    assert code["cloud_call_pct"].tolist() == [100 / 16, 50]
    assert len(summary) == 1 + 2
    assert yaml.safe_load((out / "scenario.yaml").read_text())["seed"] == 3


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_of_a_methods_own_setting_ends_in_its_table(write: Write, tmp_path: Path, cache: Path) -> None:
    """The axis has no value (NaN) for the other methods: their rows show no setting and keep the order of the file."""
    result = call(
        "sweep",
        write(UNPLOTTED),
        "--out",
        tmp_path / "out",
        "--cache",
        cache,
        "--axis",
        "methods.code.prefix_rate=0.5,0.1",
    )
    assert result.exit_code == 0, result.output
    table = [line for line in result.output.splitlines() if line.startswith(("wifi", "lte"))]
    assert len(table) == 2 * (4 + 2)
    assert [line.split()[2] for line in table if " code " in line] == ["prefix_rate=0.5", "prefix_rate=0.1"] * 2
    assert [line.split()[0] for line in table] == ["wifi"] * 6 + ["lte"] * 6
    assert table[0].split()[1] == "base"


@pytest.fixture(scope="module")
def sequential(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of sequential requests on one network."""
    out = tmp_path_factory.mktemp("sequential") / "run"
    run(
        whole / "scenario.yaml", out, whole / "cache", "--quiet", "--set", "sweep={}", "--set", f"workload={SEQUENTIAL}"
    )
    return out


@pytest.mark.usefixtures("undrawn")
def test_sequential_requests_never_meet(sequential: Path) -> None:
    requests = pd.read_parquet(sequential / "requests.parquet")
    assert requests["case"].nunique() == 5
    for _, mine in requests.groupby("case"):
        assert len(mine) == 3
        assert (mine["done_s"].to_numpy()[:-1] <= mine["requested_s"].to_numpy()[1:]).all()
        assert (mine["device_queue_s"] == 0).all()
        assert mine["cloud_queue_s"].abs().max() < 1e-12


def test_report_draws_again_the_same_bytes(sequential: Path) -> None:
    before = (sequential / "report.html").read_bytes()
    (sequential / "report.html").unlink()
    drawn = call("report", sequential)
    assert drawn.exit_code == 0
    assert (sequential / "report.html").read_bytes() == before
    advice = re.search(r'class="advice">([^<]+)<', before.decode())
    assert advice is not None
    assert html.unescape(advice[1]) in drawn.output  # the terminal prints the first sentence of the page


@pytest.mark.usefixtures("undrawn")
def test_local_times_are_measured_once_and_kept(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.profile._CELL_S", 0.0)  # times each pass at most three times
    text = with_methods("  - base\n").replace("snapdragon-8-gen-3", "local").replace("a100", "local")
    path, one_case = write(text), ("--quiet", "--set", "sweep={}")
    run(path, tmp_path / "one", tmp_path / "cache", *one_case)
    run(path, tmp_path / "two", tmp_path / "cache", *one_case)
    assert (tmp_path / "one" / "summary.csv").read_bytes() == (tmp_path / "two" / "summary.csv").read_bytes()
    provenance = json.loads((tmp_path / "one" / "provenance.json").read_text())
    assert provenance["compute"]["device"]["origin"] == "measured"
    assert provenance["as_if"] is None


def test_listings_and_schema() -> None:
    for what, expected in {
        "methods": "prefix_rate",
        "presets": "5g-sub6",
        "hardware": "h200",
        "models": "anole-7b",
        "pairs": "16 x 16",
        "backbones": "llamagen-xl-stage2",
    }.items():
        result = call("list", what)
        assert result.exit_code == 0, result.output
        assert expected in result.output
        if what == "methods":  # defaults of a scenario (calibrated), not those of the programs (a number)
            assert re.search(r"^random.*\n(  .*\n)*  +threshold  +\{call_pct", result.output, re.MULTILINE)
            assert not re.search(r"threshold +0\.3|threshold_mode +const +const", result.output)
        if what == "pairs":  # those with images first
            assert re.findall(r"^(\w\S+) +draws", result.output, re.MULTILINE)[:2] == ["photos", "scenes"]
    schema = json.loads(call("schema").output)
    assert "methods" in schema["properties"]


# --- bad input: one line on stderr, exit code 2, nothing written

BAD_SCENARIOS = {
    "unknown method": ("- device-only", "- devise-only", "device-only"),
    "unknown preset": ("[wifi, lte]", "[wify, lte]", "wifi"),
    "wrong type": ("prefix_rate: 0.3", "prefix_rate: high", "prefix_rate"),
    "wrong unit": ("duration_s: 10", "duration_ms: 10", "duration_s"),
    "zero rate": ("poisson_per_s: 4", "poisson_per_s: 0", "poisson_per_s"),
    "infinite rate": ("poisson_per_s: 4", "poisson_per_s: .inf", "poisson_per_s"),
    "negative threshold": ("threshold: 0.6", "threshold: -0.6", "threshold"),
    "prefix rate of one": ("prefix_rate: 0.3", "prefix_rate: 1.0", "prefix_rate"),
    "two networks": ("sweep:", "network: {{preset: wifi, outage_ms: 5}}\nsweep:", "preset"),
    "duplicate key": ("name: tiny\n", "name: tiny\nname: other\n", "name"),
    "tag": ("name: tiny", "name: !!python/name:os.system tiny", "tag"),
    "empty axis": ("[wifi, lte]", "[]", "network.preset"),
    "axis of nothing": ("network.preset: [wifi, lte]", "network.rtt: [1, 2]", "network.rtt"),
    "no yaml": ("methods:\n", "methods: [\n", "scenario.yaml:"),
    "unknown pair": ("pair: {pair}", "pair: no/such/pair", "no/such/pair"),
    "unknown hardware": ("hardware: a100", "hardware: b100", "did you mean"),
    "unknown word": (
        "prompts: {{source: scenes, count: 3}}",
        "prompts: {{list: [a small red qube in the center]}}",
        "cube",
    ),
    "place of an unknown word": (
        "{{source: scenes, count: 3}}",
        "{{list: [a small red qube]}}",
        "scenario.yaml:3: unknown word",
    ),
    "more than the pair has": (
        "- device-only",
        "- {{name: lantern, k: 64}}",
        "scenario.yaml:6: LANTERN's k must be below the 64 codes",
    ),
    "a rate below the prefix": (
        "threshold: 0.6",
        "threshold: {{call_pct: 3}}, prefix_rate: 0.5",
        "scenario.yaml:9: ciar",
    ),
    "caption too long": ("prompts: {{source: scenes, count: 3}}", f"prompts: {{{{list: [{'red ' * 40}]}}}}", "32"),
    "as if with other token counts": (
        "device: {{model: pair, hardware: snapdragon-8-gen-3}}\n  cloud: {{model: pair, hardware: a100}}",
        "device: {{model: llamagen-xl-1layer, hardware: snapdragon-8-gen-3}}\n  cloud: {{model: llamagen-xl, hardware: a100}}",
        "scenario.yaml:11: compute.device.model llamagen-xl-1layer makes 256",
    ),
    "method that is a list": ("- device-only", "- {{name: [base]}}", "not a known method"),
    "absurd size": ("devices: 3", "devices: 100000000000000000000", "devices"),
    "absurd rate": ("[wifi, lte]", "[wifi]\nnetwork: {{rtt_ms: 1.0e300, up_mbps: 1, down_mbps: 1}}", "rtt_ms"),
    "axis on a labelled setting": (
        "network.preset: [wifi, lte]",
        "methods.ciar threshold=0.6.threshold: [0.1, 0.2]",
        "label",
    ),
    "not modelled yet": ("network.preset: [wifi, lte]", "seed: [1, 2]\nplacement: elsewhere", "placement"),
}


@pytest.mark.parametrize("case", BAD_SCENARIOS)
def test_bad_scenarios(case: str, write: Write, tmp_path: Path) -> None:
    old, new, named = BAD_SCENARIOS[case]
    assert old in SCENARIO
    result = call(
        "run", write(SCENARIO.replace(old, new)), "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--quiet"
    )
    assert_refused(result, named)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("**/*.npz"))


def assert_refused(result: Result, named: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert named in lines[0]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "manifest"])
def test_missing_and_damaged_weights(damage: str, tmp_path: Path, tiny_pair_folder: Path) -> None:
    broken = tmp_path / "pair"
    shutil.copytree(tiny_pair_folder, broken)
    file = broken / "device.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "flipped":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))
    else:
        file = broken / "pair.json"
        file.write_text(file.read_text()[:-20])
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO.format(pair=broken))
    result = call("run", path, "--out", tmp_path / "out", "--cache", tmp_path / "cache", "--quiet")
    assert_refused(result, file.name)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_a_run_is_never_replaced(write: Write, tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert_refused(call("run", write(SCENARIO), "--out", out, "--cache", cache, "--quiet"), "precious")
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("")
    assert_refused(call("run", write(SCENARIO), "--out", file / "below", "--cache", cache, "--quiet"), "file")


def test_other_bad_arguments(write: Write, tmp_path: Path) -> None:
    path = write(SCENARIO)
    assert_refused(call("run", tmp_path / "absent.yaml"), "absent.yaml")
    assert_refused(call("run", path, "--set", "seed"), "seed")
    (tmp_path / "cachefile").write_text("")
    assert_refused(
        call("run", path, "--cache", tmp_path / "cachefile", "--out", tmp_path / "o", "--quiet"), "cachefile"
    )
    assert_refused(
        call("train", Path(__file__).parents[2] / "models" / "scenes.yaml", "--stage", "phi", "--out", tmp_path / "t"),
        "t",
    )
    assert_refused(call("run", path, "--set", "sead=1"), "seed")
    assert_refused(call("sweep", path, "--axis", "network.preset="), "network.preset")
    assert_refused(
        call("run", path, "--torch-device", "tpu", "--out", tmp_path / "o", "--cache", tmp_path / "c", "--quiet"), "tpu"
    )
    assert_refused(call("report", tmp_path), tmp_path.name)
    assert_refused(call("train", tmp_path / "absent.yaml"), "absent.yaml")


@pytest.mark.usefixtures("undrawn")
def test_a_scenario_of_all_methods(write: Write, tmp_path: Path) -> None:
    from simulator.protocol.methods import METHODS

    few = {name: f"{{{{name: {name}, k: 10}}}}" for name in ("lantern", "lantern-static", "vvs")}
    path = write(with_methods("".join(f"  - {few.get(name, name)}\n" for name in METHODS)))
    run(path, tmp_path / "out", tmp_path / "cache", "--quiet", "--set", "sweep={}", "--set", "prompts.count=1")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert set(summary["method_name"]) == set(METHODS)
    requests = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    assert np.abs(requests[list(PARTS)].sum(axis=1) - requests["latency_s"]).max() < 1e-9
    calls = summary.groupby("method_name")["cloud_call_pct"].first()
    assert calls["base"] == 100
    assert calls["device-only"] == 0


@pytest.mark.usefixtures("undrawn")
def test_a_stored_profile_prices_a_run(tmp_path: Path, tiny_pair_folder: Path, cache: Path) -> None:
    stored = tmp_path / "profile.json"
    result = call("profile", "--pair", tiny_pair_folder, "--out", stored, "--seconds", "0", "--compare-roofline")
    assert result.exit_code == 0, result.output
    assert "median error" in result.output
    profile = json.loads(stored.read_text())
    for kind, seconds in (("image_decoder", 8.0), ("phi", 0.5)):
        profile["compute_seconds"][kind] = seconds
    profile["passes"]["cloud"].update(
        rows=[1, 2], new_tokens=[1, 2], kv_tokens=[0, 1], seconds=[[[0.25, 0.25]] * 2] * 2
    )
    stored.write_text(json.dumps(profile))
    path = tmp_path / "s.yaml"
    text = f"""\
name: t
pair: {tiny_pair_folder}
prompts: {{source: scenes, count: 1}}
methods: [base]
compute: {{device: {{model: pair, profile: profile.json}}, cloud: {{model: pair, profile: profile.json}}}}
network: {{rtt_ms: 0, up_mbps: 1000, down_mbps: 1000}}
workload: {{arrivals: sequential}}
"""
    path.write_text(text)
    run(path, tmp_path / "out", cache, "--quiet")
    row = pd.read_csv(tmp_path / "out" / "summary.csv").iloc[0]
    assert row["image_decode_s"] == 8.0
    assert row["cloud_compute_s"] == pytest.approx(16 * 0.25)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["compute"]["cloud"]["extrapolated"] is True  # 16 tokens, but the table ends at one cached token
    assert any("extrapolated" in text for text in provenance["warnings"])
    run(tmp_path / "out" / "scenario.yaml", tmp_path / "again", cache, "--quiet")

    good = shutil.copy(stored, tmp_path / "kept.json")
    profile["weights"] = "0" * 64
    stored.write_text(json.dumps(profile))
    result = call("run", path, "--out", tmp_path / "other", "--cache", cache)
    assert result.exit_code == 2
    assert "has other weights; measure one with ciar-sim profile --pair" in result.stderr
    profile["passes"]["device"]["seconds"][0][0][0] = None
    stored.write_text(json.dumps(profile))
    result = call("run", path, "--out", tmp_path / "other", "--cache", cache)
    assert result.exit_code == 2
    assert (
        f"s.yaml:5: compute.device.profile {stored}: passes.device: no time for 1 rows of 1 new and 0 cached"
        in result.stderr
    )
    path.write_text(
        text.replace(
            "cloud: {model: pair, profile: profile.json}", "cloud: {model: pair, hardware: a100, profile: good.json}"
        )
    )
    shutil.copy(good, tmp_path / "good.json")
    shutil.copy(good, stored)
    result = call("run", path, "--out", tmp_path / "other", "--cache", cache)
    assert "compute.cloud.profile goes with hardware: local, got pair on a100" in result.stderr
    assert not (tmp_path / "other").exists()

"""`ciar-sim sweep` on the command line: its folder, dry runs, and unfinished runs."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ciar_sim.cli.console import LINE_EVERY_S, _Lines, duration
from ciar_sim.cli.main import main
from simulator.core.errors import RunFolderError
from simulator.experiment.loading import load_scenario
from simulator.experiment.rerun import check_replaced

pytestmark = pytest.mark.usefixtures("undrawn")

SCENARIO = """\
name: tiny
pair: {pair}
prompts: {{source: scenes, count: 2}}
methods: [base, device-only]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
network: lte
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "s.yaml").write_text(SCENARIO.format(pair=tiny_pair_folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--cache", "cache"])


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"s.yaml"}


def test_a_dry_run_says_what_is_to_be_done_and_writes_nothing(folder: Path) -> None:
    result = call("sweep", "s.yaml", "--axis", "network.rtt_ms=10:40:3", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "cases: 6, of which 6 remain to be simulated"
    assert lines[1] == "sessions: 6, of which 6 remain to be recorded"
    assert lines[2].startswith("expected time: 6 s of recording, ")
    assert lines[3].startswith("bytes: 0.2 MB of recordings and 0.2 MB of cases in cache")
    assert written(folder) == set()


def test_a_dry_run_refuses_what_the_run_would_but_not_times_that_are_yet_to_be_measured(folder: Path) -> None:
    local = call("run", "s.yaml", "--set", "compute={device: {model: pair}, cloud: {model: pair}}", "--dry-run")
    assert local.exit_code == 0, local.output
    larger = call("run", "s.yaml", "--set", "compute={cloud: {model: llamagen-xl}}", "--dry-run")
    assert larger.exit_code == 2
    assert "makes 256 image tokens, the pair 16; they must be equal" in larger.output


def test_a_dry_run_tells_an_unread_cache_from_an_empty_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache the threshold is still to be calibrated, and the dry run passes. A failing disk is an error."""
    text = (folder / "s.yaml").read_text()
    (folder / "s.yaml").write_text(text.replace("device-only", "{name: ciar, threshold: {call_pct: 30, prompts: 2}}"))
    yet = call("sweep", "s.yaml", "--axis", "network.rtt_ms=10:40:3", "--dry-run")
    assert yet.exit_code == 0, yet.output
    # Two captions of base, of its greedy images, of ciar and of its calibration, under all three conditions.
    assert "sessions: at most 8, of which at most 8 remain to be recorded" in yet.output
    assert "expected time: at most 8 s of recording, " in yet.output

    def fails(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("simulator.core.cache.ContentCache.get", fails)
    failed = call("run", "s.yaml", "--dry-run")
    assert failed.exit_code == 2
    assert "cannot read the recording cache cache/recordings: Input/output error" in failed.stderr


def test_a_dry_run_refuses_what_fits_no_memory_and_a_folder_that_is_no_run(folder: Path) -> None:
    workload = "workload={devices: 1000000, duration_s: 1e6, arrivals: {poisson_per_s: 1e6}}"
    large = call("run", "s.yaml", "--set", workload, "--dry-run")
    assert large.exit_code == 2
    assert "GB of memory, and this machine has" in large.stderr
    other = call("run", "s.yaml", "--out", ".", "--dry-run")
    assert other.exit_code == 2
    assert "it holds s.yaml and is not a run of ciar-sim" in other.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--set", "prompts={list: [a red cubist]}"], "unknown word 'cubist'; nearest known word: cube"),
        (["--set", "prompts={list: [a red cube], calibration: [a blue hovercraft]}"], "unknown word 'hovercraft'"),
        (["--torch-device", "cuda:8"], "--torch-device cuda:8: this machine has "),
        (["--torch-device", "tpu"], "--torch-device tpu: allowed: auto, cpu, cuda, cuda:N"),
        (["--cache", "/proc/x"], "cannot write the recording cache /proc/x/recordings: /proc: "),
        (["--out", "/proc/x"], "cannot write the run folder /proc/x: /proc: "),
        (["--dask", "nowhere"], "--dask nowhere: no scheduler answers: "),
    ],
)
def test_a_dry_run_refuses_what_recording_and_simulating_would(folder: Path, given: list[str], said: str) -> None:
    text = (folder / "s.yaml").read_text()
    (folder / "s.yaml").write_text(text.replace("device-only", "{name: ciar, threshold: {call_pct: 30, prompts: 1}}"))
    result = CliRunner().invoke(main, ["run", "s.yaml", "--dry-run", "--cache", "cache", *given])
    assert result.exit_code == 2, result.output
    assert f": {said}" in result.stderr
    assert written(folder) == set()


def test_a_dry_run_refuses_a_quality_that_images_do_not_have_and_damaged_weights(
    folder: Path, tiny_pair_folder: Path
) -> None:
    (folder / "s.yaml").write_text((folder / "s.yaml").read_text().replace("device-only", "code"))
    tuned = call("sweep", "s.yaml", "--axis", "methods.code.prefix_rate=0.1,0.2", "--tune", "8:f1_photos", "--dry-run")
    assert "have no f1_photos; allowed: align_scenes" in tuned.stderr, tuned.output
    shutil.copytree(tiny_pair_folder, folder / "pair")
    (folder / "pair" / "device.safetensors").write_bytes(b"")
    damaged = call("run", "s.yaml", "--set", "pair=./pair", "--dry-run")
    assert damaged.exit_code == 2
    assert "device.safetensors: 0 bytes, expected " in damaged.stderr


def test_a_run_of_another_scenario_is_replaced_by_force_only(folder: Path) -> None:
    first = call("sweep", "s.yaml", "--axis", "network.rtt_ms=10,40", "--quiet")
    assert first.exit_code == 0, first.output
    (own,) = (folder / "runs").iterdir()
    assert own.name.startswith("tiny-")
    assert not (own / "unfinished.json").exists()
    again = call("sweep", "s.yaml", "--axis", "network.rtt_ms=10,40", "--dry-run")
    assert "cases: 4, of which 0 remain to be simulated" in again.output
    assert "0 remain to be recorded: no forward pass" in again.output
    before = (own / "summary.csv").read_bytes()
    other = call("run", "s.yaml", "--set", "seed=1", "--out", str(own), "--quiet")
    assert other.exit_code == 2
    assert (
        "holds a run of another scenario, whose seed is 0 in place of 1; --force replaces it, --out names another folder (in Python"
        in other.output
    )
    assert (own / "summary.csv").read_bytes() == before
    forced = call("run", "s.yaml", "--set", "seed=1", "--out", str(own), "--quiet", "--force")
    assert forced.exit_code == 0, forced.output
    assert (own / "summary.csv").read_bytes() != before


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"seed": 1}, "whose seed is 0 in place of 1"),
        (
            {"methods": ["base", {"name": "ciar", "threshold": {"call_pct": 40}}]},
            "whose methods[1].threshold is 1.5 in place of a mapping",
        ),
        (
            {"methods": ["base", {"name": "ciar", "features": "off"}]},
            "whose methods[1].features is 'fp16' (text) in place of 'off' (text)",
        ),
    ],
)
def test_what_differs_is_not_what_a_calibration_found(tmp_path: Path, now: dict[str, Any], said: str) -> None:
    """The folder's scenario has calibrated numbers instead of the default target; they do not count as a difference."""
    scenario = {"name": "s", "methods": ["base", "ciar"]}
    found = {"name": "ciar", "threshold": 1.5, "threshold_mode": "even", "budget": 0.25}
    (tmp_path / "scenario.yaml").write_text(json.dumps({**scenario, "methods": ["base", found]}))
    (tmp_path / "provenance.json").write_text('{"program": "ciar-sim"}')
    with pytest.raises(RunFolderError, match=re.escape(f"another scenario, {said}; --force")):
        check_replaced(tmp_path, load_scenario({**scenario, **now}), force=False)


def test_the_report_of_an_unfinished_run_says_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.experiment import simulating

    real, calls = simulating.simulate_case, []

    def stops(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(simulating, "simulate_case", stops)
    stopped = call("sweep", "s.yaml", "--axis", "network.rtt_ms=10,40", "--out", "out", "--quiet")
    assert stopped.exit_code == 130, stopped.output
    assert json.loads((folder / "out" / "unfinished.json").read_text())["program"] == "ciar-sim"
    report = CliRunner().invoke(main, ["report", "out"])
    assert report.exit_code == 0, report.output
    assert "out is unfinished: 2 of 4 cases are simulated." in report.output
    assert "  missing: device-only network.rtt_ms=40.0" in report.output
    assert "RTT 10 ms" in report.output
    assert "to be recorded: no forward pass" in report.output


def test_where_there_is_no_terminal_a_line_comes_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = _Lines(lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        lines("simulating", second, 200)
    lines("simulating", 0, 10)  # a new stage of the same name, as in a search
    for second in range(100, 132):
        now[0] = float(second)
        lines("simulating", (second - 99) / 4, 10)
    *said, again = capsys.readouterr().err.splitlines()
    assert again == "simulating: 5 of 10 (52 %), 4 s each, 19 s left"
    assert LINE_EVERY_S == 30
    assert said[0] == "simulating: 30 of 200 (15 %), 1/s, 2 min 50 s left"
    assert len(said) == 3
    assert [duration(seconds) for seconds in (4.4, 61, 7500)] == ["4 s", "1 min 1 s", "2 h 5 min"]

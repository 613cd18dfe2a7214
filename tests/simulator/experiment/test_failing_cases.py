"""A case that raises, needs too much memory or never ends fails alone; the others are written."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

import ciar_sim
from ciar_sim.cli.main import main
from simulator.core.errors import DeadlockError, DivergedError
from simulator.experiment import simulating
from simulator.protocol.cache import CachedSource
from tests.conftest import without_drawing

pytestmark = pytest.mark.usefixtures("undrawn")

SCENARIO = """\
name: failing
pair: {pair}
prompts: {{source: scenes, count: 2}}
methods: [base, device-only, {{name: code, prefix_rate: 0.3}}]
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
"""


def loops() -> None:
    while True:
        pass


def takes_all_memory() -> None:
    raise MemoryError


def has_a_fault() -> None:
    raise ZeroDivisionError("by nothing")


def cannot_go_on() -> None:
    raise DeadlockError("nobody answers")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Path:
    """Recordings of `SCENARIO`, without the simulated cases that a cache also keeps."""
    folder = tmp_path_factory.mktemp("recorded")
    with without_drawing():
        ciar_sim.run(yaml.safe_load(SCENARIO.format(pair=tiny_pair_folder)), out=folder / "out", cache=folder / "cache")
    return folder / "cache" / "recordings"


@pytest.fixture
def run(tmp_path: Path, tiny_pair_folder: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = tmp_path / "s.yaml"
    shutil.copytree(recordings, tmp_path / "cache" / "recordings")
    path.write_text(SCENARIO.format(pair=tiny_pair_folder))

    def run(fails: Any, *names: str) -> Result:
        real = simulating.simulate_case

        def simulate_case(scenario: Any, *inputs: Any) -> Any:
            if scenario.methods[0].name in names:
                fails()
            return real(scenario, *inputs)

        monkeypatch.setattr(simulating, "simulate_case", simulate_case)
        options = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--case-timeout", "0.05"]
        return CliRunner().invoke(main, ["run", str(path), *options])

    return run


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (loops, "code: TimeLimitError: took longer than 3 s"),
        (takes_all_memory, "code: needs more than the"),
        (has_a_fault, "code: ZeroDivisionError: by nothing (test_failing_cases.py:"),
        (cannot_go_on, "code: nobody answers"),
    ],
)
def test_one_case_fails_alone(run: Any, tmp_path: Path, fails: Any, message: str) -> None:
    result = run(fails, "code")
    assert result.exit_code == 1
    assert f"1 case failed and is in no table:\n  {message}" in result.output
    assert list(pd.read_csv(tmp_path / "out" / "summary.csv")["method"]) == ["base", "device-only"]
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["failed"][0].startswith(message)
    assert any(message in text for text in provenance["warnings"])
    assert "Traceback" not in result.output


def test_without_any_case_nothing_is_written(run: Any, tmp_path: Path) -> None:
    for fails, message in ((cannot_go_on, "nobody answers"), (has_a_fault, "base: ZeroDivisionError: by nothing")):
        result = run(fails, "base", "device-only", "code")
        assert result.exit_code == 2
        assert f"Error: {message}" in result.output
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alone", [True, False])
def test_a_session_that_leaves_its_way_is_recorded_alone_and_else_fails_its_case_alone(
    alone: bool, tmp_path: Path, tiny_pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A near tie that was decided differently in a larger batch once ended the whole run."""
    real = CachedSource.recordings

    def recordings(source: CachedSource, specs: Any) -> Any:
        if any(spec.missed_calls for spec in specs) and not (alone and len(specs) == 1):
            raise DivergedError("never waited for it")
        return real(source, specs)

    monkeypatch.setattr(CachedSource, "recordings", recordings)
    more = "decoding: {text_encoder: device}\nfallback: {policy: device, deadline_ms: 1}\nnetwork: {rtt_ms: 60, up_mbps: 9, down_mbps: 9}\n"
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO.format(pair=tiny_pair_folder) + more)
    options = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    shown = CliRunner().invoke(main, ["run", str(path), *options])
    assert shown.exit_code == (0 if alone else 1), shown.output
    methods = pd.read_csv(tmp_path / "out" / "summary.csv")["method"].tolist()
    assert methods == ["base", "device-only", *(["code"] if alone else [])]
    assert ("code: never waited for it" in shown.output) == (not alone)


class _Full:
    @property
    def kinds(self) -> Any:
        raise MemoryError


@pytest.mark.parametrize(
    ("free_bytes", "message"),
    [
        (2e9, "needs more than the 2.0 GB of memory that are free"),
        (math.inf, "needs more memory than its process can have"),
    ],
)
def test_too_little_memory_is_said_in_figures_only_where_they_are_known(free_bytes: float, message: str) -> None:
    full: Any = _Full()
    limits = simulating._Limits(None, free_bytes, 0, False)
    task = simulating.Task(full, full, "", (), (), limits)
    assert simulating.attempt(task) == simulating.Failure(message, None)

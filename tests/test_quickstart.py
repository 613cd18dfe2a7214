"""The quickstart on the shipped pair."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from ciar_sim.cli.main import main
from models.quality.judges import captions_of
from simulator.experiment.loading import load_scenario
from simulator.experiment.run import run_scenario
from simulator.experiment.sweep import expand
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.methods import METHODS
from simulator.results.columns import PARTS
from tests.conftest import without_drawing

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, cache: Path, short_gaps: None) -> Path:
    """Run folder of the quickstart with one prompt, one prompt per calibration, a tenth of its duration, and no guidance."""
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    few = dict.fromkeys(("entropy-lens", "ciar at 30 %", "ciar revised"), "{call_pct: 30, prompts: 1}")
    few["ciar at 60 %"] = "{call_pct: 60, prompts: 1}"
    arguments = [
        "run",
        str(ROOT / "scenarios" / "quickstart.yaml"),
        "--set",
        "prompts.count=1",
        "--set",
        "workload.duration_s=120",
        *(part for name, value in few.items() for part in ("--set", f"methods.{name}.threshold={value}")),
        "--out",
        str(out),
        "--cache",
        str(cache),
        "--record-jobs",
        "1",
        "--set",
        "decoding.guidance=1",
    ]
    with without_drawing():
        result = CliRunner().invoke(main, [*arguments, "--quiet"])
    assert result.exit_code == 0, result.output
    return out


def test_the_table_says_what_the_methods_are(quickstart: Path) -> None:
    summary = pd.read_csv(quickstart / "summary.csv")
    assert len(summary) == 10 * 3
    calls = summary.groupby("method")["cloud_call_pct"].agg(["min", "max"])
    assert (calls["min"] == calls["max"]).all()  # the network changes no decision
    calls = calls["min"]
    assert calls["base"] == 100
    assert calls["device-only"] == 0
    assert abs(calls["code"] - 30) <= 0.5
    assert 100 * 15 / 256 <= calls["ciar at 30 %"] < calls["ciar at 60 %"] < 100


def test_every_image_is_read_and_too_few_make_no_distance(quickstart: Path) -> None:
    summary = pd.read_csv(quickstart / "summary.csv")
    assert summary["align_photos"].between(0, 1).all()
    assert (summary.groupby("method")["align_photos"].nunique() == 1).all()  # the network changes no image
    assert summary[["fd_photos", "f1_photos"]].isna().all(axis=None)
    assert "photo_network_sha256" in json.loads((quickstart / "provenance.json").read_text())["quality"]


def test_parts_add_up_and_the_same_requests_meet_every_method(quickstart: Path) -> None:
    requests = pd.read_parquet(quickstart / "requests.parquet")
    assert np.abs(requests[list(PARTS)].sum(axis=1) - requests["latency_s"]).max() < 1e-9
    assert requests.groupby("request")[["requested_s", "prompt", "device"]].nunique().to_numpy().max() == 1


def test_as_if_is_said_and_the_sources_stand_in_the_results(quickstart: Path) -> None:
    provenance = json.loads((quickstart / "provenance.json").read_text())
    assert "as if llamagen-xl on a100" in provenance["as_if"]
    assert provenance["compute"]["cloud"]["sources"]["runtime"]
    assert "as if llamagen-xl" in (quickstart / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_at_the_pairs_own_size_messages_weigh_what_they_encode_to(
    quickstart: Path, cache: Path, tmp_path: Path
) -> None:
    text = yaml.safe_load((quickstart / "scenario.yaml").read_text())
    text["compute"] = {
        "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
        "cloud": {"model": "pair", "hardware": "a100"},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    source = CachedSource(RecordingCache(cache), pytest.fail)  # nothing is recorded anew
    run_scenario(load_scenario(path), tmp_path / "own", source, captions_of("photos"), pytest.fail)
    requests = pd.read_parquet(tmp_path / "own" / "requests.parquet")
    encoded = set()
    for file in RecordingCache(cache).root.glob("*/*.npz"):
        recording = RecordingCache(cache).get(file.stem)
        assert recording is not None
        ops = recording.ops
        encoded.add(
            (int(ops["payload_bytes"][ops["side"] == 0].sum()), int(ops["payload_bytes"][ops["side"] == 1].sum()))
        )
    assert set(zip(requests["bytes_up"], requests["bytes_down"], strict=True)) <= encoded


def test_the_shipped_scenarios_open_with_a_comment_and_load() -> None:
    scenarios = sorted(ROOT.glob("scenarios/*.yaml"))
    assert {path.stem for path in scenarios} >= {"quickstart", "threshold-prefix-sweep"}
    for path in scenarios:
        assert path.read_text().startswith("# "), path
        scenario = load_scenario(path)
        assert scenario.name == path.stem
        assert expand(scenario)
        if path.stem in ("all-methods", "method-table"):
            assert {case.method.name for case in expand(scenario)} == set(METHODS)

"""Pricing of recorded sessions by the compute section of a scenario."""

from pathlib import Path
from typing import Any

import pytest

from simulator.core.errors import ComputeError, ScenarioError
from simulator.experiment.cost_table import CostTable, _profile_command, fleet_parts
from simulator.experiment.loading import load_scenario
from simulator.experiment.provenance import _compute
from simulator.experiment.sweep import expand
from simulator.pricing.profile import PassTable, Profile
from simulator.protocol.pairs import PairSpec, pair_manifest

from ..build import call, forward, recording, reply


def test_a_session_is_priced_as_itself_though_those_before_it_are_forgotten() -> None:
    """A source need not keep its recordings, so later recordings may have the same memory address."""
    scenario = load_scenario({"name": "table", "methods": ["base"]})
    (case,) = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), [case], pytest.fail)
    for size in range(128, 148):
        session = recording(call(0, size), [[forward("cloud"), reply()]])
        assert costs.priced(case, [session], {}).kinds[0].programs[0].bytes_up == size
        del session


def test_a_pair_of_downloaded_files_is_measured_with_the_scenario_that_names_it() -> None:
    assert _profile_command("scenes") == "ciar-sim profile --pair scenes"
    assert _profile_command(PairSpec(cloud="anole-7b", weights="x")) == "ciar-sim profile --pair SCENARIO.yaml"


def test_hardware_that_differs_in_a_late_digit_has_times_of_its_own() -> None:
    figures = {"class": "datacentre", "fp16_tflops": 312, "bandwidth_gb_s": 2039, "memory_gb": 80, "power_w": 400}
    scenario = load_scenario(
        {
            "name": "table",
            "methods": ["base"],
            "compute": {"cloud": {"hardware": figures}},
            "sweep": {"compute.cloud.hardware.bandwidth_gb_s": [2039, 2039.0001]},
        }
    )
    cases = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), cases, pytest.fail)
    assert len({costs.fingerprint(case) for case in cases}) == 2


@pytest.mark.parametrize(
    ("compute", "side", "message"),
    [
        (
            {"device": {"model": "pair"}, "cloud": {"model": "pair"}},
            "device",
            "the pair's drafter, .* profile --pair scenes",
        ),
        (
            {"device": {"model": "llamagen-b-256-1layer", "profile": "b.json"}, "cloud": {"model": "llamagen-xl"}},
            "device",
            "llamagen-xl's drafter, .* --model llamagen-xl --random-weights",
        ),
        (
            {"device": {"profile": "xl.json"}, "cloud": {"profile": "xl.json"}},
            "cloud",
            "llamagen-xl's drafter, with which eagle2 drafts; measure",
        ),
        (
            {"device": {"profile": "xl.json"}, "cloud": {"model": {"layers": 2, "width": 64}}},
            "device",
            "own model .* drafter, .*; give the hardware by name or figures",
        ),
    ],
)
def test_a_drafter_that_was_not_measured_is_refused_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: Any, side: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = PassTable(rows=[1], new_tokens=[1], kv_tokens=[0], seconds=[[[0.1]]])
    fields: Any = {"hardware": "here", "threads": 1, "torch": "2", "compute_seconds": {"image_decoder": 0.1}}
    older = Profile(model="scenes", passes={"device": table, "cloud": table}, **fields)
    for name, model in (("b", "llamagen-b-256"), ("xl", "llamagen-xl")):
        older.model_copy(update={"model": model}).write(tmp_path / f"{name}.json")

    def build(method: Any, placement: str = "split") -> None:
        scenario = load_scenario({"name": "t", "methods": [method], "compute": compute, "placement": placement})
        manifest = pair_manifest(scenario.pair)
        CostTable(manifest, expand(scenario), lambda: older.model_copy(update={"weights": manifest.weights_hash}))

    with pytest.raises(ComputeError, match=message) as error:
        build({"name": "eagle2", "drafter": side})
    assert error.value.place == ("compute", side)
    build("base")
    if (
        "profile" not in compute["cloud"] and compute["cloud"]["model"] != "pair"
    ):  # here the cloud's drafter has a roofline
        build("eagle2", "cloud")


@pytest.mark.parametrize(("dtype", "value_bytes"), [(None, 2), ("bfloat16", 2), ("float32", 4)])
def test_a_cache_has_the_type_of_the_measured_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, value_bytes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    table = PassTable(rows=[1], new_tokens=[1], kv_tokens=[0], seconds=[[[0.1]]])
    fields: Any = {"hardware": "here", "threads": 1, "torch": "2", "compute_seconds": {}, "dtype": dtype or "float32"}
    Profile(model="llamagen-xl", passes={"cloud": table}, **fields).write(tmp_path / "xl.json")
    side = {"hardware": "a100"} if dtype is None else {"profile": "xl.json"}
    scenario = load_scenario(
        {
            "name": "t",
            "methods": ["base"],
            "compute": {"cloud": {"model": "llamagen-xl", **side}},
            "cloud": {"kv_memory_gb": 1},
        }
    )
    (case,) = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), [case], pytest.fail)
    priced = costs.priced(case, [recording(call(0), [[forward("cloud"), reply()]])], {})
    # Keys and values of 36 layers of width 1280.
    assert costs.kv_tokens(case, priced) == (1e9 / (2 * 36 * 1280 * value_bytes),)


@pytest.mark.parametrize("method", ["device-only", "eagle2"])
def test_a_device_with_a_drafter_holds_no_other_model(method: str) -> None:
    model = {"layers": 60, "width": 4096}  # 24 GB; a drafter for LlamaGen-XL has 0.13
    scenario = load_scenario({"name": "t", "methods": [method], "compute": {"device": {"model": model}}})
    (case,) = expand(scenario)
    costs = CostTable(pair_manifest(scenario.pair), [case], pytest.fail)
    role = "drafter" if method == "eagle2" else "device"
    priced = costs.priced(case, [recording([forward(role), *call(0)], [[forward("cloud"), reply()]])], {})
    told = _compute(costs, set())
    if method == "eagle2":
        assert len(fleet_parts(case.scenario, priced)) == 1
        assert told["drafter"]["device"]["model"] == "drafter of llamagen-xl"
        assert told["drafter"]["device"]["hardware"] == told["device"]["hardware"]
    else:
        assert "drafter" not in told
        with pytest.raises(ScenarioError, match="device-only does not fit the device: it needs 2"):
            fleet_parts(case.scenario, priced)

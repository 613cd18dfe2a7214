"""Scenarios: defaults, labels, paths, and the round trip of a resolved scenario."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core import yamlfile
from simulator.core.errors import ScenarioError
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, json_schema, resolved_yaml
from simulator.experiment.schema.cloud import Cloud
from simulator.experiment.schema.figures import LinkFigures
from simulator.experiment.sweep import expand
from simulator.protocol.methods import METHODS, CiarSettings, Decoding
from tests.simulator.experiment.scenario_files import (
    HEAD,
    LATER,
    QUICKSTART,
    load,
)

# --- defaults


def test_a_device_without_a_model_has_the_clouds_one_layer_form(tmp_path: Path) -> None:
    head = "name: t\nmethods: [base]\n"
    s = load(tmp_path, head + "compute: {cloud: {model: anole-7b}}\n")
    assert (s.compute.device.model, s.compute.cloud.model) == ("anole-7b-1layer", "anole-7b")
    given = load(tmp_path, head + "compute: {device: {model: llamagen-b-384}, cloud: {model: llamagen-3b-384}}\n")
    assert given.compute.device.model == "llamagen-b-384"
    alias = load(tmp_path, head + "compute: {cloud: {model: llamagen-xl-stage1}}\n")
    assert (alias.compute.device.model, alias.compute.cloud.model) == ("llamagen-xl-1layer", "llamagen-xl")


def test_the_smallest_scenario(tmp_path: Path) -> None:
    s = load(tmp_path, "name: t\nmethods: [base]\n")
    assert s.pair == "scenes"
    assert s.decoding == Decoding()
    assert s.model_dump()["prompts"] == {"source": "scenes", "count": 16, "seed": 0, "skip": 0}
    device = {"model": "llamagen-xl-1layer", "hardware": "snapdragon-8-gen-3", "runtime": "eager"}
    assert s.compute.device.model_dump(exclude=LATER) == device
    assert s.compute.cloud.model_dump(exclude=LATER) == {"model": "llamagen-xl", "hardware": "a100", "runtime": "eager"}
    assert s.cloud == Cloud(
        replicas=1, max_batch=16, queue="fifo", routing="least-loaded", kv_memory_gb=None, max_sessions=None
    )
    network = {key: value for key, value in s.model_dump()["network"].items() if value is not None}
    assert network == {
        "preset": "wifi",
        "distance_km": 0.0,
        "transport": "grpc",
        "devices_per_cell": 1,
        "aqm": "none",
        "handshake": "full",
        "jitter_on": "mean",
        "sharing": "fcfs",
    }
    assert s.model_dump()["workload"] == {"arrivals": "sequential", "devices": 1}
    assert (s.placement, s.seed, s.sweep.axes) == ("split", 0, {})
    assert s.network.figures() == LinkFigures(
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
    assert s.network.figures() == LinkFigures(down_bps=50e6, up_bps=10e6, rtt_s=0.02, jitter_s=0.002)
    assert s.sweep.axes == {"methods.ciar.threshold": (0.1, 0.2, math.inf), "network.rtt_ms": (5.0, 20.0)}


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
    assert s.model_dump(by_alias=True)["prompts"] == {"list": ("a red cube", "a blue ring"), "calibration": ()}


def test_a_pair_in_a_folder_becomes_a_whole_path(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert load(tmp_path, HEAD + "pair: mine\n").pair == str((tmp_path / "mine").resolve())


def test_scenarios_are_frozen(tmp_path: Path) -> None:
    s = load(tmp_path, HEAD)
    with pytest.raises(ValueError):
        s.seed = 3  # type: ignore[misc]


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
    sections = {"Scenario": schema, **schema["$defs"]}
    keys = [(name, key, entry) for name, one in sections.items() for key, entry in one.get("properties", {}).items()]
    assert [(name, key) for name, key, entry in keys if not entry.get("description")] == []
    assert schema["$defs"]["OwnHardware"]["properties"]["class"]["description"].endswith("datacentre in the cloud.")
    assert not any("Attributes" in one.get("description", "") for one in sections.values())
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

"""No dead setting: every key of a scenario, changed where it should matter, changes a run's results, or is refused by name.

`SETTINGS` has a row per key of the schema, `Section.key`: what to put into the base scenario, and the change. A new key without a row
fails, and so does a row whose change leaves the bytes of requests.parquet and summary.csv as they were.
"""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.pair import load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.core.errors import CiarSimError
from simulator.experiment.loading import load_scenario
from simulator.experiment.run import run_scenario
from simulator.experiment.scenario import json_schema
from simulator.pricing.profile import Profile
from simulator.protocol.cache import CachedSource, RecordingCache

Change = dict[str, Any]
REFUSED = "refused"

BASE: dict[str, Any] = {
    "name": "setting",
    "prompts": {"source": "scenes", "count": 3},
    "methods": [{"name": "ciar", "threshold": 0.35}],
    "compute": {
        "device": {"model": "pair", "hardware": "snapdragon-8-gen-3"},
        "cloud": {"model": "pair", "hardware": "a100"},
    },
    "network": {"rtt_ms": 40, "up_mbps": 5, "down_mbps": 20},
}
ONE_CAPTION, ANOTHER = captions(7, 2)
FLEET: Change = {"workload": {"devices": 4, "arrivals": {"poisson_per_s": 20}, "duration_s": 4}}
PRESET: Change = {"network": {"preset": "lte"}}
TRACE: Change = {"network": {"trace": "link.csv"}}
LTE_RADIO: Change = {"network.radio": "lte"}
# Passes of the tiny pair are over before anybody waits; on these priced as LlamaGen-XL's the cloud is busy.
SLOW_CLOUD: Change = {"compute.cloud.hardware": "jetson-orin-nano-8"}
BUSY: Change = {**FLEET, "workload.arrivals.poisson_per_s": 60, "workload.duration_s": 1}


def method(name: str, **settings: Any) -> Change:
    """The scenario's only method."""
    return {"methods": [{"name": name, **settings}]}


def one(key: str, value: Any, *before: Change) -> tuple[Change, Change]:
    """A row: what comes before the change, and the change."""
    merged: Change = {}
    for change in before:
        merged |= change
    return merged, {key: value}


def entry(name: str, key: str, value: Any, **settings: Any) -> tuple[Change, Change]:
    """A row of a method's setting. settings: that it has before."""
    return method(name, **settings), {f"methods.0.{key}": value}


def threshold_rows(name: str) -> dict[str, tuple[Change, Change]]:
    """Rows of the settings that all methods with a threshold share."""
    section = "".join(word.capitalize() for word in name.split("-")) + "Entry"
    const = {"threshold_mode": "const", "threshold": 0.5}
    return {
        f"{section}.prefix_rate": entry(name, "prefix_rate", 0.4, **const),
        f"{section}.threshold": entry(name, "threshold", 1e9, **{**const, "threshold": 0.0}),
        f"{section}.threshold_mode": entry(name, "threshold_mode", "budget", **{**const, "threshold": 0.0}),
        f"{section}.beta": entry(name, "beta", 0.9, threshold_mode="ema", threshold=TIGHT[name], beta=0.0),
        f"{section}.decay": entry(
            name, "decay", 0.0, threshold_mode="ema", threshold=TIGHT[name], beta=1.0, decay=0.99
        ),
        f"{section}.budget": entry(name, "budget", 0.9, threshold_mode="budget", threshold=0.0, budget=0.1),
    }


# A threshold amid the scores of the tiny pair.
TIGHT = {"ciar": 0.43, "discrete": 0.51, "entropy-lens": 0.72, "softmax-corr": 0.78}
TREE = {"total_tokens": 6, "depth": 2, "top_k": 3}

SETTINGS: dict[str, tuple[Change, Change] | str] = {
    # the scenario itself
    "Scenario.name": "names the run folder: see test_the_name_is_the_folders",
    "Scenario.pair": "another pair: see test_another_pair_is_another_result",
    "Scenario.sweep": "makes the cases: see test_a_sweep_makes_cases",
    "Scenario.prompts": one("prompts.count", 2),
    "Scenario.decoding": one("decoding", {"guidance": 1.0}),
    "Scenario.methods": one("methods", ["base"]),
    "Scenario.placement": one("placement", "cloud"),
    "Scenario.compute": one("compute.device.hardware", "jetson-orin-nano-8"),
    "Scenario.cloud": one("cloud", {"price_usd_per_gpu_hour": 2.0}),
    "Scenario.network": one("network", {"preset": "lte"}),
    "Scenario.fallback": one("fallback", {"policy": "device", "deadline_ms": 1}),
    "Scenario.workload": one("workload", FLEET["workload"]),
    "Scenario.seed": one("seed", 1),
    # prompts
    "ScenePrompts.source": "the only value of this form",
    "ScenePrompts.count": one("prompts.count", 2),
    "ScenePrompts.seed": one("prompts.seed", 1),
    "PromptList.list": one("prompts.list", [ANOTHER], {"prompts": {"list": [ONE_CAPTION]}}),
    "PromptFile.file": one("prompts.file", "others.txt", {"prompts": {"file": "captions.txt"}}),
    # decoding
    "Decoding.guidance": one("decoding.guidance", 1.5),
    "Decoding.temperature": one("decoding.temperature", 3.0),
    "Decoding.top_k": one("decoding.top_k", 2),
    "Decoding.top_p": one("decoding.top_p", 0.3),
    "Decoding.cloud": one("decoding.cloud", "greedy", method("base")),
    "Decoding.device": one("decoding.device", "sampled", method("device-only")),
    "Decoding.text_encoder": one("decoding.text_encoder", "device"),
    # methods
    **{
        f"{section}.name": "tells the sections apart: see test_every_method_has_rows"
        for section in (
            "BaseEntry",
            "CiarEntry",
            "CodeEntry",
            "DeviceOnlyEntry",
            "DiscreteEntry",
            "Eagle2Entry",
            "EntropyLensEntry",
            "LanternEntry",
            "LanternStaticEntry",
            "RandomEntry",
            "SoftmaxCorrEntry",
            "SpeculativeEntry",
        )
    },
    "BaseEntry.label": entry("base", "label", "mine"),
    "CiarEntry.label": entry("ciar", "label", "mine"),
    "CodeEntry.label": entry("code", "label", "mine"),
    "DeviceOnlyEntry.label": entry("device-only", "label", "mine"),
    "DiscreteEntry.label": entry("discrete", "label", "mine"),
    "Eagle2Entry.label": entry("eagle2", "label", "mine", **TREE),
    "EntropyLensEntry.label": entry("entropy-lens", "label", "mine"),
    "LanternEntry.label": entry("lantern", "label", "mine", k=4, **TREE),
    "LanternStaticEntry.label": entry("lantern-static", "label", "mine", k=4),
    "RandomEntry.label": entry("random", "label", "mine"),
    "SoftmaxCorrEntry.label": entry("softmax-corr", "label", "mine"),
    "SpeculativeEntry.label": entry("speculative", "label", "mine"),
    "BaseEntry.deliver": entry("base", "deliver", "image"),
    "CodeEntry.prefix_rate": entry("code", "prefix_rate", 0.7),
    "RandomEntry.prefix_rate": entry("random", "prefix_rate", 0.7),
    "RandomEntry.upload_rate": entry("random", "upload_rate", 0.9),
    **threshold_rows("ciar"),
    **threshold_rows("discrete"),
    **threshold_rows("entropy-lens"),
    **threshold_rows("softmax-corr"),
    "CallTarget.call_pct": entry(
        "ciar", "threshold", {"call_pct": 75, "prompts": 4}, threshold={"call_pct": 30, "prompts": 4}
    ),
    "CallTarget.prompts": entry(
        "ciar", "threshold", {"call_pct": 62.5, "prompts": 6}, threshold={"call_pct": 62.5, "prompts": 3}
    ),
    "CiarEntry.score": entry("ciar", "score", "lower-top", threshold=0.35),
    "CiarEntry.bounds": entry("ciar", "bounds", "inter-dro", threshold=0.35),
    "CiarEntry.reach": one(  # it binds where one token has most of the mass
        "methods.0.reach",
        True,
        {"methods": [{"name": "ciar", "threshold": 0.5, "score": "omega"}], "decoding.guidance": 40.0},
    ),
    "CiarEntry.features": entry("ciar", "features", "int8", threshold=0.35),
    "CiarEntry.upload": entry("ciar", "upload", "eager", threshold=0.35),
    "CiarEntry.variant": entry("ciar", "variant", "verify", threshold=0.35),
    "CiarEntry.revise": entry("ciar", "revise", 0.5, threshold=0.35),
    "DiscreteEntry.k": entry("discrete", "k", 300),
    "SoftmaxCorrEntry.reading": entry("softmax-corr", "reading", "window", threshold_mode="const", threshold=0.8),
    "SpeculativeEntry.gamma": entry("speculative", "gamma", 2),
    "SpeculativeEntry.residual": entry("speculative", "residual", "all"),
    "Eagle2Entry.drafter": entry("eagle2", "drafter", "cloud", **TREE),
    "Eagle2Entry.total_tokens": entry("eagle2", "total_tokens", 4, **TREE),
    "Eagle2Entry.depth": entry("eagle2", "depth", 1, **TREE),
    "Eagle2Entry.top_k": entry("eagle2", "top_k", 5, **TREE),
    "LanternEntry.drafter": entry("lantern", "drafter", "cloud", k=4, **TREE),
    "LanternEntry.total_tokens": entry("lantern", "total_tokens", 4, k=4, **TREE),
    "LanternEntry.depth": entry("lantern", "depth", 1, k=4, **TREE),
    "LanternEntry.top_k": entry("lantern", "top_k", 5, k=4, **TREE),
    "LanternEntry.k": entry("lantern", "k", 0, k=20, delta=1.0, **TREE),
    "LanternEntry.delta": entry("lantern", "delta", 1.0, k=20, delta=0.0, **TREE),
    "LanternEntry.lambda_": entry("lantern", "lambda_", 100.0, k=20, lambda_=1.0, **TREE),
    "LanternStaticEntry.drafter": entry("lantern-static", "drafter", "cloud", k=4),
    "LanternStaticEntry.k": entry("lantern-static", "k", 0, k=20, delta=1.0),
    "LanternStaticEntry.delta": entry("lantern-static", "delta", 1.0, k=20, delta=0.0),
    "LanternStaticEntry.lambda_": entry("lantern-static", "lambda_", 100.0, k=20, lambda_=1.0),
    "LanternStaticEntry.tree": entry("lantern-static", "tree", "25-nodes", k=4),
    # compute
    "Compute.device": one("compute.device.hardware", "jetson-orin-nano-8"),
    "Compute.cloud": one("compute.cloud.hardware", "apple-m1", {"compute.cloud.runtime": "cuda-graphs"}),
    "DeviceCompute.model": one(
        "compute", {"device": {"model": "pair", "profile": "profile.json"}, "cloud": BASE["compute"]["cloud"]}
    ),
    "DeviceCompute.hardware": one("compute.device.hardware", "jetson-orin-nano-8"),
    "DeviceCompute.runtime": one("compute.device.runtime", "cuda-graphs"),
    "DeviceCompute.profile": one(
        "compute.device.profile", "slow.json", {"compute.device": {"model": "pair", "profile": "profile.json"}}
    ),
    "DeviceCompute.throttling": one("compute.device.throttling", {"steps": [{"after_s": 1e-4, "speed": 0.1}]}),
    "ThermalThrottling.steps": one(
        "compute.device.throttling.steps",
        [{"after_s": 1e-4, "speed": 0.01}],
        {"compute.device.throttling": {"steps": [{"after_s": 1e-4, "speed": 0.1}]}},
    ),
    "ThermalThrottling.cooling": one(
        "compute.device.throttling.cooling",
        1e-3,
        {"compute.device.throttling": {"steps": [{"after_s": 1e-3, "speed": 0.1}]}},
    ),
    "ThrottleStep.after_s": one(
        "compute.device.throttling.steps",
        [{"after_s": 2e-3, "speed": 0.1}],
        {"compute.device.throttling": {"steps": [{"after_s": 1e-4, "speed": 0.1}]}},
    ),
    "ThrottleStep.speed": one(
        "compute.device.throttling.steps",
        [{"after_s": 1e-4, "speed": 0.2}],
        {"compute.device.throttling": {"steps": [{"after_s": 1e-4, "speed": 0.1}]}},
    ),
    "CloudCompute.model": one("compute.cloud", {"model": "pair", "profile": "profile.json"}),
    "CloudCompute.hardware": one("compute.cloud.hardware", "apple-m1", {"compute.cloud.runtime": "cuda-graphs"}),
    "CloudCompute.runtime": one("compute.cloud.runtime", "cuda-graphs"),
    "CloudCompute.profile": one(
        "compute.cloud.profile", "slow.json", {"compute.cloud": {"model": "pair", "profile": "profile.json"}}
    ),
    # cloud
    "Cloud.replicas": one("cloud.replicas", 4, BUSY, SLOW_CLOUD, {"cloud": {"max_batch": 1}}),
    "Cloud.max_batch": one("cloud.max_batch", 1, BUSY, SLOW_CLOUD, {"cloud": {}}),
    "Cloud.queue": one("cloud.queue", "shortest-first", BUSY, SLOW_CLOUD, {"cloud": {"max_batch": 1}}),
    "Cloud.routing": one("cloud.routing", "round-robin", BUSY, SLOW_CLOUD, {"cloud": {"max_batch": 1, "replicas": 2}}),
    "Cloud.max_sessions": one("cloud.max_sessions", 1, BUSY, SLOW_CLOUD, {"cloud": {}}),
    "Cloud.max_waiting": one("cloud.max_waiting", 0, BUSY, SLOW_CLOUD, {"cloud": {"max_sessions": 1}}),
    "Cloud.kv_memory_gb": one("cloud.kv_memory_gb", 1.5e-4, BUSY, SLOW_CLOUD, {"cloud": {}}),
    "Cloud.kv_full": one("cloud.kv_full", "evict", BUSY, SLOW_CLOUD, {"cloud": {"kv_memory_gb": 1.5e-4}}),
    "Cloud.crashes": one("cloud.crashes", [{"replica": 0, "at_s": 0.3, "down_s": 1.0}], BUSY, {"cloud": {}}),
    "CrashAt.replica": one(
        "cloud.crashes",
        [{"replica": 1, "at_s": 0.3, "down_s": 1.0}],
        BUSY,
        {"cloud": {"replicas": 2, "crashes": [{"replica": 0, "at_s": 0.3, "down_s": 1.0}]}},
    ),
    "CrashAt.at_s": one(
        "cloud.crashes",
        [{"replica": 0, "at_s": 0.6, "down_s": 1.0}],
        BUSY,
        {"cloud": {"crashes": [{"replica": 0, "at_s": 0.3, "down_s": 1.0}]}},
    ),
    "CrashAt.down_s": one(
        "cloud.crashes",
        [{"replica": 0, "at_s": 0.3, "down_s": 2.0}],
        BUSY,
        {"cloud": {"crashes": [{"replica": 0, "at_s": 0.3, "down_s": 1.0}]}},
    ),
    "Cloud.autoscale": one(
        "cloud.autoscale", {"max_replicas": 3, "sessions_per_replica": 0.5, "start_up_s": 0.01}, BUSY, SLOW_CLOUD
    ),
    **{
        f"AutoscaleRule.{key}": one(
            f"cloud.autoscale.{key}",
            value,
            BUSY,
            SLOW_CLOUD,
            {
                "cloud": {
                    "max_batch": 1,
                    "autoscale": {"max_replicas": 4, "sessions_per_replica": 1.0, "start_up_s": 0.01, "idle_s": 0.05},
                }
            },
        )
        for key, value in {"max_replicas": 2, "sessions_per_replica": 3.0, "start_up_s": 0.3, "idle_s": 5.0}.items()
    },
    "Cloud.background": one("cloud.background", {"utilisation": 0.7}, FLEET),
    "BackgroundLoad.utilisation": one(
        "cloud.background.utilisation", 0.9, FLEET, {"cloud": {"background": {"utilisation": 0.3}}}
    ),
    "BackgroundLoad.job_ms": one(
        "cloud.background.job_ms", 200.0, FLEET, {"cloud": {"background": {"utilisation": 0.5}}}
    ),
    "Cloud.price_usd_per_gpu_hour": one("cloud.price_usd_per_gpu_hour", 2.0, {"cloud": {}}),
    # network
    **{
        f"ExplicitNetwork.{key}": one(f"network.{key}", value)
        for key, value in {
            "rtt_ms": 80,
            "up_mbps": 1,
            "down_mbps": 1,
            "jitter_ms": 5,
            "loss_pct": 20,
            "transport": "tcp",
        }.items()
    },
    "ExplicitNetwork.radio": one("network.radio", "lte"),
    "ExplicitNetwork.jitter_distribution": one("network.jitter_distribution", "gamma", {"network.jitter_ms": 5}),
    "ExplicitNetwork.jitter_samples_ms": one(
        "network.jitter_samples_ms",
        [1, 2, 30],
        {"network.jitter_samples_ms": [1, 2, 3]},
    ),
    "ExplicitNetwork.loss_burst_packets": one("network.loss_burst_packets", 20, {"network.loss_pct": 20}),
    "ExplicitNetwork.buffer_bytes": one(
        "network.buffer_bytes",
        100,
        FLEET,
        {"network.up_mbps": 0.3, "network.transport": "tcp", "network.devices_per_cell": 4},
    ),
    "ExplicitNetwork.devices_per_cell": one("network.devices_per_cell", 4, BUSY, {"network.up_mbps": 0.1}),
    "ExplicitNetwork.outage_every_s": one(
        "network.outage_every_s", 1.5, {"network.outage_every_s": 0.5, "network.outage_ms": 300}
    ),
    "ExplicitNetwork.outage_ms": one(
        "network.outage_ms", 400, {"network.outage_every_s": 0.5, "network.outage_ms": 100}
    ),
    "PresetNetwork.preset": one("network.preset", "geo", PRESET),
    "PresetNetwork.distance_km": one("network.distance_km", 5000, PRESET),
    "PresetNetwork.transport": one("network.transport", "quic", PRESET),
    "PresetNetwork.devices_per_cell": one("network.devices_per_cell", 4, BUSY, PRESET),
    **{
        f"TraceNetwork.{key}": one(f"network.{key}", value, TRACE)
        for key, value in {
            "rtt_ms": 80,
            "up_mbps": 1,
            "down_mbps": 1,
            "jitter_ms": 5,
            "loss_pct": 20,
            "transport": "tcp",
            "radio": "lte",
            "trace": "other.csv",
        }.items()
    },
    "TraceNetwork.jitter_distribution": one("network.jitter_distribution", "gamma", TRACE, {"network.jitter_ms": 5}),
    "TraceNetwork.jitter_samples_ms": one(
        "network.jitter_samples_ms",
        [1, 2, 30],
        TRACE,
        {"network.jitter_samples_ms": [1, 2, 3]},
    ),
    "TraceNetwork.loss_burst_packets": one("network.loss_burst_packets", 20, TRACE, {"network.loss_pct": 20}),
    "TraceNetwork.buffer_bytes": one(
        "network.buffer_bytes",
        100,
        FLEET,
        TRACE,
        {"network.up_mbps": 0.3, "network.transport": "tcp", "network.devices_per_cell": 4},
    ),
    "TraceNetwork.devices_per_cell": one("network.devices_per_cell", 4, BUSY, TRACE, {"network.up_mbps": 0.1}),
    "TraceNetwork.unit": one(
        "network.unit", "kbit/s", {"network": {"trace": "plain.txt", "unit": "Mbit/s", "rtt_ms": 40, "up_mbps": 5}}
    ),
    "TraceNetwork.window_s": one("network.window_s", [1, 2], TRACE),
    "TraceNetwork.time_scale": one("network.time_scale", 0.3, TRACE),
    # fallback
    "FallbackPolicy.policy": one("fallback.policy", "retry", {"fallback": {"policy": "device", "deadline_ms": 30}}),
    "FallbackPolicy.deadline_ms": one(
        "fallback.deadline_ms", 1e4, {"fallback": {"policy": "device", "deadline_ms": 30}}
    ),
    "FallbackPolicy.attempts": one(
        "fallback.attempts", 3, {"fallback": {"policy": "retry", "deadline_ms": 1, "attempts": 2}}
    ),
    "FallbackPolicy.then": one(
        "fallback.then", "wait", {"fallback": {"policy": "retry", "deadline_ms": 1, "attempts": 2}}
    ),
    # workload
    "SequentialWorkload.arrivals": "the only value of this form",
    "SequentialWorkload.devices": "the only value of this form",
    "FleetWorkload.devices": one("workload.devices", 1, FLEET),
    "FleetWorkload.arrivals": one("workload.arrivals", {"think_s": 1}, FLEET),
    "FleetWorkload.duration_s": one("workload.duration_s", 2, FLEET),
    "FleetWorkload.warmup_s": one("workload.warmup_s", 2, FLEET),
    "FleetWorkload.slo_s": one("workload.slo_s", 0.5, FLEET),
    "FleetWorkload.fleet": one("workload.fleet", [{"share": 1.0, "hardware": "jetson-orin-nano-8"}], FLEET),
    "PoissonArrivals.poisson_per_s": one("workload.arrivals.poisson_per_s", 5, FLEET),
    **{
        f"BurstyArrivals.{key}": one(
            f"workload.arrivals.{key}",
            value,
            FLEET,
            {"workload.arrivals": {"bursty_per_s": 20, "burst_factor": 10, "burst_s": 0.5, "calm_s": 0.5}},
        )
        for key, value in {"bursty_per_s": 5, "burst_factor": 2, "burst_s": 0.1, "calm_s": 2.0}.items()
    },
    "ClosedArrivals.think_s": one("workload.arrivals.think_s", 2, FLEET, {"workload.arrivals": {"think_s": 0.5}}),
    "TraceArrivals.trace": one(
        "workload.arrivals.trace", "later.csv", FLEET, {"workload.arrivals": {"trace": "arrivals.csv"}}
    ),
    "TraceArrivals.unit": one(
        "workload.arrivals.unit", "s", FLEET, {"workload.arrivals": {"trace": "arrivals.jsonl", "unit": "ms"}}
    ),
    "TraceArrivals.window_s": one(
        "workload.arrivals.window_s", [0, 1], FLEET, {"workload.arrivals": {"trace": "arrivals.csv"}}
    ),
    "TraceArrivals.time_scale": one(
        "workload.arrivals.time_scale", 0.5, FLEET, {"workload.arrivals": {"trace": "arrivals.csv"}}
    ),
    "FleetKind.share": one(
        "workload.fleet",
        [{"share": 0.25, "hardware": "jetson-orin-nano-8"}, {"share": 0.75}],
        FLEET,
        {"workload.fleet": [{"share": 0.75, "hardware": "jetson-orin-nano-8"}, {"share": 0.25}]},
    ),
    "FleetKind.hardware": one(
        "workload.fleet",
        [{"share": 1.0, "hardware": "jetson-orin-nano-8"}],
        FLEET,
        {"workload.fleet": [{"share": 1.0}]},
    ),
    "FleetKind.network": one(
        "workload.fleet", [{"share": 1.0, "network": {"preset": "geo"}}], FLEET, {"workload.fleet": [{"share": 1.0}]}
    ),
    "FleetKind.priority": one(
        "workload.fleet",
        [{"share": 0.5, "priority": 0}, {"share": 0.5, "priority": 9}],
        BUSY,
        SLOW_CLOUD,
        {
            "workload.fleet": [{"share": 0.5, "priority": 9}, {"share": 0.5}],
            "cloud": {"queue": "priority", "max_batch": 1},
        },
    ),
    "FleetKind.slo_s": one(
        "workload.fleet",
        [{"share": 1.0, "slo_s": 0.3}],
        FLEET,
        {"workload.slo_s": 5.0, "workload.fleet": [{"share": 1.0}]},
    ),
}


def put(scenario: dict[str, Any], change: Change) -> None:
    """Dotted places of a scenario, in place; a whole number is an index of a list."""
    for path, value in change.items():
        *way, last = path.split(".")
        node: Any = scenario
        for key in way:
            node = node[int(key)] if key.isdigit() else node.setdefault(key, {})
        node[int(last) if last.isdigit() else last] = copy.deepcopy(value)


def schema_keys() -> list[str]:
    schema = json_schema()
    sections = {"Scenario": schema, **schema["$defs"]}
    return [f"{name}.{key}" for name, section in sections.items() for key in section.get("properties", {})]


Results = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_pair_folder: Path) -> Results:
    """The digest of a scenario's requests and summary; equal scenarios are run once."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "captions.txt").write_text(ONE_CAPTION + "\n")
    (folder / "others.txt").write_text(ANOTHER + "\n")
    (folder / "link.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,8,2,40\n1,4,1,60\n2,8,2,40\n")
    (folder / "other.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,1,1,90\n1,2,2,90\n2,1,1,90\n")
    (folder / "arrivals.csv").write_text("requested_s\n0.5\n0.7\n2.5\n")
    (folder / "later.csv").write_text("requested_s\n1.5\n1.7\n3.5\n")
    (folder / "plain.txt").write_text("0 8\n1 4\n2 8\n")
    (folder / "arrivals.jsonl").write_text(
        "".join(f'{{"timestamp": {t}, "input_length": 1, "output_length": 1}}\n' for t in (0, 1, 3))
    )
    for name, seconds in (("profile.json", 1e-3), ("slow.json", 5e-3)):
        table = {"rows": [1, 64], "new_tokens": [1, 32], "kv_tokens": [0, 64], "seconds": [[[seconds] * 2] * 2] * 2}
        Profile.model_validate(
            {
                "model": "tiny",
                "hardware": "test",
                "threads": 1,
                "torch": "2",
                "passes": {"device": table, "cloud": table},
                "compute_seconds": dict.fromkeys(
                    ("caption_encoder", "phi", "image_decoder", "interval_samples"), seconds
                ),
            }
        ).write(folder / name)
    pair = load_pair(tiny_pair_folder)
    source = CachedSource(RecordingCache(folder / "cache"), Recorder(pair, 8).record)
    known: dict[str, str] = {}

    def digest(data: dict[str, Any]) -> str:
        text = yaml.safe_dump({"pair": str(tiny_pair_folder), **data}, sort_keys=True)
        if text not in known:
            path = folder / "scenario.yaml"
            path.write_text(text)
            out = folder / "out"
            run_scenario(load_scenario(path), out, source, captions, lambda: Profile.read(folder / "profile.json"))
            both = b"".join((out / name).read_bytes() for name in ("requests.parquet", "summary.csv"))
            known[text] = hashlib.sha256(both).hexdigest()
        return known[text]

    return digest


def test_every_key_of_the_schema_has_a_row() -> None:
    assert sorted(SETTINGS) == sorted(schema_keys())


@pytest.mark.parametrize("key", [key for key, row in SETTINGS.items() if isinstance(row, tuple)])
def test_a_changed_setting_changes_the_results(key: str, results: Results) -> None:
    row = SETTINGS[key]
    assert isinstance(row, tuple)
    before = copy.deepcopy(BASE)
    put(before, row[0])
    after = copy.deepcopy(before)
    put(after, row[1])
    assert results(after) != results(before), f"{key} changed nothing: {row[1]}"


def test_another_pair_is_another_result(results: Results, tmp_path: Path) -> None:
    from models.pair import make_tiny_pair

    make_tiny_pair(tmp_path / "other", seed=1)
    with pytest.raises(
        CiarSimError
    ):  # the recorder at hand is of the first pair: recordings of another are asked of it by their hash
        results({**BASE, "pair": str(tmp_path / "none")})


def test_a_sweep_makes_cases(results: Results) -> None:
    assert results({**BASE, "sweep": {"network.rtt_ms": [40, 80]}}) != results(BASE)

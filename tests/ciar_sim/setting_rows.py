"""A row per key of the scenario schema, `Section.key`: settings to add to the base scenario, and a change that must change its results.

A text in place of a row says why the key has none. Longer than other files, because it is one list.
"""

import copy
from typing import Any

from models.scenes import captions
from simulator.experiment.schema.cloud import Serving
from simulator.protocol.methods import METHODS

Change = dict[str, Any]

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
LEVEL = {"gaps_per_s": 5, "gaps_ms": [20, 30, 40, 50, 60, 100], "rates": [1, 1, 1, 1, 1, 2]}
WORSE = {"gaps_per_s": 9, "gaps_ms": [50, 60, 70, 80, 90, 200], "rates": [1, 2, 3, 4, 5, 9]}
GAPS: Change = {
    "network.rate": {"slow_s": 5, "slow_share": 0.5, "down": [LEVEL, WORSE], "up": [LEVEL, WORSE]},
    "network.up_mbps": 1,
}
TRACE: Change = {"network": {"trace": "link.csv"}}
TIMERS = {"inactivity_s": 0.02, "drx_after_ms": 1, "drx_cycle_ms": 320}
TWO_OPERATORS: Change = {**FLEET, "network.operators": [TIMERS, {"inactivity_s": 1}]}
LOSSY: Change = {"network.transport": "grpc", "network.loss_pct": 20}
QUEUED: Change = {"network.buffer_ms": 50, "network.cross_traffic": {"up": {"busy_s": 0.2, "quiet_s": 0.4}}}
# Passes of the tiny pair are so short that nothing queues. On this hardware they take long enough for the cloud to be busy.
SLOW_CLOUD: Change = {"compute.cloud.hardware": "jetson-orin-nano-8"}
OWN_HARDWARE: Change = {
    "compute.device.hardware": {"fp16_tflops": 3, "bandwidth_gb_s": 60, "memory_gb": 8, "power_w": 6},
    "compute.device.runtime": "cuda-graphs",
}
OWN_MODEL: Change = {
    "compute": {
        side: {
            "model": {"layers": layers, "width": 256, "image_tokens": 4},
            "hardware": hardware,
            "runtime": "cuda-graphs",
        }
        for side, layers, hardware in (("device", 2, "snapdragon-8-gen-3"), ("cloud", 4, "a100"))
    }
}
IN_TIERS: Change = {
    "cloud": {"tier": "here", "tiers": {"here": {"distance_km": 20, "runtime": "cuda-graphs"}, "there": {"rtt_ms": 30}}}
}
BUSY: Change = {**FLEET, "workload.arrivals.poisson_per_s": 60, "workload.duration_s": 1}


# Settings without effect on images of four tokens: their rows use sixteen.
LONGER = {
    *(f"{kind}.calibration" for kind in ("PromptList", "PromptFile")),
    *(
        f"{method}Entry.{key}"
        for method in ("Ciar", "Discrete", "EntropyLens", "SoftmaxCorr")
        for key in ("beta", "decay")
    ),
    *("CiarEntry.reach", "Eagle2Entry.top_k", "VvsEntry.interval", "VvsEntry.similarity", "FleetKind.slo_s"),
}


def put(scenario: dict[str, Any], change: Change) -> None:
    """Set values of a scenario by dotted path, in place. A whole number in a path is the index of a list."""
    for path, value in change.items():
        *way, last = path.split(".")
        node: Any = scenario
        for key in way:
            node = node[int(key)] if key.isdigit() else node.setdefault(key, {})
        node[int(last) if last.isdigit() else last] = copy.deepcopy(value)


def method(name: str, **settings: Any) -> Change:
    """Return the change that makes this the scenario's only method."""
    return {"methods": [{"name": name, **settings}]}


def one(key: str, value: Any, *before: Change) -> tuple[Change, Change]:
    """Return a row: the settings before the change, and the change."""
    merged: Change = {}
    for change in before:
        merged |= change
    return merged, {key: value}


def entry(name: str, key: str, value: Any, **settings: Any) -> tuple[Change, Change]:
    """Return a row for a method's setting; `settings` are the method's settings before the change."""
    return method(name, **settings), {f"methods.0.{key}": value}


def section(name: str) -> str:
    """Return the name of a method's section of the schema."""
    return "".join(word.capitalize() for word in name.split("-")) + "Entry"


def threshold_rows(name: str) -> dict[str, tuple[Change, Change]]:
    """Return the rows of the settings that all methods with a threshold share."""
    of, const = section(name), {"threshold_mode": "const", "threshold": 0.5}
    return {
        f"{of}.prefix_rate": entry(name, "prefix_rate", 0.4, **const),
        f"{of}.threshold": entry(name, "threshold", 1e9, **{**const, "threshold": 0.0}),
        f"{of}.threshold_mode": entry(name, "threshold_mode", "budget", **{**const, "threshold": 0.0}),
        f"{of}.beta": entry(name, "beta", 0.9, threshold_mode="ema", threshold=TIGHT[name], beta=0.0),
        f"{of}.decay": entry(name, "decay", 0.0, threshold_mode="ema", threshold=TIGHT[name], beta=1.0, decay=0.99),
        f"{of}.budget": entry(name, "budget", 0.9, threshold_mode="budget", threshold=0.0, budget=0.1),
        f"{of}.local": entry(name, "local", "sampled", threshold_mode="const", threshold=TIGHT[name]),
    }


RATED = method("ciar", threshold={"call_pct": 40, "prompts": 1}, threshold_mode="const")

# Thresholds within the range of the tiny pair's scores.
TIGHT = {"ciar": 0.43, "discrete": 0.51, "entropy-lens": 0.72, "softmax-corr": 0.78}
TREE = {"total_tokens": 6, "depth": 2, "top_k": 3}
# Settings that a method needs on the tiny pair, where its defaults do not fit.
FIT: dict[str, Change] = {
    "ciar": {"threshold": 0.35},
    "discrete": {"threshold": 0.5},
    "entropy-lens": {"threshold": 0.5},
    "softmax-corr": {"threshold": 0.5},
    "random": {"upload_rate": 0.3},
    "eagle2": TREE,
    "lantern": {"k": 4, **TREE},
    "lantern-static": {"k": 4},
    "vvs": {"k": 4, **TREE},
}

SETTINGS: dict[str, tuple[Change, Change] | str] = {
    # the scenario itself
    "Scenario.name": "names the run folder and the provenance; no column holds it",
    "Scenario.pair": "another pair: see test_another_pair_is_another_result",
    **dict.fromkeys(
        ("Sweep.zip", "Sweep.random", "Sweep.tune", "Range.min", "Range.max", "Range.steps", "Range.scale"),
        "makes the cases: see tests/simulator/experiment/test_axes.py",
    ),
    **dict.fromkeys(("Tune.trials", "Tune.quality"), "see tests/simulator/experiment/test_workers.py"),
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
    "ScenePrompts.skip": one("prompts.skip", 1),
    "PromptList.list": one("prompts.list", [ANOTHER], {"prompts": {"list": [ONE_CAPTION]}}),
    "PromptFile.file": one("prompts.file", "others.txt", {"prompts": {"file": "captions.txt"}}),
    "PromptList.calibration": one("prompts.calibration", captions(9, 2), {"prompts": {"list": [ONE_CAPTION]}, **RATED}),
    "PromptFile.calibration": one("prompts.calibration", 1, {"prompts": {"file": "both.txt", "count": 1}, **RATED}),
    "PromptFile.count": one("prompts.count", 1, {"prompts": {"file": "both.txt"}}),
    "PromptFile.skip": one("prompts.skip", 1, {"prompts": {"file": "both.txt"}}),
    # a published model and its files
    **dict.fromkeys(
        (f"PairSpec.{key}" for key in ("cloud", "weights", "device", "tokenizer", "text", "image_size", "heads")),
        "another pair: see tests/models/test_llamagen.py",
    ),
    # decoding
    "Decoding.guidance": one("decoding.guidance", 1.5),
    "Decoding.temperature": one("decoding.temperature", 3.0),
    "Decoding.top_k": one("decoding.top_k", 2),
    "Decoding.top_p": one("decoding.top_p", 0.3),
    "Decoding.cloud": one("decoding.cloud", "greedy", method("base")),
    "Decoding.device": one("decoding.device", "sampled", method("device-only")),
    "TopP.top_p": one("decoding.device", {"top_p": 0.2}, method("device-only"), {"decoding.device": {"top_p": 1.0}}),
    "Decoding.text_encoder": one("decoding.text_encoder", "device"),
    # methods
    **{f"{section(name)}.name": "selects the section; the row Scenario.methods changes it" for name in METHODS},
    **{f"{section(name)}.label": entry(name, "label", "mine", **FIT.get(name, {})) for name in METHODS},
    **{f"{section(name)}.tier": "a key of every method: see BaseEntry.tier" for name in METHODS},
    "BaseEntry.tier": one("methods.0.tier", "there", IN_TIERS, method("base", tier="here")),
    "CiarEntry.tier": one("methods.0.tier", "there", IN_TIERS, method("ciar", threshold=0.35, tier="here")),
    "BaseEntry.deliver": entry("base", "deliver", "image"),
    "CodeEntry.prefix_rate": entry("code", "prefix_rate", 0.7),
    "CodeEntry.local": entry("code", "local", "sampled"),
    "DeviceOnlyEntry.local": entry("device-only", "local", "sampled"),
    "RandomEntry.local": entry("random", "local", "sampled"),
    "RandomEntry.prefix_rate": entry("random", "prefix_rate", 0.7, upload_rate=0.3),
    "RandomEntry.upload_rate": entry("random", "upload_rate", 0.9),
    "RandomEntry.threshold": entry("random", "threshold", {"call_pct": 90}),
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
    "CiarEntry.bounds": entry("ciar", "bounds", "inter-dro", threshold=0.4),
    "CiarEntry.reach": one(  # it has an effect where one token has most of the probability
        "methods.0.reach",
        True,
        {"methods": [{"name": "ciar", "threshold": 0.5, "score": "omega"}], "decoding.guidance": 40.0},
    ),
    "CiarEntry.features": entry("ciar", "features", "int8", threshold=0.4),
    "CiarEntry.upload": entry("ciar", "upload", "eager", threshold=0.35),
    "CiarEntry.variant": entry("ciar", "variant", "verify", threshold=0.35),
    "CiarEntry.revise": entry("ciar", "revise", 0.5, threshold=0.4),
    "DiscreteEntry.k": entry("discrete", "k", 300, threshold=0.5),
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
    "LanternEntry.removes": entry("lantern", "removes", "draft", k=20, delta=0.2, **TREE),
    "VvsEntry.drafter": entry("vvs", "drafter", "cloud", k=4, **TREE),
    "VvsEntry.total_tokens": entry("vvs", "total_tokens", 4, k=4, **TREE),
    "VvsEntry.depth": entry("vvs", "depth", 1, k=4, **TREE),
    "VvsEntry.top_k": entry("vvs", "top_k", 5, k=4, **TREE),
    "VvsEntry.k": entry("vvs", "k", 0, k=20, delta=1.0, **TREE),
    "VvsEntry.delta": entry("vvs", "delta", 1.0, k=20, delta=0.0, **TREE),
    "VvsEntry.lambda_": entry("vvs", "lambda_", 100.0, k=20, lambda_=1.0, **TREE),
    "VvsEntry.removes": entry("vvs", "removes", "draft", k=20, delta=0.2, **TREE),
    "VvsEntry.interval": entry("vvs", "interval", 2, k=4, **TREE),
    "VvsEntry.similarity": entry("vvs", "similarity", -1.0, k=4, similarity=1.0, **TREE),
    "LanternStaticEntry.drafter": entry("lantern-static", "drafter", "cloud", k=4),
    "LanternStaticEntry.k": entry("lantern-static", "k", 0, k=20, delta=1.0),
    "LanternStaticEntry.delta": entry("lantern-static", "delta", 1.0, k=20, delta=0.0),
    "LanternStaticEntry.lambda_": entry("lantern-static", "lambda_", 100.0, k=20, lambda_=1.0),
    "LanternStaticEntry.removes": entry("lantern-static", "removes", "draft", k=20, lambda_=3.0),
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
    **{
        f"OwnHardware.{key}": one(f"compute.device.hardware.{key}", value, OWN_HARDWARE)
        for key, value in {
            "class": "datacentre",
            "fp16_tflops": 0.01,
            "bandwidth_gb_s": 5,
            "power_w": 50,
            "bandwidth_efficiency": 0.01,
            "compute_efficiency": 0.001,
            "kernel_overhead_us": 70,
        }.items()
    },
    "OwnHardware.by_role": one("compute.device.hardware.by_role", {"device": {"bandwidth_gb_s": 5}}, OWN_HARDWARE),
    **{
        f"ReachedFigures.{key}": one("compute.device.hardware.by_role", {"device": {key: value}}, OWN_HARDWARE)
        for key, value in {"fp16_tflops": 0.01, "bandwidth_gb_s": 6, "kernel_overhead_us": 70}.items()
    },
    "OwnHardware.title": "names the hardware in tables and in provenance.json; no column holds it",
    "OwnHardware.memory_gb": "tests/simulator/pricing/test_own.py::test_what_does_not_fit_fails_alone_and_says_so",
    **{
        f"OwnModel.{key}": one(f"compute.device.model.{key}", value, OWN_MODEL)
        for key, value in {"layers": 8, "width": 512, "ffn": 4096, "vocabulary": 30000}.items()
    },
    **{
        f"OwnModel.{key}": one(f"compute.cloud.model.{key}", value, OWN_MODEL)
        for key, value in {"caption_slots": 400, "caption_width": 3000}.items()
    },
    "OwnModel.image_pixels": one("compute.cloud.model.image_pixels", 10**6, OWN_MODEL, method("base", deliver="image")),
    "OwnModel.image_tokens": "must equal the pair's; tests/simulator/pricing/test_own.py::test_other_numbers_of_tokens_are_refused",
    "OwnModel.title": "names the model in tables and in provenance.json; no column holds it",
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
    "Cloud.tiers": one("cloud.tiers.here.hardware", "l4", IN_TIERS),
    "Cloud.tier": one("cloud.tier", "there", IN_TIERS),
    "Tier.distance_km": one("cloud.tiers.here.distance_km", 3000, IN_TIERS),
    "Tier.rtt_ms": one("cloud.tiers.there.rtt_ms", 90, IN_TIERS, {"cloud.tier": "there"}),
    "Tier.hardware": one("cloud.tiers.here.hardware", "jetson-orin-nano-8", IN_TIERS),
    "Tier.runtime": one("cloud.tiers.here.runtime", "eager", IN_TIERS),
    **dict.fromkeys(
        [f"Tier.{key}" for key in Serving.model_fields],
        "as of a cloud: tests/ciar_sim/test_no_dead_setting.py::test_a_tier_is_a_cloud_at_a_place",
    ),
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
    "ExplicitNetwork.rate": one("network.rate", "umts-gaps"),
    "PresetNetwork.rate": one("network.rate", "constant", PRESET),
    "Gaps.slow_s": one("network.rate.slow_s", 50, GAPS),
    "Gaps.slow_share": one("network.rate.slow_share", 1.0, GAPS),
    "Gaps.down": one("network.rate.down", [WORSE, WORSE], GAPS),
    "Gaps.up": one("network.rate.up", [WORSE, WORSE], GAPS),
    **{
        f"GapLevel.{key}": one("network.rate.up", [{**LEVEL, key: value}, WORSE], GAPS)
        for key, value in {"gaps_per_s": 40, "gaps_ms": [300] * 6, "rates": [1, 5, 5, 5, 5, 50]}.items()
    },
    "ExplicitNetwork.outage_ms": one(
        "network.outage_ms", 400, {"network.outage_every_s": 0.5, "network.outage_ms": 100}
    ),
    **{
        f"{section}.{key}": row
        for section, form in (("ExplicitNetwork", {}), ("PresetNetwork", PRESET), ("TraceNetwork", TRACE))
        for key, row in {
            "cross_traffic": one(
                "network.cross_traffic",
                {"down": "greedy"},
                form,
                {"network.cross_traffic": {"up": "greedy"}, "network.buffer_ms": 50},
            ),
            "aqm": one(
                "network.aqm", "codel", form, {"network.cross_traffic": {"up": "greedy"}, "network.buffer_ms": 50}
            ),
            "wifi": one("network.wifi", {"stations": 2}, form, {"network.wifi": {"stations": 5}}),
            "handshake": one("network.handshake", "resumed", form, {"network.transport": "grpc"}),
            "congestion_control": one("network.congestion_control", "cubic", form, LOSSY),
            "flow_window_bytes": one("network.flow_window_bytes", 1500, form, {"network.transport": "grpc"}),
            "idle_timeout_s": one("network.idle_timeout_s", 0.001, form, {"network.transport": "grpc"}, FLEET),
            "jitter_on": one("network.jitter_on", "top", form, {"network.jitter_ms": 5}),
            "sharing": one(
                "network.sharing",
                "proportional-fair",
                BUSY,
                form,
                {"network.devices_per_cell": 4, "network.up_mbps": 0.1},
            ),
            "fading_snr_db": one(
                "network.fading_snr_db",
                0,
                BUSY,
                form,
                {"network.devices_per_cell": 4, "network.up_mbps": 0.1, "network.sharing": "proportional-fair"},
            ),
            "handover": one("network.handover", {"every_s": 0.2, "gap_ms": 100}, form),
            "uplink": one("network.uplink", {"slot_ms": 10}, form),
            "operators": one("network.operators", [{"inactivity_s": 0.01}], form, {"network.radio": "lte"}),
            "buffer_ms": one(
                "network.buffer_ms", 90, form, {"network.cross_traffic": {"up": "greedy"}, "network.buffer_ms": 50}
            ),
        }.items()
    },
    "PresetNetwork.buffer_bytes": one(
        "network.buffer_bytes", 9000, PRESET, {"network.cross_traffic": {"up": "greedy"}, "network.buffer_bytes": 5000}
    ),
    "WifiHop.stations": one("network.wifi.stations", 7, {"network.wifi": {"stations": 2}}),
    "WifiHop.tail_pct": one("network.wifi.tail_pct", 20, {"network.wifi": {"stations": 2}}),
    "MultipathNetwork.paths": one(
        "network.paths",
        [{"preset": "geo"}, {"preset": "lte"}],
        {"network": {"paths": [{"preset": "geo"}, {"preset": "3g"}]}},
    ),
    "Handover.speed_kmh": one("network.handover.speed_kmh", 900, PRESET, {"network.handover": {"speed_kmh": 400}}),
    "Handover.every_s": one("network.handover.every_s", 0.5, {"network.handover": {"every_s": 0.2, "gap_ms": 100}}),
    "Handover.gap_ms": one("network.handover.gap_ms", 50, {"network.handover": {"every_s": 0.2, "gap_ms": 100}}),
    "Uplink.sr_period_ms": one("network.uplink.sr_period_ms", 40, PRESET, {"network.uplink": {"sr_period_ms": 10}}),
    "Uplink.grant_ms": one("network.uplink.grant_ms", 4, PRESET, {"network.uplink": {"grant_ms": 12}}),
    "Uplink.slot_ms": one("network.uplink.slot_ms", 10, PRESET, {"network.uplink": {"slot_ms": 5}}),
    "Uplink.configured_ms": one("network.uplink.configured_ms", 20, {"network.uplink": {"configured_ms": 5}}),
    **{
        f"OperatorTimers.{key}": one(
            "network.operators", [{**TIMERS, key: value}, {"inactivity_s": 1}], PRESET, TWO_OPERATORS
        )
        for key, value in {"inactivity_s": 0.01, "drx_after_ms": 5, "drx_cycle_ms": 2000}.items()
    },
    "OperatorTimers.share": one(
        "network.operators",
        [{**TIMERS, "share": 0.01}, {"inactivity_s": 10, "share": 0.99}],
        PRESET,
        {"network.operators": [{**TIMERS, "share": 0.99}, {"inactivity_s": 10, "share": 0.01}]},
    ),
    "CrossTraffic.up": one("network.cross_traffic.up", "greedy", QUEUED),
    "CrossTraffic.down": one("network.cross_traffic.down", "greedy", QUEUED),
    "PausingFlow.busy_s": one("network.cross_traffic.up.busy_s", 2.0, QUEUED),
    "PausingFlow.quiet_s": one("network.cross_traffic.up.quiet_s", 0.1, QUEUED),
    "PresetNetwork.rtt_ms": one("network.rtt_ms", 200, PRESET),
    "PresetNetwork.up_mbps": one("network.up_mbps", 0.1, PRESET),
    "PresetNetwork.down_mbps": one("network.down_mbps", 0.1, PRESET),
    "PresetNetwork.jitter_ms": one("network.jitter_ms", 29, PRESET),
    "PresetNetwork.jitter_distribution": one("network.jitter_distribution", "pareto", PRESET),
    "PresetNetwork.loss_pct": one("network.loss_pct", 40, PRESET),
    "PresetNetwork.loss_burst_packets": one(
        "network.loss_burst_packets", 1, PRESET, {"network": {"preset": "lte", "loss_pct": 30}}
    ),
    "PresetNetwork.radio": one("network.radio", "none", PRESET),
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
    "TraceNetwork.resample_s": one("network.resample_s", 0.5, TRACE),
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
    "FleetKind.tier": one(
        "workload.fleet", [{"share": 1.0, "tier": "there"}], FLEET, IN_TIERS, {"workload.fleet": [{"share": 1.0}]}
    ),
    "FleetKind.slo_s": one(
        "workload.fleet",
        [{"share": 1.0, "slo_s": 0.3}],
        FLEET,
        {"workload.slo_s": 5.0, "workload.fleet": [{"share": 1.0}]},
    ),
}

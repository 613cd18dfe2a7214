"""Settings and axes on the command line, and the cases of a sweep."""

import math
from pathlib import Path
from typing import Any

import pytest

from reports.words import KEYS_OF_SETTINGS
from simulator.core.errors import ScenarioError
from simulator.experiment.axes import FORMS
from simulator.experiment.images import CHANGE_IMAGES
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.experiment.sweep import expand
from simulator.protocol.methods import CiarSettings, TopP
from tests.simulator.experiment.scenario_files import HEAD, QUICKSTART, load, refusal

# --- the command line


def test_sets_and_axes(tmp_path: Path) -> None:
    options = {
        "sets": (
            "seed=7",
            "methods.ciar.score=omega",
            "methods.base.deliver=image",
            "network={preset: lte}",
            "prompts.seed=3",
        )
    }
    s = load(tmp_path, HEAD, axes=("methods.ciar.threshold=0.1,.inf", "network.preset=lte,5g"), **options)
    assert s.seed == 7
    assert s.methods[1].settings == CiarSettings(threshold=0.3, score="omega")
    assert s.methods[0].model_dump() == {"name": "base", "label": "base", "tier": None, "deliver": "image"}
    assert s.model_dump()["prompts"] == {"source": "scenes", "count": 16, "seed": 3, "skip": 0}
    assert s.sweep.axes == {"methods.ciar.threshold": (0.1, math.inf), "network.preset": ("lte", "5g-sub6")}


def test_an_axis_takes_the_place_of_one_in_the_file(tmp_path: Path) -> None:
    s = load(tmp_path, QUICKSTART, axes=("network.rtt_ms=1,2,3",))
    assert s.sweep.axes["network.rtt_ms"] == (1.0, 2.0, 3.0)
    assert list(s.sweep.axes) == ["methods.ciar.threshold", "network.rtt_ms"]


def test_a_derived_label_can_be_addressed(tmp_path: Path) -> None:
    text = "name: t\nmethods: [{name: ciar, threshold: 0.3}, {name: ciar, threshold: 0.5}]\n"
    s = load(tmp_path, text, axes=("methods.ciar threshold=0.3.prefix_rate=0.1,0.2",))
    assert s.sweep.axes == {"methods.ciar threshold=0.3.prefix_rate": (0.1, 0.2)}
    assert [case.method.settings.model_dump()["prefix_rate"] for case in expand(s)] == [0.1, 0.2, 0.06]


@pytest.mark.parametrize(
    "entry", ["ciar", "{name: ciar, threshold: {call_pct: 50, prompts: 4}}", "{name: ciar, threshold: {prompts: 4}}"]
)
def test_a_key_of_a_setting_that_is_a_mapping_is_swept_and_set(entry: str, tmp_path: Path) -> None:
    """The default threshold is a mapping: 30 % of calls."""
    text = f"name: t\nmethods: [base, {entry}]\n"
    path = "methods.ciar.threshold.call_pct"
    s = load(tmp_path, text, axes=(f"{path}=10,20", "methods.ciar.prefix_rate=0,0.1"))
    cases = expand(s)[1:]
    targets = [case.method.target for case in cases]
    assert [None if one is None else one.call_pct for one in targets] == [10.0, 10.0, 20.0, 20.0]
    assert {None if one is None else one.prompts for one in targets} == {4 if "prompts" in entry else None}
    assert cases[0].named(("methods.",)) == "ciar call_pct=10.0 prefix_rate=0.0"
    assert cases[0].swept == {path: 10.0, "methods.ciar.prefix_rate": 0.0}
    once = load(tmp_path, text, sets=(f"{path}=20",)).methods[1].target
    assert once is not None
    assert once.call_pct == 20.0
    # The run folder's copy is the same scenario.
    again = load(tmp_path, f"{text}sweep: {{{path}: {{min: 10, max: 20, steps: 2}}}}\n")
    assert [case.method.target for case in expand(again)[1:]] == targets[::2]


def test_a_word_in_place_of_a_mapping_can_be_changed_by_its_keys(tmp_path: Path) -> None:
    text = "name: t\nmethods: [base]\ncompute: {cloud: h100}\nnetwork: lte\n"
    s = load(tmp_path, text, sets=("compute.cloud.runtime=cuda-graphs", "network.rtt_ms=30"))
    assert (s.compute.cloud.hardware, s.compute.cloud.runtime) == ("h100", "cuda-graphs")
    assert s.network.model_dump()["preset"] == "lte"
    assert s.network.model_dump()["rtt_ms"] == 30
    for path, whole in (("network", "network.preset"), ("compute.cloud", "compute.cloud.hardware")):
        assert f"did you mean {whole}? it holds" in refusal(tmp_path, text, axes=(f"{path}=a,b",))


def test_a_setting_and_a_key_of_it_are_not_varied_together(tmp_path: Path) -> None:
    text = "name: t\nmethods: [base, {name: ciar, label: ciar}]\n"
    key, whole = "methods.ciar.threshold.call_pct", "methods.ciar.threshold"
    for first, second in ((f"{key}=10,20", f"{whole}=0.5"), (f"{whole}=0.5", f"{key}=10,20")):
        names = [axis.partition("=")[0] for axis in (second, first)]
        said = f"--axis {second}: sweep.{names[0]} and sweep.{names[1]} concern the same setting; sweep one of them"
        assert refusal(tmp_path, text, axes=(first, second)) == said
    swept = f"{text}sweep: {{{whole}: [0.3, 0.5]}}\n"
    said = f"--set {key}=20: {key} does nothing: {whole} is swept in t.yaml"
    assert refusal(tmp_path, swept, sets=(f"{key}=20",)) == said


def test_options_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    """The last --set won, and an --axis over any --set, without a word."""
    text = "name: t\nmethods: [base]\n"
    assert refusal(tmp_path, text, sets=("seed=1", "seed = 2")) == "--set seed = 2: seed is given twice"
    said = "--set seed=1: seed does nothing: it is swept by --axis seed=..."
    assert refusal(tmp_path, text, axes=("seed=2,3",), sets=("seed=1",)) == said


def test_reports_know_the_keys_of_settings() -> None:
    assert {key: setting for setting, form in FORMS.items() for key in form.model_fields} == KEYS_OF_SETTINGS


def test_a_key_of_a_method_with_a_dotted_label_is_swept(tmp_path: Path) -> None:
    text = "name: t\nmethods: [{name: ciar, label: my ciar v1.2, local: {top_p: 0.5}}]\n"
    s = load(tmp_path, text, axes=("methods.my ciar v1.2.local.top_p=0.5,0.9",))
    assert [case.method.local for case in expand(s)] == [TopP(top_p=0.5), TopP(top_p=0.9)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            "methods.ciar.threshold.call_pct=3",
            "threshold of ciar is 0.5, which has no keys; give the method threshold: {call_pct: ...}",
        ),
        ("methods.random.threshold.cal_pct=3", "threshold of random has no cal_pct; did you mean call_pct?"),
        ("methods.random.threshold.=3", "no method random.threshold"),
        ("methods.random.thresh.call_pct=3", "random has no setting thresh; did you mean threshold?"),
        (
            "methods.code.local.top_p=0.5",
            "local of code is nothing, which has no keys; give the method local: {top_p: ...}",
        ),
        ("methods.code.prefix_rate.top_p=0.5", "prefix_rate of code is 0.3, which has no keys"),
    ],
)
def test_a_key_that_a_setting_lacks_is_refused(axis: str, message: str, tmp_path: Path) -> None:
    text = "name: t\nmethods: [{name: ciar, threshold: 0.5}, {name: random, label: random}, {name: code, prefix_rate: 0.3, label: code}]\n"
    text = text.replace("threshold: 0.5}", "threshold: 0.5, label: ciar}")
    path = axis.partition("=")[0]
    assert refusal(tmp_path, text, axes=(axis,)).startswith(f"--axis {axis}: sweep.{path} names nothing: {message}")
    assert refusal(tmp_path, text, sets=(axis,)).startswith(f"--set {axis}: {path} names nothing: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ("seed=x",)}, "--set seed=x: seed must be a whole number, got 'x' (text)"),
        ({"sets": ("seed",)}, "--set seed: must be path=value"),
        (
            {"sets": ("methods.ciar.threshold=-1",)},
            "--set methods.ciar.threshold=-1: methods[1].threshold must be >= 0, got -1",
        ),
        (
            {"sets": ("methods.cia.threshold=1",)},
            "--set methods.cia.threshold=1: methods.cia.threshold names nothing: no method cia; did you mean ciar? "
            "allowed: base, ciar",
        ),
        ({"sets": ("name.x=1",)}, "--set name.x=1: name.x names nothing: name is 't' (text)"),
        ({"sets": ("network.rtt_ms=-3",)}, "--set network.rtt_ms=-3: network.rtt_ms must be >= 0, got -3"),
        (
            {"sets": ("cloud.max_bach=3",)},
            "--set cloud.max_bach=3: cloud.max_bach is not a known key; did you mean max_batch? allowed: replicas, "
            "max_batch, queue, "
            "routing, max_sessions, max_waiting, kv_memory_gb, kv_full, crashes, autoscale, background, price_usd_per_gpu_hour, "
            "tiers, tier",
        ),
        ({"axes": ("seed=1,1",)}, "--axis seed=1,1: sweep.seed holds 1 twice"),
        ({"axes": ("seed=",)}, "--axis seed=: must be path=value,value or path=min:max:steps[:log]"),
        ({"axes": ("seed=1", "seed=2")}, "--axis seed=2: seed is given twice"),
        ({"axes": ("seed=!x 1",)}, "--axis seed=!x 1: tag !x is not allowed; write plain values without tags"),
        (
            {"axes": ("foo=1",)},
            "--axis foo=1: sweep.foo names nothing: a scenario has no foo; allowed: prompts, decoding, methods, "
            "placement, compute, cloud, network, "
            "fallback, workload, seed",
        ),
    ],
)
def test_options_are_named_in_their_refusals(tmp_path: Path, options: dict[str, tuple[str, ...]], message: str) -> None:
    assert refusal(tmp_path, HEAD, **options) == message


def test_what_an_option_lacks_is_not_sought_in_the_file_that_it_replaces(tmp_path: Path) -> None:
    text = HEAD + "network:\n  rtt_ms: 5\n  up_mbps: 5\n  down_mbps: 5\n"
    assert refusal(tmp_path, text, sets=("network={up_mbps: 5, down_mbps: 5}",)) == (
        "--set network={up_mbps: 5, down_mbps: 5}: network.rtt_ms is missing"
    )


def test_what_is_swept_in_the_file_cannot_be_set(tmp_path: Path) -> None:
    message = refusal(tmp_path, QUICKSTART, sets=("network.rtt_ms=1",))
    assert (
        message
        == "--set network.rtt_ms=1: network.rtt_ms is swept in t.yaml; give its values with --axis network.rtt_ms=... of ciar-sim sweep"
    )
    message = refusal(tmp_path, HEAD, sets=("cloud.replicas=3", "sweep={cloud.replicas: [1, 2]}"))
    assert message.startswith("--set cloud.replicas=3: cloud.replicas is swept in --set sweep; give its values")
    for sets in (("sweep={}", "network.rtt_ms=1"), ("network.rtt_ms=1", "sweep={cloud.replicas: [1, 2]}")):
        assert {
            case.scenario.network.model_dump()["rtt_ms"] for case in expand(load(tmp_path, QUICKSTART, sets=sets))
        } == {1}


# --- cases


def test_axes_multiply_the_methods_they_concern(tmp_path: Path) -> None:
    cases = expand(load(tmp_path, QUICKSTART))
    assert [case.index for case in cases] == list(range(12))
    assert [case.method.label for case in cases] == ["base"] * 2 + ["device-only"] * 2 + ["code"] * 2 + ["ciar"] * 6
    assert cases[1].swept == {"network.rtt_ms": 20.0}
    assert [tuple(case.swept.values()) for case in cases[6:]] == [
        (0.1, 5.0),
        (0.1, 20.0),
        (0.2, 5.0),
        (0.2, 20.0),
        (math.inf, 5.0),
        (math.inf, 20.0),
    ]
    last = cases[-1]
    assert last.method.settings == CiarSettings(threshold=math.inf)
    assert last.scenario.sweep.axes == {}
    assert last.scenario.methods == (last.method,)
    assert cases[6].scenario.network.figures().rtt_s == 0.005
    assert len({resolved_yaml(case.scenario) for case in cases}) == 12


def test_threshold_modes_can_be_swept_from_any_of_them(tmp_path: Path) -> None:
    modes = ["const", "ema", "budget", "even", "running"]
    for mode in modes:
        text = f"name: t\nmethods: [{{name: ciar, threshold_mode: {mode}}}]\n"
        text += f"sweep: {{methods.ciar.threshold_mode: [{', '.join(modes)}]}}\n"
        cases = expand(load(tmp_path, text))
        assert [case.swept["methods.ciar.threshold_mode"] for case in cases] == modes


def test_presets_and_deep_paths_can_be_swept(tmp_path: Path) -> None:
    sweep = "sweep: {network.preset: [lte, geo], workload.arrivals.poisson_per_s: [1, 2.5], compute.cloud.hardware: [a100, l4]}\n"
    cases = expand(
        load(tmp_path, "name: t\nmethods: [base]\nworkload: {arrivals: {poisson_per_s: 1}, duration_s: 9}\n" + sweep)
    )
    assert len(cases) == 8
    assert cases[-1].swept == {
        "network.preset": "geo",
        "workload.arrivals.poisson_per_s": 2.5,
        "compute.cloud.hardware": "l4",
    }
    assert cases[-1].scenario.compute.cloud.hardware == "l4"
    assert cases[-1].scenario.network.figures().rtt_s == pytest.approx(0.68)


@pytest.mark.parametrize(
    "methods", [["ciar", {"name": "ciar", "threshold": 0.3}], [{"name": "ciar", "label": "x threshold=0.3"}, "ciar"]]
)
def test_a_sweep_gives_no_method_the_name_of_another(methods: list[Any]) -> None:
    """With two methods named `ciar threshold=0.3`, a run once ended in a traceback after all its work, or its plots confused them."""
    label = "x" if "x " in str(methods) else "ciar"
    methods = [{"name": "ciar", "label": label} if one == "ciar" else one for one in methods]
    scenario = {"name": "names", "methods": ["base", *methods], "sweep": {f"methods.{label}.threshold": [0.3, 0.5]}}
    with pytest.raises(
        ScenarioError, match=f"label {label} threshold=0.3 is also what the sweep makes of {label}; give it"
    ) as raised:
        expand(load_scenario(scenario))
    assert raised.value.place[0] == "methods"
    scenario["sweep"] = {f"methods.{label}.threshold": [0.4, 0.5]}
    assert len(expand(load_scenario(scenario))) == 4


def test_no_label_is_what_a_trial_may_be_called() -> None:
    """The tried values are known only after the work, so a label must not contain any value of the tuned settings."""
    sweep = {"methods.ciar.threshold": {"min": 0.1, "max": 0.7}, "methods.ciar.prefix_rate": [0.0, 0.2], "tune": 4}
    for label, said in (
        ("ciar threshold=0.3 prefix_rate=0.2", True),
        ("ciar threshold=low", True),
        ("ciar budget=0.3", False),
    ):
        scenario = {"name": "names", "methods": ["base", "ciar", {"name": "ciar", "label": label}], "sweep": sweep}
        if not said:
            assert len(expand(load_scenario(scenario))) == 2
            continue
        with pytest.raises(
            ScenarioError, match=rf"methods\[2\] label {label} may also be what sweep.tune makes of ciar; give it"
        ):
            expand(load_scenario(scenario))


def test_a_swept_value_is_named_unless_it_is_a_word_of_the_label() -> None:
    """seed=1 is the beginning of seed=12: images of both seeds were once named `base seed=12`, and the run ended in a traceback."""
    methods = [{"name": "base", "label": "base seed=12"}]
    cases = expand(load_scenario({"name": "words", "methods": methods, "sweep": {"seed": [1, 12]}}))
    assert [case.named(CHANGE_IMAGES) for case in cases] == ["base seed=12 seed=1", "base seed=12"]
    assert [case.named(("methods.",)) for case in cases] == ["base seed=12"] * 2


def test_values_that_do_not_go_together_are_refused_when_expanding() -> None:
    pair = {"model": "pair"}
    base = {"name": "t", "methods": ["base"], "compute": {"device": pair, "cloud": pair}}
    scenario = Scenario.model_validate({**base, "sweep": {"compute.cloud.model": ["llamagen-xl"]}})
    with pytest.raises(ScenarioError, match=r"^sweep: with compute\.cloud\.model=llamagen-xl: compute"):
        expand(scenario)

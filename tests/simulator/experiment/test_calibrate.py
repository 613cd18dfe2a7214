"""Calibration to a rate of cloud calls: on invented sessions with a known distribution, and in whole runs."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from models.pair import load_pair
from models.recorder import Recorder
from models.scenes import captions
from simulator.core.errors import ScenarioError
from simulator.experiment.calibrate import FEW_PROMPTS, TOLERANCE_PCT, Asked, Calibrated, Trial, calibrate
from simulator.experiment.loading import load_scenario
from simulator.experiment.plan import calibration_captions
from simulator.experiment.run import run_scenario
from simulator.experiment.scenario import Case, Scenario, resolved_yaml
from simulator.experiment.schema import methods as schema
from simulator.experiment.schema.prompts import PromptList, ScenePrompts
from simulator.experiment.search import calibration_warnings, search_thresholds
from simulator.experiment.sweep import expand
from simulator.protocol.cache import CachedSource, RecordingCache
from simulator.protocol.methods import METHODS, CiarSettings, Decoding, MethodSettings
from simulator.protocol.recording import SCORES, SessionSpec
from simulator.protocol.registry import MethodKind
from simulator.protocol.thresholds import compared_with_one, make_threshold

TOKENS, PREFIX = 100, 6
Mode = Literal["const", "ema", "running", "budget", "even"]


def sessions(trial: Trial, scale: float = 1.0, drift: float = 0.0, first: int = 0) -> list[Any]:
    """Return sessions with scores uniform in [0, scale).

    Scores fall by up to the share `drift` with the rate of recent cloud calls, because tokens of the cloud make the device more certain.
    """
    made = []
    for session in range(first, first + trial.prompts):
        base = np.random.default_rng(session).random(TOKENS) * scale
        rule = make_threshold(CiarSettings.model_validate(trial.settings), TOKENS - PREFIX)
        asked, gates, calls = 0.0, np.full(TOKENS, np.nan), PREFIX
        for t in range(PREFIX, TOKENS):
            gates[t] = base[t] * (1 - drift * asked)
            doubt = not rule.accepts(float(gates[t]))
            calls += doubt
            asked = 0.95 * asked + 0.05 * doubt
        made.append(session_of(gates, 100.0 * calls / TOKENS))
    return made


def session_of(gates: np.ndarray, call_pct: float) -> Any:
    scores = np.full((TOKENS, len(SCORES)), np.nan)
    scores[:, SCORES.index("gate")] = gates
    return SimpleNamespace(scores=scores, cloud_call_pct=lambda: call_pct)


def asked(call_pct: float | None, mode: Mode = "const", **more: Any) -> Asked:
    def values(scores: np.ndarray) -> np.ndarray:
        return compared_with_one(make_threshold(CiarSettings(threshold=1.0, threshold_mode=mode), TOKENS), scores)

    return Asked("m", mode, call_pct, PREFIX / TOKENS, **{"values": values, "prompts": 8, **more})


def search(wanted: Asked, record: Callable[[Trial], Sequence[Any]]) -> Calibrated:
    """Run one search to its end."""
    steps = calibrate(wanted)
    trial = next(steps)
    while True:
        try:
            trial = steps.send(record(trial))
        except StopIteration as stop:
            found: Calibrated = stop.value
            return found


@settings(max_examples=6, deadline=None)
@given(
    mode=st.sampled_from(["const", "ema", "running", "budget"]),
    target=st.floats(8, 95),
    scale=st.floats(1e-3, 1e3),
    drift=st.floats(0, 0.9),
)
def test_the_rate_is_met_whatever_the_mode_the_scale_and_the_feedback(
    mode: Mode, target: float, scale: float, drift: float
) -> None:
    tried: list[Trial] = []

    def record(trial: Trial) -> list[Any]:
        tried.append(trial)
        return sessions(trial, scale, drift)

    found = search(asked(target, mode), record)
    rates = [float(np.mean([one.cloud_call_pct() for one in sessions(each, scale, drift)])) for each in tried[1:]]
    assert found.settings in [trial.settings for trial in tried]
    assert found.settings["threshold_mode"] == mode
    assert found.call_pct == rates[found.rounds - 2]
    assert abs(found.call_pct - target) <= 2.0
    assert len(tried) <= 9
    assert abs(found.call_pct - target) == min(abs(rate - target) for rate in rates)  # the best of all trials
    assert all(abs(rate - target) > TOLERANCE_PCT for rate in rates[:-1])  # stops at the first within tolerance


@pytest.mark.parametrize("mode", ["const", "ema", "running", "budget", "even"])
def test_on_other_prompts_the_rate_is_as_near_as_the_standard_error_says(mode: Mode) -> None:
    """The rate of 60 other sessions is within three standard errors of the difference; an even share has no error."""
    found = search(asked(30.0, mode, prompts=None), lambda trial: sessions(trial, drift=0.5))
    others = sessions(Trial(found.settings, 60), drift=0.5, first=1000)
    rates = np.array([one.cloud_call_pct() for one in others])
    error = math.hypot(found.call_pct_se, float(rates.std()) / math.sqrt(len(rates)))
    assert error < 1.2
    assert abs(rates.mean() - found.call_pct) <= 3 * error
    assert abs(found.call_pct - 30.0) <= TOLERANCE_PCT
    assert (error == 0.0) == (mode == "even")


def test_an_even_share_is_not_searched_and_every_image_keeps_to_it() -> None:
    tried: list[Trial] = []

    def record(trial: Trial) -> list[Any]:
        tried.append(trial)
        return sessions(trial, drift=0.9)

    found = search(asked(30.0, "even", prompts=None), record)
    assert [trial.prompts for trial in tried] == [8]
    assert found.settings["budget"] == pytest.approx((30 - PREFIX) / (TOKENS - PREFIX), abs=1e-5)
    assert 0.6 < found.settings["threshold"] < 0.9  # a quarter of the first scores is above it
    rates = [one.cloud_call_pct() for one in sessions(Trial(found.settings, 20), drift=0.9, first=70)]
    assert rates == [30.0] * 20


@pytest.mark.parametrize("mode", ["budget", "even"])
def test_a_given_budget_gets_a_start_of_its_own_scale(mode: Mode) -> None:
    found = search(asked(None, mode, budget=0.4, prompts=None), lambda trial: sessions(trial, scale=50.0))
    assert (found.settings["budget"], found.settings["threshold_mode"], found.rounds) == (0.4, mode, 1)
    assert 20.0 < found.settings["threshold"] < 40.0  # the 0.6 quantile of scores up to 50, estimated from 64 scores


def test_a_few_prompts_lead_the_way_and_all_of_them_end_it() -> None:
    tried: list[Trial] = []

    def record(trial: Trial) -> list[Any]:
        tried.append(trial)
        wide = sessions(trial)
        return [
            session_of(one.scores[:, -1], one.cloud_call_pct() + 12 * (-1) ** number) for number, one in enumerate(wide)
        ]

    found = search(asked(40.0, prompts=100), record)
    assert {trial.prompts for trial in tried} == {FEW_PROMPTS, 100}
    assert tried[-1].prompts == found.prompts == 100
    assert found.call_pct_se == pytest.approx(1.2, abs=0.1)


def test_sessions_that_agree_need_no_more_prompts() -> None:
    calm = [session_of(np.full(TOKENS, 0.5), 40.0) for _ in range(FEW_PROMPTS)]
    assert search(asked(40.0, prompts=100), lambda trial: calm).prompts == FEW_PROMPTS


def test_a_rate_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"m: threshold\.call_pct must be at least the prefix's 6 %, got 3"):
        search(asked(3.0), sessions)
    with pytest.raises(ScenarioError, match="no threshold leads to 50 % cloud calls; the nearest found leads to"):
        search(asked(50.0), lambda trial: sessions(trial, scale=0.0))  # all scores are 0: all or nothing
    # An even share is possible with any scores.
    found = search(asked(50.0, "even"), lambda trial: sessions(trial, scale=0.0))
    assert [one.cloud_call_pct() for one in sessions(Trial(found.settings, 3), scale=0.0)] == [50.0] * 3


def rates_in_turn(*rates: float) -> Callable[[Trial], list[Any]]:
    """Return a recorder of sessions with these call rates, one rate per trial, and uniform scores."""
    left = iter(rates)

    def record(trial: Trial) -> list[Any]:
        rate = next(left)
        return [session_of(one.scores[:, SCORES.index("gate")], rate) for one in sessions(trial)]

    return record


def test_the_nearest_threshold_is_kept_not_the_last() -> None:
    tried: list[Trial] = []
    record = rates_in_turn(6.0, 60.0, 38.4, 42.0, 70.0, 38.2, 43.0, 37.0, 50.0)

    def noted(trial: Trial) -> list[Any]:
        tried.append(trial)
        return record(trial)

    found = search(asked(40.0), noted)
    assert (found.call_pct, found.rounds) == (38.4, 3)
    assert found.settings == tried[2].settings


def test_of_two_equally_near_thresholds_the_first_is_kept() -> None:
    found = search(asked(40.0), rates_in_turn(6.0, 42.0, 38.0, *[42.0, 38.0] * 4))
    assert (found.call_pct, found.rounds) == (42.0, 2)


@pytest.mark.parametrize("scored", [True, False])
def test_a_rule_of_another_package_is_searched_by_its_rates_alone(scored: bool) -> None:
    """An increase of its threshold by 20 halves the calls above the prefix; it need not record scores."""

    def record(trial: Trial) -> list[Any]:
        rate = 6.0 + 94.0 * 0.5 ** (trial.settings["threshold"] / 20.0)
        gates = -20.0 * np.log2(np.random.default_rng(3).random(TOKENS)) if scored else np.full(TOKENS, np.nan)
        return [session_of(gates, rate)] * trial.prompts

    found = search(Asked("m", "own", 30.0, 0.06), record)
    assert list(found.settings) == ["threshold"]
    assert abs(found.call_pct - 30.0) <= TOLERANCE_PCT


# --- through a run


def scenario_of(folder: Path, pair: Path, methods: Sequence[Any], **more: Any) -> Path:
    path = folder / "s.yaml"
    sides = {"device": {"model": "pair", "hardware": "snapdragon-8-gen-3"}}
    sides["cloud"] = {"model": "pair", "hardware": "a100"}
    data = {"name": "s", "pair": str(pair), "prompts": {"source": "scenes", "count": 3}, "methods": methods}
    path.write_text(yaml.safe_dump({**data, "compute": sides, **more}))
    return path


def run(path: Path, out: Path, source: CachedSource) -> Any:
    def no_profile() -> Any:
        raise AssertionError("nothing here is priced by a measured profile")

    return run_scenario(load_scenario(path), out, source, captions, no_profile)


def test_every_gated_method_and_mode_is_calibrated_once(tmp_path: Path, tiny_pair_folder: Path) -> None:
    few = {"call_pct": 62.5, "prompts": 3}  # 10 of 16 tokens
    modes = ("const", "running", "even")
    methods = [
        *({"name": "ciar", "threshold": few, "threshold_mode": mode, "label": f"ciar {mode}"} for mode in modes),
        {"name": "ciar", "threshold": few, "revise": 0.05, "local": "sampled", "label": "revised"},
        {"name": "ciar", "threshold": few, "threshold_mode": "budget", "revise": 0.05, "label": "revised budget"},
        {"name": "entropy-lens", "threshold": few, "label": "entropy-lens"},
        {"name": "softmax-corr", "threshold": few},
        {"name": "discrete", "threshold": few, "local": {"top_p": 0.8}},
        {"name": "random", "threshold": few},
        {"name": "entropy-lens", "budget": 0.5, "label": "given"},
        {"name": "ciar", "threshold": 0.3, "label": "paper"},
    ]
    path = scenario_of(tmp_path, tiny_pair_folder, methods)
    cache = RecordingCache(tmp_path / "cache")
    first = run(path, tmp_path / "one", CachedSource(cache, Recorder(load_pair(tiny_pair_folder), 32).record))
    told = json.loads((tmp_path / "one" / "provenance.json").read_text())["calibrated"]
    assert set(told) == set(first.summary["method"]) - {"paper"}
    found = first.summary.set_index("method")
    for label in ("ciar even", "revised", "entropy-lens", "softmax-corr", "discrete"):
        assert found.loc[label, "cloud_call_pct"] == 62.5
    for label, one in told.items():
        if label not in ("random", "given"):
            assert abs(one["call_pct"] - 62.5) <= 5.0
            assert found.loc[label, "threshold"] == one["threshold"]
            assert math.isnan(found.loc[label, "budget"]) == ("budget" not in one)
    assert found.loc["random", "threshold"] == 1 - told["random"]["upload_rate"] == pytest.approx(1 - 10 / 16)
    assert found.loc["given", "budget"] == 0.5
    assert found.loc["paper", ["threshold"]].tolist() == [0.3]
    # The resolved scenario has the calibrated settings and needs no calibration; neither run makes a forward pass.
    resolved = load_scenario(tmp_path / "one" / "scenario.yaml")
    assert all(entry.target is None for entry in resolved.methods)
    kept = CachedSource(cache)  # without models
    for name, file in (("two", path), ("three", tmp_path / "one" / "scenario.yaml")):
        run(file, tmp_path / name, kept)
        assert (tmp_path / name / "summary.csv").read_bytes() == (tmp_path / "one" / "summary.csv").read_bytes()


def test_a_swept_setting_is_calibrated_for_each_value_and_stays_a_target(
    tmp_path: Path, tiny_pair_folder: Path
) -> None:
    path = scenario_of(
        tmp_path,
        tiny_pair_folder,
        [{"name": "ciar", "threshold": {"call_pct": 80, "prompts": 3}}],
        sweep={"methods.ciar.prefix_rate": [0.1, 0.5], "network.preset": ["wifi", "lte"]},
    )
    source = CachedSource(RecordingCache(tmp_path / "cache"), Recorder(load_pair(tiny_pair_folder), 32).record)
    outcome = run(path, tmp_path / "out", source)
    assert outcome.summary["cloud_call_pct"].tolist() == [81.25] * 4
    assert outcome.summary["budget"].nunique() == 2
    assert load_scenario(tmp_path / "out" / "scenario.yaml").methods[0].target is not None


def test_explicit_numbers_are_recorded_under_the_keys_they_had() -> None:
    """The keys are those of earlier versions, so that caches stay valid although modes, defaults and calibration were added."""
    spec = SessionSpec("w", "ciar", 1, {}, {}, "p", 0)

    def key(data: dict[str, Any], decoding: dict[str, Any]) -> str:
        text = resolved_yaml(Scenario.model_validate({"name": "s", "methods": [data], "decoding": decoding}))
        case = expand(load_scenario(yaml.safe_load(text)))[0]
        kind, own = METHODS[case.method.name], case.method.settings
        fields = {"method": case.method.name, "revision": kind.revision_of(own), "settings": own.model_dump()}
        return json.dumps(replace(spec, **fields, decoding=case.decoding.model_dump()).__dict__, sort_keys=True)

    shared = (
        '"prefix_rate": 0.06, "reach": false, "revise": 0.0, "score": "u", "threshold": 0.3, "threshold_mode": "const"'
    )
    assert shared in key({"name": "ciar", "threshold": 0.3}, {})
    assert '"threshold": 0.5, "threshold_mode": "budget"' in key({"name": "entropy-lens", "threshold": 0.5}, {})
    assert '"settings": {"prefix_rate": 0.06, "upload_rate": 0.256}' in key(
        {"name": "random", "upload_rate": 0.256}, {}
    )
    assert '"device": "greedy"' in key({"name": "random", "upload_rate": 0.2}, {})
    revised = {"name": "ciar", "threshold": 0.3, "revise": 0.1}
    assert '"revision": 1' in key(revised, {})
    assert '"revision": 2' in key({**revised, "threshold_mode": "budget"}, {})  # a position decided again counts once
    one = key({"name": "code", "local": "sampled"}, {})
    assert one == key({"name": "code"}, {"device": "sampled"})


def test_bare_names_are_calibrated_to_thirty_percent() -> None:
    for name in ("ciar", "discrete", "entropy-lens", "softmax-corr", "random"):
        entry = Scenario.model_validate({"name": "s", "methods": [name]}).methods[0]
        assert entry.target is not None
        assert schema.DEFAULT_CALL_PCT == 30.0
        assert getattr(entry, "mode", "even") == "even"
    paper = Scenario.model_validate({"name": "s", "methods": [{"name": "ciar", "threshold": 0.30}]}).methods[0]
    assert paper.settings == CiarSettings(threshold=0.30, threshold_mode="const")


class ToySettings(MethodSettings):
    """Settings of a gated method of another package."""

    threshold: float = Field(7.0, ge=0.0)


def test_a_method_of_another_package_with_a_threshold_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._rows, "toy", MethodKind(ToySettings, "nowhere:Toy"))
    entry_class = schema._entry_class("toy", ToySettings)
    assert entry_class.model_validate({"name": "toy"}).settings == ToySettings(threshold=7.0)
    entry = entry_class.model_validate({"name": "toy", "label": "toy", "threshold": {"call_pct": 25, "prompts": 4}})
    scenario = Scenario.model_construct(prompts=ScenePrompts(count=2), decoding=Decoding.model_validate({}), seed=0)
    seen: list[SessionSpec] = []

    class Source:
        def recordings(self, specs: Sequence[SessionSpec]) -> list[Any]:
            seen.extend(specs)
            return [session_of(np.full(TOKENS, np.nan), 100.0 / (1 + spec.settings["threshold"])) for spec in specs]

    manifest: Any = SimpleNamespace(image_tokens=TOKENS, weights_hash="w")
    cases, told = search_thresholds([Case(0, 0, entry, {}, scenario)], manifest, captions, Source())
    assert told["toy"]["call_pct"] == pytest.approx(25.0, abs=TOLERANCE_PCT)
    assert cases[0].method.settings == ToySettings(threshold=told["toy"]["threshold"])
    used = {spec.prompt for spec in seen}
    assert len(used) == 4
    assert not used & set(captions(0, 1024))


def test_a_rate_that_other_captions_may_miss_is_said() -> None:
    told = {
        "wide": {"call_pct_asked": 30.0, "call_pct": 30.2, "call_pct_se": 1.5, "prompts": 64},
        "sure": {"call_pct_asked": 30.0, "call_pct": 30.2, "call_pct_se": 0.2, "prompts": 64},
        "random": {"call_pct_asked": 30.0, "call_pct": 30.0, "call_pct_se": 0.0, "prompts": 0},
        "single": {"call_pct_asked": 30.0, "call_pct": 30.0, "call_pct_se": math.nan, "prompts": 1},
        "single, off": {"call_pct_asked": 30.0, "call_pct": 32.0, "call_pct_se": math.nan, "prompts": 1},
    }
    advice = "threshold_mode even keeps every image to its share, more prompts narrow the interval"
    assert calibration_warnings(told) == [
        f"wide: calibrated on 64 captions, whose calls are 30.2 % (95 % interval of the mean: +- 2.9); {advice}",
        f"single, off: calibrated on one caption, whose calls are 32.0 % (its standard error is unknown); {advice}",
    ]


def test_more_prompts_leave_the_calibration_captions_as_they_are() -> None:
    def scenes(seed: int, count: int) -> list[str]:
        """Return captions; different seeds share some of them."""
        return [f"{index * (1 + seed % 7)}" for index in range(count)]

    def of(prompts: ScenePrompts | PromptList, count: int) -> list[str]:
        return calibration_captions(Scenario.model_construct(prompts=prompts), None, count, scenes)

    few, many, later = (of(ScenePrompts(count=n, skip=skip, seed=1), 12) for n, skip in ((4, 0), (900, 0), (4, 900)))
    assert few == many == later
    assert not set(of(ScenePrompts(count=4, skip=1024, seed=1), 12)) & set(scenes(1, 1028))
    assert len(few) == 12
    assert not set(few) & set(scenes(1, 1024))
    only = PromptList.model_validate({"list": scenes(1, 9)})
    found = of(only, 12)
    assert len(found) == 12
    assert not set(found) & set(only.captions)
    four = Scenario.model_construct(prompts=PromptList.model_validate({"list": ["a"]}))
    with pytest.raises(ScenarioError, match="only 3 captions are left to calibrate on, asked for 4"):
        calibration_captions(four, None, 4, lambda seed, count: list("abcd" * count)[:count])


def test_captions_to_calibrate_on_are_found_behind_those_in_use() -> None:
    """Captions of held-out photographs come first for every seed; if all of those are in use, the search continues behind them."""
    scenario = Scenario.model_construct(prompts=PromptList.model_validate({"list": [f"{n}" for n in range(100)]}))
    assert calibration_captions(scenario, 4, 8, lambda seed, count: [f"{n}" for n in range(104)][:count]) == [
        "100",
        "101",
        "102",
        "103",
    ]


def test_a_scenario_may_name_its_calibration_captions() -> None:
    prompts = PromptList.model_validate({"list": ["a", "b"], "calibration": ["b", "c", "d", "c"]})
    of_list = Scenario.model_construct(prompts=prompts)
    assert calibration_captions(of_list, 2, 8, lambda seed, count: ["x"] * count) == ["c", "d"]
    assert calibration_captions(of_list, None, 8, lambda seed, count: ["x"] * count) == ["c", "d"]  # all that exist
    with pytest.raises(
        ScenarioError, match=r"prompts\.calibration: holds 2 captions that are not prompts, .* asks for 3"
    ):
        calibration_captions(of_list, 3, 8, lambda seed, count: ["x"] * count)
    none = Scenario.model_construct(prompts=PromptList.model_validate({"list": ["a"]}))
    with pytest.raises(
        ScenarioError, match=r"asked for 4; name some with prompts\.calibration, or the threshold as a "
    ):
        calibration_captions(none, None, 4, lambda seed, count: [])

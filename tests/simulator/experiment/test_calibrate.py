"""The threshold for a wanted rate of cloud calls: on made-up sessions of a known distribution, and through a whole run."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ciar_sim.cli.main import main
from simulator.core.errors import ScenarioError
from simulator.experiment.calibrate import TOLERANCE_PCT, Calibrated, calibrate
from simulator.experiment.plan import calibration_captions
from simulator.experiment.scenario import Scenario
from simulator.experiment.schema.prompts import PromptList, ScenePrompts
from simulator.protocol.recording import SCORES

TOKENS, PREFIX = 200, 12


def sessions(threshold: float, scale: float, drift: float) -> list[Any]:
    """Scores uniform in [0, scale), which fall by up to `drift` the more the cloud is asked, as its tokens make the device surer."""
    made = []
    for session in range(8):
        base = np.random.default_rng(session).random(TOKENS) * scale
        asked, gates, calls = 0.0, np.full(TOKENS, np.nan), PREFIX
        for t in range(PREFIX, TOKENS):
            gates[t] = base[t] * (1 - drift * asked)
            doubt = gates[t] >= threshold
            calls += int(doubt)
            asked = 0.95 * asked + 0.05 * doubt
        scores = np.full((TOKENS, len(SCORES)), np.nan)
        scores[:, SCORES.index("gate")] = gates
        made.append(SimpleNamespace(scores=scores, cloud_call_pct=lambda calls=calls: 100.0 * calls / TOKENS))
    return made


def search(target_pct: float, prefix_rate: float, record: Callable[[float], list[Any]]) -> Calibrated:
    """Drives one search to its end."""
    steps = calibrate(target_pct, prefix_rate, "m")
    threshold = next(steps)
    while True:
        try:
            threshold = steps.send(record(threshold))
        except StopIteration as stop:
            found: Calibrated = stop.value
            return found


@settings(max_examples=40, deadline=None)
@given(target=st.floats(8, 95), scale=st.floats(1e-3, 1e3), drift=st.floats(0, 0.9))
def test_the_rate_is_met_whatever_the_scale_and_the_feedback(target: float, scale: float, drift: float) -> None:
    tried: list[float] = []

    def record(threshold: float) -> list[Any]:
        tried.append(threshold)
        return sessions(threshold, scale, drift)

    found = search(target, PREFIX / TOKENS, record)
    met = float(np.mean([one.cloud_call_pct() for one in sessions(found.threshold, scale, drift)]))
    assert found.call_pct == met
    assert abs(met - target) <= 2.0
    assert len(tried) <= 8
    rates = [float(np.mean([one.cloud_call_pct() for one in sessions(each, scale, drift)])) for each in tried]
    assert abs(met - target) == min(abs(rate - target) for rate in rates)  # the best of what was tried
    assert all(
        abs(rate - target) > TOLERANCE_PCT for rate in rates[:-1]
    )  # and no search beyond a rate that is near enough


def test_without_feedback_the_first_guess_is_the_quantile() -> None:
    found = search(30.0, PREFIX / TOKENS, lambda threshold: sessions(threshold, 1.0, 0.0))
    share = (0.30 - PREFIX / TOKENS) / (1 - PREFIX / TOKENS)
    assert found.rounds == 2
    assert found.threshold == pytest.approx(1 - share, abs=0.05)  # scores are uniform in [0, 1)


def test_a_rate_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"m: threshold\.call_pct must be at least the prefix's 6 %, got 3"):
        search(3.0, 0.06, lambda threshold: sessions(threshold, 1.0, 0.0))
    constant = sessions(0.5, 0.0, 0.0)  # all scores are 0: a threshold sends all or nothing
    with pytest.raises(ScenarioError, match="no threshold leads to 50 % cloud calls"):
        search(50.0, PREFIX / TOKENS, lambda threshold: constant)


def rates_in_turn(*rates: float) -> Callable[[float], list[Any]]:
    """Sessions with these call rates, whatever the threshold; their scores are uniform."""
    left = iter(rates)

    def record(threshold: float) -> list[Any]:
        made, rate = sessions(0.5, 1.0, 0.0), next(left)
        return [SimpleNamespace(scores=one.scores, cloud_call_pct=lambda rate=rate: rate) for one in made]

    return record


def test_the_nearest_threshold_is_kept_not_the_last() -> None:
    rates = (6.0, 38.4, 42.0, 60.0, 70.0, 38.2, 43.0, 37.0)
    tried: list[float] = []
    record = rates_in_turn(*rates)

    def noted(threshold: float) -> list[Any]:
        tried.append(threshold)
        return record(threshold)

    found = search(40.0, PREFIX / TOKENS, noted)
    assert (found.call_pct, found.rounds) == (38.4, 2)
    assert found.threshold == tried[1]


def test_of_two_equally_near_thresholds_the_first_is_kept() -> None:
    found = search(40.0, PREFIX / TOKENS, rates_in_turn(6.0, 38.5, 41.5, 38.5, 41.5, 38.5, 41.5, 38.5))
    assert (found.call_pct, found.rounds) == (38.5, 2)


SCENARIO = """\
name: calibrated
pair: {pair}
prompts: {{source: scenes, count: 4}}
methods:
  - {{name: ciar, threshold: {{call_pct: 40, prompts: 12}}}}
  - {{name: entropy-lens, threshold_mode: const, threshold: {{call_pct: 60, prompts: 12}}}}
compute: {{device: {{model: pair, hardware: snapdragon-8-gen-3}}, cloud: {{model: pair, hardware: a100}}}}
"""


def test_a_run_with_a_call_rate(tmp_path: Path, tiny_pair_folder: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO.format(pair=tiny_pair_folder))
    for out in ("one", "two"):
        result = CliRunner().invoke(
            main, ["run", str(path), "--out", str(tmp_path / out), "--cache", str(tmp_path / "c"), "--quiet"]
        )
        assert result.exit_code == 0, result.output
        path = tmp_path / out / "scenario.yaml"
    one, two = ((tmp_path / out / "summary.csv").read_bytes() for out in ("one", "two"))
    assert one == two
    told = json.loads((tmp_path / "one" / "provenance.json").read_text())["calibrated"]
    found = pd.read_csv(tmp_path / "one" / "summary.csv").set_index("method")["cloud_call_pct"]
    for method, asked in (("ciar", 40), ("entropy-lens", 60)):
        assert abs(told[method]["call_pct"] - asked) <= 2.0
        assert abs(found[method] - asked) <= 20  # four images of 16 tokens


def test_more_prompts_leave_the_calibration_captions_as_they_are() -> None:
    def scenes(seed: int, count: int) -> list[str]:
        """Two seeds that share some captions."""
        return [f"{index * (1 + seed % 7)}" for index in range(count)]

    def of(prompts: ScenePrompts | PromptList, count: int) -> list[str]:
        return calibration_captions(Scenario.model_construct(prompts=prompts), count, scenes)

    few, many = (of(ScenePrompts(count=count, seed=1), 12) for count in (4, 900))
    assert few == many
    assert len(few) == 12
    assert not set(few) & set(scenes(1, 1024))
    only = PromptList.model_validate({"list": scenes(1, 9)})
    found = of(only, 12)
    assert len(found) == 12
    assert not set(found) & set(only.captions)
    four = Scenario.model_construct(prompts=PromptList.model_validate({"list": ["a"]}))
    with pytest.raises(ScenarioError, match="only 3 captions are left to calibrate on, asked for 4"):
        calibration_captions(four, 4, lambda seed, count: list("abcd" * count)[:count])

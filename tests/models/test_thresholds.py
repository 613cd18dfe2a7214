"""The four readings of the dynamic threshold, with values worked out by hand."""

import math

import numpy as np
import pytest

from models.methods.thresholds import WARM_UP, Budget, Const, Ema, Running, make_threshold
from simulator.protocol.methods import CiarSettings, EntropyLensSettings, RandomSettings


def test_const_accepts_strictly_below() -> None:
    rule = Const(0.5)
    assert [rule.accepts(score) for score in (0.49, 0.5, 0.51, math.nan)] == [True, False, False, False]
    assert Const(math.inf).accepts(1e30)
    assert not Const(0.0).accepts(0.0)


def test_ema_follows_the_mean_once_eight_scores_are_known() -> None:
    rule = Ema(0.3, beta=0.5, decay=0.9)
    for score in (0.1, 0.3) * 4:  # m_0 = 0.2
        assert rule.value() == 0.3
        assert rule.accepts(score) == (score < 0.3)
    assert rule.value() == pytest.approx(0.3)  # m = m_0
    assert not rule.accepts(1.2)  # m = 0.9 * 0.2 + 0.1 * 1.2 = 0.3
    assert rule.value() == pytest.approx(0.3 * (0.5 + 0.5 * 1.5))
    assert rule.accepts(0.37)  # above the constant threshold, below 0.375
    assert rule.value() == pytest.approx(0.3 * (0.5 + 0.5 * (0.9 * 0.3 + 0.1 * 0.37) / 0.2))


def test_ema_without_any_doubt_at_first_stays_constant() -> None:
    rule = Ema(0.3, beta=1.0, decay=0.9)
    for _ in range(WARM_UP + 3):
        assert rule.accepts(0.0)
    assert rule.value() == 0.3


def test_budget_is_the_quantile_of_past_scores() -> None:
    rule = Budget(0.35, budget=0.25)
    for score in (0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        assert rule.value() == 0.35
        assert rule.accepts(score) == (score < 0.35)
    assert rule.value() == pytest.approx(0.625)  # 3/4 of the way from 0.1 to 0.8 in seven steps of 0.1
    assert rule.accepts(0.62)
    assert not rule.accepts(0.9)


@pytest.mark.parametrize(("budget", "accepted"), [(0.0, True), (1.0, False)])
def test_budget_of_nothing_and_of_everything(budget: float, accepted: bool) -> None:
    rule = Budget(0.3, budget)
    assert [rule.accepts(score) for score in (0.0, 5.0, 0.1)] == [accepted] * 3


def test_budget_sends_its_share() -> None:
    """Of 4000 scores in random order; the quantile of the past is within a few of the wanted number."""
    rule = Budget(0.5, budget=0.3)
    sent = sum(not rule.accepts(score) for score in np.random.default_rng(0).gamma(2.0, size=4000))
    assert abs(sent / 4000 - 0.3) < 0.02


def test_running_divides_by_the_largest_so_far() -> None:
    rule = Running(0.6)
    # 0: no doubt yet. 0.2 / 0.2. 0.1 / 0.2. 0.4 / 0.4. 0.2 / 0.4. 0.3 / 0.4.
    assert [rule.accepts(score) for score in (0.0, 0.2, 0.1, 0.4, 0.2, 0.3)] == [True, False, True, False, True, False]
    assert not Running(0.0).accepts(0.0)


def test_settings_choose_the_rule_and_fill_in_its_defaults() -> None:
    ema = make_threshold(CiarSettings(threshold_mode="ema"))
    assert isinstance(ema, Ema)
    assert (ema.tau, ema.beta, ema.decay) == (0.3, 0.5, 0.9)
    budget = make_threshold(EntropyLensSettings())
    assert isinstance(budget, Budget)
    assert budget.budget == 0.493
    assert isinstance(make_threshold(CiarSettings(threshold_mode="running")), Running)
    const = make_threshold(RandomSettings(upload_rate=0.25))
    assert isinstance(const, Const)
    assert const.tau == 0.75

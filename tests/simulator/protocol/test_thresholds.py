"""The five threshold modes, with values computed by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from simulator.protocol.methods import CiarSettings, EntropyLensSettings, RandomSettings
from simulator.protocol.thresholds import (
    WARM_UP,
    Budget,
    Const,
    Ema,
    Even,
    Running,
    Threshold,
    compared_with_one,
    make_threshold,
)


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
    assert rule.value() == pytest.approx(0.625)  # the 0.75 quantile of 0.1, 0.2, ..., 0.8
    assert rule.accepts(0.62)
    assert not rule.accepts(0.9)


@pytest.mark.parametrize(("budget", "accepted"), [(0.0, True), (1.0, False)])
def test_budget_of_nothing_and_of_everything(budget: float, accepted: bool) -> None:
    rule = Budget(0.3, budget)
    assert [rule.accepts(score) for score in (0.0, 5.0, 0.1)] == [accepted] * 3


def test_budget_sends_its_share() -> None:
    """4000 scores in random order: the share sent is within 2 points of the budget."""
    rule = Budget(0.5, budget=0.3)
    sent = sum(not rule.accepts(score) for score in np.random.default_rng(0).gamma(2.0, size=4000))
    assert abs(sent / 4000 - 0.3) < 0.02


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", [0.0, 0.5, math.inf])
def test_even_spends_its_calls_to_the_last_whatever_the_scores(start: float, seed: int) -> None:
    scores = np.random.default_rng(seed).gamma(2.0, size=100) * np.linspace(3, 1, 100)  # scores fall over the image
    rule = Even(start, 0.3, 100)
    assert sum(not rule.accepts(score) for score in scores) == 30
    assert rule.calls_left == 0
    assert rule.value() == math.inf


def test_even_follows_the_calls_and_positions_left() -> None:
    rule = Even(0.35, 0.25, 16)
    for score in (0.8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        assert rule.value() == (0.35 if rule.calls_left else math.inf)
        rule.accepts(score)
    assert rule.calls_left == 0  # 0.8, 0.4, 0.5 and 0.6 went to the cloud
    rule.calls_left = 4
    assert rule.value() == pytest.approx(0.45)  # 4 calls for 8 positions: the median of the eight scores
    rule.calls_left = 8
    assert rule.value() == -math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: Const(0.5),
        lambda: Ema(0.5, 0.7, 0.8),
        lambda: Budget(0.5, 0.3),
        lambda: Running(0.5),
    ],
)
def test_positions_taken_back_leave_nothing(make: Callable[[], Threshold]) -> None:
    scores = np.random.default_rng(1).random(30).tolist()
    plain, revised = make(), make()
    for score in scores[:20]:
        plain.accepts(score)
        revised.accepts(score)
    for score in (9.0, 0.0, 7.0):  # decided, then revoked
        revised.accepts(score)
    revised.keep(20)
    revised.keep(25)  # more than there are: no effect
    assert [revised.accepts(score) for score in scores[20:]] == [plain.accepts(score) for score in scores[20:]]
    assert revised.past == plain.past == scores


def test_a_call_stays_spent_where_its_position_is_decided_again() -> None:
    rule = Even(math.inf, 0.5, 20)
    for score in range(12):
        rule.accepts(float(score))
    left = rule.calls_left
    assert left < 10
    rule.keep(9)
    assert (rule.calls_left, len(rule.past)) == (left, 9)


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_what_is_compared_with_tau_does_not_depend_on_it(tau: float) -> None:
    scores = np.random.default_rng(2).random(50).tolist()
    for one, other in (
        (Const(1.0), Const(tau)),
        (Ema(1.0, 0.6, 0.8), Ema(tau, 0.6, 0.8)),
        (Running(1.0), Running(tau)),
    ):
        values = compared_with_one(one, scores)
        assert (values < tau).tolist() == [other.accepts(score) for score in scores]


def test_running_divides_by_the_largest_so_far() -> None:
    rule = Running(0.6)
    # The first score is 0 and accepted. Then 0.2 / 0.2, 0.1 / 0.2, 0.4 / 0.4, 0.2 / 0.4, 0.3 / 0.4.
    assert [rule.accepts(score) for score in (0.0, 0.2, 0.1, 0.4, 0.2, 0.3)] == [True, False, True, False, True, False]
    assert not Running(0.0).accepts(0.0)


def test_settings_choose_the_rule_and_fill_in_its_defaults() -> None:
    ema = make_threshold(CiarSettings(threshold_mode="ema"), 10)
    assert isinstance(ema, Ema)
    assert (ema.tau, ema.beta, ema.decay) == (0.3, 0.5, 0.9)
    budget = make_threshold(EntropyLensSettings(), 10)
    assert isinstance(budget, Budget)
    assert budget.budget == 0.493
    assert isinstance(make_threshold(CiarSettings(threshold_mode="running"), 10), Running)
    even = make_threshold(CiarSettings(threshold_mode="even", budget=0.4), 10)
    assert isinstance(even, Even)
    assert (even.tau, even.positions, even.calls_left) == (0.3, 10, 4)
    const = make_threshold(RandomSettings(upload_rate=0.25), 10)
    assert isinstance(const, Const)
    assert const.tau == 0.75

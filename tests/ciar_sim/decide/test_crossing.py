"""The load at which a share crosses a limit: recovered from simulated shares, and the control variate without bias."""

import math

import numpy as np
import pytest
from scipy.special import expit

from ciar_sim.decide.crossing import BEYOND, _raised, crossing, smoothed

LOGIT = math.log(0.05 / 0.95)
NONE = np.zeros((40, 2))


def test_the_crossing_of_exact_shares_is_exact() -> None:
    loads = np.linspace(-0.2, 0.2, 40)
    asked = np.full(40, 1e7)
    found = crossing(loads, NONE, asked * expit(LOGIT + 6 * (loads - 0.03)), asked, 0.05, 0.95)
    assert (found.at, found.slope) == pytest.approx((0.03, 6.0), abs=1e-4)
    assert found.half < 1e-4


def test_loads_far_above_the_crossing_are_left_out() -> None:
    """There the share is no logistic curve."""
    loads = np.linspace(-0.2, 0.2, 40)
    share = np.where(loads > 0.1, 0.95, expit(LOGIT + 6 * (loads - 0.03)))
    assert crossing(loads, NONE, 1e7 * share, np.full(40, 1e7), 0.05, 0.95).at == pytest.approx(0.03, abs=1e-4)


@pytest.mark.parametrize("late", [0.0, 1000.0])
def test_a_crossing_beyond_all_loads_is_just_outside_them(late: float) -> None:
    found = crossing(np.linspace(0.0, 0.1, 40), NONE, np.full(40, late), np.full(40, 1000.0), 0.05, 0.95)
    assert found.at == pytest.approx(-BEYOND if late else 0.1 + BEYOND)


def test_one_load_and_a_step_have_a_crossing() -> None:
    asked = np.full(40, 1000.0)
    one = crossing(np.zeros(40), NONE, np.full(40, 50.0), asked, 0.05, 0.95)
    assert one.at == pytest.approx(0.0, abs=1e-9)
    loads = np.repeat([0.0, 0.1], 20)
    step = crossing(loads, NONE, np.where(loads > 0, 300.0, 0.0), asked, 0.05, 0.95)
    assert 0.0 < step.at < 0.1


def test_shares_are_pooled_until_they_rise() -> None:
    loads, late, asked = np.array([3.0, 1.0, 2.0, 4.0]), np.array([1.0, 0.0, 5.0, 9.0]), np.full(4, 10.0)
    assert smoothed(loads, late, asked).tolist() == [0.3, 0.0, 0.3, 0.9]


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
def test_the_mean_share_over_the_loads_that_may_come_is_the_limit(spread: float) -> None:
    normal = np.random.default_rng(0).standard_normal(400_000)
    assert float(np.mean(expit(LOGIT - _raised(spread, 0.05) + spread * normal))) == pytest.approx(0.05, rel=0.02)


def test_the_number_of_requests_makes_the_interval_shorter_and_no_bias() -> None:
    """Lateness that follows the load that came: most of the spread is explained."""
    draws, slope, spread = np.random.default_rng(1), 60.0, 0.02
    level = LOGIT - _raised(slope * spread, 0.05)  # so that the mean share at load 0 is 5 %
    loads = np.tile(np.linspace(-0.03, 0.03, 8), 5)
    errors, halves = [], []
    for _ in range(20):
        came = draws.normal(0.0, spread, 40)
        late = draws.binomial(2000, expit(level + slope * (loads + came))).astype(float)
        asked = np.full(40, 2000.0)
        both = [
            crossing(loads, np.stack([used * came, np.full(40, used * spread)], axis=1), late, asked, 0.05, 0.95)
            for used in (0.0, 1.0)
        ]
        errors.append([one.at for one in both])
        halves.append([one.half for one in both])
    assert np.mean(halves, axis=0)[1] < 0.3 * np.mean(halves, axis=0)[0]
    assert abs(np.mean(errors, axis=0)[1]) < 0.003

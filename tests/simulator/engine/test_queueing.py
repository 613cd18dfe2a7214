"""The cloud against queueing theory, a smaller version of `benchmarks/queueing.py`: theory lies within the interval of every mean.

A correct simulator would fail a check for one seed in 1,000 (99.9 % Student interval over 10 runs); the seeds are fixed. Runs discard their
start, as in the benchmark.
"""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.queueing import QUEUES, estimate, run, service_times
from simulator.core.rng import stream


@pytest.mark.parametrize(("name", "load"), [("M/M/1", 0.5), *((name, 0.8) for name in QUEUES)])
def test_mean_waits_are_those_of_theory(name: str, load: float) -> None:
    queue = QUEUES[name]
    values, controls = (
        np.concatenate(each) for each in zip(*(queue.run(seed, load, 500, 1) for seed in range(10)), strict=True)
    )
    for column, formula in zip(values.T, queue.theory(load), strict=True):
        mean, half = estimate(column, controls, confidence=0.999)
        assert abs(mean - formula) <= half
        assert half < 2.0 * formula  # an interval that contains everything would show nothing


@pytest.mark.parametrize("load", [0.5, 0.95])
def test_each_wait_is_that_of_lindley_s_recursion(load: float) -> None:
    """W_(n+1) = max(0, W_n + S_n - A_(n+1)) for every request, from the first one on."""
    draws = stream(7, "lindley")
    seconds, programs = service_times("two points")
    prompt = draws.integers(len(seconds), size=3000)
    requested_s = np.cumsum(draws.standard_exponential(3000)) / load
    wait, expected = 0.0, [0.0]
    for service_s, gap_s in zip(seconds[prompt].tolist(), np.diff(requested_s).tolist(), strict=False):
        wait = max(0.0, wait + service_s - gap_s)
        expected.append(wait)
    assert run(programs, requested_s, prompt, 8).columns["cloud_queue_s"] == pytest.approx(expected, abs=1e-7)


def test_the_exponential_law_has_its_moments() -> None:
    seconds, _ = service_times("exponential")
    assert seconds.mean() == pytest.approx(1.0, abs=1e-9)
    assert (seconds**2).mean() == pytest.approx(2.0, rel=2e-5)
    assert np.median(seconds) == pytest.approx(math.log(2.0), rel=1e-4)


def test_an_estimate_without_controls_is_student_t() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    mean, half = estimate(values, np.zeros((4, 1)), confidence=0.95)
    low, high = stats.t.interval(0.95, 3, 3.5, stats.sem(values))
    assert (mean, half) == (pytest.approx(3.5), pytest.approx((high - low) / 2))


def test_controls_take_out_what_they_explain() -> None:
    control = np.array([-1.0, 0.5, 2.0, -0.25, 1.0])
    mean, half = estimate(3.0 + 2.0 * control, control[:, None])
    assert (mean, half) == (pytest.approx(3.0), pytest.approx(0.0, abs=1e-9))


def test_formulas_agree_where_they_meet() -> None:
    """M/M/c with one server is M/M/1, and with four has the tabulated probability of waiting; the repair model has the load asked for."""
    from benchmarks.queueing import _repair_shares, _think_at, erlang_c

    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(4, 0.5) == pytest.approx(0.17391304)  # Erlang's table, 2 erlangs on 4 servers
    assert 1.0 - _repair_shares(_think_at(0.8))[0] == pytest.approx(0.8)
    assert math.isclose(sum(_repair_shares(3.0)), 1.0)

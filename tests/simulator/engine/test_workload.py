"""Poisson requests: rate, order, even use of prompts and devices, and that a longer run only adds requests."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.workload import poisson_arrivals


def test_the_rate_is_the_one_asked_for() -> None:
    """100 seeds of 200 expected requests: the total is Poisson with mean 20,000 and exceeds 4.5 deviations once in 150,000."""
    total = sum(len(poisson_arrivals(seed, 2.0, 100.0, 3, 5)) for seed in range(100))
    assert abs(total - 20_000) < 4.5 * math.sqrt(20_000)


def test_gaps_are_exponential() -> None:
    """Kolmogorov-Smirnov distance of 10,000 gaps; 2.23 / sqrt(n) is exceeded for one seed in 10,000."""
    gaps = np.sort(np.diff(poisson_arrivals(1, 4.0, 2500.0, 1, 1).requested_s, prepend=0.0))
    n = len(gaps)
    law = 1.0 - np.exp(-4.0 * gaps)
    distance = max(np.max(np.arange(1, n + 1) / n - law), np.max(law - np.arange(n) / n))
    assert distance < 2.23 / math.sqrt(n)


@given(st.integers(0, 50), st.floats(0.01, 20), st.floats(0, 30), st.integers(1, 9), st.integers(1, 7))
def test_requests_are_in_order_in_range_and_use_prompts_evenly(
    seed: int, rate: float, duration: float, devices: int, prompts: int
) -> None:
    a = poisson_arrivals(seed, rate, duration, devices, prompts)
    assert np.all(np.diff(a.requested_s) >= 0)
    assert np.all((a.requested_s >= 0) & (a.requested_s < duration))
    assert np.all((a.device >= 0) & (a.device < devices))
    counts = np.bincount(a.prompt, minlength=prompts)
    assert len(counts) == prompts
    assert counts.max() - counts.min() <= 1
    for start in range(0, len(a) - prompts + 1, prompts):
        assert sorted(a.prompt[start : start + prompts]) == list(range(prompts))


@given(st.integers(0, 20), st.floats(0, 30), st.floats(0, 100))
def test_a_longer_duration_only_adds_requests(seed: int, duration: float, more: float) -> None:
    short, long = (poisson_arrivals(seed, 2.0, d, 4, 5) for d in (duration, duration + more))
    n = len(short)
    assert np.array_equal(short.requested_s, long.requested_s[:n])
    assert np.array_equal(short.device, long.device[:n])
    assert np.array_equal(short.prompt, long.prompt[:n])
    assert len(long) == n or long.requested_s[n] >= duration


def test_devices_share_evenly() -> None:
    """Chi-square over 8 devices (7 degrees of freedom): 29.9 is exceeded for one seed in 10,000."""
    counts = np.bincount(poisson_arrivals(5, 10.0, 1000.0, 8, 3).device, minlength=8)
    expected = counts.sum() / 8
    assert ((counts - expected) ** 2 / expected).sum() < 29.9


def test_no_rate_or_no_time_means_no_requests() -> None:
    assert len(poisson_arrivals(0, 0.0, 100.0, 1, 1)) == 0
    assert len(poisson_arrivals(0, 5.0, 0.0, 1, 1)) == 0


@pytest.mark.parametrize(
    ("rate", "duration", "devices", "prompts"),
    [(-1, 1, 1, 1), (math.inf, 1, 1, 1), (1, math.nan, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)],
)
def test_a_workload_that_cannot_be_is_refused(rate: float, duration: float, devices: int, prompts: int) -> None:
    with pytest.raises(ValueError, match=r"must be|needed"):
        poisson_arrivals(0, rate, duration, devices, prompts)

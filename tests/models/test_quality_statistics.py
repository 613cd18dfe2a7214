"""Distances between sets of images against closed forms, and their intervals against the sampling distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.quality import statistics as s
from simulator.core.rng import stream


def with_moments(rng: np.random.Generator, count: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return features [count, F] with exactly this sample mean and covariance."""
    x = rng.standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x, rowvar=False)), x.T).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_commuting_and_of_turned_covariances() -> None:
    rng = stream(0, "test.frechet")
    one, two = np.diag([4.0, 1.0, 9.0]), np.diag([1.0, 1.0, 4.0])
    mean = np.array([1.0, -2.0, 2.0])
    wanted = 9.0 + 1.0 + 0.0 + 1.0  # |m|^2 and the squared differences of the standard deviations
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    for basis in (np.eye(3), turn):
        a = s.Gaussian(with_moments(rng, 50, np.zeros(3), basis @ one @ basis.T))
        b = s.Gaussian(with_moments(rng, 60, basis @ mean, basis @ two @ basis.T))
        assert s.frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
        assert s.frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_without_commuting() -> None:
    """In two dimensions tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)), by the Cayley-Hamilton theorem."""
    rng = stream(0, "test.frechet.two")
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    wanted = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = s.frechet_distance(*(s.Gaussian(with_moments(rng, 30, np.zeros(2), c)) for c in (a, b)))
    assert found == pytest.approx(wanted, rel=1e-9)


@given(st.integers(0, 2**31), st.integers(2, 12), st.floats(1e-6, 1e6))
def test_a_set_is_at_no_distance_from_itself_even_without_full_rank(seed: int, count: int, scale: float) -> None:
    x = scale * stream(seed, "test.self").standard_normal((count, 8))
    assert s.frechet_distance(s.Gaussian(x), s.Gaussian(x[::-1])) <= 1e-9 * np.square(x).sum()


def test_precision_and_recall_by_counting() -> None:
    """Features on a line, k = 1. Real 0, 1, 3, 10 have radii 1, 1, 2, 7; generated 0.5, 4, 20 have radii 3.5, 3.5, 16."""
    real, generated = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[0.5], [4.0], [20.0]])
    precision, recall, f1 = s.precision_recall_f1(real, generated, k=1)
    assert precision == pytest.approx(2 / 3)  # 20 is 10 from 10, whose radius is 7
    assert recall == 1.0
    assert f1 == pytest.approx(0.8)
    on_the_edge = s.precision_recall_f1(np.array([[0.0], [2.0]]), np.array([[-2.0], [4.0]]), k=1)
    assert on_the_edge == (0.0, 1.0, 0.0)  # a distance equal to the radius is outside


@given(st.integers(0, 2**31), st.integers(5, 20))
def test_equal_sets_are_precise_and_recalled(seed: int, count: int) -> None:
    x = stream(seed, "test.pr").standard_normal((count, 3))
    assert s.precision_recall_f1(x, x + 0.0) == (1.0, 1.0, 1.0)
    assert s.precision_recall_f1(x, x + 1e6) == (0.0, 0.0, 0.0)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 3 images"):
        s.precision_recall_f1(np.zeros((10, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least two images"):
        s.Gaussian(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="between 1 and 1"):
        s.subsampled_interval(lambda chosen: 0.0, 2, stream(0, "test"), size=2)


@pytest.mark.parametrize("size", [None, 20, 150])
def test_the_interval_of_a_mean_is_the_classic_one_whatever_the_size(size: int | None) -> None:
    """The interval of a mean is 1.96 sigma / sqrt(n) to either side for every subset size.

    The tolerance is 4 sigma of the quantiles of 4,000 draws.
    """
    x = stream(0, "test.mean").standard_normal(200)
    value, low, high = s.subsampled_interval(
        lambda chosen: float(x[chosen].mean()), 200, stream(1, "test.mean"), size, draws=4000
    )
    half = 1.96 * x.std(ddof=1) / np.sqrt(200)
    assert value == x.mean()
    assert (value - low, high - value) == (pytest.approx(half, rel=0.12), pytest.approx(half, rel=0.12))


def test_a_bootstrap_of_the_frechet_distance_lies_beside_it_and_subsampling_does_not() -> None:
    """A bootstrap repeats images, which acts like fewer images. 12 sets are drawn from one distribution.

    The bootstrap interval never contains the distance of its own set, and contains the mean distance of fresh sets of that size at
    most twice. The interval by subsampling contains that mean at least 9 times: at a coverage of 95 % this fails with a probability
    of 0.2 %.
    """
    real = s.Gaussian(stream(0, "test.real").standard_normal((4000, 16)))
    n, sets = 200, 12

    def distance(x: np.ndarray) -> float:
        return s.frechet_distance(real, s.Gaussian(x))

    expected = np.mean([distance(stream(i, "test.fresh").standard_normal((n, 16))) for i in range(200)])
    covered, booted, beside = 0, 0, 0
    for i in range(sets):
        x = stream(i, "test.set").standard_normal((n, 16))
        value, low, high = s.frechet_interval(real, x, stream(i, "test.sub"))
        assert low < value < high
        covered += low <= expected <= high
        rng = stream(i, "test.boot")
        resampled = [distance(x[rng.integers(0, n, n)]) for _ in range(100)]
        low, high = np.quantile(resampled, (0.025, 0.975))
        booted += low <= expected <= high
        beside += low > value
    assert covered >= 9
    assert beside == sets
    assert booted <= 2


def test_the_interval_of_f1_has_the_spread_of_fresh_sets() -> None:
    """The mean half-width / 1.96 is within a factor of 1.5 of the standard deviation over 60 fresh sets, whose standard error is 9 %."""
    real = stream(0, "test.f1.real").standard_normal((120, 4))
    fresh, widths = [], []
    for i in range(60):
        x = 1.3 * stream(i, "test.f1").standard_normal((120, 4))
        fresh.append(s.precision_recall_f1(real, x)[2])
        if i < 6:
            value, low, high = s.f1_interval(real, x, stream(i, "test.f1.sub"))
            assert value == fresh[-1]
            assert 0 <= low < value < high <= 1
            widths.append((high - low) / (2 * 1.96))
    assert 1 / 1.5 < np.mean(widths) / np.std(fresh, ddof=1) < 1.5

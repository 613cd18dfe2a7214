"""AUROC, risk-coverage and calibration against closed forms and counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluate import ranking
from simulator.core.rng import stream


def auroc(score: np.ndarray, event: np.ndarray) -> float:
    """Return the AUROC counted by prompts. It must equal the one without prompts."""
    prompt = np.arange(len(score)) % 3
    found = float(ranking.count_pairs(score, event, prompt, 3).auroc(np.ones(3)))
    assert ranking.auroc(score, event) == pytest.approx(found, nan_ok=True)
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), levels=st.integers(1, 6))
def test_auroc_is_the_share_of_pairs_in_order(seed: int, levels: int) -> None:
    rng = stream(seed, "test.ranking")
    score, event = rng.integers(0, levels, 40).astype(float), rng.random(40) < 0.4
    event[:2] = True, False
    pairs = [(a > b) + 0.5 * (a == b) for a in score[event] for b in score[~event]]
    assert auroc(score, event) == pytest.approx(np.mean(pairs))
    assert auroc(-score, event) == pytest.approx(1 - np.mean(pairs))
    assert auroc(np.exp(score), event) == auroc(score, event)  # only the order matters


def test_auroc_of_perfect_useless_and_impossible() -> None:
    event = np.array([False] * 6 + [True] * 4)
    assert auroc(np.arange(10.0), event) == 1.0
    assert auroc(-np.arange(10.0), event) == 0.0
    assert auroc(np.zeros(10), event) == 0.5
    assert np.isnan(auroc(np.arange(10.0), np.zeros(10, dtype=bool)))


def test_auroc_of_two_exponential_laws() -> None:
    """Scores have rate 1 with the event and 3 without: AUROC = 3 / 4. The tolerance is 4 standard errors of sqrt(2 / (12 n))."""
    rng = stream(0, "test.exponential")
    score, event = rng.exponential(1, 4000), np.arange(4000) % 2 == 0
    score[~event] /= 3
    assert auroc(score, event) == pytest.approx(0.75, abs=4 * np.sqrt(2 / (12 * 2000)))


def test_drawing_prompts_is_repeating_their_tokens() -> None:
    rng = stream(1, "test.weights")
    prompt = np.repeat(np.arange(5), 12)
    score, event = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.5
    counts = ranking.count_pairs(score, event, prompt, 5)
    for weights in ranking.bootstrap_weights(rng, 5, 10):
        again = np.repeat(np.arange(60), weights[prompt].astype(int))
        assert float(counts.auroc(weights)) == pytest.approx(auroc(score[again], event[again]))


def test_the_bootstrap_repeats_and_draws_as_many_prompts_as_there_are() -> None:
    first, again = (ranking.bootstrap_weights(stream(7, "evaluate.bootstrap"), 9, 50) for _ in range(2))
    assert np.array_equal(first, again)
    assert (first.sum(1) == 9).all()
    assert not np.array_equal(first, ranking.bootstrap_weights(stream(8, "evaluate.bootstrap"), 9, 50))


def test_the_interval_grows_with_what_tokens_of_a_prompt_share() -> None:
    """Ten equal tokens of a prompt carry as much information as one, so repetition must not shrink the interval over prompts."""
    rng = stream(2, "test.clusters")
    score, event = rng.random(60), rng.random(60) < 0.5
    weights = ranking.bootstrap_weights(rng, 60, 400)
    once = ranking.count_pairs(score, event, np.arange(60), 60).auroc(weights)
    tenfold = ranking.count_pairs(np.tile(score, 10), np.tile(event, 10), np.tile(np.arange(60), 10), 60).auroc(weights)
    assert ranking.interval(once) == pytest.approx(ranking.interval(tenfold))


def test_risk_of_a_perfect_score_is_zero_until_only_events_are_left() -> None:
    event = np.arange(1000) >= 700
    curve = ranking.risk_coverage(np.arange(1000.0), event)
    assert not curve[:700].any()
    assert curve[-1] == pytest.approx(0.3)
    assert curve[849] == pytest.approx(150 / 850)
    area = ranking.area_under_risk(np.arange(1000.0), event)
    # The sum differs from the integral by at most one term.
    assert area == pytest.approx(0.3 + 0.7 * np.log(0.7), abs=1e-3)


def test_risk_of_a_score_that_ties_everything_is_the_rate() -> None:
    event = np.arange(10) < 3
    assert ranking.risk_coverage(np.zeros(10), event) == pytest.approx(np.full(10, 0.3))


def test_calibration_counts_every_token_once_and_parts_no_ties() -> None:
    score = np.repeat(np.arange(7.0), 20)
    event = np.tile(np.arange(20), 7) < np.repeat(np.arange(7), 20) * 3
    prompt = np.arange(140) % 4
    bins = ranking.calibration(score, event, prompt, ranking.bootstrap_weights(stream(0, "b"), 4, 50))
    assert sum(part.tokens for part in bins) == 140
    assert all(part.tokens % 20 == 0 for part in bins)
    shares = [part.share for part in bins]
    assert shares == sorted(shares)
    assert all(part.low <= part.share <= part.high for part in bins if part.tokens > 20)

"""Rules whose numbers can be worked out by hand: InterFuse, LANTERN's bounds, top-p and top-k at ties and exact decimals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.interval import inter_fuse, reachable, uncertainty
from models.methods.lantern import ChosenTrial, Relaxation
from models.sampling import filter_probs, warp_probs
from models.tree import Tree

# --- InterFuse: two codes have the odds e^(c_1 - c_2), which the radius multiplies or divides


@given(gap=st.floats(-8, 8), radius=st.floats(0, 6))
def test_inter_fuse_of_two_codes_multiplies_their_odds_by_the_radius(gap: float, radius: float) -> None:
    lower, upper = inter_fuse(
        torch.tensor([gap, 0.0], dtype=torch.float64), torch.tensor([radius, radius], dtype=torch.float64)
    )
    assert lower.tolist() == pytest.approx(
        [1 / (1 + math.exp(radius - gap)), 1 / (1 + math.exp(radius + gap))], rel=1e-9
    )
    assert upper.tolist() == pytest.approx(
        [1 / (1 + math.exp(-radius - gap)), 1 / (1 + math.exp(gap - radius))], rel=1e-9
    )


def test_inter_fuse_of_equal_codes() -> None:
    """Four equal codes and radius ln 2: lower = (1/2) / (1/2 + 3) = 1/7, upper = 2 / (2 + 3) = 2/5."""
    lower, upper = inter_fuse(torch.zeros(4, dtype=torch.float64), torch.full((4,), math.log(2), dtype=torch.float64))
    assert lower.tolist() == pytest.approx([1 / 7] * 4)
    assert upper.tolist() == pytest.approx([2 / 5] * 4)


def test_reach_and_score_by_hand() -> None:
    lower, upper = torch.tensor([0.5, 0.1, 0.0]), torch.tensor([0.9, 0.2, 0.1])
    tight = reachable(lower, upper)
    assert tight[0].tolist() == pytest.approx([0.7, 0.1, 0.0])  # 1 - (0.2 + 0.1) binds, 1 - (0.9 + 0.1) does not
    assert tight[1].tolist() == pytest.approx([0.9, 0.2, 0.1])
    scores = uncertainty(lower, upper)  # widths 0.4, 0.1, 0.1: sum 0.6, mean 0.2, population deviation sqrt(0.02)
    assert float(scores.omega) == pytest.approx(0.6)
    assert float(scores.sigma) == pytest.approx(math.sqrt(0.02))
    assert float(scores.u_tilde) == pytest.approx(math.sqrt(3) * 0.6 * math.sqrt(0.02))
    assert float(scores.lower_top) == pytest.approx(0.5)


# --- LANTERN: code 0 with the nearest codes 1, 2, 3 in this order; binary fractions, so that sums are exact

TABLE = np.array([[1, 2, 3, 4], [0, 2, 3, 4], [1, 3, 0, 4], [2, 1, 4, 0], [3, 2, 1, 0]])
P = np.array([0.25, 0.125, 0.125, 0.25, 0.25])


@pytest.mark.parametrize(
    ("k", "bound", "relaxed", "removed"),
    [
        (3, {"delta": 0.0}, 0.25, []),
        (3, {"delta": 0.124}, 0.25, []),
        (3, {"delta": 0.125}, 0.375, [1, 2, 3, 4]),  # C_1 = delta is within the bound
        (3, {"delta": 0.249}, 0.375, [1, 2, 3, 4]),
        (3, {"delta": 0.25}, 0.5, [1, 2, 3, 4]),
        (3, {"delta": 1.0}, 0.75, [1, 2, 3, 4]),
        (1, {"delta": 1.0}, 0.375, [1, 2]),  # k = 1: one code is added, two are removed
        (0, {"delta": 1.0}, 0.25, []),
        (3, {"lambda_": 1.0}, 0.25, []),
        (3, {"lambda_": 1.5}, 0.375, [1, 2, 3, 4]),  # (1.5 - 1) * 0.25 = 0.125
        (3, {"lambda_": 2.0}, 0.5, [1, 2, 3, 4]),
        (3, {"lambda_": 3.0}, 0.75, [1, 2, 3, 4]),
    ],
)
def test_the_bound_of_lantern(k: int, bound: dict[str, float], relaxed: float, removed: list[int]) -> None:
    relaxation = Relaxation(TABLE, k, **bound)
    found, others = relaxation.relaxed_accept(P, 0)
    assert (found, others.tolist()) == (relaxed, removed)
    trial = ChosenTrial(relaxation, Tree([4, 0], [-1, 0]))
    left = P.copy()
    left[[0, *removed]] = 0.0
    wanted = left / left.sum() if left.sum() else np.full(5, 0.2)
    np.testing.assert_allclose(trial.rejected(P, 1), wanted, atol=1e-15)


@given(delta=st.floats(0, 1), token=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_the_added_probability_never_exceeds_the_bound(delta: float, token: int, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(5, 0.5))
    assert 0 <= Relaxation(TABLE, 4, delta).relaxed_accept(p, token)[0] - p[token] <= delta + 1e-15
    assert Relaxation(TABLE, 4, lambda_=1 + delta).relaxed_accept(p, token)[0] <= (1 + delta) * p[token] + 1e-15


# --- filters at ties: equal logits have exact cumulative probabilities, multiples of 1/4 or 1/8


def kept(chain: object, logits: list[float], top_k: int, top_p: float) -> list[int]:
    assert callable(chain)
    row = torch.tensor([logits], dtype=torch.float64)
    probs = chain(row, torch.ones(1), torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))
    assert float(probs.sum()) == pytest.approx(1.0)
    return [int(index) for index in probs[0].nonzero().flatten()]


@pytest.mark.parametrize(
    ("top_p", "llamagen", "warpers"),
    [
        # LlamaGen drops an entry if the mass before it exceeds p: at a mass of exactly p one more entry stays.
        # The warpers drop the tail whose mass is <= 1 - p: at a mass of exactly 1 - p the entry goes.
        (0.25, 2, 1),
        (0.26, 2, 2),
        (0.5, 3, 2),
        (0.74, 3, 3),
        (0.75, 4, 3),
        (0.76, 4, 4),
        (1.0, 4, 4),
    ],
)
def test_top_p_where_the_cumulative_mass_is_exactly_p(top_p: float, llamagen: int, warpers: int) -> None:
    assert len(kept(filter_probs, [0.0] * 4, 0, top_p)) == llamagen
    assert len(kept(warp_probs, [0.0] * 4, 0, top_p)) == warpers


def test_the_most_likely_entry_always_stays() -> None:
    logits = [0.0, 2.0, 1.0]
    assert kept(filter_probs, logits, 0, 1e-9) == [1]
    assert kept(warp_probs, logits, 0, 1e-9) == [1]


def test_top_k_keeps_ties_with_the_kth_value() -> None:
    logits = [1.0, 3.0, 1.0, 0.0, 1.0]
    for chain in (filter_probs, warp_probs):
        assert kept(chain, logits, 2, 1.0) == [0, 1, 2, 4]
        assert kept(chain, logits, 1, 1.0) == [1]
        assert kept(chain, logits, 5, 1.0) == [0, 1, 2, 3, 4]
        assert kept(chain, logits, 99, 1.0) == [0, 1, 2, 3, 4]

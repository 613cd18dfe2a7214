"""Rules with closed forms: InterFuse, LANTERN's bounds, filters at ties, the residual, EAGLE-2's trees."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.interval import inter_fuse, reachable, uncertainty
from models.methods.lantern import ChosenTest, Relaxation
from models.methods.speculative import residual
from models.sampling import filter_probs, warp_probs
from models.tree import Growth, Tree

# --- InterFuse: two codes have the odds e^(c_1 - c_2), multiplied or divided by e^radius


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
    assert tight[0].tolist() == pytest.approx([0.7, 0.1, 0.0])  # 1 - (0.2 + 0.1) binds
    assert tight[1].tolist() == pytest.approx([0.9, 0.2, 0.1])
    scores = uncertainty(lower, upper)  # widths 0.4, 0.1, 0.1: sum 0.6, mean 0.2, population deviation sqrt(0.02)
    assert float(scores.omega) == pytest.approx(0.6)
    assert float(scores.sigma) == pytest.approx(math.sqrt(0.02))
    assert float(scores.u_tilde) == pytest.approx(math.sqrt(3) * 0.6 * math.sqrt(0.02))
    assert float(scores.lower_top) == pytest.approx(0.5)


# --- LANTERN: the nearest codes of code 0 are 1, 2, 3 in this order. Probabilities are binary fractions, so sums are exact

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
        (1, {"delta": 1.0}, 0.375, [1, 2]),  # k = 1 adds one code and removes two
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
    only = Relaxation(TABLE, k, **bound, removes="draft")  # type: ignore[arg-type]
    assert only.relaxed_accept(P, 0)[0] == relaxed
    test = ChosenTest(relaxation, Tree([4, 0], [-1, 0]))
    left = P.copy()
    left[[0, *removed]] = 0.0
    wanted = left / left.sum() if left.sum() else np.full(5, 0.2)
    np.testing.assert_allclose(test.rejected(P, 1), wanted, atol=1e-15)
    rest = np.where(np.arange(5) == 0, 0.0, P)
    of_draft = ChosenTest(only, Tree([4, 0], [-1, 0])).rejected(P, 1)
    np.testing.assert_allclose(of_draft, rest / rest.sum(), atol=1e-15)


def test_a_bound_of_zero_removes_codes_where_the_nearest_is_gone() -> None:
    """C_1 = 0 is within the bound (as in its code), so delta 0 is not EAGLE-2's test; k 0 is."""
    p = np.array([0.25, 0.0, 0.25, 0.25, 0.25])
    found, others = Relaxation(TABLE, 2, delta=0.0).relaxed_accept(p, 0)
    assert (found, others.tolist()) == (0.25, [1, 2, 3])
    assert not Relaxation(TABLE, 0, delta=0.0).relaxed_accept(p, 0)[1].size


@given(delta=st.floats(0, 1), token=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_the_added_probability_never_exceeds_the_bound(delta: float, token: int, seed: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(5, 0.5))
    assert 0 <= Relaxation(TABLE, 4, delta).relaxed_accept(p, token)[0] - p[token] <= delta + 1e-15
    assert Relaxation(TABLE, 4, lambda_=1 + delta).relaxed_accept(p, token)[0] <= (1 + delta) * p[token] + 1e-15


# --- filters at ties: the cumulative probabilities of equal logits are exact multiples of 1/4


def kept(chain: object, logits: list[float], top_k: int, top_p: float) -> list[int]:
    assert callable(chain)
    row = torch.tensor([logits], dtype=torch.float64)
    probs = chain(row, torch.ones(1), torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))
    assert float(probs.sum()) == pytest.approx(1.0)
    return [int(index) for index in probs[0].nonzero().flatten()]


@pytest.mark.parametrize(
    ("top_p", "llamagen", "warpers"),
    [
        # LlamaGen drops an entry if the mass before it exceeds p, so at a mass of exactly p one more entry stays.
        # The warpers drop the tail with a mass <= 1 - p, so at a mass of exactly 1 - p the entry is dropped.
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


# --- speculative


def test_the_residual_is_what_the_draft_left_over() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    assert residual(p, q).tolist() == [1.0, 0.0, 0.0]
    # The weights sum to 1.25. min(p, w) is 0.25 each, emitted with probability 0.2, which leaves 0.3, 0.05 and 0.05.
    assert residual(p, np.array([0.25, 0.5, 0.5])).tolist() == pytest.approx([0.75, 0.125, 0.125])


# --- EAGLE-2: log-probabilities of two levels

LOG = {
    name: math.log(value) for name, value in (("a", 0.6), ("b", 0.4), ("c", 0.9), ("d", 0.1), ("e", 0.55), ("f", 0.45))
}


def grown() -> Growth:
    """Return a tree of two levels.

    Tokens 0 (0.6) and 1 (0.4) follow the root, 2 (0.55) and 3 (0.45) follow token 0, 4 (0.9) and 5 (0.1) follow token 1.
    """
    never = -math.inf
    growth = Growth(top_k=2)
    growth.begin(torch.tensor([LOG["a"], LOG["b"], never, never, never, never]))
    growth.grow(
        torch.tensor(
            [[never, never, LOG["e"], LOG["f"], never, never], [never, never, never, never, LOG["c"], LOG["d"]]]
        )
    )
    return growth


def test_a_beam_holds_the_most_likely_paths() -> None:
    """0.4 * 0.9 = 0.36 and 0.6 * 0.55 = 0.33 exceed 0.27 and 0.04. After the next level the order is reversed."""
    growth = grown()
    assert [growth.tokens[node] for node in growth.beam] == [4, 2]
    following = torch.full((2, 6), -math.inf)
    following[0, :2], following[1, 2:4] = torch.tensor([LOG["a"], LOG["b"]]), torch.tensor([LOG["c"], LOG["d"]])
    growth.grow(following)
    # 0.36 * 0.6 = 0.216 and 0.33 * 0.9 = 0.297
    assert [growth.tokens[node] for node in growth.beam] == [2, 0]


def test_re_ranking_keeps_the_best_nodes_and_the_root_counts() -> None:
    """The nodes are ranked 0.6, 0.4, 0.36, 0.33. The number of nodes includes the root."""
    growth = grown()
    assert growth.best(9, 3) == Tree([9, 0, 1], [-1, 0, 0])
    assert growth.best(9, 4) == Tree([9, 0, 1, 4], [-1, 0, 0, 2])
    assert growth.best(9, 5) == Tree([9, 0, 1, 2, 4], [-1, 0, 0, 1, 2])

"""The rules of the methods at small sizes, each against its closed form or a value by hand, ties and bounds included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from models.interval import inter_fuse, uncertainty
from models.methods.lantern import Relaxation
from models.methods.speculative import residual
from models.sampling import filter_probs, warp_probs
from models.tree import Growth, Tree


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


# ---- CIAR


@given(st.floats(-8, 8), st.floats(0, 6), st.floats(0, 6))
def test_inter_fuse_of_two_tokens_is_a_sigmoid_each(c: float, first: float, second: float) -> None:
    """lower_i = e^(c_i - r_i) / (e^(c_i - r_i) + e^c_j), upper_i with + r_i."""
    lower, upper = inter_fuse(tensor([c, 0.0], dtype=torch.float64), tensor([first, second], dtype=torch.float64))
    assert lower.tolist() == pytest.approx([sigmoid(c - first), sigmoid(-c - second)], rel=1e-12)
    assert upper.tolist() == pytest.approx([sigmoid(c + first), sigmoid(-c + second)], rel=1e-12)


def test_inter_fuse_of_four_equal_tokens() -> None:
    """With r = log 3 the odds 1/3 become 1/9 and 1."""
    lower, upper = inter_fuse(torch.zeros(4, dtype=torch.float64), torch.full((4,), math.log(3.0), dtype=torch.float64))
    assert lower.tolist() == pytest.approx([0.1] * 4)
    assert upper.tolist() == pytest.approx([0.5] * 4)


def test_the_score_is_width_times_deviation_over_all_tokens() -> None:
    """Widths 0, 0.4, 0, 0.4: omega 0.8, population deviation 0.2, sqrt(4) = 2."""
    lower = torch.full((4,), 0.1, dtype=torch.float64)
    s = uncertainty(lower, lower + tensor([0.0, 0.4, 0.0, 0.4], dtype=torch.float64))
    assert (float(s.omega), float(s.sigma)) == (pytest.approx(0.8), pytest.approx(0.2))
    assert (float(s.u), float(s.u_tilde)) == (pytest.approx(0.16), pytest.approx(0.32))
    assert float(s.lower_top) == pytest.approx(0.9)


# ---- speculative


def test_the_residual_is_what_the_draft_left_over() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    assert residual(p, q).tolist() == [1.0, 0.0, 0.0]
    # Weights of sum 2: x is drafted and accepted with probability min(p, q) / 2, so p - min(p, q) / 2 is left, scaled to 1.
    assert residual(p, 2.0 * q).tolist() == pytest.approx([2 / 5, 1 / 5, 1 / 5] / np.sum([2 / 5, 1 / 5, 1 / 5]))


# ---- EAGLE-2

LOG = {
    name: math.log(value) for name, value in (("a", 0.6), ("b", 0.4), ("c", 0.9), ("d", 0.1), ("e", 0.55), ("f", 0.45))
}


def grown() -> Growth:
    """Tokens 0 (0.6) and 1 (0.4) after the root; 2 (0.55) and 3 (0.45) after token 0; 4 (0.9) and 5 (0.1) after token 1."""
    never = -math.inf
    growth = Growth(top_k=2)
    growth.begin(tensor([LOG["a"], LOG["b"], never, never, never, never]))
    growth.grow(
        tensor([[never, never, LOG["e"], LOG["f"], never, never], [never, never, never, never, LOG["c"], LOG["d"]]])
    )
    return growth


def test_a_beam_holds_the_most_likely_paths() -> None:
    """0.4 * 0.9 = 0.36 and 0.6 * 0.55 = 0.33 lead 0.27 and 0.04; by the last step alone 0.9 and 0.55 would, in the other order."""
    growth = grown()
    assert [growth.tokens[node] for node in growth.beam] == [4, 2]
    following = torch.full((2, 6), -math.inf)
    following[0, :2], following[1, 2:4] = tensor([LOG["a"], LOG["b"]]), tensor([LOG["c"], LOG["d"]])
    growth.grow(following)
    # 0.36 * 0.6 = 0.216 and 0.33 * 0.9 = 0.297
    assert [growth.tokens[node] for node in growth.beam] == [2, 0]


def test_re_ranking_keeps_the_best_nodes_and_the_root_counts() -> None:
    """0.6, 0.4, 0.36 and 0.33 in this order; as many nodes as asked for, the root among them."""
    growth = grown()
    assert growth.best(9, 3) == Tree([9, 0, 1], [-1, 0, 0])
    assert growth.best(9, 4) == Tree([9, 0, 1, 4], [-1, 0, 0, 2])
    assert growth.best(9, 5) == Tree([9, 0, 1, 2, 4], [-1, 0, 0, 1, 2])


# ---- LANTERN

NEAR = np.array([[1, 2, 3], [0, 2, 3], [1, 3, 0], [2, 1, 0]], np.uint16)
P = np.array([0.25, 0.125, 0.25, 0.375])


@pytest.mark.parametrize(
    ("k", "delta", "accepted", "removed"),
    [
        (2, 0.0, 0.25, []),  # no code within the bound: only x itself
        (2, 0.124, 0.25, []),
        (2, 0.125, 0.375, [1, 2, 3]),  # C_1 = 0.125 is at the bound, and within it; k + 1 codes are removed
        (2, 0.374, 0.375, [1, 2, 3]),
        (2, 0.375, 0.625, [1, 2, 3]),  # C_2 = 0.375
        (1, 1.0, 0.375, [1, 2]),  # no more than k codes count
        (0, 1.0, 0.25, []),
    ],
)
def test_relaxed_acceptance_adds_the_nearest_codes_up_to_the_bound(
    k: int, delta: float, accepted: float, removed: list[int]
) -> None:
    found, others = Relaxation(NEAR, k, delta=delta).relaxed_accept(P, 0)
    assert (found, others.tolist()) == (accepted, removed)


@pytest.mark.parametrize(("lambda_", "accepted"), [(1.0, 0.25), (1.5, 0.375), (2.0, 0.375), (2.5, 0.625)])
def test_the_multiplicative_bound_is_lambda_times_p_in_all(lambda_: float, accepted: float) -> None:
    """p'(x) <= lambda p(x): C_j may be (lambda - 1) p(x), here 0, 0.125, 0.25 and 0.375."""
    found, _ = Relaxation(NEAR, 2, lambda_=lambda_).relaxed_accept(P, 0)
    assert found == accepted


# ---- sampling

EQUAL = torch.zeros(1, 4, dtype=torch.float64)  # a softmax of 1/4 each, without rounding


def chain(rule: str, top_p: float) -> list[float]:
    """Probabilities of four equal tokens after a filter."""
    settings = (torch.ones(1), torch.zeros(1, dtype=torch.int64), tensor([top_p], dtype=torch.float64))
    probs = (filter_probs if rule == "filter" else warp_probs)(EQUAL, *settings)
    found: list[float] = probs[0].tolist()
    return found


@pytest.mark.parametrize(
    ("rule", "top_p", "kept"),
    [
        # LlamaGen drops what has more than top-p before it: at exactly top-p one more token stays.
        ("filter", 0.499, 2),
        ("filter", 0.5, 3),
        ("filter", 0.501, 3),
        ("filter", 0.75, 4),
        # The warpers drop the tail whose mass is at most 1 - top-p: at exactly top-p no more than the tokens that make it.
        ("warp", 0.501, 3),
        ("warp", 0.5, 2),
        ("warp", 0.499, 2),
        ("warp", 0.75, 3),
    ],
)
def test_top_p_at_its_bound(rule: str, top_p: float, kept: int) -> None:
    assert sum(p > 0 for p in chain(rule, top_p)) == kept

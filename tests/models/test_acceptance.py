"""No rule accepts a draft of target probability 0 for any draw. Near ties are counted."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from models.methods.ciar import vetoed
from models.methods.eagle2 import Drafted, DraftTest, OwnTest, verify
from models.methods.lantern import ChosenTest, DrawnTest, Relaxation, neighbours
from models.methods.session import NEAR_TIE, CloudState, Decisions
from models.methods.speculative import accept, accepted_drafts
from models.pair import Pair
from models.sampling import draw_with_margin, greedy_margins, sample, sample_margins
from models.tree import Tree
from simulator.protocol.messages import Start
from simulator.protocol.thresholds import Budget, Const, Ema, Running
from tests.models.test_methods import record, spec
from tests.walks import answered

V = 6
CODEBOOK = torch.arange(V, dtype=torch.float64).square().unsqueeze(-1)  # no two distances tie
draws = st.one_of(st.just(0.0), st.just(float(np.nextafter(1.0, 0.0))), st.floats(0, 1, exclude_max=True))
masses = npst.arrays(np.float64, V, elements=st.one_of(st.just(0.0), st.floats(1e-12, 1.0))).filter(
    lambda p: p.sum() > 0
)


@given(
    p=masses, r=npst.arrays(np.float64, V, elements=draws), q=npst.arrays(np.float64, V, elements=st.floats(1e-9, 1))
)
def test_speculative_never_accepts_what_the_target_cannot_say(p: Any, r: Any, q: Any) -> None:
    p = p / p.sum()
    for x in range(V):
        accepted = int(accept(p[[x]], q[[x]], r[[x]]))
        assert accepted == (r[x] * q[x] < p[x])
        if p[x] == 0:
            assert accepted == 0
    leading = int(accept(p, q, r))
    assert (p[:leading] > 0).all()


def test_a_draw_of_exactly_the_ratio_is_a_rejection() -> None:
    quarter, half = np.array([0.25]), np.array([0.5])
    assert accept(quarter, half, np.array([0.5])) == 0
    assert accept(quarter, half, np.array([np.nextafter(0.5, 0)])) == 1
    assert accept(np.zeros(1), half, np.zeros(1)) == 0
    assert accept(np.ones(1), np.ones(1), np.array([np.nextafter(1.0, 0)])) == 1


def tree_of(tokens: list[int]) -> Tree:
    """Return a tree of a root with a child per token."""
    return Tree([0, *tokens], [-1, *[0] * len(tokens)])


def draft_tests(tree: Tree, q: np.ndarray, delta: float) -> dict[str, DraftTest]:
    table = neighbours(CODEBOOK, V - 1)
    weights = np.array([0.0, *q[tree.tokens[1:]]])
    drafted = Drafted(tree, weights, np.stack([q / q.sum()]))
    return {
        "eagle2": OwnTest(tree),
        "lantern": ChosenTest(Relaxation(table, 2, delta), tree),
        "lantern, multiplicative": ChosenTest(Relaxation(table, 2, lambda_=1 + 5 * delta), tree),
        "lantern-static": DrawnTest(Relaxation(table, 2, delta), drafted),
        "lantern-static without neighbours": DrawnTest(Relaxation(table, 0, delta), drafted),
    }


@given(
    p=masses,
    q=npst.arrays(np.float64, V, elements=st.floats(1e-6, 1)),
    tokens=st.permutations(range(V)),
    delta=st.floats(0, 1),
    data=st.data(),
)
def test_trees_never_accept_a_draft_of_ratio_0(
    p: Any, q: Any, tokens: list[int], delta: float, data: st.DataObject
) -> None:
    """The ratio is the target's probability after earlier rejections, relaxed by neighbours in LANTERN."""
    p = p / p.sum()
    tree = tree_of(tokens)
    for name, test in draft_tests(tree, q / q.sum(), delta).items():
        uniform = [data.draw(draws) for _ in tokens]
        left = p
        search = verify(tree.paths(ordered=True), lambda depth, sibling: uniform[sibling], test)  # noqa: B023
        nodes, after = answered(search, lambda node: p)
        assert len(nodes) <= 2, name
        for index, child in enumerate(range(1, len(tree))):
            ratio = test.ratio(left, child)
            if nodes[1:] == [child]:
                assert uniform[index] < ratio
                assert ratio > 0
                break
            assert not uniform[index] < ratio
            left = test.rejected(left, child)
        else:
            np.testing.assert_array_equal(after, left)
        if name == "eagle2" and len(nodes) == 2:
            assert p[tree.tokens[nodes[1]]] > 0


def test_at_r_0_a_tree_passes_over_drafts_of_probability_0() -> None:
    p = np.array([0.0, 0.0, 0.5, 0.5, 0.0, 0.0])
    tree = tree_of([0, 1, 5, 3, 2])
    nodes, _ = answered(verify(tree.paths(ordered=True), lambda depth, sibling: 0.0, OwnTest(tree)), lambda node: p)
    assert [tree.tokens[node] for node in nodes[1:]] == [3]


@given(score=st.floats(0, 10), tau=st.floats(0, 10))
def test_a_score_at_the_threshold_goes_to_the_cloud(score: float, tau: float) -> None:
    const = Const(tau)
    assert const.accepts(score) == (score < tau)
    assert const.margin == abs(score - tau)
    assert not Const(tau).accepts(tau)
    assert not Ema(tau, 0.5, 0.9).accepts(tau)
    assert not Budget(tau, 0.3).accepts(tau)
    assert not Running(1.0).accepts(score or 1.0)  # it is the largest so far


def test_a_pending_token_of_probability_0_is_vetoed() -> None:
    p = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert vetoed(p, [0, 1], 1e-9) == 1
    assert vetoed(p, [0, 0], 1e-9) == 2


# --- near ties


@given(p=masses, u=draws)
def test_the_margin_of_a_draw_is_how_far_u_may_move(p: Any, u: float) -> None:
    token, margin = draw_with_margin(p, u)
    assert p[token] > 0
    assert margin >= -1e-12
    for step in (0.999 * margin - 1e-12, -(0.999 * margin - 1e-12)):
        if margin > 1e-9 and np.isfinite(step) and 0 <= u + step < 1:
            assert draw_with_margin(p, u + step)[0] == token
    probs, uniform = torch.from_numpy(p).unsqueeze(0), torch.tensor([u], dtype=torch.float64)
    ids = sample(probs, uniform)
    assert int(ids) == token
    assert float(sample_margins(probs, uniform, ids)) == pytest.approx(margin, abs=1e-12)


def test_margins_of_known_draws() -> None:
    p = np.array([0.0, 0.25, 0.5, 0.25])
    assert draw_with_margin(p, 0.3) == (2, pytest.approx(0.05))
    assert draw_with_margin(p, 0.0) == (1, 0.25)  # nothing below has any probability
    assert draw_with_margin(p, 0.99) == (3, pytest.approx(0.24))
    assert draw_with_margin(np.array([0.0, 1.0]), 0.7) == (1, np.inf)
    assert greedy_margins(torch.tensor([[1.0, 3.0, 2.5], [2.0, 2.0, 0.0]])).tolist() == [0.5, 0.0]


def test_decisions_count_what_is_near_a_tie() -> None:
    decisions = Decisions()
    for margin in (NEAR_TIE / 2, 2 * NEAR_TIE, np.inf, 0.0):
        decisions.note(margin)
    assert (decisions.count, decisions.near_ties) == (4, 2)


def test_acceptance_tests_count_until_the_first_rejection() -> None:
    state = CloudState(8, 4)
    decoding = {"pick": "sampled", "guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    state.opening = Start("a caption", 0, decoding, 3, False)
    r = [state.draw(position, "accept") for position in range(3)]
    ratios = np.array([r[0] + NEAR_TIE / 2, r[1] - 0.01, 0.5])
    assert accepted_drafts(state, ratios, np.ones(3), 0) == 1
    assert (state.decisions.count, state.decisions.near_ties) == (2, 1)


@pytest.mark.parametrize("name", ["base", "device-only", "speculative", "eagle2", "lantern-static", "ciar", "random"])
@pytest.mark.parametrize("cloud", ["sampled", "greedy"])
def test_recordings_say_how_many_decisions_were_near_a_tie(tiny_pair: Pair, name: str, cloud: str) -> None:
    settings = {"ciar": {"variant": "verify", "threshold": 0.2}, "lantern-static": {"k": 3}}.get(name, {})
    (one,) = record(tiny_pair, spec(tiny_pair, name, settings, cloud=cloud))
    assert one.meta["decisions"] >= len(one.tokens) // (1 + (name in ("eagle2", "lantern-static")))
    assert 0 <= one.meta["near_ties"] <= one.meta["decisions"]

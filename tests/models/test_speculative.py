"""Speculative decoding: its rule, its output distribution and its messages."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.methods import speculative
from models.pair import Pair
from models.recorder import Recorder
from models.sampling import wire_weights
from simulator.core.errors import ScenarioError
from simulator.protocol.ops import ROLES
from simulator.protocol.recording import FORWARD, FROM_CLOUD, FROM_DEVICE, REPLY, SEND
from tests.models.caches import assert_cache_is_that_of_its_tokens, last_backend
from tests.models.law import chi_square_p_value
from tests.models.test_methods import PROMPTS, record, spec

FALSE_ALARMS = 1e-6  # rate of each chi-square test below over random seeds

Floats = NDArray[np.float64]


# --- the rule


def test_acceptance_never_always_sometimes() -> None:
    half = np.array([0.5])
    assert speculative.accept(np.array([0.0]), half, np.array([0.3])) == 0
    assert speculative.accept(half, half, np.array([0.999])) == 1
    # The ratio is 1/2, and the rule is r < ratio.
    assert speculative.accept(half / 2, half, np.array([[0.49999], [0.5]])).tolist() == [1, 0]
    two = np.array([0.1, 1.0])
    assert speculative.accept(two, np.ones(2), np.array([0.2, 0.0])) == 0  # stops at the first rejection
    assert speculative.accept(np.zeros(0), np.zeros(0), np.zeros(0)) == 0


def test_weights_are_fp16_never_below_the_law_and_zero_where_it_is() -> None:
    law = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).pow(12).numpy()
    law[::7] = 0.0
    law /= law.sum()
    weights = wire_weights(law)
    assert np.array_equal(weights.astype(np.float16).astype(np.float64), weights)
    assert (weights >= law).all()
    assert (weights[law == 0] == 0).all()
    assert 1 <= weights.sum() < 1 + 2**-9


# --- the distribution

V, TOKENS, GAMMA = 3, 4, 2


def chains(seed: int) -> tuple[Floats, Floats]:
    """Return target and drafter, two very different Markov chains: conditional laws [T, V, V] by position and previous token."""
    rng = np.random.default_rng(seed)
    p, q = (rng.dirichlet(np.full(V, 0.5), size=(TOKENS + 1, V)) for _ in range(2))
    return 0.98 * p + 0.02 / V, 0.98 * q + 0.02 / V


def pick(law: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw an id from each row of weights [runs, V]."""
    cumulative = law.cumsum(-1)
    found: NDArray[np.int64] = (rng.random(len(law))[:, None] * cumulative[:, -1:] >= cumulative).sum(-1)
    return found


def decode(p: Floats, q: Floats, runs: int, rng: np.random.Generator, residual: Any) -> NDArray[np.int64]:
    """Return token sequences [runs, T] of speculative decoding, vectorised over the runs, with the method's own rule."""
    tokens = np.zeros((runs, TOKENS + 1), np.int64)
    done = np.zeros(runs, np.int64)
    weights = wire_weights(q)
    for _ in range(TOKENS):
        run = np.flatnonzero(done < TOKENS)
        first, last = done[run], np.where(done[run] > 0, tokens[run, done[run] - 1], 0)
        context = [last]
        for k in range(GAMMA):
            context.append(pick(weights[np.minimum(first + k, TOKENS), context[-1]], rng))
        places = [np.minimum(first + k, TOKENS) for k in range(GAMMA + 1)]
        at_p = np.stack([p[places[k], context[k], context[k + 1]] for k in range(GAMMA)], axis=-1)  # [runs, K]
        at_q = np.stack([weights[places[k], context[k], context[k + 1]] for k in range(GAMMA)], axis=-1)
        accepted = speculative.accept(at_p, at_q, rng.random(at_p.shape))
        place, before = (
            np.stack(places, -1)[np.arange(len(run)), accepted],
            np.stack(context, -1)[np.arange(len(run)), accepted],
        )
        rejected = (accepted < GAMMA)[:, None]
        following = pick(np.where(rejected, residual(p[place, before], weights[place, before]), p[place, before]), rng)
        for k in range(GAMMA + 1):
            value = np.where(k < accepted, context[min(k + 1, GAMMA)], following)
            fits = (k <= accepted) & (first + k < TOKENS)
            tokens[run[fits], first[fits] + k] = value[fits]
        done[run] = first + accepted + 1
    return tokens[:, :TOKENS]


def law_of_sequences(p: Floats) -> Floats:
    """Return the probability [V ** 4] of every sequence of four tokens. The first token is the most significant digit."""
    joint = p[0, 0]
    for t in range(1, TOKENS):
        joint = joint[..., None] * p[t][(None,) * (t - 1)]
    return joint.ravel()


RUNS = 200_000


def test_the_law_of_the_first_four_tokens_is_the_targets() -> None:
    p, q = chains(0)
    tokens = decode(p, q, RUNS, np.random.default_rng(1), speculative.residual)
    assert chi_square_p_value(tokens, law_of_sequences(p)) > FALSE_ALARMS


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, q: p,  # draws from the target after a rejection
        lambda p, q: np.abs(p - q) / np.abs(p - q).sum(-1, keepdims=True),
    ],
)
def test_a_wrong_residual_is_found_out(wrong: Any) -> None:
    p, q = chains(0)
    tokens = decode(p, q, RUNS, np.random.default_rng(1), wrong)
    assert chi_square_p_value(tokens, law_of_sequences(p)) < FALSE_ALARMS


def test_rounding_after_drawing_would_be_a_wrong_rule_too() -> None:
    """The weights sum to slightly more than one. A residual that ignores this is off by a small amount."""
    p, q = chains(0)
    weights = wire_weights(q)
    s = weights.sum(-1, keepdims=True)
    emitted = np.minimum(p, weights) / s
    exact = emitted + (1 - emitted.sum(-1, keepdims=True)) * speculative.residual(p, weights)
    np.testing.assert_allclose(exact, p, atol=1e-12)
    plain = np.maximum(p - weights, 0)
    off = emitted + (1 - emitted.sum(-1, keepdims=True)) * plain / plain.sum(-1, keepdims=True)
    assert np.abs(off - p).max() > 1e-5


# --- the programs


@pytest.mark.parametrize("gamma", [1, 3, 5, 20])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_equals_base_token_for_token(tiny_pair: Pair, gamma: int, guidance: float) -> None:
    decoding: dict[str, Any] = {"cloud": "greedy", "guidance": guidance}
    fast, base = record(
        tiny_pair, spec(tiny_pair, "speculative", {"gamma": gamma}, **decoding), spec(tiny_pair, "base", {}, **decoding)
    )
    assert np.array_equal(fast.tokens, base.tokens)
    assert fast.cloud_passes() < len(base.tokens)
    assert not fast.ops["scalars"].any()
    assert not fast.ops["vocabulary_rows"].any()


def test_what_the_residual_ships_changes_the_bytes_and_not_the_image(tiny_pair: Pair) -> None:
    decoding: dict[str, Any] = {"top_k": 9, "guidance": 2.0}
    ways = ("all", "two-phase", "top-k")
    recordings = record(tiny_pair, *(spec(tiny_pair, "speculative", {"residual": way}, **decoding) for way in ways))
    whole, phases, support = recordings
    for other in (phases, support):
        assert np.array_equal(whole.tokens, other.tokens)
        assert np.array_equal(whole.decided_by, other.decided_by)
        assert other.cloud_passes() == whole.cloud_passes()
    sent = [recording.ops[(recording.ops["kind"] == SEND) & (recording.ops["call"] > 0)] for recording in recordings]
    drafts = sent[0]["vocabulary_rows"]
    rejections = int((whole.decided_by == FROM_CLOUD).sum())  # rounds end with a token of the cloud
    assert np.array_equal(sent[0]["ids"], drafts)
    assert np.array_equal(sent[0]["scalars"], drafts)
    assert 0 < sent[1]["vocabulary_rows"].sum() <= rejections
    assert set(sent[1]["vocabulary_rows"]) <= {0, 1}
    assert phases.calls() == whole.calls() + sent[1]["vocabulary_rows"].sum()
    assert not sent[2]["vocabulary_rows"].any()
    # Drafts, sizes and nine entries of each distribution.
    assert np.array_equal(sent[2]["ids"], drafts + drafts + 9 * drafts)
    assert np.array_equal(sent[2]["scalars"], drafts + 9 * drafts)
    replies = whole.ops[(whole.ops["kind"] == REPLY) & (whole.ops["call"] > 0)]
    assert (replies["ids"] == 1).all()


def test_a_round_is_one_cloud_pass_over_the_drafts_and_a_pass_each_on_the_device(tiny_pair: Pair) -> None:
    (recording,) = record(tiny_pair, spec(tiny_pair, "speculative", {"gamma": 3}))
    forward = recording.ops[recording.ops["kind"] == FORWARD]
    cloud, device = (forward[forward["what"] == ROLES.index(role)] for role in ("cloud", "device"))
    count = len(recording.tokens)
    rounds = int((recording.decided_by == FROM_CLOUD).sum())
    assert len(cloud) == rounds
    assert (cloud["new_tokens"][1:] <= 4).all()
    assert cloud["new_tokens"][0] == 3  # after the caption
    # Two positions at once only if the previous round accepted all drafts: the cache lacks the last one.
    assert set(device["new_tokens"][1:]) <= {1, 2}
    assert (recording.decided_by == FROM_DEVICE).sum() == count - rounds
    sampled = ~np.isnan(recording.scores[:, 0])
    assert np.array_equal(sampled, recording.decided_by == FROM_DEVICE)


def test_top_k_needs_a_filter(tiny_pair: Pair) -> None:
    with pytest.raises(ScenarioError, match=r"top-k needs decoding\.top_k > 0"):
        record(tiny_pair, spec(tiny_pair, "speculative", {"residual": "top-k"}))


@pytest.mark.parametrize("cloud", ["greedy", "sampled"])
def test_the_caches_hold_what_a_fresh_prefill_would(
    tiny_pair: Pair, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = spec(tiny_pair, "speculative", {"gamma": 4}, PROMPTS[1], cloud=cloud)
    with last_backend(monkeypatch) as backends:
        (recording,) = [made for _, made in Recorder(tiny_pair, max_batch=1).record([one])]
    for role in ("cloud", "device"):
        assert_cache_is_that_of_its_tokens(tiny_pair, backends[-1], recording, PROMPTS[1], role)

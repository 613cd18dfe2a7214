"""VVS: which rounds are skipped, the tokens accepted in them, caches and messages."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from models.methods.session import CloudState, DeviceState
from models.methods.vvs import ALWAYS_VERIFIED, Rounds, path_similarity, unverified_path
from models.pair import Pair
from models.recorder import Recorder
from models.tree import Tree
from simulator.protocol.recording import DEVICE, FORWARD, SEND, Recording
from tests.models.caches import assert_cache_is_that_of_its_tokens, last_backend
from tests.models.test_eagle2 import SMALL, passes
from tests.models.test_methods import PROMPTS, record, spec


def test_similarity_of_paths_by_hand() -> None:
    book = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    half = 2**-0.5
    weights = np.array([1.0, 0.9, 0.81]) / 2.71
    assert path_similarity([[0, 2, 1], [0, 0]], book) == pytest.approx(weights @ [1.0, half, 0.0])
    three = [[0], [1], [2]]  # cosines 0, half, half
    assert path_similarity(three, book) == pytest.approx(2 * half / 3)
    assert path_similarity([[0, 1, 2]] * 2, book) == pytest.approx(1.0)
    assert np.isnan(path_similarity([[0]], book))


def test_a_path_is_taken_as_long_as_paths_are_on_average() -> None:
    tree = Tree([9, 1, 2, 3, 4, 5], [-1, 0, 0, 1, 3, 4])  # paths of 5 and 2 nodes: mean 3, 2 without the root
    paths = tree.paths(ordered=True)
    assert [unverified_path(tree, paths, u) for u in (0.0, 0.49, 0.5, 0.999)] == [[1, 3], [1, 3], [2], [2]]


@pytest.mark.parametrize("cloud", ["sampled", "greedy"])
@pytest.mark.parametrize("drafter", ["device", "cloud"])
def test_without_a_skipped_round_it_is_lantern(tiny_pair: Pair, cloud: str, drafter: str) -> None:
    settings = {**SMALL, "k": 5, "drafter": drafter}
    lantern, vvs = record(
        tiny_pair,
        spec(tiny_pair, "lantern", settings, PROMPTS[1], cloud=cloud),
        spec(tiny_pair, "vvs", {**settings, "similarity": 1.0}, PROMPTS[1], cloud=cloud),
    )
    assert np.array_equal(lantern.tokens, vvs.tokens)
    assert np.array_equal(lantern.ops, vvs.ops)


def rounds(recording: Recording) -> tuple[list[bool], int]:
    """Return for each round whether the cloud verified it, and the number of ids sent after the session's start.

    With the drafter on the device, a round begins with the drafter's pass over decided tokens. It is verified if a message follows.
    """
    ops = recording.ops[recording.ops["side"] == DEVICE]
    begins = np.flatnonzero((ops["kind"] == FORWARD) & (ops["logits_all"] == 0))
    sends = np.flatnonzero(ops["kind"] == SEND)[1:]
    ends = [*begins[1:], len(ops)]
    verified = [bool(((sends > first) & (sends < last)).any()) for first, last in zip(begins, ends, strict=True)]
    return verified, int(ops["ids"][sends].sum())


@pytest.mark.parametrize("settings", [{"interval": 2}, {"similarity": -1.0}])
def test_rounds_are_skipped_after_five_tokens_and_never_two_in_a_row(
    tiny_pair: Pair, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_tokens: list[int] = []
    take = Rounds.take

    def noting(self: Rounds, s: DeviceState | CloudState, tree: Tree) -> list[int]:
        taken = take(self, s, tree)
        if taken:
            at_tokens.append(len(s.tokens))
        return taken

    monkeypatch.setattr(Rounds, "take", noting)
    specs = [
        spec(tiny_pair, "vvs", {**SMALL, "k": 5, **settings}, prompt, seed=seed)
        for prompt in PROMPTS
        for seed in range(3)
    ]
    skipped = 0
    for recording in record(tiny_pair, *specs):
        verified, sent = rounds(recording)
        assert verified[0]
        assert all(one or two for one, two in itertools.pairwise(verified))
        skipped += verified.count(False)
        assert recording.cloud_passes() == 1 + verified.count(True)
        trees = passes(recording, "cloud")[1:]
        # Beyond its tree a pass feeds the tokens accepted since the previous pass. Every other sent id is a draft.
        decided = int((trees["new_tokens"] - SMALL["total_tokens"]).sum())
        assert sent == decided + len(trees) * (SMALL["total_tokens"] - 1)
    assert skipped == len(at_tokens) >= len(specs)
    assert min(at_tokens) >= ALWAYS_VERIFIED


@pytest.mark.parametrize("cloud", ["greedy", "sampled"])
def test_the_cache_holds_what_a_fresh_prefill_would(
    tiny_pair: Pair, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"drafter": "cloud", **SMALL, "k": 3, "delta": 0.3, "interval": 2}
    one = spec(tiny_pair, "vvs", settings, PROMPTS[1], cloud=cloud)
    with last_backend(monkeypatch) as backends:
        (recording,) = [made for _, made in Recorder(tiny_pair, max_batch=1).record([one])]
    assert (passes(recording, "cloud")[1:]["new_tokens"] > SMALL["total_tokens"]).any()
    assert_cache_is_that_of_its_tokens(tiny_pair, backends[-1], recording, PROMPTS[1], "cloud")

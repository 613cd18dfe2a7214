"""Batching in the recorder: slots are reused, and in float32 tokens differ only at near ties."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from models.pair import Pair, load_pair
from models.quality.likelihood import score_tokens
from models.recorder import Recorder
from models.sampling import guide
from models.text import left_pad
from simulator.core.rng import draws
from simulator.protocol.methods import Decoding
from simulator.protocol.recording import FROM_CLOUD, FROM_DEVICE, Recording, SessionSpec

from .test_methods import PROMPTS, record, spec

MARGIN = 1e-3


def test_slots_are_reused_and_results_come_as_sessions_finish(tiny_pair: Pair) -> None:
    specs = [spec(tiny_pair, "base", {}, PROMPTS[0], seed) for seed in range(7)]
    progress: list[tuple[int, int, int, int]] = []
    recorder = Recorder(tiny_pair, max_batch=2, progress=lambda *numbers: progress.append(numbers))
    finished = [one.seed for one, _ in recorder.record(specs)]
    assert finished == list(range(7))
    assert [p[0] for p in progress] == sorted(p[0] for p in progress)
    assert all(p[2] <= p[3] == 7 * tiny_pair.manifest.image_tokens for p in progress)


def test_quality_is_the_cloud_s_own_view(tiny_pair: Pair) -> None:
    """nll and argmax of base's sampled tokens are those of the distributions from which they were drawn."""
    one = spec(tiny_pair, "base", {}, PROMPTS[1], seed=3)
    recording = record(tiny_pair, one)[0]
    log_p = guided(tiny_pair, one, recording.tokens).log_softmax(-1)
    tokens = torch.tensor(recording.tokens.astype(np.int64))
    assert np.allclose(recording.nll, -log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).numpy(), atol=1e-5)
    assert np.array_equal(recording.argmax, log_p.argmax(-1).numpy())
    greedy = record(tiny_pair, spec(tiny_pair, "base", {}, PROMPTS[1], cloud="greedy"))[0]
    assert np.array_equal(greedy.tokens, greedy.argmax)
    assert np.array_equal(score_tokens(tiny_pair, [(one, recording.tokens.tolist())])[0][1], recording.argmax)


def test_a_image_that_the_cloud_made_alone_needs_no_pass_to_be_scored(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("base", {}),
        ("base", {"deliver": "image"}),
        ("ciar", {"threshold": 0.0, "features": "off"}),
        ("ciar", {"threshold": 0.0}),
        ("ciar", {"threshold": 0.35, "features": "off"}),
        ("code", {}),
        ("device-only", {}),
        ("speculative", {}),
        ("eagle2", {}),
    ]
    specs = [spec(tiny_pair, method, settings, PROMPTS[0], seed) for method, settings in cases for seed in range(2)]
    scored: list[SessionSpec] = []

    def noting(
        pair: Pair, sessions: Sequence[tuple[SessionSpec, Sequence[int]]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        scored.extend(one for one, _ in sessions)
        return score_tokens(pair, sessions)

    monkeypatch.setattr("models.recorder.score_tokens", noting)
    recordings = record(tiny_pair, *specs)
    assert {one.method for one in specs if one not in scored} == {"base", "ciar"}
    assert {one.settings["threshold"] for one in specs if one.method == "ciar" and one not in scored} == {0.0}
    for one, recording in zip(specs, recordings, strict=True):
        nll, best = score_tokens(tiny_pair, [(one, recording.tokens.tolist())])[0]
        np.testing.assert_allclose(recording.nll, nll, rtol=1e-6)
        assert np.array_equal(recording.argmax, best)


def guided(pair: Pair, one: SessionSpec, tokens: np.ndarray, role: str = "cloud") -> torch.Tensor:
    """Return the guided teacher-forced logits [T, V] of a role's model for a finished image."""
    model = pair.cloud if role == "cloud" else pair.device.transformer
    rows, mask = left_pad(pair.text.encode(one.prompt), pair.manifest.caption_slots)
    ids = torch.tensor(tokens.astype(np.int64))[None, :-1]
    with torch.inference_mode():
        cond = model(ids, rows[None].to(pair.dtype), mask[None])[0][0]
        uncond = model(ids, model.null_caption(1), mask[None])[0][0]
        return guide(cond, uncond, float(one.decoding["guidance"]))


def margin(exact: Pair, one: SessionSpec, first: Recording, second: Recording, t: int) -> float:
    """Return the distance from a tie, between tokens or to the threshold, at position t, where two recordings of a session differ."""
    if one.method == "ciar" and first.decided_by[t] != second.decided_by[t]:
        return abs(float(first.scores[t, 0]) - one.settings["threshold"])
    if one.settings.get("features", "off") != "off" and first.decided_by[t] == FROM_CLOUD:
        # The cloud also read features, which recordings do not keep. The difference of the device's scores so far replaces them.
        return float(np.nanmax(np.abs(first.scores[: t + 1] - second.scores[: t + 1]), initial=0.0))
    local = one.method == "device-only" or (one.method == "ciar" and first.decided_by[t] == FROM_DEVICE)
    p = guided(exact, one, first.tokens, "device" if local else "cloud")[t].softmax(-1).numpy()
    a, b = int(first.tokens[t]), int(second.tokens[t])
    if local:
        return float(abs(p[a] - p[b]))
    u = draws(one.seed, exact.manifest.image_tokens + 1, "token", "cloud", one.prompt)[t]
    return float(np.abs(p.cumsum() - u)[min(a, b) : max(a, b)].max())  # edges between the two tokens


def check(pair: Pair, exact: Pair, specs: Sequence[SessionSpec]) -> int:
    """Record sessions alone and in batches of 32, and return how many differ. The first difference must be at a margin below MARGIN."""
    different = 0
    alone, together = record(pair, *specs, max_batch=1), record(pair, *specs, max_batch=32)
    for one, first, second in zip(specs, alone, together, strict=True):
        apart = np.flatnonzero((first.tokens != second.tokens) | (first.decided_by != second.decided_by))
        if len(apart):
            different += 1
            assert margin(exact, one, first, second, int(apart[0])) < MARGIN, one
        else:
            assert np.nanmax(np.abs(first.scores - second.scores), initial=0.0) < MARGIN
            assert np.abs(first.nll - second.nll).max() < MARGIN
    return different


def mixed(pair: Pair, prompts: Sequence[str], threshold: float) -> list[SessionSpec]:
    ciar = {"threshold": threshold}
    methods = [("base", {}), ("device-only", {}), ("ciar", ciar), ("ciar", {**ciar, "features": "off"})]
    made = [spec(pair, name, settings, prompt) for name, settings in methods for prompt in prompts]
    return [SessionSpec(**{**one.__dict__, "dtype": "float32"}) for one in made]


def test_float32_diverges_only_on_a_knife_s_edge(tiny_pair: Pair, tiny_pair_folder: object) -> None:
    pair = load_pair(str(tiny_pair_folder), dtype=torch.float32)
    prompts = [
        f"a {size} {colour} cube at the top" for size in ("small", "large") for colour in ("red", "blue", "green")
    ]
    check(pair, tiny_pair, mixed(pair, prompts, 0.35))


def test_float32_diverges_only_on_a_knife_s_edge_with_the_shipped_pair() -> None:
    pair, exact = load_pair("photos"), load_pair("photos", dtype=torch.float64)
    check(pair, exact, mixed(pair, ("a white shirt for men",), 0.3)[::2])  # base and ciar


def test_margins_see_a_real_difference(tiny_pair: Pair) -> None:
    """Sessions that differ for another reason than rounding are far from a tie, so the check can fail."""
    one = spec(tiny_pair, "base", {}, PROMPTS[0])
    first, second = record(tiny_pair, one)[0], record(tiny_pair, spec(tiny_pair, "base", {}, PROMPTS[0], seed=1))[0]
    t = int(np.flatnonzero(first.tokens != second.tokens)[0])
    assert margin(tiny_pair, one, first, second, t) > MARGIN


def test_decoding_defaults_are_the_documented_ones() -> None:
    assert Decoding.model_validate({}).model_dump() == {
        "guidance": 3.0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "cloud": "sampled",
        "device": "greedy",
        "text_encoder": "cloud",
    }

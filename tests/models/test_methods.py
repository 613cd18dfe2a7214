"""The contract of every decoding method on a tiny pair in float64, at its defaults or in the settings of `VARIANTS`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.pair import Pair
from models.recorder import Recorder
from simulator.protocol.methods import METHODS, Decoding, prefix_length
from simulator.protocol.ops import ROLES
from simulator.protocol.recording import (
    AWAIT,
    CLOUD,
    FORWARD,
    FROM_CLOUD,
    FROM_DEVICE,
    REPLY,
    SEND,
    Recording,
    SessionSpec,
)

PROMPTS = ("a small red cube in the center", "a large blue ring at the top and a small green star at the bottom left")

# Name and settings. A method that is not listed is tested at its defaults.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("base", {"deliver": "stream"}),
    ("base", {"deliver": "ids"}),
    ("base", {"deliver": "image"}),
    ("device-only", {}),
    ("code", {"prefix_rate": 0.3}),
    ("speculative", {}),
    ("speculative", {"gamma": 2, "residual": "all"}),
    ("eagle2", {}),
    ("eagle2", {"drafter": "cloud", "total_tokens": 12, "depth": 3, "top_k": 4}),
    ("lantern", {"k": 5, "delta": 0.3}),
    ("lantern", {"k": 63, "lambda_": 5.0, "drafter": "cloud"}),
    ("lantern-static", {"k": 5, "delta": 0.3}),
    ("lantern-static", {"k": 3, "lambda_": 5.0, "tree": "25-nodes", "drafter": "cloud"}),
    ("vvs", {"k": 5, "delta": 0.3, "interval": 2, "total_tokens": 12, "depth": 3, "top_k": 4}),
    ("vvs", {"k": 5, "similarity": -1.0, "drafter": "cloud"}),
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.06}),
    ("ciar", {"threshold": 0.02, "prefix_rate": 0.0, "score": "omega", "features": "off"}),
    ("ciar", {"threshold": 0.5, "prefix_rate": 0.2, "score": "lower-top"}),
    ("ciar", {"threshold": 0.02, "threshold_mode": "ema", "reach": True}),
    ("ciar", {"threshold": 0.02, "bounds": "inter-dro"}),
    ("ciar", {"threshold_mode": "budget", "budget": 0.4, "features": "int8"}),
    ("ciar", {"threshold": 0.02, "threshold_mode": "even", "budget": 0.4}),
    ("ciar", {"threshold": 0.6, "threshold_mode": "running", "features": "top-64", "upload": "eager"}),
    ("ciar", {"threshold": 0.02, "variant": "verify"}),
    ("ciar", {"threshold": 0.02, "variant": "verify", "features": "int8", "upload": "eager", "prefix_rate": 0.0}),
    ("ciar", {"threshold": 0.03, "revise": 0.02}),
    ("ciar", {"threshold": 0.03, "revise": 0.02, "variant": "verify", "upload": "eager", "prefix_rate": 0.0}),
    ("entropy-lens", {}),
    ("entropy-lens", {"threshold_mode": "const", "threshold": 0.8}),
    ("softmax-corr", {}),
    ("softmax-corr", {"reading": "literal"}),
    ("softmax-corr", {"reading": "window", "threshold_mode": "const", "threshold": 0.7}),
    ("random", {"upload_rate": 0.5}),
    ("discrete", {"threshold": 0.01}),
    ("discrete", {"k": 300, "threshold": 0.01, "prefix_rate": 0.0}),
]
METHODS_UNDER_TEST = VARIANTS + [(name, {}) for name in METHODS if name not in dict(VARIANTS)]
DRAFTING = ("speculative", "eagle2", "lantern", "lantern-static", "vvs")  # these roll back caches
DECODINGS: list[dict[str, Any]] = [
    {},
    {"guidance": 1.0, "text_encoder": "device"},
    {"cloud": "greedy", "device": "sampled", "top_k": 7, "temperature": 0.9},
    {"top_p": 0.8, "text_encoder": "device", "device": "sampled"},
]


def spec(
    pair: Pair, name: str, settings: dict[str, Any], prompt: str = PROMPTS[0], seed: int = 0, **decoding: Any
) -> SessionSpec:
    full = METHODS[name].settings.model_validate(settings).model_dump()
    return SessionSpec(
        weights=pair.manifest.weights_hash,
        method=name,
        revision=METHODS[name].revision_of(METHODS[name].settings.model_validate(settings)),
        settings=full,
        decoding=Decoding.model_validate(decoding).model_dump(),
        prompt=prompt,
        seed=seed,
        dtype="float64",
    )


def record(pair: Pair, *specs: SessionSpec, max_batch: int = 8) -> list[Recording]:
    made = {one.key(): recording for one, recording in Recorder(pair, max_batch=max_batch).record(specs)}
    return [made[one.key()] for one in specs]


Recorded = Callable[[str, dict[str, Any], dict[str, Any]], list[Recording]]


def sessions(pair: Pair, name: str, settings: dict[str, Any], decoding: dict[str, Any]) -> list[SessionSpec]:
    """Return sessions of both prompts at the default decoding, or of the longer prompt at another one."""
    return [spec(pair, name, settings, prompt, **decoding) for prompt in (PROMPTS[1:] if decoding else PROMPTS)]


@pytest.fixture(scope="module")
def recorded(tiny_pair: Pair) -> Recorded:
    """Return a function that finds the recordings of `sessions`. All methods and decodings are recorded in one batch."""
    specs = [
        one
        for d in DECODINGS
        for name, settings in METHODS_UNDER_TEST
        for one in sessions(tiny_pair, name, settings, d)
    ]
    made = {one.key(): recording for one, recording in Recorder(tiny_pair).record(specs)}

    def found(name: str, settings: dict[str, Any], decoding: dict[str, Any]) -> list[Recording]:
        return [made[one.key()] for one in sessions(tiny_pair, name, settings, decoding)]

    return found


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda d: "-".join(map(str, d.values())) or "default")
@pytest.mark.parametrize(("name", "settings"), METHODS_UNDER_TEST, ids=lambda v: v if isinstance(v, str) else "")
def test_contract(
    tiny_pair: Pair, recorded: Recorded, name: str, settings: dict[str, Any], decoding: dict[str, Any]
) -> None:
    first = recorded(name, settings, decoding)
    count, codebook = tiny_pair.manifest.image_tokens, tiny_pair.manifest.codebook_size
    rows = 1 if decoding.get("guidance") == 1.0 else 2
    for recording in first:
        assert len(recording.tokens) == count
        assert recording.tokens.max() < codebook
        assert recording.image.shape == (tiny_pair.manifest.image_size, tiny_pair.manifest.image_size, 3)
        assert np.isfinite(recording.nll).all()
        ops = recording.ops
        passes = ops[ops["kind"] == FORWARD]
        assert set(passes["rows"]) <= {rows}
        # Each call is sent once and answered once. An awaited reply belongs to a sent call.
        sends, replies, awaits = (ops["call"][ops["kind"] == kind].tolist() for kind in (SEND, REPLY, AWAIT))
        assert sends == replies == sorted(set(sends))
        assert set(awaits) <= set(sends)
        # Nothing is fed twice: new positions begin where the cache ends, or before that after a roll-back.
        for side, role in ((0, "device"), (CLOUD, "cloud"), (0, "drafter"), (CLOUD, "drafter")):
            mine = passes[(passes["side"] == side) & (passes["what"] == ROLES.index(role))]
            ends = mine["kv_tokens"].astype(int) + mine["new_tokens"]
            held = np.array([0, *ends[:-1].tolist()][: len(mine)])
            if settings.get("revise") or name in DRAFTING:
                assert (mine["kv_tokens"] <= held).all()
            else:
                assert mine["kv_tokens"].tolist() == held.tolist()
            assert mine["caption"].tolist() == [1] * min(len(mine), 1) + [0] * max(len(mine) - 1, 0)
    if decoding.get("cloud", "sampled") == "sampled" and name == "base":
        other = record(tiny_pair, spec(tiny_pair, name, settings, PROMPTS[1], seed=1, **decoding))[0]
        assert not np.array_equal(first[-1].tokens, other.tokens)


def test_deliveries_of_base_differ_only_on_the_wire(tiny_pair: Pair) -> None:
    stream, ids, image = record(
        tiny_pair, *(spec(tiny_pair, "base", {"deliver": d}) for d in ("stream", "ids", "image"))
    )
    assert np.array_equal(stream.tokens, ids.tokens)
    assert np.array_equal(stream.tokens, image.tokens)
    assert np.array_equal(stream.image, image.image)
    count = tiny_pair.manifest.image_tokens
    for recording, ids_down in ((stream, count), (ids, count), (image, 0)):
        down = recording.ops[recording.ops["side"] == CLOUD]
        assert down["ids"].sum() == ids_down
    assert image.ops["image_bytes"].sum() > 0


def test_cloud_call_pct_is_cloud_passes_per_token(tiny_pair: Pair) -> None:
    count = tiny_pair.manifest.image_tokens
    base, device, code = record(
        tiny_pair,
        spec(tiny_pair, "base", {}),
        spec(tiny_pair, "device-only", {}),
        spec(tiny_pair, "code", {"prefix_rate": 0.3}),
    )
    assert base.cloud_call_pct() == 100.0
    assert device.cloud_call_pct() == 0.0
    assert code.cloud_call_pct() == 100.0 * prefix_length(0.3, count) / count
    assert (code.decided_by == FROM_CLOUD).sum() == prefix_length(0.3, count)


def test_ciar_sends_pending_tokens_with_a_feature_each_and_never_the_tail(tiny_pair: Pair) -> None:
    scores = record(tiny_pair, spec(tiny_pair, "device-only", {}))[0].scores
    threshold = float(np.quantile(scores[:, 0], 0.6))  # accepts some tokens and rejects others
    with_features, without = record(
        tiny_pair,
        spec(tiny_pair, "ciar", {"threshold": threshold}),
        spec(tiny_pair, "ciar", {"threshold": threshold, "features": "off"}),
    )
    for recording, features in ((with_features, True), (without, False)):
        local = recording.decided_by == FROM_DEVICE
        assert local.any()
        assert not local.all()
        uploads = recording.ops[(recording.ops["kind"] == SEND) & (recording.ops["call"] > 0)]
        last_cloud = int(np.flatnonzero(~local).max())
        pending = int(local[:last_cloud].sum())  # accepted before the cloud's last token
        assert uploads["ids"].sum() == pending + len(uploads)  # one candidate per upload
        assert uploads["feature_vectors"].sum() == (pending if features else 0)
        assert len(uploads) == (~local).sum() - prefix_length(0.06, len(local))
        assert recording.scores[local, 0].max() < threshold
        scored = ~np.isnan(recording.scores[:, 0])
        assert recording.scores[scored & ~local, 0].min() >= threshold


def test_batch_size_changes_no_token_in_float64(tiny_pair: Pair, recorded: Recorded) -> None:
    """Every method is recorded alone in one setting. `test_the_seed_decides_the_tokens` records all settings in other batches."""
    for name, settings in dict(reversed(METHODS_UNDER_TEST)).items():
        one, two = record(tiny_pair, sessions(tiny_pair, name, settings, {})[0])[0], recorded(name, settings, {})[0]
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.ops, two.ops)


def test_the_seed_decides_the_tokens(tiny_pair: Pair, recorded: Recorded) -> None:
    """The same sessions are recorded again in another order and in other batches."""
    cases = [(name, settings, DECODINGS[2]) for name, settings in METHODS_UNDER_TEST]
    specs = [one for case in reversed(cases) for one in sessions(tiny_pair, *case)]
    again = iter(record(tiny_pair, *specs, max_batch=48))
    for case in reversed(cases):
        for one in recorded(*case):
            assert np.array_equal(one.tokens, next(again).tokens)


def test_sessions_with_other_bounds_share_a_batch_and_nothing_else(tiny_pair: Pair) -> None:
    specs = [
        spec(tiny_pair, "ciar", {"threshold": 0.02, "bounds": bounds})
        for bounds in ("quantile", "quantile-no-dro", "inter-dro")
    ]
    together, alone = record(tiny_pair, *specs), [record(tiny_pair, one)[0] for one in specs]
    for one, two in zip(together, alone, strict=True):
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.scores, two.scores, equal_nan=True)
    assert not np.array_equal(together[0].scores, together[2].scores, equal_nan=True)

"""The loop of the uncertainty-gated methods and the variants of CIAR's round: decisions, messages and caches."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.interval import inter_fuse, reachable
from models.methods import ciar, gated
from models.methods.ciar import Ciar, widest
from models.methods.scores import all_scores
from models.methods.session import CloudState, DeviceState, Step
from models.pair import Pair
from simulator.protocol.messages import Message, decode, encode, pack_floats, unpack_floats
from simulator.protocol.methods import CiarSettings, Decoding, GatedSettings, prefix_length
from simulator.protocol.ops import Call, Forward
from simulator.protocol.recording import CLOUD, COMPUTE, DEVICE, FORWARD, FROM_DEVICE, REPLY, SCORES, SEND, Recording
from simulator.protocol.thresholds import Threshold, make_threshold
from tests.models.caches import assert_cache_is_that_of_its_tokens, committed, last_backend
from tests.models.test_methods import PROMPTS, record, spec

GATE = SCORES.index("gate")
CONST = {"threshold_mode": "const"}
SMALL: Any = SimpleNamespace(manifest=SimpleNamespace(image_tokens=4, cloud=SimpleNamespace(dim=2)))
GATED = ("entropy-lens", "softmax-corr", "discrete", "ciar")


def middle_threshold(pair: Pair, column: str = "u", share: float = 0.6) -> float:
    """Return a threshold that accepts some tokens of the tiny pair and rejects others."""
    scores = record(pair, spec(pair, "device-only", {}))[0].scores
    return float(np.quantile(scores[:, SCORES.index(column)], share))


def uploads(recording: Recording) -> np.ndarray:
    """Return the sends after the one that opens the session."""
    found: np.ndarray = recording.ops[(recording.ops["kind"] == SEND) & (recording.ops["call"] > 0)]
    return found


# --- decisions


@pytest.mark.parametrize(("name", "decoding"), [*((name, {}) for name in GATED), ("ciar", {"cloud": "greedy"})])
def test_threshold_zero_is_the_cloud_and_infinity_the_device(
    tiny_pair: Pair, name: str, decoding: dict[str, Any]
) -> None:
    zero, base, never, code, alone, device = record(
        tiny_pair,
        spec(tiny_pair, name, {**CONST, "threshold": 0.0}, **decoding),
        spec(tiny_pair, "base", {}, **decoding),
        spec(tiny_pair, name, {**CONST, "threshold": math.inf, "prefix_rate": 0.3}, **decoding),
        spec(tiny_pair, "code", {"prefix_rate": 0.3}, **decoding),
        spec(tiny_pair, name, {**CONST, "threshold": math.inf, "prefix_rate": 0.0}, **decoding),
        spec(tiny_pair, "device-only", {}, **decoding),
    )
    assert np.array_equal(zero.tokens, base.tokens)
    assert zero.cloud_call_pct() == 100.0
    assert np.array_equal(never.tokens, code.tokens)
    assert never.cloud_passes() == prefix_length(0.3, len(never.tokens))
    assert np.array_equal(alone.tokens, device.tokens)


def test_random_at_rate_one_is_the_cloud_and_at_zero_the_device(tiny_pair: Pair) -> None:
    always, base, never, code = record(
        tiny_pair,
        spec(tiny_pair, "random", {"upload_rate": 1.0}),
        spec(tiny_pair, "base", {}),
        spec(tiny_pair, "random", {"upload_rate": 0.0, "prefix_rate": 0.3}),
        spec(tiny_pair, "code", {"prefix_rate": 0.3}),
    )
    assert np.array_equal(always.tokens, base.tokens)
    assert np.array_equal(never.tokens, code.tokens)


@pytest.mark.parametrize(
    ("name", "settings", "column"),
    [
        ("entropy-lens", {}, "entropy"),
        ("softmax-corr", {}, "mid_top"),
        ("softmax-corr", {"reading": "window"}, None),
        ("discrete", {}, None),
        ("ciar", {"score": "omega"}, "omega"),
        ("ciar", {"score": "lower-top", "reach": True}, "lower_top"),
    ],
)
def test_a_token_stays_exactly_where_its_gate_is_below_the_threshold(
    tiny_pair: Pair, name: str, settings: dict[str, Any], column: str | None
) -> None:
    prefix = prefix_length(0.06, tiny_pair.manifest.image_tokens)
    probe = record(tiny_pair, spec(tiny_pair, name, {**settings, **CONST, "threshold": math.inf}))[0]
    threshold = float(np.quantile(probe.scores[prefix:, GATE], 0.5))
    recording = record(tiny_pair, spec(tiny_pair, name, {**settings, **CONST, "threshold": threshold}))[0]
    gates, local = recording.scores[prefix:, GATE], recording.decided_by[prefix:] == FROM_DEVICE
    assert np.array_equal(local, gates < threshold)
    assert local.any()
    assert not local.all()
    if column is not None:
        assert np.array_equal(gates, recording.scores[prefix:, SCORES.index(column)])


def test_reach_tightens_interval_and_scores_where_one_token_dominates() -> None:
    centre, radius = torch.tensor([5.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 0.1, 0.1, 0.1])
    lower, upper = inter_fuse(centre, radius)
    step = Step(0, centre, torch.zeros(2), all_scores(centre, lower, upper).numpy(), lower, upper, radius)
    plain, reach = (Ciar(CiarSettings(reach=on), SMALL).read(step) for on in (False, True))
    assert plain is step
    tight_lower, tight_upper = reachable(*inter_fuse(centre, radius))
    assert reach.lower is not None
    assert reach.upper is not None
    assert torch.equal(torch.stack([reach.lower, reach.upper]), torch.stack([tight_lower, tight_upper]))
    for name in ("u", "omega", "lower_top"):
        assert reach.score(name) < 0.5 * step.score(name)
    assert reach.score("entropy") == step.score("entropy")


def test_discrete_pays_for_its_samples(tiny_pair: Pair) -> None:
    recordings = record(tiny_pair, *(spec(tiny_pair, "discrete", {"k": k, "prefix_rate": 0.0}) for k in (100, 300)))
    for recording, k in zip(recordings, (100, 300), strict=True):
        computed = recording.ops[(recording.ops["kind"] == COMPUTE) & (recording.ops["side"] == DEVICE)]
        assert len(computed) == len(recording.tokens) * k // 20 + 1  # 1: the image decoder


# --- messages

# Elements of the uplink after the session's start, for n pending tokens and c uncertain ones in all.
WIRE: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
    ("entropy-lens", CONST, {}, lambda n, c: {"ids": n + c}),
    ("softmax-corr", CONST, {}, lambda n, c: {"ids": n + c}),
    ("softmax-corr", {"reading": "literal"}, {}, lambda n, c: {"ids": n + c}),
    ("random", {"upload_rate": 0.5}, {}, lambda n, c: {"ids": n + c}),
    ("discrete", {}, {}, lambda n, c: {"ids": n + c}),
    ("ciar", {}, {}, lambda n, c: {"ids": n + c, "feature_vectors": n}),
    ("ciar", {"features": "off"}, {}, lambda n, c: {"ids": n + c}),
    ("ciar", {"features": "top-64"}, {}, lambda n, c: {"ids": n + c, "feature_vectors": n}),
    ("ciar", {"features": "int8"}, {}, lambda n, c: {"ids": n + c, "int8_vectors": n}),
    ("ciar", {"upload": "eager"}, {}, lambda n, c: {"ids": n + c, "feature_vectors": n}),
    ("ciar", {"upload": "eager", "features": "int8"}, {}, lambda n, c: {"ids": n + c, "int8_vectors": n}),
    # The candidate's weight and distribution: one token if the device is greedy, few entries under top-k, or a whole row on request.
    ("ciar", {"variant": "verify"}, {}, lambda n, c: {"ids": n + 2 * c, "feature_vectors": n, "scalars": c}),
    (
        "ciar",
        {"variant": "verify"},
        {"device": "sampled", "top_k": 5},
        lambda n, c: {"ids": n + 6 * c, "feature_vectors": n, "scalars": 5 * c},
    ),
    (
        "ciar",
        {"variant": "verify"},
        {"device": "sampled"},
        lambda n, c: {"ids": n + c, "feature_vectors": n, "scalars": c},
    ),
]


@pytest.mark.parametrize(("name", "settings", "decoding", "elements"), WIRE)
def test_elements_on_the_wire(
    tiny_pair: Pair, name: str, settings: dict[str, Any], decoding: dict[str, Any], elements: Any
) -> None:
    columns = {"entropy-lens": "entropy", "softmax-corr": "mid_top"}
    if name in columns and settings.get("threshold_mode") == "const":
        settings = {**settings, "threshold": middle_threshold(tiny_pair, columns[name])}
    elif name in ("ciar", "discrete"):
        settings = {**settings, "threshold": middle_threshold(tiny_pair) / (1 if name == "ciar" else 3)}
    recording = record(tiny_pair, spec(tiny_pair, name, settings, seed=3, **decoding))[0]
    local = recording.decided_by == FROM_DEVICE
    last_cloud = int(np.flatnonzero(~local).max())
    eager = settings.get("upload") == "eager"
    # Tokens accepted after the last call are never sent.
    n = int(local.sum()) if eager else int(local[:last_cloud].sum())
    c = int((~local).sum()) - prefix_length(0.06, len(local))
    assert n
    assert c
    up = uploads(recording)
    asked = len(up) - (n if eager else 0)
    rows = int(up["vocabulary_rows"].sum())
    assert asked == c + rows  # a second phase for each requested row
    wanted = {"vocabulary_rows": rows, **elements(n, c)}
    counts = ("ids", "scalars", "feature_vectors", "int8_vectors", "vocabulary_rows")
    assert {kind: int(up[kind].sum()) for kind in counts} == {**dict.fromkeys(counts, 0), **wanted}
    width = tiny_pair.manifest.cloud.dim
    content = {
        "ids": 2,
        "scalars": 2,
        "feature_vectors": 2 * width,
        "int8_vectors": width + 2,
        "vocabulary_rows": 2 * tiny_pair.manifest.codebook_size,
    }
    payload = sum(content[kind] * up[kind] for kind in counts)
    assert (up["payload_bytes"] - payload <= 24).all()  # type name and headers
    down = recording.ops[(recording.ops["kind"] == REPLY) & (recording.ops["call"] > 0)]
    assert down["ids"].sum() == c


def test_eager_changes_when_things_travel_and_nothing_else(tiny_pair: Pair) -> None:
    threshold = middle_threshold(tiny_pair)
    lazy, eager = record(
        tiny_pair,
        *(spec(tiny_pair, "ciar", {"threshold": threshold, "upload": upload}) for upload in ("lazy", "eager")),
    )
    assert np.array_equal(lazy.tokens, eager.tokens)
    assert np.array_equal(lazy.decided_by, eager.decided_by)
    local = eager.decided_by == FROM_DEVICE
    tail = int(local[np.flatnonzero(~local).max() :].sum())  # sent though no question follows
    assert eager.calls() == lazy.calls() + local.sum()
    assert uploads(eager)["feature_vectors"].sum() == uploads(lazy)["feature_vectors"].sum() + tail
    passes = [
        recording.ops[(recording.ops["kind"] == FORWARD) & (recording.ops["side"] == CLOUD)]
        for recording in (lazy, eager)
    ]
    assert passes[0]["new_tokens"].tolist() == passes[1]["new_tokens"].tolist()


def test_only_the_widest_intervals_enter_phi() -> None:
    lower = torch.rand(100, generator=torch.Generator().manual_seed(0)) / 100
    upper = lower + torch.arange(1.0, 101.0) / 1000
    found = widest(Step(0, torch.zeros(100), torch.zeros(2), None, lower, upper), 64)
    assert found.lower is not None
    assert found.upper is not None
    assert not found.lower[:36].any()
    assert not found.upper[:36].any()
    assert torch.equal(found.lower[36:], lower[36:])
    assert torch.equal(found.upper[36:], upper[36:])


# --- verify: candidate and residual follow the cloud's distribution

V = 6
CLOUD_LOGITS = torch.tensor([1.2, -0.3, 0.4, 2.0, -2.0, 0.1], dtype=torch.float64)
DEVICE_LOGITS = torch.tensor([2.5, 1.0, -1.5, 0.2, 0.3, -0.5], dtype=torch.float64)


DEVICE_STEP = Step(int(DEVICE_LOGITS.argmax()), DEVICE_LOGITS, torch.zeros(2))
CLOUD_STEP = Step(0, CLOUD_LOGITS, torch.zeros(2))


def verified_token(seed: int, decoding: Decoding) -> int:
    """Return the token decided for one uncertain position. Every message passes through the codec."""
    device = DeviceState(image_tokens=4, caption_dim=2, caption="a", decoding=decoding, seed=seed)
    cloud = CloudState(image_tokens=4, caption_dim=2, opening=device.start(0, want_caption=False))
    method = Ciar(CiarSettings(variant="verify"), SMALL)
    program = method.ask(device, ciar.Pending(), DEVICE_STEP, 1.0)
    reply: Message | None = None
    while True:
        try:
            op = program.send(reply)
        except StopIteration:
            assert device.tokens == cloud.tokens
            return device.tokens[0]
        assert isinstance(op, Call)
        answer = method.cloud(cloud, decode(encode(op.message)))
        value: Step | None = None
        try:
            while True:
                assert isinstance(answer.send(value), Forward)
                value = CLOUD_STEP
        except StopIteration as stop:
            reply = decode(encode(stop.value))


RUNS = 800


def chi_square(runs: int, **decoding: Any) -> float:
    settings = Decoding.model_validate(decoding)
    counts = np.bincount([verified_token(seed, settings) for seed in range(runs)], minlength=V)
    p = (CLOUD_LOGITS / decoding.get("temperature", 1.0)).softmax(-1).numpy()
    if decoding.get("top_k"):
        p = np.where(p >= np.sort(p)[-decoding["top_k"]], p, 0.0)
        p /= p.sum()
    possible = p > 0
    assert not counts[~possible].any()
    return float(((counts - runs * p)[possible] ** 2 / (runs * p[possible])).sum())


@pytest.mark.parametrize(
    "decoding",
    [
        {"device": "sampled"},
        {"device": "sampled", "top_k": 4},
        {"device": "sampled", "temperature": 0.7},
        {"device": "greedy"},
    ],
    ids=str,
)
def test_verify_leaves_the_clouds_law_as_it_is(decoding: dict[str, Any]) -> None:
    """25.7 is the 99.99 % point of 5 degrees of freedom, the most here: one false alarm in 10,000 choices of seeds."""
    assert chi_square(RUNS, **decoding) < 25.7


def test_the_law_test_sees_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ciar, "residual", lambda p, q: p)  # draws from p instead of from the residual
    assert chi_square(RUNS, device="sampled") > 50


def test_rounded_candidate_and_residual_add_up_exactly() -> None:
    """min(p, q) / S + P(rejected) residual = p, with the weights q as sent and their sum S."""
    step = Step(0, DEVICE_LOGITS, torch.zeros(2))
    for decoding in ({"device": "sampled"}, {"device": "sampled", "top_k": 3}, {"device": "greedy"}):
        state = DeviceState(image_tokens=4, caption_dim=2, decoding=Decoding.model_validate(decoding))
        q = ciar.candidate_probs(state, step)
        assert np.array_equal(unpack_floats(pack_floats(q), V)[0], q)
        p = CLOUD_LOGITS.softmax(-1).numpy()
        kept = np.minimum(p, q) / q.sum()
        np.testing.assert_allclose(kept + (1 - kept.sum()) * ciar.residual(p, q), p, atol=1e-14)


def test_verify_greedy_against_greedy_is_the_clouds_choice(tiny_pair: Pair) -> None:
    settings = {"threshold": middle_threshold(tiny_pair)}
    resample, verify = record(
        tiny_pair,
        *(
            spec(tiny_pair, "ciar", {**settings, "variant": variant}, cloud="greedy")
            for variant in ("resample", "verify")
        ),
    )
    assert np.array_equal(resample.tokens, verify.tokens)


# --- revise: both caches are cut back and hold the final tokens


def rolled_back(recording: Recording, side: int) -> bool:
    passes = recording.ops[(recording.ops["kind"] == FORWARD) & (recording.ops["side"] == side)]
    ends = passes["kv_tokens"].astype(int) + passes["new_tokens"]
    return bool((passes["kv_tokens"][1:] < ends[:-1]).any())


@pytest.mark.parametrize("settings", [{}, {"upload": "eager", "variant": "verify"}, {"prefix_rate": 0.0}], ids=str)
def test_revised_caches_equal_a_fresh_prefill(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    threshold, cuts = middle_threshold(tiny_pair, share=0.3), [0, 0]
    for seed in range(6):
        asked = {"threshold": threshold, "revise": 0.1, "features": "off", **settings}
        with last_backend(monkeypatch) as backends:
            recording = record(tiny_pair, spec(tiny_pair, "ciar", asked, PROMPTS[0], seed))[0]
        for side, role in ((DEVICE, "device"), (CLOUD, "cloud")):
            cuts[side] += rolled_back(recording, side)
            if committed(recording, role):  # 0 if the cloud made only one pass
                assert_cache_is_that_of_its_tokens(tiny_pair, backends[-1], recording, PROMPTS[0], role)
    assert all(cuts)


def test_revising_nothing_is_the_plain_round(tiny_pair: Pair) -> None:
    settings = {"threshold": middle_threshold(tiny_pair)}
    plain, revise = record(
        tiny_pair, spec(tiny_pair, "ciar", settings), spec(tiny_pair, "ciar", {**settings, "revise": 1e-9})
    )
    assert np.array_equal(plain.tokens, revise.tokens)
    assert revise.ops["logits_all"].any()  # the veto needs the distribution at every pending position
    revise.ops["logits_all"] = 0
    assert np.array_equal(plain.ops, revise.ops)


@pytest.mark.parametrize("score", ["u", "entropy"])
def test_an_even_share_spends_its_calls_on_every_image_revised_or_not(tiny_pair: Pair, score: str) -> None:
    name = "ciar" if score == "u" else "entropy-lens"
    start = middle_threshold(tiny_pair, score)
    variants = [{"revise": 0.1, "features": "off"}, {"revise": 0.1, "upload": "eager"}] if name == "ciar" else [{}]
    specs = [
        spec(tiny_pair, name, {"threshold_mode": "even", "budget": 0.6, "threshold": start, **one}, prompt, seed)
        for one in variants
        for prompt in PROMPTS
        for seed in range(3)
    ]
    recordings = record(tiny_pair, *specs)
    assert {recording.cloud_passes() for recording in recordings} == {10}  # 0.6 of 16; no prefix
    assert len({recording.decided_by.tobytes() for recording in recordings}) > 1
    if name == "ciar":
        assert any(rolled_back(recording, DEVICE) for recording in recordings)


def test_a_position_that_is_decided_again_counts_once(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold rule keeps one score per decided position, also if the cloud revoked tokens."""
    rules: list[Threshold] = []

    def noted(settings: GatedSettings, count: int) -> Threshold:
        rules.append(make_threshold(settings, count))
        return rules[-1]

    monkeypatch.setattr(gated, "make_threshold", noted)
    settings = {"threshold_mode": "budget", "budget": 0.5, "threshold": middle_threshold(tiny_pair), "revise": 0.3}
    recording = record(tiny_pair, spec(tiny_pair, "ciar", settings))[0]
    assert rolled_back(recording, DEVICE)
    assert np.array_equal(np.float32(rules[-1].past), recording.scores[:, GATE])


@pytest.mark.parametrize("name", ["device-only", "code", "ciar"])
def test_local_tokens_sampled_from_a_top_p_of_their_own(tiny_pair: Pair, name: str) -> None:
    """A tiny top-p keeps only the most likely token. A top-p of 1 or of the scenario is plain sampling."""
    settings = {"threshold": middle_threshold(tiny_pair), "variant": "verify"} if name == "ciar" else {}

    def of(**decoding: Any) -> Recording:
        return record(tiny_pair, spec(tiny_pair, name, settings, **decoding))[0]

    least, greedy = of(device={"top_p": 1e-6}), of(device="greedy")
    assert np.array_equal(least.tokens, greedy.tokens)
    whole, sampled = of(device={"top_p": 1.0}), of(device="sampled")
    assert np.array_equal(whole.tokens, sampled.tokens)
    assert not np.array_equal(sampled.tokens, greedy.tokens)
    half, same = of(device={"top_p": 0.5}), of(device="sampled", top_p=0.5)
    assert not np.array_equal(half.tokens, sampled.tokens)
    if name == "device-only":
        assert np.array_equal(half.tokens, same.tokens)


def test_a_revised_token_is_the_clouds_and_keeps_its_score(tiny_pair: Pair) -> None:
    """If every token is vetoed, the first pending token is always revoked, so every token is the cloud's."""
    settings = {"threshold": middle_threshold(tiny_pair), "revise": 1.0}
    recording = record(tiny_pair, spec(tiny_pair, "ciar", settings))[0]
    local = recording.decided_by == FROM_DEVICE
    last = int(np.flatnonzero(~local).max())
    assert not local[: last + 1].any()
    assert (recording.scores[1 : last + 1, GATE] < settings["threshold"]).any()
    assert recording.cloud_passes() >= last + 1 - int(np.isnan(recording.scores[:, GATE]).sum())

"""Statistical sessions: recorded sessions rebuilt from their statistics, published rates, and their labelling as statistical."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ciar_sim
from models.images import png_bytes
from models.pair import Pair, load_pair
from simulator.core.errors import CiarSimError, RecordingError, ScenarioError, WeightsError
from simulator.protocol.methods import METHODS, Decoding, GatedSettings, prefix_length
from simulator.protocol.outline import Outline, decided_by, session_ops
from simulator.protocol.pairs import known_pairs, pair_manifest
from simulator.protocol.recording import CLOUD, DEVICE, FORWARD, FROM_CLOUD, REPLY, Recording, SessionSpec
from simulator.protocol.statistical import draw_outline, record_statistical
from tests.models.test_methods import record, spec

TREE = {"total_tokens": 12, "depth": 2, "top_k": 3}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("base", {}, {}),
    ("base", {"deliver": "ids"}, {}),
    ("base", {"deliver": "image"}, {}),
    ("device-only", {}, {}),
    ("device-only", {}, {"text_encoder": "device"}),
    ("code", {"prefix_rate": 0.3}, {}),
    ("entropy-lens", {"threshold": 0.5}, {}),
    ("random", {"upload_rate": 0.4}, {"guidance": 1.0}),
    ("discrete", {"threshold": 0.3, "k": 40}, {}),
    ("ciar", {"threshold": 0.3, "threshold_mode": "even", "budget": 0.3}, {}),
    (
        "ciar",
        {"threshold": 0.3, "threshold_mode": "even", "budget": 0.5, "prefix_rate": 0.0},
        {"text_encoder": "device"},
    ),
    ("ciar", {"threshold": 0.3, "threshold_mode": "even", "budget": 0.3, "features": "int8"}, {}),
    ("eagle2", TREE, {}),
    ("eagle2", {**TREE, "drafter": "cloud"}, {}),
    ("lantern", {**TREE, "k": 3}, {}),
]


def outline_of(recording: Recording) -> Outline:
    """Return the outline of a recorded session, from which a statistical session can be built."""
    settings = METHODS[recording.meta["spec"]["method"]].settings.model_validate(recording.meta["spec"]["settings"])
    count = len(recording.tokens)
    uploads: list[int] = []
    if isinstance(settings, GatedSettings):
        prefix = prefix_length(settings.prefix_rate, count)
        uploads = [t for t in range(prefix, count) if recording.decided_by[t] == FROM_CLOUD]
    replies = recording.ops[recording.ops["kind"] == REPLY]
    emits = recording.ops[(recording.ops["side"] != DEVICE) & (recording.ops["ids"] > 0)]
    if getattr(settings, "drafter", "") == "cloud":
        tokens = emits["ids"][1:]  # the first part is only the first token
        accepted = [int(made) - 1 for made in tokens]
    else:
        rounds = replies[1:]  # the first reply is the first token
        tree = "total_tokens" in type(settings).model_fields
        made = [int(n) for n in np.diff([0, *np.flatnonzero(recording.decided_by == FROM_CLOUD)])] if tree else []
        accepted = [n - 1 for n in made[1:]] if len(made) > 1 else []
        if tree and len(accepted) < len(rounds):  # the image ended with an accepted draft
            accepted.append(count - 1 - sum(n + 1 for n in accepted))
    rows = replies["caption_rows"][0] if len(replies) else 0
    missed = bool(recording.meta["spec"]["missed_calls"])
    return Outline(int(rows), uploads, accepted, png_bytes(recording.image), missed)


@pytest.mark.parametrize(("name", "settings", "decoding"), CASES, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(CASES)])
def test_a_recorded_session_is_rebuilt_from_its_statistics(
    tiny_pair: Pair, name: str, settings: dict[str, Any], decoding: dict[str, Any]
) -> None:
    rebuilt(tiny_pair, spec(tiny_pair, name, settings, **decoding))


def test_a_session_whose_first_reply_is_missed_is_rebuilt(tiny_pair: Pair) -> None:
    asked = spec(tiny_pair, "code", {"prefix_rate": 0.3}, text_encoder="device")
    rebuilt(tiny_pair, replace(asked, missed_calls=(0,)))


def rebuilt(tiny_pair: Pair, asked: SessionSpec) -> None:
    name = asked.method
    real = record(tiny_pair, asked)[0]
    outline = outline_of(real)
    full = METHODS[name].settings.model_validate(asked.settings)
    made = session_ops(
        full, Decoding.model_validate(asked.decoding), outline, asked.prompt, asked.seed, len(real.tokens), real.widths
    )
    for column in real.ops.dtype.names or ():
        if column == "hidden":  # depends on the shape of the tree
            assert ((made[column] > 0) <= (made["logits_all"] > 0)).all()
            continue
        assert made[column].tolist() == real.ops[column].tolist(), column
    assert decided_by(full, outline, len(real.tokens)).tolist() == real.decided_by.tolist()


# --- published rates

PAPER = "paper-anole"


def published(name: str, prompt: str = "a cat", missed: tuple[int, ...] = (), **settings: Any) -> SessionSpec:
    manifest = pair_manifest(PAPER)
    full = METHODS[name].settings.model_validate(settings).model_dump()
    decoding = Decoding.model_validate({}).model_dump()
    return SessionSpec(manifest.weights_hash, name, 1, full, decoding, prompt, 0, missed_calls=missed)


@pytest.mark.parametrize("name", ["ciar", "entropy-lens", "eagle2", "lantern"])
def test_sessions_keep_the_published_rate_of_cloud_calls(name: str) -> None:
    """Each session has the rate rounded up or down to whole passes at random, so that the mean over sessions is exact."""
    manifest = pair_manifest(PAPER)
    assert manifest.statistics is not None
    rate = manifest.statistics.cloud_call_pct[name]
    settings = METHODS[name].settings.model_validate({})
    found = []
    for number in range(400):
        outline = draw_outline(published(name, f"caption {number}"), settings, manifest)
        first = prefix_length(settings.prefix_rate, 1024) if isinstance(settings, GatedSettings) else 1
        found.append(first + len(outline.uploads) + len(outline.accepted))
        assert not outline.accepted or 1 + sum(n + 1 for n in outline.accepted) == 1024
    wanted = rate / 100 * 1024
    assert set(found) <= {math.floor(wanted), math.ceil(wanted)}
    assert np.mean(found) == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(400))  # four standard errors
    made = record_statistical(published(name), manifest)
    assert made.cloud_passes() in set(found)


def test_a_statistical_session_is_drawn_by_its_seed_and_has_no_quality() -> None:
    manifest = pair_manifest(PAPER)
    one, again, other = (record_statistical(published("ciar", text), manifest) for text in ("a", "a", "b"))
    assert one.to_bytes() == again.to_bytes()
    assert one.decided_by.tolist() != other.decided_by.tolist()
    assert np.isnan(one.nll).all()
    assert np.isnan(one.scores).all()
    assert "CIAR" in one.meta["statistical"]
    assert Recording.from_bytes(one.to_bytes()).meta["statistical"] == one.meta["statistical"]


def test_what_statistics_do_not_say_is_refused() -> None:
    manifest = pair_manifest(PAPER)
    with pytest.raises(
        ScenarioError, match="have no rate of cloud calls for random; they have: base, device-only, code, eagle2"
    ):
        record_statistical(published("random"), manifest)
    with pytest.raises(ScenarioError, match="no statistical sessions of speculative: its rounds follow from more"):
        record_statistical(published("speculative"), tight(manifest, "speculative", 50.0))
    with pytest.raises(ScenarioError, match="ciar: upload must be lazy with statistics, got eager"):
        record_statistical(published("ciar", upload="eager"), manifest)
    with pytest.raises(ScenarioError, match="deliver must be stream or ids"):
        record_statistical(published("base", deliver="image"), manifest)
    with pytest.raises(ScenarioError, match="fewer cloud passes than its prefix of 512"):
        record_statistical(published("ciar", prefix_rate=0.5), manifest)
    with pytest.raises(ScenarioError, match="accept at most 2 drafts"):
        record_statistical(published("lantern", depth=1, total_tokens=20), tight(manifest, "lantern", 20.0))
    with pytest.raises(RecordingError, match="what follows a missed reply"):
        record_statistical(published("ciar", missed=(1,)), manifest)
    with pytest.raises(WeightsError, match="published figures and no weights"):
        load_pair(PAPER)


def tight(manifest: Any, name: str, rate: float) -> Any:
    import msgspec

    statistics = msgspec.structs.replace(manifest.statistics, cloud_call_pct={name: rate})
    return msgspec.structs.replace(manifest, statistics=statistics)


def test_shipped_statistics_are_those_of_catalogue_models() -> None:
    from simulator.pricing import catalogue

    names = {
        "paper-llamagen-xl": "llamagen-xl",
        "paper-llamagen-xl-stage2": "llamagen-xl-stage2",
        "paper-anole": "anole-7b",
        "paper-code": "var-d30",
    }
    assert {name for name in known_pairs() if pair_manifest(name).statistics} == set(names)
    for name, model in names.items():
        manifest, shape = pair_manifest(name), catalogue.model(model)
        own = (manifest.cloud.n_layer, manifest.cloud.dim, manifest.cloud.ffn_hidden, manifest.codebook_size)
        assert own == (shape.n_layer, shape.dim, shape.ffn_hidden, shape.vocab_size)
        assert (manifest.image_tokens, manifest.image_size**2) == (shape.image_tokens, shape.image_pixels)
        assert (manifest.caption_slots, manifest.caption_dim) == (shape.caption_slots, shape.caption_dim)


def test_a_model_of_scales_makes_one_in_a_pass_and_hands_over_once() -> None:
    """CoDe as published: 255 ids after eight of ten scales. Every position is fed once, the first with the caption."""
    manifest = pair_manifest("paper-code")
    assert manifest.statistics is not None
    sizes = [side * side for side in manifest.statistics.scales]
    assert sum(sizes) == manifest.image_tokens == 680

    def passes(recording: Recording, side: int) -> list[int]:
        ops = recording.ops[(recording.ops["kind"] == FORWARD) & (recording.ops["side"] == side)]
        assert ops["caption"].tolist() == [1] + [0] * (len(ops) - 1)
        assert ops["kv_tokens"].tolist() == [0, *np.cumsum(ops["new_tokens"])[:-1]]
        return [int(one) for one in ops["new_tokens"]]

    base = record_statistical(published("base"), manifest)
    assert passes(base, CLOUD) == [0, *sizes[1:]]
    assert base.ops["ids"][base.ops["kind"] == REPLY].tolist() == [256]
    code = record_statistical(published("code", prefix_rate=0.375), manifest)
    assert passes(code, CLOUD) == [0, *sizes[1:8]]
    assert passes(code, DEVICE) == [254 + 169, 256]
    assert code.ops["ids"][code.ops["kind"] == REPLY].tolist() == [255]
    assert (code.decided_by == FROM_CLOUD).sum() == 255
    assert passes(record_statistical(published("device-only"), manifest), DEVICE) == [0, *sizes[1:]]
    # A share between two scales is rounded down.
    less = record_statistical(published("code", prefix_rate=0.374), manifest)
    assert (less.decided_by == FROM_CLOUD).sum() == 155
    for name in ("ciar", "eagle2", "speculative"):
        with pytest.raises(ScenarioError, match=f"{name}: decides token by token, paper-code predicts scale by scale"):
            record_statistical(published(name), manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "scenes"}, "statistics go without files, and with the subject other"),
        ({"statistics": {"source": "x", "cloud_call_pct": {"ciar": 0}}}, "must be above 0 and at most 100, got 0"),
        (
            {"statistics": {"source": "x", "cloud_call_pct": {}, "scales": [1, 4, 2, 32]}},
            "scales must increase from 1 to",
        ),
    ],
)
def test_damaged_statistics_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    from simulator.protocol.pairs import MANIFEST, pair_folder

    (tmp_path / MANIFEST).write_text(json.dumps(json.loads((pair_folder(PAPER) / MANIFEST).read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        pair_manifest(tmp_path)


# --- runs

SCENARIO: dict[str, Any] = {
    "name": "statistical",
    "pair": "paper-llamagen-xl",
    "prompts": {"list": ["a cat"]},
    "methods": ["base", {"name": "ciar", "threshold": 0.3}],
    "compute": {"cloud": {"hardware": "h100"}},
}


def test_a_run_of_statistics_says_so_everywhere_and_has_no_quality(tmp_path: Path) -> None:
    result = ciar_sim.run(SCENARIO, out=tmp_path / "out", cache=tmp_path / "cache")
    summary = result.summary.set_index("method")
    assert (summary["statistical"] == 1).all()
    for column in ("cloud_nll", "cloud_greedy_pct", "base_greedy_pct"):
        assert summary[column].isna().all(), column
    assert summary.loc["ciar", "cloud_call_pct"] == pytest.approx(30.44, abs=0.4)
    assert summary.loc["ciar", "latency_mean_s"] > 0
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["recordings"].startswith("statistical")
    assert "no model ran" in provenance["as_if"]
    assert "statistical" in provenance["columns"]
    assert any("no model ran" in text for text in result.warnings)
    assert "Statistical sessions, no model ran" in result.report.read_text()
    assert not result.images


def test_a_threshold_is_not_calibrated_on_statistics(tmp_path: Path) -> None:
    with pytest.raises(CiarSimError, match="cannot be calibrated on statistics"):
        ciar_sim.run({**SCENARIO, "methods": ["ciar"]}, out=tmp_path / "out", cache=tmp_path / "cache")
    compute = {"device": {"model": "pair", "hardware": "a100"}, "cloud": {"model": "pair", "hardware": "a100"}}
    with pytest.raises(CiarSimError, match="has no operation count of"):
        ciar_sim.run({**SCENARIO, "compute": compute}, out=tmp_path / "out", cache=tmp_path / "cache")

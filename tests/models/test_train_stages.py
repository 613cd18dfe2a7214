"""The sequence stages at toy size: learning, resuming, metrics, and the export of a pair."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import scenes
from models.device import BOUNDS
from models.pair import export_pair, load_device, load_pair, load_transformer, save_model
from models.sampling import greedy, guide, sample
from models.train import cloud, device, drafter, phi, rollouts, sequences
from models.train.inputs import READS, difference, refuse_outdated, settings_of
from models.train.loop import LoopSettings
from models.train.order import shuffled_indices
from models.train.run import RUN, TrainingFile
from models.train.tokens import SceneTokens
from models.transformer import Transformer
from models.vq import VQConfig, VQModel, load_vq, save_vq
from simulator.core.errors import WeightsError
from simulator.core.rng import stream
from simulator.protocol.pairs import TransformerConfig, pair_manifest
from tests.conftest import without_drawing

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = {
    "n_layer": 2,
    "n_head": 2,
    "dim": 32,
    "ffn_hidden": 48,
    "vocab_size": 64,
    "grid": 4,
    "caption_slots": 32,
    "caption_dim": 144,
}
COMMON: dict[str, Any] = {"scenes": {"train": 60, "held_out": 20}, "batch_images": 8}
TRAINING = {"steps": 30, "learning_rate": 3e-3, "warmup_steps": 3, "ema_decay": 0.8}
CONFIG = {
    "cloud": {"model": SHAPE, "training": {**TRAINING, "steps": 60}, **COMMON},
    "device": {"training": {**TRAINING, "steps": 60}, "token_steps": 30, "positions": 8, **COMMON},
    "phi": {"training": TRAINING, "positions": 8, "bottleneck": 16, **COMMON},
    "drafter": {"training": {**TRAINING, "steps": 100, "learning_rate": 1e-2}, "positions": 8, **COMMON},
}


def colour_tokens(tokenizer: Path, seed: int, count: int, cache: Path) -> SceneTokens:
    """Return tokens that a caption predicts: they count up from the number of its first colour."""
    captions = [scenes.scene(seed, i).caption for i in range(count)]
    colours = [next(n for n, word in enumerate(scenes.COLORS) if word in caption.split()) for caption in captions]
    noise = stream(seed, "test.noise").integers(0, 2, size=(count, 16))
    return SceneTokens(((np.array(colours)[:, None] * 7 + np.arange(16) + noise) % 64).astype(np.uint16), captions)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tokenizer").mkdir()
    narrow: dict[str, Any] = {
        "encoder_ch_mult": (1, 1),
        "decoder_ch_mult": (1, 1),
        "z_channels": 32,
        "num_res_blocks": 1,
    }
    vq = VQConfig(codebook_size=64, ch=32, patch=4, **narrow)
    save_vq(folder / "tokenizer" / "tokenizer.safetensors", VQModel(vq), {})
    with pytest.MonkeyPatch.context() as patch, without_drawing():
        patch.setattr(sequences, "scene_tokens", colour_tokens)
        for name, settings in TrainingFile.model_validate(CONFIG).stages.items():
            RUN[name](settings, None, folder / name, "cpu")
    return folder


def metrics(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / stage / "metrics.json").read_text())
    return found


def test_the_cloud_learns_tokens_and_captions(trained: Path) -> None:
    found = metrics(trained, "cloud")
    assert found["nats_per_token"] < 0.6 * np.log(64)
    assert found["nats_per_token"] < found["nats_per_token_other_caption"]


def refuse_to_begin_afresh(stage: cloud.CloudStage) -> None:
    assert stage.config.training.steps == 3, "a round that was trained begins again"
    assert stage.start is not None
    stage.model.load_state_dict(stage.start)


def test_a_further_round_starts_from_the_averaged_weights_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    still = {
        "then": [
            {
                "object_weight": 2.0,
                "training": {"steps": 2, "learning_rate": 1e-12, "weight_decay": 0.0, "ema_decay": 0.0},
            }
        ]
    }
    out = trained / "cloud-twice"
    cloud.run(cloud.CloudConfig.model_validate({**CONFIG["cloud"], **still}), None, out)
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (out / "round-1", out))
    once = torch.load(trained / "cloud" / "checkpoint.pt", weights_only=True)
    for key, tensor in once["averaged"].items():
        assert torch.equal(first["averaged"][key], tensor)  # the first round is plain training
        torch.testing.assert_close(second["model"][key], tensor)
    assert json.loads((out / "metrics.json").read_text())["steps"] == 62
    assert (out / "cloud.safetensors").exists()
    # A third round: the others are finished and not trained again.
    monkeypatch.setattr(cloud.CloudStage, "begin", refuse_to_begin_afresh)
    more = {"then": [*still["then"], {"training": {"steps": 3}}]}
    cloud.run(cloud.CloudConfig.model_validate({**CONFIG["cloud"], **more}), None, out)
    again = torch.load(out / "round-2" / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(again["averaged"][key], tensor) for key, tensor in second["averaged"].items())
    assert json.loads((out / "metrics.json").read_text())["steps"] == 65
    assert {path.name for path in out.glob("round-*")} == {"round-1", "round-2"}


def test_rounds_change_what_they_name_and_keep_the_rest() -> None:
    changes = [{"onset_weight": 3.0, "training": {"steps": 9}}, {"scenes": {"train": 40}}]
    rounds = cloud.CloudConfig.model_validate({**CONFIG["cloud"], "then": changes}).rounds()
    assert [(r.onset_weight, r.training.steps, r.training.learning_rate) for r in rounds] == [
        (1.0, 60, 3e-3),
        (3.0, 9, 3e-3),
        (3.0, 9, 3e-3),
    ]
    assert [(r.scenes.train, r.scenes.held_out) for r in rounds if r.scenes] == [(60, 20), (60, 20), (40, 20)]


def test_the_device_reports_agreement_and_scores(trained: Path) -> None:
    found = metrics(trained, "device")
    assert 0.3 < found["agreement"] <= 1
    wanted = {f"{bounds}.{score}" for bounds in BOUNDS for score in ("u_tilde", "omega", "lower_top")}
    assert set(found["auroc"]) == wanted | {"entropy", "one_minus_max_p"}
    assert 0 < found["acceptance"] < 1
    assert not {"gated", "regions"} & set(found)
    assert set(found["quantile.u_tilde"]) == {"p10", "p25", "p50", "p75", "p90", "share_at_least_0.30"}


def test_the_device_s_own_layer_starts_from_the_stage_s_seed() -> None:
    cloud_model = Transformer(TransformerConfig(**SHAPE))

    def starting(seed: int) -> torch.Tensor:
        torch.rand(seed + 1)  # earlier draws must not matter
        settings = device.DeviceConfig(training=LoopSettings(steps=1, learning_rate=1.0, seed=seed))
        stage = device.DeviceStage(settings, cloud_model, data=None)  # type: ignore[arg-type]
        return stage.model.state_dict()["transformer.layers.0.attention.wqkv.weight"]

    assert torch.equal(starting(0), starting(0))
    assert not torch.equal(starting(0), starting(1))


def test_the_device_learns_tokens_before_it_is_distilled(trained: Path) -> None:
    with (trained / "device" / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["kl"]] == [30, 40, 50, 59]
    assert [int(row["step"]) for row in rows if not row["kl"]] == [0, 10, 20]
    assert float(rows[2]["loss"]) < float(rows[0]["loss"])


def test_guided_training_compares_what_decoding_would_use(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    model = load_transformer(trained / "cloud" / "cloud.safetensors")
    batch = sequences.Sequences(trained, sequences.Scenes(train=24, held_out=3), None, seed=1).batch("x", 0, 8, 0.0)
    every = torch.arange(16)
    with torch.inference_mode():
        cond = model(batch.tokens[:, :-1], batch.caption, batch.mask)[0]  # [B, T, V]
        null = model(batch.tokens[:, :-1], model.null_caption(8), batch.mask)[0]
        own, guided = device.hidden_at(model, batch, every.expand_as(batch.tokens), 3.0)
        assert torch.allclose(model.logits(own), cond.flatten(0, 1), atol=1e-4)
        assert torch.allclose(model.logits(guided), guide(cond, null, 3.0).flatten(0, 1), atol=1e-4)
        found = phi.log_probs(model, batch, batch.tokens, None, every, 3.0)
        assert torch.allclose(found, guide(cond, null, 3.0).log_softmax(-1), atol=1e-4)
        unguided = phi.mix(load_device(trained / "device" / "device.safetensors"), batch, torch.full((8,), 0.5), 1.0)
        mixed = phi.mix(load_device(trained / "device" / "device.safetensors"), batch, torch.full((8,), 0.5), 3.0)
        assert torch.equal(mixed.hidden, unguided.hidden)
        assert not torch.equal(mixed.lower, unguided.lower)
    short: dict[str, Any] = {"training": {**TRAINING, "steps": 4}, "positions": 8, **COMMON}
    device.run(device.DeviceConfig.model_validate({**short, "guidance": 3.0}), None, trained / "device-guided")
    phi.run(phi.PhiConfig.model_validate({**short, "guidance": 3.0, "bottleneck": 16}), None, trained / "phi-guided")
    assert metrics(trained, "device-guided")["guidance"] == 3.0
    assert metrics(trained, "phi-guided")["kl_nats"] > 0


def test_the_device_reports_its_own_nats_beside_the_clouds(trained: Path) -> None:
    found = metrics(trained, "device")
    assert found["cloud_nats_per_token"] == pytest.approx(metrics(trained, "cloud")["nats_per_token"], rel=1e-4)
    assert found["cloud_nats_per_token"] - 0.2 < found["nats_per_token"] < np.log(64)


@pytest.mark.parametrize(
    ("stage", "changed", "said"),
    [
        ("cloud", {"batch_images": 4}, "batch_images = 8, asked for 4"),
        ("cloud", {"model": {**SHAPE, "dim": 16}}, "model.dim = 32, asked for 16"),
        ("cloud", {"scenes": {"train": 40, "held_out": 20}}, "scenes.train = 60, asked for 40"),
        ("device", {"scenes": {"train": 60, "held_out": 20, "train_seed": 5}}, "scenes.train_seed = its default"),
        ("device", {"positions": 4}, "positions = 8, asked for 4"),
        ("phi", {"replaced": {"low": 0.1}}, "replaced.low = its default, asked for 0.1"),
        ("drafter", {"noise": 0.5}, "noise = its default, asked for 0.5"),
    ],
)
def test_a_finished_stage_of_other_settings_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, stage: str, changed: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    settings = TrainingFile.model_validate({stage: {**CONFIG[stage], **changed}}).stages[stage]
    with pytest.raises(WeightsError, match=f"{stage}/checkpoint.pt: made with {said}"):
        RUN[stage](settings, None, trained / stage, "cpu")


def test_stages_of_other_tokens_or_of_another_cloud_are_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    monkeypatch.setattr(
        sequences, "scene_tokens", lambda *args: replace(colour_tokens(*args), captions=["a cube"] * 60)
    )
    stages = TrainingFile.model_validate(CONFIG).stages
    with pytest.raises(WeightsError, match=r"cloud/checkpoint.pt: made with another training data"):
        RUN["cloud"](stages["cloud"], None, folder / "cloud", "cpu")
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    refuse_outdated(folder, tuple(READS))
    model = load_transformer(folder / "cloud" / "cloud.safetensors")
    model.output.weight.data.mul_(1.5)
    save_model(folder / "cloud" / "cloud.safetensors", model)
    with pytest.raises(WeightsError, match=r"device/checkpoint.pt: made with another cloud"):
        RUN["device"](stages["device"], None, folder / "device", "cpu")
    with pytest.raises(WeightsError, match="device: trained from another cloud than the current one"):
        refuse_outdated(folder, READS["phi"])
    tokenizer = load_vq(folder / "tokenizer" / "tokenizer.safetensors")
    tokenizer.decoder.conv_out.weight.data.mul_(1.5)
    save_vq(folder / "tokenizer" / "tokenizer.safetensors", tokenizer, {})
    refuse_outdated(folder, ("cloud",))  # codes do not depend on the decoder
    tokenizer.quantize.embedding.weight.data.mul_(1.5)
    save_vq(folder / "tokenizer" / "tokenizer.safetensors", tokenizer, {})
    with pytest.raises(WeightsError, match="cloud: trained from another tokenizer than the current one"):
        refuse_outdated(folder, ("cloud",))


def test_phi_does_not_make_things_worse(trained: Path) -> None:
    found = metrics(trained, "phi")
    assert found["kl_nats"] <= 1.02 * found["kl_nats_without_features"]
    assert found["in_place_kl_nats"] > 0


def test_an_untrained_phi_is_zero_and_changes_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    still = {**CONFIG["phi"], "training": {"steps": 0, "learning_rate": 1e-3}}
    phi.run(phi.PhiConfig.model_validate(still), None, trained / "phi-untrained")
    found = metrics(trained, "phi-untrained")
    assert found["in_place_kl_nats"] == 0
    assert found["kl_nats"] == found["kl_nats_without_features"]
    assert found["nats"] == found["nats_without_features"]


@pytest.fixture
def on_policy(trained: Path, monkeypatch: pytest.MonkeyPatch) -> device.DeviceConfig:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    round_: dict[str, Any] = {"sequences": 64, "steps": 20, "learning_rate": 2e-3}
    return device.DeviceConfig.model_validate({**CONFIG["device"], "on_policy": round_})


def test_the_last_round_distils_on_sequences_that_both_models_decode(
    trained: Path, on_policy: device.DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = trained / "device-on-policy"
    device.run(on_policy, None, out)
    first = torch.load(out / "round-1" / "checkpoint.pt", weights_only=True)
    plain = torch.load(trained / "device" / "checkpoint.pt", weights_only=True)
    for key, tensor in plain["averaged"].items():
        assert torch.equal(first["averaged"][key], tensor)  # the first round is the plain stage
    (part,) = out.glob("rollouts/*/part-00000.npy")
    tokens = np.load(part)
    assert tokens.shape == (64, 16)
    real = sequences.Sequences(trained, on_policy.scenes, None, 0).train.codes
    assert not np.isin(tokens.view("V32"), np.ascontiguousarray(real).view("V32")).all()
    found = metrics(trained, out.name)
    assert found["steps"] == 80
    for local in ("sampled", "greedy"):
        assert found["gated"][local]["calls_pct"] == pytest.approx(30, abs=3)
    content = (out / "device.safetensors").read_bytes()
    monkeypatch.setattr(rollouts, "decode", None)  # the cache is used: nothing is decoded again
    device.run(on_policy, None, out)
    assert (out / "device.safetensors").read_bytes() == content
    assert on_policy.on_policy is not None
    changed = on_policy.on_policy.model_copy(update={"calls": rollouts.Calls(low=0.3, high=0.4)})
    asked = settings_of(on_policy.model_copy(update={"on_policy": changed}))
    assert difference(settings_of(on_policy), asked) == "on_policy.calls.high = its default, asked for 0.4"


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_gated_decoding_is_what_the_models_say_of_each_prefix(
    trained: Path, monkeypatch: pytest.MonkeyPatch, sampled: bool, guidance: float
) -> None:
    """Every token of the device follows from its distribution computed without a cache, and every other one from the cloud's."""
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    data = sequences.Sequences(trained, sequences.Scenes(train=32, held_out=3), None, seed=1)
    batch = data.batch("x", 0, 32, 0.0)
    far = load_transformer(trained / "cloud" / "cloud.safetensors").double()
    near = load_device(trained / "device" / "device.safetensors").double()
    u = stream(0, "test.u").random(batch.tokens.shape)
    found = rollouts.decode(near, far, batch, 0.5, sampled, u, guidance)
    assert 0.4 < float((~found.local).double().mean()) < 0.6
    with torch.inference_mode():
        _, cloud_states = sequences.own_and_guided(far, batch, found.tokens, guidance)
        own, guided = sequences.own_and_guided(near.transformer, batch, found.tokens, guidance)
        draws = torch.from_numpy(u).flatten()
        expected = sample(far.logits(cloud_states).softmax(-1).flatten(0, 1), draws).view(batch.tokens.shape)
        centre, scores = rollouts.deployed_scores(near, own, guided)
        proposed = sample(centre.softmax(-1).flatten(0, 1), draws).view(centre.shape[:2]) if sampled else greedy(centre)
    assert torch.equal(found.tokens, torch.where(found.local, proposed, expected))
    assert float(scores[found.local].mean()) < float(scores[~found.local].mean())
    calls_at = [
        float((~rollouts.decode(near, far, batch, share, sampled, u, guidance).local).double().mean())
        for share in (0, 1)
    ]
    assert calls_at == [0, 1]  # 0.06 of 16 tokens rounds to no prefix


def test_an_interrupted_decoding_goes_on_where_it_was(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    data = sequences.Sequences(trained, sequences.Scenes(train=60, held_out=3), None, seed=1)
    models = (
        load_device(trained / "device" / "device.safetensors"),
        load_transformer(trained / "cloud" / "cloud.safetensors"),
    )
    asked = rollouts.Rollouts(sequences=100)
    whole = rollouts.rolled_out(asked, *models, data, tmp_path)
    assert whole.train.codes.shape == (128, 16)
    (part,) = tmp_path.glob("*/part-00001.npy")
    part.unlink()
    again = rollouts.rolled_out(asked, *models, data, tmp_path)
    assert np.array_equal(again.train.codes, whole.train.codes)
    assert again.inputs() == whole.inputs() != data.inputs()
    captions = [data.train.captions[i] for i in shuffled_indices(1, "train.rollouts.order", 0, 128, 60)]
    assert whole.train.captions == captions
    other = rollouts.rolled_out(rollouts.Rollouts(sequences=1, local="greedy"), *models, data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(other.train.codes, whole.train.codes[:64])


def test_the_drafter_learns_what_the_cloud_says_next(trained: Path) -> None:
    found = metrics(trained, "drafter")
    assert found["cross_entropy_nats"] < np.log(64)
    assert found["agreement"] > 0.4  # chance: 1 / 64


def test_the_drafter_reads_each_token_beside_the_feature_before_it() -> None:
    model = Transformer(TransformerConfig(**SHAPE)).eval()
    tokens = torch.arange(32).reshape(2, 16)
    mask = torch.ones(2, 32, dtype=torch.bool)
    batch = sequences.Batch(
        tokens, torch.zeros(2, 32, 144), mask, torch.zeros(2, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.bool)
    )
    embedded, features = drafter.read(model, batch)
    assert embedded.shape[1] == features.shape[1] - 1 == 32 + 16 - 1
    assert torch.equal(embedded[:, 31:], model.embed_tokens(tokens))
    assert torch.equal(embedded[0, 5], model.embed_tokens(torch.tensor(0)))


def test_what_training_leaves_becomes_a_pair(trained: Path, tmp_path: Path) -> None:
    export_pair(trained, tmp_path / "pair", name="toy")
    pair = load_pair(tmp_path / "pair")
    assert pair.manifest == pair_manifest(tmp_path / "pair")
    assert pair.drafter is not None
    alone = load_transformer(trained / "cloud" / "cloud.safetensors")
    for key, value in alone.state_dict().items():
        assert torch.equal(value, pair.cloud.state_dict()[key])
    before = pair.manifest.weights_hash
    export_pair(trained, tmp_path / "pair", name="toy")  # replaces the folder
    assert pair_manifest(tmp_path / "pair").weights_hash == before
    assert [path.name for path in tmp_path.iterdir()] == ["pair"]
    own = tmp_path / "pair" / "notes.txt"
    own.write_text("a user's own")
    for folder in (own, own.parent, tmp_path):  # only a pair may be replaced
        with pytest.raises(WeightsError, match=r"cannot write the pair \S+: .*(notes\.txt|pair)"):
            export_pair(trained, folder, name="toy")
    assert own.read_text() == "a user's own"
    told = trained / "cloud" / "metrics.json"
    whole = told.read_bytes()
    told.write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"cloud/metrics\.json: not readable as metrics"):
        export_pair(trained, tmp_path / "other", name="toy")
    told.write_bytes(whole)


def test_batches_are_keyed_and_cover_an_epoch(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    data = sequences.Sequences(trained, sequences.Scenes(train=24, held_out=3), None, seed=1)
    again = sequences.Sequences(trained, sequences.Scenes(train=24, held_out=3), None, seed=1)
    assert torch.equal(data.batch("x", 5, 8, 0.5).tokens, again.batch("x", 5, 8, 0.5).tokens)
    epoch = np.concatenate([data.batch("x", step, 8, 0.5).tokens.numpy() for step in range(3)])
    assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, data.train.codes.astype(int).tolist()))
    assert [len(batch.tokens) for batch in data.held_out_batches(2)] == [2, 1]
    (spread,) = data.held_out_batches(2, most=2)
    assert spread.tokens.tolist() == data.held_out.codes[[0, 1]].tolist()
    many = sequences.Sequences(trained, sequences.Scenes(train=24, held_out=20), None, seed=1)
    assert (
        torch.cat([batch.tokens for batch in many.held_out_batches(3, most=5)]).tolist()
        == many.held_out.codes[::4].tolist()
    )


def test_a_null_caption_hides_everything_but_its_length(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    monkeypatch.setattr(sequences, "scene_tokens", colour_tokens)
    data = sequences.Sequences(trained, sequences.Scenes(train=24, held_out=3), None, seed=1)
    stage = cloud.CloudStage(cloud.CloudConfig.model_validate(CONFIG["cloud"]), data)
    batch = data.batch("x", 0, 8, 1.0)
    assert isinstance(stage.model, Transformer)
    assert torch.equal(batch.caption_for(stage.model)[3], stage.model.null_caption(1)[0])
    stage.model.output.weight.data.normal_()  # initialised at zero, which stops every gradient
    (gradient,) = torch.autograd.grad(stage.loss(batch, 0)[0], [stage.model.cls_embedding.uncond_embedding])
    assert gradient.abs().sum() > 0


def test_weights_of_another_stage_are_refused(trained: Path) -> None:
    with pytest.raises(WeightsError, match="holds another kind of model"):
        load_transformer(trained / "phi" / "phi.safetensors")

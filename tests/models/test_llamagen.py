"""LlamaGen's released files: detection of each part, refusals, and decoding with pairs of them.

Longer than other files, because its tests share the writers of those files.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbones.llamagen_files import text_files
from models.backbones.t5 import load_encoder
from models.pair import Pair, load_pair
from models.quality.judges import captions_of
from models.recorder import Recorder
from models.recording import check_captions
from simulator.core.errors import CiarSimError, PromptError, ScenarioError, WeightsError
from simulator.experiment.loading import load_scenario
from simulator.experiment.plan import session_specs
from simulator.experiment.sweep import expand
from simulator.pricing.build import pair_shapes
from simulator.pricing.op_counts import text_encoder_op_count
from simulator.protocol import pairs
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.pairs import PairSpec, find_pair, pair_manifest
from simulator.protocol.recording import Recording
from tests.models import llamagen_files as files

SIZES: dict[str, Any] = {"image_size": 64, "heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with t2i and precomputed features, c2i L with c2i B below it, and a drafter."""
    found = tmp_path_factory.mktemp("llamagen")
    files.write_t2i(found / "t2i", files.write_features)
    files.write_c2i(found / "c2i")
    files.write_drafter(found / "drafter")
    return found


def t2i(folder: Path, **more: Any) -> PairSpec:
    given = {"cloud": "llamagen-xl-stage1", "weights": str(folder / "t2i"), "text": str(folder / "t2i" / "features")}
    return PairSpec(**{**given, **SIZES, **more})


def c2i(folder: Path, **more: Any) -> PairSpec:
    return PairSpec(**{"cloud": "llamagen-c2i-256", "weights": str(folder / "c2i"), **SIZES, **more})


def recorded(pair: Pair, prompts: Sequence[str], methods: dict[str, dict[str, Any]]) -> list[Recording]:
    decoding = Decoding.model_validate({"guidance": 2.0})
    specs = [
        spec
        for name, settings in methods.items()
        for spec in session_specs(
            pair.manifest, name, METHODS[name].settings.model_validate(settings), decoding, prompts, 0
        )
    ]
    found = {spec.key(): recording for spec, recording in Recorder(pair, 8).record(specs)}
    return [found[spec.key()] for spec in specs]


def refused(spec: PairSpec) -> str:
    with pytest.raises(CiarSimError) as caught:
        load_pair(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files


def test_shapes_decide_the_pair_and_torch_is_not_asked(folder: Path) -> None:
    manifest = pair_manifest(t2i(folder, device=str(folder / "drafter")))
    assert (manifest.cloud, manifest.image_size, manifest.grid, manifest.guidance) == (files.T2I, 64, 4, 7.5)
    assert (manifest.device, manifest.bounds, manifest.has_drafter, manifest.subject) == (None, (), True, "other")
    device = str(folder / "c2i" / "device")
    manifest = pair_manifest(c2i(folder, device=device))
    assert manifest.device == replace(files.C2I, n_layer=1, dim=8, n_head=1)
    assert (manifest.cloud, manifest.has_drafter, manifest.guidance) == (files.C2I, False, 4.0)
    shapes = pair_shapes(c2i(folder, device=device))
    assert (shapes.cloud.n_layer, shapes.device.n_layer, shapes.device.dim) == (2, 1, 8)
    alone = pair_shapes(t2i(folder)).device
    assert (alone.n_layer, alone.dim) == (1, files.T2I.dim)
    drafters = [pair_shapes(spec).drafter_ffn for spec in (t2i(folder), t2i(folder, device=str(folder / "drafter")))]
    assert drafters == [None, files.DRAFTER_FFN]


def test_moved_files_are_the_same_pair_and_changed_ones_another(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder / "c2i", tmp_path / "moved")
    spec = c2i(folder, weights=str(moved))
    before = pair_manifest(spec).weights_hash
    assert before == pair_manifest(c2i(folder)).weights_hash
    torch.save({"model": files.decoder(files.C2I, 9, files.CLASSES).state_dict()}, moved / "c2i_L_256.pt")
    assert pair_manifest(spec).weights_hash != before
    assert pair_manifest(c2i(folder, image_size=128)).weights_hash != before


def test_keys_and_values_that_heads_share_are_those_of_each(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder / "c2i", tmp_path / "c2i")
    state = files.decoder(files.C2I, 0, files.CLASSES).state_dict()
    dim, half = files.C2I.dim, files.C2I.head_dim
    for key in [key for key in state if key.endswith("wqkv.weight")]:
        q, k, v = state[key].chunk(3)
        state[key] = torch.cat([q, k[:half], v[:half]])
    torch.save(state, own / "c2i_L_256.pt")
    cloud = load_pair(c2i(folder, weights=str(own), device=None)).cloud
    for layer in range(files.C2I.n_layer):
        rows = cloud.get_parameter(f"layers.{layer}.attention.wqkv.weight")
        given = state[f"layers.{layer}.attention.wqkv.weight"]
        repeated = [given[:dim], *(part for part in given[dim:].chunk(2) for _ in range(2))]
        assert torch.equal(rows, torch.cat(repeated))
    shapes = [pair_shapes(spec).cloud for spec in (c2i(folder, weights=str(own)), c2i(folder))]
    assert shapes[0].kv_bytes_per_position * 2 == shapes[1].kv_bytes_per_position
    state["layers.1.attention.wqkv.weight"] = torch.zeros(3 * dim, dim)
    torch.save(state, own / "c2i_L_256.pt")
    assert "layers.0.attention.wqkv.weight has shape [32, 16], needed [48, 16]" in refused(
        c2i(folder, weights=str(own))
    )


def test_a_tokenizer_of_eight_makes_images_of_half_the_size(folder: Path, tmp_path: Path) -> None:
    ema = files.tokenizer(files.VQ8).state_dict()
    other = {key: torch.zeros_like(value) for key, value in ema.items()}
    torch.save(
        {"model": other, "ema": ema, "discriminator": {}, "args": argparse.Namespace()}, tmp_path / "vq_ds8_c2i.pt"
    )
    pair = load_pair(c2i(folder, tokenizer=str(tmp_path / "vq_ds8_c2i.pt"), image_size=32))
    assert (pair.manifest.grid, pair.tokenizer.config) == (4, files.VQ8)
    assert torch.equal(pair.tokenizer.quantize.embedding.weight, ema["quantize.embedding.weight"])
    assert recorded(pair, ["3"], {"base": {}})[0].image.shape == (32, 32, 3)
    assert "vq_ds8_c2i.pt: shrinks images by 8, which does not divide pair.image_size 36" in refused(
        c2i(folder, tokenizer=str(tmp_path / "vq_ds8_c2i.pt"), image_size=36)
    )


def test_a_tokenizer_whose_sizes_no_tokenizer_has_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    path, state = tmp_path / "vq.pt", files.tokenizer().state_dict()
    lower = {key: value for key, value in state.items() if not key.startswith("decoder.conv_blocks.4.")}
    for changed, why in (
        ({**state, "encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)}, "ch must be a multiple of 32"),
        (
            {**state, "encoder.conv_blocks.1.res.0.conv1.weight": torch.zeros(3200, 1)},
            "encoder_ch_mult must be 0 to 10",
        ),
        (lower, "decoder_ch_mult must have as many factors as encoder_ch_mult, 5, got 4"),
    ):
        torch.save(changed, path)
        with pytest.raises(WeightsError, match=f"{path}: .*{why}"):
            load_pair(c2i(folder, tokenizer=str(path)))


def test_of_several_files_of_a_kind_the_name_tells_or_the_user(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder / "t2i", tmp_path / "t2i")
    torch.save({"model": files.decoder(files.T2I, 5).state_dict()}, own / "t2i_XL_stage2_512.pt")
    text = str(own / "features")
    (cloud,) = find_pair(t2i(folder, weights=str(own), text=text)).files["cloud"]
    assert cloud.name == "t2i_XL_stage1_256.pt"
    (cloud,) = find_pair(t2i(folder, cloud="llamagen-xl-stage2", weights=str(own), text=text)).files["cloud"]
    assert cloud.name == "t2i_XL_stage2_512.pt"
    shutil.copy(own / "t2i_XL_stage2_512.pt", own / "mine_stage1.pt")
    message = refused(t2i(folder, weights=str(own), text=text))
    assert (
        "holds several files for llamagen-xl-stage1: mine_stage1.pt, t2i_XL_stage1_256.pt, t2i_XL_stage2_512.pt"
        in message
    )
    assert message.endswith("name one with pair.weights")
    (cloud,) = find_pair(t2i(folder, weights=str(own / "mine_stage1.pt"), text=text)).files["cloud"]
    assert cloud.name == "mine_stage1.pt"


def test_files_that_make_no_pair_are_refused_with_what_they_hold(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("nothing")
    message = refused(c2i(folder, weights=str(tmp_path)))
    assert f"{tmp_path}: holds no weights of llamagen-c2i-256; notes.pt: not readable as weights" in message
    assert refused(c2i(folder, weights=str(folder / "t2i"))).endswith(
        "t2i: holds no weights of llamagen-c2i-256; t2i_XL_stage1_256.pt: a text-conditional model; "
        "vq_ds16_t2i.pt: an image tokenizer; name its file with pair.weights"
    )
    assert "pair.text is not used" in refused(c2i(folder, text=str(folder / "t2i")))
    assert "holds no caption encoder (looked for a T5 in" in refused(t2i(folder, text=None))
    assert "holds neither a T5" in refused(t2i(folder, text=str(tmp_path)))
    assert "holds neither a device model nor a drafter for llamagen-c2i-256; notes.pt" in refused(
        c2i(folder, device=str(tmp_path))
    )
    assert "for llamagen-xl-stage1; c2i_B_256.pt: a class-conditional model" in refused(
        t2i(folder, device=str(folder / "c2i" / "device"))
    )
    (tmp_path / "fsdp").mkdir()
    (tmp_path / "fsdp" / "__0_0.distcp").write_bytes(b"x")
    torch.save({"_fsdp_wrapped_module._flat_param": torch.zeros(4)}, tmp_path / "fsdp" / "rank0.pt")
    told = refused(c2i(folder, weights=str(tmp_path / "fsdp")))
    assert "; a sharded checkpoint of torch; make one file of it with `python -m torch.distributed" in told
    assert "; rank0.pt: flattened parameters of FSDP; export its full state dict; name" in told
    small = files.tokenizer(replace(files.VQ16, codebook_size=32)).state_dict()
    save_file(small, tmp_path / "vq.safetensors")
    assert "vq.safetensors: 32 codes, needed 64, those of" in refused(
        c2i(folder, tokenizer=str(tmp_path / "vq.safetensors"))
    )
    other = files.decoder(replace(files.C2I, vocab_size=32), 0, files.CLASSES)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert "other.pt: vocab_size is 32, the cloud model has 64" in refused(
        c2i(folder, device=str(tmp_path / "other.pt"))
    )
    torch.save(files.decoder(files.C2I, 0, files.CLASSES - 1).state_dict(), tmp_path / "fewer.pt")
    assert "fewer.pt: 9 classes, the cloud model has 10" in refused(c2i(folder, device=str(tmp_path / "fewer.pt")))
    assert "dim 16 must be a multiple of 4 * n_head (12)" in refused(c2i(folder, heads=3))
    state = files.decoder(files.C2I, 0, files.CLASSES).state_dict()
    for rows in (torch.zeros([]), torch.zeros(0, 16)):
        torch.save({**state, "cls_embedding.embedding_table.weight": rows}, tmp_path / "none.pt")
        with pytest.raises(WeightsError, match=r"none\.pt: .*cls_embedding\.embedding_table\.weight"):
            load_pair(c2i(folder, weights=str(tmp_path / "none.pt"), tokenizer=str(folder / "c2i")))


def test_what_a_download_left_is_told(folder: Path, tmp_path: Path) -> None:
    held = folder / "c2i"
    cache = tmp_path / "models--FoundationVision--LlamaGen"
    snapshot = cache / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    for path in held.glob("*.pt"):
        (snapshot / path.name).symlink_to(path)
    assert pair_manifest(c2i(folder, weights=str(snapshot))).weights_hash == pair_manifest(c2i(folder)).weights_hash
    assert f"a cache of the hub: its files are in {snapshot}" in refused(c2i(folder, weights=str(cache)))
    link = snapshot / "c2i_L_256.pt"
    link.unlink()
    link.symlink_to("../../blobs/4d5e")
    assert "c2i_L_256.pt: a link to ../../blobs/4d5e, which is not there" in refused(c2i(folder, weights=str(snapshot)))
    assert refused(c2i(folder, weights=str(link))) == f"{link}: a link to ../../blobs/4d5e, which is not there"
    link.unlink()
    part = snapshot / ".cache" / "huggingface" / "download" / "x.4d5e.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"PK")
    assert "unfinished downloads: x.4d5e.incomplete" in refused(c2i(folder, weights=str(snapshot)))
    state = files.decoder(files.C2I, 0, files.CLASSES).state_dict()
    for number in (1, 2):
        torch.save(state, snapshot / f"pytorch_model-0000{number}-of-00002.bin")
    assert "holds llamagen-c2i-256 in parts (pytorch_model-00001-of-00002.bin, pytorch_model-00002" in refused(
        c2i(folder, weights=str(snapshot))
    )


def test_a_model_of_several_layers_under_the_drafters_keys_is_none(folder: Path, tmp_path: Path) -> None:
    keys = {f"model.layers.{layer}.self_attn.q_proj.weight": torch.zeros(16, 16) for layer in (0, 1)}
    torch.save(keys, tmp_path / "repackaged.bin")
    assert "repackaged.bin: none of its keys is LlamaGen's" in refused(t2i(folder, device=str(tmp_path)))


# --- captions


def test_class_labels_are_the_prompts_of_a_class_conditional_pair(folder: Path) -> None:
    pair = load_pair(c2i(folder))
    label = torch.tensor([7])
    expected = pair.cloud.cls_embedding.get_parameter("embedding_table.weight")[label]
    assert torch.equal(pair.cloud.embed_caption(pair.text.encode("7").unsqueeze(0))[0], expected)
    null = pair.cloud.embed_caption(pair.cloud.null_caption(1))[0]
    assert torch.equal(null[0], pair.cloud.cls_embedding.get_parameter("embedding_table.weight")[-1])
    drawn = captions_of(c2i(folder))(3, 4)
    assert len(set(drawn)) == 4
    assert all(pair.text.encode(label).shape == (1, 1) for label in drawn)
    for prompt in ("10", "a bus", "-1", "3.5", ""):
        with pytest.raises(PromptError, match="is not a class label; allowed: 0 to 9"):
            pair.text.encode(prompt)
        with pytest.raises(PromptError, match="is not a class label; allowed: 0 to 9") as error:
            check_captions(c2i(folder), ["7", prompt])
        assert error.value.prompt == prompt


def test_features_are_read_as_the_script_wrote_them(folder: Path, tmp_path: Path) -> None:
    pair = load_pair(t2i(folder))
    for index, caption in enumerate(files.CAPTIONS):
        written = np.load(folder / "t2i" / "features" / "coco" / f"{index}.npy")
        assert torch.equal(pair.text.encode(caption), torch.from_numpy(written[0, : files.T2I.caption_slots]))
    with pytest.raises(PromptError, match=r"holds no features of 'a cat'; the nearest caption with features: "):
        pair.text.encode("a cat")
    with pytest.raises(PromptError, match="holds no features of 'a cat'"):
        check_captions(t2i(folder), [files.CAPTIONS[0], "a cat"])
    text = shutil.copytree(folder / "t2i" / "features", tmp_path / "text")
    np.save(text / "coco" / "0.npy", np.zeros((1, 3, 5), np.float32))
    with pytest.raises(WeightsError, match=r"0\.npy: features of shape \[1, 3, 5\], needed \[1, rows, 12\]"):
        load_pair(t2i(folder, text=str(text))).text.encode(files.CAPTIONS[0])
    absurd = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 100000000000, 12), }".ljust(117) + b"\n"
    for damage in (
        lambda path: np.save(path, np.full((1, 3, 12), "a")),
        lambda path: np.save(path, np.full((1, 3, 12), 1e300)),
        lambda path: path.write_bytes(b"PK\x05\x06" + bytes(18)),  # an empty npz
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + absurd),
    ):
        damage(text / "coco" / "0.npy")
        with pytest.raises(WeightsError, match=r"0\.npy: (not readable as features|features are not finite)"):
            load_pair(t2i(folder, text=str(text))).text.encode(files.CAPTIONS[0])
    (text / "coco" / "2.npy").mkdir()  # not a file
    assert pair_manifest(t2i(folder, text=str(text))).files
    (text / "coco.jsonl").write_text('{"text": "a"}\n{"caption": "b"}\n')
    with pytest.raises(WeightsError, match=r"coco\.jsonl:2: a line must be a JSON object with text"):
        load_pair(t2i(folder, text=str(text))).text.encode("a")
    (text / "coco.jsonl").unlink()
    (text / "list.jsonl").write_text('{"text": "a"}\n')
    own = load_pair(t2i(folder, text=str(text))).text
    for read in (lambda: own.sample, lambda: own.encode("a")):
        with pytest.raises(WeightsError, match=r"text: no line of its lists \(LIST\.jsonl\) has features"):
            read()


def test_a_scenario_looks_at_the_files_once_however_many_values_it_sweeps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, stamps = [], pairs._stamps
    monkeypatch.setattr(pairs, "_stamps", lambda found: looked.append(found) or stamps(found))  # type: ignore[func-returns-value]
    spec = t2i(folder)
    find_pair(spec)
    looked.clear()
    written = {
        "name": "t",
        "pair": spec.model_dump(exclude_none=True),
        "prompts": {"list": ["a cat"]},
        "methods": ["base"],
    }
    scenario = load_scenario({**written, "sweep": {"network.rtt_ms": [1, 2, 3]}})
    assert len(looked) == 1
    assert len(expand(scenario)) == 3
    assert len(looked) == 2


def test_a_t5_beside_the_weights_encodes_cleaned_captions(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    own = tmp_path / "t2i"
    shutil.copytree(folder / "t2i", own, ignore=shutil.ignore_patterns("features"))
    files.write_t5(own / "t5-ckpt" / "flan-t5-xl")
    found = find_pair(t2i(folder, weights=str(own), text=None))
    sizes = {"positions": 8, "n_layer": 1, "dim": 12, "ffn_hidden": 16, "inner": 8, "vocab_size": 14}
    assert found.encoder == {**sizes, "ffn_matrices": 3}
    pair = load_pair(t2i(folder, weights=str(own), text=None))
    rows = pair.text.encode("A red BUS by the river. https://example.com/x.png")
    assert rows.shape == (8, 12)  # seven words and the end token
    assert torch.equal(rows, pair.text.encode("a red bus by the river."))
    assert pair.text.encode("two dogs").shape == (3, 12)
    like_a_file = pair.text.encode("/a/red bus.html")  # must not warn
    assert torch.equal(like_a_file, pair.text.encode("a red bus. html"))
    with pytest.raises(PromptError, match="is empty once cleaned"):
        pair.text.encode("www.example.com/a")
    t5 = own / "t5-ckpt" / "flan-t5-xl"
    state = load_file(t5 / "model.safetensors")
    key = "encoder.final_layer_norm.weight"
    for change, message in (  # transformers would fill missing weights with random numbers
        ({key: None}, f"{t5}: no usable T5: its weights do not fit its config.json; missing: {key}"),
        ({key: torch.ones(3)}, f"of another shape: {key}, needed [12]"),
        ({key: torch.full((12,), torch.inf)}, f"{t5}: {key} is not finite"),
        (
            {key: torch.ones(12, dtype=torch.int8)},
            f"model.safetensors: no usable T5: {key} int8; needed floating-point weights",
        ),
    ):
        kept = {name: value for name, value in (state | change).items() if value is not None}
        save_file(kept, t5 / "model.safetensors", metadata={"format": "pt"})
        assert message in refused(t2i(folder, weights=str(own), text=None))
    (t5 / "model.safetensors").write_bytes(b"damaged")
    assert "flan-t5-xl/model.safetensors: not readable as weights" in refused(t2i(folder, weights=str(own), text=None))
    save_file(state, t5 / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (t5 / name).unlink()
    # Without the files, transformers makes a tokenizer without words, or none, depending on its version.
    assert f"{t5}: no usable T5: its tokenizer" in refused(t2i(folder, weights=str(own), text=None))


@pytest.mark.parametrize("kind", ["MT5", "UMT5"])
def test_the_relatives_of_t5_are_read_by_their_own_class(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "relu"}
    torch.manual_seed(3)
    own = getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(vocab_size=20, **sizes))
    own.save_pretrained(tmp_path)
    ids = torch.arange(2, 9).unsqueeze(0)
    with torch.inference_mode():
        found, wanted = (
            model(input_ids=ids).last_hidden_state for model in (load_encoder(tmp_path, torch.float32), own.eval())
        )
    torch.testing.assert_close(found, wanted)
    encoder = text_files(tmp_path, files.T2I)[1]
    layers = sum(parameter.numel() for name, parameter in own.named_parameters() if ".block." in name)
    tables = sum(parameter.numel() for name, parameter in own.named_parameters() if "relative" in name)
    counted = text_encoder_op_count(**encoder)
    assert counted.parameters == layers - tables + 12 + 8 * 12  # last norm, read rows of the embedding
    assert counted.parameters + counted.unread == sum(parameter.numel() for parameter in own.parameters()) - tables


# --- decoding


def test_two_backbones_of_one_tokenizer_serve_the_methods_without_intervals(folder: Path) -> None:
    pair = load_pair(c2i(folder, device=str(folder / "c2i" / "device")))
    methods: dict[str, dict[str, Any]] = {
        "base": {},
        "device-only": {},
        "speculative": {},
        "code": {"prefix_rate": 0.3},
        "entropy-lens": {},
        "softmax-corr": {},
        "random": {},
    }
    for recording in recorded(pair, ["3", "7"], methods):
        assert recording.image.shape == (64, 64, 3)
        assert recording.tokens.max() < files.CODES
    gated = recorded(pair, ["3"], {"entropy-lens": {}})[0]
    assert np.isnan(gated.scores[:, :5]).all()  # the interval scores: there is no Inter-Head
    assert np.isfinite(gated.scores[1:, 5:7]).all()
    for name, reason in (
        ("ciar", "ciar: the pair llamagen-c2i-256 has no bounds quantile; it has no Inter-Head"),
        ("discrete", "discrete: the device of the pair llamagen-c2i-256 has no Inter-Head"),
    ):
        with pytest.raises(ScenarioError, match=reason):
            METHODS[name].settings().check(Decoding.model_validate({}), pair.manifest)


def test_a_published_drafter_drafts_trees_without_a_device_model(folder: Path) -> None:
    pair = load_pair(t2i(folder, device=str(folder / "drafter")))
    table = torch.load(folder / "drafter" / "pytorch_model.bin", weights_only=True)["embed_tokens.weight"]
    ids = torch.tensor([3, 1])
    assert pair.drafter is not None
    assert torch.equal(pair.drafter.embed_tokens(ids, pair.cloud), table[ids])  # LANTERN's is not the cloud's embedding
    tree = {"total_tokens": 6, "depth": 2, "top_k": 3}
    for recording in recorded(
        pair,
        files.CAPTIONS,
        {"base": {}, "eagle2": tree, "lantern": {**tree, "k": 8}, "vvs": {**tree, "k": 8, "interval": 2}},
    ):
        assert recording.image.shape == (64, 64, 3)
    with pytest.raises(
        WeightsError, match=r"has no device model, which this method decodes with; name one with pair.device"
    ):
        METHODS["code"].settings().check(Decoding.model_validate({}), pair.manifest)
    bare = load_pair(t2i(folder))
    with pytest.raises(WeightsError, match="the pair llamagen-xl-stage1 has no device model"):
        _ = bare.device
    with pytest.raises(WeightsError, match="the pair llamagen-xl-stage1 has no projection phi"):
        _ = bare.phi


def test_half_precision_rounds_no_class(folder: Path) -> None:
    pair = load_pair(c2i(folder), dtype=torch.bfloat16)
    label = torch.tensor([[[9.0]]])
    assert torch.equal(
        pair.cloud.embed_caption(label)[0, 0], pair.cloud.cls_embedding.get_parameter("embedding_table.weight")[9]
    )


def test_a_drafter_of_another_width_is_refused(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / "drafter" / "pytorch_model.bin", weights_only=True)
    state["fc.weight"] = torch.zeros(8, 16)
    state["layers.0.input_layernorm.weight"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert (
        "fc.bias is missing, needed [16]; fc.weight has shape [8, 16], needed [16, 32]; "
        "layers.0.input_layernorm.weight with shape [16] has no place in this model"
    ) in refused(t2i(folder, device=str(tmp_path)))


def test_a_drafter_of_mixed_types_is_read_in_one(folder: Path, tmp_path: Path) -> None:
    """Its keys of queries and values are joined, which torch does not do for float8 and float32."""
    state = torch.load(folder / "drafter" / "pytorch_model.bin", weights_only=True)
    for key, dtype in (("v_proj", torch.float8_e4m3fn), ("k_proj", torch.float64), ("o_proj", torch.bfloat16)):
        state[f"layers.0.self_attn.{key}.weight"] = state[f"layers.0.self_attn.{key}.weight"].to(dtype)
    torch.save(state, tmp_path / "pytorch_model.bin")
    drafter = load_pair(t2i(folder, device=str(tmp_path))).drafter
    assert {parameter.dtype for parameter in drafter.parameters()} == {torch.float32}


def test_a_decoder_without_its_condition_is_called_neither_kind(folder: Path, tmp_path: Path) -> None:
    """A class-conditional model without its table of classes was called a text-conditional one."""
    state = torch.load(folder / "c2i" / "c2i_L_256.pt", weights_only=True)["model"]
    del state["cls_embedding.embedding_table.weight"]
    torch.save(state, tmp_path / "c2i_L_256.pt")
    wanted = "a decoder without cls_embedding.embedding_table.weight and without cls_embedding.uncond_embedding"
    assert f"c2i_L_256.pt: {wanted}" in refused(c2i(folder, weights=str(tmp_path)))

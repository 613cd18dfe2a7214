"""Anole, Lumina-mGPT and Janus-Pro against transformers, on tiny random checkpoints in their layouts.

Longer than other files, because the three families go through the same checks.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.backbones import huggingface
from models.backbones.huggingface import PromptEncoder, load_decoder, load_janus_vq, load_vqgan, own_codebook
from models.backbones.huggingface_files import describe, vqgan_file, weight_files
from models.backbones.vqgan_keys import original_vq_key, vq_key
from models.checkpoint import read_checkpoint
from models.kv_cache import KVCache
from models.llama import LlamaDecoder
from models.sampling import guide
from models.state import read_state
from models.text import left_pad
from simulator.core.errors import PromptError, WeightsError
from simulator.pricing.build import pair_shapes
from simulator.protocol.pairs import PairSpec, find_pair
from tests.models import folders

CAPTION = "a photo of the red bus"


@pytest.fixture(scope="module")
def lumina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.chameleon(tmp_path_factory.mktemp("lumina"), seed=1, pixels=8)


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.janus(tmp_path_factory.mktemp("janus"), seed=2)


def decode(model: LlamaDecoder, rows: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return greedy codes [T] and guided logits [T, V] for one caption's rows [n, 2], decoded through the cache."""
    caption, mask = (one.unsqueeze(0) for one in left_pad(rows, model.config.caption_slots))
    null, valid = model.unconditional(caption, mask)
    cache, both = KVCache(model.config, 2), torch.arange(2)
    cache.caption_mask[:] = torch.cat([mask, valid])
    embeds, start = model.embed_caption(torch.cat([caption, null])), torch.zeros(2, dtype=torch.long)
    tokens, logits = [], []
    for _ in range(model.config.tokens):
        new = torch.full((2,), embeds.shape[1])
        raw = model.logits(model.step(cache, both, start, embeds, new)[:, -1])
        start = start + new
        logits.append(guide(raw[:1], raw[1:], scale))
        tokens.append(logits[-1].argmax(-1))
        embeds = model.embed_tokens(tokens[-1].repeat(2)).unsqueeze(1)
    return torch.cat(tokens), torch.cat(logits)


@torch.inference_mode()
def test_lumina_is_chameleon_with_a_row_token_after_each_row(lumina: Path) -> None:
    transformers = pytest.importorskip("transformers")
    described = describe("lumina-mgpt-768", lumina)
    model = load_decoder(lumina, described)
    encoder = PromptEncoder(lumina, described.prompt)
    config, codes = described.config, torch.tensor(described.codes)
    assert (config.grid, config.tokens, config.positions) == (6, 36, 128 + 42)
    prompt = encoder.tokens(CAPTION)
    words = json.loads((lumina / "config.json").read_text())["vocabulary_map"]
    side, row = words["<reserved08824>"], words["<reserved08799>"]
    assert prompt[0] == words["<s>"]
    assert prompt[-4:] == [words["<reserved08706>"], words["<racm3:break>"], side, side]
    tokens, logits = decode(model, encoder.encode(CAPTION), 4.0)

    reference = reference_of(transformers.ChameleonForConditionalGeneration, lumina)
    head = load_all(lumina)["lm_head.weight"][codes]
    laid = torch.cat([codes[tokens].view(6, 6), torch.full((6, 1), row)], dim=1).flatten().tolist()[:-2]
    seen = [
        reference.model(input_ids=torch.tensor([start + laid])).last_hidden_state[0, len(start) - 1 :] @ head.T
        for start in (prompt, prompt[-3:])
    ]
    # A row's first code is predicted after the row token.
    ends = torch.tensor([column for column in range(len(laid) + 1) if column % 7 != 6])
    wanted = guide(seen[0][ends], seen[1][ends], 4.0)
    torch.testing.assert_close(logits, wanted, atol=4e-4, rtol=0)
    assert torch.equal(tokens, wanted.argmax(-1))
    caption, mask = (one.unsqueeze(0) for one in left_pad(encoder.encode(CAPTION), 128))
    whole = model(tokens[None, :-1], caption, mask)[0][0]
    torch.testing.assert_close(whole, seen[0][ends], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_passes_of_many_codes_across_rows_are_single_steps(lumina: Path) -> None:
    model = load_decoder(lumina, describe("lumina-mgpt-768", lumina))
    slots = model.config.caption_slots
    rows = torch.randn(3, 40, model.config.dim)
    caches = [KVCache(model.config, 3) for _ in range(2)]
    for cache in caches:
        prompt = torch.randn(3, slots, model.config.dim, generator=torch.Generator().manual_seed(3))
        model.step(cache, torch.arange(3), torch.zeros(3, dtype=torch.long), prompt, torch.full((3,), slots))
    start, count = torch.tensor([0, 4, 5]), torch.tensor([14, 3, 8])  # before, inside and at the end of a row
    last: list[Tensor] = []
    for row in range(3):
        for t in range(int(start[row] + count[row])):
            at = torch.tensor([slots + t])
            one = model.step(caches[0], torch.tensor([row]), at, rows[row : row + 1, t : t + 1], torch.tensor([1]))
            if t == start[row] + count[row] - 1:
                last.append(one)
    for row in range(3):
        if start[row]:
            model.step(
                caches[1],
                torch.tensor([row]),
                torch.tensor([slots]),
                rows[row : row + 1, : start[row]],
                start[row : row + 1],
            )
    embeds = torch.stack([rows[row, start[row] : start[row] + 14] for row in range(3)])
    many = model.step(caches[1], torch.arange(3), slots + start, embeds, count)
    torch.testing.assert_close(many[torch.arange(3), count - 1].unsqueeze(1), torch.cat(last), atol=2e-5, rtol=0)
    with pytest.raises(WeightsError, match="row tokens"):
        model.step(caches[1], torch.arange(1), torch.tensor([slots]), embeds[:1, :2], torch.tensor([2]), [[-1, 0]])


@torch.inference_mode()
def test_janus_makes_the_images_of_transformers(janus: Path) -> None:
    transformers = pytest.importorskip("transformers")
    described = describe("janus-pro-1b", janus)
    model, tokenizer = load_decoder(janus, described), load_janus_vq(janus)
    prompt = PromptEncoder(janus, described.prompt)
    assert prompt.tokens(CAPTION)[:3] == [1, 4, 6]
    assert prompt.tokens(CAPTION)[-3:] == [5, 6, 3]
    tokens, _ = decode(model, prompt.encode(CAPTION), 5.0)
    image = tokenizer.decode_codes(tokens[None])

    reference = reference_of(transformers.JanusForConditionalGeneration, janus)
    settings = transformers.GenerationConfig(
        do_sample=False, guidance_scale=5.0, bos_token_id=1, pad_token_id=2, eos_token_id=None, use_cache=True,
        generation_kwargs={"boi_token_id": 3}, max_new_tokens=16,
    )  # fmt: skip
    ids = torch.tensor([prompt.tokens(CAPTION)])
    found = reference.generate(
        ids, attention_mask=torch.ones_like(ids), generation_mode="image", generation_config=settings
    )
    assert torch.equal(tokens, found[0])
    wanted = reference.decode_image_tokens(found).permute(0, 3, 1, 2)
    torch.testing.assert_close(image, wanted, atol=1e-4, rtol=0)
    latents = reference.model.vqmodel.quant_conv(reference.model.vqmodel.encoder(image))
    torch.testing.assert_close(tokenizer.encode(image), latents, atol=1e-4, rtol=0)


def reference_of(kind: Any, folder: Path) -> Any:
    """Return the library's model with the folder's weights. Every part that makes images must be in the files."""
    model = kind.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32).eval()
    state = model.state_dict()
    for key, tensor in load_all(folder).items():
        if key.startswith(("model.layers", "model.language_model", "model.generation", "model.vqmodel")):
            assert torch.equal(state[key], tensor), key
    return model


def load_all(folder: Path) -> dict[str, Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def test_an_image_token_that_is_not_in_order_is_found_by_its_name(tmp_path: Path) -> None:
    folder = folders.chameleon(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    words = config["vocabulary_map"]
    words["IMGIMGAZ"], words["IMGIMGGDZ"] = words["IMGIMGGDZ"], words["IMGIMGAZ"]
    (folder / "config.json").write_text(json.dumps(config))
    codes = describe("anole-7b", folder).codes
    assert (codes[0], codes[63], codes[1]) == (67, 4, 5)


def test_names_of_transformers_4_and_its_head_norms_are_read(tmp_path: Path) -> None:
    new, old = folders.chameleon(tmp_path / "new"), folders.chameleon(tmp_path / "old", old_names=True)
    for path in (*new.glob("*.safetensors"), *old.glob("*.safetensors")):  # Anole has one norm for all heads
        state = load_file(path)
        for key, value in state.items():
            if "k_norm" in key:
                state[key] = value[:1].expand_as(value).contiguous() if path.parent == new else value[0].clone()
        save_file(state, path)
    models = [load_decoder(folder, describe("anole-7b", folder)) for folder in (new, old)]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), r"missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda s: s.update(surplus=torch.zeros(1)), "unexpected: surplus"),
        (
            lambda s: s.update({"lm_head.weight": torch.zeros(7, 32)}),
            r"of another shape: lm_head\.weight \[7, 32\], needed \[200, 32\]",
        ),
        (
            lambda s: s["model.layers.0.mlp.up_proj.weight"].fill_(torch.nan),
            r"not finite in torch\.float32: model\.layers\.0\.mlp\.up_proj\.weight in model\.safetensors \(1536 of 1536 values\)",
        ),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            r"quantised weights are not supported: model\.norm\.weight torch\.int8 in model\.safetensors; needed floating-point weights",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = folders.chameleon(tmp_path)
    state = load_all(folder)
    for path in folder.glob("model*"):
        path.unlink()
    change(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_decoder(folder, describe("anole-7b", folder))


@pytest.mark.parametrize(
    ("key", "shape", "needed"),
    [
        ("model.generation_embeddings.weight", [1, 8], [64, 8]),  # it was copied to every code
        ("model.generation_aligner.fc1.bias", [1], [32]),
        ("model.generation_aligner.fc1.weight", [1, 32, 8], [32, 8]),
    ],
)
def test_what_embeds_the_codes_of_janus_is_compared_too(
    janus: Path, tmp_path: Path, key: str, shape: list[int], needed: list[int]
) -> None:
    folder = shutil.copytree(janus, tmp_path / "janus")
    save_file({**load_all(folder), key: torch.zeros(shape)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=re.escape(f"of another shape: {key} {shape}, needed {needed}")):
        load_decoder(folder, describe("janus-pro-1b", folder))


def test_what_wrappers_add_to_keys_is_taken_off_in_shards_too(tmp_path: Path) -> None:
    folder = folders.chameleon(tmp_path)
    described = describe("anole-7b", folder)
    before = load_decoder(folder, described).state_dict()
    for path in folder.glob("model*.safetensors"):
        save_file({f"module.{key}": value for key, value in load_file(path).items()}, path)
    after = load_decoder(folder, described).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("stored", [False, True])
def test_a_tied_output_matrix_is_the_embedding_whether_the_file_holds_one_or_not(tmp_path: Path, stored: bool) -> None:
    folder = folders.chameleon(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    state = load_all(folder)
    for path in folder.glob("model*"):
        path.unlink()
    if not stored:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    described = describe("anole-7b", folder)
    model = load_decoder(folder, described)
    wanted = state["model.embed_tokens.weight"][torch.tensor(described.codes)]
    assert torch.equal(model.output.weight, wanted)
    assert torch.equal(model.tok_embeddings.weight, wanted)


def test_configurations_that_would_compute_something_else_are_refused(tmp_path: Path) -> None:
    path = folders.chameleon(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    for change, found in (
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', needed 'silu'"),
        ({"swin_norm": True}, "attention_bias, mlp_bias and swin_norm must be false"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a number above 0, got 'None'"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, got '1e-5'"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0, got 'nan'"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_theta must be a number above 0, got 'True'"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=rf"config\.json: {found}"):
            describe("anole-7b", path.parent)


def test_folders_that_lack_something_say_what(tmp_path: Path) -> None:
    folder = folders.chameleon(tmp_path)
    with pytest.raises(WeightsError, match="model_type is 'chameleon', needed 'janus'"):
        describe("janus-pro-1b", folder)
    authors = tmp_path / "authors"
    authors.mkdir()
    (authors / "config.json").write_text('{"model_type": "multi_modality", "language_config": {}}')
    with pytest.raises(
        WeightsError, match="model_type is 'multi_modality', needed 'janus', as deepseek-community has it"
    ):
        describe("janus-pro-7b", authors)
    (folder / "tokenizer" / "vqgan.ckpt").unlink()
    with pytest.raises(WeightsError, match=r"no vqgan\.ckpt or tokenizer/vqgan\.ckpt"):
        vqgan_file(folder)
    assert own_codebook(folder) is None
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="names files that are not there: model-00002"):
        load_decoder(folder, describe("anole-7b", folder))
    described, encoder = describe("anole-7b", folder), PromptEncoder(folder, describe("anole-7b", folder).prompt)
    with pytest.raises(PromptError, match="empty"):
        encoder.encode("  ")
    with pytest.raises(PromptError, match="the prompt has 203 tokens, at most 128"):
        encoder.encode("bus " * 200)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"tokenizer\.json: not readable as a tokenizer"):
        PromptEncoder(folder, described.prompt).encode("bus")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match=r"config\.json: holds a list, needed a mapping"):
        describe("anole-7b", folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_key_in_two_shards_is_refused(tmp_path: Path, index: bool) -> None:
    """The last file won, whatever the index said."""
    folder = folders.chameleon(tmp_path)
    second = folder / "model-00002-of-00002.safetensors"
    save_file({**load_file(second), "lm_head.weight": torch.zeros(200, 32)}, second)
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    said = r"00002\.safetensors: holds lm_head\.weight, as model-00001-of-00002\.safetensors does; a key must be in one file"
    with pytest.raises(WeightsError, match=said):
        load_decoder(folder, describe("anole-7b", folder))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"IMGIMGBZ": folders.CODE}, r"IMGIMGBZ is image code 1 with token 4; another name has one of them"),
        ({"IMGIMGAAZ": 150}, r"IMGIMGAAZ is image code 0 with token 150; another name has one of them"),
        ({"IMGIMGBZ": 200}, r"image token 200 lies outside the vocabulary of 200"),
        ({"<reserved08706>": 200}, r"prompt token 200 lies outside the vocabulary of 200"),
        ({"<s>": 201}, r"prompt token 201 lies outside the vocabulary of 200"),
    ],
)
def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path, words: dict[str, int], said: str) -> None:
    """Two codes of one token were taken, and a token without an embedding ended in a traceback."""
    folder = folders.chameleon(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["vocabulary_map"] |= words
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=said):
        describe("anole-7b", folder)


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    folder = folders.janus(tmp_path)
    described = describe("janus-pro-1b", folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"red": 103', '"red": 200'))
    encoder = PromptEncoder(folder, described.prompt, described.config.text_vocab)
    assert encoder.tokens("a bus")
    with pytest.raises(
        WeightsError, match=r"tokenizer\.json: gives token 200 for 'a red bus', and the model has 200 text tokens"
    ):
        encoder.encode("a red bus")


def test_keys_and_values_that_heads_share_are_those_of_each(tmp_path: Path) -> None:
    shared, own = folders.chameleon(tmp_path / "shared"), folders.chameleon(tmp_path / "own")
    config = json.loads((shared / "config.json").read_text()) | {"num_key_value_heads": 1}
    (shared / "config.json").write_text(json.dumps(config))
    half = folders.WIDTH // folders.HEADS
    for path in shared.glob("*.safetensors"):
        state = load_file(path)
        for key, value in state.items():
            if key.endswith(("k_proj.weight", "v_proj.weight")):
                state[key] = value[:half].clone()
            if ".k_norm." in key:
                state[key] = value[:1].clone()
        save_file(state, path)
        save_file({key: twice(key, value) for key, value in state.items()}, own / path.name)
    one, other = (load_decoder(folder, describe("anole-7b", folder)) for folder in (shared, own))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    costs = [pair_shapes(PairSpec(cloud="anole-7b", weights=str(folder))).cloud for folder in (shared, own)]
    assert costs[0].kv_bytes_per_position * 2 == costs[1].kv_bytes_per_position
    saved = 2 * folders.LAYERS * half * folders.WIDTH  # keys and values of one head per layer
    assert costs[1].pass_parameters - costs[0].pass_parameters == saved
    (shared / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3}))
    with pytest.raises(WeightsError, match="num_key_value_heads is 3, needed a divisor of num_attention_heads = 2"):
        describe("anole-7b", shared)


def twice(key: str, value: Tensor) -> Tensor:
    """Return the tensor with the shared keys and values repeated for each head."""
    return torch.cat([value, value]) if key.endswith(("k_proj.weight", "v_proj.weight")) or ".k_norm." in key else value


def test_parts_of_pytorch_are_read_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders.chameleon(tmp_path)
    wanted = load_decoder(folder, describe("anole-7b", folder))
    for path in folder.glob("model-*.safetensors"):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    read: list[str] = []
    monkeypatch.setattr(huggingface, "read_state", lambda path: read.append(path.name) or read_state(path))  # type: ignore[func-returns-value]
    found = load_decoder(folder, describe("anole-7b", folder))
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), found.parameters(), strict=True))
    assert own_codebook(folder) is None
    assert read == ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def test_of_several_weight_files_those_are_read_that_transformers_reads(tmp_path: Path) -> None:
    folder = folders.chameleon(tmp_path)
    parts = sorted(folder.glob("model-*.safetensors"))
    assert weight_files(folder) == parts
    for name in ("model_ema.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        shutil.copy(parts[0], folder / name)
        assert weight_files(folder) == parts  # from the index
    (folder / "model.safetensors.index.json").unlink()
    assert weight_files(folder) == parts  # from the numbers
    parts[1].rename(folder / "kept")
    with pytest.raises(WeightsError, match=r"of 2 parts of its weights \(.*\) these are missing: 2"):
        weight_files(folder)
    parts[0].unlink()
    with pytest.raises(
        WeightsError,
        match=r"holds several weight files: model\.fp16\.safetensors, model_ema\.safetensors; needed model",
    ):
        weight_files(folder)
    (folder / "kept").rename(folder / "model.safetensors")
    assert weight_files(folder) == [folder / "model.safetensors"]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert weight_files(folder) == [folder / "pytorch_model.bin"]


def test_a_folder_of_the_hubs_cache_and_tables_of_older_versions(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--leloy--Anole-7b-v0.1-hf" / "snapshots" / "1a2b"
    folder = folders.chameleon(snapshot)
    spec = PairSpec(cloud="anole-7b", weights=str(snapshot.parents[1]))
    with pytest.raises(
        WeightsError, match=r"holds no config\.json; a cache of the hub: its files are in .*snapshots/1a2b"
    ):
        find_pair(spec)
    path = folder / "model-00001-of-00002.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path)
    assert load_decoder(folder, describe("anole-7b", folder)).config.n_layer == folders.LAYERS
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(WeightsError, match=r"tokenizer\.json: not readable as JSON"):  # before the weights
        find_pair(PairSpec(cloud="anole-7b", weights=str(folder)))


def test_a_vqgan_of_its_authors_keys_is_read(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": folders.vqgan_state(0, True, False) | {"loss.x": torch.zeros(1), "model_ema.x": torch.zeros(1)}},
        tmp_path / "v.ckpt",
    )
    model = load_vqgan(tmp_path / "v.ckpt")
    codes = torch.randint(64, (2, 16))
    images = model.decode_codes(codes)
    assert images.shape == (2, 3, 8, 8)
    latents = torch.randn(1, 8, 2, 2)
    distance = torch.cdist(latents.flatten(2).transpose(1, 2)[0], model.quantize.embedding.weight)
    assert torch.equal(model.quantise(latents).codes[0], distance.argmin(-1))
    del (state := folders.vqgan_state(0, True, False))["decoder.conv_in.bias"]
    torch.save({"state_dict": state}, tmp_path / "v.ckpt")
    with pytest.raises(WeightsError, match=r"v\.ckpt: decoder\.conv_in\.bias is missing"):
        load_vqgan(tmp_path / "v.ckpt")


@pytest.mark.parametrize("highest_first", [True, False])
def test_refusals_of_an_image_tokenizer_name_the_keys_of_its_file(tmp_path: Path, highest_first: bool) -> None:
    """They named the decoder's levels and middle blocks as this project does, keys that the file does not have."""
    for key in folders.vqgan_state(0, highest_first, True):
        assert original_vq_key(vq_key(key, 2, highest_first), 2, highest_first) == key
    state = folders.vqgan_state(0, highest_first, False)
    del state["decoder.mid.attn_1.norm.bias"]
    state["decoder.up.0.block.1.conv2.bias"] = torch.zeros(32, dtype=torch.int64)
    said = "decoder.mid.attn_1.norm.bias is missing, needed [32]; decoder.up.0.block.1.conv2.bias has type torch.int64"
    if highest_first:
        torch.save({"state_dict": state}, tmp_path / "v.ckpt")
        with pytest.raises(WeightsError, match=re.escape(f"v.ckpt: {said}")):
            load_vqgan(tmp_path / "v.ckpt")
        return
    save_file({f"model.vqmodel.{key}": value for key, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=re.escape(said.replace("decoder", "model.vqmodel.decoder"))):
        load_janus_vq(tmp_path)  # it took whole numbers


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda whole: whole[:-3], "a file that is cut short, of"),
        (lambda whole: whole[:20], "a file that is cut short, of 20 bytes"),
        (lambda whole: whole + bytes(10), "10 more than its header describes"),
    ],
)
def test_a_file_of_another_size_than_its_header_says(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.zeros(8)}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(WeightsError, match=f"m.safetensors: not readable as weights: .*{said}"):
        read_checkpoint(path)

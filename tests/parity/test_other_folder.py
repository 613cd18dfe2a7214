"""The checks on a folder with other sizes, file names and orders, written here from the program's own results.

This says nothing about the references: it shows that no check assumes the sizes of one folder.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.attention import attention_mask, rope_table
from models.backbones.huggingface import load_decoder, load_vqgan
from models.backbones.huggingface_files import describe
from models.eagle import EagleDrafter, drafter_config, to_checkpoint
from models.kv_cache import KVCache
from models.methods.lantern import neighbours
from models.sampling import guide
from models.transformer import Transformer
from models.tree import Growth, Tree, layout
from models.vq import VQConfig, VQModel, to_uint8
from simulator.protocol.pairs import TransformerConfig
from tests.models import folders
from tests.parity.__main__ import main
from tests.parity.chameleon import decode, rows_of
from tests.parity.checks import Tally, stem
from tests.parity.core import LOGITS, decode_greedy
from tests.parity.drafting import Shape, chosen, feed, log_q, number, padded, walk

CODES, WIDTH, SLOTS, ROPE = 48, 16, 9, 500.0


def random_model(grid: int) -> Transformer:
    torch.manual_seed(5)
    config = TransformerConfig(2, 2, WIDTH, 24, CODES, SLOTS, 7, grid, ROPE, 1e-3)
    model = Transformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape), alpha=0.5)
    return model


def write_decoder(folder: Path, grid: int, scale: float, interval: int) -> None:
    model, batch = random_model(grid), 3
    name = "llamagen_gpt_small_iota"  # contains `_io`, the end of a stem, in the name itself
    torch.save({"model": model.state_dict()}, folder / f"{name}.pt")
    (folder / f"{name}_config.json").write_text(json.dumps({"n_head": 2, "rope_base": ROPE, "norm_eps": 1e-3}))
    caption, tokens = torch.randn(batch, SLOTS, 7), torch.randint(CODES, (batch, grid * grid))
    mask = torch.arange(SLOTS).expand(batch, -1) >= torch.tensor([[0], [3], [8]])
    inputs, length = tokens[:, :-1], model.config.positions
    variant = f"cfg{scale:g}".replace(".", "p")
    greedy, raw, mixed = decode_greedy(model, caption, mask, scale)
    short, short_raw, short_mixed = decode_greedy(model, caption, mask, scale, interval)
    seen = attention_mask(torch.arange(length).unsqueeze(0), length, mask.repeat(2, 1), SLOTS)
    steps = torch.tensor([0, 2, grid * grid - 1])
    io = {
        "caption_embs": caption,
        "emb_masks": mask.long(),
        "teacher_tokens": tokens,
        "teacher_logits_masked": model(inputs, caption, mask)[0],
        "rope_table": rope_table(model.config).float(),
        f"kv_causal_mask_{variant}": torch.nn.functional.pad(seen, (0, 3, 0, 3)).to(torch.uint8),
        f"greedy_tokens_{variant}": greedy,
        f"greedy_tokens_{variant}_interval{interval}": short,
        "step_index": steps,
        f"step_logits_raw_{variant}": raw[steps],
        f"step_logits_combined_{variant}": mixed if grid == 6 else mixed[steps],  # of all steps, or of those named
        f"step_logits_raw_{variant}_interval{interval}": short_raw[steps],
        f"step_logits_combined_{variant}_interval{interval}": short_mixed[steps],
    }
    off = guide(short_raw[:, :batch], short_raw[:, batch:], 1.0)
    assert torch.equal(short_mixed[interval + 2 :], off[interval + 2 :])
    save_file({key: value.contiguous() for key, value in io.items()}, folder / f"{name}_io_{grid}x{grid}.safetensors")


def write_tokenizer(folder: Path) -> None:
    torch.manual_seed(6)
    config = VQConfig(CODES, 4, 32, (1, 1), (1, 1), 32, 1)
    model, name = VQModel(config).eval().requires_grad_(False), "llamagen_vq_small"
    torch.save({"model": model.state_dict()}, folder / f"{name}.pt")
    values = {"codebook_size": CODES, "codebook_embed_dim": 4, "ch": 32, "z_channels": 32, "num_res_blocks": 1}
    values |= {"encoder_ch_mult": [1, 1], "decoder_ch_mult": [1, 1]}  # type: ignore[dict-item]
    (folder / f"{name}_config.json").write_text(json.dumps(values))
    image, codes = torch.rand(2, 3, 12, 20) * 2 - 1, torch.randint(CODES, (2, 15))
    latents = model.encode(image)
    result = model.quantise(latents)
    decoded = model.decode_codes(codes.view(2, 3, 5))  # a grid that is no square
    io = {
        "image": image.double(),
        "pre_quant": latents,
        "indices": result.codes.view(2, 6, 10),
        "quantised": result.quantised,
        "reconstruction": model.decode(result.quantised),
        "codes": codes,
        "code_embeddings": model.code_vectors(codes.view(2, 3, 5)),
        "decoded_from_codes": decoded,
        "decoded_uint8_hwc": to_uint8(decoded),
    }
    save_file({key: value.contiguous() for key, value in io.items()}, folder / f"{name}_io.safetensors")


def tree_tensors(tree: Tree, ordered: bool) -> dict[str, Tensor]:
    depth, sees = layout(tuple(tree.parents))
    return {
        "draft_tokens": torch.tensor(tree.tokens),
        "tree_mask": sees.to(torch.uint8),
        "tree_position_ids": depth,
        "retrieve_indices": padded(tree.paths(ordered)),
    }


def write_drafter(folder: Path) -> None:
    """Write a drafter of depth 2, top 4, eleven nodes, a 6 x 6 grid and another norm epsilon, without a processor: paths keep the order
    of the leaves."""
    torch.manual_seed(7)
    base = TransformerConfig(1, 2, WIDTH, 20, CODES, SLOTS, WIDTH, 6, ROPE)
    drafter = EagleDrafter(drafter_config(base, norm_eps=1e-2)).eval().requires_grad_(False)
    embedding, head = torch.randn(CODES, WIDTH), torch.randn(CODES, WIDTH)
    weights = {**to_checkpoint(drafter), "embed_tokens.weight": embedding}
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in weights.items()}}, folder / "eagle_drafter_small.bin"
    )
    config = {"num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 20, "vocab_size": CODES}
    config |= {"cls_token_num": SLOTS - 1, "block_size": 36, "rope_base": ROPE, "rms_norm_eps": 1e-2}
    info = {"config": config, "total_token": 11, "depth": 2, "top_k": 4, "cfg_scale": 2.0, "processor": None}
    (folder / "eagle_drafter_small.json").write_text(json.dumps(info))
    io, cache, held, ids = {"lm_head": head}, KVCache(drafter.config, 2, spare=12), 0, [0] * SLOTS + [5]
    for index, more in enumerate(([], [7, 9])):
        ids = ids + list(more)
        fresh = ids[1:][held:]
        features = torch.randn(2, len(fresh), WIDTH)
        outputs = feed(drafter, cache, embedding[fresh], features, held, None)
        held += len(fresh)
        io |= {f"round{index}.features": features, f"round{index}.input_ids": torch.tensor(ids)}
        io[f"round{index}.committed_out_hidden"] = outputs
        growth, outputs = Growth(4), outputs[:, -1:]

        def drafted(outputs: Tensor) -> Tensor:
            logits = outputs @ head.T
            return log_q(guide(logits[0], logits[1], 2.0), None)

        growth.begin(drafted(outputs)[0])
        for _ in range(2):
            rows = embedding[[growth.tokens[node] for node in growth.beam]]
            start = held + len(growth.fed) - len(growth.beam)
            outputs = feed(drafter, cache, rows, outputs[:, growth.beam_rows], start, growth.fed_parents)
            growth.grow(drafted(outputs))
        tree = tree_tensors(growth.best(ids[-1], 11), ordered=False)
        io |= {f"round{index}.{key}": value for key, value in tree.items()}
    save_file({key: value.contiguous() for key, value in io.items()}, folder / "eagle_drafter_small_io.safetensors")


def write_lantern(folder: Path) -> None:
    """Write a codebook of 48 codes, seven neighbours in a second one of 20, and a tree in which children precede other parents."""
    generator = torch.Generator().manual_seed(8)
    book, other = torch.randn(CODES, 3, generator=generator), torch.randn(20, 5, generator=generator)
    table = torch.from_numpy(neighbours(book, CODES - 1).astype(np.int32))
    tokens, parents = [1, 4, 9, 30, 9, 2, 17], [-1, 0, 1, 0, 3, 1, 4]  # depth first
    logits = torch.randn(7, CODES, generator=generator)
    r = torch.rand(12, dtype=torch.float64, generator=generator)
    case: dict[str, Any] = {"case": 0, "mode": "lantern", "k": 6, "delta": 0.4, "temperature": 0.9, "top_k": 30}
    shape = Shape(Tree(tokens, parents), Tree(tokens, parents).paths(ordered=True), logits)
    nodes, p, ratios = walk(shape, case, r, chosen(case, shape.tree, table))
    case |= {"n_r_used": len(ratios), "accept_length": len(nodes) - 1, "best_path": number(shape.paths, nodes)}
    case["path_tokens"] = [tokens[node] for node in nodes]
    io = {
        "codebook": book,
        "neighbours": table,
        "half.codebook": other,
        "half.neighbours7": torch.from_numpy(neighbours(other, 7).astype(np.int32)),
        "tree.0.token": torch.tensor(tokens),
        "tree.0.parent": torch.tensor(parents),
        "tree.0.node_logits": logits,
        "tree.0.retrieve_indices": padded(shape.paths),
        "tree.0.r": r,
        "tree.0.lantern.accept_ratio": torch.tensor(ratios, dtype=torch.float64),
        "tree.0.lantern.sample_p": torch.from_numpy(p),
    }
    save_file(io, folder / "lantern_small.safetensors")
    (folder / "lantern_small_cases.json").write_text(json.dumps({"tree": [case]}))


def write_anole(folder: Path) -> None:
    """Write weights in two shards with the names of transformers 4, three images of 4 x 6 codes, and ten steps of a 4 x 4 grid."""
    name = folder / "anole_small_iota"
    held = folders.chameleon(Path(f"{name}_hf"), seed=4, old_names=True, pixels=8)
    (held / "tokenizer" / "vqgan.ckpt").rename(f"{name}_vqgan.ckpt")
    Path(f"{name}_vqgan.yaml").write_text("model:\n  params:\n    ddconfig:\n      ch: 32\n    n_embed: 64\n")
    described = describe("anole-7b", held)
    model, tokenizer = load_decoder(held, described), load_vqgan(Path(f"{name}_vqgan.ckpt"))
    codes, (bos,), (sep, begin) = torch.tensor(described.codes), described.prompt.before, described.prompt.after
    Path(f"{name}_info.json").write_text(json.dumps({"ids": {"bos": bos, "sep": sep, "boi": begin}}))
    ids = torch.randint(folders.TEXT, (3, 9))
    own, null = torch.tensor([bos, 101, 105, sep, begin]), torch.tensor([1, 1, 1, bos, begin])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    hidden = model.hidden(torch.zeros(3, 0, dtype=torch.long), rows_of(ids), None)
    head = load_file(next(path for path in held.glob("*.safetensors") if "lm_head.weight" in load_file(path)))[
        "lm_head.weight"
    ]
    image = torch.rand(3, 3, 8, 12) * 2 - 1
    some = torch.randint(len(codes), (3, 24))
    decoded = tokenizer.decode_codes(some.view(3, 4, 6))
    found = tokenizer.encode_codes(image)
    tokens, raw = decode(model, rows_of(torch.stack([own, null])), mask.bool(), 2.0, 10)
    wide = torch.zeros(10, 2, folders.TEXT)
    wide[..., codes] = raw
    io = {"forward_ids": ids, "forward_hidden": hidden, "forward_logits_unmasked": hidden @ head.T, "image": image}
    io |= {
        "prompt_cond": own,
        "prompt_uncond": null,
        "attention_mask": mask.to(torch.uint8),
        "greedy_cfg2.0": codes[tokens],
    }
    io |= {"raw_logits_cfg2.0": wide, "image_codes": found, "image_bpe_tokens": codes[found].int(), "codes": some}
    io |= {"decoded": decoded, "decoded_uint8_hwc": tokenizer.to_bytes(decoded)}
    save_file({key: value.contiguous() for key, value in io.items()}, f"{name}_io.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("golden")
    with torch.inference_mode():
        write_decoder(written, 6, 2.5, 4)
        write_decoder(written, 12, 3.0, 0)
        write_tokenizer(written)
        write_drafter(written)
        write_lantern(written)
        write_anole(written)
    return written


def part(folder: Path, tmp_path: Path, file: str) -> Path:
    """Copy the files that the check of one file reads."""
    reads = stem(file)
    for path in folder.glob(f"{reads}*"):
        if path.match("*_io_*.safetensors") and path.stem != file:  # another grid of the same weights
            continue
        copy = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, tmp_path / path.name)
    return tmp_path


def test_another_folder_of_the_same_layout_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(folder) == 0, capsys.readouterr().out
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if ": ok, " in line] == [
        line
        for line in out
        if Path(line.split(":")[0]).match("*_io*.safetensors") or line.startswith("lantern_small.saf")
    ]
    assert (
        "llamagen_gpt_small_iota.pt: read for llamagen_gpt_small_iota_io_12x12.safetensors, "
        "llamagen_gpt_small_iota_io_6x6.safetensors" in out
    )
    assert any(line.startswith("lantern_small.safetensors: ok, 3 cases") for line in out)


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("llamagen_gpt_small_iota_io_6x6", "greedy_tokens_cfg2p5_interval4"),
        ("llamagen_gpt_small_iota_io_6x6", "step_logits_combined_cfg2p5_interval4"),
        ("llamagen_gpt_small_iota_io_12x12", "step_logits_raw_cfg3"),
        ("llamagen_vq_small_io", "decoded_from_codes"),
        ("eagle_drafter_small_io", "round1.retrieve_indices"),
        ("anole_small_iota_io", "greedy_cfg2.0"),
        ("anole_small_iota_io", "decoded"),
        ("lantern_small", "half.neighbours7"),
        ("lantern_small", "tree.0.lantern.accept_ratio"),
    ],
)
def test_a_wrong_value_in_it_fails(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, key: str
) -> None:
    folder = part(folder, tmp_path, file)
    tensors = load_file(folder / f"{file}.safetensors")
    tensors[key].view(-1)[0] += 1
    save_file(tensors, folder / f"{file}.safetensors")
    assert main(folder) == 1
    assert f"{file}.safetensors: FAILED" in capsys.readouterr().out


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a decoder of large weights, whose logits reach 60 and whose guided probabilities are nearly one, from a float64 run."""
    folder, name, scale = tmp_path_factory.mktemp("wide"), "llamagen_gpt_wide", 4.0
    torch.manual_seed(5)
    model = Transformer(TransformerConfig(4, 4, 256, 512, 200, SLOTS, 7, 4)).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if not key.endswith("norm.weight"):
            parameter.copy_(torch.randn(parameter.shape))
    torch.save({"model": model.state_dict()}, folder / f"{name}.pt")
    (folder / f"{name}_config.json").write_text(json.dumps({"n_head": 4}))
    caption, tokens, mask = torch.randn(2, SLOTS, 7), torch.randint(200, (2, 16)), torch.ones(2, SLOTS).bool()
    exact = model.double()
    with torch.inference_mode():
        greedy, raw, mixed = decode_greedy(exact, caption.double(), mask, scale)
        teacher = exact(tokens[:, :-1], caption.double(), mask)[0]
    io = {"caption_embs": caption, "emb_masks": mask.long(), "teacher_tokens": tokens, "greedy_tokens_cfg4": greedy}
    floats = {"teacher_logits_masked": teacher, "step_logits_raw_cfg4": raw, "step_logits_combined_cfg4": mixed}
    io |= {key: value.float().contiguous() for key, value in floats.items()}
    save_file(io, folder / f"{name}_io_4x4.safetensors")
    return folder


def test_what_rounding_explains_grows_with_the_weights(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(wide) == 0, capsys.readouterr().out
    line = next(line for line in capsys.readouterr().out.splitlines() if "_io_" in line and ": ok" in line)
    assert float(line.rpartition(" ")[2]) > 7 * LOGITS  # beyond what is allowed for small weights at guidance 4


@pytest.mark.parametrize(
    ("key", "share"),
    [("teacher_logits_masked", 2**-11), ("step_logits_combined_cfg4", 2**-11), ("greedy_tokens_cfg4", 0)],
)
def test_half_precision_and_another_token_are_no_rounding(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, share: float
) -> None:
    folder = part(wide, tmp_path, "llamagen_gpt_wide_io_4x4")
    path = folder / "llamagen_gpt_wide_io_4x4.safetensors"
    tensors = load_file(path)
    tensors[key].view(-1)[-1] += float(tensors[key].abs().max()) * share if share else 1
    save_file(tensors, path)
    assert main(folder) == 1
    assert "FAILED" in capsys.readouterr().out


def test_ties_of_greedy_tokens_are_told_and_no_failure() -> None:
    tally, logits = Tally(), torch.tensor([[1.0, 1.0 - 1e-4, 0.0], [0.0, 2.0, 1.0]])
    tally.picked("tokens", logits, torch.tensor([1, 1]), apart=1e-3)
    assert (tally.failures, tally.skipped) == ([], ["case 0: tokens: 1 of 2 are ties within 0.001"])
    tally.picked("tokens", logits, torch.tensor([2, 1]), apart=1e-3)
    assert tally.failures == ["case 0: tokens differs in 1 of 2 places"]


def test_weights_without_their_file_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = part(folder, tmp_path, "llamagen_vq_small_io")
    (folder / "llamagen_vq_small_io.safetensors").unlink()
    assert main(folder) == 0
    assert "llamagen_vq_small.pt: read for llamagen_vq_*_io*.safetensors, which is not here" in capsys.readouterr().out

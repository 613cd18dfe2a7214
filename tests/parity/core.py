"""Parity of what every method rests on: decoder, image tokenizer, sampling chains, intervals, scores and losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.attention import attention_mask, rope_table
from models.backbones import load_llamagen
from models.interval import inter_fuse, intersection_probability, uncertainty
from models.kv_cache import KVCache
from models.methods.scores import entropy
from models.quality.statistics import precision_recall_f1, squared_distances, squared_radii
from models.sampling import filter_probs, greedy, guide, warp_probs
from models.train import losses
from models.transformer import Transformer
from models.vq import VQConfig, load_llamagen_vq, to_uint8
from tests.parity.checks import Tally, check

LOGITS, IMAGES, PROBS, DOUBLE = 2e-4, 1e-4, 1e-6, 1e-9  # the tolerances of the golden README


def cases(folder: Path, name: str, digits: int) -> list[dict[str, Any]]:
    """The cases of `name`_cases.json, each with the tensors of its number."""
    tensors = load_file(folder / f"{name}.safetensors")
    found = []
    for case in json.loads((folder / f"{name}_cases.json").read_text()):
        prefix = f"{case['case']:0{digits}d}."
        found.append(
            case | {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
    return found


# --- decoder


def decode_greedy(
    model: Transformer, caption: Tensor, mask: Tensor, scale: float, interval: int = -1
) -> tuple[Tensor, Tensor]:
    """LlamaGen's loop through the cache: tokens [B, T] and the raw logits of every step [T, R, V]."""
    batch = len(caption)
    guided = scale > 1
    if guided:
        caption, mask = torch.cat([caption, model.null_caption(batch)]), torch.cat([mask, mask])
    total = len(caption)
    cache = KVCache(model.config, total, dtype=caption.dtype)
    cache.caption_mask[:] = mask
    rows, start = torch.arange(total), torch.zeros(total, dtype=torch.long)
    embeds = model.embed_caption(caption)
    tokens, raw = [], []
    for t in range(model.config.tokens):
        n_new = torch.full((total,), embeds.shape[1])
        logits = model.logits(model.step(cache, rows, start, embeds, n_new)[:, -1])  # [R, V]
        start = start + n_new
        raw.append(logits)
        if guided:
            off = interval >= 0 and t - 1 > interval
            logits = guide(logits[:batch], logits[batch:], 1.0 if off else scale)
        tokens.append(logits.argmax(-1))
        embeds = model.embed_tokens(tokens[-1].repeat(2 if guided else 1)).unsqueeze(1)  # [R, 1, D]
    return torch.stack(tokens, dim=1), torch.stack(raw)


def _decoder(folder: Path, tally: Tally, grid: int) -> None:
    heads = json.loads((folder / "llamagen_gpt_tiny_config.json").read_text())["n_head"]
    model = load_llamagen(folder / "llamagen_gpt_tiny.pt", grid=grid, n_head=heads).eval()
    io = load_file(folder / f"llamagen_gpt_tiny_io_{grid}x{grid}.safetensors")
    caption, mask, inputs = io["caption_embs"], io["emb_masks"].bool(), io["teacher_tokens"][:, :-1]

    tally.case()  # teacher forcing
    tally.close("logits", model(inputs, caption, mask)[0], io["teacher_logits_masked"], LOGITS)
    if "teacher_logits_causal_only" in io:
        tally.close(
            "logits without caption mask", model(inputs, caption, None)[0], io["teacher_logits_causal_only"], LOGITS
        )
    if "teacher_hidden_normed_masked" in io:
        block0: list[Tensor] = []
        hook = model.layers[0].register_forward_hook(lambda module, args, out: block0.append(out))
        tally.close("hidden states", model.hidden(inputs, caption, mask), io["teacher_hidden_normed_masked"], LOGITS)
        hook.remove()
        tally.close("block 0", block0[0], io["teacher_block0_out_masked"], LOGITS)
        tally.close("caption projection", model.embed_caption(caption), io["caption_projected"], LOGITS)
        tally.close("null caption", model.null_caption(1)[0], io["uncond_embedding_rows"], 0.0)
        tally.close("rotary table", rope_table(model.config).float(), io["rope_table"], PROBS)
        length = model.config.positions
        seen = attention_mask(torch.arange(length).unsqueeze(0), length, mask.repeat(2, 1), model.config.caption_slots)
        tally.equal("attention mask", seen, io["kv_causal_mask_cfg7p5"][:, :length, :length].bool())

    for scale, interval, name in ((1.0, -1, "cfg1"), (7.5, -1, "cfg7p5"), (7.5, 10, "cfg7p5_interval10")):
        if f"greedy_tokens_{name}" not in io:
            continue
        tally.case()  # decoding through the cache
        tokens, raw = decode_greedy(model, caption, mask, scale, interval)
        tally.equal(f"greedy tokens {name}", tokens, io[f"greedy_tokens_{name}"])
        if interval < 0:
            steps = io["step_index"] if "step_index" in io else torch.arange(len(raw))
            tally.close(f"step logits {name}", raw[steps], io[f"step_logits_raw_{name}"], LOGITS)
        if f"step_logits_combined_{name}" in io:
            batch = len(tokens)
            combined = guide(raw[:, :batch], raw[:, batch:], scale)
            # u + s (c - u) carries the raw errors 2 s - 1 times over.
            tally.close(f"guided logits {name}", combined, io[f"step_logits_combined_{name}"], (2 * scale - 1) * LOGITS)


_DECODER_FILES = ("llamagen_gpt_tiny.pt", "llamagen_gpt_tiny_config.json")


@check("llamagen_gpt_tiny_io_8x8.safetensors", reads=_DECODER_FILES)
def decoder_8x8(folder: Path, tally: Tally) -> None:
    _decoder(folder, tally, 8)


@check("llamagen_gpt_tiny_io_16x16.safetensors", reads=_DECODER_FILES)
def decoder_16x16(folder: Path, tally: Tally) -> None:
    _decoder(folder, tally, 16)


# --- image tokenizer


@check("llamagen_vq_tiny_io.safetensors", reads=("llamagen_vq_tiny.pt", "llamagen_vq_tiny_config.json"))
def image_tokenizer(folder: Path, tally: Tally) -> None:
    values = json.loads((folder / "llamagen_vq_tiny_config.json").read_text())
    config = VQConfig(
        codebook_size=values["codebook_size"],
        codebook_dim=values["codebook_embed_dim"],
        ch=values["ch"],
        encoder_ch_mult=tuple(values["encoder_ch_mult"]),
        decoder_ch_mult=tuple(values["decoder_ch_mult"]),
        z_channels=values["z_channels"],
        num_res_blocks=values["num_res_blocks"],
    )
    model, io = (
        load_llamagen_vq(folder / "llamagen_vq_tiny.pt", config),
        load_file(folder / "llamagen_vq_tiny_io.safetensors"),
    )
    tally.case()  # pictures to codes and back
    latents = model.encode(io["image"])
    result = model.quantise(latents)
    tally.close("latents", latents, io["pre_quant"], LOGITS)
    tally.equal("codes", result.codes.view(io["indices"].shape), io["indices"])
    tally.close("quantised", result.quantised, io["quantised"], PROBS)
    tally.close("reconstruction", model.decode(result.quantised), io["reconstruction"], IMAGES)
    tally.case()  # codes to pictures
    decoded = model.decode_codes(io["codes"])
    tally.close("code vectors", model.code_vectors(io["codes"]), io["code_embeddings"], PROBS)
    tally.close("pictures", decoded, io["decoded_from_codes"], IMAGES)
    off = (to_uint8(decoded).int() - io["decoded_uint8_hwc"].int()).abs()
    tally.equal("bytes of the pictures are within one", bool((off <= 1).all()), True)


# --- sampling


@check("sampling.safetensors", reads=("sampling_cases.json",))
def sampling(folder: Path, tally: Tally) -> None:
    for case in cases(folder, "sampling", 3):
        tally.case()
        logits = guide(case["cond"], case["uncond"], case["cfg_scale"])
        settings = tuple(torch.full((len(logits),), case[name]) for name in ("temperature", "top_k", "top_p"))
        probs = filter_probs(logits, *settings)
        tally.close("LlamaGen's chain", probs, case["probs_llamagen"], PROBS)
        tally.equal("arg max", greedy(probs), case["argmax_token"])
        tally.close("warpers", warp_probs(logits, *settings), case["probs_hf_warpers"], PROBS)


# --- intervals, scores, losses


@check("interval_softmax.safetensors", reads=("interval_softmax_cases.json",))
def interval_softmax(folder: Path, tally: Tally) -> None:
    rtol = 1e-5  # the float64 results belong to inputs that are stored rounded to float32
    for case in cases(folder, "interval_softmax", 2):
        tally.case()
        lower, upper = inter_fuse(case["center"].double(), case["radius"].double())
        scores = uncertainty(lower, upper)
        for name, found in (
            ("plain_lower", lower),
            ("plain_upper", upper),
            ("Omega_plain", scores.omega),
            ("Sigma_plain", scores.sigma),
            ("U_plain", scores.u),
        ):
            tally.close(name, found, case[f"{name}_f64"], DOUBLE, rtol)
        lower, upper = inter_fuse(case["center"], case["radius"], reach=True)
        tally.close("reach_lower", lower, case["reach_lower"], PROBS)
        tally.close("reach_upper", upper, case["reach_upper"], PROBS)
        wanted = case["intersection_test"]
        wide = ~wanted.isnan().any(-1)  # 0 / 0 in the reference where the interval has no width
        tally.close("intersection", intersection_probability(lower, upper)[wide], wanted[wide], 1e-5)


@check("ciar_formulas.safetensors", reads=("ciar_formulas_cases.json",))
def ciar_formulas(folder: Path, tally: Tally) -> None:
    for case in cases(folder, "ciar_formulas", 2):
        tally.case()
        lower, upper = inter_fuse(case["center"], case["radius"])
        scores = uncertainty(lower, upper)
        weights = losses.Weights(*(float(case[name]) for name in ("lambda_v", "lambda_p", "lambda_beta", "alpha")))
        terms = losses.inter_dro(case["p_cloud"], case["center"].softmax(-1), lower, upper, weights)
        ce = losses.cross_entropy(case["p_cloud"], lower)
        for name, found in (
            ("radius", torch.nn.functional.softplus(case["radius_pre_softplus"])),
            ("p_lo", lower),
            ("p_hi", upper),
            ("omega", scores.omega),
            ("sigma", scores.sigma),
            ("U", scores.u),
            ("U_sqrtV", scores.u_tilde),
            ("anchor_mid", terms.anchor_mid),
            ("anchor_hi", terms.anchor_upper),
            ("anchor_lo", terms.anchor_lower),
            ("align", terms.align),
            ("ce_lo", ce),
            ("dro_weights", losses.dro_weights(ce, weights.sharpness)),
            ("dro", terms.worst_case),
            ("total", terms.total),
        ):
            wanted = case[name]
            tally.close(name, found, wanted.squeeze() if name in ("dro", "total") else wanted, DOUBLE)


@check("extras.safetensors", reads=("extras_cases.json",))
def extras(folder: Path, tally: Tally) -> None:
    tensors = load_file(folder / "extras.safetensors")
    tally.case()
    tally.close("entropy in nats", entropy(tensors["entropy.logits"]), tensors["entropy.shannon_nats"], PROBS, 1e-6)
    tally.skipped.append("entropy.renyi_* (no method uses it)")
    for case in json.loads((folder / "extras_cases.json").read_text())["pr"]:
        tally.case()
        real, fake = (tensors[f"pr.{case['case']}.{side}"].double().numpy() for side in ("real", "fake"))
        for side, features in (("real", real), ("fake", fake)):
            radii = np.sqrt(squared_radii(squared_distances(features, features), case["k"]))
            tally.close(f"{side} radii", radii, tensors[f"pr.{case['case']}.{side}_radii"], DOUBLE)
        found = precision_recall_f1(real, fake, case["k"])
        tally.close("precision, recall, F1", found, [case[name] for name in ("precision", "recall", "f1")], DOUBLE)
    parts = sorted({name.split(".")[0] for name in tensors} - {"entropy", "pr"})
    tally.skipped += [f"{part}.* (not built)" for part in parts]

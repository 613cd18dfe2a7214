"""Parity of what all methods share: decoder, image tokenizer, sampling chains, intervals, scores and losses."""

import json
import math
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.attention import attention_mask, rope_table
from models.backbones.llamagen import load_llamagen
from models.interval import inter_fuse, reachable, uncertainty
from models.kv_cache import KVCache
from models.methods.scores import entropy
from models.methods.vvs import DECAY, path_similarity
from models.quality.statistics import precision_recall_f1, squared_distances, squared_radii
from models.sampling import filter_probs, greedy, guide, warp_probs
from models.train import losses
from models.transformer import Transformer
from models.vq import VQConfig, load_llamagen_vq, to_uint8
from tests.parity.checks import Tally, check, rounding, stem

LOGITS, IMAGES, PROBS, DOUBLE = 2e-4, 1e-4, 1e-6, 1e-9  # the tolerances of the golden README


def cases(file: Path) -> list[dict[str, Any]]:
    """Return the cases of a file's `_cases.json`, each with the tensors of its number (`<number>.<name>`, leading zeros allowed)."""
    listed = json.loads((file.parent / f"{stem(file.name)}_cases.json").read_text())
    tensors = load_file(file)
    return [case | numbered(tensors, case["case"]) for case in listed]


def numbered(tensors: dict[str, Tensor], number: int, kind: str = "") -> dict[str, Tensor]:
    """Return the tensors with keys `<kind><number>.<name>`, by name."""
    pattern = re.compile(rf"{re.escape(kind)}0*{number}\.(.+)", re.DOTALL)
    return {found[1]: value for key, value in tensors.items() if (found := pattern.fullmatch(key))}


# --- decoder


def decode_greedy(
    model: Transformer, caption: Tensor, mask: Tensor, scale: float, interval: int = -1, fed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode greedily through the cache, as LlamaGen's loop does.

    Args:
        interval: Last decode step with guidance; -1 for all steps.
        fed: Tokens [B, T] that are fed instead of the model's own, so that one tie does not change all that follows; None: its own.

    Returns:
        Tokens [B, T], raw logits [T, R, V] (R = 2 B with guidance, else B) and guided logits [T, B, V].
    """
    batch = len(caption)
    guided = scale > 1
    if guided:
        caption, mask = torch.cat([caption, model.null_caption(batch)]), torch.cat([mask, mask])
    total = len(caption)
    cache = KVCache(model.config, total, dtype=caption.dtype)
    cache.caption_mask[:] = mask
    rows, start = torch.arange(total), torch.zeros(total, dtype=torch.long)
    embeds = model.embed_caption(caption)
    tokens, raw, mixed = [], [], []
    for t in range(model.config.tokens):
        n_new = torch.full((total,), embeds.shape[1])
        logits = model.logits(model.step(cache, rows, start, embeds, n_new)[:, -1])  # [R, V]
        start = start + n_new
        raw.append(logits)
        if guided:
            off = interval >= 0 and t - 1 > interval
            logits = guide(logits[:batch], logits[batch:], 1.0 if off else scale)
        mixed.append(logits)
        tokens.append(logits.argmax(-1))
        last = tokens[-1] if fed is None else fed[:, t]
        embeds = model.embed_tokens(last.repeat(2 if guided else 1)).unsqueeze(1)  # [R, 1, D]
    return torch.stack(tokens, dim=1), torch.stack(raw), torch.stack(mixed)


@check("llamagen_gpt_*_io*.safetensors", reads=("{}.pt", "{}_config.json"))
def decoder(file: Path, tally: Tally) -> None:
    """Compare LlamaGen's decoder. Grid, batch, guidance scales and steps come from the tensors."""
    io, name = load_file(file), stem(file.name)
    values = json.loads((file.parent / f"{name}_config.json").read_text())
    grid = math.isqrt(io["teacher_tokens"].shape[1])
    model = load_llamagen(file.parent / f"{name}.pt", grid=grid, n_head=values["n_head"])
    told = replace(model.config, **{key: values[key] for key in ("rope_base", "norm_eps") if key in values})
    if told != model.config:  # a checkpoint does not hold these
        weights = model.state_dict()
        model = Transformer(told).eval()
        model.load_state_dict(weights)
    caption, mask, inputs = io["caption_embs"].float(), io["emb_masks"].bool(), io["teacher_tokens"][:, :-1]
    exact = deepcopy(model).double()

    tally.case()  # teacher forcing
    for key, seen in (("teacher_logits_masked", mask), ("teacher_logits_causal_only", None)):
        if key in io:
            both = (one(inputs, caption.to(one.output.weight), seen)[0] for one in (model, exact))
            tally.close(key, next(both), io[key], LOGITS, exact=next(both))
    found, true = (states_of(one, inputs, caption, mask) for one in (model, exact))
    for key, value in found.items():
        if key in io:
            tally.close(key, value, io[key], LOGITS, exact=true[key])
    for key, value, tolerance in (
        ("uncond_embedding_rows", model.null_caption(1)[0], 0.0),
        ("rope_table", rope_table(model.config).float(), PROBS),
    ):
        if key in io:
            tally.close(key, value, io[key], tolerance)
    length = model.config.positions
    for key in (key for key in io if key.startswith("kv_causal_mask")):
        rows = mask.repeat(len(io[key]) // len(mask), 1)
        seen = attention_mask(torch.arange(length).unsqueeze(0), length, rows, model.config.caption_slots)
        tally.equal("attention mask", seen, io[key][:, :length, :length].bool())

    for key in sorted(key for key in io if key.startswith("greedy_tokens_cfg")):
        variant = key.removeprefix("greedy_tokens_")  # cfg7p5_interval10: guidance 7.5 up to decode step 10
        read = re.fullmatch(r"cfg(\d+(?:p\d+)?)(?:_interval(\d+))?", variant)
        assert read is not None, f"{key}: cannot read guidance and interval from this name"
        scale, interval = float(read[1].replace("p", ".")), int(read[2]) if read[2] else -1
        tally.case()  # decoding through the cache
        (_, raw, mixed), (_, true_raw, true_mixed) = (
            decode_greedy(one, caption.to(one.output.weight), mask, scale, interval, io[key]) for one in (model, exact)
        )
        # u + s (c - u) multiplies the errors of the raw logits by 2 s - 1.
        guided = max(1.0, 2 * scale - 1) * LOGITS
        apart = 2 * max(guided, rounding(mixed, true_mixed))  # both logits may be off
        tally.picked(f"greedy tokens {variant}", mixed.transpose(0, 1), io[key], apart)
        for kind, what, logits, true, allowed in (
            ("raw", "step", raw, true_raw, LOGITS),
            ("combined", "guided", mixed, true_mixed, guided),
        ):
            if (name := f"step_logits_{kind}_{variant}") in io:
                some = "step_index" in io and len(io[name]) == len(io["step_index"])
                steps = io["step_index"] if some else slice(None)
                tally.close(f"{what} logits {variant}", logits[steps], io[name], allowed, exact=true[steps])


def states_of(model: Transformer, tokens: Tensor, caption: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the teacher-forced hidden states, those after the first layer, and the projected caption, by their keys in a golden file."""
    caption, first = caption.to(model.output.weight), []
    hook = model.layers[0].register_forward_hook(lambda module, args, out: first.append(out))
    hidden = model.hidden(tokens, caption, mask)
    hook.remove()
    return {
        "teacher_hidden_normed_masked": hidden,
        "teacher_block0_out_masked": first[0],
        "caption_projected": model.embed_caption(caption),
    }


# --- image tokenizer


@check("llamagen_vq_*_io*.safetensors", reads=("{}.pt", "{}_config.json"))
def image_tokenizer(file: Path, tally: Tally) -> None:
    name = file.parent / stem(file.name)
    values = json.loads(Path(f"{name}_config.json").read_text())
    config = VQConfig(
        codebook_size=values["codebook_size"],
        codebook_dim=values["codebook_embed_dim"],
        ch=values["ch"],
        encoder_ch_mult=tuple(values["encoder_ch_mult"]),
        decoder_ch_mult=tuple(values["decoder_ch_mult"]),
        z_channels=values["z_channels"],
        num_res_blocks=values["num_res_blocks"],
    )
    model, io = load_llamagen_vq(Path(f"{name}.pt"), config), load_file(file)
    tally.case()  # images to codes and back
    exact = deepcopy(model).double()
    latents = model.encode(io["image"].float())
    result = model.quantise(latents)
    tally.close("latents", latents, io["pre_quant"], LOGITS, exact=exact.encode(io["image"].double()))
    tally.equal("codes", result.codes.view(io["indices"].shape), io["indices"])
    tally.close("quantised", result.quantised, io["quantised"], PROBS)
    true = exact.decode(result.quantised.double())
    tally.close("reconstruction", model.decode(result.quantised), io["reconstruction"], IMAGES, exact=true)
    tally.case()  # codes to images
    codes = io["codes"].view(len(io["codes"]), *io["code_embeddings"].shape[-2:])
    decoded = model.decode_codes(codes)
    tally.close("code vectors", model.code_vectors(codes), io["code_embeddings"], PROBS)
    tally.close("images", decoded, io["decoded_from_codes"], IMAGES, exact=exact.decode_codes(codes))
    off = (to_uint8(decoded).int() - io["decoded_uint8_hwc"].int()).abs()
    tally.equal("bytes of the images are within one", bool((off <= 1).all()), True)


# --- sampling


@check("sampling*.safetensors", reads=("{}_cases.json",))
def sampling(file: Path, tally: Tally) -> None:
    for case in cases(file):
        tally.case()
        logits = guide(case["cond"], case["uncond"], case["cfg_scale"])
        settings = tuple(torch.full((len(logits),), case[name]) for name in ("temperature", "top_k", "top_p"))
        probs = filter_probs(logits, *settings)
        tally.close("LlamaGen's chain", probs, case["probs_llamagen"], PROBS)
        tally.equal("arg max", greedy(probs), case["argmax_token"])
        tally.close("warpers", warp_probs(logits, *settings), case["probs_hf_warpers"], PROBS)


# --- intervals, scores, losses


@check("interval_softmax*.safetensors", reads=("{}_cases.json",))
def interval_softmax(file: Path, tally: Tally) -> None:
    rtol = 1e-5  # the results were computed from float64 inputs, which the file stores rounded to float32
    for case in cases(file):
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
        lower, upper = reachable(*inter_fuse(case["center"], case["radius"]))
        tally.close("reach_lower", lower, case["reach_lower"], PROBS)
        tally.close("reach_upper", upper, case["reach_upper"], PROBS)


@check("ciar_formulas*.safetensors", reads=("{}_cases.json",))
def ciar_formulas(file: Path, tally: Tally) -> None:
    for case in cases(file):
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


@check("extras*.safetensors", reads=("{}_cases.json",))
def extras(file: Path, tally: Tally) -> None:
    tensors = load_file(file)
    if "entropy.logits" in tensors:
        tally.case()
        tally.close("entropy in nats", entropy(tensors["entropy.logits"]), tensors["entropy.shannon_nats"], PROBS, 1e-6)
    tally.skipped.append("entropy.renyi_* (no method uses it)")
    listed = json.loads((file.parent / f"{stem(file.name)}_cases.json").read_text())
    for case in listed.get("vvs", []):
        tally.case()
        one = numbered(tensors, case["case"], "vvs.")
        paths = [[token for token in path if token >= 0][1:] for path in one["candidates"][::2].tolist()]
        for weighted, decay in (("exp_decay", DECAY), ("flat", 1.0)):
            found = path_similarity(paths, one["codebook"], decay)
            tally.close(f"similarity, {weighted}", found, case["similarity_every_second_path"][weighted], PROBS)
    for case in listed.get("pr", []):
        tally.case()
        one = numbered(tensors, case["case"], "pr.")
        real, fake = (one[side].double().numpy() for side in ("real", "fake"))
        for side, features in (("real", real), ("fake", fake)):
            radii = np.sqrt(squared_radii(squared_distances(features, features), case["k"]))
            tally.close(f"{side} radii", radii, one[f"{side}_radii"], DOUBLE)
        found = precision_recall_f1(real, fake, case["k"])
        tally.close("precision, recall, F1", found, [case[name] for name in ("precision", "recall", "f1")], DOUBLE)
    parts = sorted({name.split(".")[0] for name in tensors} - {"entropy", "pr", "vvs"})
    tally.skipped += [f"{part}.* (not built)" for part in parts]

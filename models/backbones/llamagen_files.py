"""Recognises LlamaGen's downloaded files by their keys, and derives the models' shapes. Imports no torch.

Source: LlamaGen's released checkpoints (`t2i_XL_stage1_256.pt`, `c2i_L_384.pt`, `vq_ds16_t2i.pt` and others) and its scripts, which
look for a state dict under `model`, `module`, `state_dict` and at the top; its tokenizer scripts prefer `ema`. A drafter is LANTERN's:
one layer with the keys of its LlamaGen port.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.backbones.found import decoder_sizes, manifest_of
from models.backbones.parts import (
    Shapes,
    WeightFile,
    bottleneck_of,
    drafter_ffn,
    first_size,
    is_drafter,
    own_device,
    own_keys,
    own_kind,
    recognise,
    the_one,
)
from models.checkpoint import read_checkpoint
from simulator.core.errors import WeightsError
from simulator.core.files import json_mapping
from simulator.protocol.pairs import FoundPair, PairSpec, TransformerConfig

VQ_CONTAINERS = ("ema", "model", "module", "state_dict")
HEAD_DIM = 64  # width of a head, except for the widths in the next table
HEADS = {3200: 32, 4096: 32}  # width -> heads of GPT-3B and GPT-7B, whose heads are 100 and 128 wide
# Subfolders of the weights' folder in which a T5 is looked for; the second is that of LlamaGen's repository.
T5_PLACES = (
    ".",
    "t5-ckpt/flan-t5-xl",
    "flan-t5-xl",
    "t5",
    "text",
)
# The transformers class by `model_type`. A umT5 has a table of position distances in every layer, which the other classes would drop.
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
LABELS = "cls_embedding.embedding_table.weight"
CAPTIONS = "cls_embedding.uncond_embedding"
KINDS = {
    "t2i": "a text-conditional model",
    "c2i": "a class-conditional model",
    "decoder": f"a decoder without {LABELS} and without {CAPTIONS}",
    "tokenizer": "an image tokenizer",
    "drafter": "a drafter",
    "device": "a device model",
    "phi": "a projection phi",
}


def kind_of(shapes: Shapes) -> str:
    """Return the kind of a state dict, a key of `KINDS`; "" if it is not LlamaGen's or ours."""
    if own := own_kind(shapes):
        return own
    if "quantize.embedding.weight" in shapes:
        return "tokenizer"
    if is_drafter(shapes):
        return "drafter"
    if "tok_embeddings.weight" in shapes or "layers.0.attention.wqkv.weight" in shapes:
        return "c2i" if LABELS in shapes else "t2i" if CAPTIONS in shapes else "decoder"
    return ""


def other_kinds(parts: Sequence[WeightFile], kind: str) -> list[str]:
    """Return a description of each part whose kind is not the given one, for messages."""
    return [f"{part.path.name}: {KINDS[part.kind]}" for part in parts if part.kind != kind]


def find(spec: PairSpec) -> FoundPair:
    """Find the pair of LlamaGen's files that a specification names. Raises WeightsError."""
    place = Path(spec.weights)
    folder = place if place.is_dir() else place.parent
    kind = "c2i" if spec.backbone.classes else "t2i"
    if kind == "c2i" and spec.text is not None:
        raise WeightsError(f"pair.text is not used: {spec.cloud} takes class labels; leave it out")
    parts, others = recognise(place, kind_of, "LlamaGen")
    others += other_kinds(parts, kind)
    cloud = the_one([part for part in parts if part.kind == kind], spec.cloud, place, others, "weights", hints_of(spec))
    tokenizer_place = Path(spec.tokenizer or folder)
    if tokenizer_place != place:
        parts, others = recognise(tokenizer_place, kind_of, "LlamaGen")
        others += other_kinds(parts, "tokenizer")
    tokenizers = [part for part in parts if part.kind == "tokenizer"]
    tokenizer = the_one(tokenizers, "the image tokenizer", tokenizer_place, others, "tokenizer", (kind,))
    vq = vq_sizes(own_keys(read_checkpoint(tokenizer.path, VQ_CONTAINERS).shapes), tokenizer.path)
    down = 2 ** (len(vq["encoder_ch_mult"]) - 1)
    size = spec.image_size or spec.backbone.image_size
    if size % down:
        raise WeightsError(f"{tokenizer.path}: shrinks images by {down}, which does not divide pair.image_size {size}")
    config = decoder_config(cloud.shapes, cloud.path, size // down, spec.heads)
    if vq["codebook_size"] != config.vocab_size:
        raise WeightsError(
            f"{tokenizer.path}: {vq['codebook_size']} codes, needed {config.vocab_size}, those of {cloud.path}"
        )
    files: dict[str, tuple[Path, ...]] = {"cloud": (cloud.path,), "tokenizer": (tokenizer.path,)}
    text = None if kind == "c2i" else text_folder(spec, folder)
    encoder: dict[str, int] = {}
    if text is not None:
        files["text"], encoder = text_files(text, config)
    classes, kv_heads = classes_of(cloud.shapes), {"cloud": kv_heads_of(cloud.shapes, config, cloud.path)}
    device = device_parts(spec, config, classes, files)
    manifest = manifest_of(spec, config, size, files, device)
    if manifest.device is not None and own_device(path := files["device"][0]) is None:
        kv_heads["device"] = kv_heads_of(own_keys(read_checkpoint(path).shapes), manifest.device, path)
    features = text is not None and not t5_config(text)
    facts = {"vq": vq, "text": text, "features": features, "classes": classes, "kv_heads": kv_heads}
    if "drafter" in files:
        facts["drafter_ffn"] = drafter_ffn(*files["drafter"])
    return FoundPair(spec, manifest, files, decoder_sizes(vq, config.grid), encoder, facts)


def hints_of(spec: PairSpec) -> tuple[str, ...]:
    """Return parts of official file names that distinguish files of the same kind."""
    return (spec.cloud.rpartition("-")[2], f"_{spec.image_size or spec.backbone.image_size}")


def decoder_config(shapes: Shapes, source: Path | str, grid: int = 16, heads: int | None = None) -> TransformerConfig:
    """Derive the configuration of a LlamaGen decoder from the shapes of its state dict.

    Args:
        shapes: Shapes of the state dict.
        source: File, for messages.
        grid: Side of the token grid, which the file does not contain.
        heads: Attention heads, which it does not contain either; None: as in the released model of the same width.

    Raises:
        WeightsError: A needed key is missing, or the number of heads does not fit the width.
    """

    def shape(key: str) -> tuple[int, int]:
        found = shapes.get(key)
        if found is None:
            raise WeightsError(f"{source}: {key} is missing: not a LlamaGen checkpoint")
        if len(found) != 2:
            raise WeightsError(f"{source}: {key} has shape {list(found)}, needed two dimensions")
        return found[0], found[1]

    vocab_size, dim = shape("tok_embeddings.weight")
    classes = LABELS in shapes
    # A class label is one caption row with one number.
    caption_slots, caption_dim = (1, 1) if classes else shape(CAPTIONS)
    ffn_hidden, _ = shape("layers.0.feed_forward.w1.weight")
    layers = []
    for key in shapes:
        if key.startswith("layers."):
            index = key.split(".")[1]
            if not re.fullmatch("[0-9]{1,4}", index):
                raise WeightsError(f"{source}: keys under layers must be numbered, got {key[:60]}")
            layers.append(int(index))
    n_layer = 1 + max(layers)
    n_head = heads or HEADS.get(dim) or max(1, dim // HEAD_DIM)
    try:
        return TransformerConfig(n_layer, n_head, dim, ffn_hidden, vocab_size, caption_slots, caption_dim, grid)
    except ValueError as error:
        hint = "; name the number of heads with pair.heads" if "n_head" in str(error) else ""
        raise WeightsError(f"{source}: {error}{hint}") from error


def kv_heads_of(shapes: Shapes, config: TransformerConfig, source: Path | str) -> int:
    """Return the number of heads with their own keys and values, from the rows of the fused projection.

    Raises:
        WeightsError: the number of rows fits no such number.
    """
    every = {shape for key, shape in shapes.items() if key.endswith(".attention.wqkv.weight")}
    if len(every) != 1:  # loading then refuses the file and lists all wrong keys
        return config.n_head
    rows = next(iter(every))[0] if next(iter(every)) else 0
    pairs, rest = divmod(rows - config.dim, 2 * config.head_dim)
    if rest or pairs < 1 or config.n_head % pairs:
        raise WeightsError(
            f"{source}: layers.0.attention.wqkv.weight has {rows} rows, needed {3 * config.dim} for {config.n_head} heads of "
            f"{config.head_dim}, or fewer where heads share keys and values; name the number of heads with pair.heads"
        )
    return pairs


def classes_of(shapes: Shapes, prefix: str = "") -> int:
    """Return the number of classes of a class-conditional model without the null class; 0 for a text-conditional model."""
    rows = shapes.get(prefix + LABELS)
    return max(rows[0] - 1, 0) if rows else 0  # loading refuses a table without rows


def vq_sizes(shapes: Shapes, source: Path) -> dict[str, Any]:
    """Derive the arguments of `models.vq.VQConfig` from a tokenizer's shapes (VQ-16: multipliers 1, 1, 2, 2, 4; VQ-8: 1, 2, 2, 4).

    Raises:
        WeightsError: the file does not have LlamaGen's layout.
    """

    def first(key: str) -> int:
        return first_size(shapes, key, source, "a tokenizer of LlamaGen's layout")

    ch = first("encoder.conv_in.weight")
    numbers = {
        side: sorted(
            {
                int(k.split(".")[2])
                for k in shapes
                if k.startswith(f"{side}.conv_blocks.") and re.fullmatch("[0-9]{1,4}", k.split(".")[2])
            }
        )
        for side in ("encoder", "decoder")
    }
    widths = {
        side: [first(f"{side}.conv_blocks.{n}.res.0.conv1.weight") for n in found] for side, found in numbers.items()
    }
    blocks = len({k.split(".")[4] for k in shapes if k.startswith("encoder.conv_blocks.0.res.")})
    if any(not found or found != list(range(len(found))) for found in numbers.values()) or any(
        width % ch for found in widths.values() for width in found
    ):
        raise WeightsError(f"{source}: its levels are not those of LlamaGen's layout")
    return {
        "codebook_size": first("quantize.embedding.weight"),
        "codebook_dim": shapes["quantize.embedding.weight"][-1],
        "ch": ch,
        "encoder_ch_mult": tuple(width // ch for width in widths["encoder"]),
        "decoder_ch_mult": tuple(width // ch for width in reversed(widths["decoder"])),
        "z_channels": first("encoder.conv_out.weight"),
        "num_res_blocks": blocks,
    }


def text_folder(spec: PairSpec, folder: Path) -> Path:
    """Return the folder of the caption encoder, or of features that it computed. Raises WeightsError."""
    if spec.text is not None:
        return Path(spec.text)
    for place in T5_PLACES:
        if t5_config(folder / place):
            return folder / place
    raise WeightsError(
        f"{folder}: holds no caption encoder (looked for a T5 in {', '.join(T5_PLACES)}); name its folder, or that of "
        "features it computed, with pair.text"
    )


def t5_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of the T5 in a folder; empty if there is none."""
    config = json_mapping(folder / "config.json")
    return config if config.get("model_type") in ENCODERS else {}


def text_files(text: Path, config: TransformerConfig) -> tuple[tuple[Path, ...], dict[str, int]]:
    """Return the files that determine the caption rows, and the encoder's sizes for pricing (empty for features). Raises WeightsError."""
    t5 = t5_config(text)
    if not t5:
        features, lists = (
            sorted(path for path in text.glob(name) if path.is_file()) for name in ("*/*.npy", "*.jsonl")
        )
        if not features or not lists:
            raise WeightsError(
                f"{text}: holds neither a T5 (config.json, weights and tokenizer) nor features of LlamaGen's script "
                "(LIST.jsonl and LIST/0.npy, LIST/1.npy, ...)"
            )
        return (*lists, *features), {}
    sizes: dict[str, Any] = {"n_layer": t5.get("num_layers"), "dim": t5.get("d_model"), "ffn_hidden": t5.get("d_ff")}
    sizes["vocab_size"] = t5.get("vocab_size")
    heads: Any = t5.get("num_heads")
    width: Any = t5.get("d_kv")
    if not all(type(size) is int and size > 0 for size in (*sizes.values(), heads, width)):
        raise WeightsError(
            f"{text / 'config.json'}: num_layers, d_model, d_ff, vocab_size, num_heads and d_kv must be whole numbers"
        )
    if sizes["dim"] != config.caption_dim:
        raise WeightsError(
            f"{text}: caption features are {sizes['dim']} wide, the cloud model takes {config.caption_dim}"
        )
    names = ("*.safetensors", "*.bin", "*.model", "tokenizer*.json", "special_tokens_map.json", "config.json")
    found = sorted({path for name in names for path in text.glob(name) if path.is_file()})
    matrices = 3 if str(t5.get("feed_forward_proj", "relu")).startswith("gated") else 2
    return tuple(found), {"positions": config.caption_slots, "inner": heads * width, "ffn_matrices": matrices, **sizes}


def device_parts(
    spec: PairSpec, cloud: TransformerConfig, own_classes: int, files: dict[str, tuple[Path, ...]]
) -> dict[str, Any]:
    """Find the device model, phi and drafter, and return the manifest's fields about the device; empty without a device model.

    Args:
        spec: the pair's specification.
        cloud: shape of the cloud model.
        own_classes: number of classes of the cloud model.
        files: files by part; those found are added.

    Raises:
        WeightsError: a file is missing or not readable, or does not fit the cloud model.
    """
    if spec.device is None:
        return {}
    place = Path(spec.device)
    parts, others = recognise(place, kind_of, "LlamaGen")
    kind = "c2i" if spec.backbone.classes else "t2i"
    by_kind = {name: [part for part in parts if part.kind == name] for name in ("device", kind, "phi", "drafter")}
    by_kind["device"] = by_kind["device"] or by_kind[kind]
    if not by_kind["device"] and not by_kind["drafter"]:
        told = [*others, *(f"{part.path.name}: {KINDS[part.kind]}" for part in parts)]
        found = f"; {'; '.join(told[:4])}" if told else ""
        raise WeightsError(f"{place}: holds neither a device model nor a drafter for {spec.cloud}{found}")
    said: dict[str, Any] = {}
    for name in ("device", "phi", "drafter"):
        if by_kind[name]:
            part = the_one(by_kind[name], f"the {name}", place, others, "device", ())
            files[name] = (part.path,)
            said[name] = part
    if "device" not in said:
        files.pop("phi", None)
        return {}
    part = said["device"]
    config, bounds = own_device(part.path) or (
        decoder_config(part.shapes, part.path, cloud.grid, device_heads(part.shapes, cloud)),
        (),
    )
    for key in ("vocab_size", "caption_slots", "caption_dim", "grid"):
        if getattr(config, key) != getattr(cloud, key):
            raise WeightsError(
                f"{part.path}: {key} is {getattr(config, key)}, the cloud model has {getattr(cloud, key)}"
            )
    classes = classes_of(part.shapes, "transformer." if part.kind == "device" else "")
    if classes != own_classes:
        raise WeightsError(f"{part.path}: {classes} classes, the cloud model has {own_classes}")
    return {
        "device": config,
        "phi_bottleneck": bottleneck_of(said["phi"]) if "phi" in said else 0,
        "bounds": bounds,
    }


def device_heads(shapes: Shapes, cloud: TransformerConfig) -> int | None:
    """Return the cloud model's number of heads for a device of the same width; None (the default of its width) for another one."""
    table = shapes.get("tok_embeddings.weight", ())
    return cloud.n_head if len(table) == 2 and table[1] == cloud.dim else None

"""Recognises VAR's downloaded files by their keys, and derives the models' shapes. Imports no torch.

Source: FoundationVision/var, `var_d16.pth` to `var_d36.pth` and `vae_ch160v4096z32.pth`, which are bare state dicts. VAR's training
writes both into one file, under `trainer`.
"""

from pathlib import Path
from typing import Any

from models.backbones.found import decoder_sizes, manifest_of
from models.backbones.parts import Shapes, WeightFile, count, first_size, recognise, the_one
from models.checkpoint import CONTAINERS
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import FoundPair, PairSpec
from simulator.protocol.var import OF_GRID, SharedVarConfig, VarConfig

VAR_CONTAINERS = ("trainer.var_wo_ddp", *CONTAINERS)
VAE_CONTAINERS = ("trainer.vae_local", *CONTAINERS)
# Tables in the transformer's files, which are computed here.
IGNORED = ("lvl_1L", "attn_bias_for_masking", ".zero_k_bias")
# Parts of the image tokenizer that decoding does not need.
ENCODER = ("encoder.", "quant_conv.", "quantize.ema_vocab_hit_SV")


def kind_of(shapes: Shapes) -> str:
    """Return the kind of a state dict, `var` or `tokenizer`; "" if it is not VAR's."""
    if "word_embed.weight" in shapes or "pos_1LC" in shapes:
        return "var"
    return "tokenizer" if any(key.startswith("quantize.quant_resi.") for key in shapes) else ""


def find(spec: PairSpec) -> FoundPair:
    """Find the pair of VAR's files that a specification names. Raises WeightsError."""
    for key in ("text", "heads"):
        if getattr(spec, key) is not None:
            why = "it takes class labels" if key == "text" else "its files contain the number of heads"
            raise WeightsError(f"pair.{key} is not used by {spec.cloud}: {why}; leave it out")
    place = Path(spec.weights)
    cloud = _var(place, spec.cloud, "weights", (spec.cloud.rpartition("-")[2],))
    config, classes, width = var_shape(cloud.shapes, cloud.path)
    tokenizer_place = Path(spec.tokenizer) if spec.tokenizer else place if place.is_dir() else place.parent
    found, others = recognise(tokenizer_place, kind_of, "VAR", VAE_CONTAINERS)
    tokenizer = the_one(
        [part for part in found if part.kind == "tokenizer"],
        "the image tokenizer",
        tokenizer_place,
        others,
        "tokenizer",
        (),
    )
    vq, phis = tokenizer_shape(tokenizer.shapes, tokenizer.path)
    if (vq["codebook_size"], vq["codebook_dim"]) != (config.vocab_size, width):
        raise WeightsError(
            f"{tokenizer.path}: {vq['codebook_size']} codes of width {vq['codebook_dim']}, needed {config.vocab_size} of "
            f"width {width}, those of {cloud.path}"
        )
    size = config.grid * 2 ** (len(vq["decoder_ch_mult"]) - 1)
    if spec.image_size not in (None, size):
        raise WeightsError(f"{tokenizer.path}: makes images of {size} pixels, not of pair.image_size {spec.image_size}")
    files: dict[str, tuple[Path, ...]] = {"cloud": (cloud.path,), "tokenizer": (tokenizer.path,)}
    device: dict[str, Any] = {}
    if spec.device is not None:
        part = _var(Path(spec.device), "the device", "device", ())
        own, *rest = var_shape(part.shapes, part.path)
        if (own.vocab_size, *rest, own.grid) != (config.vocab_size, classes, width, config.grid):
            raise WeightsError(
                f"{part.path}: {own.vocab_size} codes of width {rest[1]}, {rest[0]} classes and {own.tokens} positions, "
                f"the cloud model has {config.vocab_size} of width {width}, {classes} and {config.tokens}"
            )
        files["device"] = (part.path,)
        device = {"device": own}
    manifest = manifest_of(spec, config, size, files, device)
    facts = {"vq": vq, "phis": phis, "classes": classes, "width": width}
    return FoundPair(spec, manifest, files, decoder_sizes(vq, config.grid), {}, facts)


def _var(place: Path, what: str, key: str, hints: tuple[str, ...]) -> WeightFile:
    """Return the transformer's file in a file or a folder. Raises WeightsError."""
    found, others = recognise(place, kind_of, "VAR", VAR_CONTAINERS)
    return the_one([part for part in found if part.kind == "var"], what, place, others, key, hints)


def var_shape(shapes: Shapes, source: Path) -> tuple[VarConfig, int, int]:
    """Return a transformer's configuration, its number of classes without the null class, and the width of a code.

    Raises WeightsError.
    """

    def shape(key: str, dims: int = 2) -> tuple[int, ...]:
        found = shapes.get(key)
        if found is None:
            raise WeightsError(f"{source}: {key} is missing: not a checkpoint of VAR")
        if len(found) != dims:
            raise WeightsError(f"{source}: {key} has shape {list(found)}, needed {dims} dimensions")
        return found

    dim, width = shape("word_embed.weight")
    tokens = shape("pos_1LC", 3)[1]
    known = {sum(side * side for side in scales): scales for scales in OF_GRID.values()}
    if tokens not in known:
        allowed = " or ".join(f"{count} of the scales {', '.join(map(str, scales))}" for count, scales in known.items())
        raise WeightsError(f"{source}: {tokens} positions, needed {allowed}")
    layers = sorted({key.split(".")[1] for key in shapes if key.startswith("blocks.")})
    for index in layers:
        if not (index.isascii() and index.isdigit() and len(index) < 5):
            raise WeightsError(f"{source}: keys under blocks must be numbered, got blocks.{index[:40]}")
    heads = shape("blocks.0.attn.scale_mul_1H11", 4)[1]
    hidden = shape("blocks.0.ffn.fc1.weight")[0]
    try:
        kind = SharedVarConfig if "shared_ada_lin.1.weight" in shapes else VarConfig
        grid = known[tokens][-1]
        config = kind(1 + max(map(int, layers)), heads, dim, hidden, shape("head.weight")[0], 1, 1, grid, norm_eps=1e-6)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    return config, shape("class_emb.weight")[0] - 1, width


def tokenizer_shape(shapes: Shapes, source: Path) -> tuple[dict[str, Any], int]:
    """Return the arguments of `models.vq.VQConfig` for a tokenizer's decoder, and its number of convolutions phi. Raises WeightsError."""

    def first(key: str) -> int:
        return first_size(shapes, key, source, "an image tokenizer of VAR")

    levels = range(min(count(shapes, r"decoder\.up\.(\d+)\."), 11))
    widths = [first(f"decoder.up.{level}.block.0.conv1.weight") for level in levels]
    if not widths or any(width % widths[0] for width in widths) or widths[0] % 32:
        raise WeightsError(f"{source}: its levels are not those of VAR's layout: channels {widths}")
    mult = tuple(width // widths[0] for width in widths)
    return {
        "codebook_size": first("quantize.embedding.weight"),
        "codebook_dim": shapes["quantize.embedding.weight"][-1],
        "ch": widths[0],
        "encoder_ch_mult": mult,
        "decoder_ch_mult": mult,
        "z_channels": first("post_quant_conv.weight"),
        "num_res_blocks": count(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
    }, max(1, count(shapes, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."))

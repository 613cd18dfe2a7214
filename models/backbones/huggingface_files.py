"""Shapes and prompts of language-model backbones that generate images (Anole, Lumina-mGPT, Janus-Pro), from a folder's files.

Such a model reads a prompt as text tokens of its own vocabulary and continues it with image codes. No weights are loaded here:
shapes come from `config.json`, token ids from its vocabulary map or from `tokenizer.json`.

Sources: transformers (configuration_chameleon, configuration_janus: key names of versions 4 and 5, and their defaults);
LANTERN (Anole's two-row prompt); Lumina-mGPT (item processor: size tokens, row tokens; inference solver: prompt text and
unconditional row); Janus (generation_inference: prompt text and unconditional row).

Longer than other files, because each kind of model is a small variation of the others.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.backbones.found import decoder_sizes, manifest_of
from models.backbones.parts import (
    SHARD,
    Shapes,
    bottleneck_of,
    count,
    downloading,
    drafter_ffn,
    first_size,
    is_drafter,
    own_device,
    own_kind,
    recognise,
    the_one,
)
from models.checkpoint import few, read_checkpoint
from simulator.core.errors import WeightsError, reason
from simulator.core.files import read_file
from simulator.protocol.llama import ROW_WIDTH, LlamaConfig
from simulator.protocol.pairs import FoundPair, PairSpec

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
VQMODEL = "model.vqmodel."  # prefix of an image tokenizer's keys in a model's own files
VQGAN_FILES = ("vqgan.ckpt", "tokenizer/vqgan.ckpt")  # usual places of Chameleon's image tokenizer in the folder
MOST_PARTS = 10_000
PROMPT_SLOTS = 128  # most tokens of a whole prompt; PartiPrompts and COCO captions fit with every template


@dataclass(frozen=True)
class Prompt:
    """Template of a prompt: tokens `before`, the text `opening` + caption + `closing`, tokens `after`."""

    before: tuple[int, ...]
    opening: str
    closing: str
    after: tuple[int, ...]


@dataclass(frozen=True)
class Described:
    """The properties of a backbone that are known without its weights.

    Attributes:
        config: the decoder's shape.
        prompt: template of prompts.
        codes: text token of every image code, by code (Chameleon); empty if codes have their own embeddings (Janus).
        image_size: pixels per side.
        guidance: the published guidance scale.
        kv_heads: number of heads with their own keys and values.
    """

    config: LlamaConfig
    prompt: Prompt
    codes: tuple[int, ...]
    image_size: int
    guidance: float
    kv_heads: int


def describe(name: str, folder: Path) -> Described:
    """Return the properties of the backbone `name` (a key of `FAMILIES`) from the files of `folder`.

    Raises:
        WeightsError: a file is missing or unreadable, belongs to another model, or lacks an entry that the backbone needs.
    """
    found = FAMILIES[name](folder)
    config, prompt = found.config, found.prompt
    for token in (*prompt.before, *prompt.after, *config.null_tokens, config.null_pad, config.row_token):
        if token >= config.text_vocab:
            raise WeightsError(f"{folder}: prompt token {token} lies outside the vocabulary of {config.text_vocab}")
    return found


# --- Chameleon: Anole, Lumina-mGPT


def _chameleon(folder: Path) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """Return the configuration, the vocabulary (token ids by name), and the image tokenizer's configuration."""
    config = _json(folder / CONFIG)
    _is(folder, config, "chameleon")
    words = _part(folder, config, "vocabulary_map") or vocabulary(folder / TOKENIZER)
    return config, words, _part(folder, config, "vq_config")


def _codes(folder: Path, words: Mapping[str, int]) -> tuple[int, ...]:
    """Return the text token of every image code. Its name is IMGIMG, the code's digits as letters A to J, and Z."""
    letters = str.maketrans("ABCDEFGHIJ", "0123456789")
    found: dict[int, int] = {}
    tokens = set[int]()
    for name in words:
        if name.startswith("IMGIMG"):
            digits_ = name.removeprefix("IMGIMG").removesuffix("Z").translate(letters)
            if not (digits_.isascii() and digits_.isdigit() and len(digits_) < 6):
                raise WeightsError(f"{folder}: the vocabulary's image token {name[:40]!r} is not the name of a code")
            code, token = int(digits_), _word(folder, words, name)
            if code in found or token in tokens:
                raise WeightsError(
                    f"{folder}: the vocabulary's {name} is image code {code} with token {token}; "
                    "another name has one of them"
                )
            found[code] = token
            tokens.add(token)
    if sorted(found) != list(range(len(found))) or not found:
        raise WeightsError(
            f"{folder}: the vocabulary names {len(found)} image codes, needed all from 0 on (IMGIMG...Z)"
        )
    return tuple(found[code] for code in range(len(found)))


def _chameleon_shape(
    folder: Path, rows: bool, null: tuple[str, ...], scale: float = 1.0
) -> tuple[LlamaConfig, tuple[int, ...], int, dict[str, int]]:
    """Return the decoder's shape, the codes' tokens, the image's side in pixels, and the vocabulary.

    Args:
        folder: the model's folder.
        rows: whether a row token follows each row of codes.
        null: names of the unconditional row's tokens.
        scale: the image's side divided by the image tokenizer's own resolution.
    """
    config, words, vq = _chameleon(folder)
    codes = _codes(folder, words)
    multipliers = vq.get("channel_multiplier") or vq.get("ch_mult") or (1, 1, 2, 2, 4)
    if not isinstance(multipliers, list | tuple) or len(multipliers) > 10:
        raise WeightsError(f"{folder / CONFIG}: vq_config.channel_multiplier must list at most 10 factors")
    side = int(_whole(folder, vq, "resolution", 512) * scale)
    shape = _shape(
        folder,
        config,
        65536,
        1e-5,
        len(codes),
        side // 2 ** (len(multipliers) - 1),
        qk_norm=True,
        row_token=_word(folder, words, "<reserved08799>") if rows else -1,
        null_tokens=tuple(_word(folder, words, name) for name in null),
    )
    for token in codes:
        if not 0 <= token < shape.text_vocab:
            raise WeightsError(f"{folder}: image token {token} lies outside the vocabulary of {shape.text_vocab}")
    return shape, codes, side, words


def anole(folder: Path) -> Described:
    """Describe Anole: the prompt is bos, caption, end of turn, begin of image; the unconditional row is bos, begin of image."""
    shape, codes, side, words = _chameleon_shape(folder, False, ("<s>", "<racm3:break>"))
    after = tuple(_word(folder, words, name) for name in ("<reserved08706>", "<racm3:break>"))
    kv_heads = _kv_heads(folder, _json(folder / CONFIG))
    return Described(shape, Prompt((_word(folder, words, "<s>"),), "", "", after), codes, side, 3.0, kv_heads)


def lumina(pixels: int) -> Callable[[Path], Described]:
    """Return a function that describes Lumina-mGPT at an image size.

    The prompt names the size, two size tokens follow the begin of the image, and a row token follows every row. A size token counts
    patches of 32 pixels; the image tokenizer's own resolution is 512.
    """

    def read(folder: Path) -> Described:
        size = f"<reserved{8800 + pixels // 32:05d}>"
        opening = ("<racm3:break>", size, size)
        shape, codes, side, words = _chameleon_shape(folder, True, opening, pixels / 512)
        text = f"Generate an image of {pixels}x{pixels} according to the following prompt:\n"
        after = tuple(_word(folder, words, name) for name in ("<reserved08706>", *opening))
        kv_heads = _kv_heads(folder, _json(folder / CONFIG))
        return Described(shape, Prompt((_word(folder, words, "<s>"),), text, "", after), codes, side, 4.0, kv_heads)

    return read


# --- Janus


def janus(folder: Path) -> Described:
    """Describe Janus-Pro: a Llama whose image codes have their own embeddings and head.

    The unconditional row keeps the prompt's first and last token, with padding tokens in between.
    """
    config = _json(folder / CONFIG)
    _is(folder, config, "janus")
    text, vq, vision = (_part(folder, config, f"{name}_config") for name in ("text", "vq", "vision"))
    side, patch = _whole(folder, vision, "image_size", 384), _whole(folder, vision, "patch_size", 16)
    words = vocabulary(folder / TOKENIZER)
    bos, pad, begin = (
        _word(folder, words, name) for name in ("<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>")
    )
    shape = _shape(
        folder,
        text,
        32000,
        1e-6,
        _whole(folder, vq, "num_embeddings", 16384),
        side // patch,
        head_layer=True,
        null_pad=pad,
    )
    prompt = Prompt((bos,), "<|User|>: ", "\n\n<|Assistant|>:", (begin,))
    return Described(shape, prompt, (), side, 5.0, _kv_heads(folder, text))


FAMILIES: dict[str, Callable[[Path], Described]] = {
    "anole-7b": anole,
    "lumina-mgpt-512": lumina(512),
    "lumina-mgpt-768": lumina(768),
    "lumina-mgpt-1024": lumina(1024),
    "janus-pro-1b": janus,
    "janus-pro-7b": janus,
}


# --- pairs


def find(spec: PairSpec) -> FoundPair:
    """Find the pair of a folder in transformers' layout. Raises WeightsError."""
    folder = Path(spec.weights)
    described = _described(spec, folder)
    config = described.config
    words = _words(spec, folder)
    files: dict[str, tuple[Path, ...]] = {"cloud": (folder / CONFIG, *weight_files(folder)), "text": (words,)}
    path, shapes = _image_tokenizer(spec, described, folder)
    if described.codes:
        files["tokenizer"] = (path,)
    vq = vq_sizes(shapes, path)
    downsampling = 2 ** (len(vq["encoder_ch_mult"]) - 1)
    if (vq["codebook_size"], described.image_size) != (config.vocab_size, config.grid * downsampling):
        raise WeightsError(
            f"{path}: {vq['codebook_size']} codes, down-sampling by {downsampling}; needed "
            f"{config.vocab_size} codes, down-sampling by {described.image_size // config.grid}"
        )
    device = _device_parts(spec, described, files)
    manifest = manifest_of(spec, config, described.image_size, files, device, described.guidance)
    decoder = decoder_sizes(vq, config.grid)
    decoder["level_attention"] = (
        f"decoder.up.{len(vq['decoder_ch_mult']) - 1}.attn.0.q.weight" in shapes
        or "decoder.up.0.attn.0.q.weight" in shapes
    )
    facts: dict[str, Any] = {"described": described, "kv_heads": {"cloud": described.kv_heads}}
    if "drafter" in files:
        facts["drafter_ffn"] = drafter_ffn(*files["drafter"])
    if len(files.get("device", ())) > 1:  # a smaller model; a device model trained here does not share keys and values
        facts["kv_heads"]["device"] = describe(spec.cloud, Path(str(spec.device))).kv_heads
    return FoundPair(spec, manifest, files, decoder, {}, facts)


def _described(spec: PairSpec, folder: Path) -> Described:
    """Return the description of the cloud model in a folder. Raises WeightsError if the folder is not usable or `spec` contradicts it."""
    if not folder.is_dir():
        raise WeightsError(
            f"{folder}: a file; {spec.cloud} is read from the folder of its files ({CONFIG} and all others)"
        )
    if not (folder / CONFIG).is_file() and (told := downloading(folder)):
        raise WeightsError(f"{folder}: holds no {CONFIG}; {'; '.join(told)}")
    described = describe(spec.cloud, folder)
    if spec.image_size not in (None, described.image_size):
        raise WeightsError(
            f"{folder}: makes images of {described.image_size} pixels, not of pair.image_size {spec.image_size}"
        )
    if spec.heads not in (None, described.config.n_head):
        raise WeightsError(f"{folder / CONFIG}: {described.config.n_head} heads, not pair.heads {spec.heads}")
    return described


def _words(spec: PairSpec, folder: Path) -> Path:
    """Return the file of the text tokenizer. Raises WeightsError if it is missing or damaged, before any weight is read."""
    words = Path(spec.text) / TOKENIZER if spec.text else folder / TOKENIZER
    if words != folder / TOKENIZER:
        raise WeightsError(
            f"{words}: {spec.cloud} takes {TOKENIZER} from the folder of its weights; leave pair.text out"
        )
    if not words.is_file():
        raise WeightsError(f"{words}: no such file; prompts are tokenised with it")
    vocabulary(words)
    return words


def _image_tokenizer(spec: PairSpec, described: Described, folder: Path) -> tuple[Path, Shapes]:
    """Return the place of the image tokenizer, which is a file of its own or part of the weights, and the shapes of its tensors."""
    if described.codes:
        path = Path(spec.tokenizer) if spec.tokenizer else vqgan_file(folder)
        return path, read_checkpoint(path).shapes
    if spec.tokenizer:
        raise WeightsError(f"{spec.tokenizer}: {spec.cloud} holds its image tokenizer itself; leave pair.tokenizer out")
    held = {key: shape for one in weight_files(folder) for key, shape in read_checkpoint(one).shapes.items()}
    return folder, {key.removeprefix(VQMODEL): shape for key, shape in held.items() if key.startswith(VQMODEL)}


def _device_parts(spec: PairSpec, cloud: Described, files: dict[str, tuple[Path, ...]]) -> dict[str, Any]:
    """Return the manifest's fields about the device, and add its files to `files`; empty without a device. Raises WeightsError."""
    if spec.device is None:
        return {}
    place = Path(spec.device)

    def kind_of(shapes: Shapes) -> str:
        return own_kind(shapes) or ("drafter" if "fc.weight" in shapes and is_drafter(shapes) else "")

    parts, others = recognise(place, kind_of, f"a device of {spec.cloud}")
    alone = not any(part.kind in ("device", "drafter") for part in parts)
    if alone and all((place / name).is_file() for name in (CONFIG, TOKENIZER)):  # a smaller model of the same kind
        other = describe(spec.cloud, place)
        same = [(one.prompt, one.codes, one.config.grid, one.config.row_token) for one in (other, cloud)]
        if same[0] != same[1] or vocabulary(place / TOKENIZER) != vocabulary(Path(spec.weights) / TOKENIZER):
            raise WeightsError(f"{place}: its text tokens, image codes or size are not those of {spec.weights}")
        files["device"] = (place / CONFIG, place / TOKENIZER, *weight_files(place))
        return {"device": other.config}
    said: dict[str, Any] = {}
    for kind in ("device", "phi", "drafter"):
        if found := [part for part in parts if part.kind == kind]:
            part = the_one(found, f"the {kind}", place, others, "device", ())
            files[kind], said[kind] = (part.path,), part
    if "drafter" in said and spec.backbone.no_drafter:
        raise WeightsError(
            f"{said['drafter'].path}: a drafter, but {spec.cloud} takes none: {spec.backbone.no_drafter}"
        )
    if "device" not in said and "drafter" in said:
        files.pop("phi", None)
        return {}
    own = own_device(said["device"].path) if "device" in said else None
    if own is None:
        told = f"; {'; '.join(others[:4])}" if others else ""
        raise WeightsError(
            f"{place}: holds no {CONFIG} and {TOKENIZER} of a smaller {spec.cloud}, no device model that was trained for it, "
            f"and no drafter{told}"
        )
    config, bounds = own
    if replace(config, n_layer=1) != replace(cloud.config, n_layer=1):
        raise WeightsError(f"{said['device'].path}: trained for another model than {spec.weights}: its shape differs")
    bottleneck = bottleneck_of(said["phi"]) if "phi" in said else 0
    return {"device": config, "bounds": bounds, "phi_bottleneck": bottleneck}


def vq_sizes(shapes: Shapes, source: Path) -> dict[str, Any]:
    """Derive the arguments of `models.vq.VQConfig` from a tokenizer's shapes under VQGAN's original keys. Raises WeightsError."""

    def first(key: str) -> int:
        return first_size(shapes, key, source, "an image tokenizer")

    ch = first("encoder.conv_in.weight")
    levels = range(count(shapes, r"encoder\.down\.(\d+)\."))
    widths = [first(f"encoder.down.{level}.block.0.conv1.weight") for level in levels]
    if not widths or ch % 32 or any(width % ch for width in widths):
        raise WeightsError(f"{source}: its levels are not those of a VQGAN: {widths} channels over {ch}")
    codes = first("quantize.embedding.weight")
    return {
        "codebook_size": codes,
        "codebook_dim": shapes["quantize.embedding.weight"][-1],
        "ch": ch,
        "encoder_ch_mult": tuple(width // ch for width in widths),
        "decoder_ch_mult": tuple(width // ch for width in widths),
        "z_channels": first("encoder.conv_out.weight"),
        "num_res_blocks": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
    }


# --- files


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder, chosen as transformers does.

    The choice is `model.safetensors`, else the files in its index, else all numbered shards, else a single `model*.safetensors`; if there
    are none, the same for `pytorch_model.bin`.

    Raises:
        WeightsError: there are no weight files, a shard is missing, the choice is ambiguous, or the index is damaged.
    """
    for kind, stem in ((".safetensors", "model"), (".bin", "pytorch_model")):
        if (folder / f"{stem}{kind}").is_file():
            return [folder / f"{stem}{kind}"]
        index = folder / f"{stem}{kind}.index.json"
        if index.is_file():
            return _indexed(index)
        found = sorted(folder.glob(f"{stem}*{kind}"))
        parts = {path: part for path in found if (part := re.search(SHARD, path.name))}
        if parts:
            last = max(int(part[2]) for part in parts.values())
            there = {int(part[1]) for part in parts.values()}
            if lost := [str(number) for number in range(1, min(last, MOST_PARTS) + 1) if number not in there]:
                raise WeightsError(
                    f"{folder}: of {last} parts of its weights ({found[0].name}, ...) these are missing: {few(lost)}"
                )
            return list(parts)
        if len(found) > 1:
            names = few([path.name for path in found])
            raise WeightsError(
                f"{folder}: holds several weight files: {names}; needed {stem}{kind} or parts with an index"
            )
        if found:
            return found
    told = downloading(folder)
    raise WeightsError("; ".join([f"{folder}: holds no model*.safetensors and no pytorch_model*.bin", *told]))


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names. Raises WeightsError if it is damaged, or names a file that does not exist."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: not readable as an index of weights: {error}") from error
    named = [str(name)[:100] for name in names if not isinstance(name, str) or Path(name).name != name]
    if named:
        raise WeightsError(f"{index}: must name files of this folder, got {few(named)}")
    lost = sorted(name for name in names if not os.path.isfile(index.parent / name))
    if lost:
        told = downloading(index.parent)
        raise WeightsError("; ".join([f"{index}: names files that are not there: {few(lost)}", *told]))
    return [index.parent / name for name in sorted(names)]


def tied(folder: Path) -> bool:
    """Whether a model's output matrix is its embedding matrix, so that its files need not contain it. Raises WeightsError."""
    return bool(_json(folder / CONFIG).get("tie_word_embeddings"))


def vqgan_file(folder: Path) -> Path:
    """Return the file of Chameleon's image tokenizer in a model's folder. Raises WeightsError."""
    found = next((folder / name for name in VQGAN_FILES if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(
            f"{folder}: no {' or '.join(VQGAN_FILES)}: the model's own files hold no image decoder; "
            "put the image tokenizer of the original release there"
        )
    return found


def _shape(
    folder: Path, config: Mapping[str, Any], text_vocab: int, norm_eps: float, codes: int, grid: int, **more: Any
) -> LlamaConfig:
    """Return the decoder's shape from a configuration, with the library's defaults for missing keys. Raises WeightsError."""
    source = folder / CONFIG
    sizes = (
        ("num_hidden_layers", 32),
        ("num_attention_heads", 32),
        ("hidden_size", 4096),
        ("intermediate_size", 11008),
    )
    layers, heads, dim, ffn = (_whole(folder, config, key, default) for key, default in sizes)
    rotary = _part(folder, config, "rope_parameters") or _part(folder, config, "rope_scaling")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default":
        raise WeightsError(f"{source}: rotary embedding {str(kind)[:40]!r}, needed default")
    if config.get("attention_bias") or config.get("mlp_bias") or config.get("swin_norm"):
        raise WeightsError(f"{source}: attention_bias, mlp_bias and swin_norm must be false")
    if config.get("hidden_act") not in (None, "silu", "swish"):
        raise WeightsError(f"{source}: hidden_act is {str(config['hidden_act'])[:40]!r}, needed 'silu'")
    try:
        return LlamaConfig(
            layers,
            heads,
            dim,
            ffn,
            codes,
            PROMPT_SLOTS,
            ROW_WIDTH,
            grid,
            rope_base=_positive(folder, {**config, **rotary}, "rope_theta", 10000.0),
            norm_eps=_positive(folder, config, "rms_norm_eps", norm_eps),
            text_vocab=_whole(folder, config, "vocab_size", text_vocab),
            **more,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise WeightsError(f"{source}: {str(error)[:200]}") from error


def _kv_heads(folder: Path, config: Mapping[str, Any]) -> int:
    """Return the number of heads with their own keys and values. Raises WeightsError if it does not divide the number of heads."""
    heads = _whole(folder, config, "num_attention_heads", 32)
    if config.get("num_key_value_heads") is None:
        return heads
    found = _whole(folder, config, "num_key_value_heads", heads)
    if heads % found:
        raise WeightsError(
            f"{folder / CONFIG}: num_key_value_heads is {found}, needed a divisor of num_attention_heads = {heads}"
        )
    return found


def _part(folder: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping inside the configuration; empty if it is missing."""
    found = config.get(key)
    if not isinstance(found, dict | None):
        raise WeightsError(f"{folder / CONFIG}: {key} is a {type(found).__name__}, needed a mapping")
    return found or {}


def _whole(folder: Path, config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a positive integer of the configuration."""
    found = config.get(key, default)
    if type(found) is not int or not 1 <= found <= 2**20:
        raise WeightsError(
            f"{folder / CONFIG}: {key} must be a whole number from 1 to {2**20}, got {str(found)[:40]!r}"
        )
    return found


def _positive(folder: Path, config: Mapping[str, Any], key: str, default: float) -> float:
    """Return a positive number of the configuration."""
    found = config.get(key, default)
    if type(found) not in (int, float) or not 0 < found < math.inf:
        raise WeightsError(f"{folder / CONFIG}: {key} must be a number above 0, got {str(found)[:40]!r}")
    return float(found)


def _is(folder: Path, config: Mapping[str, Any], model_type: str) -> None:
    if config.get("model_type") != model_type:
        original = ", as deepseek-community has it" if "language_config" in config else ""  # the authors' own layout
        raise WeightsError(
            f"{folder / CONFIG}: model_type is {str(config.get('model_type'))[:40]!r}, needed {model_type!r}{original}"
        )


def _word(folder: Path, words: Mapping[str, Any], name: str) -> int:
    """Return the id of a token of the vocabulary."""
    found = words.get(name)
    if found is None:
        raise WeightsError(f"{folder}: the vocabulary has no {name}")
    if not isinstance(found, int) or not 0 <= found < 2**20:
        raise WeightsError(
            f"{folder}: the vocabulary's {name[:40]!r} must be a number from 0 on, got {str(found)[:40]!r}"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON mapping. Raises WeightsError."""
    try:
        stat = path.stat()
        return _parsed(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise WeightsError(f"{path}: {reason(error)}") from error


@lru_cache(maxsize=8)
def _parsed(path: Path, changed_ns: int, size: int) -> dict[str, Any]:
    """Parse a JSON mapping and cache it, because every case of a sweep needs it and a vocabulary has megabytes."""
    try:
        found = json.loads(read_file(path).decode())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds a {type(found).__name__}, needed a mapping")
    return found


def vocabulary(path: Path) -> dict[str, int]:
    """Return the token ids of a `tokenizer.json` by their text, including special tokens. Raises WeightsError."""
    found = _json(path)
    try:
        words = dict(found["model"]["vocab"])
        return words | {token["content"]: token["id"] for token in found.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a tokenizer of text ({type(error).__name__}: {error})") from error

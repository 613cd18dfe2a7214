"""Loads Anole, Lumina-mGPT and Janus-Pro from folders in transformers' layout; shapes and prompts: `models.backbones.huggingface_files`.

Tensors are read, converted and copied one at a time into a model that already has its final type and device, which saves memory.

The rows of queries and keys, and the norms over them, are reordered when they are read (`models.attention.paired_channels`).

Sources: ChameleonForConditionalGeneration and JanusForConditionalGeneration of transformers (keys, arithmetic); the VQGAN code of
Chameleon's `vqgan.ckpt` (keys).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from models.attention import paired_channels, repeat_heads
from models.backbones.huggingface_files import (
    CONFIG,
    PROMPT_SLOTS,
    TOKENIZER,
    VQMODEL,
    Described,
    Prompt,
    describe,
    tied,
    vq_sizes,
    weight_files,
)
from models.backbones.parts import own_device, own_keys
from models.backbones.vqgan_keys import original_vq_key, vq_key
from models.checkpoint import few, joined, read_checkpoint, reason, unwrapped
from models.device import DeviceModel
from models.eagle import COMPUTED, from_checkpoint
from models.llama import LlamaDecoder
from models.pair import Pair
from models.phi import IntervalProjection
from models.state import build, count_nonfinite, read_state, unallocated
from models.vq import VQModel, vq_config
from simulator.core.errors import PromptError, WeightsError, first_line
from simulator.protocol.llama import ROW_WIDTH, LlamaConfig, digits
from simulator.protocol.pairs import FoundPair

VQ_OFFSET = 127.5  # Chameleon and Janus: (x + 1) / 2 * 255, truncated
# Prefixes of keys that the decoder does not need.
UNUSED = (VQMODEL, "model.vision_model.", "model.aligner.", "lm_head.", "loss.")
TRAINING = ("loss.", "model_ema.")  # prefixes of training state in the file of an image tokenizer


def as_it_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class TensorPlace:
    """The destination of a tensor in the file.

    Attributes:
        key: our parameter.
        turn: conversion of the tensor.
        rows: first row and end of the rows of the parameter; empty: all.
        share: rows that `turn` makes of each row.
    """

    key: str
    turn: Callable[[Tensor], Tensor] = as_it_is
    rows: tuple[int, ...] = ()
    share: int = 1


class PromptEncoder:
    """Encodes captions as text tokens, one row of two digits per token (`simulator.protocol.llama.digits`).

    Args:
        folder: folder with `tokenizer.json`.
        prompt: template around the caption.
        vocabulary: number of text tokens of the model; None: tokens are not checked.
    """

    caption_dim = ROW_WIDTH
    sample = "a photo of a red bus parked near the river"

    def __init__(self, folder: Path, prompt: Prompt, vocabulary: int | None = None) -> None:
        self.path, self.prompt, self.vocabulary = folder / TOKENIZER, prompt, vocabulary
        self._tokenizer: Any = None

    def tokens(self, caption: str) -> list[int]:
        """Return the tokens of the whole prompt.

        Raises:
            PromptError: the caption is empty or too long.
            WeightsError: the tokenizer is missing or damaged, or gives tokens that the model does not have.
        """
        if not caption.strip():
            raise PromptError("the caption is empty")
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self.path)
        p = self.prompt
        text = self._tokenizer.encode(f"{p.opening}{caption}{p.closing}", add_special_tokens=False).ids
        found = [*p.before, *text, *p.after]
        if len(found) > PROMPT_SLOTS:
            raise PromptError(f"the prompt has {len(found)} tokens, at most {PROMPT_SLOTS} are allowed")
        if self.vocabulary is not None and max(found) >= self.vocabulary:
            raise WeightsError(
                f"{self.path}: gives token {max(found)} for {caption[:60]!r}, and the model has {self.vocabulary} text tokens: it is the "
                "tokenizer of another model"
            )
        return found

    def encode(self, caption: str) -> Tensor:
        """Return the prompt's rows, float32 [n, 2]. Raises the errors of `tokens`."""
        return torch.tensor([digits(token) for token in self.tokens(caption)], dtype=torch.float32)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer  # imported late: only prompts need it
    except ImportError:
        raise WeightsError(f"{path}: needs the library tokenizers: pip install 'ciar-sim[backbones]'") from None
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise WeightsError(f"{path}: not readable as a tokenizer: {first_line(error)}") from error


# --- pairs


def load(found: FoundPair, torch_device: torch.device, dtype: torch.dtype) -> Pair:
    """Load the pair of a folder in transformers' layout. Raises WeightsError."""
    described: Described = found.facts["described"]
    folder, manifest = Path(found.spec.weights), found.manifest
    cloud = load_decoder(folder, described, torch_device, dtype)
    tokenizer = load_tokenizer(folder, described, found.files.get("tokenizer", ()))
    device = phi = drafter = None
    for path in found.files.get("device", ())[:1]:
        device = load_device(path, found, tokenizer, torch_device, dtype)
    dims = (manifest.cloud.dim, manifest.codebook_size, manifest.phi_bottleneck)
    for path in found.files.get("phi", ()):
        phi = build(lambda: IntervalProjection(*dims), read_state(path, finite=False), path, exact=True)
    for path in found.files.get("drafter", ()):
        state = own_keys(read_state(path, finite=False))
        drafter = from_checkpoint(state, cloud.config, path, codes=described.codes)
    text = PromptEncoder(folder, described.prompt, described.config.text_vocab)
    return Pair(manifest, text, tokenizer, cloud, device, phi, drafter, torch_device, dtype).prepared()


def load_tokenizer(folder: Path, described: Described, paths: Sequence[Path]) -> VQModel:
    """Load the image tokenizer: Janus' from the model's own files, Chameleon's from a separate file.

    Raises:
        WeightsError: it does not load, or Chameleon's codebook differs from the one in the model's own files.
    """
    if not described.codes:
        return load_janus_vq(folder)
    (path,) = paths
    tokenizer, own = load_vqgan(path), own_codebook(folder)
    if own is not None and not torch.equal(own.float(), tokenizer.quantize.embedding.weight):
        raise WeightsError(f"{path}: its codebook is not that of the model in {folder}")
    return tokenizer


def load_device(
    path: Path, found: FoundPair, tokenizer: VQModel, torch_device: torch.device, dtype: torch.dtype
) -> DeviceModel:
    """Load the device model: a file that training wrote, or the smaller model of a `config.json`, with the same image tokenizer.

    Raises:
        WeightsError: it does not load, or its image tokenizer has other weights.
    """
    if path.name != CONFIG:
        config, bounds = own_device(path) or (found.manifest.cloud, ())
        return build(lambda: DeviceModel(config, bounds), read_state(path, finite=False), path, exact=True)
    described = describe(found.spec.cloud, path.parent)
    decoder = load_decoder(path.parent, described, torch_device, dtype)
    state = load_janus_vq(path.parent).state_dict() if not described.codes else {}
    own = own_codebook(path.parent) if described.codes else None
    if own is not None:
        state = {"quantize.embedding.weight": own.float()}
    for key, tensor in state.items():
        if not torch.equal(tensor, tokenizer.state_dict()[key]):
            raise WeightsError(
                f"{path.parent}: its image tokenizer is not that of {found.spec.weights} ({key} differs): "
                "equal codes would mean other images"
            )
    with unallocated():
        device = DeviceModel(replace(described.config, n_layer=1), ())
    device.config, device.transformer = described.config, decoder
    return device


# --- decoders


def load_decoder(
    folder: Path,
    described: Described,
    torch_device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LlamaDecoder:
    """Load the decoder of a folder, in `eval()` mode on `torch_device` in `dtype`.

    Raises:
        WeightsError: files are missing or damaged; or keys are missing, unexpected, of another shape or of an integer type, or have values
            that are not finite in `dtype`. The message lists the keys.
    """
    config, codes = described.config, torch.tensor(described.codes, dtype=torch.long)
    places = _janus_places(described) if config.head_layer else _chameleon_places(described, codes, tied(folder))
    with unallocated():
        model = LlamaDecoder(config).to(dtype)
    shapes = joined({path: dict(_shapes(path)) for path in weight_files(folder)})
    _compare(folder, places, {key: list(p.shape) for key, p in model.state_dict().items()}, shapes, config)
    model.to_empty(device=torch_device)
    target, kept = model.state_dict(), {}
    bad, whole = list[str](), list[str]()
    for path in weight_files(folder):
        for key, tensor in _tensors(path, set(places)):
            if not tensor.is_floating_point():
                whole.append(f"{key} {tensor.dtype} in {path.name}")
                continue
            if not places[key]:
                kept[key] = tensor
            for place in places[key]:
                part = target[place.key][slice(*place.rows) if place.rows else slice(None)]
                part.copy_(place.turn(tensor).reshape(part.shape))
                if count := count_nonfinite(part):
                    bad.append(f"{key} in {path.name} ({count} of {part.numel()} values)")
    if whole:
        raise WeightsError(
            f"{folder}: quantised weights are not supported: {few(whole)}; needed floating-point weights"
        )
    if kept:
        target["tok_embeddings.weight"].copy_(_aligned(kept))
    if bad:
        raise WeightsError(f"{folder}: not finite in {dtype}: {few(bad)}")
    return model.eval().requires_grad_(False)


def _aligned(kept: Mapping[str, Tensor]) -> Tensor:
    """Return Janus' embedding of every code [V, D]: its table after the aligner's layers, with a GELU before all but the first."""
    name = "model.generation_aligner."
    wide = {key: tensor.float() for key, tensor in kept.items()}
    x = F.linear(wide["model.generation_embeddings.weight"], wide[f"{name}fc1.weight"], wide[f"{name}fc1.bias"])
    for layer in range(sum(key.startswith(f"{name}hidden_layers.") and key.endswith("weight") for key in kept)):
        key = f"{name}hidden_layers.{layer}."
        x = F.linear(F.gelu(x), wide[f"{key}weight"], wide[f"{key}bias"])
    return x


def _block_places(prefix: str, described: Described) -> dict[str, list[TensorPlace]]:
    """Return the places of the decoder layers' tensors and of the final norm."""
    config, groups = described.config, described.kv_heads
    dim, share = config.dim, config.n_head // groups

    def every(tensor: Tensor) -> Tensor:
        return tensor if tensor.dim() == 1 else repeat_heads(tensor, groups, share)

    def paired_every(tensor: Tensor) -> Tensor:
        return paired(every(tensor))

    def paired(tensor: Tensor) -> Tensor:
        """Return queries or keys [H * hd, ...], or their norm [H, hd] or [hd], in our order of channels."""
        if tensor.dim() == 1:
            tensor = tensor.expand(config.n_head, -1)
        return paired_channels(tensor.reshape(dim, -1), config.n_head)

    places = {f"{prefix}norm.weight": [TensorPlace("norm.weight")]}
    for layer in range(config.n_layer):
        theirs, ours = f"{prefix}layers.{layer}.", f"layers.{layer}."
        for index, name in enumerate("qkv"):
            rows, turn = (index * dim, (index + 1) * dim), {"q": paired, "k": paired_every, "v": every}[name]
            more = 1 if name == "q" else share
            place = TensorPlace(f"{ours}attention.wqkv.weight", turn, rows, more)
            places[f"{theirs}self_attn.{name}_proj.weight"] = [place]
            if config.qk_norm and name != "v":
                heads = (index * config.n_head, (index + 1) * config.n_head)
                for kind in ("weight", "bias"):
                    place = TensorPlace(f"{ours}attention.qk_norm.{kind}", turn, heads, more)
                    places[f"{theirs}self_attn.{name}_norm.{kind}"] = [place]
        for name, own in (
            ("self_attn.o_proj", "attention.wo"),
            ("mlp.gate_proj", "feed_forward.w1"),
            ("mlp.up_proj", "feed_forward.w3"),
            ("mlp.down_proj", "feed_forward.w2"),
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            places[f"{theirs}{name}.weight"] = [TensorPlace(f"{ours}{own}.weight")]
    return places


def _chameleon_places(described: Described, codes: Tensor, tied: bool) -> dict[str, list[TensorPlace]]:
    def image_rows(tensor: Tensor) -> Tensor:
        return tensor[codes]

    embedding = [TensorPlace("text_embeddings.weight"), TensorPlace("tok_embeddings.weight", image_rows)]
    output = [TensorPlace("output.weight", image_rows)]
    heads = {"lm_head.weight": output, "model.embed_tokens.weight": embedding}
    if tied:
        heads = {"model.embed_tokens.weight": embedding + output}
    return _block_places("model.", described) | heads


def _janus_places(described: Described) -> dict[str, list[TensorPlace]]:
    """Return the places of Janus' tensors. `_aligned` computes the codes' embeddings from those without a place."""
    head = {
        f"model.generation_head.{theirs}.{kind}": [TensorPlace(f"{ours}.{kind}")]
        for theirs, ours in (("proj_out", "head_layer"), ("vision_head", "output"))
        for kind in ("weight", "bias")
    }
    return (
        _block_places("model.language_model.", described)
        | {"model.language_model.embed_tokens.weight": [TensorPlace("text_embeddings.weight")]}
        | head
        | {key: [] for key in _aligner_shapes(described.config, 0)}
    )


def _aligner_shapes(config: LlamaConfig, width: int) -> dict[str, list[int]]:
    """Return the shapes of the tensors that `_aligned` reads. width: of Janus' own table of codes."""
    name, dim = "model.generation_aligner.", config.dim
    return {
        "model.generation_embeddings.weight": [config.vocab_size, width],
        f"{name}fc1.weight": [dim, width],
        f"{name}fc1.bias": [dim],
        f"{name}hidden_layers.0.weight": [dim, dim],
        f"{name}hidden_layers.0.bias": [dim],
    }


def _compare(
    folder: Path,
    places: Mapping[str, list[TensorPlace]],
    needed: Mapping[str, list[int]],
    found: Mapping[str, list[int]],
    config: LlamaConfig,
) -> None:
    """Raise WeightsError if keys are missing, unexpected or of another shape; the message lists them."""
    wrong = []
    for key, shape in found.items():
        for place in places.get(key, []):
            rows, *rest = needed[place.key]
            wanted = [(place.rows[1] - place.rows[0] if place.rows else rows) // place.share, *rest]
            if place.key in ("tok_embeddings.weight", "output.weight") and not config.head_layer:
                wanted = [config.text_vocab, *rest]  # only its rows of image tokens are used
            if shape != wanted and not (place.key.find("qk_norm") > 0 and shape == wanted[1:]):
                wrong.append(f"{key} {shape}, needed {wanted}")
                break
    width = (found.get("model.generation_embeddings.weight") or [0])[-1]
    for key, wanted in _aligner_shapes(config, width).items() if config.head_layer else ():
        if found.get(key, wanted) != wanted:
            wrong.append(f"{key} {found[key]}, needed {wanted}")
    missing = [key for key in places if key not in found]
    surplus = [key for key in found if key not in places and not key.startswith(UNUSED) and not key.endswith(COMPUTED)]
    said = [
        f"{what}: {few(keys)}"
        for what, keys in (("missing", missing), ("unexpected", surplus), ("of another shape", wrong))
        if keys
    ]
    if said:
        raise WeightsError(f"{folder}: its weights do not fit its config.json; {'; '.join(said)}")


# --- files


def _shapes(path: Path) -> Iterator[tuple[str, list[int]]]:
    yield from ((key, list(shape)) for key, shape in read_checkpoint(path).shapes.items())


def _tensors(path: Path, keys: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file whose keys are in `keys`, one at a time. A PyTorch file is read as a whole if it has any of them."""
    if path.suffix != ".safetensors":
        if not keys.isdisjoint(read_checkpoint(path).shapes):
            yield from ((key, tensor) for key, tensor in read_state(path).items() if key in keys)
        return
    with _opened(path) as file:
        for key in file.keys():  # noqa: SIM118
            if unwrapped(key) in keys:
                yield unwrapped(key), file.get_tensor(key)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as weights: {reason(path, error)}") from error


# --- image tokenizers


def load_vqgan(path: Path) -> VQModel:
    """Load Chameleon's image tokenizer (encoder and decoder) from `vqgan.ckpt`, float32, in `eval()` mode. Raises WeightsError."""
    state = {key: tensor for key, tensor in read_state(path).items() if not key.startswith(TRAINING)}
    return _vq(state, path, highest_first=True, normalised=False)


def load_janus_vq(folder: Path) -> VQModel:
    """Load Janus' image tokenizer from the model's own files, float32, in `eval()` mode. Raises WeightsError.

    Codes are compared as unit vectors, as in its authors' code; transformers compares them unnormalised when it encodes.
    """
    name = VQMODEL
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        keys = {key for key, _ in _shapes(path) if key.startswith(name)}
        state |= {key.removeprefix(name): tensor for key, tensor in _tensors(path, keys)}
    if not state:
        raise WeightsError(f"{folder}: its weights hold no image tokenizer ({name}...)")
    return _vq(state, folder, highest_first=False, normalised=True, prefix=name)


def own_codebook(folder: Path) -> Tensor | None:
    """Return the codebook in a Chameleon folder's own files; None if they have none."""
    key = f"{VQMODEL}quantize.embedding.weight"
    for path in weight_files(folder):
        for _, tensor in _tensors(path, {key}):
            return tensor
    return None


def _vq(state: Mapping[str, Tensor], source: Path, highest_first: bool, normalised: bool, prefix: str = "") -> VQModel:
    """Build a VQGAN from tensors under its authors' keys.

    Args:
        state: tensors by key.
        source: file or folder, for messages.
        highest_first: whether `decoder.up.0` has the highest resolution.
        normalised: whether codes are compared as unit vectors.
        prefix: of the keys in the file, for messages.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    config = vq_config(vq_sizes(shapes, source), source)
    levels = len(config.encoder_ch_mult)
    attention = f"encoder.down.{levels - 1}.attn.0.norm.weight" in state
    ours = {vq_key(key, levels, highest_first): tensor for key, tensor in state.items()}

    def name_of(key: str) -> str:
        return prefix + original_vq_key(key, levels, highest_first)

    return build(lambda: VQModel(config, attention, normalised, VQ_OFFSET), ours, source, exact=True, name_of=name_of)

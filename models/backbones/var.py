"""Loads VAR's models from its released files; `models.backbones.var_files` determines which file is which part."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.backbones.parts import own_keys
from models.backbones.t5 import ClassLabels
from models.backbones.var_files import ENCODER, IGNORED, VAE_CONTAINERS, VAR_CONTAINERS, var_shape
from models.backbones.vqgan_keys import original_vq_key, vq_key
from models.state import build, read_state, refuse_nonfinite
from models.var.tokenizer import VarTokenizer
from models.var.transformer import VarTransformer
from models.vq import VQConfig, vq_config
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import FoundPair, PairManifest


@dataclass(frozen=True)
class VarPair:
    """A loaded pair that predicts scale by scale, in `eval()` mode.

    Attributes:
        manifest: description of the pair.
        text: encoder of class labels.
        tokenizer: image tokenizer, in float32, or float64 if `dtype` is float64.
        cloud: the cloud model.
        device: the device model; None if the cloud decodes alone.
        torch_device: where the tensors are.
        dtype: type of the transformers' weights.
    """

    manifest: PairManifest
    text: ClassLabels
    tokenizer: VarTokenizer
    cloud: VarTransformer
    device: VarTransformer | None
    torch_device: torch.device
    dtype: torch.dtype


def load(found: FoundPair, torch_device: torch.device, dtype: torch.dtype) -> VarPair:
    """Load a pair from VAR's files. Raises WeightsError."""
    paths = {part: files[0] for part, files in found.files.items()}
    cloud = load_var(paths["cloud"])
    device = load_var(paths["device"]) if "device" in paths else None
    vq, scales = vq_config(found.facts["vq"], paths["tokenizer"]), found.manifest.scales
    tokenizer = load_var_tokenizer(paths["tokenizer"], vq, scales, found.facts["phis"])
    for part, model in (("cloud", cloud), ("device", device)):
        if model is not None:
            model.to(torch_device, dtype).eval().requires_grad_(False)
            refuse_nonfinite(model.state_dict(), f"{paths[part]} in {dtype}")
    tokenizer.to(torch_device, dtype if dtype == torch.float64 else torch.float32).eval().requires_grad_(False)
    text = ClassLabels(found.facts["classes"])
    return VarPair(found.manifest, text, tokenizer, cloud, device, torch_device, dtype)


def load_var(path: Path) -> VarTransformer:
    """Load a transformer from a file such as `var_d16.pth`, float32, in `eval()` mode.

    Raises:
        WeightsError: The file is not readable, or keys are missing, unexpected, of another shape or not finite; the message lists them.
    """
    state = own_keys(read_state(path, VAR_CONTAINERS, finite=False))
    state = {key: value for key, value in state.items() if not key.endswith(IGNORED)}
    config, classes, width = var_shape({key: tuple(value.shape) for key, value in state.items()}, path)
    return build(lambda: VarTransformer(config, classes, width), state, path, exact=True)


def load_var_tokenizer(path: Path, config: VQConfig, scales: tuple[int, ...], phis: int) -> VarTokenizer:
    """Load quantiser and decoder from `vae_ch160v4096z32.pth`, float32, in `eval()` mode; the encoder is left out.

    Raises WeightsError as `load_var` does.
    """
    state: dict[str, Tensor] = {}
    levels = len(config.decoder_ch_mult)
    for theirs, tensor in own_keys(read_state(path, VAE_CONTAINERS, finite=False)).items():
        if theirs.startswith(ENCODER):
            continue
        key = vq_key(theirs, levels, highest_first=True)
        if ".qkv." in key:  # one convolution for queries, keys and values
            if tensor.dim() == 0 or len(tensor) % 3:
                raise WeightsError(f"{path}: {theirs} has shape {list(tensor.shape)}, needed three equal parts")
            state |= {
                key.replace(".qkv.", f".{name}."): part
                for name, part in zip("qkv", tensor.tensor_split(3), strict=True)
            }
        else:
            state[key] = tensor

    def name_of(key: str) -> str:
        theirs = original_vq_key(key, levels, highest_first=True)
        return re.sub(r"(\.attn(?:_1|\.\d+))\.([qkv])\.(.+)", r"\1.qkv.\3 (its part \2)", theirs)

    return build(lambda: VarTokenizer(config, scales, phis), state, path, exact=True, name_of=name_of)

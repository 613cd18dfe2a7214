"""Loads LlamaGen's models from its released files.

Source: LlamaGen's released checkpoints (`t2i_XL_stage1_256.pt`, `c2i_B_384.pt`, `vq_ds16_t2i.pt` and others). The configuration follows
from the shapes; `models.backbones.llamagen_files` determines which file is which part.
"""

from pathlib import Path

import torch
from torch import Tensor

from models.attention import repeat_heads
from models.backbones.llamagen_files import VQ_CONTAINERS, classes_of, decoder_config, kv_heads_of
from models.backbones.parts import own_device, own_keys
from models.backbones.t5 import ClassLabels, FeatureFolder, T5Encoder
from models.checkpoint import CONTAINERS
from models.device import DeviceModel
from models.eagle import from_checkpoint
from models.pair import Pair
from models.phi import IntervalProjection
from models.state import build, read_state, refuse_nonfinite
from models.text import TextEncoder
from models.transformer import Transformer
from models.vq import load_llamagen_vq, vq_config
from simulator.protocol.pairs import FoundPair, TransformerConfig


def load_llamagen(
    path: Path | str,
    grid: int = 16,
    n_head: int | None = None,
    torch_device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """Load a text- or class-conditional LlamaGen decoder from its official checkpoint (`.pt`) or the same tensors in `.safetensors`.

    Args:
        path: The file.
        grid: Side of the token grid (16: stage I, 32: stage II).
        n_head: Attention heads; None: as in the released model of the same width.
        torch_device: Where to put the model.
        dtype: Type of its weights.

    Returns:
        The model in `eval()` mode.

    Raises:
        WeightsError: The file is not readable, or keys are missing, unexpected, of another shape or not finite; the message lists them.
    """
    state = own_keys(read_state(path, CONTAINERS, finite=False))
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    config, classes = decoder_config(shapes, path, grid, n_head), classes_of(shapes)
    if (groups := kv_heads_of(shapes, config, path)) < config.n_head:
        state = {
            key: _all_heads(value, config, groups) if key.endswith(".wqkv.weight") else value
            for key, value in state.items()
        }
    model = build(lambda: Transformer(config, classes=classes), state, path, exact=True).to(torch_device, dtype)
    refuse_nonfinite(model.state_dict(), f"{path} in {dtype}")
    return model


def _all_heads(rows: Tensor, config: TransformerConfig, groups: int) -> Tensor:
    """Return a fused projection with shared keys and values repeated for every head. A tensor of another shape is returned unchanged."""
    own = groups * config.head_dim
    if rows.dim() != 2 or len(rows) != config.dim + 2 * own:
        return rows
    q, k, v = torch.split(rows, [config.dim, own, own])
    return torch.cat([q, *(repeat_heads(one, groups, config.n_head // groups) for one in (k, v))])


def load(found: FoundPair, torch_device: torch.device, dtype: torch.dtype) -> Pair:
    """Load a pair from LlamaGen's files. Raises WeightsError."""
    manifest, path_of = found.manifest, {part: paths[0] for part, paths in found.files.items()}
    cloud = load_llamagen(path_of["cloud"], manifest.grid, manifest.cloud.n_head)
    vq = vq_config(found.facts["vq"], path_of["tokenizer"])
    tokenizer = load_llamagen_vq(path_of["tokenizer"], vq, VQ_CONTAINERS)
    device = phi = drafter = None
    if manifest.device is not None:
        device = load_device(path_of["device"], manifest.device)
    if path := path_of.get("phi"):
        dim, codes, width = manifest.cloud.dim, manifest.codebook_size, manifest.phi_bottleneck
        phi = build(lambda: IntervalProjection(dim, codes, width), read_state(path, finite=False), path, exact=True)
    if path := path_of.get("drafter"):
        drafter = from_checkpoint(own_keys(read_state(path, finite=False)), cloud.config, path)
    text = text_of(found, cloud, torch_device, dtype)
    return Pair(manifest, text, tokenizer, cloud, device, phi, drafter, torch_device, dtype).prepared()


def load_device(path: Path, shape: TransformerConfig) -> DeviceModel:
    """Load a device model from its file: one with an Inter-Head, as training writes it, or a LlamaGen decoder. Raises WeightsError."""
    own = own_device(path)
    if own is None:
        decoder = load_llamagen(path, shape.grid, shape.n_head)
        device = DeviceModel(decoder.config, (), decoder.classes)
        device.transformer.load_state_dict(decoder.state_dict())
        return device
    state = read_state(path, finite=False)
    classes = classes_of({key: tuple(value.shape) for key, value in state.items()}, "transformer.")
    return build(lambda: DeviceModel(*own, classes), state, path, exact=True)


def text_of(found: FoundPair, cloud: Transformer, torch_device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """Return the caption encoder: class labels, features from a folder, or a T5. Raises WeightsError."""
    if cloud.classes:
        return ClassLabels(cloud.classes)
    folder, slots = found.facts["text"], found.manifest.caption_slots
    if found.facts["features"]:
        return FeatureFolder(folder, slots, found.manifest.caption_dim)
    return T5Encoder(folder, slots, torch_device, dtype)

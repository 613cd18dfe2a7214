"""Weights of published backbones: LlamaGen's text-to-image checkpoints in their official layout.

Source: LlamaGen's released files (`t2i_XL_stage1_256.pt`, `t2i_XL_stage2_512.pt`): a pickled dict whose state dict is
under `model` (or `module`, `state_dict`, or is the dict itself). Shapes decide the configuration; only the head count
(width 64 per head in every released text model) and the grid are not in the file.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.state import build, read_state, refuse_nonfinite
from models.transformer import Transformer
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import TransformerConfig

OFFICIAL_HEAD_DIM = 64


def infer_config(
    state: Mapping[str, Tensor], source: Path | str, grid: int = 16, n_head: int | None = None
) -> TransformerConfig:
    """The configuration that a LlamaGen state dict was made with.

    grid: side of the token grid (16: stage I, 32: stage II). n_head: None means width 64 per head, as released.
    Raises WeightsError when a key that tells the shape is missing or the head count does not divide the width.
    """

    def shape(key: str) -> tuple[int, int]:
        if key not in state:
            raise WeightsError(f"{source}: {key} is missing: not a LlamaGen text-to-image checkpoint")
        if state[key].dim() != 2:
            raise WeightsError(f"{source}: {key} has shape {list(state[key].shape)}, needed two dimensions")
        return state[key].shape[0], state[key].shape[1]

    vocab_size, dim = shape("tok_embeddings.weight")
    caption_slots, caption_dim = shape("cls_embedding.uncond_embedding")
    ffn_hidden, _ = shape("layers.0.feed_forward.w1.weight")
    layers = [key.split(".")[1] for key in state if key.startswith("layers.")]
    if not all(index.isascii() and index.isdigit() and len(index) < 5 for index in layers):
        raise WeightsError(f"{source}: keys under layers must be numbered, got layers.{max(layers, key=len)[:40]}")
    n_layer = 1 + max(map(int, layers))
    heads = n_head if n_head is not None else max(1, dim // OFFICIAL_HEAD_DIM)
    try:
        return TransformerConfig(n_layer, heads, dim, ffn_hidden, vocab_size, caption_slots, caption_dim, grid)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}; pass n_head") from error


def load_llamagen(
    path: Path | str,
    grid: int = 16,
    n_head: int | None = None,
    torch_device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Transformer:
    """A LlamaGen text-to-image decoder from its official checkpoint (`.pt`) or the same tensors in `.safetensors`.

    grid, n_head: see `infer_config`. Returns the model in `eval()` mode. Raises WeightsError.
    """
    state = read_state(path)
    config = infer_config(state, path, grid, n_head)
    model = build(lambda: Transformer(config), state, path).to(torch_device, dtype)
    refuse_nonfinite(model.state_dict(), f"{path} in {dtype}")
    return model

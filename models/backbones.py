"""Weights of published backbones: LlamaGen's text-to-image checkpoints in their official layout.

Source: LlamaGen's released files (`t2i_XL_stage1_256.pt`, `t2i_XL_stage2_512.pt`): a pickled dict whose state dict is
under `model` (or `module`, `state_dict`, or is the dict itself). Shapes decide the configuration; only the head count
(width 64 per head in every released text model) and the grid are not in the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.transformer import Transformer, TransformerConfig
from simulator.core.errors import WeightsError

OFFICIAL_HEAD_DIM = 64
CONTAINERS = ("model", "module", "state_dict")


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a PyTorch checkpoint, out of their container if they are in one.

    Raises WeightsError when the file is missing, unreadable or holds no tensors. Pickled code is never run.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        safe = path.suffix == ".safetensors"
        content: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as weights: {error}") from error
    except Exception as error:  # unpickling raises its own types, among them one for content that is not plain tensors
        raise WeightsError(f"{path}: not a checkpoint of plain tensors: {type(error).__name__}") from error
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, needed a dict of tensors")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path}: holds no tensors (looked under {', '.join(CONTAINERS)} and at the top)")
    return state


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy `state` into `module`; keys that the module does not have are ignored.

    Raises WeightsError naming the file, the key, the shape found and the shape needed.
    """
    for key, parameter in module.state_dict().items():
        if key not in state:
            raise WeightsError(f"{source}: {key} is missing, needed {list(parameter.shape)}")
        if state[key].shape != parameter.shape:
            raise WeightsError(f"{source}: {key} has shape {list(state[key].shape)}, needed {list(parameter.shape)}")
        if not state[key].is_floating_point():
            raise WeightsError(f"{source}: {key} has type {state[key].dtype}, needed floating point")
    module.load_state_dict(dict(state), strict=False)


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
    n_layer = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers."))
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
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device="cpu")
    load_into(model, state, path)
    return model.to(torch_device, dtype).eval()

"""Weight files: reading tensors and configurations, and copying tensors into a model.

Every loader reads its tensors with `read_state` and copies them with `load_state` or `build`, so that damaged files,
wrong shapes and weights that are not finite are refused alike, naming file and tensor.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simulator.core.errors import WeightsError

CONTAINERS = ("model", "module", "state_dict")  # keys of a checkpoint that may hold its state dict
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a PyTorch checkpoint, taken out of their container if they are in one.

    Pickled code is never run.

    Raises:
        WeightsError: the file is missing or unreadable, holds no tensors, or holds weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        safe = path.suffix == ".safetensors"
        content: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as weights: {first_line(error)}") from error
    except Exception as error:  # unpickling raises many types, one of them for content that is not plain tensors
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
    refuse_nonfinite(state, path)
    return state


def read_config(path: Path, key: str = "config") -> dict[str, Any]:
    """The JSON mapping under `key` in the metadata of a safetensors file. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})[key])
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise WeightsError(f"{path}: not a model of this project ({type(error).__name__}: {error})") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: its {key} is a {type(config).__name__}, needed a mapping")
    return config


def refuse_nonfinite(state: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises WeightsError naming the first tensor that holds a NaN or an infinity, and how many values of it are."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise WeightsError(f"{source}: {key} is not finite: {bad} of {tensor.numel()} values are NaN or infinite")


def refuse_misfits(module: nn.Module, state: Mapping[str, Tensor], source: Path | str, exact: bool = False) -> None:
    """Raises WeightsError naming the key that is missing, has another shape or type, or (`exact`) has no counterpart."""
    needed = module.state_dict()
    for key, tensor in needed.items():
        if key not in state:
            raise WeightsError(f"{source}: {key} is missing, needed {list(tensor.shape)}")
        if state[key].shape != tensor.shape:
            raise WeightsError(f"{source}: {key} has shape {list(state[key].shape)}, needed {list(tensor.shape)}")
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise WeightsError(f"{source}: {key} has type {state[key].dtype}, needed {tensor.dtype}")
    for key in state:
        if exact and key not in needed:
            raise WeightsError(f"{source}: {key} with shape {list(state[key].shape)} has no place in this model")


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: Path | str, *, exact: bool = False) -> None:
    """Copy `state` into `module`.

    Args:
        module: the model, with its memory allocated.
        state: tensors by key.
        source: file, for messages.
        exact: refuse keys that the module does not have; otherwise they are ignored.

    Raises:
        WeightsError: a key is missing, has another shape or type, or has no place; or a value is not finite.
    """
    refuse_misfits(module, state, source, exact)
    module.load_state_dict(dict(state), strict=False)
    refuse_nonfinite(module.state_dict(), source)


def build(
    make: Callable[[], ModuleT], state: Mapping[str, Tensor], source: Path | str, *, exact: bool = False
) -> ModuleT:
    """The module that `make` constructs, float32 on the CPU in `eval()` mode, holding `state`.

    Memory is allocated only after all shapes fit, so a configuration of absurd size is an error and not an allocation.
    Arguments and errors are those of `load_state`.
    """
    with torch.device("meta"):
        module = make()
    refuse_misfits(module, state, source, exact)
    module.to_empty(device="cpu")
    load_state(module, state, source, exact=exact)
    return module.eval()


def save_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically, floating point as fp16.

    Raises:
        WeightsError: a value is not finite in fp16.
    """
    halved = {key: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for key, t in state.items()}
    refuse_nonfinite(halved, path)
    temporary = path.with_name(path.name + ".tmp")
    save_file(halved, temporary, metadata=metadata)
    os.replace(temporary, path)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)

"""Weight files: reading tensors and configurations, and copying tensors into a model.

Every loader reads tensors with `read_state` and copies them with `load_state` or `build`, so that all of them refuse damaged files,
wrong shapes and weights that are not finite with the same errors, which name file and tensor.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.checkpoint import CONTAINERS, Checkpoint, StoredTensor, few, read_checkpoint
from simulator.core.errors import WeightsError, first_line
from simulator.core.files import write_atomically

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read_state(path: Path | str, containers: Sequence[str] = CONTAINERS, *, finite: bool = True) -> dict[str, Tensor]:
    """Read the state dict of a `.safetensors` file or a PyTorch checkpoint.

    Pickled code is never run; see `models.checkpoint`.

    Args:
        path: The file.
        containers: Keys that may hold the state dict; see `read_checkpoint`.
        finite: Whether to refuse weights that are not finite.

    Raises:
        WeightsError: the file is missing or unreadable, holds no tensors, or holds weights that are not finite.
    """
    checkpoint = read_checkpoint(path, containers)
    try:
        state = _safe_tensors(checkpoint) if checkpoint.path.suffix == ".safetensors" else _stored_tensors(checkpoint)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as weights: {first_line(error)}") from error
    if finite:
        refuse_nonfinite(state, path)
    return state


def _safe_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    found = load_file(checkpoint.path)
    return {own: found[name] for own, name in checkpoint.names.items()}


def _stored_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    by_storage: dict[str, list[tuple[str, StoredTensor]]] = {}
    for key, tensor in checkpoint.tensors.items():
        assert tensor.storage is not None
        by_storage.setdefault(tensor.storage.key, []).append((key, tensor))
    state: dict[str, Tensor] = {}
    for storage, content in checkpoint.storages():
        for key, tensor in by_storage[storage.key]:
            dtype = getattr(torch, tensor.dtype)
            numbers = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            state[key] = numbers.as_strided(tensor.shape, tensor.stride, tensor.offset)
    return {key: state[key] for key in checkpoint.tensors}


def read_config(path: Path, key: str = "config") -> dict[str, Any]:
    """Return the JSON mapping under `key` in the metadata of a safetensors file. Raises WeightsError."""
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
    """Raise WeightsError for the first tensor with NaN or infinite values; the message has its key and their number."""
    for key, tensor in state.items():
        bad = count_nonfinite(tensor)
        if bad:
            raise WeightsError(f"{source}: {key} is not finite: {bad} of {tensor.numel()} values are NaN or infinite")


def refuse_nonfinite_model(model: nn.Module, source: Path | str) -> None:
    """Raise WeightsError for parameters that are not finite, and for buffers with NaN; masks may hold infinities."""
    refuse_nonfinite(dict(model.named_parameters()), source)
    buffers = {name: buffer.nan_to_num(torch.nan, 0.0, 0.0) for name, buffer in model.named_buffers()}
    refuse_nonfinite(buffers, source)


def refuse_misfits(
    needed: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: Path | str,
    exact: bool = False,
    finite: bool = False,
    name_of: Callable[[str], str] = str,
) -> None:
    """Raise WeightsError if tensors do not fit; the message lists missing keys, shapes and types.

    Args:
        needed: tensors of the needed shapes and types by key, such as a module's, with or without allocated memory.
        state: tensors by key.
        source: file, for messages.
        exact: also refuse keys that are not needed.
        finite: also refuse values that are not finite.
        name_of: returns the file's name of a key, for messages.
    """
    missing = [f"{name_of(key)} is missing, needed {list(t.shape)}" for key, t in needed.items() if key not in state]
    both = [(name_of(key), state[key], needed[key]) for key in needed if key in state]
    shapes = [f"{key} has shape {list(t.shape)}, needed {list(n.shape)}" for key, t, n in both if t.shape != n.shape]
    types = [
        f"{key} has type {t.dtype}, needed {n.dtype}"
        for key, t, n in both
        if t.is_floating_point() != n.is_floating_point()
    ]
    unknown = [
        f"{name_of(key)} with shape {list(t.shape)} has no place in this model"
        for key, t in state.items()
        if key not in needed
    ]
    bad = [
        f"{key} is not finite: {count} of {t.numel()} values are NaN or infinite"
        for key, t, _ in both
        if finite and (count := count_nonfinite(t))
    ]
    listed = [few(lines) for lines in (missing, shapes, types, unknown if exact else [], bad) if lines]
    if listed:
        raise WeightsError(f"{source}: {'; '.join(listed)}")


def count_nonfinite(tensor: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch has no isfinite for float8
    return tensor.numel() - int(tensor.isfinite().sum()) if tensor.is_floating_point() else 0


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: Path | str, *, exact: bool = False) -> None:
    """Copy `state` into `module`.

    Args:
        module: the model, with its memory allocated.
        state: tensors by key.
        source: file, for messages.
        exact: refuse keys that the module does not have; otherwise they are ignored.

    Raises:
        WeightsError: a key is missing, has another shape or type, or is unknown; or a value is not finite.
    """
    refuse_misfits(module.state_dict(), state, source, exact, finite=True)
    _copy(state, module, source)


def _copy(state: Mapping[str, Tensor], module: nn.Module, source: Path | str) -> None:
    """Copy `state` into the module and check again: a value may overflow the module's type."""
    module.load_state_dict(dict(state), strict=False)
    refuse_nonfinite(module.state_dict(), source)


_DRAWS = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


class _NoDraws(TorchFunctionMode):
    """Skips the drawing of initial values. For tensors without memory it would load torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DRAWS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def unallocated() -> Iterator[None]:
    """Give modules created inside shapes, but neither memory nor values."""
    with torch.device("meta"), _NoDraws():
        yield


def build(
    make: Callable[[], ModuleT],
    state: Mapping[str, Tensor],
    source: Path | str,
    *,
    exact: bool = False,
    name_of: Callable[[str], str] = str,
) -> ModuleT:
    """Return the module that `make` constructs, float32 on the CPU in `eval()` mode, with the values of `state`.

    Memory is allocated only after all shapes are checked, so a configuration of absurd size is an error and not an allocation.
    Arguments and errors are those of `load_state`, and `name_of` that of `refuse_misfits`.
    """
    with unallocated():
        module = make()
    refuse_misfits(module.state_dict(), state, source, exact, finite=True, name_of=name_of)
    # The tensors are assigned, not copied: torch is slow to allocate memory for a module that has none.
    own = {
        key: state[key].to(needed.dtype, copy=True, memory_format=torch.contiguous_format)
        for key, needed in module.state_dict().items()
    }
    turned = {name_of(key): tensor for key, tensor in own.items() if tensor.dtype != state[key].dtype}
    refuse_nonfinite(turned, source)
    module.load_state_dict(own, assign=True)
    return module.eval()


def save_state(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically, floating point as fp16.

    Raises:
        WeightsError: a value is not finite in fp16.
    """
    halved = {key: (t.half() if t.is_floating_point() else t).detach().cpu().contiguous() for key, t in state.items()}
    refuse_nonfinite(halved, path)
    write_atomically(path, save(halved, metadata=metadata))

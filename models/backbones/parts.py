"""Recognises which part of a pair each weight file in a folder is, for all backbones alike. Imports no torch.

A backbone provides a function that names the kind of a state dict from its shapes. This module searches folders, describes the files
that are not recognised, and recognises the files that `ciar-sim train device` writes, which every backbone accepts.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from models.checkpoint import CONTAINERS, SUFFIXES, few, model_within, read_checkpoint
from simulator.core.errors import WeightsError
from simulator.protocol.llama import config_of
from simulator.protocol.pairs import TransformerConfig

Shapes = Mapping[str, tuple[int, ...]]
ValueT = TypeVar("ValueT")
IGNORED = ("freqs_cis", "causal_mask")  # tables in some checkpoints that are computed here
TRANSFORMER = "transformer."
OWN_DEVICE = f"{TRANSFORMER}tok_embeddings.weight"  # a key of the files that `ciar-sim train device` writes
SHARD = r"-(\d{1,6})-of-(\d{1,6})(?=\.)"  # in the file name of a shard of a checkpoint
UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")  # ends of the names of files that are being downloaded
# A key of each kind of model, including VAR's.
MARKS = ("tok_embeddings.weight", "quantize.embedding.weight", "layers.0.self_attn.q_proj.weight", "word_embed.weight")


def count(shapes: Shapes, pattern: str) -> int:
    """Return the number of different values of a pattern's first group, matched at the beginning of the keys."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


def first_size(shapes: Shapes, key: str, source: Path, wanted: str) -> int:
    """Return the first size of a tensor.

    Args:
        shapes: shapes of a state dict.
        key: the tensor.
        source: file, for messages.
        wanted: what the state dict is not if it lacks the tensor, for messages.

    Raises:
        WeightsError: the tensor is missing, a single number, or empty.
    """
    shape = shapes.get(key)
    if shape is None:
        raise WeightsError(f"{source}: {key} is missing: not {wanted}")
    if not shape or 0 in shape:
        raise WeightsError(f"{source}: {key} has shape {list(shape)}, needed sizes above 0")
    return shape[0]


@dataclass(frozen=True)
class WeightFile:
    """A recognised file.

    Attributes:
        path: the file.
        kind: the kind that the backbone's `kind_of` returns.
        shapes: shapes of its tensors.
    """

    path: Path
    kind: str
    shapes: Shapes


def own_layout(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a device model that `ciar-sim train device` wrote: a transformer and an Inter-Head.

    If all keys begin with `transformer.`, a wrapper has added it, and the file is another model.
    """
    return OWN_DEVICE in state and not all(key.startswith(TRANSFORMER) for key in state)


def own_kind(shapes: Shapes) -> str:
    """Return `device` (with an Inter-Head) or `phi` if the shapes are those of a file that `ciar-sim train device` writes, else ""."""
    if own_layout(shapes):
        return "device"
    return "phi" if set(shapes) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"} else ""


def is_drafter(shapes: Shapes) -> bool:
    """Whether the shapes are those of a feature-level drafter in EAGLE's layout: one layer under transformers' keys."""
    return "layers.0.self_attn.q_proj.weight" in shapes and count(shapes, r"layers\.(\d+)\.") == 1


def drafter_ffn(path: Path) -> int:
    """Return the width of a drafter's feed-forward part. Raises WeightsError."""
    shapes = own_keys(read_checkpoint(path).shapes)
    return first_size(shapes, "layers.0.mlp.gate_proj.weight", path, "a feature-level drafter")


def recognise(
    place: Path, kind_of: Callable[[Shapes], str], owner: str, containers: Sequence[str] = CONTAINERS
) -> tuple[list[WeightFile], list[str]]:
    """Find the parts of a pair in a file or a folder (without subfolders).

    Args:
        place: The file or the folder.
        kind_of: Returns the kind of a state dict from its shapes, or "" if it is unknown.
        owner: Name of the layout, for messages.
        containers: As in `read_checkpoint`.

    Returns:
        The recognised files, and a description of each other weight file.

    Raises:
        WeightsError: The place does not exist, or it is a file that is not readable.
    """
    alone = place.is_file()
    if not alone and not place.is_dir():
        raise WeightsError(f"{place}: {unfetched(place) or 'no such file or folder'}")
    parts, others = [], downloading(place)
    for path in [place] if alone else sorted(path for path in place.iterdir() if path.suffix in SUFFIXES):
        if not path.is_file():
            others += [f"{path.name}: {told}"] if (told := unfetched(path)) else []
            continue
        try:
            shapes = own_keys(read_checkpoint(path, containers).shapes)
        except WeightsError as error:
            if alone:
                raise
            others.append(str(error).removeprefix(f"{place}/"))
            continue
        kind = kind_of(shapes)
        if kind:
            parts.append(WeightFile(path, kind, shapes))
        elif any(key.rpartition(".")[2].startswith("_flat_param") for key in shapes):
            others.append(f"{path.name}: flattened parameters of FSDP; export its full state dict")
        else:
            others.append(f"{path.name}: none of its keys is {owner}'s ({few(list(shapes))})")
    return parts, others


def unfetched(path: Path) -> str:
    """Return a description of a broken link, as in an incomplete hub cache; "" for any other path."""
    return f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() and not path.exists() else ""


def downloading(place: Path) -> list[str]:
    """Return descriptions of a folder's unfinished downloads, and a hint if it is a hub cache or a sharded checkpoint of torch."""
    if not place.is_dir():
        return []
    parts = [path for suffix in UNFINISHED for path in sorted(place.glob(f"*{suffix}"))]
    parts += place.glob(".cache/huggingface/download/*.incomplete")
    told = [f"unfinished downloads: {few([path.name for path in parts])}"] if parts else []
    held = sorted(path for path in place.glob("snapshots/*") if path.is_dir())
    told += [f"a cache of the hub: its files are in {held[-1]}"] if held else []
    if any(place.glob("*.distcp")):
        told.append(
            "a sharded checkpoint of torch; make one file of it with `python -m torch.distributed.checkpoint.format_utils`"
        )
    return told


def own_keys(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Return tensors or shapes by key, without a prefix that another program added to all keys, and without tables computed here."""
    if not own_layout(state):
        state = model_within(state, MARKS)
    return {key: value for key, value in state.items() if key not in IGNORED and ".kv_cache." not in key}


def the_one(
    parts: Sequence[WeightFile], what: str, place: Path, others: Sequence[str], key: str, hints: Sequence[str]
) -> WeightFile:
    """Return the only part, or the only one whose file name contains a hint.

    Args:
        parts: the candidates.
        what: name of the part, for messages.
        place: where they were found, for messages.
        others: descriptions of other files, for messages.
        key: key of `pair` with which a user can name the file, for messages.
        hints: parts of file names, tried in order.

    Raises:
        WeightsError: there is no part, or several; the message lists the files.
    """
    if len(parts) > 1:
        parts = next((named for hint in hints if len(named := [p for p in parts if hint in p.path.name]) == 1), parts)
    if len(parts) == 1:
        return parts[0]
    names = ", ".join(part.path.name for part in parts)
    if parts and all(re.search(SHARD, part.path.name) for part in parts):
        raise WeightsError(f"{place}: holds {what} in parts ({names}); needed in one file")
    if parts:
        raise WeightsError(f"{place}: holds several files for {what}: {names}; name one with pair.{key}")
    found = f"; {'; '.join(others[:4])}" if others else ""
    raise WeightsError(f"{place}: holds no weights of {what}{found}; name its file with pair.{key}")


def bottleneck_of(phi: WeightFile) -> int:
    """Return the width of phi's bottleneck. Raises WeightsError."""
    return first_size(phi.shapes, "fc1.weight", phi.path, "a projection phi")


def own_device(path: Path) -> tuple[TransformerConfig, tuple[str, ...]] | None:
    """Return the shape and the names of the radius matrices of a device model that training wrote; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="np") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
        return config_of(config["transformer"]), tuple(config["bounds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None

"""Which part of a pair each weight file of a folder is: what the files of all backbones have in common. No torch.

A backbone says by a function of the tensors' shapes what a state dict is; here are the walk over a folder, what is said of files that are
none, and the files that `ciar-sim train device` writes, which serve every backbone.
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
IGNORED = ("freqs_cis", "causal_mask")  # tables that some checkpoints carry
TRANSFORMER = "transformer."
OWN_DEVICE = f"{TRANSFORMER}tok_embeddings.weight"  # of what `ciar-sim train device` writes
SHARD = r"-(\d{1,6})-of-(\d{1,6})(?=\.)"  # in the name of a part of a checkpoint
# A key of each kind of model, VAR's too.
MARKS = ("tok_embeddings.weight", "quantize.embedding.weight", "layers.0.self_attn.q_proj.weight", "word_embed.weight")


def count(shapes: Shapes, pattern: str) -> int:
    """How many different first groups a pattern finds at the begin of keys."""
    return len({found[1] for key in shapes if (found := re.match(pattern, key))})


@dataclass(frozen=True)
class WeightFile:
    """A recognised file. kind: what it is, as the backbone's own `kind_of` says."""

    path: Path
    kind: str
    shapes: Shapes


def own_layout(state: Mapping[str, Any]) -> bool:
    """Whether these keys are those of a device that `ciar-sim train device` wrote, with an Inter-Head beside its transformer; a wrapper may
    write the same word before every key."""
    return OWN_DEVICE in state and not all(key.startswith(TRANSFORMER) for key in state)


def own_kind(shapes: Shapes) -> str:
    """`device` (with an Inter-Head) or `phi` where these shapes are of what `ciar-sim train device` writes, else empty."""
    if own_layout(shapes):
        return "device"
    return "phi" if set(shapes) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"} else ""


def recognise(
    place: Path, kind_of: Callable[[Shapes], str], owner: str, containers: Sequence[str] = CONTAINERS
) -> tuple[list[WeightFile], list[str]]:
    """The parts in a file or directly in a folder, and what is wrong with its other weight files.

    Args:
        place: The file or the folder.
        kind_of: What a state dict is, by its shapes; empty where it is nothing of the owner's.
        owner: Whose layout it is, for messages.
        containers: As in `read_checkpoint`.

    Raises:
        WeightsError: There is nothing there, or a single file is not readable.
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
        else:
            others.append(f"{path.name}: its keys are none of {owner}'s ({few(list(shapes))})")
    return parts, others


def unfetched(path: Path) -> str:
    """What is said of a link that leads nowhere, as the cache of the hub has them; empty of anything else."""
    return f"a link to {os.readlink(path)}, which is not there" if path.is_symlink() and not path.exists() else ""


def downloading(place: Path) -> list[str]:
    """What a folder's names tell of downloads: those that are not finished, and the folders of a cache of the hub."""
    if not place.is_dir():
        return []
    parts = [*place.glob("*.incomplete"), *place.glob(".cache/huggingface/download/*.incomplete")]
    told = [f"unfinished downloads: {few([path.name for path in parts])}"] if parts else []
    held = sorted(path for path in place.glob("snapshots/*") if path.is_dir())
    return [*told, *([f"a cache of the hub: its files are in {held[-1]}"] if held else [])]


def own_keys(state: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Tensors, or their shapes, by key, without what another program wrote before each, and without tables that are computed anew."""
    if not own_layout(state):
        state = model_within(state, MARKS)
    return {key: value for key, value in state.items() if key not in IGNORED and ".kv_cache." not in key}


def the_one(
    parts: Sequence[WeightFile], what: str, place: Path, others: Sequence[str], key: str, hints: Sequence[str]
) -> WeightFile:
    """The only part, or the only one whose file's name has a hint. Raises WeightsError that lists the files."""
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


def own_device(path: Path) -> tuple[TransformerConfig, tuple[str, ...]] | None:
    """Shape and radius matrices of a device model with an Inter-Head, as training writes it; None for another file."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="np") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
        return config_of(config["transformer"]), tuple(config["bounds"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None

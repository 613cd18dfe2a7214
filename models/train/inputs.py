"""Provenance of trained weights: what a stage's weights depend on, so that weights made from other inputs are never taken for them.

A stage's inputs are a flat mapping: each setting that differs from its default under its dotted name, and a digest of
each source (training data, weights of earlier stages) under its own. A setting that a mapping lacks has its default, so
that weights made before a setting existed stay valid. `models.train.loop.train` keeps them in the checkpoint and, once
the stage is finished, in `inputs.json` beside its weights.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from models.state import read_state
from simulator.core.errors import WeightsError
from simulator.core.files import read_file

FILE = "inputs.json"
DIGEST = "blake2b:"  # what a digest begins with
# Settings that do not decide the weights: `training` is kept by the loop itself, and `then` is a stage of its own.
FREE = ("training", "then", "compile", "held_out_seed", "scenes.held_out", "scenes.held_out_seed")
TOKENIZER = "tokenizer"
# Of the weight files of earlier stages: the stages that read them, besides the tokenizer.
READS = {"cloud": (), "device": ("cloud",), "phi": ("cloud", "device"), "drafter": ("cloud",)}
DECODING = ("decoder.", "post_quant_conv.", "patch_of_code.")  # parts of a tokenizer that codes do not depend on

Inputs = dict[str, Any]


def settings_of(part: Any, prefix: str = "") -> Inputs:
    """The settings of a `Part` or a plain dataclass that differ from their defaults, by dotted name, without `FREE`."""
    if is_dataclass(part):
        rows = [(field.name, field.default) for field in fields(part)]
    else:
        rows = [(name, field.default) for name, field in type(part).model_fields.items()]
    found: Inputs = {}
    for key, default in rows:
        name, value = prefix + key, getattr(part, key)
        if name in FREE:
            continue
        if isinstance(value, BaseModel) or is_dataclass(value):
            found |= settings_of(value, f"{name}.")
        elif value != default:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def digest_of(state: Mapping[str, Tensor]) -> str:
    """A digest of tensors by key, whatever their order."""
    content = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        content.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return DIGEST + content.hexdigest()


def digest_of_bytes(parts: Iterable[bytes]) -> str:
    """A digest of these bytes, in order."""
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(hashlib.blake2b(part, digest_size=16).digest())
    return DIGEST + content.hexdigest()


def weights_read(folder: Path, stage: str) -> Inputs:
    """Digests of the weights in a training folder that `stage` reads. Raises WeightsError where one is missing."""
    codes = read_state(folder / "tokenizer" / "tokenizer.safetensors")
    found = {TOKENIZER: digest_of({key: value for key, value in codes.items() if not key.startswith(DECODING)})}
    return found | {name: digest_of(read_state(folder / name / f"{name}.safetensors")) for name in READS[stage]}


def difference(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """What the first differing input is, as "KEY = MADE, asked for ASKED"; None if there is none."""
    for key in [*asked, *(key for key in made if key not in asked)]:
        one, other = made.get(key, "its default"), asked.get(key, "its default")
        if one != other:
            digests = all(str(value).startswith(DIGEST) for value in (one, other))
            return f"another {key}" if digests else f"{key} = {one}, asked for {other}"
    return None


def read_inputs(stage_folder: Path) -> Inputs | None:
    """The inputs of a finished stage; None where it kept none. Raises WeightsError."""
    path = stage_folder / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(read_file(path))
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged; train the stage again") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: must hold a mapping, found {type(found).__name__}")
    return found


def refuse_outdated(folder: Path, stages: tuple[str, ...]) -> None:
    """Raises WeightsError for a finished stage among `stages` that was trained from other weights than those there now."""
    for stage in stages:
        made = read_inputs(folder / stage) if stage in READS else None
        if made is None:
            continue
        for name, digest in weights_read(folder, stage).items():
            if name in made and made[name] != digest:
                raise WeightsError(
                    f"{folder / stage}: trained from another {name} than the one there now; "
                    f"delete this folder to train stage {stage} again"
                )

"""Inputs of trained weights: everything that a stage's weights depend on, recorded to detect weights made from other inputs.

The inputs of a stage are a flat mapping. It holds each setting that differs from its default, by dotted name, and a digest of each source
(training data, weights of earlier stages). A missing setting has its default, so weights made before a setting existed remain
valid. `models.train.loop.train` stores the inputs in the checkpoint and, once the stage is finished, in `inputs.json` in its folder.
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
from simulator.core.files import read_file, write_atomically

FILE = "inputs.json"
DIGEST = "blake2b:"  # prefix of a digest
# Settings that are not inputs: the loop checks `training`, each round of `then` has its own inputs, the others do not affect weights.
FREE = ("training", "then", "compile", "held_out_seed", "scenes.held_out", "scenes.held_out_seed")
TOKENIZER = "tokenizer"
JUDGE = "judge"
DECODED = "tokenizer's images"  # key of the tokenizer with its decoder
# Earlier stages whose weights a stage reads, in addition to the tokenizer.
READS = {"cloud": (), "device": ("cloud",), "phi": ("cloud", "device"), "drafter": ("cloud",), JUDGE: ()}
DECODING = ("decoder.", "post_quant_conv.", "patch_of_code.")  # parts of a tokenizer that do not affect the codes

Inputs = dict[str, Any]


def settings_of(part: Any, prefix: str = "") -> Inputs:
    """Return the settings of a `Part` or dataclass that differ from their defaults, by dotted name, without those in `FREE`."""
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
    """Return a digest of tensors by key, independent of their order."""
    content = hashlib.blake2b(digest_size=16)
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        content.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return DIGEST + content.hexdigest()


def digest_of_bytes(parts: Iterable[bytes]) -> str:
    """Return a digest of a sequence of byte strings."""
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(hashlib.blake2b(part, digest_size=16).digest())
    return DIGEST + content.hexdigest()


def weights_read(folder: Path, stage: str) -> Inputs:
    """Return digests of the weights in a training folder that `stage` reads. Raises WeightsError if one is missing or damaged.

    The judge does not train on the tokenizer's codes, but reads the images that it decodes.
    """
    codes = read_state(folder / "tokenizer" / "tokenizer.safetensors")
    if stage == JUDGE:
        return {DECODED: digest_of(codes)}
    found = {TOKENIZER: digest_of({key: value for key, value in codes.items() if not key.startswith(DECODING)})}
    return found | {name: digest_of(read_state(folder / name / f"{name}.safetensors")) for name in READS[stage]}


def difference(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """Describe the first input that differs, as "KEY = MADE, asked for ASKED"; None if none does."""
    for key in [*asked, *(key for key in made if key not in asked)]:
        one, other = made.get(key, "its default"), asked.get(key, "its default")
        if one != other:
            digests = any(str(value).startswith(DIGEST) for value in (one, other))
            return f"another {key}" if digests else f"{key} = {one}, asked for {other}"
    return None


def write_inputs(stage_folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write the inputs of a finished stage to `inputs.json`."""
    write_atomically(stage_folder / FILE, (json.dumps(inputs, indent=1) + "\n").encode())


def read_inputs(stage_folder: Path) -> Inputs | None:
    """Return the inputs of a finished stage; None if the folder has no `inputs.json`. Raises WeightsError for a damaged file."""
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
    """Raise WeightsError if a finished stage among `stages` was made from other weights than those now in `folder`."""
    for stage in stages:
        made = read_inputs(folder / stage) if stage in READS else None
        if made is None:
            continue
        for name, digest in weights_read(folder, stage).items():
            if name in made and made[name] != digest:
                if stage == JUDGE:  # its network is still valid
                    raise WeightsError(
                        f"{folder / stage}: holds readings of images of another {TOKENIZER} than the current one; run stage {stage} again"
                    )
                raise WeightsError(
                    f"{folder / stage}: trained from another {name} than the current one; "
                    f"delete this folder to train stage {stage} again"
                )

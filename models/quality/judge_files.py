"""The folder `judge/` of a pair of photographs: files that judge its images, and the captions from which prompts are drawn.

    judge.json           types and colours that the network distinguishes; number of captions of held-out photographs
    network.safetensors  the photo network
    captions.txt         one caption per line, all different: those of held-out photographs, then others of training photographs
    held-out.npy         the network's readings of held-out photographs, a row for each of their captions in captions.txt
    reconstructed.npy    its readings of the same photographs after the tokenizer
    other.npy            its readings of random training photographs: real images that are not the reference
    other-reconstructed.npy  its readings of these after the tokenizer; judges made before this file existed lack it
    metrics.json         its accuracy on these three sets

The folder holds no photograph. This module does not import torch.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.quality.photo_reading import READING_DTYPE
from simulator.core.errors import WeightsError, reason
from simulator.core.files import read_file, write_atomically
from simulator.core.rng import stream

JUDGE = "judge"  # name of the folder
NETWORK = "network.safetensors"
SETS = ("held-out", "reconstructed", "other", "other-reconstructed")
NEWER = SETS[3:]  # absent from judges that were made before


@dataclass(frozen=True)
class JudgeFiles:
    """Content of the folder without the network's weights and metrics.

    Attributes:
        kinds: types, as words of captions.
        colours: colours, as words of captions.
        captions: captions of held-out photographs, then others.
        held_out: number of captions of held-out photographs.
        readings: `READING_DTYPE` [N] by name of the set, see `SETS`.
    """

    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    captions: tuple[str, ...]
    held_out: int
    readings: dict[str, np.ndarray]

    def write(self, folder: Path) -> None:
        """Write the files to a folder."""
        about = {"kinds": self.kinds, "colours": self.colours, "held_out": self.held_out}
        write_atomically(folder / "judge.json", (json.dumps(about, indent=1) + "\n").encode())
        write_atomically(folder / "captions.txt", "".join(f"{caption}\n" for caption in self.captions).encode())
        for name, readings in self.readings.items():
            buffer = io.BytesIO()
            np.save(buffer, readings)
            write_atomically(folder / f"{name}.npy", buffer.getvalue())


def read_judge(folder: Path) -> JudgeFiles:
    """Read the files that `JudgeFiles.write` wrote. Raises WeightsError if one is missing, damaged or malformed."""
    about = _json(folder / "judge.json")
    kinds, colours = (_texts(about.get(key), folder / "judge.json", key) for key in ("kinds", "colours"))
    captions, held_out = read_captions(folder)
    readings = {name: _readings(folder / f"{name}.npy") for name in _sets(folder)}
    for name in SETS[:2]:
        if len(readings[name]) != held_out:
            raise WeightsError(
                f"{folder / name}.npy: {len(readings[name])} rows, needed {held_out}, one per held-out caption"
            )
    return JudgeFiles(kinds, colours, captions, held_out, readings)


def judge_contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of the folder by its name. Raises WeightsError if one is missing, damaged or malformed."""
    read_judge(folder)
    found = {}
    for name in ("judge.json", NETWORK, "captions.txt", "metrics.json", *(f"{name}.npy" for name in _sets(folder))):
        try:
            found[name] = read_file(folder / name)
        except OSError as error:
            raise WeightsError(f"{folder / name}: cannot be read: {reason(error)}") from None
    return found


def read_captions(folder: Path) -> tuple[tuple[str, ...], int]:
    """Return the lines of captions.txt and the number of its first lines that are of held-out photographs. Raises WeightsError."""
    path = folder / "captions.txt"
    try:
        found = tuple(read_file(path).decode().splitlines())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None
    if not found or len(set(found)) != len(found) or not all(found):
        raise WeightsError(f"{path}: must hold captions, one per line and all different")
    held_out = _json(folder / "judge.json").get("held_out")
    if type(held_out) is not int or not 0 < held_out <= len(found):
        raise WeightsError(f"{folder / 'judge.json'}: held_out must be 1 to {len(found)}, the captions, got {held_out}")
    return found, held_out


def draw_captions(captions: Sequence[str], held_out: int, seed: int, count: int) -> list[str]:
    """Return `count` different captions, or all if there are fewer.

    Captions of held-out photographs come first, then the others; both groups are shuffled by the seed.
    """
    rng = stream(seed, "captions.photos")
    first, others = rng.permutation(held_out), held_out + rng.permutation(len(captions) - held_out)
    return [captions[index] for index in np.concatenate([first, others])[:count]]


def _sets(folder: Path) -> list[str]:
    """Return the names of the folder's sets of readings."""
    return [name for name in SETS if name not in NEWER or (folder / f"{name}.npy").is_file()]


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: must hold a mapping, found {type(found).__name__}")
    return found


def _texts(found: object, path: Path, key: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
        raise WeightsError(f"{path}: {key} must be a list of texts")
    return tuple(found)


def _readings(path: Path) -> np.ndarray:
    try:
        # Mapped first: a damaged header with a huge shape then allocates nothing.
        found: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None
    except Exception as error:  # a damaged header can raise anything
        raise WeightsError(f"{path}: damaged ({type(error).__name__})") from None
    if found.dtype != READING_DTYPE or found.ndim != 1 or not np.isfinite(found["features"]).all():
        raise WeightsError(f"{path}: must hold readings of the photo network, found {found.dtype} {list(found.shape)}")
    return np.array(found)

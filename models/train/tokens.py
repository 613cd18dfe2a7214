"""Cached tokens of scenes, on which the autoregressive stages are trained.

The cache has parts of 512 scenes under `cache_dir/<tokenizer>-seed<seed>/`, so an interrupted run continues and a
larger count only adds parts. A part depends only on the tokenizer's weights, the seed and its number.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from models import scenes
from models.train.kept import load_array, save_array
from models.train.tokenizer import scene_images
from models.vq import VQModel, load_vq
from simulator.core.errors import DataError
from simulator.core.files import read_file, write_atomically

PART_SCENES = 512
_BATCH_SCENES = 32  # fixed: floating point may differ between batch sizes


@dataclass(frozen=True)
class SceneTokens:
    """Tokens and captions of scenes or images: row i of `codes`, uint16 [N, T] in raster order, has the caption `captions[i]`."""

    codes: np.ndarray
    captions: list[str]


def scene_tokens(tokenizer: Path, seed: int, count: int, cache_dir: Path) -> SceneTokens:
    """Return tokens and captions of scenes 0 .. count-1 of `seed`; missing parts are computed and added to `cache_dir`."""
    weights = hashlib.blake2b(Path(tokenizer).read_bytes(), digest_size=6).hexdigest()
    folder = cache_dir / f"{weights}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(-(-count // PART_SCENES))
    missing = [part for part in parts if not _part_path(folder, part).exists()]
    if missing:
        model = load_vq(tokenizer)
        for part in track(missing, description=f"tokens of seed {seed}", console=Console(stderr=True)):
            _write_part(model, seed, part, folder)
    read = [_read_part(folder, part) for part in parts]
    captions = [caption for part in read for caption in part.captions]
    return SceneTokens(np.concatenate([part.codes for part in read])[:count], captions[:count])


def _read_part(folder: Path, part: int) -> SceneTokens:
    """Read a part. Raises DataError if its files are damaged."""
    codes = load_array(_part_path(folder, part), np.uint16, (PART_SCENES, None))
    path = _captions_path(folder, part)
    try:
        captions = json.loads(read_file(path))
    except (ValueError, OSError, RecursionError):
        captions = None
    if not isinstance(captions, list) or len(captions) != len(codes) or not all(isinstance(c, str) for c in captions):
        raise DataError(f"{path}: damaged; delete {folder}, and it is made again")
    return SceneTokens(codes, captions)


def _write_part(model: VQModel, seed: int, part: int, folder: Path) -> None:
    first = part * PART_SCENES
    starts = range(first, first + PART_SCENES, _BATCH_SCENES)
    with torch.inference_mode():
        codes = torch.cat([model.encode_codes(scene_images(seed, start, _BATCH_SCENES)) for start in starts])
    captions = [scenes.scene(seed, index).caption for index in range(first, first + PART_SCENES)]
    write_atomically(_captions_path(folder, part), json.dumps(captions, indent=0).encode())
    # The codes are written last and atomically: if their file exists, the part is complete.
    save_array(_part_path(folder, part), codes.numpy().astype(np.uint16))


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npy"


def _captions_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.json"

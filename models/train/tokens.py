"""Scenes as tokens, computed once and kept: what the autoregressive stages are trained on.

Kept in parts of 512 scenes under `cache_dir/<tokenizer>-seed<seed>/`, so that an interrupted run goes on where it was and a
larger count only adds parts. A part depends on the tokenizer's weights, the seed and its number alone.

    cd train-runs/scenes && python -m models.train.tokens tokenizer/tokenizer.safetensors tokens --seed 1 --count 20000
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from models import scenes
from models.train.tokenizer import scene_images
from models.vq import VQModel, load_vq

PART_SCENES = 512
_BATCH_SCENES = 32  # fixed: floating point may differ between batch sizes


@dataclass(frozen=True)
class SceneTokens:
    """Row i of `codes`, uint16 [N, T] in raster order, is scene (or image) i; `captions[i]` is its caption."""

    codes: np.ndarray
    captions: list[str]


def scene_tokens(
    tokenizer: Path, seed: int, count: int, cache_dir: Path, *, console: Console | None = None
) -> SceneTokens:
    """Tokens and captions of scenes 0 .. count-1 of `seed`; parts that `cache_dir` lacks are computed and added to it."""
    weights = hashlib.blake2b(Path(tokenizer).read_bytes(), digest_size=6).hexdigest()
    folder = cache_dir / f"{weights}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(-(-count // PART_SCENES))
    missing = [part for part in parts if not _part_path(folder, part).exists()]
    if missing:
        model = load_vq(tokenizer)
        for part in track(missing, description=f"tokens of seed {seed}", console=console or Console(stderr=True)):
            _write_part(model, seed, part, folder)
    codes = np.concatenate([np.load(_part_path(folder, part)) for part in parts])[:count]
    captions = [caption for part in parts for caption in json.loads(_captions_path(folder, part).read_text())][:count]
    return SceneTokens(codes, captions)


def _write_part(model: VQModel, seed: int, part: int, folder: Path) -> None:
    first = part * PART_SCENES
    starts = range(first, first + PART_SCENES, _BATCH_SCENES)
    with torch.inference_mode():
        codes = torch.cat([model.encode_codes(scene_images(seed, start, _BATCH_SCENES)) for start in starts])
    captions = [scenes.scene(seed, index).caption for index in range(first, first + PART_SCENES)]
    _captions_path(folder, part).write_text(json.dumps(captions, indent=0))
    # The codes come last, and whole or not at all: where they are, the part is complete.
    temporary = folder / f"part-{part:05d}.tmp.npy"
    np.save(temporary, codes.numpy().astype(np.uint16))
    os.replace(temporary, _part_path(folder, part))


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.npy"


def _captions_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Encode scenes to tokens.")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("cache_dir", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    tokens = scene_tokens(arguments.tokenizer, arguments.seed, arguments.count, arguments.cache_dir)
    print(f"{tokens.codes.shape[0]} scenes, {len(np.unique(tokens.codes))} codes in use")


if __name__ == "__main__":
    main()

"""Token sequences of the evaluation: decoded by the cloud, or encoded from real scenes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from models import scenes
from models.pair import Pair
from models.recording import Models, recorder_of
from models.vq import from_uint8
from simulator.core.errors import CiarSimError
from simulator.experiment.plan import session_specs
from simulator.protocol.methods import BaseSettings, Decoding

Progress = Callable[[str, int, int], None]


def distinct_scenes(seed: int, count: int) -> list[int]:
    """Return the indices of the first `count` scenes of a seed with different captions."""
    seen: set[str] = set()
    indices: list[int] = []
    index = 0
    while len(indices) < count:
        caption = scenes.scene(seed, index).caption
        if caption not in seen:
            seen.add(caption)
            indices.append(index)
        index += 1
    return indices


def generated(
    pair: Models, seed: int, captions: Sequence[str], decoding: Decoding, progress: Progress, max_batch: int = 64
) -> Tensor:
    """Return tokens int64 [N, T] of distinct captions decoded by the method `base`."""
    specs = session_specs(pair.manifest, "base", BaseSettings.model_validate({}), decoding, captions, seed)
    recorder = recorder_of(
        pair, max_batch, lambda finished, sessions, decided, total: progress("cloud decodes", decided, total)
    )
    tokens = {spec.prompt: recording.tokens for spec, recording in recorder.record(specs)}
    return torch.from_numpy(np.stack([tokens[caption] for caption in captions]).astype(np.int64))


@torch.inference_mode()
def encoded(pair: Pair, seed: int, indices: Sequence[int]) -> Tensor:
    """Return tokens int64 [N, T] of real scenes, averaged down to the pair's image size if that is smaller. Raises CiarSimError."""
    size = pair.manifest.image_size
    if scenes.IMAGE_SIZE % size:
        raise CiarSimError(f"scenes of {scenes.IMAGE_SIZE} pixels cannot be shrunk to the pair's {size}")
    times = scenes.IMAGE_SIZE // size
    rows = []
    for index in indices:
        image = scenes.image(seed, index).reshape(size, times, size, times, 3).mean((1, 3)).astype(np.uint8)
        pixels = from_uint8(torch.from_numpy(image).unsqueeze(0)).to(
            pair.torch_device, next(pair.tokenizer.parameters()).dtype
        )
        rows.append(pair.tokenizer.encode_codes(pixels))
    return torch.cat(rows).cpu()


def token_regions(scene: scenes.Scene, grid: int) -> np.ndarray:
    """Return the region of each token's square of the image, int [grid * grid].

    It is `border` if any pixel of the square lies within 2 pixels of a visible outline, else the region of most of its pixels.
    """
    side = scenes.IMAGE_SIZE // grid
    cells = (
        scenes.region_map(scene).reshape(grid, side, grid, side).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    )  # [T, pixels]
    most = np.where((cells == scenes.OBJECT).sum(1) * 2 > cells.shape[1], scenes.OBJECT, scenes.BACKGROUND)
    return np.where((cells == scenes.BORDER).any(1), scenes.BORDER, most)

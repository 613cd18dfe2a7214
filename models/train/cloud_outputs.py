"""Training data for distillation, cached in files: tokens of images decoded by a pair's cloud, and the cloud's hidden states.

The cloud runs once; the device is then distilled on its outputs for many steps. A part is a file of `PART_IMAGES`
images in a folder named by a digest of everything it depends on. Existing parts are reused, so decoding can be
interrupted at any time.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from models.pair import Pair
from models.recorder import Recorder
from models.text import left_pad
from models.train.inputs import Inputs, digest_of_bytes
from models.train.order import shuffled_indices
from models.train.sequences import Batch, own_and_guided
from simulator.core.errors import DataError, WeightsError
from simulator.core.files import write_atomically
from simulator.protocol.methods import METHODS, Decoding
from simulator.protocol.recording import SessionSpec

PART_IMAGES = 32
CHUNK = 8  # sequences per teacher-forced pass of the cloud
HELD_OUT = 16  # one image in HELD_OUT is held out
Progress = Callable[[int, int], None]


class CloudOutputs:
    """Images decoded by the cloud alone, in batches keyed by (seed, stage, step).

    Args:
        pair: pair whose cloud decodes.
        captions: image i has caption i modulo their number; each repetition of a caption uses the next seed.
        images: number of images, rounded up to a multiple of `PART_IMAGES`.
        decoding: decoding settings of the cloud.
        seed: seed of the images and of the order of the batches.
        folder: parent of the folder of the parts.
        progress: called with (parts made, parts).
        max_batch: images decoded at once.

    Raises:
        PromptError: the pair cannot encode a caption.
        WeightsError: hidden states of the cloud exceed the range of float16.
    """

    def __init__(
        self,
        pair: Pair,
        captions: Sequence[str],
        images: int,
        decoding: Decoding,
        seed: int,
        folder: Path,
        progress: Progress = lambda made, parts: None,
        max_batch: int = PART_IMAGES,
    ) -> None:
        self.pair, self.decoding, self.seed, self.max_batch = pair, decoding, seed, max_batch
        self.parts = -(-images // PART_IMAGES)
        self.images = self.parts * PART_IMAGES
        # Repetitions of a caption used to share one image. Lists without repetitions keep their digest.
        rule = ["a seed per repetition"] if len(set(captions)) < len(captions) else []
        told = json.dumps([pair.manifest.weights_hash, decoding.model_dump(mode="json"), list(captions), seed, *rule])
        self.digest = digest_of_bytes((told.encode(),))
        self.folder = folder / hashlib.blake2b(told.encode(), digest_size=12).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        prompts = self._prompts(captions)
        for part in range(self.parts):
            if not self._path(part).exists():
                self._make(part, prompts[part * PART_IMAGES : (part + 1) * PART_IMAGES])
            progress(part + 1, self.parts)

    def inputs(self) -> Inputs:
        """Return the inputs of weights trained on these images, see `models.train.inputs`."""
        return {"cloud outputs": self.digest, "images": self.images}

    def batch(self, stage: str, step: int, size: int, null_captions: float = 0.0) -> Batch:
        """Return the training batch of a step. `null_captions` must be 0: the cloud's states depend on the captions."""
        assert null_captions == 0
        return self.gather(self._order(stage, step, size))

    def with_states(self, stage: str, step: int, size: int) -> tuple[Batch, Tensor]:
        """Return the batch of a step and the cloud's guided states that predict its tokens, float32 [B, T, D]."""
        index = self._order(stage, step, size)
        return self.gather(index), self.states(index)

    def held_out(self, size: int, most: int) -> Iterator[np.ndarray]:
        """Yield indices of at most `most` held-out images, `size` at a time."""
        index = np.arange(self._training, self.images)[:most]
        for first in range(0, len(index), size):
            yield index[first : first + size]

    def gather(self, index: np.ndarray) -> Batch:
        """Return the tokens and captions of images by index."""
        read = [self._read(int(i)) for i in index]
        padded = [
            left_pad(torch.from_numpy(rows.astype(np.float32)), self.pair.manifest.caption_slots) for _, rows in read
        ]
        tokens = torch.from_numpy(np.stack([codes for codes, _ in read]).astype(np.int64))  # [B, T]
        caption, mask = (torch.stack(side) for side in zip(*padded, strict=True))
        null = torch.zeros(len(index), dtype=torch.bool)
        return Batch(tokens, caption, mask, null, torch.zeros(len(index), 3, 0, dtype=torch.long))

    def states(self, index: np.ndarray) -> Tensor:
        """Return the cloud's guided states of images by index, float32 [B, T, D]."""
        found = [_open(self._path(i // PART_IMAGES)).get_slice("states")[i % PART_IMAGES] for i in map(int, index)]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    @property
    def _training(self) -> int:
        """Number of training images; the images after them are held out."""
        return self.images - max(self.images // HELD_OUT, 1)

    def _order(self, stage: str, step: int, size: int) -> np.ndarray:
        return shuffled_indices(self.seed, f"train.{stage}.order", step * size, size, self._training)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"

    def _read(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens [T] and caption rows [n, caption_dim] of an image. Raises DataError for a damaged file."""
        path, place = self._path(image // PART_IMAGES), image % PART_IMAGES
        try:
            file = _open(path)
            ends = np.cumsum(file.get_tensor("counts"))
            codes: np.ndarray = file.get_slice("tokens")[place]
            rows: np.ndarray = file.get_slice("rows")[int(ends[place - 1]) if place else 0 : int(ends[place])]
        except (SafetensorError, OSError, IndexError) as error:
            raise DataError(f"{path}: damaged; delete it, and it is made again") from error
        return codes, rows

    def _prompts(self, captions: Sequence[str]) -> list[tuple[str, int]]:
        """Return caption and seed of each image, all pairs different."""
        seen: Counter[str] = Counter()
        prompts = []
        for caption in islice(cycle(captions), self.images):
            prompts.append((caption, self.seed + seen[caption]))
            seen[caption] += 1
        return prompts

    def _make(self, part: int, prompts: Sequence[tuple[str, int]]) -> None:
        """Decode the images of a part, then teacher-force them through the cloud for its hidden states."""
        kind, pair = METHODS["base"], self.pair
        settings = kind.settings()
        specs = [
            SessionSpec(
                weights=pair.manifest.weights_hash,
                method="base",
                revision=kind.revision_of(settings),
                settings=settings.model_dump(),
                decoding=self.decoding.model_dump(),
                prompt=caption,
                seed=seed,
            )
            for caption, seed in prompts
        ]
        found = {spec.key(): recording.tokens for spec, recording in Recorder(pair, self.max_batch).record(specs)}
        codes = np.stack([found[spec.key()] for spec in specs])  # [n, T]
        rows = [pair.text.encode(spec.prompt).float().cpu() for spec in specs]
        states = []
        for first in range(0, PART_IMAGES, CHUNK):
            some = slice(first, first + CHUNK)
            padded = [left_pad(one, pair.manifest.caption_slots) for one in rows[some]]
            caption, mask = (torch.stack(side).to(pair.torch_device) for side in zip(*padded, strict=True))
            tokens = torch.from_numpy(codes[some].astype(np.int64)).to(pair.torch_device)
            null = torch.zeros(len(tokens), dtype=torch.bool, device=pair.torch_device)
            batch = Batch(tokens, caption, mask, null, tokens.new_zeros(len(tokens), 3, 0))
            with torch.no_grad():
                states.append(own_and_guided(pair.cloud, batch, tokens, self.decoding.guidance)[1].half().cpu())
        content = {
            "tokens": codes,
            "states": torch.cat(states).numpy(),
            "rows": np.concatenate([one.half().numpy() for one in rows]),
            "counts": np.array([len(one) for one in rows], np.int32),
        }
        if not (np.isfinite(content["states"]).all() and np.isfinite(content["rows"]).all()):
            raise WeightsError(f"the pair {pair.manifest.name}: states of its cloud do not fit half precision")
        write_atomically(self._path(part), save(content))


@lru_cache(maxsize=4096)
def _open(path: Path) -> Any:
    """Open a part and keep it open; tensors are read from the file on access."""
    return safe_open(path, framework="np")

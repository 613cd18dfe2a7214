"""Batches of token sequences with captions, and the settings that all sequence stages share."""

import json
import math
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.attention import at_least_float32
from models.sampling import guide
from models.scenes import WORDS
from models.text import WordEncoder, left_pad
from models.train.data import DataConfig
from models.train.image_sets import load_images
from models.train.inputs import Inputs, digest_of, digest_of_bytes
from models.train.layout import layout_of
from models.train.loop import MOST_IMAGES, LoopSettings, TrainResult, moved
from models.train.order import evenly_spread, shuffled_indices
from models.train.tokens import SceneTokens, scene_tokens
from models.transformer import Transformer
from models.vq import load_vq
from simulator.core.errors import DataError
from simulator.core.files import write_atomically
from simulator.core.part import Part
from simulator.core.rng import stream


@dataclass(frozen=True)
class Batch:
    """Token sequences with their captions.

    Attributes:
        tokens: int64 [B, T].
        caption: float32 [B, caption_slots, caption_dim], left padded.
        mask: bool [B, caption_slots], True where a caption row is valid.
        null: bool [B], True where training hides the caption.
        layout: int64 [B, 3, T], the object that the caption puts at each cell, see `layout_of`.
    """

    tokens: Tensor
    caption: Tensor
    mask: Tensor
    null: Tensor
    layout: Tensor

    def caption_for(self, model: Transformer) -> Tensor:
        """Captions [B, caption_slots, caption_dim] for `model`, with its null caption where `null` is True."""
        # To ask a GPU is to wait for all that it still has to do.
        if not self.null.is_cuda and not bool(self.null.any()):
            return self.caption
        return torch.where(self.null[:, None, None], model.null_caption(len(self.null)).to(self.caption), self.caption)


MOST_SCENES = 10**8
MOST_HELD_OUT = 512  # maximum number of sequences in the metrics of device, phi and drafter


class Scenes(Part):
    """Scenes of a stage: the first `train` of `train_seed` for training, the first `held_out` of `held_out_seed` for its metrics."""

    train: int = Field(gt=0, le=MOST_SCENES)
    held_out: int = Field(default=256, gt=0, le=MOST_SCENES)
    train_seed: int = Field(default=1, ge=0, lt=2**63)
    held_out_seed: int = Field(default=2, ge=0, lt=2**63)


class Sequences:
    """Scenes, or images of a data set, as tokens and captions, in batches keyed by (seed, stage, step).

    Args:
        folder: training folder; tokenizer/tokenizer.safetensors makes the tokens, tokens/ caches them.
        scenes: scenes to read where `source` is None.
        source: data set to read instead of scenes.
        seed: keys the order of the batches and the hidden captions.
    """

    def __init__(self, folder: Path, scenes: Scenes | None, source: DataConfig | None, seed: int) -> None:
        tokenizer, cache = folder / "tokenizer" / "tokenizer.safetensors", folder / "tokens"
        if source is None:
            assert scenes is not None  # `TrainingFile` checks that one of the two is given
            self.train = scene_tokens(tokenizer, scenes.train_seed, scenes.train, cache)
            self.held_out = scene_tokens(tokenizer, scenes.held_out_seed, scenes.held_out, cache)
            self.text = WordEncoder.build(WORDS)
        else:
            data = load_images(source, folder)
            self.text = data.text
            self.train = SceneTokens(*data.tokens("train", tokenizer, cache))
            self.held_out = SceneTokens(*data.tokens("held-out", tokenizer, cache))
        self.codebook = load_vq(tokenizer).quantize.rows().detach()  # float32 [V, C], unit rows
        for codes in (self.train.codes, self.held_out.codes):
            if int(codes.max()) >= len(self.codebook):
                found = f"code {int(codes.max())} of a codebook of {len(self.codebook)}"
                raise DataError(f"{cache}: tokens are damaged ({found}); delete this folder, and they are made again")
        self.seed = seed

    def inputs(self) -> Inputs:
        """Return a digest of the training sequences, their captions and the caption encoder, see `models.train.inputs`."""
        captions = "\n".join(self.train.captions).encode()
        encoder = digest_of(self.text.state())
        return {"training data": digest_of_bytes((self.train.codes.tobytes(), captions, encoder.encode()))}

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        """Return the training batch of a step: `size` sequences from step * size of the shuffled order (`shuffled_indices`)."""
        index = shuffled_indices(self.seed, f"train.{stage}.order", step * size, size, len(self.train.codes))
        null = stream(self.seed, f"train.{stage}.null", step).random(size) < null_captions
        return self._gather(self.train, index, null)

    def with_training(self, stage: str, codes: np.ndarray) -> "Sequences":
        """Return a copy with other training sequences, uint16 [N, T]; their captions are the first N of `batch(stage, ...)`."""
        index = shuffled_indices(self.seed, f"train.{stage}.order", 0, len(codes), len(self.train.codes))
        other = copy(self)
        other.train = SceneTokens(codes, [self.train.captions[i] for i in index])
        return other

    def held_out_batches(self, size: int, most: int | None = None, beside: nn.Module | None = None) -> Iterator[Batch]:
        """Yield every held-out sequence once, in order, or `most` of them (`evenly_spread`), on the torch device of `beside`."""
        where = "cpu" if beside is None else next(beside.parameters()).device
        chosen = evenly_spread(len(self.held_out.codes), most)
        for first in range(0, len(chosen), size):
            index = chosen[first : first + size]
            yield moved(self._gather(self.held_out, index, np.zeros(len(index), dtype=bool)), where)

    def _gather(self, source: SceneTokens, index: np.ndarray, null: np.ndarray) -> Batch:
        padded = [left_pad(self.text.encode(source.captions[i]), self.text.slots) for i in index]
        tokens = torch.from_numpy(source.codes[index].astype(np.int64))  # [B, T]
        caption = torch.stack([rows for rows, _ in padded])  # [B, slots, caption_dim]
        mask = torch.stack([valid for _, valid in padded])  # [B, slots]
        grid = math.isqrt(tokens.shape[1])
        layout = torch.stack([layout_of(source.captions[i], grid).flatten(1) for i in index])  # [B, 3, T]
        return Batch(tokens, caption, mask, torch.from_numpy(null), layout)


class SequenceSettings(Part):
    """Settings common to all stages that read sequences.

    Attributes:
        scenes: scenes to read, unless the training file names `data`.
        null_captions: share of captions replaced by the null caption.
        compile: compile the step with torch.compile (needs a C++ compiler).
    """

    training: LoopSettings
    scenes: Scenes | None = None
    batch_images: int = Field(default=16, gt=0, le=MOST_IMAGES)
    null_captions: float = Field(default=0.1, ge=0, le=1)
    compile: bool = False


def own_and_guided(
    model: Transformer, batch: Batch, tokens: Tensor, guidance: float = 1.0, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return conditional and guided hidden states, each [B, T, D]; row t predicts token t from the tokens before it.

    The output head is linear, so guidance of hidden states equals guidance of logits.

    Args:
        tokens: int [B, T].
        guidance: scale; 1 returns the conditional states twice.
        added: [B, T, D], added to the token embeddings, or None.
    """
    before = None if added is None else added[:, :-1]

    def given(caption: Tensor, mask: Tensor) -> Tensor:
        return model.hidden(tokens[:, :-1], caption, mask, before)[:, model.config.caption_slots - 1 :]

    own = given(batch.caption_for(model), batch.mask)
    if guidance == 1:
        return own, own
    null = given(*model.unconditional(batch.caption, batch.mask))
    return own, guide(at_least_float32(own), at_least_float32(null), guidance)


def nats_per_token(model: Transformer, tokens: Tensor, caption: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy per token, a scalar in nats.

    Args:
        tokens: int [B, T].
        caption: [B, caption_slots, caption_dim].
        mask: bool [B, caption_slots].
    """
    logits, _ = model(tokens[:, :-1], caption, mask)  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def write_metrics(out_dir: Path, metrics: Mapping[str, Any], result: TrainResult) -> None:
    """Write `metrics` with the number of steps and the minutes to metrics.json."""
    values = {**metrics, "steps": result.steps, "minutes": round(result.minutes, 1)}
    write_atomically(out_dir / "metrics.json", (json.dumps(values, indent=1) + "\n").encode())

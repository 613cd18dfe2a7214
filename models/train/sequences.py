"""Token sequences with captions in batches, and what the settings of all sequence stages share."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.sampling import guide
from models.scenes import WORDS
from models.text import WordEncoder, left_pad
from models.train.data import DataConfig, data_tokens, load_data
from models.train.layout import layout_of
from models.train.loop import LoopSettings, TrainResult
from models.train.tokens import SceneTokens, scene_tokens
from models.transformer import Transformer, at_least_float32
from models.vq import load_vq
from simulator.core.part import Part
from simulator.core.rng import stream


@dataclass(frozen=True)
class Batch:
    """Token sequences with their captions. tokens: int64 [B, T]. caption: float32 [B, caption_slots, caption_dim], left
    padded.

    mask: bool [B, caption_slots], True where a caption row is valid. null: bool [B], True where training hides the
    caption. layout: int64 [B, 3, T], the object that the caption puts at each cell, see `layout_of`.
    """

    tokens: Tensor
    caption: Tensor
    mask: Tensor
    null: Tensor
    layout: Tensor

    def caption_for(self, model: Transformer) -> Tensor:
        """The captions as `model` should see them: its own null caption where `null` says so, under the same mask."""
        return torch.where(self.null[:, None, None], model.null_caption(len(self.null)).to(self.caption), self.caption)


class Scenes(Part):
    """Which scenes a stage reads: the first `train` of one seed, and the first `held_out` of another."""

    train: int = Field(gt=0)
    held_out: int = Field(default=256, gt=0)
    train_seed: int = Field(default=1, ge=0)
    held_out_seed: int = Field(default=2, ge=0)


class Sequences:
    """Scenes, or pictures of a data set, as tokens and captions, in batches keyed by (seed, stage, step).

    folder: a training folder; its tokenizer/tokenizer.safetensors makes the tokens, its tokens/ keeps them. pictures: read in place of
    scenes, where given.
    """

    def __init__(self, folder: Path, scenes: Scenes | None, pictures: DataConfig | None, seed: int) -> None:
        tokenizer, cache = folder / "tokenizer" / "tokenizer.safetensors", folder / "tokens"
        if pictures is None:
            assert scenes is not None  # a training file names one of both
            self.train = scene_tokens(tokenizer, scenes.train_seed, scenes.train, cache)
            self.held_out = scene_tokens(tokenizer, scenes.held_out_seed, scenes.held_out, cache)
            self.text = WordEncoder.build(WORDS)
        else:
            data = load_data(pictures)
            self.text = data.text
            self.train = SceneTokens(*data_tokens(tokenizer, data.train, data.image_size, cache))
            self.held_out = SceneTokens(*data_tokens(tokenizer, data.held_out, data.image_size, cache))
        self.codebook = load_vq(tokenizer).quantize.rows().detach()  # float32 [V, C], unit rows
        self.seed = seed

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        """Sequences step * size onwards of an endless shuffled reading of the training scenes."""
        count = len(self.train.codes)
        epoch, place = np.divmod(np.arange(step * size, (step + 1) * size), count)
        orders = {
            int(e): stream(self.seed, f"train.{stage}.order", int(e)).permutation(count) for e in np.unique(epoch)
        }
        index = np.array([orders[int(e)][at] for e, at in zip(epoch, place, strict=True)])
        null = stream(self.seed, f"train.{stage}.null", step).random(size) < null_captions
        return self._gather(self.train, index, null)

    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """Every held-out scene once, in order, captions shown."""
        for first in range(0, len(self.held_out.codes), size):
            index = np.arange(first, min(first + size, len(self.held_out.codes)))
            yield self._gather(self.held_out, index, np.zeros(len(index), dtype=bool))

    def _gather(self, source: SceneTokens, index: np.ndarray, null: np.ndarray) -> Batch:
        padded = [left_pad(self.text.encode(source.captions[i]), self.text.slots) for i in index]
        tokens = torch.from_numpy(source.codes[index].astype(np.int64))  # [B, T]
        caption = torch.stack([rows for rows, _ in padded])  # [B, slots, caption_dim]
        mask = torch.stack([valid for _, valid in padded])  # [B, slots]
        grid = math.isqrt(tokens.shape[1])
        layout = torch.stack([layout_of(source.captions[i], grid).flatten(1) for i in index])  # [B, 3, T]
        return Batch(tokens, caption, mask, torch.from_numpy(null), layout)


class SequenceSettings(Part):
    """What the mappings of all stages that read sequences hold.

    scenes: what is read, unless the file's `data` says so. null_captions: share of the captions that are replaced by the null caption.
    compile: let torch.compile fuse the step (needs a C++ compiler).
    """

    training: LoopSettings
    scenes: Scenes | None = None
    batch_images: int = Field(default=16, gt=0)
    null_captions: float = Field(default=0.1, ge=0, le=1)
    compile: bool = False


def own_and_guided(
    model: Transformer, batch: Batch, tokens: Tensor, guidance: float = 1.0, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden states that predict each token of int [B, T], given those before it: as they are, and guided. Each [B, T, D].

    added: [B, T, D], put beside the tokens' embeddings. The head is linear, so guidance of hidden states is guidance of logits.
    """
    before = None if added is None else added[:, :-1]

    def given(caption: Tensor) -> Tensor:
        return model.hidden(tokens[:, :-1], caption, batch.mask, before)[:, model.config.caption_slots - 1 :]

    own = given(batch.caption_for(model))
    if guidance == 1:
        return own, own
    null = given(model.null_caption(len(tokens)).to(batch.caption))
    return own, guide(at_least_float32(own), at_least_float32(null), guidance)


def nats_per_token(model: Transformer, tokens: Tensor, caption: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of tokens int [B, T] given captions [B, caption_slots, caption_dim] and their mask, a scalar."""
    logits, _ = model(tokens[:, :-1], caption, mask)  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def write_metrics(out_dir: Path, metrics: Mapping[str, Any], result: TrainResult) -> None:
    """metrics.json beside the weights: how good they are and what they took."""
    values = {**metrics, "steps": result.steps, "minutes": round(result.minutes, 1)}
    (out_dir / "metrics.json").write_text(json.dumps(values, indent=1) + "\n")

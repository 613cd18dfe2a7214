"""Sequences that device and cloud decode together with CIAR's default gate, as in deployment.

Training on them is on-policy distillation (Agarwal et al. 2024, "On-policy distillation of language models"; earlier DAgger, Ross et al.
2011): the target is the teacher's distribution given the decoded prefix, regardless of which model chose its tokens.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from torch import Tensor

from models.attention import at_least_float32
from models.device import DeviceModel
from models.kv_cache import KVCache
from models.methods.scores import all_scores
from models.sampling import greedy, guide, sample
from models.train.inputs import digest_of
from models.train.kept import load_array, save_array
from models.train.loop import moved
from models.train.sequences import Batch, Sequences, own_and_guided
from models.transformer import Transformer
from simulator.core.part import Part
from simulator.core.rng import stream
from simulator.core.settings import refuse
from simulator.protocol.methods import CiarSettings, prefix_length
from simulator.protocol.recording import SCORES

PART_SEQUENCES = 64  # decoded together
LOCAL = ("sampled", "greedy")
STREAM = "rollouts"  # keys the order in which captions are read
DEPLOYED = CiarSettings.model_validate({})  # defaults of the method: score, bounds and prefix


class Calls(Part):
    """Range of the share of tokens that the cloud decides, prefix included; drawn uniformly for each batch of `PART_SEQUENCES`."""

    low: float = Field(default=0.3, ge=0, le=1)
    high: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Calls":
        if self.high < self.low:
            refuse(f"must be >= low ({self.low:g}), got {self.high:g}", "high")
        return self


class Rollouts(Part):
    """Settings of the decoded sequences.

    Attributes:
        sequences: number of sequences, one per training caption; rounded up to a multiple of `PART_SEQUENCES`.
        calls: share of tokens that the cloud decides.
        local: how the device picks its tokens; `both` alternates between batches.
    """

    sequences: int = Field(default=512, gt=0, le=10**8)
    calls: Calls = Calls()
    local: Literal["sampled", "greedy", "both"] = "both"


@dataclass(frozen=True)
class Rollout:
    """Sequences that device and cloud decoded together.

    Attributes:
        tokens: int64 [B, T].
        local: bool [B, T], True where the device decided.
    """

    tokens: Tensor
    local: Tensor


class _Model:
    """Incremental decoding of B sequences by one model; with guidance, B more rows have the null caption."""

    def __init__(self, model: Transformer, batch: Batch, guidance: float) -> None:
        self.model, self.guidance, self.length = model, guidance, 0
        halves = [(batch.caption_for(model), batch.mask)]
        if guidance > 1:
            halves.append(model.unconditional(batch.caption, batch.mask))
        self.copies = len(halves)
        rows, masks = (torch.cat(both) for both in zip(*halves, strict=True))
        weight = model.output.weight
        self.cache = KVCache(model.config, len(rows), weight.device, weight.dtype)
        self.cache.caption_mask.copy_(masks)
        self._read(model.embed_caption(rows))

    def feed(self, tokens: Tensor) -> None:
        """Append one token to every sequence, int [B]."""
        self._read(self.model.embed_tokens(tokens.repeat(self.copies)).unsqueeze(1))

    def _read(self, embeds: Tensor) -> None:
        rows, count = torch.arange(len(embeds)), embeds.shape[1]
        start, new = torch.full_like(rows, self.length), torch.full_like(rows, count)
        hidden = self.model.step(self.cache, rows, start, embeds, new)[:, -1]  # [copies * B, D]
        self.length += count
        self.own = self.guided = hidden
        if self.copies > 1:
            self.own, null = hidden.chunk(2)
            self.guided = guide(at_least_float32(self.own), at_least_float32(null), self.guidance)


def deployed_scores(device: DeviceModel, hidden: Tensor, guided: Tensor) -> tuple[Tensor, Tensor]:
    """Return the device's logits [..., V] and CIAR's default score [...] of conditional and guided hidden states [..., D]."""
    centre, lower, upper = device.interval(hidden, guided, DEPLOYED.bounds)
    return centre, all_scores(centre, lower, upper)[..., SCORES.index(DEPLOYED.score.replace("-", "_"))]


@torch.no_grad()
def decode(
    device: DeviceModel,
    cloud: Transformer,
    batch: Batch,
    calls: float,
    sampled: bool,
    u: np.ndarray,
    guidance: float = 1.0,
) -> Rollout:
    """Decode the captions of a batch; the cloud samples the prefix and the tokens with the highest scores.

    The threshold at a position is the quantile of the scores that spreads the remaining calls evenly over the remaining
    positions. The scores are those of the positions decoded so far and, for later positions, those on the batch's own
    tokens. The share of calls thus meets `calls`, although scores on decoded tokens are lower.

    Args:
        device: device model in `eval()` mode.
        cloud: cloud model in `eval()` mode.
        batch: captions, and tokens int [B, T] of the same images, whose scores initialise the threshold.
        calls: share of tokens that the cloud decides.
        sampled: whether the device samples its tokens; otherwise it takes the most likely one.
        u: float64 [B, T], uniform draws, one per token.
        guidance: guidance scale of both models.
    """
    length = batch.tokens.shape[1]
    prefix = prefix_length(DEPLOYED.prefix_rate, length)
    left = max(calls * length - prefix, 0.0)  # calls per sequence
    scores = deployed_scores(device, *own_and_guided(device.transformer, batch, batch.tokens, guidance))[1]  # [B, T]
    draws = torch.from_numpy(u).to(scores.device)
    tokens, local = torch.zeros_like(batch.tokens), torch.zeros_like(batch.tokens, dtype=torch.bool)
    near, far = _Model(device.transformer, batch, guidance), _Model(cloud, batch, guidance)
    for t in range(length):
        chosen = sample(far.model.logits(far.guided).softmax(-1), draws[:, t])  # [B]
        if t >= prefix:
            centre, scores[:, t] = deployed_scores(device, near.own, near.guided)
            share = min(max(left, 0.0) / (length - t), 1.0)
            threshold = scores[:, prefix:].quantile(1 - share)
            local[:, t] = (scores[:, t] < threshold) | (share <= 0)
            left -= float((~local[:, t]).float().mean())
            proposed = sample(centre.softmax(-1), draws[:, t]) if sampled else greedy(centre)
            chosen = torch.where(local[:, t], proposed, chosen)
        tokens[:, t] = chosen
        if t + 1 < length:
            near.feed(chosen)
            far.feed(chosen)
    return Rollout(tokens, local)


def rolled_out(
    settings: Rollouts,
    device: DeviceModel,
    cloud: Transformer,
    data: Sequences,
    folder: Path,
    guidance: float = 1.0,
    torch_device: str = "cpu",
) -> Sequences:
    """Return `data` with training sequences that both models decode for its captions.

    The tokens are cached in `folder`, a file per batch, under a digest of everything they depend on.

    Raises:
        DataError: a cached file is damaged.
    """
    rule = [settings.model_dump(exclude={"sequences"}), DEPLOYED.score, DEPLOYED.bounds, DEPLOYED.prefix_rate, guidance]
    text = json.dumps([rule, data.seed, data.inputs(), *(digest_of(model.state_dict()) for model in (device, cloud))])
    made = folder / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    made.mkdir(parents=True, exist_ok=True)
    device, cloud = device.to(torch_device).eval(), cloud.to(torch_device).eval()
    tokens: list[np.ndarray] = []
    parts = range(-(-settings.sequences // PART_SEQUENCES))
    for part in track(parts, description="rollouts", console=Console(stderr=True)):
        path = made / f"part-{part:05d}.npy"
        if not path.exists():
            batch = moved(data.batch(STREAM, part, PART_SEQUENCES, 0.0), torch_device)
            rng = stream(data.seed, "train.rollouts", part)
            calls = float(rng.uniform(settings.calls.low, settings.calls.high))
            local = LOCAL[part % 2] if settings.local == "both" else settings.local
            found = decode(device, cloud, batch, calls, local == "sampled", rng.random(batch.tokens.shape), guidance)
            save_array(path, found.tokens.cpu().numpy().astype(np.uint16))
        tokens.append(load_array(path, np.uint16, (PART_SEQUENCES, cloud.config.tokens)))
    return data.with_training(STREAM, np.concatenate(tokens))

"""Trains the interval projection phi, cloud and device frozen.

Source: CIAR section 3.3; assumption A11. In a token sequence the positions where the device is surest, by the score that CIAR gates by
by default, are replaced by the device's own choice. The cloud then reads E(x) + f^I at those positions and nothing else changes; phi is
trained so that its distributions stay those it has on the unreplaced sequence, KL(original || mixed). How large a share
is replaced is drawn per sequence, so that phi serves every threshold. With `guidance` both models are guided, as when they decode.

That target asks the cloud to disbelieve tokens which are in the image. The other one, the cloud's distribution given the tokens as they
are, needs no training: it is what the cloud says without features, and phi starts at zero. `steps: 0` leaves it there. The metrics
tell what a trained phi gains by the one target and costs by the other.

    ciar-sim train models/scenes.yaml --stage phi
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.device import DeviceModel
from models.pair import load_device, load_transformer, save_model
from models.phi import IntervalProjection
from models.train.data import DataConfig
from models.train.inputs import settings_of, weights_read
from models.train.loop import MOST_IMAGES, MOST_STEPS, LoopSettings, TrainResult, train
from models.train.rollouts import DEPLOYED, PART_SEQUENCES, decode, deployed_scores
from models.train.sequences import (
    MOST_HELD_OUT,
    Batch,
    Sequences,
    SequenceSettings,
    own_and_guided,
    write_metrics,
)
from models.transformer import Transformer
from simulator.core.part import Part
from simulator.core.rng import stream
from simulator.core.settings import refuse

LOCAL_SHARE = 0.7  # of tokens, in the metrics


class Replaced(Part):
    """The share of tokens that the device decides, uniform between both."""

    low: float = Field(default=0.3, ge=0, le=1)
    high: float = Field(default=0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Replaced":
        if self.high < self.low:
            refuse(f"must be >= low ({self.low:g}), got {self.high:g}", "high")
        return self


class PhiLoop(LoopSettings):
    """The mapping under `training:` of `phi:`. `steps: 0` leaves phi zero."""

    steps: int = Field(ge=0, le=MOST_STEPS)


class PhiConfig(SequenceSettings):
    """The mapping under `phi:` of a training file."""

    training: PhiLoop
    batch_images: int = Field(default=8, gt=0, le=MOST_IMAGES)
    bottleneck: int = Field(default=256, gt=0, le=2**16)
    replaced: Replaced = Replaced()
    positions: int = Field(default=128, gt=0, le=2**16)
    guidance: float = Field(default=1.0, ge=1)


@dataclass(frozen=True)
class Mixed:
    """A sequence partly decided by the device.

    Attributes:
        tokens: int64 [B, T].
        local: bool [B, T], True where the device decided.
        hidden: [B, T, D], the device's state from which each token was decided.
        lower: [B, T, V], lower bounds of the interval there.
        upper: [B, T, V], upper bounds.
    """

    tokens: Tensor
    local: Tensor
    hidden: Tensor
    lower: Tensor
    upper: Tensor


@torch.no_grad()
def mix(device: DeviceModel, batch: Batch, share: Tensor, guidance: float = 1.0) -> Mixed:
    """Replace, in each sequence, the share [B] of its tokens that the device is surest of by the device's arg max."""
    hidden, guided = own_and_guided(device.transformer, batch, batch.tokens, guidance)  # each [B, T, D]
    centre, score = deployed_scores(device, hidden, guided)  # [B, T, V], [B, T]
    _, lower, upper = device.interval(hidden, guided, DEPLOYED.bounds)
    rank = score.argsort(-1).argsort(-1)  # 0 = surest
    local = rank < (share * score.shape[-1]).unsqueeze(-1)
    return Mixed(torch.where(local, centre.argmax(-1), batch.tokens), local, hidden, lower, upper)


class Batches(Protocol):
    """What phi is trained on."""

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        """The training batch of a step."""
        ...


class PhiStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: PhiConfig, cloud: Transformer, device: DeviceModel, data: Batches) -> None:
        self.config, self.data = config, data
        self.cloud, self.device = cloud.requires_grad_(False), device.requires_grad_(False)
        torch.manual_seed(int(stream(config.training.seed, "train.phi.init").integers(2**62)))
        self.model: nn.Module = IntervalProjection(cloud.config.dim, cloud.config.vocab_size, config.bottleneck)
        self.mix = torch.compile(mix) if config.compile else mix
        self.log_probs = torch.compile(log_probs) if config.compile else log_probs

    def batch(self, step: int) -> tuple[Batch, Tensor, Tensor]:
        batch = self.data.batch("phi", step, self.config.batch_images, self.config.null_captions)
        rng = stream(self.config.training.seed, "train.phi.mix", step)
        share = rng.uniform(self.config.replaced.low, self.config.replaced.high, size=len(batch.tokens)).astype(
            np.float32
        )
        positions = rng.permutation(batch.tokens.shape[1])[: self.config.positions]
        return batch, torch.from_numpy(share), torch.from_numpy(positions)

    def loss(self, batch: tuple[Batch, Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        sequences, share, positions = batch
        assert isinstance(self.model, IntervalProjection)
        guidance = self.config.guidance
        mixed = self.mix(self.device, sequences, share, guidance)
        with torch.no_grad():
            wanted = self.log_probs(self.cloud, sequences, sequences.tokens, None, positions, guidance)
        found = self.log_probs(self.cloud, sequences, mixed.tokens, features(self.model, mixed), positions, guidance)
        changed = (mixed.tokens != sequences.tokens).float().mean()
        return divergence(wanted, found).mean(), {"changed": changed}


def features(phi: IntervalProjection, mixed: Mixed) -> Tensor:
    """f^I [B, T, D], zero at tokens that the device did not decide (assumption A7)."""
    added: Tensor = phi(mixed.hidden, mixed.lower, mixed.upper)  # [B, T, D]
    return added * mixed.local.unsqueeze(-1)


def log_probs(
    cloud: Transformer, batch: Batch, tokens: Tensor, added: Tensor | None, positions: Tensor, guidance: float = 1.0
) -> Tensor:
    """The cloud's log-distributions of the tokens at `positions` int [P], each given the tokens before it. [B, P,
    V]."""
    _, guided = own_and_guided(cloud, batch, tokens, guidance, added)  # [B, T, D]
    return cloud.logits(guided[:, positions]).log_softmax(-1)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """KL(wanted || found) of log-distributions [..., V] -> [...], nats."""
    return (wanted.exp() * (wanted - found)).sum(-1)


@torch.inference_mode()
def evaluate(
    phi: IntervalProjection, cloud: Transformer, device: DeviceModel, data: Sequences, guidance: float = 1.0
) -> dict[str, float]:
    """What f^I does on held-out sequences, 70 % of whose tokens the device decides, in nats per token.

    Returns:
        A mapping of:
        `kl_nats`, `kl_nats_without_features`: to the cloud's distribution on the unreplaced sequence.
        `nats`, `nats_without_features`: cross-entropy of the image's own tokens where the cloud decides.
        `in_place_kl_nats`: from the cloud's distribution given the same tokens without features, on sequences decoded with the gate.
        `changed`: share of tokens that differ from the image's own.
    """
    rows: list[tuple[float, ...]] = []
    everywhere = torch.arange(cloud.config.tokens)
    for batch in data.held_out_batches(8, MOST_HELD_OUT):
        mixed = mix(device, batch, torch.full((len(batch.tokens),), LOCAL_SHARE), guidance)
        wanted = log_probs(cloud, batch, batch.tokens, None, everywhere, guidance)
        found = [
            log_probs(cloud, batch, mixed.tokens, added, everywhere, guidance) for added in (features(phi, mixed), None)
        ]
        kl = [float(divergence(wanted, case).mean()) for case in found]
        nats = [-float(case.gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)[~mixed.local].mean()) for case in found]
        changed = float((mixed.tokens != batch.tokens).float().mean())
        rows += [(*kl, *nats, changed)] * len(batch.tokens)
    names = ("kl_nats", "kl_nats_without_features", "nats", "nats_without_features", "changed")
    return {
        **dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True)),
        "in_place_kl_nats": in_place(phi, cloud, device, data, guidance),
    }


def in_place(
    phi: IntervalProjection, cloud: Transformer, device: DeviceModel, data: Sequences, guidance: float = 1.0
) -> float:
    """See `evaluate`; on sequences that device and cloud decode for held-out captions, the device sampling its tokens."""
    batch = next(iter(data.held_out_batches(PART_SEQUENCES, PART_SEQUENCES)))
    u = stream(data.seed, "train.phi.gated").random(batch.tokens.shape)
    rollout = decode(device, cloud, batch, 1 - LOCAL_SHARE, True, u, guidance)
    found = []
    for first in range(0, len(u), 8):
        some = slice(first, first + 8)
        part = Batch(*(getattr(batch, field.name)[some] for field in fields(batch)))
        tokens, local = rollout.tokens[some], rollout.local[some]
        hidden, guided = own_and_guided(device.transformer, part, tokens, guidance)  # each [B, T, D]
        _, lower, upper = device.interval(hidden, guided, DEPLOYED.bounds)
        added = features(phi, Mixed(tokens, local, hidden, lower, upper))
        everywhere = torch.arange(tokens.shape[1])
        wanted, given = (
            log_probs(cloud, part, tokens, some_features, everywhere, guidance) for some_features in (None, added)
        )
        found += divergence(wanted, given).mean(-1).tolist()
    return float(np.mean(found))


def run(settings: PhiConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Trains on `source`, or on scenes, into `out_dir`, or resumes; writes phi.safetensors and metrics.json."""
    data = Sequences(out_dir.parent, settings.scenes, source, settings.training.seed)
    cloud = load_transformer(out_dir.parent / "cloud" / "cloud.safetensors")
    device = load_device(out_dir.parent / "device" / "device.safetensors")
    stage = PhiStage(settings, cloud, device, data)
    inputs = {**settings_of(settings), **data.inputs(), **weights_read(out_dir.parent, "phi")}
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device)
    phi = IntervalProjection(cloud.config.dim, cloud.config.vocab_size, settings.bottleneck).eval()
    phi.load_state_dict(result.shipped)
    save_model(out_dir / "phi.safetensors", phi)
    write_metrics(out_dir, evaluate(phi, cloud, device, data, settings.guidance), result)
    return result

"""Training of the interval projection phi; cloud and device are frozen.

Source: CIAR section 3.3; assumption A11. In a token sequence, the positions where the device is surest by CIAR's default score are replaced
by the device's arg max. The cloud reads E(x) + f^I at those positions. phi is trained so that the cloud's distributions stay those on the
original sequence: the loss is KL(original || mixed). The replaced share is drawn per sequence, so that phi serves every threshold. With
`guidance` both models are guided, as in decoding.

This target trains the cloud to disregard tokens that are in the image. The alternative target, the cloud's distribution given the mixed
sequence, needs no training: phi starts at zero, and without features the cloud meets that target exactly. `steps: 0` keeps phi at zero. The
metrics show what a trained phi gains by the first target and loses by the second.

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

LOCAL_SHARE = 0.7  # share of tokens that the device decides in the metrics


class Replaced(Part):
    """Range of the share of tokens that the device decides; the share is drawn uniformly for each sequence."""

    low: float = Field(default=0.3, ge=0, le=1)
    high: float = Field(default=0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> "Replaced":
        if self.high < self.low:
            refuse(f"must be >= low ({self.low:g}), got {self.high:g}", "high")
        return self


class PhiLoop(LoopSettings):
    """The mapping under `training:` of `phi:`. `steps: 0` keeps phi at zero."""

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
        hidden: [B, T, D], the device's conditional hidden state that predicts each token.
        lower: [B, T, V], lower bounds of each token's interval.
        upper: [B, T, V], upper bounds.
    """

    tokens: Tensor
    local: Tensor
    hidden: Tensor
    lower: Tensor
    upper: Tensor


@torch.no_grad()
def mix(device: DeviceModel, batch: Batch, share: Tensor, guidance: float = 1.0) -> Mixed:
    """Replace the tokens that the device is surest of, a share [B] of each sequence, by the device's arg max."""
    hidden, guided = own_and_guided(device.transformer, batch, batch.tokens, guidance)  # each [B, T, D]
    centre, score = deployed_scores(device, hidden, guided)  # [B, T, V], [B, T]
    _, lower, upper = device.interval(hidden, guided, DEPLOYED.bounds)
    rank = score.argsort(-1).argsort(-1)  # 0 = surest
    local = rank < (share * score.shape[-1]).unsqueeze(-1)
    return Mixed(torch.where(local, centre.argmax(-1), batch.tokens), local, hidden, lower, upper)


class Batches(Protocol):
    """Source of phi's training batches."""

    def batch(self, stage: str, step: int, size: int, null_captions: float) -> Batch:
        """Return the training batch of a step."""
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
    """Return f^I [B, T, D], zero at tokens that the device did not decide (assumption A7)."""
    added: Tensor = phi(mixed.hidden, mixed.lower, mixed.upper)  # [B, T, D]
    return added * mixed.local.unsqueeze(-1)


def log_probs(
    cloud: Transformer, batch: Batch, tokens: Tensor, added: Tensor | None, positions: Tensor, guidance: float = 1.0
) -> Tensor:
    """Return the cloud's guided log-probabilities of the tokens at `positions` int [P] given the tokens before them, [B, P, V]."""
    _, guided = own_and_guided(cloud, batch, tokens, guidance, added)  # [B, T, D]
    return cloud.logits(guided[:, positions]).log_softmax(-1)


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """Return KL(wanted || found) in nats of log-probabilities [..., V] -> [...]."""
    return (wanted.exp() * (wanted - found)).sum(-1)


@torch.inference_mode()
def evaluate(
    phi: IntervalProjection, cloud: Transformer, device: DeviceModel, data: Sequences, guidance: float = 1.0
) -> dict[str, float]:
    """Measure the effect of f^I on held-out sequences in which the device decides `LOCAL_SHARE` of the tokens.

    Returns:
        A mapping of, in nats per token:
        `kl_nats`, `kl_nats_without_features`: KL from the cloud's distribution on the original sequence to that on the mixed one.
        `nats`, `nats_without_features`: cross-entropy of the image's own tokens where the cloud decides.
        `in_place_kl_nats`: KL from the cloud's distribution without features to that with them, on sequences decoded with the gate.
        `changed`: share of tokens that differ from the image's own.
    """
    rows: list[tuple[float, ...]] = []
    where = next(cloud.parameters()).device
    everywhere = torch.arange(cloud.config.tokens, device=where)
    for batch in data.held_out_batches(8, MOST_HELD_OUT, cloud):
        mixed = mix(device, batch, torch.full((len(batch.tokens),), LOCAL_SHARE, device=where), guidance)
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
    """Return `in_place_kl_nats` of `evaluate`, on sequences decoded for held-out captions; the device samples its tokens."""
    batch = next(iter(data.held_out_batches(PART_SEQUENCES, PART_SEQUENCES, cloud)))
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
        everywhere = torch.arange(tokens.shape[1], device=tokens.device)
        wanted, given = (
            log_probs(cloud, part, tokens, some_features, everywhere, guidance) for some_features in (None, added)
        )
        found += divergence(wanted, given).mean(-1).tolist()
    return float(np.mean(found))


def run(settings: PhiConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume phi on `source`, or on scenes if None; write phi.safetensors and metrics.json to `out_dir`."""
    data = Sequences(out_dir.parent, settings.scenes, source, settings.training.seed)
    cloud = load_transformer(out_dir.parent / "cloud" / "cloud.safetensors")
    device = load_device(out_dir.parent / "device" / "device.safetensors")
    stage = PhiStage(settings, cloud, device, data)
    inputs = {**settings_of(settings), **data.inputs(), **weights_read(out_dir.parent, "phi")}
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device)
    phi = IntervalProjection(cloud.config.dim, cloud.config.vocab_size, settings.bottleneck).eval()
    phi.load_state_dict(result.shipped)
    save_model(out_dir / "phi.safetensors", phi)
    for model in (phi, cloud, device):
        model.to(torch_device)
    write_metrics(out_dir, evaluate(phi, cloud, device, data, settings.guidance), result)
    return result

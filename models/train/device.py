"""Distillation of the one-layer device model and its Inter-Head from the frozen cloud model.

Source: CIAR section 3.3. Data and target are those of assumption A11, with the training images' own tokens as sequences and a share of null
captions. The target is the cloud's distribution, unguided by default; `guidance` guides both models as in decoding. The device starts from
the cloud's embeddings, norm and output matrix. It first learns the tokens themselves (`token_steps`), which needs no pass of the cloud. A
last round (`on_policy`) distils on sequences that both models decode together (`models.train.rollouts`).

The first loss variant in `bounds` trains all device parameters. Every further variant trains only its own radius matrix
on the same hidden states, detached, so all variants are compared at equal centres. Radius matrices not named in
`models.device.BOUNDS` are not exported.

    ciar-sim train models/scenes.yaml --stage device
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor, nn

from models.device import BOUNDS, DeviceModel
from models.evaluate.ground import white_codes
from models.evaluate.ranking import auroc
from models.evaluate.regions import (
    CALL_PCT,
    CEILING_SEQUENCES,
    CHUNK,
    Rows,
    by_region,
    columns_of,
    rounded,
    score_names,
    train_ceiling,
)
from models.interval import inter_fuse
from models.pair import load_transformer, save_model
from models.train import losses
from models.train.data import DataConfig
from models.train.inputs import digest_of, settings_of, weights_read
from models.train.loop import MOST_STEPS, TrainResult, moved, train
from models.train.rollouts import LOCAL, PART_SEQUENCES, Rollouts, decode, rolled_out
from models.train.rounds import round_folders
from models.train.sequences import (
    MOST_HELD_OUT,
    Batch,
    Sequences,
    SequenceSettings,
    nats_per_token,
    own_and_guided,
    write_metrics,
)
from models.transformer import Transformer
from models.vq import load_vq
from simulator.core.part import FromMapping, items
from simulator.core.rng import stream
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean


class OnPolicy(Rollouts):
    """A last round of distillation, on sequences that the cloud and the device of the first round decode together.

    Attributes:
        steps: steps of the round; it restarts the learning-rate schedule, without warm-up.
        learning_rate: learning rate of its first step.
    """

    steps: int = Field(gt=0, le=MOST_STEPS)
    learning_rate: float = Field(gt=0)


class DeviceConfig(SequenceSettings):
    """The mapping under `device:` of a training file.

    Attributes:
        positions: tokens of each sequence that enter the distillation loss of a step.
        token_steps: number of first steps, which train on the sequences' own tokens at all positions.
        guidance: guidance scale of both models in the loss; 1 is none, and takes one row per sequence instead of two.
        bounds: variants of the loss; each has its own radius matrix.
        weights: weights of the terms of the loss.
        on_policy: a further round, on sequences decoded with the gate.
    """

    positions: int = Field(default=64, gt=0, le=2**16)
    token_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    guidance: float = Field(default=1.0, ge=1)
    on_policy: OnPolicy | None = None
    bounds: Annotated[tuple[str, ...], BeforeValidator(items)] = BOUNDS
    weights: Annotated[losses.Weights, FromMapping()] = losses.Weights()

    @field_validator("bounds")
    @classmethod
    def _readings(cls, bounds: tuple[str, ...]) -> tuple[str, ...]:
        for index, name in enumerate(bounds):
            if name not in losses.BOUNDS:
                refuse(f"is not a variant of the loss, got {name}{did_you_mean(name, losses.BOUNDS)}", index)
            if name in bounds[:index]:
                refuse(f"names {name} twice", index)
        if bounds[:1] != BOUNDS[:1]:
            refuse(
                f"must begin with {BOUNDS[0]}, which decoding uses by default, got {', '.join(bounds) or 'an empty list'}"
            )
        return bounds

    @model_validator(mode="after")
    def _distils(self) -> "DeviceConfig":
        if self.on_policy is None and self.token_steps >= self.training.steps:
            # Token steps train no radius matrix.
            refuse(f"must be below training.steps ({self.training.steps}), got {self.token_steps}", "token_steps")
        return self


class DeviceStage:
    """A stage of `models.train.loop`."""

    def __init__(
        self, config: DeviceConfig, cloud: Transformer, data: Sequences, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """Args: start: state dict to start from; None starts from `DeviceModel.of_cloud`."""
        self.config, self.cloud, self.data, self.start = config, cloud.requires_grad_(False), data, start
        torch.manual_seed(int(stream(config.training.seed, "train.device.init").integers(2**62)))
        self.model: nn.Module = DeviceModel.of_cloud(cloud, config.bounds)
        self.compare = torch.compile(compare) if config.compile else compare
        self.nats = torch.compile(nats_per_token) if config.compile else nats_per_token

    def begin(self) -> None:
        if self.start is not None:
            self.model.load_state_dict(self.start)

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        batch = self.data.batch("device", step, self.config.batch_images, self.config.null_captions)
        tokens = batch.tokens.shape[1]
        rng = stream(self.config.training.seed, "train.device.positions", step)
        positions = rng.permuted(np.tile(np.arange(tokens), (len(batch.tokens), 1)), axis=1)[:, : self.config.positions]
        return batch, torch.from_numpy(positions)  # [B, P]

    def loss(self, batch: tuple[Batch, Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        sequences, positions = batch
        device = self.model
        assert isinstance(device, DeviceModel)
        if step < self.config.token_steps:
            caption = sequences.caption_for(device.transformer)
            return self.nats(device.transformer, sequences.tokens, caption, sequences.mask), {}
        with torch.no_grad():
            _, wanted = hidden_at(self.cloud, sequences, positions, self.config.guidance)  # [N, D of the cloud]
        hidden, guided = hidden_at(device.transformer, sequences, positions, self.config.guidance)  # each [N, D]
        return self.compare(device, self.cloud, hidden, guided, wanted, self.config.weights)


class HasLogits(Protocol):
    """A model or its output head."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] of hidden states [..., D]."""
        ...


def compare(
    device: DeviceModel, cloud: HasLogits, hidden: Tensor, guided: Tensor, wanted: Tensor, weights: losses.Weights
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """Return the sum of the losses of all variants in `device.radii`, and values to log.

    Args:
        device: device model.
        cloud: cloud model or its head.
        hidden: conditional hidden states of the device [N, D], from which the radius is computed (assumption A5).
        guided: guided hidden states of the device [N, D], from which the centre is computed.
        wanted: guided hidden states of the cloud [N, D of the cloud].
        weights: weights of the terms.
    """
    p_cloud = cloud.logits(wanted).softmax(-1).detach()  # [N, V]
    centre = device.centre(guided)  # [N, V]
    p_mid = centre.softmax(-1)
    first, *others = device.radii
    main = losses.BOUNDS[first](p_cloud, p_mid, *inter_fuse(centre, device.radius(hidden, first)), weights)
    total = main.total
    parts = {"kl": main.align, "upper": main.anchor_upper, "lower": main.anchor_lower}
    for name in others:
        bounds = inter_fuse(centre.detach(), device.radius(hidden.detach(), name))
        parts[name] = losses.BOUNDS[name](p_cloud, p_mid.detach(), *bounds, weights).total
        total = total + parts[name]
    agree = (centre.argmax(-1) == p_cloud.argmax(-1)).float().mean()
    return total, {"agree": agree, **{name: value.detach().mean() for name, value in parts.items()}}


def hidden_at(model: Transformer, batch: Batch, positions: Tensor, guidance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the conditional and guided hidden states that predict the tokens at `positions` int [B, P], each [B * P, D]."""

    def there(hidden: Tensor) -> Tensor:
        return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).flatten(0, 1)

    own, guided = own_and_guided(model, batch, batch.tokens, guidance)  # each [B, T, D]
    return there(own), there(guided)


def evaluate(
    device: DeviceModel,
    cloud: Transformer,
    data: Sequences,
    guidance: float = 1.0,
    white: np.ndarray | None = None,
    gated: bool = False,
) -> dict[str, Any]:
    """Measure device and scores on held-out sequences, teacher-forced, at every position.

    Args:
        device: device model.
        cloud: cloud model.
        data: source of the held-out sequences.
        guidance: guidance scale of both models, as in training.
        white: codes of the background of photographs (`models.evaluate.regions`), None for other images.
        gated: also measure on sequences that both models decode for held-out captions.

    Returns:
        A mapping of, among others:
        `nats_per_token`, `cloud_nats_per_token`: cross-entropy of the sequences' own tokens under device and cloud,
            unguided. If the device's is hardly above the cloud's, no method can gain from calling the cloud.
        `agreement`: share of positions where both arg maxes are equal.
        `acceptance`: expected share of sampled device tokens that speculative decoding's test accepts.
        `auroc`: of each score for "the arg maxes differ", "the sampled token is rejected" and "the total variation between the
            two distributions is above its median".
        `<bounds>.u_tilde`: percentiles, and the share at or above 0.30.
        `<bounds>.cloud_inside_interval`: share of the cloud's probabilities that lie inside the device's interval.
        `regions`: with `white`, most of the above by region, and the AUROC of the ceiling (`models.evaluate.ceiling`).
        `gated`: with `gated`, the result of `on_policy_metrics` for each value of `LOCAL`.
    """
    held_out = [rows_of(batch, cloud) for batch in data.held_out_batches(CHUNK, MOST_HELD_OUT, cloud)]
    ceiling = None
    if white is not None:
        where = next(cloud.parameters()).device
        seen = (moved(data.batch("ceiling", step, CHUNK, 0.0), where) for step in range(CEILING_SEQUENCES // CHUNK))
        ceiling = train_ceiling(device, cloud, (rows_of(batch, cloud) for batch in seen), guidance)
    table = columns_of(device, cloud, held_out, guidance, ceiling=ceiling)
    flat = {name: values.ravel() for name, values in table.items()}
    differs, tv, rejected = flat["differs"] > 0, flat["tv"], flat["rejected"]
    happened = {"differs": differs, "high_tv": tv > np.median(tv), "rejected": rejected}
    result: dict[str, Any] = {
        "held_out_scenes": len(table["token"]),
        "guidance": guidance,
        "nats_per_token": float(flat["nats"].mean()),
        "cloud_nats_per_token": float(flat["cloud_nats"].mean()),
        "agreement": float(1 - differs.mean()),
        "acceptance": float(1 - tv.mean()),
        "tv_mean": float(tv.mean()),
        "kl_nats": float(flat["kl"].mean()),
        "auroc": {
            name: {event: rounded(auroc(flat[name], which)) for event, which in happened.items()}
            for name in score_names(table)
        },
    }
    for bounds in device.radii:
        u = flat[f"{bounds}.u_tilde"]
        percentiles = {f"p{q}": float(np.percentile(u, q)) for q in (10, 25, 50, 75, 90)}
        result[f"{bounds}.u_tilde"] = {**percentiles, "share_at_least_0.30": float((u >= 0.30).mean())}
        result[f"{bounds}.cloud_inside_interval"] = float(flat[f"{bounds}.inside"].mean())
    if white is not None:
        result["regions"] = by_region(table, white)
    if gated:
        result["gated"] = {local: on_policy_metrics(device, cloud, data, local, guidance) for local in LOCAL}
    return result


def on_policy_metrics(
    device: DeviceModel, cloud: Transformer, data: Sequences, local: str, guidance: float = 1.0
) -> dict[str, float]:
    """Measure share of calls, agreement, acceptance, entropy and KL on sequences decoded with the gate for held-out captions.

    The gate is set to `CALL_PCT` % of calls. `local` is how the device picks its tokens, `sampled` or `greedy`.
    """
    batch = next(iter(data.held_out_batches(PART_SEQUENCES, PART_SEQUENCES, cloud)))
    u = stream(data.seed, "train.device.gated").random(batch.tokens.shape)
    found = decode(device, cloud, batch, CALL_PCT / 100, local == "sampled", u, guidance)
    parts = (torch.split(part, CHUNK) for part in rows_of(replace(batch, tokens=found.tokens), cloud))
    rows = list(zip(*parts, strict=True))
    table = columns_of(device, cloud, rows, guidance)
    return {
        "calls_pct": 100 * float((~found.local).float().mean()),
        "agreement": float(1 - table["differs"].mean()),
        "acceptance": float(1 - table["tv"].mean()),
        "cloud_entropy_nats": float(table["cloud_entropy_nats"].mean()),
        "kl_nats": float(table["kl"].mean()),
    }


def rows_of(batch: Batch, model: Transformer) -> Rows:
    """Return tokens, caption rows and mask of a batch."""
    return batch.tokens, batch.caption_for(model), batch.mask


def run(settings: DeviceConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the device; write device.safetensors and metrics.json to `out_dir`.

    The data are those of `source`, or scenes if it is None. With `on_policy`, `out_dir/round-1` keeps the first round
    and `out_dir/rollouts` the sequences of the second.
    """
    data = Sequences(out_dir.parent, settings.scenes, source, settings.training.seed)
    cloud = load_transformer(out_dir.parent / "cloud" / "cloud.safetensors").requires_grad_(False)
    weights = weights_read(out_dir.parent, "device")
    first, then = settings.model_copy(update={"on_policy": None}), settings.on_policy
    folder = round_folders(out_dir, 1 if then is None else 2)[0]
    inputs = {**settings_of(first), **data.inputs(), **weights}
    result = train(DeviceStage(first, cloud, data), first.training, folder, inputs=inputs, device=torch_device)
    if then is not None and result.finished:
        start = result.averaged
        device = device_of(start, cloud, settings)
        own = rolled_out(then, device, cloud, data, out_dir / "rollouts", settings.guidance, torch_device)
        loop = first.training.model_copy(
            update={"steps": then.steps, "learning_rate": then.learning_rate, "warmup_steps": 0}
        )
        last = first.model_copy(update={"token_steps": 0, "training": loop})
        inputs = {**settings_of(settings), **own.inputs(), **weights, "round before": digest_of(start)}
        stage = DeviceStage(last, cloud, own, start)
        again = train(stage, loop, out_dir, inputs=inputs, device=torch_device)
        result = replace(again, steps=result.steps + again.steps, minutes=result.minutes + again.minutes)
    device = device_of(result.shipped, cloud, settings)
    white = None
    if source is not None and source.photos is not None:
        white = white_codes(load_vq(out_dir.parent / "tokenizer" / "tokenizer.safetensors"), source.image_size)
    near, far = device.to(torch_device), cloud.to(torch_device)
    write_metrics(out_dir, evaluate(near, far, data, settings.guidance, white, then is not None), result)
    for name in [name for name in settings.bounds if name not in BOUNDS]:
        del device.radii[name]
    save_model(out_dir / "device.safetensors", device.cpu())
    return result


def device_of(state: Mapping[str, Tensor], cloud: Transformer, settings: DeviceConfig) -> DeviceModel:
    """Return the device with these weights, in `eval()` mode."""
    device = DeviceModel(replace(cloud.config, n_layer=1), settings.bounds).eval()
    device.load_state_dict(state)
    return device

"""Distils the one-layer device model, with its Inter-Head, from the frozen cloud model.

Source: CIAR section 3.3; data and distributions as assumption A11 says, read on scenes' own tokens: the cloud's
distributions, unguided by default, or both models guided as they are when they decode (`guidance`); a share of null captions. The
device starts from the cloud's embeddings, norm and output matrix, and learns the tokens themselves first (`token_steps`), which needs no
pass of the cloud.

The first reading of the loss in `bounds` trains the whole device. Each further one trains its own radius matrix on the
same hidden states, detached, so that all are compared at equal centres; those in `models.device.BOUNDS` ship.

    ciar-sim train models/scenes.yaml --stage device
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor, nn

from models.device import BOUNDS, DeviceModel
from models.evaluate.ranking import auroc
from models.interval import inter_fuse, uncertainty
from models.pair import load_transformer, save_model
from models.train import losses
from models.train.data import DataConfig
from models.train.inputs import settings_of, weights_read
from models.train.loop import MOST_STEPS, TrainResult, train
from models.train.sequences import Batch, Sequences, SequenceSettings, nats_per_token, own_and_guided, write_metrics
from models.transformer import Transformer
from simulator.core.part import FromMapping, items
from simulator.core.rng import stream
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean


class DeviceConfig(SequenceSettings):
    """The mapping under `device:` of a training file. `positions`: how many tokens of each sequence enter the loss of a
    step. `token_steps`: how many of the steps come first and ask for the scenes' own tokens, at all positions. `guidance`: of both
    models in the loss; 1 is none, and takes one pass of each instead of two."""

    positions: int = Field(default=64, gt=0, le=2**16)
    token_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    guidance: float = Field(default=1.0, ge=1)
    bounds: Annotated[tuple[str, ...], BeforeValidator(items)] = BOUNDS
    weights: Annotated[losses.Weights, FromMapping()] = losses.Weights()

    @field_validator("bounds")
    @classmethod
    def _readings(cls, bounds: tuple[str, ...]) -> tuple[str, ...]:
        for index, name in enumerate(bounds):
            if name not in losses.BOUNDS:
                refuse(f"is no reading of the loss, got {name}{did_you_mean(name, losses.BOUNDS)}", index)
            if name in bounds[:index]:
                refuse(f"names {name} twice", index)
        if bounds[:1] != BOUNDS[:1]:
            refuse(
                f"must begin with {BOUNDS[0]}, which decoding uses by default, got {', '.join(bounds) or 'an empty list'}"
            )
        return bounds


class DeviceStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: DeviceConfig, cloud: Transformer, data: Sequences) -> None:
        self.config, self.cloud, self.data = config, cloud.requires_grad_(False), data
        torch.manual_seed(int(stream(config.training.seed, "train.device.init").integers(2**62)))
        self.model: nn.Module = DeviceModel.of_cloud(cloud, config.bounds)
        self.compare = torch.compile(compare) if config.compile else compare
        self.nats = torch.compile(nats_per_token) if config.compile else nats_per_token

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


def compare(
    device: DeviceModel, cloud: Transformer, hidden: Tensor, guided: Tensor, wanted: Tensor, weights: losses.Weights
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """All losses at the same positions of both models, from hidden states [N, D]: the device's own (for the radius, assumption A5)
    and guided (for the centre), and the cloud's guided ones. Returns their sum, and values to log."""
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
    """Hidden states that predict the tokens at `positions` int [B, P], given the sequence before them: as they are, and guided.
    Each [B * P, D]."""

    def there(hidden: Tensor) -> Tensor:
        return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).flatten(0, 1)

    own, guided = own_and_guided(model, batch, batch.tokens, guidance)  # each [B, T, D]
    return there(own), there(guided)


@torch.inference_mode()
def evaluate(device: DeviceModel, cloud: Transformer, data: Sequences, guidance: float = 1.0) -> dict[str, Any]:
    """How well device and scores do on held-out sequences, teacher-forced, at every position, both models guided as in
    training.

    Returns:
        A mapping of, among others:
        `nats_per_token`, `cloud_nats_per_token`: cross-entropy of the sequences' own tokens under device and cloud,
            unguided. Where the device's is hardly above the cloud's, no method can gain from calling the cloud.
        `agreement`: share of positions where both arg maxes are equal.
        `auroc`: of each score for "the arg maxes differ" and for "the total variation between the two distributions is
            above its median".
        `u_tilde`: percentiles, and the share at or above 0.30.
    """
    columns: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        columns.setdefault(name, []).append(values.flatten().float())

    for batch in data.held_out_batches(4):
        everywhere = torch.arange(batch.tokens.shape[1]).expand_as(batch.tokens)
        cloud_hidden, cloud_guided = hidden_at(cloud, batch, everywhere, guidance)  # each [B * T, D of the cloud]
        p_logits = cloud.logits(cloud_guided)  # [B * T, V]
        hidden, guided = hidden_at(device.transformer, batch, everywhere, guidance)  # each [B * T, D]
        centre = device.centre(guided)  # [B * T, V]
        for name, logits in (("cloud_nats", cloud.logits(cloud_hidden)), ("nats", device.centre(hidden))):
            add(name, F.cross_entropy(logits, batch.tokens.flatten(), reduction="none"))  # unguided
        p, q = p_logits.softmax(-1), centre.softmax(-1)
        add("differs", p.argmax(-1) != q.argmax(-1))
        add("tv", 0.5 * (p - q).abs().sum(-1))
        add("kl", (p * (p_logits.log_softmax(-1) - centre.log_softmax(-1))).sum(-1))
        add("entropy", -(q * centre.log_softmax(-1)).sum(-1))
        add("one_minus_max_p", 1 - q.max(-1).values)
        for bounds in device.radii:
            lower, upper = inter_fuse(centre, device.radius(hidden, bounds))
            found = uncertainty(lower, upper, centre.argmax(-1))
            add(f"{bounds}.u_tilde", found.u_tilde)
            add(f"{bounds}.omega", found.omega)
            add(f"{bounds}.lower_top", found.lower_top)
            add(f"{bounds}.inside", ((p >= lower) & (p <= upper)).float().mean(-1))
    table = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    differs, tv = table["differs"] > 0, table["tv"]
    high = tv > np.median(tv)
    of_interval = tuple(name for name in table if name.endswith(("u_tilde", "omega", "lower_top")))
    scores = ("entropy", "one_minus_max_p", *of_interval)
    result: dict[str, Any] = {
        "held_out_scenes": len(data.held_out.codes),
        "guidance": guidance,
        "nats_per_token": float(table["nats"].mean()),
        "cloud_nats_per_token": float(table["cloud_nats"].mean()),
        "agreement": float(1 - differs.mean()),
        "tv_mean": float(tv.mean()),
        "kl_nats": float(table["kl"].mean()),
        "auroc": {
            name: {"differs": auroc(table[name], differs), "high_tv": auroc(table[name], high)} for name in scores
        },
    }
    for bounds in device.radii:
        u = table[f"{bounds}.u_tilde"]
        percentiles = {f"p{q}": float(np.percentile(u, q)) for q in (10, 25, 50, 75, 90)}
        result[f"{bounds}.u_tilde"] = {**percentiles, "share_at_least_0.30": float((u >= 0.30).mean())}
        result[f"{bounds}.cloud_inside_interval"] = float(table[f"{bounds}.inside"].mean())
    return result


def run(settings: DeviceConfig, pictures: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Trains on `pictures`, or on scenes, into `out_dir`, or resumes; writes device.safetensors and metrics.json."""
    data = Sequences(out_dir.parent, settings.scenes, pictures, settings.training.seed)
    cloud = load_transformer(out_dir.parent / "cloud" / "cloud.safetensors")
    stage = DeviceStage(settings, cloud, data)
    inputs = {**settings_of(settings), **data.inputs(), **weights_read(out_dir.parent, "device")}
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device)
    device = DeviceModel(replace(cloud.config, n_layer=1), settings.bounds).eval()
    device.load_state_dict({key: value.half().float() for key, value in result.averaged.items()})
    write_metrics(out_dir, evaluate(device, cloud, data, settings.guidance), result)
    for name in [name for name in settings.bounds if name not in BOUNDS]:
        del device.radii[name]
    save_model(out_dir / "device.safetensors", device)
    return result

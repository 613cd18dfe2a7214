"""Distillation of CIAR's one-layer device with its Inter-Head, and of phi, from the cloud of any loaded pair.

Source: CIAR section 3.3. The device starts from the cloud's embeddings, first layer, norm and output matrix. It learns the cloud's guided
distributions on sequences that the cloud decoded (`models.train.cloud_outputs`), whose hidden states are cached: training the device needs
only the cloud's output matrix. phi is then trained as in `models.train.phi`, through the frozen cloud, whose activations are recomputed in
the backward pass.

    ciar-sim train device --pair pair.yaml --prompts captions.txt --out my-device
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor, nn

from models.device import BOUNDS, DeviceModel
from models.evaluate.ranking import auroc
from models.interval import uncertainty
from models.pair import Pair, save_model
from models.phi import IntervalProjection
from models.train import losses
from models.train.cloud_outputs import PART_IMAGES, CloudOutputs
from models.train.device import compare, hidden_at
from models.train.inputs import Inputs, digest_of, settings_of
from models.train.loop import MOST_IMAGES, MOST_STEPS, LoopSettings, TrainResult, moved, train
from models.train.phi import LOCAL_SHARE, PhiConfig, PhiLoop, PhiStage, divergence, features, log_probs, mix
from models.train.sequences import Batch, own_and_guided, write_metrics
from models.transformer import Transformer
from simulator.core.part import Part
from simulator.core.rng import stream
from simulator.protocol.methods import Decoding

EVALUATED = 128  # maximum number of held-out images in the metrics
EVALUATED_AT_ONCE = 4


class DistilSettings(Part):
    """Settings of a distillation.

    Attributes:
        images: images that the cloud decodes, rounded up to a multiple of 32; one in sixteen is held out.
        steps: training steps of the device.
        phi_steps: training steps of phi; 0 keeps phi at zero, which leaves the cloud unchanged.
        batch_images: sequences of a step.
        positions: tokens of each sequence that enter the loss.
        learning_rate: learning rate of the device.
        guidance: guidance scale of both models.
        top_k: top-k of the cloud's sampling, 0 for none.
        amp: `bf16` runs the steps in bfloat16.
        seed: seed of images and batches.
    """

    images: int = Field(default=2048, ge=2, le=10**7)
    steps: int = Field(default=4000, gt=0, le=MOST_STEPS)
    phi_steps: int = Field(default=400, ge=0, le=MOST_STEPS)
    batch_images: int = Field(default=16, gt=0, le=MOST_IMAGES)
    positions: int = Field(default=64, gt=0, le=2**16)
    learning_rate: float = Field(default=1e-3, gt=0)
    guidance: float = Field(ge=1, le=100)
    top_k: int = Field(default=0, ge=0, le=65536)
    amp: str = Field(default="none", pattern="^(none|bf16)$")
    seed: int = Field(default=0, ge=0, lt=2**63)

    def loop(self, steps: int) -> dict[str, object]:
        """Return the settings of `models.train.loop` for this number of steps."""
        shared = {"amp": self.amp, "seed": self.seed, "ema_decay": 0.99}
        return {"steps": steps, "warmup_steps": min(100, steps // 10), "learning_rate": self.learning_rate, **shared}


class Head(nn.Module):
    """Copy of the cloud's output matrix, the only part of the cloud that training on its cached states needs."""

    def __init__(self, cloud: Transformer) -> None:
        super().__init__()
        codes, dim = cloud.output.weight.shape
        self.output = nn.Linear(dim, codes, bias=cloud.output.bias is not None)
        self.output.load_state_dict(cloud.output.state_dict())
        self.requires_grad_(False)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Transformer.logits`."""
        logits: Tensor = self.output(hidden)
        return logits.float()


class DistilStage:
    """A stage of `models.train.loop` that trains the device and its radius matrices on the cloud's cached states."""

    def __init__(self, settings: DistilSettings, cloud: Transformer, data: CloudOutputs) -> None:
        self.settings, self.data, self.head = settings, data, Head(cloud)
        torch.manual_seed(int(stream(settings.seed, "train.device.init").integers(2**62)))
        self.model: nn.Module = first_device(cloud)

    def batch(self, step: int) -> tuple[Batch, Tensor, Tensor]:
        batch, states = self.data.with_states("device", step, self.settings.batch_images)
        rng = stream(self.settings.seed, "train.device.positions", step)
        tokens = batch.tokens.shape[1]
        drawn = rng.permuted(np.tile(np.arange(tokens), (len(batch.tokens), 1)), axis=1)[:, : self.settings.positions]
        positions = torch.from_numpy(drawn)  # [B, P]
        wanted = states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))  # [B, P, D]
        return batch, positions, wanted.flatten(0, 1)

    def loss(self, batch: tuple[Batch, Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        sequences, positions, wanted = batch
        assert isinstance(self.model, DeviceModel)
        hidden, guided = hidden_at(self.model.transformer, sequences, positions, self.settings.guidance)  # each [N, D]
        return compare(self.model, self.head, hidden, guided, wanted, losses.Weights())


def first_device(cloud: Transformer) -> DeviceModel:
    """Return the initial device: the cloud with its first layer only."""
    device = DeviceModel.of_cloud(cloud, BOUNDS)
    device.transformer.layers[0].load_state_dict(cloud.layers[0].state_dict())
    return device.float()


def distil(
    pair: Pair,
    captions: Sequence[str],
    settings: DistilSettings,
    out_dir: Path,
    torch_device: str = "cpu",
    progress: Callable[[int, int], None] = lambda made, parts: None,
    console: Console | None = None,
    max_batch: int = PART_IMAGES,
) -> TrainResult:
    """Distil or resume a device; write device.safetensors, phi.safetensors and metrics.json to `out_dir`.

    Args:
        pair: pair whose cloud is distilled.
        captions: captions of the images that the cloud decodes.
        settings: settings of the distillation.
        out_dir: also keeps the cloud's outputs and both checkpoints, which a pair with `device: out_dir` does not read.
        torch_device: device that training runs on.
        progress: called with (parts of the cloud's outputs made, parts).
        console: where progress is printed; stderr by default.
        max_batch: images that the cloud decodes at once.

    Raises:
        WeightsError: a checkpoint in `out_dir` was made from other inputs, or states of the cloud exceed the range of float16.
        PromptError: the pair cannot encode a caption.
    """
    decoding = Decoding.model_validate({"guidance": settings.guidance, "top_k": settings.top_k})
    outputs = out_dir / "cloud-outputs"
    data = CloudOutputs(pair, captions, settings.images, decoding, settings.seed, outputs, progress, max_batch)
    cloud = pair.cloud
    free = {"steps", "phi_steps", "learning_rate", "amp", "seed", "images"}
    inputs: Inputs = {k: v for k, v in settings_of(settings).items() if k not in free} | data.inputs()
    stage = DistilStage(settings, cloud, data)
    loop = LoopSettings.model_validate(settings.loop(settings.steps))
    result = train(stage, loop, out_dir / "device", inputs=inputs, device=torch_device, console=console)
    device = first_device(cloud).to(torch_device)
    device.load_state_dict(result.shipped)
    device.eval().requires_grad_(False)
    metrics = evaluate_device(device, stage.head.to(torch_device), data, settings.guidance, torch_device)
    inputs |= {"device": digest_of(device.state_dict())}
    phi, told = train_phi(pair, device, data, settings, inputs, out_dir, torch_device, console)
    save_model(out_dir / "device.safetensors", device)
    save_model(out_dir / "phi.safetensors", phi)
    write_metrics(out_dir, {"pair": pair.manifest.name, "guidance": settings.guidance, **metrics, **told}, result)
    return result


def train_phi(
    pair: Pair,
    device: DeviceModel,
    data: CloudOutputs,
    settings: DistilSettings,
    inputs: Inputs,
    out_dir: Path,
    torch_device: str,
    console: Console | None,
) -> tuple[IntervalProjection, dict[str, float]]:
    """Train phi for a finished device; return it and its metrics on held-out images (`evaluate_phi`)."""
    cloud = pair.cloud
    loop = {**settings.loop(settings.phi_steps), "learning_rate": 2e-3}
    config = PhiConfig(
        training=PhiLoop.model_validate(loop),
        batch_images=settings.batch_images,
        positions=settings.positions,
        guidance=settings.guidance,
        null_captions=0.0,
    )
    stage = PhiStage(config, cloud, device, data)
    cloud.recompute = True
    try:
        result = train(stage, config.training, out_dir / "phi", inputs=inputs, device=torch_device, console=console)
    finally:
        cloud.recompute = False
        for module in (cloud, device):
            module.to(torch_device)
    phi = IntervalProjection(cloud.config.dim, cloud.config.vocab_size, config.bottleneck)
    phi.load_state_dict(result.shipped)
    phi = phi.to(torch_device).eval().requires_grad_(False)
    return phi, evaluate_phi(phi, cloud, device, data, settings.guidance, torch_device)


@torch.no_grad()
def evaluate_device(
    device: DeviceModel, head: Head, data: CloudOutputs, guidance: float, torch_device: str
) -> dict[str, float]:
    """Measure the device on held-out images, at every position, both models guided as in training.

    Returns:
        A mapping of:
        `agreement`: share of positions where both arg maxes are equal.
        `acceptance`: expected share of sampled device tokens that speculative decoding's test accepts.
        `kl_nats`: KL(cloud || device).
        `auroc_u`: AUROC of CIAR's score for "the arg maxes differ".
    """
    rows: list[np.ndarray] = []
    for index in data.held_out(EVALUATED_AT_ONCE, EVALUATED):
        batch, wanted = moved(data.gather(index), torch_device), data.states(index).to(torch_device)
        hidden, guided = own_and_guided(device.transformer, batch, batch.tokens, guidance)  # each [B, T, D]
        centre, lower, upper = device.interval(hidden, guided)
        # Log-probabilities throughout: guided distributions have entries that underflow to 0 in float32, and 0 log 0 is NaN.
        log_p, log_q = head.logits(wanted).log_softmax(-1), centre.log_softmax(-1)
        differs = log_p.argmax(-1) != log_q.argmax(-1)
        overlap, kl = torch.minimum(log_p, log_q).exp().sum(-1), divergence(log_p, log_q)
        rows.append(
            torch.stack([differs.float(), overlap, kl, uncertainty(lower, upper).u_tilde], -1)
            .flatten(0, 1)
            .cpu()
            .numpy()
        )
    table = np.concatenate(rows)
    return {
        "agreement": float(1 - table[:, 0].mean()),
        "acceptance": float(table[:, 1].mean()),
        "kl_nats": float(table[:, 2].mean()),
        "auroc_u": float(auroc(table[:, 3], table[:, 0] > 0)),
    }


@torch.no_grad()
def evaluate_phi(
    phi: IntervalProjection,
    cloud: Transformer,
    device: DeviceModel,
    data: CloudOutputs,
    guidance: float,
    torch_device: str,
) -> dict[str, float]:
    """Measure phi on held-out images, with the `LOCAL_SHARE` of their tokens that the device is surest of replaced by its own.

    Returns:
        `phi_kl_nats`: KL from the cloud's distribution on the original image to that on the mixed sequence with interval features.
        `phi_kl_nats_without_features`: the same without interval features.
    """
    found = []
    everywhere = torch.arange(cloud.config.tokens, device=torch_device)
    for index in data.held_out(EVALUATED_AT_ONCE, EVALUATED // 4):
        batch = moved(data.gather(index), torch_device)
        mixed = mix(device, batch, torch.full((len(index),), LOCAL_SHARE, device=torch_device), guidance)
        wanted = log_probs(cloud, batch, batch.tokens, None, everywhere, guidance)
        given = (
            log_probs(cloud, batch, mixed.tokens, added, everywhere, guidance) for added in (features(phi, mixed), None)
        )
        found.append([float(divergence(wanted, case).mean()) for case in given])
    with_features, without = np.mean(found, axis=0).tolist()
    return {"phi_kl_nats": with_features, "phi_kl_nats_without_features": without}

"""Training of the feature-level drafter of eagle2 and lantern on the frozen cloud model.

Source: Li et al., "EAGLE". The loss is the smooth-L1 distance between the drafter's output and the cloud's next feature, plus 0.1 times the
cross-entropy between the distributions of both under the cloud's output matrix. Uniform noise is added to the input features. The
sequences are the training images' own tokens, with a share of null captions. Optimiser and schedule are those of `models.train.loop`.

    ciar-sim train models/scenes.yaml --stage drafter
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.eagle import CAPTION_TOKEN, EagleDrafter, drafter_config
from models.pair import load_transformer, save_model
from models.train.data import DataConfig
from models.train.inputs import settings_of, weights_read
from models.train.loop import MOST_IMAGES, TrainResult, train
from models.train.sequences import MOST_HELD_OUT, Batch, Sequences, SequenceSettings, write_metrics
from models.transformer import Transformer
from simulator.core.rng import stream
from simulator.protocol.pairs import DRAFTER


class DrafterConfig(SequenceSettings):
    """The mapping under `drafter:` of a training file.

    Attributes:
        positions: image positions of each sequence that enter the cross-entropy of a step.
        cross_entropy: weight of the cross-entropy; the distance of features has weight 1.
        noise: width of the uniform noise on the input features for 512 positions; as in EAGLE, it is inversely proportional to the length.
    """

    batch_images: int = Field(default=8, gt=0, le=MOST_IMAGES)
    positions: int = Field(default=64, gt=0, le=2**16)
    cross_entropy: float = Field(default=0.1, ge=0)
    noise: float = Field(default=0.2, ge=0)


class DrafterStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: DrafterConfig, cloud: Transformer, data: Sequences) -> None:
        self.config, self.cloud, self.data = config, cloud.requires_grad_(False), data
        torch.manual_seed(int(stream(config.training.seed, "train.drafter.init").integers(2**62)))
        drafter = EagleDrafter(drafter_config(cloud.config))
        with torch.no_grad():  # initial prediction: the next feature equals this one
            drafter.fc.weight[:, cloud.config.dim :] += torch.eye(cloud.config.dim)
        self.model: nn.Module = drafter
        self.compare = torch.compile(compare) if config.compile else compare

    def batch(self, step: int) -> tuple[Batch, Tensor]:
        batch = self.data.batch("drafter", step, self.config.batch_images, self.config.null_captions)
        rng = stream(self.config.training.seed, "train.drafter.positions", step)
        positions = rng.permutation(batch.tokens.shape[1])[: self.config.positions]
        return batch, torch.from_numpy(positions)

    def loss(self, batch: tuple[Batch, Tensor], step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        sequences, positions = batch
        assert isinstance(self.model, EagleDrafter)
        with torch.no_grad():
            embedded, features = read(self.cloud, sequences)
            width = self.config.noise * 512 / features.shape[1]
            noisy = features + (torch.rand_like(features) - 0.5) * width
        distance, entropy, agree = self.compare(self.model, self.cloud, embedded, noisy, features, positions)
        values: dict[str, float | Tensor] = {
            "distance": distance.detach(),
            "cross_entropy": entropy.detach(),
            "agree": agree,
        }
        return distance + self.config.cross_entropy * entropy, values


def read(cloud: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the drafter's inputs and targets for all n = slots + T positions of caption and image.

    Returns:
        Embeddings of the next tokens [B, n - 1, D].
        Features of the cloud [B, n, D]; the first n - 1 are inputs, the last n - 1 are targets.
    """
    slots = cloud.config.caption_slots
    features = cloud.hidden(batch.tokens, batch.caption_for(cloud), batch.mask)  # [B, slots + T, D]
    # Position j reads token j + 1; caption positions have no token of their own.
    following = F.pad(batch.tokens, (slots - 1, 0), value=CAPTION_TOKEN)  # [B, slots - 1 + T]
    return cloud.embed_tokens(following), features


def compare(
    drafter: EagleDrafter, cloud: Transformer, embedded: Tensor, noisy: Tensor, features: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the drafter's predictions with the cloud's next features.

    Args:
        drafter: drafter.
        cloud: cloud model; its output matrix gives the distributions.
        embedded: embeddings of the next tokens [B, n - 1, D].
        noisy: input features [B, n, D].
        features: target features [B, n, D].
        positions: image positions int [P] that enter the cross-entropy; 0 predicts the feature of token 0.

    Returns:
        Smooth-L1 distance over all image positions, cross-entropy at `positions`, and the share of equal arg maxes there; scalars.
    """
    found = drafter(embedded, noisy[:, :-1])[:, cloud.config.caption_slots - 1 :]  # [B, T, D]
    wanted = features[:, cloud.config.caption_slots :]  # [B, T, D]
    distance = F.smooth_l1_loss(found.float(), wanted.float())
    p = cloud.logits(wanted[:, positions]).softmax(-1)  # [B, P, V]
    q = cloud.logits(found[:, positions]).log_softmax(-1)
    agree = (p.argmax(-1) == q.argmax(-1)).float().mean()
    return distance, -(p * q).sum(-1).mean(), agree


@torch.inference_mode()
def evaluate(drafter: EagleDrafter, cloud: Transformer, data: Sequences) -> dict[str, float]:
    """Return `compare`'s values on held-out sequences, teacher-forced, unguided, without noise; cross-entropy in nats."""
    rows: list[tuple[float, ...]] = []
    everywhere = torch.arange(cloud.config.tokens, device=cloud.output.weight.device)
    for batch in data.held_out_batches(4, MOST_HELD_OUT, cloud):
        embedded, features = read(cloud, batch)
        rows += [tuple(map(float, compare(drafter, cloud, embedded, features, features, everywhere)))] * len(
            batch.tokens
        )
    return dict(zip(("distance", "cross_entropy_nats", "agreement"), np.mean(rows, axis=0).tolist(), strict=True))


def run(settings: DrafterConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the drafter on `source`, or on scenes if None; write drafter.safetensors and metrics.json to `out_dir`."""
    data = Sequences(out_dir.parent, settings.scenes, source, settings.training.seed)
    cloud = load_transformer(out_dir.parent / "cloud" / "cloud.safetensors")
    inputs = {**settings_of(settings), **data.inputs(), **weights_read(out_dir.parent, "drafter")}
    stage = DrafterStage(settings, cloud, data)
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device)
    drafter = EagleDrafter(drafter_config(cloud.config)).eval()
    drafter.load_state_dict(result.shipped)
    save_model(out_dir / DRAFTER, drafter)
    write_metrics(out_dir, evaluate(drafter.to(torch_device), cloud.to(torch_device), data), result)
    return result

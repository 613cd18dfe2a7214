"""Training of the scene network, which judges images of scenes, on real renders.

Renders are made once and cached in the stage's folder. Every step shifts, blurs, tints and noises them at random, so that the network reads
smooth tokenizer outputs as well as renders with pixel noise.

    ciar-sim train models/scenes.yaml --stage scene-network
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from rich.console import Console
from rich.progress import track
from torch import Tensor

from models import scenes
from models.quality.network import SceneNetwork, SceneNetworkConfig, read_images, save_network
from models.quality.reading import COLORS, PLACES, SHAPES, SIZES, agreement, claim_names, claims_of
from models.train.inputs import settings_of
from models.train.kept import load_array, save_array
from models.train.loop import MOST_IMAGES, LoopSettings, TrainResult, train
from models.train.order import shuffled_indices
from models.train.sequences import Scenes, write_metrics
from models.vq import VQModel, from_uint8, load_vq, to_uint8
from simulator.core.part import FromMapping, Part
from simulator.core.rng import stream

MAX_SHIFT_PX = 2
MAX_NOISE = 6.0  # sigma in units of 1/255, in addition to the render's own noise
MAX_TINT = 8.0  # in units of 1/255, per image and channel
MAX_CONTRAST = 0.06  # relative change per image


class SceneNetworkTraining(Part):
    """The mapping under `scene-network:` of a training file."""

    training: LoopSettings
    scenes: Scenes
    batch_images: int = Field(default=32, gt=0, le=MOST_IMAGES)
    model: Annotated[SceneNetworkConfig, FromMapping()] = SceneNetworkConfig()


def renders(folder: Path, seed: int, count: int) -> np.ndarray:
    """Return renders of scenes 0 .. count-1 of `seed` as a memory map of a file in `folder`, uint8 [count, 128, 128, 3]."""
    path = folder / f"renders-seed{seed}-{count}.npy"
    if not path.exists():
        indices = track(range(count), description=f"scenes of seed {seed}", console=Console(stderr=True))
        save_array(path, np.stack([scenes.image(seed, index) for index in indices]))
    return load_array(path, np.uint8, (count, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3), mapped=True)


def labels_of(seed: int, count: int) -> np.ndarray:
    """Return labels of scenes 0 .. count-1, int64 [count, 29].

    The columns are the shapes, colors and sizes of the nine places (an empty place has shape 0, color and size -1),
    then texture and colour of the background.
    """
    rows = np.full((count, 3 * len(PLACES) + 2), -1, np.int64)
    rows[:, : len(PLACES)] = 0
    for row, index in zip(rows, range(count), strict=True):
        scene = scenes.scene(seed, index)
        for item in scene.objects:
            place = PLACES.index(item.place)
            row[place] = SHAPES.index(item.shape)
            row[len(PLACES) + place] = COLORS.index(item.color)
            row[2 * len(PLACES) + place] = SIZES.index(item.size)
        row[-2] = scenes.TEXTURES.index(scene.background.texture)
        row[-1] = tuple(scenes.BACKGROUND_COLORS).index(scene.background.color)
    return rows


class SceneNetworkStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: SceneNetworkTraining, images: np.ndarray, labels: np.ndarray) -> None:
        self.config, self.images, self.labels = config, images, labels
        torch.manual_seed(int(stream(config.training.seed, "train.scene-network.init").integers(2**62)))
        self.model = SceneNetwork(config.model)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the renders of a step, uint8 [B, 128, 128, 3], and their labels int64 [B, 29]."""
        size, seed = self.config.batch_images, self.config.training.seed
        index = shuffled_indices(seed, "train.scene-network.order", step * size, size, len(self.images))
        return torch.from_numpy(self.images[index]), torch.from_numpy(self.labels[index])

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = next(self.model.parameters()).device
        images, labels = (part.to(device) for part in batch)
        read = self.model(augment(from_uint8(images)))
        shape, color, size = labels[:, :-2].reshape(len(labels), 3, -1).unbind(1)  # [B, P] each

        def nats(logits: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(logits.float().flatten(0, -2), wanted.flatten(), ignore_index=-1)

        parts = {
            "shape": 2.0 * nats(read.shape, shape),
            "color": nats(read.color, color),
            "size": nats(read.size, size),
            "texture": 2.0 * nats(read.texture, labels[:, -2]),
            "background": nats(read.background_color, labels[:, -1]),
        }
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}


def augment(images: Tensor) -> Tensor:
    """Return randomly changed images float [B, 3, H, W], from images in [-1, 1]; random numbers come from torch's generator.

    The whole batch is shifted by the same offset of up to two pixels per axis. Contrast, tint, noise and blur are drawn
    per image; about half of the images are not blurred.
    """
    batch, device = len(images), images.device
    dy, dx = (int(shift) for shift in torch.randint(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, (2,)))
    height, width = images.shape[2:]
    padded = F.pad(images, (MAX_SHIFT_PX,) * 4, mode="replicate")
    images = padded[:, :, MAX_SHIFT_PX + dy :, MAX_SHIFT_PX + dx :][:, :, :height, :width]
    smooth = images
    for _ in range(2):  # two box filters approximate a Gaussian
        smooth = F.avg_pool2d(F.pad(smooth, (1,) * 4, mode="replicate"), 3, stride=1)
    share = (2 * torch.rand(batch, 1, 1, 1) - 1).clamp(min=0.0).to(device)
    images = torch.lerp(images, smooth, share)
    contrast = 1 + MAX_CONTRAST * (2 * torch.rand(batch, 1, 1, 1) - 1).to(device)
    tint = MAX_TINT / 127.5 * (2 * torch.rand(batch, 3, 1, 1) - 1).to(device)
    noise = MAX_NOISE / 127.5 * torch.rand(batch, 1, 1, 1).to(device)
    return images * contrast + tint + noise * torch.randn(images.shape).to(device)


def accuracy(model: SceneNetwork, images: np.ndarray, captions: list[str]) -> dict[str, float]:
    """Measure how well the network reads the claims of captions in images that show them.

    Returns:
        `attribute_accuracy`: share of all claims that the network reads.
        `<kind>_accuracy`: the same for each kind of claim.
        `whole_pictures`: share of images in which it reads every claim.
        `extra_objects`: objects per image that it reads at places where the caption names none.
    """
    readings = read_images(model, images)
    right: dict[str, list[bool]] = {}
    wholes, extra = [], 0
    for caption, reading in zip(captions, readings, strict=True):
        claims = claims_of(caption)
        assert claims is not None
        found = agreement(claims, reading)
        for name, one in zip(claim_names(claims), found, strict=True):
            right.setdefault(name, []).append(bool(one))
        wholes.append(bool(found.all()))
        extra += int((np.delete(reading["shape"], [place for place, *_ in claims.objects]) > 0).sum())
    pooled = [one for ones in right.values() for one in ones]
    parts = {f"{name}_accuracy": float(np.mean(ones)) for name, ones in right.items()}
    whole = {"attribute_accuracy": float(np.mean(pooled)), "whole_pictures": float(np.mean(wholes))}
    return {**whole, **parts, "extra_objects": extra / len(images)}


@torch.inference_mode()
def round_trips(tokenizer: VQModel, images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, H, W, 3] after encoding and decoding by the tokenizer."""
    parts = []
    for first in range(0, len(images), 16):
        codes = tokenizer.encode_codes(from_uint8(torch.from_numpy(np.array(images[first : first + 16]))))
        parts.append(to_uint8(tokenizer.decode_codes(codes)).numpy())
    return np.concatenate(parts)


def run(settings: SceneNetworkTraining, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the scene network; write scene_network.safetensors and metrics.json to `out_dir`.

    The metrics are the accuracy on held-out renders and, if the training folder has a tokenizer, on up to 128 of them after the tokenizer.
    """
    source = settings.scenes
    images = renders(out_dir, source.train_seed, source.train)
    stage = SceneNetworkStage(settings, images, labels_of(source.train_seed, source.train))
    result = train(stage, settings.training, out_dir, inputs=settings_of(settings), device=torch_device)
    network = SceneNetwork(settings.model).eval()
    network.load_state_dict(result.shipped)
    held_out = renders(out_dir, source.held_out_seed, source.held_out)
    captions = scenes.captions(source.held_out_seed, source.held_out)
    metrics: dict[str, Any] = {"held_out_scenes": source.held_out, "renders": accuracy(network, held_out, captions)}
    tokenizer = out_dir.parent / "tokenizer" / "tokenizer.safetensors"
    if tokenizer.is_file():
        few = min(source.held_out, 128)
        metrics["round_trips"] = accuracy(network, round_trips(load_vq(tokenizer), held_out[:few]), captions[:few])
    save_network(out_dir / "scene_network.safetensors", network, metrics)
    write_metrics(out_dir, metrics, result)
    return result

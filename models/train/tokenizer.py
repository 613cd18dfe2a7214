"""Training of the embedded pair's image tokenizer, on scenes or a data set.

Training starts as a plain autoencoder with unit-length latents. After `continuous_steps` the codebook is set to the
clusters of those latents (spherical k-means), and training continues with quantised latents. Unused codes move to
latents with a large quantisation error. Loss: L1 + w L2 on pixels, codebook and commitment terms of VQ-VAE (van den
Oord et al. 2017). There is no adversarial loss.

    ciar-sim train models/scenes.yaml --stage tokenizer
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from rich.console import Console
from torch import Tensor, nn

from models import scenes
from models.train.data import DataConfig
from models.train.image_sets import ImageSet, load_images
from models.train.inputs import settings_of
from models.train.loop import MOST_IMAGES, MOST_STEPS, LoopSettings, TrainResult, train
from models.train.patches import code_width, set_patch_codes
from models.vq import VQConfig, VQModel, from_uint8, save_vq, to_uint8
from simulator.core.files import write_atomically
from simulator.core.part import FromMapping, Part
from simulator.core.rng import stream
from simulator.core.settings import refuse

HELD_OUT_SCENES = 512
PATCH_PICTURES = 2048  # images whose patches are clustered, without an encoder
CODEBOOK_IMAGES = 256  # images whose latents are clustered, with an encoder; read 16 at a time


class TokenizerConfig(Part):
    """The mapping under `tokenizer:` of a training file. `scenes_seed`, `held_out_seed` and `object_weight` apply to scenes only.

    Without an encoder (`encoder_ch_mult: []`) the codes are the clusters of the images' patches and only the decoder is
    trained; `continuous_steps`, `restart_*` and `commitment_weight` have no effect. A plain background then has the
    same code everywhere. An encoder that sees the surroundings gives it many codes, whose order is noise to the models
    that predict them.
    """

    model: Annotated[VQConfig, FromMapping()]
    training: LoopSettings
    scenes_seed: int = Field(default=1, ge=0, lt=2**63)
    held_out_seed: int = Field(default=2, ge=0, lt=2**63)
    batch_images: int = Field(default=16, gt=0, le=MOST_IMAGES)
    continuous_steps: int = Field(default=200, ge=0, le=MOST_STEPS)
    restart_every_steps: int = Field(default=40, gt=0, le=MOST_STEPS)
    restart_until_step: int = Field(default=1300, ge=0, le=MOST_STEPS)
    object_weight: float = Field(default=1.0, ge=0)
    l2_weight: float = Field(default=5.0, ge=0)
    commitment_weight: float = Field(default=0.25, ge=0)

    @model_validator(mode="after")
    def _patches(self) -> "TokenizerConfig":
        if not self.model.encoder_ch_mult:
            found, needed = self.model.codebook_dim, code_width(self.model.patch)
            if found != needed:
                refuse(
                    f"must be {needed} for patches of {self.model.patch} pixels a side, got {found}",
                    "model",
                    "codebook_dim",
                )
        elif self.continuous_steps >= self.training.steps:
            # The codebook is set after these steps; without further ones it would stay random in the averaged weights.
            refuse(
                f"must be below training.steps ({self.training.steps}), got {self.continuous_steps}", "continuous_steps"
            )
        return self


class _Trainee(nn.Module):
    """The tokenizer and the number of times that each code was chosen since the last restart."""

    hits: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.vq = VQModel(config)
        self.register_buffer("hits", torch.zeros(config.codebook_size, dtype=torch.int64))


class TokenizerStage:
    """A stage of `models.train.loop`."""

    def __init__(self, config: TokenizerConfig, data: ImageSet | None = None) -> None:
        self.config, self.data = config, data
        torch.manual_seed(int(stream(config.training.seed, "tokenizer.init").integers(2**62)))
        self.model = _Trainee(config.model)
        self._encodes = bool(config.model.encoder_ch_mult)
        if not self._encodes:
            for part in (self.model.vq.quant_conv, self.model.vq.quantize):
                part.requires_grad_(False)
        self._latents = torch.empty(0)
        self._errors = torch.empty(0)

    def begin(self) -> None:
        if not self._encodes:
            images = torch.cat([self.batch(step)[0] for step in range(-(-PATCH_PICTURES // self.config.batch_images))])
            set_patch_codes(self.model.vq, images, stream(self.config.training.seed, "tokenizer.patches"))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images float32 [B, 3, H, W] in [-1, 1] and the weights of their pixels float32 [B, 1, H, W].

        Scenes are new in every step. Images of a data set come in shuffled epochs, with weight 1 for every pixel.
        """
        first, count, seed = step * self.config.batch_images, self.config.batch_images, self.config.scenes_seed
        if self.data is not None:
            images = self.data.training_images(self.config.training.seed, first, count)
            return images, torch.ones(count, 1, *images.shape[2:])
        images = scene_images(seed, first, count)
        weights = torch.ones(count, 1, *images.shape[2:])
        for index in range(count):
            inside = torch.from_numpy(scenes.region_map(scenes.scene(seed, first + index)) != scenes.BACKGROUND)
            weights[index, 0, inside] = self.config.object_weight
        return images, weights

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        vq = self.model.vq
        images, weights = (part.to(vq.quant_conv.weight.device) for part in batch)
        latents = vq.encode(images)
        quantised = vq.quantise(latents)
        if self._encodes and step < self.config.continuous_steps:
            decoded, code_loss = vq.decode(F.normalize(latents.float(), dim=1)), torch.zeros((), device=images.device)
        else:
            decoded = vq.decode(quantised.quantised)
            code_loss = quantised.codebook_loss + self.config.commitment_weight * quantised.commitment_loss
            self.model.hits += torch.bincount(quantised.codes.flatten(), minlength=self.config.model.codebook_size)
        self._latents = _unit_rows(latents.detach().float())
        with torch.no_grad():
            chosen = vq.quantize.rows()[quantised.codes.flatten()]
            self._errors = (self._latents - chosen).square().sum(dim=1)
        difference = decoded.float() - images
        l1, l2 = (weights * difference.abs()).mean(), (weights * difference.square()).mean()
        values = {
            "psnr": 10 * torch.log10(4 / difference.detach().square().mean()),
            "code_error": self._errors.mean(),
            "used": (self.model.hits > 0).float().mean(),
        }
        return l1 + self.config.l2_weight * l2 + code_loss, values

    def after_step(self, step: int) -> None:
        if not self._encodes:
            return
        if step == self.config.continuous_steps - 1:
            self._set_codebook()
        elif (
            self.config.continuous_steps <= step < self.config.restart_until_step
            and step % self.config.restart_every_steps == 0
        ):
            self._restart_dead_codes(step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        codebook = self.model.vq.quantize.embedding.weight
        others = [parameter for parameter in self.model.parameters() if parameter is not codebook]
        return [
            {"params": [parameter for parameter in others if parameter.dim() >= 2]},
            {"params": [parameter for parameter in others if parameter.dim() < 2], "weight_decay": 0.0},
            {"params": [codebook], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def _set_codebook(self) -> None:
        """Set the codebook by spherical k-means of latents, initialised with random latents.

        The scenes are not among those of the batches; images of a data set are its first training images.
        """
        vq = self.model.vq
        device = vq.quant_conv.weight.device
        rows = []
        for part in range(CODEBOOK_IMAGES // 16):
            if self.data is not None:
                images = self.data.training_images(self.config.training.seed, 16 * part, 16)
            else:
                images = scene_images(self.config.scenes_seed, 10_000_000 + 16 * part, 16)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.training.amp == "bf16"):
                rows.append(_unit_rows(vq.encode(images.to(device)).float()))
        latents = torch.cat(rows)
        count = self.config.model.codebook_size
        order = stream(self.config.training.seed, "tokenizer.codebook").permutation(len(latents))[:count]
        centres = latents[torch.from_numpy(order).to(device)]
        for _ in range(8):
            nearest = torch.cat([(part @ centres.t()).argmax(dim=1) for part in torch.split(latents, 8192)])
            sums = torch.zeros_like(centres).index_add_(0, nearest, latents)
            centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        vq.quantize.embedding.weight.copy_(centres)

    @torch.no_grad()
    def _restart_dead_codes(self, step: int) -> None:
        dead = (self.model.hits == 0).nonzero().flatten()
        if len(dead):
            rng = stream(self.config.training.seed, "tokenizer.restart", step)
            weights = self._errors.double().cpu().numpy() + 1e-12
            picked = rng.choice(
                len(weights), size=min(len(dead), len(weights)), replace=False, p=weights / weights.sum()
            )
            chosen = self._latents[torch.from_numpy(picked).to(self._latents.device)]
            self.model.vq.quantize.embedding.weight[dead[: len(chosen)]] = chosen
        self.model.hits.zero_()


def scene_images(seed: int, first: int, count: int) -> Tensor:
    """Return scenes first .. first+count-1 of `seed`, float32 [count, 3, 128, 128] in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.stack([scenes.image(seed, index) for index in range(first, first + count)])))


def _unit_rows(latents: Tensor) -> Tensor:
    """Return the l2-normalised latents [B*h*w, C] of [B, C, h, w]."""
    return F.normalize(latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1]), dim=1)


@torch.inference_mode()
def evaluate(model: VQModel, seed: int, count: int = HELD_OUT_SCENES) -> dict[str, float | int]:
    """Measure the reconstruction of scenes 0 .. count-1 of `seed`.

    Returns:
        `psnr_db`: PSNR of the 8-bit images, mean over images.
        `psnr_<region>_db`: PSNR of the squared error pooled over all pixels of a region.
        `codebook_used`: share of the codebook that occurs.
        `held_out_scenes`: `count`.
    """
    psnr_db: list[float] = []
    used = torch.zeros(model.config.codebook_size, dtype=torch.bool)
    squared, pixels = np.zeros(3), np.zeros(3)
    for first in range(0, count, 16):
        indices = range(first, min(first + 16, count))
        images = scene_images(seed, first, len(indices))
        codes = model.encode_codes(images)
        used[codes.flatten()] = True
        error = (to_uint8(model.decode_codes(codes)).double() - to_uint8(images).double()).square().mean(dim=-1).numpy()
        psnr_db += [10 * float(np.log10(255**2 / image.mean())) for image in error]
        regions = np.stack([scenes.region_map(scenes.scene(seed, index)) for index in indices])
        squared += [error[regions == region].sum() for region in range(3)]
        pixels += [(regions == region).sum() for region in range(3)]
    background, inside, border = 10 * np.log10(255**2 * pixels / squared)
    return {
        "psnr_db": float(np.mean(psnr_db)),
        "psnr_background_db": float(background),
        "psnr_object_db": float(inside),
        "psnr_border_db": float(border),
        "codebook_used": float(used.float().mean()),
        "held_out_scenes": count,
    }


@torch.inference_mode()
def evaluate_data(model: VQModel, data: ImageSet) -> dict[str, float | int]:
    """Measure the reconstruction of up to `HELD_OUT_SCENES` held-out images of a data set: mean PSNR and used codes, see `evaluate`."""
    psnr_db: list[float] = []
    used = torch.zeros(model.config.codebook_size, dtype=torch.bool)
    for images in data.held_out_images(HELD_OUT_SCENES):
        codes = model.encode_codes(images)
        used[codes.flatten()] = True
        error = (to_uint8(model.decode_codes(codes)).double() - to_uint8(images).double()).square().mean(dim=(1, 2, 3))
        psnr_db += (10 * torch.log10(255**2 / error.clamp_min(1e-9))).tolist()
    return {
        "psnr_db": float(np.mean(psnr_db)),
        "codebook_used": float(used.float().mean()),
        "held_out_pictures": len(psnr_db),
    }


@torch.inference_mode()
def picture(model: VQModel, shown: Tensor, path: Path) -> None:
    """Write a PNG with rows of eight images float [N, 3, H, W], each followed by its reconstructions; N <= 8 or a multiple of 8."""
    from matplotlib.image import imsave

    before, after = to_uint8(shown).numpy(), to_uint8(model.decode_codes(model.encode_codes(shown))).numpy()
    rows = [row[first : first + 8] for first in range(0, len(shown), 8) for row in (before, after)]
    pixels = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    written = io.BytesIO()
    imsave(written, pixels, format="png")
    write_atomically(path, written.getvalue())


def run(settings: TokenizerConfig, source: DataConfig | None, out_dir: Path, torch_device: str = "cpu") -> TrainResult:
    """Train or resume the tokenizer on `source`, or on scenes if None.

    Writes tokenizer.safetensors (fp16; its metadata holds the metrics) and reconstructions.png to `out_dir`.
    """
    console = Console(stderr=True)
    data = None if source is None else load_images(source, out_dir.parent)
    stage = TokenizerStage(settings, data)
    parameters = sum(parameter.numel() for parameter in stage.model.parameters())
    console.print(f"tokenizer: {parameters / 1e6:.2f} M parameters")
    inputs = settings_of(settings) | ({} if data is None else {"training images": data.digest()})
    result = train(stage, settings.training, out_dir, inputs=inputs, device=torch_device, console=console)
    model = VQModel(settings.model).eval()
    model.load_state_dict(
        {key.removeprefix("vq."): value for key, value in result.shipped.items() if key.startswith("vq.")}
    )
    quality = evaluate(model, settings.held_out_seed) if data is None else evaluate_data(model, data)
    facts = {**quality, "steps": result.steps, "parameters": parameters}
    save_vq(out_dir / "tokenizer.safetensors", model, facts)
    shown = scene_images(settings.held_out_seed, 0, 16) if data is None else torch.cat(list(data.held_out_images(8)))
    picture(model, shown, out_dir / "reconstructions.png")
    console.print(
        " ".join(f"{name} {value:.6g}" for name, value in facts.items()) + f" minutes {result.minutes:.1f}",
        soft_wrap=True,
    )
    return result

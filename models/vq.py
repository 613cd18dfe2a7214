"""The image tokenizer: a convolutional VQGAN with LlamaGen's layout and key names, so that its checkpoints load unchanged.

Source: LlamaGen, `vq_ds16_t2i.pt` (keys and arithmetic); VQGAN (Esser et al. 2021) for the architecture.
Letters: B batch, C channels, H, W pixels, h, w latent grid, T = h*w image tokens in raster order, V codebook size.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checkpoint import CONTAINERS, model_within
from models.state import build, read_config, read_state, save_state
from simulator.core.errors import WeightsError
from simulator.protocol.pairs import shortened

VQ_LARGEST = {
    "codebook_size": 65536,  # messages hold ids as uint16
    "codebook_dim": 4096,
    "ch": 4096,
    "z_channels": 65536,
    "num_res_blocks": 64,
    "patch": 64,
}
BYTE_OFFSET = 128.0  # LlamaGen's


@dataclass(frozen=True)
class VQConfig:
    """Shape of a tokenizer. The defaults are LlamaGen's VQ-16: down-sampling by 16, with a factor of 2 between levels.

    With an empty `encoder_ch_mult` there is no encoder: a linear map of a patch's pixels determines its code, and a linear map of the
    code vector to a patch is added to the decoder's output.
    """

    codebook_size: int = 16384
    codebook_dim: int = 8
    ch: int = 128
    encoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 256
    num_res_blocks: int = 2
    patch: int = 1  # pixels per side folded into channels before the first convolution, and unfolded after the last

    def __post_init__(self) -> None:
        """Check the sizes. Raises ValueError."""
        for name in ("encoder_ch_mult", "decoder_ch_mult"):
            levels = getattr(self, name)
            least = 0 if name == "encoder_ch_mult" else 1
            if not least <= len(levels) <= 10 or not all(1 <= level <= 64 for level in levels):
                raise ValueError(f"{name} must be {least} to 10 factors of 1 to 64 each")
        found, needed = len(self.decoder_ch_mult), max(len(self.encoder_ch_mult), 1)
        if found != needed:  # else decoded images would have another size than encoded ones
            levels = (
                f"as many factors as encoder_ch_mult, {needed}"
                if self.encoder_ch_mult
                else "one factor without an encoder"
            )
            raise ValueError(f"decoder_ch_mult must have {levels}, got {found}")
        for name, largest in VQ_LARGEST.items():
            least = 0 if name == "num_res_blocks" and not self.encoder_ch_mult else 1  # the decoder has one more
            if not least <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be {least} to {largest}, got {shortened(getattr(self, name))}")
        if self.ch % 32:
            raise ValueError(f"ch must be a multiple of 32 (group norms of 32 groups), got {self.ch}")

    @property
    def downsample(self) -> int:
        """Pixels per latent position along each side."""
        return int(self.patch * 2 ** (max(len(self.encoder_ch_mult) - 1, 0)))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "VQConfig":
        """Return the config from a file's mapping. Raises ValueError for an unknown key, TypeError or ValueError for a bad value."""
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key}; allowed: {', '.join(sorted(known))}")
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**settings)


class Quantised(NamedTuple):
    """The result of quantising latents. The gradient of `quantised` is passed straight through to the latents."""

    codes: Tensor  # int64 [B, T]
    quantised: Tensor  # [B, codebook_dim, h, w], rows of the normalised codebook
    codebook_loss: Tensor  # scalar: moves codes to latents
    commitment_loss: Tensor  # scalar: moves latents to codes, unweighted


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        result: Tensor = self.nin_shortcut(x) + hidden
        return result


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, T, C]
        mixed = F.scaled_dot_product_attention(q, k, v)  # scale C**-0.5
        mixed = mixed.transpose(1, 2).reshape(x.shape)  # [B, C, h, w]
        result: Tensor = x + self.proj_out(mixed)
        return result


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        smaller: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return smaller


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        larger: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return larger


class Level(nn.Module):
    """ResBlocks at one resolution, each followed by attention if the level has it, then the change of resolution if any."""

    downsample: nn.Module
    upsample: nn.Module

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """Maps images to latents: levels from the highest to the lowest resolution; attention only on the lowest, or on none."""

    def __init__(self, config: VQConfig, attention: bool = True) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.encoder_ch_mult]
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for index, (before, width) in enumerate(zip([config.ch, *widths], widths, strict=False)):
            last = index == len(widths) - 1
            level = Level(before, width, config.num_res_blocks, attention=attention and last)
            if not last:
                level.downsample = Downsample(width)
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        latent: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return latent


class Decoder(nn.Module):
    """Maps latents to images: levels from the lowest to the highest resolution; attention only on the lowest, or on none."""

    def __init__(self, config: VQConfig, attention: bool = True) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in reversed(config.decoder_ch_mult)]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for index, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            level = Level(before, width, config.num_res_blocks + 1, attention=attention and index == 0)
            if index < len(widths) - 1:
                level.upsample = Upsample(width)
            self.conv_blocks.append(level)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.mid, *self.conv_blocks]:
            x = block(x)
        image: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return image


class Quantizer(nn.Module):
    """The codebook.

    With `normalised`, latents and code rows are l2-normalised before the nearest row is looked up, and the result is the normalised
    row. Otherwise both are used unchanged.
    """

    def __init__(self, config: VQConfig, normalised: bool = True) -> None:
        super().__init__()
        self.normalised = normalised
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def rows(self) -> Tensor:
        """Return the vector of each code, float [V, codebook_dim]."""
        return F.normalize(self.embedding.weight, dim=-1) if self.normalised else self.embedding.weight

    def forward(self, latents: Tensor) -> Quantised:
        """Quantise latents [B, codebook_dim, h, w]. Runs in float32 also under autocast, so that near ties do not depend on it."""
        with torch.autocast(latents.device.type, enabled=False):
            batch, dim, height, width = latents.shape
            z = latents.float().permute(0, 2, 3, 1).reshape(-1, dim)  # [B*T, dim]
            rows = self.rows().float()
            if self.normalised:
                z = F.normalize(z, dim=-1)
            with torch.no_grad():
                near = z @ rows.t()  # largest cosine = least distance between unit vectors
                codes = (near if self.normalised else 2 * near - (rows**2).sum(-1)).argmax(dim=-1)
            chosen = F.embedding(codes, rows)
            straight_through = z + (chosen - z).detach()
            return Quantised(
                codes=codes.view(batch, height * width),
                quantised=straight_through.view(batch, height, width, dim).permute(0, 3, 1, 2),
                codebook_loss=F.mse_loss(chosen, z.detach()),
                commitment_loss=F.mse_loss(z, chosen.detach()),
            )


class VQModel(nn.Module):
    """Encoder, codebook and decoder.

    Args:
        config: the shape.
        attention: whether the lowest level has attention in addition to the middle blocks (LlamaGen).
        normalised: whether codes are compared as unit vectors (LlamaGen).
        offset: added to 127.5 x by `to_bytes` before truncation: 128 in LlamaGen, 127.5 in Chameleon and Janus.
    """

    def __init__(
        self, config: VQConfig, attention: bool = True, normalised: bool = True, offset: float = BYTE_OFFSET
    ) -> None:
        super().__init__()
        self.config = config
        self.offset = offset
        self.encoder = Encoder(config, attention) if config.encoder_ch_mult else nn.Identity()
        self.decoder = Decoder(config, attention)
        self.quantize = Quantizer(config, normalised)
        encoded = config.z_channels if config.encoder_ch_mult else 3 * config.patch**2
        self.quant_conv = nn.Conv2d(encoded, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.patch_of_code = None if config.encoder_ch_mult else nn.Conv2d(config.codebook_dim, encoded, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents [B, codebook_dim, h, w] of images float [B, 3, H, W] in [-1, 1], not yet normalised or quantised."""
        if self.config.patch > 1:
            images = F.pixel_unshuffle(images, self.config.patch)
        latents: Tensor = self.quant_conv(self.encoder(images))
        return latents

    def quantise(self, latents: Tensor) -> Quantised:
        """Return codes, code vectors and training losses of latents [B, codebook_dim, h, w]."""
        quantised: Quantised = self.quantize(latents)
        return quantised

    def decode(self, quantised: Tensor) -> Tensor:
        """Return the images float [B, 3, H, W], about [-1, 1], of code vectors [B, codebook_dim, h, w]."""
        images: Tensor = self.decoder(self.post_quant_conv(quantised))
        if self.patch_of_code is not None:
            images = images + self.patch_of_code(quantised)
        return F.pixel_shuffle(images, self.config.patch) if self.config.patch > 1 else images

    def encode_codes(self, images: Tensor) -> Tensor:
        """Return the codes int64 [B, T] of images float [B, 3, H, W] in [-1, 1]."""
        return self.quantise(self.encode(images)).codes

    def code_vectors(self, codes: Tensor) -> Tensor:
        """Return the code vectors [B, codebook_dim, h, w] of codes int [B, h, w], or int [B, T] on a square grid.

        Raises:
            ValueError: T codes do not fill a square grid.
        """
        if codes.dim() == 2:
            side = math.isqrt(codes.shape[1])
            if side * side != codes.shape[1]:
                raise ValueError(f"{codes.shape[1]} codes do not fill a square grid; pass them as [B, h, w]")
            codes = codes.view(codes.shape[0], side, side)
        return F.embedding(codes.long(), self.quantize.rows()).permute(0, 3, 1, 2)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return the images float [B, 3, H, W], about [-1, 1], of codes int [B, T] (a square grid) or [B, h, w]."""
        return self.decode(self.code_vectors(codes))

    def to_bytes(self, images: Tensor) -> Tensor:
        """Convert images with `to_uint8` and this tokenizer's offset."""
        return to_uint8(images, self.offset)


def to_uint8(images: Tensor, offset: float = BYTE_OFFSET) -> Tensor:
    """Convert images float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]: clamp(127.5 x + offset, 0, 255), truncated."""
    return (127.5 * images.float() + offset).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def from_uint8(images: Tensor) -> Tensor:
    """Convert images uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def vq_config(values: Mapping[str, Any], source: Path | str) -> VQConfig:
    """Return the shape with these values. Raises WeightsError naming the file if no tokenizer can have it."""
    try:
        return VQConfig.from_mapping(values)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: not a readable tokenizer ({type(error).__name__}: {error})") from error


def load_llamagen_vq(path: Path, config: VQConfig | None = None, containers: Sequence[str] = CONTAINERS) -> VQModel:
    """Load a tokenizer from a LlamaGen checkpoint such as `vq_ds16_t2i.pt`, float32, in `eval()` mode.

    Args:
        path: the file.
        config: its shape; None: VQ-16.
        containers: see `read_state`.

    Raises:
        WeightsError: the file is missing or damaged, or its keys and shapes are not exactly those of `config`.
    """
    state = dict(model_within(read_state(path, containers, finite=False), ("quantize.embedding.weight",)))
    state.pop("quantize.codebook_used", None)  # training statistics
    return build(lambda: VQModel(config or VQConfig()), state, path, exact=True)


def save_vq(path: Path, model: VQModel, facts: dict[str, float | int]) -> None:
    """Write weights as fp16 safetensors; the metadata holds the config and `facts` (quality, training steps, parameters) as JSON."""
    metadata = {"format": "ciar-sim vq 1", "config": json.dumps(asdict(model.config)), "facts": json.dumps(facts)}
    save_state(path, model.state_dict(), metadata)


def load_vq(path: Path) -> VQModel:
    """Load a tokenizer that `save_vq` wrote, float32, in `eval()` mode.

    Raises:
        WeightsError: the file is missing, damaged, of another format, or holds weights that are not finite.
    """
    path = Path(path)
    config = vq_config(read_config(path), path)
    return build(lambda: VQModel(config), read_state(path), path, exact=True)

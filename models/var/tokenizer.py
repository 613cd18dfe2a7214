"""VAR's image tokenizer: token maps of several scales whose contributions add up to one latent, and the decoder of the latent.

Source: VAR, `vae_ch160v4096z32.pth` (keys and arithmetic). The decoder is VQGAN's, see `models.vq`.
Letters: B batch, T tokens of all scales, C width of a code, g side of the latent, S scales.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vq import Decoder, VQConfig, to_uint8

PHI_SHARE = 0.5  # weight of a map's convolution in the sum added to the latent; the map itself has the rest
OFFSET = 127.5  # for bytes: (x + 1) / 2 * 255, truncated


class ScaleQuantizer(nn.Module):
    """The codebook and the convolutions phi; neighbouring scales share a convolution."""

    def __init__(self, codes: int, code_dim: int, phis: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, code_dim)
        phi = nn.ModuleList([nn.Conv2d(code_dim, code_dim, 3, padding=1) for _ in range(phis)])
        self.quant_resi = nn.ModuleDict({"qresi_ls": phi})

    @property
    def phis(self) -> nn.ModuleList:
        """The convolutions, the one for the smallest scales first."""
        found = self.quant_resi["qresi_ls"]
        assert isinstance(found, nn.ModuleList)
        return found


class VarTokenizer(nn.Module):
    """Codebook, phi and image decoder.

    Args:
        config: shape of codebook and decoder.
        scales: sides of the token maps, the smallest first; the last is the side of the latent.
        phis: number of convolutions.
    """

    def __init__(self, config: VQConfig, scales: tuple[int, ...], phis: int) -> None:
        super().__init__()
        self.config, self.scales = config, scales
        self.quantize = ScaleQuantizer(config.codebook_size, config.codebook_dim, phis)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 3, padding=1)
        self.decoder = Decoder(config)

    def phi_of(self, scale: int) -> int:
        """Return the index of the convolution nearest to a scale, both spread over [0, 1].

        The arithmetic is VAR's to the bit, because with four convolutions and ten scales two of the scales lie halfway.
        """
        count = len(self.quantize.phis)
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        return int(np.argmin(np.abs(ticks - scale / (len(self.scales) - 1))))

    def empty(self, batch: int) -> Tensor:
        """Return the latent before the first map, zeros [B, C, g, g]."""
        table, side = self.quantize.embedding.weight, self.scales[-1]
        return torch.zeros(batch, table.shape[1], side, side, device=table.device, dtype=table.dtype)

    def residual(self, codes: Tensor, scale: int) -> Tensor:
        """Return what the map of a scale adds to the latent, [B, C, g, g]. codes: int [B, side * side]."""
        side = self.scales[scale]
        x = self.quantize.embedding(codes).transpose(1, 2).unflatten(2, (side, side))  # [B, C, side, side]
        if side != self.scales[-1]:
            x = F.interpolate(x, size=(self.scales[-1],) * 2, mode="bicubic")
        y: Tensor = (1 - PHI_SHARE) * x + PHI_SHARE * self.quantize.phis[self.phi_of(scale)](x)
        return y

    def inputs(self, latent: Tensor, scale: int) -> Tensor:
        """Return the transformer's inputs of a scale, [B, side * side, C], from the latent of all smaller maps."""
        return F.interpolate(latent, size=(self.scales[scale],) * 2, mode="area").flatten(2).transpose(1, 2)

    def latents(self, codes: Tensor) -> list[Tensor]:
        """Return the latent after each map. codes: int [B, n], whole scales from the first on."""
        found, latent, start = [], self.empty(len(codes)), 0
        for scale, side in enumerate(self.scales):
            if start == codes.shape[1]:
                break
            latent = latent + self.residual(codes[:, start : start + side * side], scale)
            found.append(latent)
            start += side * side
        return found

    def decode(self, latent: Tensor) -> Tensor:
        """Return the images uint8 [B, H, W, 3] of a latent [B, C, g, g]."""
        return to_uint8(self.decoder(self.post_quant_conv(latent)), OFFSET)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return the images uint8 [B, H, W, 3] of codes int [B, T] of all scales."""
        return self.decode(self.latents(codes)[-1])

"""Codebook of image patches: k-means of their pixels, in the form that the tokenizer's quantiser uses.

The quantiser takes the code row with the largest cosine. With the code row (c, -|c|^2 / 2, r) / R, where r makes its
length 1, and the latent (x, 1, 0), the product is (x c - |c|^2 / 2) / R: it is largest for the cluster centre c nearest
to the patch x.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vq import VQModel

PATCHES = 2**17  # maximum number of clustered patches
ROUNDS = 20  # Lloyd's iterations
SPREAD_ROUNDS = 32  # rounds of `spread`


def code_width(patch: int) -> int:
    """Return the width of a code for patches of `patch` pixels per side: three per pixel, plus two."""
    return 3 * patch**2 + 2


@torch.no_grad()
def set_patch_codes(model: VQModel, images: Tensor, rng: np.random.Generator) -> None:
    """Set codebook and linear maps of a tokenizer without encoder from the patches of images float [N, 3, H, W] in [-1, 1].

    A code is then decoded to its cluster's centre; the untrained decoder adds zero. The pixels' mean is subtracted, and
    they are scaled so that the longest centre has length 1. `codebook_dim` must be `code_width(patch)`.
    """
    size = 3 * model.config.patch**2
    images = images.cpu()  # k-means runs on the CPU; the model may be on another device
    rows = F.pixel_unshuffle(images, model.config.patch).permute(0, 2, 3, 1).reshape(-1, size)  # [N * T, size]
    rows = rows[torch.from_numpy(rng.permutation(len(rows))[:PATCHES])]
    mean = rows.mean()
    centres = clusters(rows - mean, model.config.codebook_size, rng)
    unit = centres.norm(dim=1).max()
    centres = centres / unit
    half = 0.5 * centres.square().sum(1, keepdim=True)  # [V, 1]
    squared = 2 * half + half.square()
    length = squared.max().sqrt()  # R
    lifted = torch.cat([centres, -half, (squared.max() - squared).clamp_min(0).sqrt()], dim=1) / length
    model.quantize.embedding.weight.copy_(lifted)
    eye = torch.eye(size + 2, size)
    _set_linear(model.quant_conv, eye / unit, torch.cat([-mean.expand(size) / unit, torch.tensor([1.0, 0.0])]))
    assert model.patch_of_code is not None
    _set_linear(model.patch_of_code, eye.t() * unit * length, mean.expand(size))
    last = model.decoder.conv_out
    _set_linear(last, torch.zeros_like(last.weight), torch.zeros(size))


def _set_linear(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Set a convolution's parameters: `weight` in any shape with its number of elements, `bias` [out channels]."""
    assert conv.bias is not None
    conv.weight.copy_(weight.view_as(conv.weight))
    conv.bias.copy_(bias)


def clusters(rows: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return k-means centres [count, C] of rows [N, C], initialised by `spread`."""
    centres = spread(rows, count, rng)
    for _ in range(ROUNDS):
        nearest = torch.cat(
            [(part @ centres.t() - 0.5 * centres.square().sum(1)).argmax(1) for part in torch.split(rows, 8192)]
        )
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        members = torch.bincount(nearest, minlength=count).unsqueeze(1)
        centres = torch.where(members > 0, sums / members.clamp_min(1), centres)
    return centres


def spread(rows: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return `count` of the rows [N, C], drawn with probability proportional to the squared distance to the nearest row drawn before.

    Each of about `SPREAD_ROUNDS` rounds draws an equal share. Source: k-means|| (Bahmani et al. 2012), without oversampling.
    """
    some = max(count // SPREAD_ROUNDS, 1)
    picked = rng.choice(len(rows), size=1)
    nearest = torch.full((len(rows),), torch.inf)  # squared distance
    while len(picked) < count:
        fresh = rows[torch.from_numpy(picked[-some:])]
        found = torch.cat([torch.cdist(part, fresh).amin(1).square() for part in torch.split(rows, 8192)])
        nearest = torch.minimum(nearest, found)
        chance = nearest.double().numpy() + 1e-12
        picked = np.append(
            picked, rng.choice(len(rows), size=min(some, count - len(picked)), replace=False, p=chance / chance.sum())
        )
    return rows[torch.from_numpy(picked)]

"""Where a caption puts its objects, and the loss that asks an early layer for it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import scenes
from models.quality.reading import COLORS, PLACES, SHAPES, SIZES, claims_of

LAYOUT_GAIN = 2.0  # length of a class's direction, against hidden states of root mean square 1
OBJECT_REACH_PX = (
    26.0  # a large object's radius and how far its centre may stand off its place, on the scenes' 128 pixels
)


def layout_of(caption: str, grid: int) -> Tensor:
    """int64 [3, grid, grid]: shape, color and size of the object that the caption puts at each cell, 0 for none.

    An object is at the cells whose centre is within 26 pixels of the place that the caption names, the nearest object where two are.
    All are 0 where the caption is not of the form that scenes have.
    """
    claims = claims_of(caption)
    centre_px = (torch.arange(grid) + 0.5) * (scenes.IMAGE_SIZE / grid)
    nearest = torch.full((grid, grid), OBJECT_REACH_PX**2)
    layout = torch.zeros(3, grid, grid, dtype=torch.int64)
    for place, shape, color, size in claims.objects if claims is not None else ():
        column_px, row_px = scenes.PLACES[PLACES[place]]
        distance = (centre_px - row_px).square().unsqueeze(1) + (centre_px - column_px).square()  # [grid, grid]
        layout[:, distance <= nearest] = torch.tensor([shape, color + 1, size + 1]).unsqueeze(1)  # shape 0 is "nothing"
        nearest = torch.minimum(nearest, distance)
    return layout


def onset_of(layout: Tensor) -> Tensor:
    """bool [B, T]: the first cells of each object of a layout int64 [B, 3, T], those with another or none two rows (of 16) above."""
    rows = max(math.isqrt(layout.shape[-1]) // 8, 1)
    above = F.pad(layout, (rows * math.isqrt(layout.shape[-1]), 0))[..., : layout.shape[-1]]
    return (layout[:, 0] > 0) & (layout != above).any(1)


class LayoutHead(nn.Module):
    """Asks hidden states for the layout of the caption (`layout_of`), so that training shows an early layer what to look up.

    A deeply supervised layer (Lee et al. 2015), without weights of its own: the classes are fixed random directions.
    """

    rows: Tensor

    def __init__(self, dim: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.sizes = [len(SHAPES), 1 + len(COLORS), 1 + len(SIZES)]
        rows = rng.standard_normal((sum(self.sizes), dim)) * (LAYOUT_GAIN / dim**0.5)
        self.register_buffer("rows", torch.from_numpy(rows).float())

    def forward(self, state: Tensor, layout: Tensor) -> Tensor:
        """Cross-entropies of int [B, 3, T] from states [B, T, D], summed over shape, color and size: float32 [B, T]."""
        normed = F.rms_norm(state.float(), state.shape[-1:])
        scores = torch.split(F.linear(normed, self.rows).float(), self.sizes, dim=-1)
        each = [F.cross_entropy(x.transpose(1, 2), layout[:, i], reduction="none") for i, x in enumerate(scores)]
        return torch.stack(each).sum(0)

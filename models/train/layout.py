"""Object layout that a caption describes, and an auxiliary loss that makes an early layer encode it."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import scenes
from models.quality.reading import COLORS, PLACES, SHAPES, SIZES, claims_of

LAYOUT_GAIN = 2.0  # length of a class's direction; hidden states have root mean square 1
# In pixels of a 128 x 128 scene: smallest radius of a large object (21) plus largest offset of a centre from its place per axis (5).
OBJECT_REACH_PX = 26.0


def layout_of(caption: str, grid: int) -> Tensor:
    """Return shape, color and size of the object that the caption puts at each cell, int64 [3, grid, grid]; 0 is none.

    An object covers the cells whose centre is within OBJECT_REACH_PX of its place; the nearest object wins. All zero
    for a caption that does not follow the grammar of `models.scenes`.
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
    """Return the first rows of each object of a layout int64 [B, 3, T] as bool [B, T].

    A cell belongs to the first rows if the cell an eighth of the grid above holds another object or none.
    """
    rows = max(math.isqrt(layout.shape[-1]) // 8, 1)
    above = F.pad(layout, (rows * math.isqrt(layout.shape[-1]), 0))[..., : layout.shape[-1]]
    return (layout[:, 0] > 0) & (layout != above).any(1)


class LayoutHead(nn.Module):
    """Predicts the caption's layout (`layout_of`) from hidden states: deep supervision (Lee et al. 2015).

    It has no trained weights: the classes are fixed random directions.
    """

    rows: Tensor

    def __init__(self, dim: int, rng: np.random.Generator) -> None:
        super().__init__()
        self.sizes = [len(SHAPES), 1 + len(COLORS), 1 + len(SIZES)]
        rows = rng.standard_normal((sum(self.sizes), dim)) * (LAYOUT_GAIN / dim**0.5)
        self.register_buffer("rows", torch.from_numpy(rows).float())

    def forward(self, state: Tensor, layout: Tensor) -> Tensor:
        """Return the cross-entropy summed over shape, color and size, float32 [B, T].

        Args:
            state: hidden states [B, T, D].
            layout: int64 [B, 3, T], see `layout_of`.
        """
        normed = F.rms_norm(state.float(), state.shape[-1:])
        scores = torch.split(F.linear(normed, self.rows).float(), self.sizes, dim=-1)
        each = [F.cross_entropy(x.transpose(1, 2), layout[:, i], reduction="none") for i, x in enumerate(scores)]
        return torch.stack(each).sum(0)

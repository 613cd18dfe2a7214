"""Regions of images with a plain white background, from their tokens."""

import math

import numpy as np
import torch

from models.vq import VQModel

REGIONS = ("background", "object", "border")


def white_codes(tokenizer: VQModel, image_size: int) -> np.ndarray:
    """Return the codes that occur in a white image, int64 [n]."""
    with torch.inference_mode():
        white = torch.ones(1, 3, image_size, image_size).to(next(tokenizer.parameters()))
        return np.unique(tokenizer.encode_codes(white).cpu().numpy())


def regions_of(tokens: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return the index into `REGIONS` of each token, int64 [N, T], for tokens int [N, T].

    Background tokens have a white code. Border tokens are other tokens with a background token, or the image's edge, among their eight
    neighbours.
    """
    grid = math.isqrt(tokens.shape[1])
    background = np.isin(tokens, white).reshape(-1, grid, grid)
    around = np.pad(background, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    near = np.any([around[:, y : y + grid, x : x + grid] for y in range(3) for x in range(3)], axis=0)
    return np.where(background, 0, np.where(near, 2, 1)).reshape(tokens.shape)

"""Effect of a token in pixels: how much an image changes if one of its tokens is replaced."""

import numpy as np
import torch
from torch import Tensor

from models.vq import VQModel

WINDOW_PX = 8  # side of the square around a token in which a change is measured
SMALL_RMS = 8.0  # a change below this RMS of 8-bit values counts as small
BATCH = 32  # images decoded at once


@torch.inference_mode()
def pixel_changes(tokenizer: VQModel, tokens: Tensor, positions: np.ndarray, one: Tensor, other: Tensor) -> np.ndarray:
    """Return the RMS difference of 8-bit values between two images of a sequence that differ in the token at one position, float64 [P].

    The difference is taken over a square of `WINDOW_PX` pixels per side centred on the token's own square, or over that square if it is as
    large. It is 0 where both tokens are equal.

    Args:
        tokenizer: decodes the tokens.
        tokens: int [T], the sequence.
        positions: int [P], the compared positions.
        one: int [P], tokens at these positions in the first image.
        other: int [P], tokens at these positions in the second image.
    """
    grid, side = round(len(tokens) ** 0.5), tokenizer.config.downsample
    margin = max(0, (WINDOW_PX - side) // 2)
    found = np.zeros(len(positions))
    differing = [index for index in range(len(positions)) if int(one[index]) != int(other[index])]
    device = next(tokenizer.parameters()).device
    for first in range(0, len(differing), BATCH):
        chunk = differing[first : first + BATCH]
        changed = tokens.repeat(2 * len(chunk), 1)  # [2 B, T]
        for row, index in enumerate(chunk):
            changed[row, positions[index]] = one[index]
            changed[len(chunk) + row, positions[index]] = other[index]
        images = tokenizer.to_bytes(tokenizer.decode_codes(changed.to(device))).cpu().numpy().astype(np.float64)
        for row, index in enumerate(chunk):
            y, x = divmod(int(positions[index]), grid)
            window = np.s_[
                max(0, y * side - margin) : (y + 1) * side + margin, max(0, x * side - margin) : (x + 1) * side + margin
            ]
            difference = images[row][window] - images[len(chunk) + row][window]
            found[index] = float(np.sqrt(np.square(difference).mean()))
    return found

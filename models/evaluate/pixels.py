"""Effect of a token in pixels: how much an image changes where another token stands at one position of it."""

import numpy as np
import torch
from torch import Tensor

from models.vq import VQModel

WINDOW_PX = 8  # side of the square around a token in which a change is measured
SMALL_RMS = 8.0  # of 255: a change below it is called small
BATCH = 32  # images decoded at once


@torch.inference_mode()
def pixel_changes(tokenizer: VQModel, tokens: Tensor, positions: np.ndarray, one: Tensor, other: Tensor) -> np.ndarray:
    """float64 [P]: root mean square difference, of 255, of the images of a sequence with either token at each position.

    The difference is taken over the `WINDOW_PX` pixels a side around the token's own square (the square itself where that is as large);
    0 where both tokens are the same.

    Args:
        tokens: int [T], the sequence.
        positions: int [P].
        one: int [P], the tokens to put there.
        other: int [P], those to put there instead.
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

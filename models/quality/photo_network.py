"""The photo network: reads the type and the colour that a caption names from a product photograph.

It is trained on real photographs (`models.train.judge`) and only judges: no recording depends on it.
Letters: B batch, C channels, S pixels per side, F features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.quality.network import ReadingNetwork, convolution, readings, with_weights
from models.quality.photo_reading import FEATURES, READING_DTYPE
from models.state import read_config
from simulator.core.errors import WeightsError

BATCH = 32  # images per pass, always the same number, so that a reading does not depend on the number of images


@dataclass(frozen=True)
class PhotoNetworkConfig:
    """Shape of the network, and the types and colours that it distinguishes.

    Attributes:
        image_size: pixels per side, S.
        kinds: types, as words of captions.
        colours: colours, as words of captions.
        widths: channels at S/4, S/8 and S/16 cells per side.
    """

    image_size: int
    kinds: tuple[str, ...]
    colours: tuple[str, ...]
    widths: tuple[int, int, int] = (48, 96, 128)

    def __post_init__(self) -> None:
        if not self.kinds or not self.colours or self.image_size % 16:
            raise ValueError(f"needs types, colours and a multiple of 16 pixels, got {self.image_size} pixels")


class PhotoRead(NamedTuple):
    """Logits and features of images."""

    kind: Tensor  # [B, types]
    colour: Tensor  # [B, colours]
    features: Tensor  # [B, F]: input of both heads


class PhotoNetwork(ReadingNetwork):
    """Five convolutions, mean and maximum over the image, a linear layer, and two heads on it. About 0.3 M weights."""

    def __init__(self, config: PhotoNetworkConfig) -> None:
        super().__init__()
        self.config = config
        one, two, three = config.widths
        self.trunk = nn.Sequential(
            convolution(3, one, 4, 4, 0),
            convolution(one, one, 3, 1, 1),
            convolution(one, two, 3, 2, 1),
            convolution(two, two, 3, 1, 1),
            convolution(two, three, 3, 2, 1),
        )
        self.hidden = nn.Linear(2 * three, FEATURES)
        self.kind_head = nn.Linear(FEATURES, len(config.kinds))
        self.colour_head = nn.Linear(FEATURES, len(config.colours))

    def forward(self, images: Tensor) -> PhotoRead:
        """Return logits and features of images float [B, 3, S, S] in [-1, 1]."""
        cells = self.trunk(images)  # [B, C, S/16, S/16]
        pooled = torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], dim=1)  # [B, 2 C]
        features = self.hidden(pooled)  # no ReLU: its dead units would carry no information
        return PhotoRead(self.kind_head(features), self.colour_head(features), features)


def read_photos(model: PhotoNetwork, images: np.ndarray) -> np.ndarray:
    """Return the network's readings READING_DTYPE [N] of images uint8 [N, S, S, 3]."""
    return readings(model, images, READING_DTYPE, BATCH)


def load_photo_network(path: Path) -> PhotoNetwork:
    """Load a photo network that `save_network` wrote, float32, in evaluation mode. Raises WeightsError."""
    try:
        config: dict[str, Any] = read_config(path, "about")["config"]
        texts = {key: tuple(value) for key, value in config.items() if key != "image_size"}
        model = PhotoNetwork(PhotoNetworkConfig(config["image_size"], **texts))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a photo network ({type(error).__name__}: {error})") from error
    return with_weights(model, path)

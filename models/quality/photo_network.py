"""The photo network: reads from a product photograph the type and the colour that its caption names.

It is trained on real photographs (`models.train.judge`) and only judges: nothing that is recorded depends on it.
Letters: B batch, C channels, S pixels per side, F features.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.quality.network import convolution
from models.quality.photo_reading import FEATURES, READING_DTYPE
from models.state import load_state, read_config, read_state, save_state
from models.vq import from_uint8
from simulator.core.errors import WeightsError

BATCH = 32  # images per pass: always as many, so that what is read in an image does not depend on its neighbours


@dataclass(frozen=True)
class PhotoNetworkConfig:
    """Shape of the network, and what it tells apart.

    Attributes:
        image_size: S, pixels per side.
        kinds: types, as words of captions.
        colours: colours, likewise.
        widths: channels at S/4, S/8 and S/16 cells a side.
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
    features: Tensor  # [B, F]: what both heads read


class PhotoNetwork(nn.Module):
    """Five convolutions, mean and maximum over the image, and a linear layer that both heads read. About 0.3 M weights."""

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
        """images: float [B, 3, S, S] in [-1, 1]."""
        cells = self.trunk(images)  # [B, C, S/16, S/16]
        pooled = torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], dim=1)  # [B, 2 C]
        features = self.hidden(pooled)  # without a ReLU, whose dead units say nothing of any image
        return PhotoRead(self.kind_head(features), self.colour_head(features), features)


@torch.inference_mode()
def read_photos(model: PhotoNetwork, images: np.ndarray) -> np.ndarray:
    """READING_DTYPE [N] of images uint8 [N, S, S, 3]."""
    results = np.zeros(len(images), READING_DTYPE)
    for first in range(0, len(images), BATCH):
        part = torch.from_numpy(np.array(images[first : first + BATCH]))
        read = model(F.pad(from_uint8(part), (0, 0, 0, 0, 0, 0, 0, BATCH - len(part))))
        rows = results[first : first + len(part)]
        for name in ("kind", "colour"):
            rows[name] = getattr(read, name).argmax(-1)[: len(part)].numpy()
        rows["features"] = read.features[: len(part)].float().numpy()
    return results


def save_photo_network(path: Path, model: PhotoNetwork, facts: dict[str, Any]) -> None:
    """Weights as fp16 safetensors, written atomically; the metadata holds the configuration and `facts` as JSON."""
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    # One metadata entry: safetensors writes several in random order, and equal networks should be equal bytes.
    save_state(path, state, {"about": json.dumps({"config": asdict(model.config), "facts": facts})})


def load_photo_network(path: Path) -> PhotoNetwork:
    """A network that `save_photo_network` wrote, float32, in evaluation mode. Raises WeightsError."""
    about, state = read_config(path, "about"), read_state(path)
    try:
        config: dict[str, Any] = about["config"]
        texts = {key: tuple(value) for key, value in config.items() if key != "image_size"}
        model = PhotoNetwork(PhotoNetworkConfig(config["image_size"], **texts))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: not a photo network ({type(error).__name__}: {error})") from error
    # Batch norms count the batches seen in training; these counts are not stored.
    counts = {key: value for key, value in model.state_dict().items() if not value.is_floating_point()}
    load_state(model, {**state, **counts}, path, exact=True)
    return model.eval().requires_grad_(False)

"""The scene network: reads the attributes of a caption of `models.scenes` from a 128 x 128 image.

A caption names shape, colour and size of the object at each of nine places, if any, and texture and colour of the background. The network
has one head for all nine places, which reads the same window around each place, and one for the background. It is trained on real renders
(`models.train.scene_network`) and only judges: no recording depends on it.
Letters: B batch, C channels, P = 9 places in the order of `scenes.PLACES`, F features.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import scenes
from models.quality.reading import FEATURES, READING_DTYPE
from models.state import load_state, read_config, read_state, save_state
from models.vq import from_uint8
from simulator.core.errors import WeightsError

BATCH = 16  # images per pass, always the same number, so that a reading does not depend on the number of images
_KINDS = (len(scenes.SHAPES) + 1, len(scenes.COLORS), len(scenes.SIZES))  # shape 0: no object
_BACKGROUND_KINDS = (len(scenes.TEXTURES), len(scenes.BACKGROUND_COLORS))


@dataclass(frozen=True)
class SceneNetworkConfig:
    """Widths of the trunk's three resolutions (64, 32 and 16 cells per side) and of the features of a place and the background."""

    widths: tuple[int, int, int] = (24, 48, 96)
    place_features: int = 40
    background_features: int = 24

    def __post_init__(self) -> None:
        if self.place_features + self.background_features != FEATURES:
            raise ValueError(f"place_features + background_features must be {FEATURES}")


class Read(NamedTuple):
    """Logits and features of images."""

    shape: Tensor  # [B, P, 7]; 0 is no object
    color: Tensor  # [B, P, 8]
    size: Tensor  # [B, P, 2]
    texture: Tensor  # [B, 5]
    background_color: Tensor  # [B, 6]
    features: Tensor  # [B, F]: inputs of the heads, the nine places averaged


class ReadingNetwork(nn.Module):
    """Base class of networks that read images. `config` is a dataclass, stored in the weight file."""

    config: Any


NetworkT = TypeVar("NetworkT", bound=ReadingNetwork)


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """Return a convolution without bias, a batch norm and a ReLU."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SceneNetwork(ReadingNetwork):
    """Five convolutions, then a head on a window per place, and a head on two convolutions and a mean. 0.35 M weights."""

    def __init__(self, config: SceneNetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or SceneNetworkConfig()
        one, two, three = self.config.widths
        self.trunk = nn.Sequential(
            convolution(3, one, 5, 2, 2),
            convolution(one, two, 3, 2, 1),
            convolution(two, two, 3, 1, 1),
            convolution(two, three, 3, 2, 1),
            convolution(three, three, 3, 1, 1),
        )
        # Cell i of 16 is centred at pixel 8 i. Windows of 6 cells start at cells 1, 5 and 9; their centres 28, 60 and 92 are within
        # 5 pixels of the places, 31, 64 and 97.
        self.place = convolution(three, self.config.place_features, 6, 4, 0)
        last = self.config.background_features
        self.background = nn.Sequential(convolution(three, two, 3, 2, 1), convolution(two, last, 3, 1, 1))
        self.place_head = nn.Linear(self.config.place_features, sum(_KINDS))
        self.background_head = nn.Linear(self.config.background_features, sum(_BACKGROUND_KINDS))

    def forward(self, images: Tensor) -> Read:
        """Return logits and features of images float [B, 3, 128, 128] in [-1, 1]."""
        cells = self.trunk(images)  # [B, C, 16, 16]
        places = self.place(cells[:, :, 1:15, 1:15]).flatten(2).transpose(1, 2)  # [B, P, place_features], row by row
        background = self.background(cells).mean((2, 3))  # [B, background_features]
        shape, color, size = self.place_head(places).split(_KINDS, dim=-1)
        texture, background_color = self.background_head(background).split(_BACKGROUND_KINDS, dim=-1)
        return Read(shape, color, size, texture, background_color, torch.cat([places.mean(1), background], dim=1))


def read_images(model: SceneNetwork, images: np.ndarray) -> np.ndarray:
    """Return the network's readings READING_DTYPE [N] of images uint8 [N, 128, 128, 3]."""
    return readings(model, images, READING_DTYPE, BATCH)


@torch.inference_mode()
def readings(model: ReadingNetwork, images: np.ndarray, dtype: np.dtype, batch: int) -> np.ndarray:
    """Return a network's readings `dtype` [N] of images uint8 [N, S, S, 3]: features, and the arg max of the logits of all other fields.

    Every pass has `batch` images; the last one is padded with zeros.
    """
    results = np.zeros(len(images), dtype)
    for first in range(0, len(images), batch):
        part = torch.from_numpy(np.array(images[first : first + batch]))
        read = model(F.pad(from_uint8(part), (0, 0, 0, 0, 0, 0, 0, batch - len(part))))  # of [batch, 3, S, S]
        rows = results[first : first + len(part)]
        for name in dtype.names or ():
            found = getattr(read, name)[: len(part)]
            rows[name] = (found.float() if name == "features" else found.argmax(-1)).numpy()
    return results


def save_network(path: Path, model: ReadingNetwork, facts: dict[str, Any]) -> None:
    """Write the weights as fp16 safetensors, atomically; the metadata holds the configuration and `facts` as JSON."""
    state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    # One metadata entry, because safetensors writes several in random order, and equal networks should have equal files.
    save_state(path, state, {"about": json.dumps({"config": asdict(model.config), "facts": facts})})


def load_scene_network(path: Path) -> SceneNetwork:
    """Load a scene network that `save_network` wrote, float32, in evaluation mode. Raises WeightsError."""
    try:
        config = read_config(path, "about")["config"]
        model = SceneNetwork(SceneNetworkConfig(**{**config, "widths": tuple(config["widths"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a scene network ({type(error).__name__}: {error})") from error
    return with_weights(model, path)


def with_weights(model: NetworkT, path: Path) -> NetworkT:
    """Load weights that `save_network` wrote into a network; return it in evaluation mode. Raises WeightsError."""
    # The batch norms' counts of training batches are not stored.
    counts = {key: value for key, value in model.state_dict().items() if not value.is_floating_point()}
    load_state(model, {**read_state(path), **counts}, path, exact=True)
    return model.eval().requires_grad_(False)

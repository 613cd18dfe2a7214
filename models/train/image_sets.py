"""Images with captions that a training file's `data:` names: which source reads them, and what every source gives."""

from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from models.text import WordEncoder
from models.train.data import DataConfig, Side, load_data
from models.train.photos import load_photos


class ImageSet(Protocol):
    """Images of one size with captions, on two sides."""

    @property
    def image_size(self) -> int:
        """S, pixels per side."""

    @property
    def text(self) -> WordEncoder:
        """An encoder for the captions."""

    def training_images(self, seed: int, first: int, count: int) -> Tensor:
        """float32 [count, 3, S, S] in [-1, 1]: a stretch of an endless reading of the training images in shuffled orders."""

    def held_out_images(self, first: int, count: int) -> Tensor:
        """float32 [count, 3, S, S] in [-1, 1]: distinct held-out images, in order; fewer, or none, at the end."""

    def digest(self) -> str:
        """A digest of the training images and of their order."""

    def tokens(self, side: Side, tokenizer: Path, cache_dir: Path) -> tuple[np.ndarray, list[str]]:
        """Tokens uint16 [N, T] and captions of one side, in order; tokens that `cache_dir` lacks are computed and added to it."""


def load_images(config: DataConfig, train_dir: Path) -> ImageSet:
    """The images that `config` names. `train_dir` keeps what is prepared only once, in pictures/. Raises DataError."""
    if config.photos is not None:
        return load_photos(Path(config.photos), config.image_size, train_dir / "pictures")
    return load_data(config)

"""Data sets of images with captions that `data:` of a training file selects."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from models.text import WordEncoder
from models.train.data import DataConfig, Side, load_data
from models.train.photos import load_photos


class ImageSet(Protocol):
    """Images of one size with captions, split into training and held-out images."""

    @property
    def image_size(self) -> int:
        """Pixels per side, S."""

    @property
    def text(self) -> WordEncoder:
        """Encoder for the captions."""

    def training_images(self, seed: int, first: int, count: int) -> Tensor:
        """Return images first .. first+count-1 of an endless sequence of shuffled epochs, float32 [count, 3, S, S] in [-1, 1]."""

    def held_out_images(self, most: int) -> Iterator[Tensor]:
        """Yield distinct held-out images, at most `most` (`evenly_spread`), 16 at a time: float32 [<= 16, 3, S, S] in [-1, 1]."""

    def digest(self) -> str:
        """Return a digest of the training images and their order."""

    def tokens(self, side: Side, tokenizer: Path, cache_dir: Path) -> tuple[np.ndarray, list[str]]:
        """Return tokens uint16 [N, T] and captions of one side, in order; missing tokens are computed and added to `cache_dir`."""


def load_images(config: DataConfig, train_dir: Path) -> ImageSet:
    """Return the data set that `config` selects. Prepared photographs are cached in `train_dir/pictures`. Raises DataError."""
    if config.photos is not None:
        return load_photos(Path(config.photos), config.image_size, train_dir / "pictures")
    return load_data(config)

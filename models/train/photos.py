"""Training data from product photographs in tar files, with a table of their attributes.

    data: {photos: DIR, image_size: 64}

DIR holds `photos-*.tar`, whose members are images named `ID.jpg`, and `captions.csv` with the columns `COLUMNS` and a row per image;
`split` is `train` or `held-out`. `caption_of` builds the captions from the columns; their words are the vocabulary.

Images are padded to a square with white and resized once. The result is cached in the training folder as one array, uint8 [N, S, S, 3].
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor

from models.images import UNREADABLE, rgb_of
from models.text import WordEncoder
from models.train.data import HELD_OUT_AT_ONCE, PART_IMAGES, Side, file_text, kept_tokens, placed_rows, shuffled
from models.train.inputs import digest_of_bytes
from models.train.kept import load_array, save_array
from models.train.order import evenly_spread
from models.vq import from_uint8
from models.words import words_of
from simulator.core.errors import DataError
from simulator.core.files import open_file

COLUMNS = ("id", "split", "category", "kind", "type", "colour", "use", "title")
SPLITS: tuple[Side, Side] = ("train", "held-out")
CAPTION_WORDS = 16  # maximum length of a caption, and number of slots of the encoder
# Preparation of the images. The name of the cached array depends on it.
PREPARED = b"upright, padded with white, Lanczos, 2"

# Words of product titles that describe what is visible: target group, pattern, cut, material, further colours.
TITLE_WORDS = frozenset(
    words_of("""
    men women unisex boys girls kids infant
    printed print graphic solid plain striped stripes stripe check checks checked polka floral logo embroidered melange washed denim
    polo round neck v-neck collar hooded sleeveless sleeve full half long short slim skinny regular fit pleated checkered reversible
    leather leatherette canvas mesh silk cotton metal fleece woven suede
    dial chronograph analog digital analogue strap aviator wayfarer oval rectangular
    sling tote clutch hobo duffle laptop trolley backpack
    running training tennis football cricket sneaker sneakers wedges pumps ballerinas slippers slipper floaters boots loafers lace-up
    shirt t-shirt jersey tank vest camisole blouse tee top kurta anarkali salwar capri track pack set stone drop hoop stud bracelet chain
    black white blue brown red grey green pink purple silver gold yellow beige maroon orange olive cream navy peach teal tan
""")
)
SAME_WORD = {
    "men's": "men",
    "mens": "men",
    "man": "men",
    "women's": "women",
    "womens": "women",
    "woman": "women",
    "boy's": "boys",
    "boy": "boys",
    "girl's": "girls",
    "girl": "girls",
    "kid's": "kids",
    "tshirt": "t-shirt",
    "tshirts": "t-shirt",
    "t-shirts": "t-shirt",
    "golden": "gold",
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: name of the photograph in a tar.
        caption: see `caption_of`.
        place: file and line of the row, for error messages.
        colour: words of its colour in the caption.
        kind: words of its column `type` in the caption.
    """

    name: str
    caption: str
    place: str
    colour: str
    kind: str


class Photos:
    """Photographs with captions, an `ImageSet` (`models.train.image_sets`).

    Args:
        train: rows of the training photographs.
        held_out: rows of the held-out photographs.
        images: uint8 [N, S, S, 3], training photographs first.
    """

    def __init__(self, train: Sequence[Row], held_out: Sequence[Row], images: np.ndarray) -> None:
        self.rows: dict[Side, Sequence[Row]] = {"train": train, "held-out": held_out}
        self.images: dict[Side, np.ndarray] = {"train": images[: len(train)], "held-out": images[len(train) :]}
        self.image_size = int(images.shape[1])

    @cached_property
    def text(self) -> WordEncoder:
        """Encoder for the words of all captions."""
        return WordEncoder.build(
            sorted({w for rows in self.rows.values() for row in rows for w in words_of(row.caption)}), CAPTION_WORDS
        )

    def training_images(self, seed: int, first: int, count: int) -> Tensor:
        """See `ImageSet.training_images`."""
        index = shuffled(range(len(self.rows["train"])), seed, first, count)
        return _floats(self.images["train"][index])

    def held_out_images(self, most: int) -> Iterator[Tensor]:
        """See `ImageSet.held_out_images`."""
        chosen = evenly_spread(len(self.rows["held-out"]), most)
        for first in range(0, len(chosen), HELD_OUT_AT_ONCE):
            yield _floats(self.images["held-out"][chosen[first : first + HELD_OUT_AT_ONCE]])

    def digest(self) -> str:
        """Return a digest of the training images and their order."""
        images = self.images["train"]
        parts = (images[first : first + PART_IMAGES].tobytes() for first in range(0, len(images), PART_IMAGES))
        return digest_of_bytes(parts)

    def tokens(self, side: Side, tokenizer: Path, cache_dir: Path) -> tuple[np.ndarray, list[str]]:
        """See `ImageSet.tokens`. A part of the cache is named by a digest of its pixels."""
        images = self.images[side]
        parts = [images[first : first + PART_IMAGES] for first in range(0, len(images), PART_IMAGES)]
        keys = [hashlib.blake2b(part.tobytes(), digest_size=12).hexdigest() for part in parts]
        codes = kept_tokens(tokenizer, self.image_size, cache_dir, list(zip(keys, parts, strict=True)), _floats)
        return codes, [row.caption for row in self.rows[side]]


def load_photos(folder: Path, size: int, cache_dir: Path) -> Photos:
    """Load the photographs of a folder at `size` pixels per side, from the cached array in `cache_dir` or by preparing it.

    Raises:
        DataError: with file and line: a missing or unreadable file, a malformed row, an image that no tar holds or that cannot be decoded.
    """
    rows = list(_rows(folder / "captions.csv"))
    sides = {split: [row for side, row in rows if side == split] for split in SPLITS}
    for split, found in sides.items():
        if not found:
            raise DataError(f"{folder / 'captions.csv'}: of {len(rows)} rows none has the split {split}")
    train, held_out = (sides[split] for split in SPLITS)
    return Photos(train, held_out, _packed(folder, [*train, *held_out], size, cache_dir))


def caption_of(colour: str, kind: str, use: str, title: str) -> str:
    """Return "a COLOUR TYPE for USE" and the words of the title that are in `TITLE_WORDS` and not yet in the caption; lower case.

    `kind` is the column `type`. The caption is cut after `CAPTION_WORDS` words.
    """
    words = words_of(f"a {colour} {kind} for {use}")
    for word in words_of(title):
        word = SAME_WORD.get(word, word)
        if word in TITLE_WORDS and word not in words:
            words.append(word)
    return " ".join(words[:CAPTION_WORDS])


def _floats(images: np.ndarray) -> Tensor:
    return from_uint8(torch.from_numpy(np.array(images)))  # copied, because the array is a read-only memory map


def _rows(path: Path) -> Iterator[tuple[Side, Row]]:
    rows = placed_rows(path, file_text(path))
    seen: dict[str, str] = {}
    _, header = next(rows, ("", []))
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}:1: the columns must be {','.join(COLUMNS)}, found {','.join(header) or 'nothing'}")
    for place, values in rows:
        if len(values) != len(COLUMNS):
            raise DataError(f"{place}: {len(values)} columns, must be {len(COLUMNS)}")
        row = dict(zip(COLUMNS, (value.strip() for value in values), strict=True))
        if not row["id"].isdigit():
            raise DataError(f"{place}: id must be a number, got {row['id'] or 'nothing'}")
        if row["id"] in seen:
            raise DataError(f"{place}: duplicate: {row['id']} is already at {seen[row['id']]}")
        seen[row["id"]] = place
        side = next((split for split in SPLITS if split == row["split"]), None)
        if side is None:
            raise DataError(f"{place}: split must be {' or '.join(SPLITS)}, got {row['split'] or 'nothing'}")
        for column in ("type", "colour", "use"):
            if not words_of(row[column]):
                raise DataError(f"{place}: {column} is empty")
        caption = caption_of(row["colour"], row["type"], row["use"], row["title"])
        colour, kind = (" ".join(words_of(row[column])) for column in ("colour", "type"))
        yield side, Row(f"{row['id']}.jpg", caption, place, colour, kind)


def _packed(folder: Path, rows: Sequence[Row], size: int, cache_dir: Path) -> np.ndarray:
    """Return the prepared images as a memory map, uint8 [N, size, size, 3]. Its file is named by a digest of all image files in order."""
    files = _members(folder)
    content = hashlib.blake2b(PREPARED, digest_size=12)
    for row in rows:
        if row.name not in files:
            raise DataError(f"{row.place}: {row.name} is in none of the photos-*.tar of {folder}")
        content.update(hashlib.blake2b(files[row.name][1], digest_size=16).digest())
    path = cache_dir / f"{content.hexdigest()}-{size}px.npy"
    if not path.exists():
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for index, row in enumerate(track(rows, description="photographs", console=Console(stderr=True))):
            images[index] = _prepared(row, *files[row.name], size)
        save_array(path, images)
    return load_array(path, np.uint8, (len(rows), size, size, 3), mapped=True)


def _members(folder: Path) -> dict[str, tuple[Path, bytes]]:
    """Return path of the tar and content of every file in the folder's tars, by file name."""
    tars = sorted(folder.glob("photos-*.tar"))
    if not tars:
        raise DataError(f"{folder}: no photos-*.tar there; the folder of the photographs is given with --data")
    files: dict[str, tuple[Path, bytes]] = {}
    for path in tars:
        try:
            with open_file(path) as file, tarfile.open(fileobj=file) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None:
                        files[Path(member.name).name] = path, content.read()
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{path}: not a readable tar: {error}") from error
    return files


def _prepared(row: Row, tar: Path, content: bytes, size: int) -> np.ndarray:
    """Return the image centred on a white square, resized (Lanczos), uint8 [size, size, 3]."""
    try:
        rgb = rgb_of(Image.open(io.BytesIO(content)))
    except UNREADABLE as error:
        raise DataError(f"{row.place}: {row.name} of {tar} cannot be decoded: {error}") from error
    return np.asarray(ImageOps.pad(rgb, (size, size), Image.Resampling.LANCZOS, color=(255, 255, 255)))

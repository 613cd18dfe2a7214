"""Training data from a folder of images with captions, in place of scenes.

Layout 1, a captions file in the folder of the images: CSV with the columns `file,caption`, or JSON lines with the same keys:

    data: {folder: my-images, captions: captions.csv}

Layout 2, COCO's annotations: `images/` and `annotations/captions_*.json`, several captions per image:

    data: {coco: coco-2017}

Layout 3, photographs in tar files: `models.train.photos`.

Images are cropped to their central square and resized; transparent pixels become white. A hash of the file name decides whether an image is
held out. The vocabulary consists of the words of the training captions.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator, model_validator
from rich.console import Console
from rich.progress import track
from torch import Tensor

from models.images import UNREADABLE, rgb_of
from models.text import CAPTION_SLOTS, UNKNOWN, WordEncoder
from models.train.inputs import digest_of_bytes
from models.train.kept import load_array, save_array
from models.train.order import evenly_spread, shuffled_indices
from models.vq import from_uint8, load_vq
from models.words import words_of
from simulator.core.errors import DataError, reason
from simulator.core.files import read_file
from simulator.core.part import Part, folder_of
from simulator.core.settings import refuse

Side = Literal["train", "held-out"]
SourceT = TypeVar("SourceT")
SOURCES = ("folder", "coco", "photos")  # keys of `DataConfig`
PART_IMAGES = 512
HELD_OUT_AT_ONCE = 16  # images that `held_out_images` yields together
_BATCH_IMAGES = 32  # fixed: floating point may differ between batch sizes


class DataConfig(Part):
    """The mapping under `data:` of a training file. Exactly one of `folder`, `coco` and `photos` must be set.

    Relative paths start at the training file's folder. The table of `photos` defines captions and held-out images, so
    `captions`, `held_out`, `words` and `unknown_words` apply to the other two only.

    Attributes:
        captions: file in `folder` with the names of the images and their captions, .csv, .jsonl or .ndjson.
        image_size: pixels per side after resizing; the token grid times the tokenizer's down-sampling.
        held_out: share of held-out images.
        words: maximum size of the vocabulary; the most frequent words are kept.
        unknown_words: treatment of other words: `replace` (they share one vector, in prompts too) or `error`.
    """

    folder: str | None = None
    coco: str | None = None
    photos: str | None = None
    captions: str = "captions.csv"
    image_size: int = Field(default=128, gt=0, le=4096)
    held_out: float = Field(default=0.05, gt=0, lt=1)
    words: int = Field(default=4000, gt=0, le=10**6)
    unknown_words: Literal["replace", "error"] = "replace"

    @field_validator("folder", "coco", "photos")
    @classmethod
    def _relative_to_the_file(cls, path: str | None, info: ValidationInfo) -> str | None:
        return None if path is None else str(folder_of(info) / path)

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        named = [key for key in SOURCES if getattr(self, key) is not None]
        if len(named) != 1:
            refuse(f"needs one of {', '.join(SOURCES)}, got {' and '.join(named) or 'none'}")
        if self.photos is not None:
            for key in ("captions", "held_out", "words", "unknown_words"):
                if key in self.model_fields_set:
                    refuse("does not apply to photos, whose table defines it", key)
        return self

    def at(self, folder: Path) -> "DataConfig":
        """Return the same settings with the source in another folder."""
        return self.model_copy(update={key: str(folder) for key in SOURCES if getattr(self, key) is not None})


@dataclass(frozen=True)
class Item:
    """An image and one of its captions.

    Attributes:
        path: file of the image.
        name: name in the captions file.
        caption: the caption.
        place: position in the captions file, for error messages.
    """

    path: Path
    name: str
    caption: str
    place: str


@dataclass(frozen=True)
class DataSet:
    """Training items and held-out items; all captions of an image are on one side. An `ImageSet` (`models.train.image_sets`)."""

    train: list[Item]
    held_out: list[Item]
    image_size: int
    words: int
    unknown_words: str

    @cached_property
    def text(self) -> WordEncoder:
        """Encoder for the words of the training captions or, if `unknown_words` is `error`, of all captions. Raises DataError."""
        items = self.train if self.unknown_words == "replace" else [*self.train, *self.held_out]
        return WordEncoder.build(vocabulary(items, self.words, self.unknown_words))

    def training_images(self, seed: int, first: int, count: int) -> Tensor:
        """See `ImageSet.training_images`."""
        return images(shuffled(self.train, seed, first, count), self.image_size)

    def held_out_images(self, most: int) -> Iterator[Tensor]:
        """See `ImageSet.held_out_images`."""
        distinct = list({item.path: item for item in self.held_out}.values())
        chosen = [distinct[index] for index in evenly_spread(len(distinct), most)]
        for first in range(0, len(chosen), HELD_OUT_AT_ONCE):
            yield images(chosen[first : first + HELD_OUT_AT_ONCE], self.image_size)

    def digest(self) -> str:
        names = "\n".join(item.name for item in self.train).encode()
        paths = dict.fromkeys(item.path for item in self.train)
        return digest_of_bytes(chain((names, str(self.image_size).encode()), (path.read_bytes() for path in paths)))

    def tokens(self, side: Side, tokenizer: Path, cache_dir: Path) -> tuple[np.ndarray, list[str]]:
        return data_tokens(tokenizer, self.train if side == "train" else self.held_out, self.image_size, cache_dir)


def load_data(config: DataConfig) -> DataSet:
    """Read the captions and check that every image exists and can be opened. No image is decoded yet.

    Raises:
        DataError: with file and line: a missing or unreadable file, a malformed line, an empty caption, a duplicate, or
            no image on one side.
    """
    items = list(
        _folder_items(Path(config.folder), config.captions)
        if config.folder is not None
        else _coco_items(Path(str(config.coco)))
    )
    checked: set[Path] = set()
    for item in items:
        if not words_of(item.caption):
            raise DataError(f"{item.place}: the caption of {item.name} is empty")
        if item.path not in checked:
            _open(item).close()
            checked.add(item.path)
    held = [item for item in items if is_held_out(item.name, config.held_out)]
    rest = [item for item in items if not is_held_out(item.name, config.held_out)]
    for side, part in (("held out", held), ("left for training", rest)):
        if not part:
            source = config.folder if config.folder is not None else config.coco
            raise DataError(
                f"{source}: of {len(items)} captions none is {side} at held_out {config.held_out}; add images or change it"
            )
    return DataSet(rest, held, config.image_size, config.words, config.unknown_words)


def is_held_out(name: str, share: float) -> bool:
    """Return whether an image is held out, by a hash of its name: adding images moves no other image to the other side."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") < share * 2**64


def vocabulary(items: Sequence[Item], limit: int, unknown_words: str) -> list[str]:
    """Return the `limit` most frequent words of the captions (ties by spelling), sorted; preceded by `UNKNOWN` for `replace`.

    Raises:
        DataError: `unknown_words` is `error` and a caption has a word beyond the limit.
    """
    counts = Counter(word for item in items for word in words_of(item.caption))
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
    if unknown_words == "replace":
        return [UNKNOWN, *sorted(set(kept) - {UNKNOWN})]
    known = set(kept)
    for item in items:
        for word in words_of(item.caption):
            if word not in known:
                raise DataError(
                    f"{item.place}: {word!r} is not among the {limit} words of the vocabulary ({len(counts)} words in all); "
                    "raise data.words or set data.unknown_words: replace"
                )
    return sorted(kept)


def read_image(item: Item, size: int) -> np.ndarray:
    """Return the image's central square, resized (Lanczos), uint8 [size, size, 3]. Raises DataError if it cannot be decoded."""
    with _open(item) as picture:
        try:
            rgb = rgb_of(picture)
        except UNREADABLE as error:
            raise DataError(f"{item.place}: {item.path} cannot be decoded: {error}") from error
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def images(items: Sequence[Item], size: int) -> Tensor:
    """Return images float32 [N, 3, size, size] in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.stack([read_image(item, size) for item in items])))


def shuffled(items: Sequence[SourceT], seed: int, first: int, count: int) -> list[SourceT]:
    """Return items first .. first+count-1 of an endless sequence of epochs, each epoch in its own shuffled order."""
    return [items[at] for at in shuffled_indices(seed, "train.data.order", first, count, len(items)).tolist()]


def data_tokens(tokenizer: Path, items: Sequence[Item], size: int, cache_dir: Path) -> tuple[np.ndarray, list[str]]:
    """Return tokens uint16 [N, T] and captions of items, in order; missing tokens are computed and added to `cache_dir`.

    A part of the cache is named by a digest of its image files.
    """
    first_of = {item.path: item for item in reversed(items)}  # the first item of each image
    distinct = [first_of[path] for path in dict.fromkeys(item.path for item in items)]
    parts: list[tuple[str, Sequence[Item]]] = []
    for begin in range(0, len(distinct), PART_IMAGES):
        content = hashlib.blake2b(digest_size=12)
        for item in distinct[begin : begin + PART_IMAGES]:
            content.update(hashlib.blake2b(item.path.read_bytes(), digest_size=16).digest())
        parts.append((content.hexdigest(), distinct[begin : begin + PART_IMAGES]))
    codes = kept_tokens(tokenizer, size, cache_dir, parts, lambda part: images(part, size))
    row = {item.path: index for index, item in enumerate(distinct)}
    return codes[[row[item.path] for item in items]], [cut(item.caption) for item in items]


def kept_tokens(
    tokenizer: Path, size: int, cache_dir: Path, parts: Sequence[tuple[str, Any]], read: Callable[[Any], Tensor]
) -> np.ndarray:
    """Return tokens uint16 [N, T] of images in parts; missing tokens are computed and added to `cache_dir`.

    Args:
        tokenizer: file of the tokenizer; its digest is part of the cache's folder name.
        size: pixels per side.
        cache_dir: folder of the cache.
        parts: name, which must depend on the content, and images of each part, in any form that can be sliced.
        read: converts a slice of a part's images to float32 [n, 3, size, size].
    """
    weights = hashlib.blake2b(tokenizer.read_bytes(), digest_size=6).hexdigest()
    folder = cache_dir / f"{weights}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    codes: list[np.ndarray] = []
    for name, part in track(parts, description="tokens of the data set", console=Console(stderr=True)):
        path = folder / f"{name}.npy"
        if not path.exists():
            model = model or load_vq(tokenizer)
            with torch.inference_mode():
                batches = [part[begin : begin + _BATCH_IMAGES] for begin in range(0, len(part), _BATCH_IMAGES)]
                found = torch.cat([model.encode_codes(read(batch)) for batch in batches])
            save_array(path, found.numpy().astype(np.uint16))
        codes.append(load_array(path, np.uint16, (len(part), None)))
    return np.concatenate(codes)


def cut(caption: str) -> str:
    """Return the caption's first `CAPTION_SLOTS` words."""
    return " ".join(words_of(caption)[:CAPTION_SLOTS])


# ---- layouts ----------------------------------------------------------------------------------------------------------------------


def _open(item: Item) -> Image.Image:
    if item.path.exists() and not item.path.is_file():
        raise DataError(f"{item.place}: {item.path} is not a regular file")
    try:
        return Image.open(item.path)
    except FileNotFoundError:
        raise DataError(f"{item.place}: {item.path}: no such file") from None
    except UNREADABLE as error:
        raise DataError(f"{item.place}: {item.path} is not a readable image: {error}") from error


def _folder_items(folder: Path, captions: str) -> Iterator[Item]:
    path = folder / captions
    text = file_text(path)
    if path.suffix == ".csv":
        rows = _csv_rows(path, text)
    elif path.suffix in (".jsonl", ".ndjson"):
        rows = _json_rows(path, text)
    else:
        raise DataError(f"{path}: the captions file must be .csv, .jsonl or .ndjson")
    seen: dict[str, str] = {}
    for place, name, caption in rows:
        if not name:
            raise DataError(f"{place}: the file's name is empty")
        if name in seen:
            raise DataError(f"{place}: duplicate: {name} is already at {seen[name]}")
        seen[name] = place
        yield Item(_inside(folder, name, place), name, caption, place)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    rows = placed_rows(path, text)
    header = [column.strip() for column in next(rows, ("", []))[1]]
    if sorted(header) != ["caption", "file"]:
        raise DataError(f"{path}:1: the columns must be file,caption, found {','.join(header) or 'nothing'}")
    for place, row in rows:
        if not row:
            continue
        if len(row) != 2:
            raise DataError(f"{place}: {len(row)} columns, must be 2; put a caption with commas in double quotes")
        yield place, row[header.index("file")].strip(), row[header.index("caption")]


def placed_rows(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place, `file:line` of its first line, and the cells of every row of a CSV. Raises DataError for an open quote."""
    # splitlines would cut captions at U+2028 and others.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begin = 1
    try:
        for row in reader:
            place, begin = f"{path}:{begin}", reader.line_num + 1
            yield place, row
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file", "caption")):
            raise DataError(f"{place}: must be an object with the texts file and caption, found {line.strip()[:80]}")
        yield place, row["file"], row["caption"]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it has a key twice."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)} occurs twice")
    return dict(pairs)


def _coco_items(folder: Path) -> Iterator[Item]:
    files = sorted((folder / "annotations").glob("captions_*.json"))
    if not files:
        raise DataError(f"{folder / 'annotations'}: no captions_*.json there")
    owner: dict[str, str] = {}
    for path in files:
        try:
            found = json.loads(file_text(path))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON: {error}") from error
        try:
            pictures = [(entry["id"], entry["file_name"]) for entry in found["images"]]
            captions = [(entry["image_id"], entry["caption"]) for entry in found["annotations"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: not COCO's captions: images need id and file_name, annotations image_id and caption"
            ) from error
        names: dict[Any, str] = {}
        for index, (key, name) in enumerate(pictures):
            place = f"{path}: images[{index}]"
            if not isinstance(name, str) or not isinstance(key, (int, str)):
                raise DataError(f"{place}: id must be a number and file_name text")
            if key in names or name in owner:
                raise DataError(f"{place}: duplicate: id {key} or file {name} is already at {owner.get(name, path)}")
            names[key] = name
            owner[name] = place
        for index, (key, caption) in enumerate(captions):
            place = f"{path}: annotations[{index}]"
            if not isinstance(key, (int, str)) or key not in names:
                raise DataError(f"{place}: no image has the id {key}")
            if not isinstance(caption, str):
                raise DataError(f"{place}: the caption must be text, got {caption!r}")
            yield Item(_inside(folder / "images", names[key], place), names[key], caption, place)


def _inside(folder: Path, name: str, place: str) -> Path:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{place}: {name} leaves the folder {folder}")
    return path


def file_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises DataError if it cannot be read."""
    try:
        return read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error

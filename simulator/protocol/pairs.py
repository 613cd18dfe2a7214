"""Model pairs on disk without loading a model: the manifest `pair.json` and the files that it lists.

A pair is a folder: `pair.json`, and safetensors files of a text encoder, an image tokenizer, a cloud model (in shards),
a device model, a projection phi and, in a pair for the methods that need it, a feature-level drafter. Shipped pairs live in
models/weights/ and have their folder's name.

A pair may also be a mapping (`PairSpec`): a published backbone with its files as they were downloaded, see
`simulator/protocol/backbones.py`.

Longer than other files, because the manifest and its checks belong together.
"""

import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from pydantic import Field, ValidationInfo, field_validator

from simulator.core.errors import WeightsError, reason
from simulator.core.files import open_file, read_file
from simulator.core.part import Part, found_text, path_of
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.protocol.backbones import BACKBONES, Backbone, function_of
from simulator.protocol.messages import Widths

FORMAT = 1
MANIFEST = "pair.json"
GUIDANCE = 3.0  # of a pair that names none
WEIGHTS = ".safetensors"
DRAFTER = "drafter.safetensors"  # optional
# Needed in addition to the shards of the cloud model. Every file that determines tokens and images must be listed, because the keys of
# recordings depend on its hash.
NEEDED = ("text.safetensors", "tokenizer.safetensors", "device.safetensors", "phi.safetensors")
LONGEST_NAME = 255  # bytes of a file name
SUBJECTS = {  # what a pair's images show
    "scenes": "rendered scenes of shaded objects",
    "photos": "product photographs",
    "other": "images of a data set",  # neither captions nor a judge of its own
}
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "weights"


# Largest accepted sizes. Token ids and image positions are sent as uint16; the other limits are far above any known model.
LARGEST = {
    "n_layer": 1024,
    "n_head": 1024,
    "dim": 65536,
    "ffn_hidden": 2**20,
    "vocab_size": 65536,
    "caption_slots": 4096,
    "caption_dim": 65536,
    "grid": 255,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a decoder.

    Attributes:
        n_layer: decoder layers.
        n_head: attention heads.
        dim: D, width of the hidden states; a multiple of 4 * n_head (two rotary axes of channel pairs).
        ffn_hidden: hidden width of the feed-forward layers.
        vocab_size: V, image codes.
        caption_slots: caption positions before the image.
        caption_dim: width of the caption features.
        grid: side of the token grid.
        rope_base: base of the rotary frequencies.
        norm_eps: epsilon of the RMS norms.

    Raises:
        ValueError: a size is outside 1 .. LARGEST, or dim and n_head do not fit.
    """

    n_layer: int
    n_head: int
    dim: int
    ffn_hidden: int
    vocab_size: int
    caption_slots: int
    caption_dim: int
    grid: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be 1 to {largest}, got {shortened(getattr(self, name))}")
        for name in ("rope_base", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.dim % (4 * self.n_head):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 4 * n_head ({4 * self.n_head}): two rotary axes of pairs"
            )

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.dim // self.n_head

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the token maps, one per pass, the smallest first (VAR); empty: one pass per token."""
        return ()

    @property
    def tokens(self) -> int:
        """T, image tokens per image, over all scales."""
        return sum(side * side for side in self.scales or (self.grid,))

    @property
    def positions(self) -> int:
        """S, positions of a full sequence: the caption slots and the image tokens."""
        return self.caption_slots + self.tokens


def shortened(number: float) -> str:
    """Return a number as text for an error message; a large integer as its order of magnitude."""
    if isinstance(number, int) and abs(number) >= 10**18:
        return f"about {'-' if number < 0 else ''}10^{int(number.bit_length() * math.log10(2))}"
    return str(number)


class PairFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a pair: its name inside the folder, its size, and the SHA-256 of its content in hex."""

    name: str
    bytes: int
    sha256: str


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Published figures instead of weights, from which sessions are generated (`simulator/protocol/statistical.py`).

    Attributes:
        source: where the figures are published.
        cloud_call_pct: cloud passes that decide tokens per image token, in percent, by method.
        scales: sides of the token maps, one per pass, for a model that predicts scale by scale (VAR); empty: one pass per token.
    """

    source: str
    cloud_call_pct: dict[str, float]
    scales: tuple[int, ...] = ()


class PairManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `pair.json`.

    Attributes:
        image_size: pixels per side.
        device: shape of the device model; None: the pair has none, and the cloud decodes alone.
        phi_bottleneck: width of phi's hidden layer; 0: the pair has no phi.
        bounds: the trained radius matrices, the default first; empty for a device without an Inter-Head.
        subject: what its images show, one of `SUBJECTS`; it determines the source of prompts and the judge.
        guidance: guidance that its models were trained for, the default of a scenario.
        backbone: its row of `BACKBONES`; empty for a pair with a `pair.json`.
        statistics: published figures instead of weights; None for a pair with weights.
    """

    format: int
    name: str
    image_size: int
    grid: int
    codebook_size: int
    caption_slots: int
    caption_dim: int
    cloud: TransformerConfig
    device: TransformerConfig | None = None
    phi_bottleneck: int = 0
    bounds: tuple[str, ...] = ()
    files: tuple[PairFile, ...]
    subject: str = "scenes"
    guidance: float = GUIDANCE
    backbone: str = ""
    statistics: Statistics | None = None

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the token maps, one per pass; empty for a pair that decodes token by token."""
        return self.statistics.scales if self.statistics is not None else self.cloud.scales

    @property
    def image_tokens(self) -> int:
        """T, image tokens per image, over all scales."""
        return sum(side * side for side in self.scales or (self.grid,))

    @property
    def widths(self) -> Widths:
        """Sizes of its message elements."""
        pixels = self.image_size**2
        return Widths(self.cloud.dim, self.codebook_size, self.caption_dim, pixels, self.caption_slots)

    @property
    def has_drafter(self) -> bool:
        """Whether the pair holds a feature-level drafter, or figures of a method that has one."""
        return self.statistics is not None or any(file.name in (DRAFTER, "drafter") for file in self.files)

    @property
    def weights_hash(self) -> str:
        """SHA-256 over everything that determines tokens and images: weight files and model shapes, but not name, subject or default
        guidance."""
        weights = {f.name: f.sha256 for f in self.files if self.backbone or f.name.endswith(WEIGHTS)}
        free = ("format", "name", "files", "subject", "guidance", "backbone", "statistics")
        rest = {name: getattr(self, name) for name in self.__struct_fields__ if name not in free}
        if self.backbone:  # two backbones may have equal shapes
            rest["backbone"] = self.backbone
            if any(file.name == "drafter" for file in self.files):
                rest["drafter_table"] = "own"  # earlier versions recorded with the cloud's embeddings instead
        if self.statistics is not None:
            rest["statistics"] = self.statistics
        return hashlib.sha256(msgspec.json.encode({**rest, "weights": weights}, order="sorted")).hexdigest()


class PairSpec(Part):
    """A pair named by a published backbone and its files. Paths are relative to the file that names them."""

    cloud: str = Field(description=f"a published model: {', '.join(BACKBONES)}")
    weights: str = Field(description="the weights file, or the folder of downloaded files")
    device: str | None = Field(
        default=None,
        description="the device's model, a file or a folder: a smaller model of the same kind, a one-layer drafter, or what "
        "ciar-sim train device wrote; without it the cloud decodes alone",
    )
    tokenizer: str | None = Field(
        default=None, description="file of the image tokenizer; by default looked for beside the weights"
    )
    text: str | None = Field(
        default=None,
        description="folder of the caption encoder, or of features that it made; by default looked for beside the weights",
    )
    image_size: int | None = Field(
        default=None, ge=1, le=2**15, description="pixels per side; by default the model's usual size"
    )
    heads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="attention heads of the cloud model, if its shape does not determine them",
    )

    @field_validator("cloud")
    @classmethod
    def _known(cls, cloud: str) -> str:
        if cloud not in BACKBONES:
            refuse(f"is not a known model: {found_text(cloud)}{did_you_mean(cloud, BACKBONES)}")
        return cloud

    @field_validator("weights", "device", "tokenizer", "text")
    @classmethod
    def _there(cls, written: str | None, info: ValidationInfo) -> str | None:
        if written is None or info.context is None:
            return written
        path = path_of(written, info)
        if not path.exists():
            refuse(f"must be a file or a folder, got {written!r}, which is not there")
        return str(path)

    @property
    def backbone(self) -> Backbone:
        """The row that `cloud` names."""
        return BACKBONES[self.cloud]


PairRef = str | Path | PairSpec  # a shipped pair's name, a pair's folder, or a backbone and its files


@dataclass(frozen=True)
class FoundPair:
    """The content of the files of a `PairSpec`.

    Attributes:
        spec: the pair as it was named.
        manifest: manifest of the pair; its files are named by their part.
        files: the file or folder of each part: `cloud`, `tokenizer`, `text`, and, if present, `device`, `phi`, `drafter`.
        decoder: sizes of the image decoder, the arguments of `simulator.pricing.op_counts.vq_decoder_op_count`.
        encoder: sizes of the caption encoder, the arguments of `text_encoder_op_count` there; empty if captions are looked up.
        facts: further input of `load`.
    """

    spec: PairSpec
    manifest: PairManifest
    files: Mapping[str, tuple[Path, ...]]
    decoder: Mapping[str, Any]
    encoder: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


_FOUND: dict[PairSpec, tuple[FoundPair, object]] = {}
_looked_at: ContextVar[set[PairSpec] | None] = ContextVar("_looked_at", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Inspect the files of a pair only once inside: a scenario requests its pair for every swept value, and caption features can be
    thousands of files."""
    token = _looked_at.set(set())
    try:
        yield
    finally:
        _looked_at.reset(token)


def find_pair(spec: PairSpec) -> FoundPair:
    """Return the content of a backbone's files, by names and shapes. Cached until a file changes. Raises WeightsError."""
    kept, seen = _FOUND.get(spec), _looked_at.get()
    if kept is not None and ((seen is not None and spec in seen) or kept[1] == _stamps(kept[0])):
        found = kept[0]
    else:
        try:
            found = function_of(spec.backbone.find)(spec)
        except OSError as error:  # a folder that cannot be entered, a file that is deleted meanwhile
            raise WeightsError(f"{error.filename or spec.weights}: cannot be read: {reason(error)}") from None
        _FOUND[spec] = (found, _stamps(found))
    if seen is not None:
        seen.add(spec)
    return found


def _stamps(found: FoundPair) -> object:
    """Return size and modification time of every file of a pair; a value equal to no other if one is missing."""
    named = [Path(path) for path in (found.spec.weights, found.spec.device, found.spec.text) if path]
    paths = [*named, *(path for part in found.files.values() for path in part)]
    try:
        return [(path, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    except OSError:
        return object()


def list_parts(parts: Mapping[str, tuple[Path, ...]]) -> tuple[PairFile, ...]:
    """Return the files of a backbone's parts for the manifest. A single file is named by its part, several by part, folder and file."""
    return tuple(
        PairFile(
            part if len(paths) == 1 else f"{part}/{path.parent.name}/{path.name}", path.stat().st_size, file_hash(path)
        )
        for part, paths in parts.items()
        for path in paths
    )


def known_pairs() -> list[str]:
    """Return the names of the shipped pairs, sorted."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{MANIFEST}"))


def is_shipped(name: str) -> bool:
    """Return whether a shipped pair has this name."""
    return os.path.basename(name) == name and os.path.isfile(os.path.join(SHIPPED, name, MANIFEST))


def why_ambiguous(name: str, folder: Path) -> str | None:
    """Return a message if a shipped pair and a subfolder of `folder` with another pair have this name; None if it is unambiguous."""
    own = folder / name
    if not is_shipped(name) or not (own / MANIFEST).is_file() or own.samefile(SHIPPED / name):
        return None
    return f"{name} names a shipped pair and the folder {own}: write ./{name} for the folder, or give the folder another name"


def pair_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a shipped pair, or the path itself if it contains a pair. The name of a shipped pair always means that pair;
    a folder of the same name is written `./name`.

    Raises WeightsError for an unknown name (suggesting the nearest) or a folder without `pair.json`.
    """
    if isinstance(name_or_path, str) and is_shipped(name_or_path):
        return SHIPPED / name_or_path
    # os.path takes a third of pathlib's time, and this runs for every case of a sweep.
    for folder in (os.path.expanduser(name_or_path), os.path.join(SHIPPED, name_or_path)):
        if os.path.isfile(os.path.join(folder, MANIFEST)):
            return Path(folder)
    try:
        path = Path(name_or_path).expanduser()
        is_path = (path / MANIFEST).is_file() or path.is_dir() or len(path.parts) > 1  # may raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~NAME of a user without a home
        raise WeightsError(f"model pair {str(name_or_path)[:100]!r}: no usable path: {reason(error)}") from None
    if is_path:
        raise WeightsError(
            f"{path / MANIFEST}: no such file: {path} holds no model pair; files of a published model are named by "
            f"pair: {{cloud: NAME, weights: FOLDER}}"
        )
    near = difflib.get_close_matches(str(name_or_path), known_pairs(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = ", ".join(known_pairs()) or "none"
    raise WeightsError(f"unknown model pair {name_or_path}: {hint}known: {known}, or a folder with {MANIFEST}")


def pair_manifest(name_or_path: PairRef) -> PairManifest:
    """Return the manifest of a pair, without loading any weights.

    Raises WeightsError if the pair is unknown, or its manifest is damaged, of another format, inconsistent, or cannot be read.
    """
    if isinstance(name_or_path, PairSpec):
        return find_pair(name_or_path).manifest
    path = pair_folder(name_or_path) / MANIFEST
    try:
        content = read_file(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None
    return _manifest(path, content)


@lru_cache(maxsize=64)
def _manifest(path: Path, content: bytes) -> PairManifest:
    """Return the manifest with this content. Cached, because every case of a sweep needs it. Raises WeightsError."""
    try:
        found = msgspec.json.decode(content)
        version = found.get("format") if isinstance(found, dict) else None
        if version != FORMAT:
            raise WeightsError(f"{path}: format {version}, this version reads format {FORMAT}")
        manifest = msgspec.convert(found, PairManifest)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: {error}") from error
    if manifest.device is None or manifest.backbone:
        key = "device" if manifest.device is None else "backbone"
        raise WeightsError(f"{path}: {key} {'is missing' if key == 'device' else 'is for pairs without this file'}")
    for name, largest in (("image_size", 2**15), ("phi_bottleneck", LARGEST["dim"])):
        if not 1 <= getattr(manifest, name) <= largest:
            raise WeightsError(f"{path}: {name} must be 1 to {largest}, got {shortened(getattr(manifest, name))}")
    if not manifest.bounds or not all(re.fullmatch(r"[\w-]+", name) for name in manifest.bounds):
        raise WeightsError(f"{path}: bounds must name the radius matrices, got {list(manifest.bounds)}")
    if not 1 <= manifest.guidance <= 100:
        raise WeightsError(f"{path}: guidance must be 1 to 100, got {manifest.guidance}")
    if manifest.subject not in SUBJECTS:
        raise WeightsError(f"{path}: subject must be {' or '.join(SUBJECTS)}, got {manifest.subject!r}")
    _check_shapes(path, manifest, found)
    if manifest.statistics is not None:
        _check_statistics(path, manifest, manifest.statistics)
    else:
        _check_files(path, manifest)
    return manifest


def _check_shapes(path: Path, manifest: PairManifest, found: Mapping[str, Any]) -> None:
    """Raises WeightsError if a model's shape is not that of the manifest. found: the manifest as written."""
    for role in ("cloud", "device"):
        shape: TransformerConfig = getattr(manifest, role)
        unknown = sorted(set(found[role]) - {field.name for field in fields(shape)})
        if unknown:
            raise WeightsError(f"{path}: {role} has the unknown field {unknown[0]}")
        for ours, theirs in (
            ("grid", "grid"),
            ("codebook_size", "vocab_size"),
            ("caption_slots",) * 2,
            ("caption_dim",) * 2,
        ):
            if getattr(shape, theirs) != getattr(manifest, ours):
                held, needed = getattr(shape, theirs), getattr(manifest, ours)
                raise WeightsError(f"{path}: {role}.{theirs} is {held}, needed {ours} = {needed}")


def _check_statistics(path: Path, manifest: PairManifest, statistics: Statistics) -> None:
    """Raises WeightsError if published figures do not fit the manifest."""
    if manifest.files or manifest.subject != "other":
        raise WeightsError(f"{path}: statistics go without files, and with the subject other")
    scales = statistics.scales
    if scales and (scales != tuple(sorted(set(scales))) or scales[0] != 1 or scales[-1] != manifest.grid):
        raise WeightsError(f"{path}: statistics.scales must increase from 1 to the grid's {manifest.grid}")
    for method, rate in statistics.cloud_call_pct.items():
        if not 0 < rate <= 100:
            raise WeightsError(
                f"{path}: statistics.cloud_call_pct.{method} must be above 0 and at most 100, got {rate}"
            )


def _check_files(path: Path, manifest: PairManifest) -> None:
    """Raises WeightsError if the list of files is not that of a pair."""
    for file in manifest.files:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", file.name):
            raise WeightsError(f"{path}: file name {file.name[:100]!r} leaves the folder")
        if len(file.name.encode()) > LONGEST_NAME:
            raise WeightsError(f"{path}: file name {file.name[:40]!r}... has more than {LONGEST_NAME} bytes")
    listed = [file.name for file in manifest.files]
    if twice := next((name for name in listed if listed.count(name) > 1), None):
        raise WeightsError(f"{path}: files lists {twice} twice")
    lacks = [name for name in NEEDED if name not in listed]
    if not any(name.startswith("cloud-") for name in listed):
        lacks.append("cloud-00001-of-00001.safetensors")
    if lacks:
        raise WeightsError(f"{path}: files must list {', '.join(lacks)} with bytes and sha256")


def verify_files(folder: Path, manifest: PairManifest) -> None:
    """Check that every listed file exists and has the listed content.

    Raises WeightsError naming the file, what was found and what was expected.
    """
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; {MANIFEST} lists it with {file.bytes} bytes")
        if path.stat().st_size != file.bytes:
            raise WeightsError(
                f"{path}: {path.stat().st_size} bytes, expected {file.bytes}: the file is damaged or incomplete"
            )
        found = file_hash(path)
        if found != file.sha256:
            raise WeightsError(f"{path}: sha256 {found}, expected {file.sha256}: the file is damaged")


def list_files(folder: Path) -> tuple[PairFile, ...]:
    """Return the weight files of a folder, by name, for its manifest; other files describe the pair and may change.

    Raises WeightsError if one cannot be read.
    """
    files = (path for path in sorted(folder.iterdir()) if path.name.endswith(WEIGHTS))
    return tuple(PairFile(path.name, path.stat().st_size, file_hash(path)) for path in files)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex. Raises WeightsError if it cannot be read."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {reason(error)}") from None

"""Judges of image quality: a network that reads images, the claims of captions, and real images for comparison.

    judge = judge_of("photos")
    judge.right(caption, judge.read(images)[0])       # which claims of the caption the network reads in the image

A pair's subject (`simulator.protocol.pairs`) determines its judge. Torch is loaded only to read images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from models import scenes
from models.quality.judge_files import JUDGE, NETWORK, JudgeFiles, draw_captions, read_captions, read_judge
from models.quality.kept import load_readings, save_readings
from models.quality.photo_reading import CLAIMS, PhotoClaims
from models.quality.photo_reading import READING_DTYPE as PHOTO_DTYPE
from models.quality.reading import READING_DTYPE, agreement, claim_names, claims_of
from simulator.core.rng import stream
from simulator.protocol.pairs import SHIPPED, PairRef, PairSpec, find_pair, pair_folder, pair_manifest

if TYPE_CHECKING:
    from models.quality.network import SceneNetwork
    from models.quality.photo_network import PhotoNetwork

SCENE_NETWORK = SHIPPED / "scene-network" / "scene_network.safetensors"
TRAINED_ON = (1, 2)  # scene seeds of training and model selection
# Scene seed of the reference renders. Neither models nor the network were trained on it, and scenarios use another seed by default.
REFERENCE_SEED = 3
REFERENCE_IMAGES = 2048
Progress = Callable[[int, int], None]
Captions = Callable[[int, int], list[str]]


class Judge(Protocol):
    """A network that reads images of one subject.

    Attributes:
        subject: subject of the images; the suffix of the judge's quality columns.
        weights: file of the network.
        image_size: pixels per side of the images that it reads, S.
        dtype: numpy type of a reading; sets of images are compared by its field `features`.
        reference: description of the real images that sets are compared with.
    """

    @property
    def subject(self) -> str: ...
    @property
    def weights(self) -> Path: ...
    @property
    def image_size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def reference(self) -> str: ...

    def read(self, images: np.ndarray) -> np.ndarray:
        """Return readings [N] of images uint8 [N, S, S, 3]."""
        ...

    def right(self, caption: str, reading: np.ndarray) -> dict[str, list[bool]] | None:
        """Return by kind of claim whether each claim of the caption agrees with the reading; None for a caption of another form."""
        ...

    def real(self, cache: Path, progress: Progress) -> np.ndarray:
        """Return readings of the real images. Computed readings are stored in `cache`; `progress` is called with (read, total)."""
        ...

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        """Return what makes the images of drawn captions too easy: training, or the comparison, knows their scenes or photographs; or None.

        Args: as in `simulator.experiment.schema.prompts.ScenePrompts`.
        """
        ...

    def baselines(self, captions: Sequence[str]) -> list["Baseline"]:
        """Return readings of real images for comparison, those of these captions first, if there are any; else an empty list."""
        ...


@dataclass(frozen=True)
class Baseline:
    """Readings of real images to compare generated ones with.

    Attributes:
        name: description of the images.
        readings: their readings, at least one.
        captions: their captions; empty if alignment is not evaluated.
        is_reference: whether they show the photographs that are the reference of the distances between sets. Their own distance lacks the
            scatter of a sample and must not be compared with that of generated images.
    """

    name: str
    readings: np.ndarray
    captions: tuple[str, ...] = ()
    is_reference: bool = False


class SceneJudge:
    """Judge of scenes: the scene network, and real renders as the reference.

    Args:
        weights: file of the network.
        renders: number of real renders that sets of images are compared with.
    """

    subject, image_size, dtype = "scenes", scenes.IMAGE_SIZE, READING_DTYPE

    def __init__(self, weights: Path = SCENE_NETWORK, renders: int = REFERENCE_IMAGES) -> None:
        self.weights, self.renders = weights, renders
        self.reference = f"{renders} real renders, scenes of seed {REFERENCE_SEED}"

    @cached_property
    def network(self) -> "SceneNetwork":
        from models.quality.network import load_scene_network

        return load_scene_network(self.weights)

    def read(self, images: np.ndarray) -> np.ndarray:
        from models.quality.network import read_images

        return read_images(self.network, images)

    def right(self, caption: str, reading: np.ndarray) -> dict[str, list[bool]] | None:
        claims = claims_of(caption)
        if claims is None:
            return None
        found: dict[str, list[bool]] = {}
        for kind, seen in zip(claim_names(claims), agreement(claims, reading), strict=True):
            found.setdefault(kind, []).append(bool(seen))
        return found

    def real(self, cache: Path, progress: Progress) -> np.ndarray:
        path = cache / f"reference-seed{REFERENCE_SEED}-{self.renders}.npy"
        stored = load_readings(path, READING_DTYPE, self.renders)
        if stored is None:
            made = []
            for first in range(0, self.renders, 64):
                last = min(first + 64, self.renders)
                made.append(self.read(np.stack([scenes.image(REFERENCE_SEED, index) for index in range(first, last)])))
                progress(last, self.renders)
            stored = np.concatenate(made)
            save_readings(path, stored)
        return stored

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        return use_of_seed(seed)

    def baselines(self, captions: Sequence[str]) -> list[Baseline]:
        return []


class PhotoJudge:
    """Judge of photographs: the photo network of the pair, and its readings of held-out photographs as the reference.

    Args:
        folder: folder of the pair.
        image_size: pixels per side of the pair's images.
    """

    subject, dtype = "photos", PHOTO_DTYPE

    def __init__(self, folder: Path, image_size: int) -> None:
        self.folder, self.image_size = folder / JUDGE, image_size
        self.weights = self.folder / NETWORK

    @cached_property
    def files(self) -> JudgeFiles:
        return read_judge(self.folder)

    @cached_property
    def claims(self) -> PhotoClaims:
        return PhotoClaims(self.files.kinds, self.files.colours)

    @property
    def reference(self) -> str:
        return f"{self.files.held_out} held-out photographs, one for each of their captions"

    @cached_property
    def network(self) -> "PhotoNetwork":
        from models.quality.photo_network import load_photo_network

        return load_photo_network(self.weights)

    def read(self, images: np.ndarray) -> np.ndarray:
        from models.quality.photo_network import read_photos

        return read_photos(self.network, images)

    def right(self, caption: str, reading: np.ndarray) -> dict[str, list[bool]] | None:
        claims = self.claims.of(caption)
        if claims is None:
            return None
        return {
            name: [bool(reading[field] == claim)]
            for name, field, claim in zip(CLAIMS, ("kind", "colour"), claims, strict=True)
        }

    def real(self, cache: Path, progress: Progress) -> np.ndarray:
        return self.files.readings["held-out"]

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        held_out = read_captions(self.folder)[1]  # they are drawn first
        known = skip + count - max(skip, held_out)
        if known <= 0:
            return None
        return f"{known} of {count} captions are of training photographs, because only {held_out} are of held-out ones"

    def baselines(self, captions: Sequence[str]) -> list[Baseline]:
        """Return the held-out photographs of these captions and at most as many training photographs, before and after the tokenizer."""
        files = self.files
        row = {caption: index for index, caption in enumerate(files.captions[: files.held_out])}
        known = tuple(caption for caption in captions if caption in row)
        own = [row[caption] for caption in known]
        own_sets = {"photographs of these captions": "held-out", "these through the tokenizer": "reconstructed"}
        other_sets = {"other photographs": "other", "other photographs through the tokenizer": "other-reconstructed"}
        found = [
            Baseline(name, files.readings[key][own], known, is_reference=True) for name, key in own_sets.items() if own
        ]
        return found + [
            Baseline(name, files.readings[key][: len(captions)])
            for name, key in other_sets.items()
            if key in files.readings
        ]


def judge_of(pair: PairRef) -> Judge | None:
    """Return the judge of a pair's images; None if its subject has none. Raises WeightsError."""
    manifest = pair_manifest(pair)
    if manifest.subject == PhotoJudge.subject and not isinstance(pair, PairSpec):
        return PhotoJudge(pair_folder(pair), manifest.image_size)
    return SceneJudge() if manifest.subject == SceneJudge.subject else None


def captions_of(pair: PairRef, held_out_only: bool = False) -> Captions:
    """Return a function of (seed, count) that draws the captions of a pair's prompts.

    It may return equal captions, and returns fewer than `count` if there are no more. For a class-conditional model it
    draws labels. It returns none for a pair whose subject has no captions.

    Args:
        pair: the pair.
        held_out_only: whether the captions of training photographs, which follow those of held-out ones, are left out.

    Raises:
        WeightsError: the pair cannot be read.
    """
    if isinstance(pair, PairSpec) and pair.backbone.classes:
        labels = find_pair(pair).facts["classes"]
        return lambda seed, count: [str(label) for label in stream(seed, "class labels").permutation(labels)[:count]]
    manifest = pair_manifest(pair)
    if manifest.subject == PhotoJudge.subject and not isinstance(pair, PairSpec):
        captions, held_out = read_captions(pair_folder(pair) / JUDGE)
        captions = captions[:held_out] if held_out_only else captions
        return lambda seed, count: draw_captions(captions, held_out, seed, count)
    return scenes.captions if manifest.subject == SceneJudge.subject else lambda seed, count: []


def use_of_seed(seed: int) -> str | None:
    """Return the use of the scenes of a seed that images of their captions should not be judged with: training or comparison; or None."""
    if seed == REFERENCE_SEED:
        return "scenes of this seed are what the images are compared with"
    return "scenes of this seed were used in training" if seed in TRAINED_ON else None


def share_right(found: dict[str, list[bool]]) -> float:
    """Return the share of right claims among all claims."""
    return float(np.mean([one for seen in found.values() for one in seen]))


def features_of(readings: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return the features of readings, float32 [N, F]."""
    return np.stack([reading["features"] for reading in readings])

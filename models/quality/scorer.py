"""Quality of a case's images as the tables want it: `align_scenes` per image, `fd_scenes` and `f1_scenes` per set of images.

What the scene network reads in an image is kept in the cache folder under the image's hash, so that a replay of cached recordings
never loads torch. Nothing is compared where it would mean nothing: images of another size than scenes have, captions of another form,
fewer images than `MIN_IMAGES` for the sets give NaN.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from models import scenes
from models.quality.reading import FEATURES, READING_DTYPE, agreement, claims_of
from models.quality.statistics import Gaussian, Interval, f1_interval, frechet_interval
from simulator.core.cache import ContentCache
from simulator.core.errors import RecordingError
from simulator.core.files import write_atomically
from simulator.core.rng import stream
from simulator.protocol.pairs import SHIPPED, file_hash
from simulator.protocol.recording import Recording

WEIGHTS = SHIPPED / "scene-network" / "scene_network.safetensors"
MIN_IMAGES = 2 * FEATURES  # half of them, as the interval takes, still outnumber the features
REFERENCE_SEED = (
    3  # of real renders that neither a model nor the network was trained on, nor prompts are drawn from by default
)
REFERENCE_IMAGES = 2048
SIZE = (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3)


class SceneScorer:
    """Reads images with the scene network, and remembers.

    cache: folder of what was read before. weights: of the network. reference_images: real renders that sets of images are compared with.
    progress: called with (images read, images to read).
    """

    def __init__(
        self,
        cache: Path,
        weights: Path = WEIGHTS,
        reference_images: int = REFERENCE_IMAGES,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.weights, self.reference_images, self.progress = weights, reference_images, progress
        self.weights_hash = file_hash(weights)
        self.root = cache / "quality" / self.weights_hash[:16]
        self._read: dict[str, np.ndarray] = {}  # readings by image hash
        self._sets: dict[tuple[str, ...], dict[str, Interval]] = {}
        self._reference: tuple[np.ndarray, Gaussian] | None = None

    def __call__(
        self, recordings: Sequence[Recording], captions: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], Callable[[np.ndarray], Mapping[str, Interval]]]:
        """Columns of a case's images, an entry per image, and a function of the set of images at given indices: name -> (value, low,
        high). Both always have the same names."""
        if any(recording.image.shape != SIZE for recording in recordings):
            nothing = dict.fromkeys(("fd_scenes", "f1_scenes"), (math.nan,) * 3)
            return {"align_scenes": np.full(len(recordings), math.nan)}, lambda indices: nothing
        names = [hashlib.sha256(np.ascontiguousarray(one.image).tobytes()).hexdigest() for one in recordings]
        self._look({name: one.image for name, one in zip(names, recordings, strict=True)})
        align = np.full(len(names), math.nan)
        for index, (name, caption) in enumerate(zip(names, captions, strict=True)):
            if (claims := claims_of(caption)) is not None:
                align[index] = agreement(claims, self._read[name]).mean()
        return {"align_scenes": align}, lambda indices: self._of_set([names[index] for index in indices])

    @property
    def provenance(self) -> dict[str, object]:
        """What the numbers rest on, for a run's provenance."""
        return {
            "scene_network_sha256": self.weights_hash,
            "reference": f"{self.reference_images} real renders, scenes of seed {REFERENCE_SEED}",
            "fewest_images_for_fd_scenes_and_f1_scenes": MIN_IMAGES,
        }

    def _of_set(self, names: Sequence[str]) -> dict[str, Interval]:
        """Over the different images of a set, in order of their hashes: equal sets give equal numbers."""
        key = tuple(sorted(set(names)))
        if key not in self._sets:
            if len(key) < MIN_IMAGES:
                self._sets[key] = {"fd_scenes": (math.nan,) * 3, "f1_scenes": (math.nan,) * 3}
            else:
                features = np.stack([self._read[name]["features"] for name in key])
                real, gaussian = self._real()
                self._sets[key] = {
                    "fd_scenes": frechet_interval(gaussian, features, stream(0, "quality.fd_scenes")),
                    "f1_scenes": f1_interval(real[: len(features)], features, stream(0, "quality.f1_scenes")),
                }
        return self._sets[key]

    def _real(self) -> tuple[np.ndarray, Gaussian]:
        """Features of the reference renders."""
        if self._reference is None:
            path = self.root / f"reference-seed{REFERENCE_SEED}-{self.reference_images}.npy"
            stored = _load(path, self.reference_images)
            if stored is None:
                made = []
                for first in range(0, self.reference_images, 64):
                    last = min(first + 64, self.reference_images)
                    made.append(
                        self._network(np.stack([scenes.image(REFERENCE_SEED, index) for index in range(first, last)]))
                    )
                    self.progress(last, self.reference_images)
                stored = np.concatenate(made)
                _save(path, stored)
            features = stored["features"]
            self._reference = features, Gaussian(features)
        return self._reference

    def _look(self, images: Mapping[str, np.ndarray]) -> None:
        missing = {}
        for name, image in images.items():
            if name not in self._read:
                stored = _load(self._path(name), 1)
                if stored is None:
                    missing[name] = image
                else:
                    self._read[name] = stored[0]
        todo = list(missing)
        for first in range(0, len(todo), 64):
            some = todo[first : first + 64]
            for name, reading in zip(some, self._network(np.stack([missing[name] for name in some])), strict=True):
                _save(self._path(name), reading[None])
                self._read[name] = reading
            self.progress(min(first + 64, len(todo)), len(todo))

    def _path(self, name: str) -> Path:
        return ContentCache(self.root, ".npy").path(name)

    def _network(self, images: np.ndarray) -> np.ndarray:
        from models.quality.network import load_scene_network, read_images

        if not hasattr(self, "_model"):
            self._model = load_scene_network(self.weights)
        return read_images(self._model, images)


def _load(path: Path, count: int) -> np.ndarray | None:
    """READING_DTYPE [count]; None where there is none. A damaged file is removed and counts as none."""
    try:
        found: np.ndarray = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordingError(f"cannot read the quality cache {path.parent}: {error.strerror or error}") from None
    except (ValueError, EOFError):
        path.unlink(missing_ok=True)
        return None
    if found.dtype != READING_DTYPE or found.shape != (count,):
        path.unlink(missing_ok=True)
        return None
    return found


def _save(path: Path, readings: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, readings)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RecordingError(f"cannot write the quality cache {path.parent}: {error.strerror or error}") from None

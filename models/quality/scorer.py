"""Quality columns of a case: alignment of each image with its caption, and distance of a set of images from real ones.

Readings are cached under the hash of the image, so a replay of cached recordings never loads torch. A column is NaN where it would have
no meaning: for images of another size than the judge reads, captions of another form, and sets of fewer than `fewest` images.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from models.quality.judges import Judge, Progress, features_of, share_right
from models.quality.kept import load_readings, save_readings
from models.quality.statistics import Gaussian, f1_interval, frechet_interval
from simulator.core.cache import ContentCache
from simulator.core.rng import stream
from simulator.protocol.pairs import file_hash
from simulator.protocol.recording import Recording
from simulator.results.columns import judged
from simulator.results.statistics import Interval

AT_ONCE = 64  # images between two calls of `progress`


class Scorer:
    """Scores images with a judge and caches its readings.

    Args:
        cache: folder of the cache.
        judge: judge of the images.
        progress: called with (images read, images to read).
    """

    def __init__(self, cache: Path, judge: Judge, progress: Progress = lambda done, total: None) -> None:
        self.judge, self.progress, self.columns = judge, progress, judged(judge.subject)
        self.weights_hash = file_hash(judge.weights)
        self.root = cache / "quality" / self.weights_hash[:16]
        # The interval uses halves of the set, which then have at least as many images as there are features.
        self.fewest = 2 * judge.dtype["features"].shape[0]
        self._read: dict[str, np.ndarray] = {}  # readings by image hash
        self._sets: dict[tuple[str, ...], dict[str, Interval]] = {}
        self._reference: tuple[np.ndarray, Gaussian] | None = None
        self.reference = judge.reference  # read now, so that damaged files are refused before anything is recorded

    def __call__(
        self, recordings: Sequence[Recording], captions: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], Callable[[np.ndarray], Mapping[str, Interval]]]:
        """Score the images of a case; the names of the columns do not depend on the images.

        Returns:
            Columns with a value per image, float64 [N] by name.
            A function of indices of images, which returns the columns of that set of images: (value, low, high) by name.
        """
        columns, size = self.columns, self.judge.image_size
        if any(recording.image.shape != (size, size, 3) for recording in recordings):
            nothing = dict.fromkeys((columns.fd, columns.f1), (math.nan,) * 3)
            return {columns.align: np.full(len(recordings), math.nan)}, lambda indices: nothing
        names = self._names(recordings)
        align = np.full(len(names), math.nan)
        for index, (name, caption) in enumerate(zip(names, captions, strict=True)):
            if (found := self.judge.right(caption, self._read[name])) is not None:
                align[index] = share_right(found)
        return {columns.align: align}, lambda indices: self._of_set([names[index] for index in indices])

    def readings(self, recordings: Sequence[Recording]) -> list[np.ndarray]:
        """Return the judge's reading of each image; the images must have its size."""
        return [self._read[name] for name in self._names(recordings)]

    def _names(self, recordings: Sequence[Recording]) -> list[str]:
        """Return the hashes of the images, after reading those without a reading."""
        names = [hashlib.sha256(np.ascontiguousarray(one.image).tobytes()).hexdigest() for one in recordings]
        self._look({name: one.image for name, one in zip(names, recordings, strict=True)})
        return names

    @property
    def provenance(self) -> dict[str, object]:
        """Network, reference and minimum number of images, for a run's provenance."""
        return {
            f"{self.judge.subject.removesuffix('s')}_network_sha256": self.weights_hash,
            "reference": self.reference,
            f"fewest_images_for_{self.columns.fd}_and_{self.columns.f1}": self.fewest,
        }

    def familiar(self, seed: int, skip: int, count: int) -> str | None:
        """As `Judge.familiar`."""
        return self.judge.familiar(seed, skip, count)

    def _of_set(self, names: Sequence[str]) -> dict[str, Interval]:
        """Return the columns of the distinct images of a set, in order of their hashes, so that equal sets have equal values."""
        key = tuple(sorted(set(names)))
        if key not in self._sets:
            self._sets[key] = self.of_readings([self._read[name] for name in key])
        return self._sets[key]

    def of_readings(self, readings: Sequence[np.ndarray] | np.ndarray) -> dict[str, Interval]:
        """Return the columns of a set of readings: (value, low, high) by name."""
        fd, f1 = self.columns.fd, self.columns.f1
        if len(readings) < self.fewest:
            return {fd: (math.nan,) * 3, f1: (math.nan,) * 3}
        features = features_of(readings)
        real, gaussian = self._real()
        return {
            fd: frechet_interval(gaussian, features, stream(0, f"quality.{fd}")),
            f1: f1_interval(real[: len(features)], features, stream(0, f"quality.{f1}")),
        }

    def _real(self) -> tuple[np.ndarray, Gaussian]:
        """Return the features of the real images and their Gaussian."""
        if self._reference is None:
            features = features_of(self.judge.real(self.root, self.progress))
            self._reference = features, Gaussian(features)
        return self._reference

    def _look(self, images: Mapping[str, np.ndarray]) -> None:
        missing = {}
        for name, image in images.items():
            if name not in self._read:
                stored = load_readings(self._path(name), self.judge.dtype, 1)
                if stored is None:
                    missing[name] = image
                else:
                    self._read[name] = stored[0]
        todo = list(missing)
        for first in range(0, len(todo), AT_ONCE):
            some = todo[first : first + AT_ONCE]
            for name, reading in zip(some, self.judge.read(np.stack([missing[name] for name in some])), strict=True):
                save_readings(self._path(name), reading[None])
                self._read[name] = reading
            self.progress(min(first + AT_ONCE, len(todo)), len(todo))

    def _path(self, name: str) -> Path:
        return ContentCache(self.root, ".npy").path(name)

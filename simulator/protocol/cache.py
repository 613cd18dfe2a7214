"""The content-addressed cache of recordings, and sources of recordings."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from simulator.core.errors import RecordingError
from simulator.core.files import write_atomically
from simulator.protocol.recording import Recording, SessionSpec


class RecordingCache:
    """Recordings on disk by key, written atomically: `<root>/recordings/<2 hex>/<key>.npz`."""

    def __init__(self, root: Path) -> None:
        self.root = root / "recordings"

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npz"

    def get(self, key: str) -> Recording | None:
        """The recording, or None where there is none. A damaged file is removed and counts as none."""
        path = self.path(key)
        try:
            return Recording.from_bytes(path.read_bytes())
        except FileNotFoundError:
            return None
        except RecordingError:
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            raise RecordingError(f"cannot read the recording cache {self.root}: {error.strerror or error}") from None

    def put(self, key: str, recording: Recording) -> None:
        """Raises RecordingError where the cache folder cannot be written."""
        try:
            write_atomically(self.path(key), recording.to_bytes())
        except OSError as error:
            raise RecordingError(f"cannot write the recording cache {self.root}: {error.strerror or error}") from None


class RecordingSource(Protocol):
    """Where the simulator gets its recordings from; it never imports the models that make them."""

    def recordings(self, specs: Sequence[SessionSpec]) -> list[Recording]:
        """One recording per spec, in order."""
        ...


Recorder = Callable[[Sequence[SessionSpec]], Iterable[tuple[SessionSpec, Recording]]]


class CachedSource:
    """Recordings from the cache; what is missing is made by `record` (if given) and cached as soon as it is done.

    Raises RecordingError where recordings are missing and no recorder is at hand.
    """

    def __init__(self, cache: RecordingCache, record: Recorder | None = None) -> None:
        self.cache = cache
        self.record = record
        self._loaded: dict[str, Recording] = {}

    def recordings(self, specs: Sequence[SessionSpec]) -> list[Recording]:
        keys = [spec.key() for spec in specs]
        missing: dict[str, SessionSpec] = {}
        for key, spec in zip(keys, specs, strict=True):
            if key not in self._loaded and key not in missing:
                found = self.cache.get(key)
                if found is None:
                    missing[key] = spec
                else:
                    self._loaded[key] = found
        if missing:
            if self.record is None:
                raise RecordingError(
                    f"{len(missing)} sessions are not in the cache {self.cache.root} and no models are at hand"
                )
            for spec, recording in self.record(list(missing.values())):
                key = spec.key()
                self.cache.put(key, recording)
                self._loaded[key] = recording
        return [self._loaded[key] for key in keys]

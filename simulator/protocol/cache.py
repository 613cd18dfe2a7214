"""The content-addressed cache of recordings, and sources of recordings."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from simulator.core.cache import ContentCache
from simulator.core.errors import RecordingError, UnrecordedError, counted, reason
from simulator.core.files import why_unusable
from simulator.protocol.recording import Recording, SessionSpec


class RecordingCache:
    """Recordings on disk by key, written atomically: `<root>/recordings/<2 hex>/<key>.npz`."""

    def __init__(self, root: Path) -> None:
        self.files = ContentCache(root / "recordings", ".npz")
        self.root = self.files.root

    def path(self, key: str) -> Path:
        return self.files.path(key)

    def get(self, key: str) -> Recording | None:
        """Return the recording; None if there is none. A damaged file, or one of another session, is deleted and counts as missing.

        Raises:
            RecordingError: The file cannot be read.
        """
        try:
            data = self.files.get(key)
            recording = None if data is None else Recording.from_bytes(data)
            if recording is not None and not _may_be(recording, key):
                raise RecordingError("a recording of another session")
            return recording
        except RecordingError:
            self.files.drop(key)
            return None
        except (OSError, ValueError) as error:
            raise RecordingError(f"cannot read the recording cache {self.root}: {reason(error)}") from None

    def has(self, key: str) -> bool:
        """Return whether there is a file for this key; it may be damaged."""
        return self.files.has(key)

    def check_writable(self) -> None:
        """Raise RecordingError if the cache folder cannot be written. Call it before long work."""
        if why := why_unusable(self.root):
            raise RecordingError(f"cannot write the recording cache {self.root}: {why}")

    def put(self, key: str, recording: Recording) -> None:
        """Store a recording. Raises RecordingError if the cache folder cannot be written."""
        try:
            self.files.put(key, recording.to_bytes())
        except (OSError, ValueError) as error:
            raise RecordingError(f"cannot write the recording cache {self.root}: {reason(error)}") from None


def _may_be(recording: Recording, key: str) -> bool:
    """Return whether a recording may belong to a key: its session has this key, or it names no session."""
    spec = dict(recording.meta.get("spec", {}))
    spec.pop("outcomes", None)  # earlier versions stored the missed calls twice
    try:
        return not spec or SessionSpec(**spec).key() == key
    except TypeError:
        return False


class RecordingSource(Protocol):
    """Gives the simulator its recordings; the simulator never imports the models that make them."""

    def recordings(self, specs: Sequence[SessionSpec]) -> list[Recording]:
        """Return one recording per spec, in order."""
        ...


RecordSessions = Callable[[Sequence[SessionSpec]], Iterable[tuple[SessionSpec, Recording]]]


class CachedSource:
    """Recordings from the cache; missing ones are made by `record`, and each is cached as soon as it is finished.

    Attributes:
        recorded: Number of recordings made.
        reused: Number of recordings taken from the cache.

    Raises:
        UnrecordedError: Recordings are missing and there is no recorder.
        RecordingError: Recordings cannot be read or made.
    """

    def __init__(self, cache: RecordingCache, record: RecordSessions | None = None) -> None:
        self.cache = cache
        self.record = record
        self._loaded: dict[str, Recording] = {}
        self.recorded = self.reused = 0

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
                    self.reused += 1
        if missing:
            if self.record is None:
                raise UnrecordedError(
                    f"the cache {self.cache.root} lacks {counted(len(missing), 'recording')}, and there are no models to make them"
                )
            self.cache.check_writable()
            for spec, recording in self.record(list(missing.values())):
                key = spec.key()
                if not self.cache.has(key):  # the process that recorded it may have stored it already
                    self.cache.put(key, recording)
                self._loaded[key] = recording
                self.recorded += 1
        return [self._loaded[key] for key in keys]

"""Content-addressed files: a file's name is the hash of everything that determines its content, so any file can be deleted."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from simulator.core.files import TEMPORARY, is_abandoned, remove, write_atomically


class ContentCache:
    """Files by key: `<root>/<2 hex>/<key><suffix>`, written atomically."""

    def __init__(self, root: Path, suffix: str) -> None:
        self.root, self.suffix = root, suffix

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}{self.suffix}"

    def has(self, key: str) -> bool:
        """Return whether there is a file; it may be damaged. Called for thousands of keys, so it makes no `Path`."""
        return os.path.isfile(f"{self.root}/{key[:2]}/{key}{self.suffix}")

    def get(self, key: str) -> bytes | None:
        """Return the content; None if there is no file. Raises OSError if it cannot be read."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Write a file. Raises OSError if the folder cannot be written."""
        write_atomically(self.path(key), content)

    def drop(self, key: str) -> None:
        """Delete a file, for instance a damaged one, if it exists."""
        self.path(key).unlink(missing_ok=True)


class CacheUse(NamedTuple):
    """Number of files and their bytes."""

    files: int
    bytes: int


def cache_use(root: Path) -> dict[str, CacheUse]:
    """Return the use of a cache folder by subfolder. Raises OSError if it cannot be read."""
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else ():
        sizes = [size for _, _, size in _files(folder)]
        found[folder.name] = CacheUse(len(sizes), sum(sizes))
    return found


def prune(root: Path, most_bytes: float) -> CacheUse:
    """Delete the least recently used files of a cache folder until it has at most `most_bytes`; return what was deleted.

    Temporary files of killed processes are always deleted. Raises OSError if the folder cannot be written.
    """
    deleted = [path for path in root.rglob(f".*{TEMPORARY}") if is_abandoned(path)] if root.is_dir() else []
    freed = sum(path.stat().st_size for path in deleted)
    for path in deleted:
        remove(path)
    files = sorted(_files(root))
    left = sum(size for _, _, size in files)
    for _, path, size in files:
        if left <= most_bytes:
            break
        path.unlink(missing_ok=True)
        deleted.append(path)
        left, freed = left - size, freed + size
    return CacheUse(len(deleted), freed)


def _files(folder: Path) -> Iterator[tuple[float, Path, int]]:
    """Yield last use (seconds since the epoch), path and size of every file that is not temporary. Raises OSError."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # other processes may delete files and folders meanwhile
            raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(place, name)
            with suppress(FileNotFoundError):
                state = path.lstat()
                if stat.S_ISREG(state.st_mode) and not name.endswith(TEMPORARY):
                    yield max(state.st_atime, state.st_mtime), path, state.st_size

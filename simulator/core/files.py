"""Reading of regular files, atomic writing of files and folders, and cleaning up after killed processes."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from simulator.core.errors import reason

TEMPORARY = ".tmp"
MODE = 0o644
_GRACE_S = 60.0  # a younger file may belong to a process that has not locked it yet
_WRITING = b"written by a process that holds the lock of this file"


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for anything else: a pipe would wait for a writer, a device may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_file(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file. Raises OSError for anything else, and for more than `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EINVAL, f"it has {size} bytes; allowed: {most}", str(path))
        return file.read()


def json_mapping(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if the file is missing, damaged or contains something else."""
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file through a temporary file in the same folder and a rename: a reader sees the old content or the new one.

    A symlink is followed. A device or a pipe is written directly, because a rename would replace it by a file.

    Args:
        path: The file, which everybody may read. Its folder is created if missing.
        content: The bytes, or a function that writes them into an open file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            _fill(file, content)
        return
    with _written(path, content) as replace:
        replace()


def write_together(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Write several files into a folder; if the disk is full, none of them. Other files stay.

    A signal between two renames leaves some files old and some new.

    Args:
        folder: Created if missing.
        files: Content by name; None deletes the file.
    """
    with ExitStack() as stack:
        ready = [
            stack.enter_context(_written(folder / name, content))
            for name, content in files.items()
            if content is not None
        ]
        for replace in ready:
            replace()
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)


@contextmanager
def _written(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> Iterator[Callable[[], None]]:
    """Write the content to a temporary file, and yield a function that renames it to `path`. An error deletes the temporary file."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.parent / _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _fill(file, content)
            os.fchmod(file.fileno(), MODE)
            yield lambda: os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # the name that the user knows
        raise


def _temporary_name(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}"


def _fill(file: IO[bytes], content: bytes | Callable[[IO[bytes]], object]) -> None:
    if callable(content):
        try:
            content(file)
        except Exception as error:
            # A library that continues after a failed write hides the cause, such as a full disk: torch does, to close its archive.
            first = error.__cause__ or error.__context__
            if isinstance(first, OSError) and not isinstance(error, OSError):
                raise first from None
            raise
    else:
        file.write(content)
    file.flush()


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """Create a folder next to `path`, and delete it at the end. Folders left by killed processes are deleted first.

    If `path` is missing and the folder of a killed process contains `old`, `old` is moved back to `path` first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        _remove_abandoned(path)
    folder = path.parent / _temporary_name(path)
    folder.mkdir()
    try:
        with (folder / "lock").open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(_WRITING)
            file.flush()
            yield folder
    except OSError as error:
        if error.filename is None or folder in Path(str(error.filename)).parents:
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        if path.exists() or not (folder / "old").exists():  # never delete the only copy
            shutil.rmtree(folder, ignore_errors=True)


def replace_folder(staging: Path, path: Path) -> None:
    """Move `new` in `staging`, a `temporary_sibling` of `path`, to `path`, and the previous content to `old`; both or neither.

    If two processes finish at the same time, the second replaces the result of the first.
    """
    new, old = staging / "new", staging / "old"
    with locked(path.parent):
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:  # a signal may come after either rename
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, after waiting for other processes. Has no effect on file systems without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_abandoned(temporary: Path) -> bool:
    """Return whether the process that wrote a temporary file or folder has ended: it holds a lock while it runs."""
    file = temporary / "lock" if temporary.is_dir() else temporary
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(opened.fileno()).st_size > 0 or _is_old(temporary)
    except FileNotFoundError:
        return _is_old(temporary)
    except OSError:
        return False


def _is_old(path: Path) -> bool:
    """Return whether a path is older than `_GRACE_S`. False if it is missing: its process has deleted it."""
    try:
        return time.time() - path.stat().st_mtime > _GRACE_S
    except FileNotFoundError:
        return False


def is_temporary_of(own: str, name: str) -> bool:
    """Return whether `name` is the name of a temporary file or folder for the one named `own`."""
    prefix = f".{own}."
    middle = name.removeprefix(prefix).removesuffix(TEMPORARY)
    return name == f"{prefix}{middle}{TEMPORARY}" and _is_token(middle)


def _remove_abandoned(path: Path) -> None:
    """Delete the temporary files and folders of `path` that killed processes left."""
    for left in path.parent.iterdir():
        if not is_temporary_of(path.name, left.name) or not is_abandoned(left):
            continue
        if (left / "old").exists() and not path.exists():
            os.rename(left / "old", path)
        remove(left)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_token(text: str) -> bool:
    return len(text) == 12 and all(letter in "0123456789abcdef" for letter in text)


def path_text(path: Path | str) -> str:
    """Return a path or name as text that can be written and drawn: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def shown(path: Path) -> str:
    """Return a path for messages: relative to the current folder if it is inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def why_unusable(folder: Path) -> str:
    """Return why files cannot be written into a folder, which need not exist; empty if they can. Call it before long work."""
    try:
        place = _existing(folder)
        if not place.is_dir():
            return f"{place} is not a folder"
        # Permissions alone are not enough: the disk may be read-only, the folder in /proc, the user root.
        with suppress(NotImplementedError), tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a symlink loop
        return reason(error) if place == folder.absolute() else f"{place}: {reason(error)}"
    return ""


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    return place


def why_unwritable(file: Path) -> str:
    """Return why a file cannot be written; empty if it can. Call it before long work."""
    try:
        target = Path(os.path.realpath(file))
        if target.is_dir():
            return "it is a folder"
        if target.exists() and not target.is_file():
            return "" if os.access(target, os.W_OK) else "no right to write it"
        (_existing(target.parent) / _temporary_name(target)).exists()  # raises if the name is too long
    except (OSError, ValueError, RuntimeError) as error:
        return reason(error)
    return why_unusable(target.parent)

"""Reading of regular files, atomic writing of files and folders, and the removal of what killed processes left."""

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
from pathlib import Path
from typing import IO, Any, BinaryIO

from simulator.core.errors import reason

TEMPORARY = ".tmp"
MODE = 0o644
_GRACE_S = 60.0  # a file this young may belong to a process that has not locked it yet
_WRITING = b"written by a process that holds the lock of this file"


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises OSError for anything else: a pipe would wait for a writer, a device may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file. Raises OSError for anything else, and for a file of more than `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EINVAL, f"it has {size} bytes; allowed: {most}", str(path))
        return file.read()


def json_mapping(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; empty where it is missing, damaged or holds something else."""
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file through a temporary one in the same folder and a rename: a reader sees the old content or the new one.

    Through a symlink it is the file that it names. A device or a pipe is written as it is: a rename would put a file in its place.

    Args:
        path: The file; its folder is made where it is missing. It is readable by everybody.
        content: The bytes, or a function that writes them into an open file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            _fill(file, content)
        return
    with _written(path, content) as replace:
        replace()


def write_together(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Writes files into a folder, all of them or, where the disk is full, none; others are left alone.

    A signal between two renames leaves some old and some new.

    Args:
        folder: It is made where it is missing.
        files: Content by name; a file with None is deleted.
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
    """A temporary file with the content, and what puts it in the place of `path`; at the end it is gone or there."""
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
            error.filename = str(path)  # what the user named
        raise


def _temporary_name(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(6)}{TEMPORARY}"


def _fill(file: IO[bytes], content: bytes | Callable[[IO[bytes]], object]) -> None:
    if callable(content):
        try:
            content(file)
        except Exception as error:
            # A library that goes on after a failed write, as torch does to close its archive, says something else of a full disk.
            first = error.__cause__ or error.__context__
            if isinstance(first, OSError) and not isinstance(error, OSError):
                raise first from None
            raise
    else:
        file.write(content)
    file.flush()


@contextmanager
def temporary_sibling(path: Path) -> Iterator[Path]:
    """A folder next to `path`, deleted at the end; what a killed process left of an earlier one is deleted first.

    Where `path` is not there and the folder of a killed process holds `old`, that is moved back first.
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
            error.filename = str(path)  # what the user named
        raise
    finally:
        if path.exists() or not (folder / "old").exists():  # never delete the only copy
            shutil.rmtree(folder, ignore_errors=True)


def replace_folder(beside: Path, path: Path) -> None:
    """Moves `new` in a `temporary_sibling` of `path` to `path`, and what is there to `old`; all of it or nothing.

    Of two processes that finish at once the second replaces what the first has put there.
    """
    new, old = beside / "new", beside / "old"
    with locked(path.parent):
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:  # a signal may come right after either
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; waits for a process that holds it. Without effect on file systems that have no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote a temporary file or folder is gone: it held a lock as long as it lived."""
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
    """False where it is gone: its process deletes it at its end."""
    try:
        return time.time() - path.stat().st_mtime > _GRACE_S
    except FileNotFoundError:
        return False


def is_temporary_of(own: str, name: str) -> bool:
    """Whether a name is that of a temporary file or folder beside the one called `own`."""
    prefix = f".{own}."
    middle = name.removeprefix(prefix).removesuffix(TEMPORARY)
    return name == f"{prefix}{middle}{TEMPORARY}" and _is_token(middle)


def _remove_abandoned(path: Path) -> None:
    """Deletes what killed processes left of `path`."""
    for left in path.parent.iterdir():
        if not is_temporary_of(path.name, left.name) or not is_abandoned(left):
            continue
        if (left / "old").exists() and not path.exists():
            os.rename(left / "old", path)
        remove(left)


def remove(path: Path) -> None:
    """Deletes a file or a folder; one that is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_token(text: str) -> bool:
    return len(text) == 12 and all(letter in "0123456789abcdef" for letter in text)


def shown(path: Path) -> str:
    """A path for messages: relative to the current folder where it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def why_unusable(folder: Path) -> str:
    """Why files cannot be written into a folder that may not be there yet; empty where they can. Asked before hours of work."""
    try:
        place = _existing(folder)
        if not place.is_dir():
            return f"{place} is not a folder"
        # Rights say too little: of a read-only disk, of /proc, to root.
        with suppress(NotImplementedError), tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a symlink loop
        return reason(error) if place == folder.absolute() else f"{place}: {reason(error)}"
    return ""


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest around it that is there."""
    place = folder.absolute()
    while not (place.exists() or place.is_symlink()):
        place = place.parent
    return place


def why_unwritable(file: Path) -> str:
    """Why a file cannot be written; empty where it can. Asked before hours of work."""
    try:
        target = Path(os.path.realpath(file))
        if target.is_dir():
            return "it is a folder"
        if target.exists() and not target.is_file():
            return "" if os.access(target, os.W_OK) else "no right to write it"
        (_existing(target.parent) / _temporary_name(target)).exists()  # raises where the name is too long
    except (OSError, ValueError, RuntimeError) as error:
        return reason(error)
    return why_unusable(target.parent)

"""The allowed outcomes of an input: a result, or one CiarSimError that names the place, within limits of time and memory."""

import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.core.errors import CiarSimError

CPU_S = 20.0  # processor time, so that a busy machine causes no failure
MEMORY_BYTES = 2 * 2**30  # in addition to what the process already uses
MOST_LINES, MOST_CHARACTERS = 4, 1500  # of an error message


class OutOfTimeError(Exception):
    """The time limit was reached."""


@contextmanager
def bounded(cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Limit the processor time and the additional address space of a block.

    Raises:
        OutOfTimeError: After `cpu_s` of processor time.
        MemoryError: Beyond `memory_bytes` of additional address space.
    """

    def late(*_: Any) -> None:
        raise OutOfTimeError(f"more than {cpu_s:g} s of processor time")

    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes, hard))
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def verdict(read: Callable[[], object], named: str = "") -> str | None:
    """Return None if reading gave a result or one clear error, else what is wrong with the outcome.

    Args:
        named: Text that the error must contain, such as the file's name.
    """
    try:
        with bounded():
            read()
    except CiarSimError as error:
        return unclear(str(error), named)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error)[-6:])
    return None


def unclear(message: str, named: str) -> str | None:
    """Return what is wrong with the text of an error, None if nothing."""
    if not message.strip():
        return "an error without a text"
    if len(message) > MOST_CHARACTERS or message.count("\n") >= MOST_LINES:
        return f"an error of {len(message)} characters and {message.count(chr(10)) + 1} lines: {message[:200]!r}..."
    if any(ord(character) < 32 and character != "\n" for character in message):
        return f"an error with control characters: {message!r}"
    try:
        message.encode()
    except UnicodeEncodeError:
        return f"an error that no terminal can show: {message!r}"
    if named and named not in message:
        return f"an error that does not name {named}: {message!r}"
    return None

"""What one input may lead to: a result, or one error of this project's that says where; within bounds of time and memory."""

import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.core.errors import CiarSimError

CPU_S = 20.0  # of the processor, so that a busy machine fails nothing
MEMORY_BYTES = 2 * 2**30  # beyond what the process holds already
MOST_LINES, MOST_CHARACTERS = 4, 1500  # of an error


class OutOfTimeError(Exception):
    """The bound of time was reached."""


@contextmanager
def bounded(cpu_s: float = CPU_S, memory_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    """Raises OutOfTimeError after so much processor time, MemoryError beyond so much more address space."""

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
    """None where reading gave a result or one clear error, else what is wrong with what happened.

    named: what the error must name, as the file.
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
    """What is wrong with the text of an error, None for nothing."""
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

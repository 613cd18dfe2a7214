"""Limits of memory and time for one piece of work, so that exceeding them fails only this piece."""

import ctypes
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

GROUPS = Path("/sys/fs/cgroup")
# Limit and use of memory, and the prefix of the entries of memory.stat that include subgroups: version 2 and version 1.
GROUP_FILES = (
    ("memory.max", "memory.current", ""),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_"),
)


class TimeLimitError(Exception):
    """The work exceeded its time limit."""


def free_memory_bytes() -> float:
    """Return the bytes that this process can still allocate by the system and its control group; infinity if neither is known.

    As in the system's MemAvailable, the page cache of files counts as free, because the kernel reclaims it before a group exceeds its
    limit. Otherwise a group that has read or written many files would seem to be full.
    """
    free = [1024.0 * kilobytes for kilobytes in (_entry("/proc/meminfo", "MemAvailable:"),) if kilobytes is not None]
    for limit, used, kind in GROUP_FILES:
        with suppress(OSError, ValueError):  # no such control group, or no limit ("max")
            left = float((GROUPS / limit).read_text()) - float((GROUPS / used).read_text())
            stat = str((GROUPS / used).with_name("memory.stat"))
            cached = (_entry(stat, f"{kind}{name} ") or 0 for name in ("active_file", "inactive_file"))
            free.append(left + sum(cached))
    return min(free, default=float("inf"))


@contextmanager
def limited_memory(free_bytes: float) -> Iterator[None]:
    """Limit allocations inside to `free_bytes` beyond what the process has; more raises MemoryError. Infinity: no limit."""
    held = _entry("/proc/self/status", "VmData:")
    if held is None or free_bytes == float("inf"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(1024 * held + max(free_bytes, 0.0))
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def limited_time(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError inside once `seconds` have passed; None: no limit. Outside the main thread it interrupts Python code only."""
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        with _limited_thread(seconds):
            yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_thread(seconds: float) -> Iterator[None]:
    """`limited_time` outside the main thread: the interpreter raises the error at its next instruction."""
    ended = threading.Event()
    thread = ctypes.c_ulong(threading.get_ident())

    def stop() -> None:
        if not ended.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeLimitError))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except TimeLimitError as error:
        raise TimeLimitError(f"took longer than {seconds:g} s") from error
    finally:
        ended.set()
        timer.cancel()


def _entry(file: str, name: str) -> int | None:
    """Return the number of an entry in a file of lines `name number ...`; None if there is no file or entry."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)

"""Bounds on what one piece of work may take, so that it fails alone: memory and time."""

import ctypes
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


class TimeLimitError(Exception):
    """The work took longer than it may."""


def free_memory_bytes() -> float:
    """Memory that this process can still take, by the system and by its control group; infinity where neither tells."""
    free = [1024.0 * kilobytes for kilobytes in (_entry("/proc/meminfo", "MemAvailable:"),) if kilobytes is not None]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or "max"
        free.append(float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return min(free, default=float("inf"))


@contextmanager
def limited_memory(free_bytes: float) -> Iterator[None]:
    """Inside, taking more memory than this beyond what the process has raises MemoryError; no limit where it is infinite."""
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
    """Inside, TimeLimitError is raised once so many seconds have passed; outside the main thread in Python code only."""
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
    """`limited_time` for the thread of a worker: the interpreter raises the error at its next instruction."""
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
    """A number of a file of the form `name: number ...`."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)

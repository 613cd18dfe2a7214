"""Parallel execution of independent tasks in forked processes, where forking is cheap."""

import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress

Files = dict[str, bytes]
Work = Mapping[str, Callable[[], Files]]
MOST_PROCESSES = 4  # including this one
LEAST_PATIENCE_S = 60.0  # least timeout for the result of a child
PATIENCE = 10.0  # timeout for the result of a child, as a multiple of the time that this process took


def shared(work: Work) -> Files:
    """Run all tasks and return their files in the order of the tasks. The result does not depend on which process runs a task.

    On Linux, forked children help, one per further core. Each process takes the next task when it has finished one. If a child fails, is
    killed or times out, its tasks run here. A child may hang, because a lock that another thread held during the fork is never released
    in it.
    """
    processes = min(len(work), MOST_PROCESSES, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    if processes < 2:
        return {file: data for piece in work.values() for file, data in piece().items()}
    left, filling = os.pipe()  # indices of the tasks not yet taken, one byte each
    os.write(filling, bytes(range(len(work))))
    os.close(filling)
    copies: dict[int, int] = {}  # process id -> descriptor from which its result is read
    made: dict[str, Files] = {}
    try:
        for _ in range(processes - 1):
            child, reading = _copy(work, left)
            copies[child] = reading
        started_s = time.perf_counter()
        made = _taken(work, left)
        patience_s = max(LEAST_PATIENCE_S, PATIENCE * (time.perf_counter() - started_s))
        for reading in copies.values():
            with suppress(pickle.UnpicklingError, EOFError):
                made |= pickle.loads(_received(reading, patience_s))
    finally:
        os.close(left)
        for child, reading in copies.items():
            os.close(reading)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # it has sent its result, or has timed out
            os.waitpid(child, 0)
    for name, piece in work.items():
        if name not in made:
            made[name] = piece()
    return {file: data for name in work for file, data in made[name].items()}


def _taken(work: Work, left: int) -> dict[str, Files]:
    """Take and run tasks until none is left. Return the files of these tasks by task."""
    names, made = list(work), {}
    while place := os.read(left, 1):
        name = names[place[0]]
        made[name] = work[name]()
    return made


def _copy(work: Work, left: int) -> tuple[int, int]:
    """Fork a child that takes tasks. Return its process id, and the descriptor from which to read its result."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of forks with several threads. The child has this thread only, and uses nothing of the others (pools, progress bar).
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps(_taken(work, left)))
        finally:
            os._exit(0)  # skips the exit handlers of the parent
    os.close(writing)
    return child, reading


def _received(reading: int, patience_s: float) -> bytes:
    """Read what a child sends until it ends; empty if it sends nothing for `patience_s`."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reading, select.POLLIN | select.POLLHUP)
    while poll.poll(1e3 * patience_s):
        if not (part := os.read(reading, 1 << 16)):
            return b"".join(parts)
        parts.append(part)
    return b""

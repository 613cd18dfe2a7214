"""Half of the drawing in a second process, where that costs nothing to start."""

import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

Files = dict[str, bytes]
LEAST_PATIENCE_S = 60.0
PATIENCE = 10.0  # how many times as long as this process the copy may take


def here_and_beside(here: Callable[[], Files], beside: Callable[[], Files]) -> Files:
    """What both give; `beside` runs in a copy of this process at the same time, where the system has cheap ones (Linux) and a core for it.

    Where the copy fails, is ended from outside or says nothing for long, its part is made here: a lock that another thread held when the
    copy was made is never released there.
    """
    if sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        return here() | beside()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Of threads, the copy has this one alone; what the others hold (pools of workers, a progress bar), it does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _send(beside, writing)
    os.close(writing)
    sent = b""
    try:
        started_s = time.perf_counter()
        own = here()
        sent = _received(reading, max(LEAST_PATIENCE_S, PATIENCE * (time.perf_counter() - started_s)))
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it has sent all, or is not waited for
        os.waitpid(child, 0)
    try:
        other: Files = pickle.loads(sent)
    except (pickle.UnpicklingError, EOFError):
        other = beside()
    return own | other


def _received(reading: int, patience_s: float) -> bytes:
    """What the copy sends until it ends; nothing where it is silent for so long."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reading, select.POLLIN | select.POLLHUP)
    while poll.poll(1e3 * patience_s):
        if not (part := os.read(reading, 1 << 16)):
            return b"".join(parts)
        parts.append(part)
    return b""


def _send(work: Callable[[], Files], writing: int) -> None:
    """Sends the result and ends the process, without what the original would do at its end."""
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(work()))
    finally:
        os._exit(0)

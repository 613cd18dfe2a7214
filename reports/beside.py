"""Half of the drawing in a second process, where that costs nothing to start."""

import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

Files = dict[str, bytes]


def here_and_beside(here: Callable[[], Files], beside: Callable[[], Files]) -> Files:
    """What both give; `beside` runs in a copy of this process at the same time, where the system has cheap ones (Linux) and a core for it.

    Where the copy fails or is ended from outside, its part is made here.
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
        own = here()
        with os.fdopen(reading, "rb", closefd=False) as pipe:
            sent = pipe.read()
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


def _send(work: Callable[[], Files], writing: int) -> None:
    """Sends the result and ends the process, without what the original would do at its end."""
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pickle.dumps(work()))
    finally:
        os._exit(0)

"""Independent work shared with copies of this process, where these cost nothing to start."""

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
MOST_PROCESSES = 4  # this one among them
LEAST_PATIENCE_S = 60.0
PATIENCE = 10.0  # how many times as long as this process a copy may take


def shared(work: Work) -> Files:
    """What all pieces of work give, in their order; who makes one changes nothing.

    Copies of this process take part where the system has cheap ones (Linux), one for each further core. Each process takes the next piece
    when it is done with one. Where a copy fails, is ended from outside or says nothing for long, its pieces are made here: a lock that
    another thread held when the copy was made is never released there.
    """
    processes = min(len(work), MOST_PROCESSES, len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    if processes < 2:
        return {file: data for piece in work.values() for file, data in piece().items()}
    left, filling = os.pipe()  # the places of the pieces that nobody has taken, a byte each
    os.write(filling, bytes(range(len(work))))
    os.close(filling)
    copies: dict[int, int] = {}  # process -> what it sends is read here
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
                os.kill(child, signal.SIGKILL)  # it has sent all, or is not waited for
            os.waitpid(child, 0)
    for name, piece in work.items():
        if name not in made:
            made[name] = piece()
    return {file: data for name in work for file, data in made[name].items()}


def _taken(work: Work, left: int) -> dict[str, Files]:
    """The pieces that this process gets to make."""
    names, made = list(work), {}
    while place := os.read(left, 1):
        name = names[place[0]]
        made[name] = work[name]()
    return made


def _copy(work: Work, left: int) -> tuple[int, int]:
    """A copy of this process that takes pieces: its id, and where to read what it sends at its end."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Of threads, the copy has this one alone; what the others hold (pools of workers, a progress bar), it does not use.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps(_taken(work, left)))
        finally:
            os._exit(0)  # without what the original would do at its end
    os.close(writing)
    return child, reading


def _received(reading: int, patience_s: float) -> bytes:
    """What a copy sends until it ends; nothing where it is silent for so long."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reading, select.POLLIN | select.POLLHUP)
    while poll.poll(1e3 * patience_s):
        if not (part := os.read(reading, 1 << 16)):
            return b"".join(parts)
        parts.append(part)
    return b""

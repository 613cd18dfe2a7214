"""Parallel execution of a function in forked processes, which start at once with the program and its data in memory. Linux only."""

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class LostProcessError(Exception):
    """A process was killed, or did not answer in time."""


def can_fork() -> bool:
    """Return whether this process may fork children that only run Python. On macOS its libraries do not survive a fork."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def forked(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int, patience_s: float | None = None
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield each item with its result, in the order of completion. Each process takes the next item when it has finished one.

    Args:
        work: Called in a child. It need not be picklable, its result must be.
        items: What to call it with.
        processes: Number of children.
        patience_s: Longest wait for the next result. A child may hang, because a lock that another thread held during the fork is never
            released in it. None: no limit.

    Raises:
        LostProcessError: A child was killed, or none answered in time.
        Exception: An error of `work`, which ends the iteration.
    """
    context = multiprocessing.get_context("fork")
    left = iter(range(len(items)))
    children: list[tuple[Any, Connection]] = []
    doing: dict[Connection, int] = {}  # number of the item
    try:
        for number in islice(left, processes):
            ours, theirs = context.Pipe()
            inherited = [*(connection for _, connection in children), ours]
            child = context.Process(target=_serve, args=(work, items, theirs, inherited), daemon=True)
            with warnings.catch_warnings():
                # Python warns of forks with several threads. A child has this thread only, and uses nothing of the others.
                warnings.simplefilter("ignore", DeprecationWarning)
                child.start()
            theirs.close()
            children.append((child, ours))
            ours.send(number)
            doing[ours] = number
        while doing:
            ready = cast("list[Connection]", wait(list(doing), patience_s))
            if not ready:
                raise LostProcessError(f"no answer in {patience_s:g} s")
            for connection in ready:
                done = items[doing.pop(connection)]
                try:
                    result, error = connection.recv()
                except (EOFError, OSError):
                    raise LostProcessError("killed") from None
                if error is not None:
                    raise error
                for number in islice(left, 1):
                    connection.send(number)
                    doing[connection] = number
                yield done, result
    finally:
        for child, connection in children:
            child.kill()
            child.join()
            connection.close()


def _serve(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], connection: Connection, inherited: list[Connection]
) -> None:
    """Answer numbers of items with results or errors, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # only the parent says why it ends
    for other in inherited:  # otherwise the end of the parent would not close them
        other.close()
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = work(items[number]), None
        except Exception as error:
            answer = None, error
        connection.send(answer)

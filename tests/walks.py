"""Searches through draft trees (`verify` and `verify_greedy` of `models/methods/eagle2.py`) without models."""

from collections.abc import Callable, Generator
from typing import TypeVar

Said = TypeVar("Said")
Found = TypeVar("Found")


def answered(search: Generator[int, Said, Found], after: Callable[[int], Said]) -> Found:
    """Run a search to its end, sending it `after(node)` for each node that it yields, and return its result."""
    node = next(search)
    while True:
        try:
            node = search.send(after(node))
        except StopIteration as stop:
            found: Found = stop.value
            return found

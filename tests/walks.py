"""Searches through draft trees (`verify` and `verify_greedy` of `models/methods/eagle2.py`) without models."""

from collections.abc import Callable, Generator
from typing import TypeVar

Said = TypeVar("Said")
Found = TypeVar("Found")


def answered(search: Generator[int, Said, Found], after: Callable[[int], Said]) -> Found:
    """What a search finds that is told `after(node)` of each node it comes to."""
    node = next(search)
    while True:
        try:
            node = search.send(after(node))
        except StopIteration as stop:
            found: Found = stop.value
            return found

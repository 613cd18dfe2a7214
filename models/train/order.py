"""Which items are read, in which order: of training items a new permutation in every epoch, of held-out items a sample."""

import numpy as np

from simulator.core.rng import stream


def shuffled_indices(seed: int, purpose: str, first: int, count: int, items: int) -> np.ndarray:
    """Return elements first .. first + count - 1 of an endless sequence of epochs over `items` items, int64 [count].

    Each epoch is one permutation of all items, drawn from the stream (seed, purpose, epoch), so a resumed run continues the
    same order.
    """
    epoch, place = np.divmod(np.arange(first, first + count), items)
    orders = {int(e): stream(seed, purpose, int(e)).permutation(items) for e in np.unique(epoch)}
    return np.array([orders[int(e)][at] for e, at in zip(epoch, place, strict=True)], dtype=np.int64)


def evenly_spread(items: int, most: int | None) -> np.ndarray:
    """Return all of `items` indices, or `most` of them evenly spread, because a data set may be sorted: int64 [n], ascending."""
    return np.arange(items) if most is None or most >= items else np.arange(most) * items // most

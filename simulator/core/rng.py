"""Random numbers by name: every draw comes from a stream keyed by (seed, purpose, identities), never by order of drawing.

Adding a device, a method or a message type therefore never shifts another component's draws (common random numbers across
methods), and results do not depend on process, worker count or hash seed.
"""

import hashlib
import itertools
from collections.abc import Callable

import numpy as np


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A generator for one named stream, e.g. `stream(seed, "link.up.jitter", device_id)`. Equal keys give equal draws."""
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


_BLOCK = 64


def buffered(draw: Callable[[int], np.ndarray]) -> Callable[[], float]:
    """The draws of a stream one at a time, taken from it in blocks of 64, which is faster and gives the same numbers.

    Args:
        draw: float64 [count], by count, such as `generator.random`.
    """
    # All in C but for one line a block: links draw for every message.
    blocks = (draw(_BLOCK).tolist() for _ in itertools.repeat(None))
    return itertools.chain.from_iterable(blocks).__next__


def draws(seed: int, count: int, *key: str | int) -> np.ndarray:
    """float64 [count] in [0, 1): the draws of one purpose by position, so that position t always sees `draws(...)[t]`."""
    return stream(seed, *key).random(count)

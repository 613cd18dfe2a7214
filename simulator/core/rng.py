"""Random numbers by name: every draw comes from a stream keyed by (seed, purpose, identities), never by order of drawing.

Adding a device, a method or a message type therefore never shifts another component's draws (common random numbers across
methods), and results do not depend on process, worker count or hash seed.
"""

import hashlib

import numpy as np


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A generator for one named stream, e.g. `stream(seed, "link.up.jitter", device_id)`. Equal keys give equal draws."""
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64)))


def draws(seed: int, count: int, *key: str | int) -> np.ndarray:
    """float64 [count] in [0, 1): the draws of one purpose by position, so that position t always sees `draws(...)[t]`."""
    return stream(seed, *key).random(count)

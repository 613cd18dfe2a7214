"""Which sessions begin alike, and how sessions are divided into parts that are recorded apart. No torch."""

import math
from collections.abc import Sequence
from typing import Any

from simulator.protocol.methods import METHODS
from simulator.protocol.recording import SessionSpec

# Of the decoding settings, what the cloud's tokens follow from.
_DECIDES = (
    "guidance",
    "temperature",
    "top_k",
    "top_p",
    "cloud",
)


def opening_tokens(spec: SessionSpec, image_tokens: int) -> int:
    """First tokens of a session that the cloud makes by itself, see `MethodSettings.opening_tokens`."""
    return METHODS[spec.method].settings.model_validate(spec.settings).opening_tokens(image_tokens)


def families(specs: Sequence[SessionSpec], image_tokens: int) -> list[list[int]]:
    """Indices of sessions whose cloud begins with the same tokens, families in the order of their first sessions.

    A session in which the cloud makes no token by itself is a family of its own.
    """
    found: dict[Any, list[int]] = {}
    for index, spec in enumerate(specs):
        alike = (spec.prompt, spec.seed, *(spec.decoding[name] for name in _DECIDES))
        found.setdefault(alike if opening_tokens(spec, image_tokens) else index, []).append(index)
    return list(found.values())


def parts(specs: Sequence[SessionSpec], image_tokens: int, max_batch: int) -> list[list[SessionSpec]]:
    """Sessions in parts of about `max_batch` at most, families whole and dealt out in turn.

    There is a power of two of them, so that two, four or eight processes have equal shares. They depend on nothing else: who records
    them, and how many at the same time, changes no recording.
    """
    count = 2 ** math.ceil(math.log2(max(1.0, len(specs) / max_batch)))
    dealt: list[list[SessionSpec]] = [[] for _ in range(count)]
    for number, family in enumerate(families(specs, image_tokens)):
        dealt[number % count] += [specs[index] for index in family]
    return [part for part in dealt if part]

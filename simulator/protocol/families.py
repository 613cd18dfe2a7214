"""Finds sessions with the same first tokens, and divides sessions into parts that are recorded separately. No torch."""

import math
from collections.abc import Sequence
from typing import Any

from simulator.protocol.methods import METHODS
from simulator.protocol.recording import SessionSpec

# The decoding settings that determine the cloud's tokens.
_DECIDES = (
    "guidance",
    "temperature",
    "top_k",
    "top_p",
    "cloud",
)


def opening_tokens(spec: SessionSpec, image_tokens: int) -> int:
    """Number of first tokens that the cloud decides by itself, see `MethodSettings.opening_tokens`."""
    return METHODS[spec.method].settings.model_validate(spec.settings).opening_tokens(image_tokens)


def families(specs: Sequence[SessionSpec], image_tokens: int) -> list[list[int]]:
    """Indices of sessions in which the cloud starts with the same tokens; families in the order of their first sessions.

    A session in which the cloud decides no token by itself is its own family.
    """
    found: dict[Any, list[int]] = {}
    for index, spec in enumerate(specs):
        alike = (spec.prompt, spec.seed, *(spec.decoding[name] for name in _DECIDES))
        found.setdefault(alike if opening_tokens(spec, image_tokens) else index, []).append(index)
    return list(found.values())


def parts(specs: Sequence[SessionSpec], image_tokens: int, max_batch: int) -> list[list[SessionSpec]]:
    """Sessions in parts of at most about `max_batch`; families are not split and are distributed in turn.

    The number of parts is a power of two, so that two, four or eight processes have equal shares. The parts depend on nothing else: the
    number of processes changes no recording.
    """
    count = 2 ** math.ceil(math.log2(max(1.0, len(specs) / max_batch)))
    dealt: list[list[SessionSpec]] = [[] for _ in range(count)]
    for number, family in enumerate(families(specs, image_tokens)):
        dealt[number % count] += [specs[index] for index in family]
    return [part for part in dealt if part]

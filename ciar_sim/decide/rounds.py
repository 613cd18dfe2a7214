"""Rounds of a session: drafted tokens, accepted tokens and duration of each call.

A round is a cloud pass that decides tokens after the session's first call. For drafting methods it verifies a block or tree of drafts, for
gated methods the tokens that the device decided since the last call. The counts follow from the positions that the passes processed and
found in the KV cache, not from bookkeeping of the methods.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from simulator.protocol.ops import ROLES
from simulator.protocol.recording import CLOUD, FORWARD, FROM_CLOUD, Recording
from simulator.results.timeline import Span


class Round(NamedTuple):
    """One round of a session.

    Attributes:
        call: The call of its verification, counted from 0.
        drafted: Number of tokens verified.
        accepted: Number of tokens accepted, a prefix of a chain or a path of a tree, without the cloud's own token that follows.
    """

    call: int
    drafted: int
    accepted: int


def rounds_of(recording: Recording) -> list[Round]:
    """Return the rounds of a recorded session, in order."""
    ops = recording.ops
    passes = ops[
        (ops["side"] == CLOUD)
        & (ops["kind"] == FORWARD)
        & (ops["what"] == ROLES.index("cloud"))
        & (ops["decides"] == 1)
    ]
    asked = passes[passes["call"] > 0]
    known = int(np.count_nonzero(passes["call"] == 0))  # the prefix: one token per pass
    found: list[Round] = []
    for place, one in enumerate(asked):
        drafted = max(0, int(one["kv_tokens"]) + int(one["new_tokens"]) - known)
        if place + 1 < len(asked):  # the KV cache of the next pass has all tokens but the newest
            following = int(asked[place + 1]["kv_tokens"]) + 1
            accepted = following - known - 1
        else:
            following = known
            accepted = min(drafted, len(recording.tokens) - known - 1, _until_cloud(recording, known))
        found.append(Round(int(one["call"]), drafted, max(0, min(drafted, accepted))))
        known = following
    return found


def _until_cloud(recording: Recording, first: int) -> int:
    """Return the number of tokens before the next one that the cloud decided; all remaining ones if the cloud decided all or none."""
    by_cloud = recording.decided_by[first:] == FROM_CLOUD
    if by_cloud.all() or not by_cloud.any():
        return len(by_cloud)
    return int(np.argmax(by_cloud))


def call_seconds(spans: Sequence[Span]) -> Mapping[tuple[int, int], float]:
    """Return the seconds from sending a call until its whole reply is on the device, by (request, call)."""
    starts: dict[tuple[int, int], float] = {}
    ends: dict[tuple[int, int], float] = {}
    for span in spans:
        call = dict(span.args).get("call")
        if not isinstance(call, int):
            continue
        key = (span.request, call)
        if span.track == "uplink":
            starts[key] = min(span.start_s, starts.get(key, span.start_s))
        elif span.track == "downlink":
            ends[key] = max(span.end_s, ends.get(key, span.end_s))
    return {key: ends[key] - start for key, start in starts.items() if key in ends}

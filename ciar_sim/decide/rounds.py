"""Rounds of drafts and verdicts: what each call of a session had drafted, what of it the cloud accepted, and how long that took.

A round is a cloud pass that decides tokens after the session's first call: of the drafting methods the verification of a block or a tree
of drafts, of the gated ones that of the tokens which the device decided since the last call. The counts follow from the positions that
the passes fed and found in the cache, and not from any method's own bookkeeping.
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
        call: The call that held its verification, counted from 0.
        drafted: Tokens that the verification looked at.
        accepted: Those that stayed, a prefix of a chain or a path of a tree; the cloud's own token that follows is not among them.
    """

    call: int
    drafted: int
    accepted: int


def rounds_of(recording: Recording) -> list[Round]:
    """The rounds of a recorded session, in order."""
    ops = recording.ops
    passes = ops[
        (ops["side"] == CLOUD)
        & (ops["kind"] == FORWARD)
        & (ops["what"] == ROLES.index("cloud"))
        & (ops["decides"] == 1)
    ]
    asked = passes[passes["call"] > 0]
    known = int(np.count_nonzero(passes["call"] == 0))  # the prefix: a token a pass
    found: list[Round] = []
    for place, one in enumerate(asked):
        drafted = max(0, int(one["kv_tokens"]) + int(one["new_tokens"]) - known)
        if place + 1 < len(asked):  # the next pass finds all but the newest token in the cache
            following = int(asked[place + 1]["kv_tokens"]) + 1
            accepted = following - known - 1
        else:
            following = known
            accepted = min(drafted, len(recording.tokens) - known - 1, _until_cloud(recording, known))
        found.append(Round(int(one["call"]), drafted, max(0, min(drafted, accepted))))
        known = following
    return found


def _until_cloud(recording: Recording, first: int) -> int:
    """Tokens from a position to the next that the cloud decided; all that are left where the cloud decided every one."""
    by_cloud = recording.decided_by[first:] == FROM_CLOUD
    if by_cloud.all() or not by_cloud.any():
        return len(by_cloud)
    return int(np.argmax(by_cloud))


def call_seconds(spans: Sequence[Span]) -> Mapping[tuple[int, int], float]:
    """Seconds from sending a call until the last of its reply is on the device, by request and call."""
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

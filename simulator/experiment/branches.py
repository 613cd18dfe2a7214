"""Branches (recordings of sessions that gave up a reply), and the distinct images of a case."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.core.errors import RecordingError
from simulator.engine.fallback import calls_sent, steps_until
from simulator.pricing.program import STEP_FIRST, STEP_SECONDS, SessionProgram, down_bytes
from simulator.protocol.recording import AWAIT, DEVICE, FROM_FALLBACK, Recording

Branches = dict[tuple[int, int], Recording]  # by prompt and by the call whose reply was given up


def abandoned(whole: SessionProgram, branch: SessionProgram, call: int) -> SessionProgram:
    """Return the program that follows `whole` until it gives up `call`, and then `branch`, which was recorded with that outcome.

    Both agree until then, except for tokens that rounding in another batch decides differently. The steps before are those of `whole`,
    since they have already been replayed.

    Raises:
        RecordingError: The branch calls the cloud again.
    """
    cut, other = steps_until(whole, call), steps_until(branch, call)
    rest = branch.steps[other:]
    if any(send >= 0 or wait >= 0 for _, _, send, wait in rest):
        raise RecordingError(f"after it missed the reply to call {call} the session asks the cloud again")
    before = whole.steps[:cut]
    if any(step[STEP_FIRST] >= 0.0 for step in before):
        rest = tuple((seconds, -1.0, send, wait) for seconds, _, send, wait in rest)
    # The first token, computed before the await but decided by its outcome.
    elif any(step[STEP_FIRST] >= 0.0 for step in branch.steps[:other]):
        rest = ((rest[0][0], 0.0, -1, -1), *rest[1:]) if rest else ((0.0, 0.0, -1, -1),)
    calls = whole.calls[: calls_sent(before)]
    return replace(
        branch,
        steps=(*before, *rest),
        calls=calls,
        device_s=sum(step[STEP_SECONDS] for step in (*before, *rest)),
        bytes_up=sum(size for size, _, _, _ in calls),
        bytes_down=down_bytes(calls),
        kv_tokens=whole.kv_tokens,
        context_bytes=whole.context_bytes[: len(calls)],
    )


def common_prefix(whole: Recording, branch: Recording, call: int) -> bool:
    """Return whether both devices performed the same operations until they awaited `call`."""
    ops = [recording.ops[recording.ops["side"] == DEVICE] for recording in (whole, branch)]
    ends = [int(np.flatnonzero((rows["kind"] == AWAIT) & (rows["call"] == call))[0]) + 1 for rows in ops]
    return np.array_equal(ops[0][: ends[0]], ops[1][: ends[1]])


@dataclass(frozen=True)
class Images:
    """The distinct images of a case: one per prompt without a fallback, and one per branch.

    Attributes:
        recordings: Recording of each image.
        prompts: Prompt of each image.
        of_request: int [n], the image of each request.
    """

    recordings: list[Recording]
    prompts: list[int]
    of_request: np.ndarray

    def columns(self) -> dict[str, np.ndarray]:
        """Return columns of requests: image, fallback_pct, fallback_cloud_nll_cost (see results.COLUMNS)."""
        share = [100.0 * float(np.mean(recording.decided_by == FROM_FALLBACK)) for recording in self.recordings]
        nll = [float(recording.nll.mean(dtype=np.float64)) for recording in self.recordings]
        cost = [math.nan if image == prompt else nll[image] - nll[prompt] for image, prompt in enumerate(self.prompts)]
        return {
            "image": self.of_request,
            "fallback_pct": np.array(share)[self.of_request],
            "fallback_cloud_nll_cost": np.array(cost)[self.of_request],
        }


def images_of(
    prompt: np.ndarray,
    timed_out_call: np.ndarray,
    whole: Sequence[Recording],
    branches: Mapping[tuple[int, int], Recording],
) -> Images:
    """Return the images of the requests.

    Args:
        prompt: int [n], the prompt of each request.
        timed_out_call: int [n], the call whose reply each request gave up, -1 for none.
        whole: Recordings of the prompts.
        branches: Branches by prompt and call; those that no request has are not used.
    """
    places = sorted(set(zip(prompt.tolist(), timed_out_call.tolist(), strict=True)))
    broken = [place for place in places if place[1] >= 0]
    number = {place: place[0] for place in places} | {place: len(whole) + index for index, place in enumerate(broken)}
    of_request = np.array(
        [number[place] for place in zip(prompt.tolist(), timed_out_call.tolist(), strict=True)], np.int64
    )
    recordings = [*whole, *(branches[place] for place in broken)]
    return Images(recordings, [*range(len(whole)), *(place[0] for place in broken)], of_request)

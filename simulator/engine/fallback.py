"""The deadline of a reply, its retries, and a stand-in for the program that follows when it is missed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulator.pricing.program import STEP_AWAIT, STEP_SECONDS, STEP_SEND, DeviceStep, SessionProgram

# https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md
MULTIPLIER, JITTER, LONGEST_S = 1.6, 0.2, 120.0


@dataclass(frozen=True)
class Fallback:
    """How long a device waits for a reply that it can do without.

    Attributes:
        deadline_s: seconds from the start of the await.
        attempts: number of times that the request is sent, including the first.
        gives_up: whether the device then finishes the image alone; otherwise it keeps waiting.
    """

    deadline_s: float
    attempts: int = 1
    gives_up: bool = True

    def wait_s(self, repetition: int, draw: float) -> float:
        """Return the seconds to wait after the `repetition`-th repetition of the request (0: after the request itself).

        The deadline times 1.6 per repetition, at most 120 s or the deadline if that is longer, plus or minus up to 20 % at random. Source:
        gRPC Connection Backoff Protocol, with the deadline as its first back-off, so that no repetition has much less time than the
        request itself.

        Args:
            repetition: number of repetitions so far.
            draw: uniform in [-1, 1].
        """
        if repetition == 0:
            return self.deadline_s
        longest_s = max(LONGEST_S, self.deadline_s)
        return min(self.deadline_s * MULTIPLIER**repetition, longest_s) * (1.0 + JITTER * draw)


def without_cloud(whole: SessionProgram, call: int) -> SessionProgram:
    """Return a stand-in for the unrecorded program of a session that stops waiting for `call`: the same computing, no further calls."""
    cut = steps_until(whole, call)
    rest = (sum(step[STEP_SECONDS] for step in whole.steps[cut:]), -1.0, -1, -1)
    return replace(whole, steps=(*whole.steps[:cut], rest), calls=whole.calls[: calls_sent(whole.steps[:cut])])


def calls_sent(steps: Sequence[DeviceStep]) -> int:
    """Return the number of calls that the first steps of a program send."""
    return 1 + max(step[STEP_SEND] for step in steps)


def steps_until(program: SessionProgram, call: int) -> int:
    """Return the number of steps up to and including the one that awaits a call."""
    return next(index for index, step in enumerate(program.steps) if step[STEP_AWAIT] == call) + 1

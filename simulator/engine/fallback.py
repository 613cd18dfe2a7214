"""When a device stops waiting for a reply, and the program it follows from there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simulator.pricing.program import SessionProgram, Step

# https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md
MULTIPLIER, JITTER, LONGEST_S = 1.6, 0.2, 120.0


@dataclass(frozen=True)
class Fallback:
    """How long a reply is waited for that the device can do without.

    deadline_s: from the begin of the await. attempts: how often the request is sent in all before it is given up. gives_up: whether the
    device finishes the image alone then; otherwise it waits on.
    """

    deadline_s: float
    attempts: int = 1
    gives_up: bool = True

    def wait_s(self, repetition: int, draw: float) -> float:
        """How long to wait after the request was sent again for the `repetition`-th time (0: for the first time). draw: from -1 to 1.

        The deadline times 1.6 for each repetition, at most 120 s, and within 20 % at random. Source: gRPC Connection Backoff Protocol,
        with the deadline as its first back-off, so that no repetition has much less time than the request itself had.
        """
        if repetition == 0:
            return self.deadline_s
        longest_s = max(LONGEST_S, self.deadline_s)
        return min(self.deadline_s * MULTIPLIER**repetition, longest_s) * (1.0 + JITTER * draw)


def without_cloud(whole: SessionProgram, call: int) -> SessionProgram:
    """A stand-in for the session that stops waiting for `call`, as long as that is not recorded: the same computing, and no more calls."""
    cut = _awaits(whole, call)
    rest = (sum(step[0] for step in whole.steps[cut:]), -1.0, -1, -1)
    return replace(whole, steps=(*whole.steps[:cut], rest), calls=whole.calls[: _sent(whole.steps[:cut])])


def _sent(steps: Sequence[Step]) -> int:
    """How many calls have been sent."""
    return 1 + max(step[2] for step in steps)


def _awaits(program: SessionProgram, call: int) -> int:
    """How many steps the device has done when it has the reply to a call."""
    return next(index for index, step in enumerate(program.steps) if step[3] == call) + 1

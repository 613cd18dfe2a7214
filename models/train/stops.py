"""SIGINT and SIGTERM held back until a training step is done."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stops_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, since a step that is cut cannot be continued. Yield a function that tells whether one came.

    The signal goes to its own handler at the end of the block; a second one goes there at once.
    """
    came: list[int] = []
    own: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        if came:
            own[number](number, frame)
        came.append(number)

    if threading.current_thread() is threading.main_thread():  # which alone receives signals
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # Not one that is ignored, and not the system's own.
        own = {number: handler for number, handler in handlers.items() if callable(handler)}
        for number in own:
            signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
    if came:
        own[came[0]](came[0], None)

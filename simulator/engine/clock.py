"""SimPy's clock with callbacks at absolute times."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar

import simpy
from simpy.events import NORMAL

if TYPE_CHECKING:
    pass


class Clock(simpy.Environment):
    """SimPy's clock and queue, with callbacks at absolute times: `now + (t - now)` would not always be t."""

    def at(self, time_s: float, callbacks: tuple[Callable[[Any], None], ...], subject: Any) -> "Alarm":
        alarm = Alarm(callbacks, subject, time_s)
        heappush(self._queue, (time_s, NORMAL, next(self._eid), alarm))  # type: ignore[misc]
        return alarm

    def run(self, until: Any = None) -> Any:
        """As SimPy's; until nothing is scheduled any more, its loop less what only its own events ask of it."""
        if until is not None:
            return super().run(until)
        queue = self._queue
        while queue:
            self._now, _, _, alarm = heappop(queue)
            for callback in alarm.callbacks:
                callback(alarm)
        return None

    def drop(self) -> None:
        """Nothing that is scheduled happens any more."""
        self._queue.clear()

    def events(self) -> int:
        """Events scheduled so far; to be asked once, at the end."""
        return next(self._eid)


class Alarm:
    """As much of a SimPy event as its loop looks at, without the rest."""

    __slots__ = ("callbacks", "subject", "time_s")
    _ok: ClassVar[bool] = True

    def __init__(self, callbacks: tuple[Callable[[Any], None], ...], subject: Any, time_s: float) -> None:
        self.callbacks = callbacks
        self.subject = subject
        self.time_s = time_s

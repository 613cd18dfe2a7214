"""SimPy's clock with callbacks at absolute times."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, ClassVar

import simpy
from simpy.events import NORMAL


class Clock(simpy.Environment):
    """SimPy's clock and queue, with callbacks at absolute times, because `now + (t - now)` is not always t in floats."""

    def at(self, time_s: float, callbacks: tuple[Callable[[Any], None], ...], subject: Any) -> "Alarm":
        """Schedule callbacks at a time; each is called with the alarm, which is also returned. Set its `callbacks` to () to cancel it."""
        alarm = Alarm(callbacks, subject, time_s)
        heappush(self._queue, (time_s, NORMAL, next(self._eid), alarm))  # type: ignore[misc]
        return alarm

    def run(self, until: Any = None) -> Any:
        """Run like SimPy's environment. Without `until` the loop is shorter, because SimPy's does work that only its events need."""
        if until is not None:
            return super().run(until)
        queue = self._queue
        while queue:
            self._now, _, _, alarm = heappop(queue)
            for callback in alarm.callbacks:
                callback(alarm)
        return None

    def drop(self) -> None:
        """Cancel all scheduled alarms."""
        self._queue.clear()

    def events(self) -> int:
        """Return the number of events scheduled so far. Call it once, at the end: it uses up a number of the sequence."""
        return next(self._eid)


class Alarm:
    """A scheduled callback, with the attributes of a SimPy event that SimPy's loop reads."""

    __slots__ = ("callbacks", "subject", "time_s")
    _ok: ClassVar[bool] = True

    def __init__(self, callbacks: tuple[Callable[[Any], None], ...], subject: Any, time_s: float) -> None:
        self.callbacks = callbacks
        self.subject = subject
        self.time_s = time_s

"""Queue disciplines of a replica."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable

from simulator.cloud.rules import Discipline
from simulator.cloud.work import CloudSession
from simulator.pricing.program import COMPANION, ITEM_KIND, ITEM_SECONDS


class _Ordered:
    """A queue ordered by a key of the session, lowest first; ties in order of arrival."""

    def __init__(self, key: Callable[[CloudSession], float]) -> None:
        self._key = key
        self._heap: list[tuple[float, int, CloudSession]] = []
        self._arrivals = itertools.count()
        self._returns = itertools.count(-1, -1)
        self._taken = 0.0  # key of the session that `popleft` returned last

    def __len__(self) -> int:
        return len(self._heap)

    def append(self, session: CloudSession) -> None:
        heapq.heappush(self._heap, (self._key(session), next(self._arrivals), session))

    def appendleft(self, session: CloudSession) -> None:
        """Put back the session that `popleft` returned last, ahead of all others with the same key."""
        heapq.heappush(self._heap, (self._taken, next(self._returns), session))

    def popleft(self) -> CloudSession:
        self._taken, _, session = heapq.heappop(self._heap)
        return session

    def clear(self) -> None:
        self._heap.clear()


def _work_left_s(session: CloudSession) -> float:
    """Return the seconds of work left in the call. Must be called once per item: it subtracts the item that ended last."""
    items, index = session.items, session.index
    session.left_s = (
        session.left_s - items[index - 1][ITEM_SECONDS] if index else sum(item[ITEM_SECONDS] for item in items)
    )
    return session.left_s


def queue_of(discipline: Discipline) -> "deque[CloudSession] | _Ordered":
    """Return an empty queue of the discipline."""
    match discipline:
        case "fifo":
            return deque()
        case "shortest-first":
            return _Ordered(_work_left_s)
        case "earliest-deadline":
            return _Ordered(lambda session: session.deadline_s)
        case "priority":
            return _Ordered(lambda session: -session.priority)


class TwoModels:
    """The two queues of a replica that also runs the device's model: passes of that model, and all other work.

    An iteration runs one model. Passes of the device's model go first until a full batch of other work waits: they are short
    compared with passes of the cloud model, whose batch grows meanwhile.
    """

    def __init__(self, discipline: Discipline, max_batch: int) -> None:
        self._device, self._other = queue_of(discipline), queue_of(discipline)
        self._next = self._device
        self._full = max_batch

    def __len__(self) -> int:
        return len(self._device) + len(self._other)

    def choose(self) -> int:
        """Choose the model of the next iteration. Returns the number of sessions waiting for it; `popleft` takes from these."""
        self._next = self._other if len(self._other) >= self._full or not self._device else self._device
        return len(self._next)

    def append(self, session: CloudSession) -> None:
        self._of(session).append(session)

    def appendleft(self, session: CloudSession) -> None:
        """Put back the session that `popleft` returned last, ahead of all others with the same key."""
        self._of(session).appendleft(session)

    def popleft(self) -> CloudSession:
        return (self._next or self._device or self._other).popleft()

    def _of(self, session: CloudSession) -> "deque[CloudSession] | _Ordered":
        return self._device if session.item[ITEM_KIND] == COMPANION else self._other

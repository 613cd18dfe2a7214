"""The cloud: replicas that batch per iteration, so that a session of 256 passes never blocks another one.

An idle replica takes waiting sessions, first come first served, at most `max_batch` of them, and runs the next item of
each: the passes as one batch, other work (caption encoder, image decoder) after it, one by one. Then each session goes
on with its next item, at the tail of the queue. What becomes ready while an iteration runs waits for the next one.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from simulator.costs import Costs, Work
from simulator.replay import ENCODE, PASS, Down, Item

# Calls the callbacks with an object that carries `subject`, at a point in virtual time (seconds).
Schedule = Callable[[float, tuple[Callable[[Any], None], ...], Any], None]


class CloudSession:
    """A session as the cloud sees it: work to do in order, and where the time of its latest await went.

    While `charged`, time in the cloud belongs to the session's latency: all from `mark_s` on that is not yet booked
    under cloud_queue_s (waiting for an iteration), cloud_compute_s (in one), or encode_s and image_decode_s (its own
    such work in one). Each iteration books at its end, whatever happened before `mark_s` is nobody's. gpu_s is booked
    in any case.
    """

    __slots__ = (
        "charged",
        "cloud_compute_s",
        "cloud_queue_s",
        "encode_s",
        "gpu_s",
        "image_decode_s",
        "index",
        "item",
        "items",
        "mark_s",
        "ready_s",
        "replica",
        "traced",
    )  # fmt: skip

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.items: tuple[Item, ...] = ()  # of the call under way
        self.index = 0
        self.item: Item  # items[index]
        self.ready_s = 0.0  # since when the item waits
        self.charged = False
        self.mark_s = 0.0
        self.cloud_queue_s = self.cloud_compute_s = self.encode_s = self.image_decode_s = self.gpu_s = 0.0
        self.traced = False

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        """Parts of a reply leave the cloud."""
        raise NotImplementedError

    def served(self, now_s: float) -> None:
        """The last item of the call is done."""
        raise NotImplementedError

    def trace_iteration(self, start_s: float, end_s: float) -> None:
        """An iteration with this session ends; `ready_s` is still its item's. Called for traced sessions only."""
        raise NotImplementedError


class Replica:
    """One copy of the cloud model with its queue. busy_s, iterations and items_done only grow."""

    __slots__ = (
        "_batch",
        "_end_s",
        "_on_end",
        "_ready",
        "_row_s",
        "_start_s",
        "busy_s",
        "costs",
        "items_done",
        "iterations",
        "max_batch",
        "open_sessions",
        "schedule",
    )  # fmt: skip

    def __init__(self, costs: Costs, max_batch: int, schedule: Schedule) -> None:
        self.costs = costs
        self.max_batch = max_batch
        self.schedule = schedule
        self.open_sessions = 0
        self.busy_s = 0.0
        self.iterations = self.items_done = 0
        self._ready: deque[CloudSession] = deque()
        self._batch: list[CloudSession] = []  # in the iteration under way; empty when idle
        self._start_s = self._end_s = 0.0
        self._row_s = 0.0  # GPU seconds a row of the batch is booked
        self._on_end = (self._end,)

    def submit(self, session: CloudSession, now_s: float, items: tuple[Item, ...]) -> None:
        """Work of a session's next call (at least one item); the replica calls `served` when all is done."""
        session.items = items
        session.index = 0
        session.item = items[0]
        session.ready_s = now_s
        self._ready.append(session)
        if not self._batch:
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        ready = self._ready
        size = min(len(ready), self.max_batch)
        if size == 1:
            session = ready.popleft()
            item = session.item
            seconds = item[5]
            if item[6] == PASS:
                self._row_s = seconds / item[0]
            self._batch = [session]
        else:
            self._batch = batch = [ready.popleft() for _ in range(size)]
            rows = tokens = kv_tokens = attended = logits = 0
            seconds = 0.0
            for session in batch:
                item = session.item
                if item[6] == PASS:
                    rows += item[0]
                    tokens += item[1]
                    kv_tokens += item[2]
                    attended += item[3]
                    logits += item[4]
                else:
                    seconds += item[5]
            if rows:
                pass_s = self.costs.pass_seconds(Work(rows, tokens, kv_tokens, attended, logits))
                self._row_s = pass_s / rows
                seconds += pass_s
        self.busy_s += seconds
        self.iterations += 1
        self.items_done += size
        self._start_s = now_s
        self._end_s = end_s = now_s + seconds
        self.schedule(end_s, self._on_end, self)

    def _end(self, _event: object) -> None:
        start_s, end_s, row_s = self._start_s, self._end_s, self._row_s
        ready = self._ready
        for session in self._batch:  # which stays until the last is done, so that a `submit` from here on only queues
            item = session.item
            rows, _, _, _, _, own_s, kind, parts = item
            session.gpu_s += rows * row_s if kind == PASS else own_s
            if session.charged:
                mark_s = session.mark_s
                if mark_s < start_s:
                    session.cloud_queue_s += start_s - mark_s
                    mark_s = start_s
                session.mark_s = end_s
                spent_s = end_s - mark_s
                if kind >= ENCODE:
                    if own_s > spent_s:
                        own_s = spent_s
                    if kind == ENCODE:
                        session.encode_s += own_s
                    else:
                        session.image_decode_s += own_s
                    spent_s -= own_s
                session.cloud_compute_s += spent_s
            if session.traced:
                session.trace_iteration(start_s, end_s)
            if parts:
                session.emit(end_s, parts)
            index = session.index + 1
            if index < len(session.items):
                session.index = index
                session.item = session.items[index]
                session.ready_s = end_s
                ready.append(session)
            else:
                session.served(end_s)
        self._batch = []
        if ready:
            self._begin(end_s)


class Cloud:
    """All replicas. A session is bound to one for good when it opens."""

    def __init__(self, costs: Costs, replicas: int, max_batch: int, schedule: Schedule) -> None:
        """max_batch: sessions in one iteration at most. Raises ValueError where either count is below 1."""
        if replicas < 1 or max_batch < 1:
            raise ValueError(f"replicas and max_batch must be >= 1, got {replicas} and {max_batch}")
        self.replicas = [Replica(costs, max_batch, schedule) for _ in range(replicas)]

    def open(self, session: CloudSession) -> Replica:
        """Bind a session to the replica with the fewest open sessions, the first of these on a tie."""
        replica = min(self.replicas, key=lambda r: r.open_sessions)
        replica.open_sessions += 1
        session.replica = replica
        return replica

    def close(self, session: CloudSession) -> None:
        """The session is over; nothing where it never opened."""
        if session.replica is not None:
            session.replica.open_sessions -= 1
            session.replica = None

    def mean_batch(self) -> float:
        """Sessions per iteration; NaN before the first iteration."""
        iterations = sum(r.iterations for r in self.replicas)
        return sum(r.items_done for r in self.replicas) / iterations if iterations else float("nan")

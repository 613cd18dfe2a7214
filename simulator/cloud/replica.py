"""A replica: iterations over batches of waiting sessions, and its KV memory."""

from collections.abc import Callable
from typing import Any

from simulator.cloud.queues import _queue_of
from simulator.cloud.rules import Discipline
from simulator.cloud.work import CloudSession
from simulator.pricing.costs import Costs, Work
from simulator.pricing.program import ENCODE, PASS, Item

# Calls the callbacks with an object that carries `subject`, at a point in virtual time (seconds); gives that object back.
Schedule = Callable[[float, tuple[Callable[[Any], None], ...], Any], Any]


def recomputed(item: Item, costs: Costs) -> Item:
    """The same pass where the cache is gone: what was cached is fed again, with the new positions, in one pass."""
    rows, tokens, kv_tokens, attended, logits, _, kind, parts = item
    if kind != PASS:
        return item
    cached = (kv_tokens - tokens) // rows
    work = Work(rows, kv_tokens, kv_tokens, attended + rows * (cached * (cached + 1) // 2), logits)
    return (*work, costs.pass_seconds(work), kind, parts)


class Replica:
    """One copy of the cloud model with its queue. busy_s, iterations and items_done only grow, but for work that a crash cuts off.

    sessions: open here. kv_tokens: positions reserved or held here. up: takes sessions. since_s: when it last came up; up_s: time
    up before that.
    """

    __slots__ = (
        "_alarm",
        "_batch",
        "_end_s",
        "_on_end",
        "_ready",
        "_row_s",
        "_start_s",
        "busy_s",
        "costs",
        "empty_s",
        "items_done",
        "iterations",
        "kv_tokens",
        "max_batch",
        "number",
        "schedule",
        "sessions",
        "since_s",
        "up",
        "up_s",
    )

    def __init__(
        self,
        costs: Costs,
        max_batch: int,
        schedule: Schedule,
        queue: Discipline = "fifo",
        number: int = 0,
        now_s: float = 0.0,
    ) -> None:
        self.costs = costs
        self.max_batch = max_batch
        self.schedule = schedule
        self.number = number
        self.sessions: dict[CloudSession, None] = {}  # in order of opening
        self.kv_tokens = 0
        self.up = True
        self.since_s = now_s
        self.up_s = 0.0
        self.empty_s = now_s  # when the last session left
        self.busy_s = 0.0
        self.iterations = self.items_done = 0
        self._ready: Any = _queue_of(queue)
        self._batch: list[CloudSession] = []  # in the iteration under way; empty when idle
        self._start_s = self._end_s = 0.0
        self._row_s = 0.0  # GPU seconds a row of the batch is booked
        self._on_end = (self._end,)
        self._alarm: Any = None  # of the end of the iteration

    @property
    def working(self) -> int:
        """Sessions with work here, in the queue or in the iteration."""
        return len(self._ready) + len(self._batch)

    def submit(self, session: CloudSession, now_s: float, items: tuple[Item, ...]) -> None:
        """Work of a session's next call (at least one item); the replica calls `served` when all is done."""
        session.items = items
        session.index = 0
        session.item = items[0]
        if session.traced:
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
            seconds = self._batch_seconds(batch)
        self.busy_s += seconds  # as `_run`, without the call
        self.iterations += 1
        self.items_done += size
        self._start_s = now_s
        self._end_s = end_s = now_s + seconds
        self._alarm = self.schedule(end_s, self._on_end, self)

    def _batch_seconds(self, batch: list[CloudSession]) -> float:
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
        return seconds

    def _run(self, now_s: float, seconds: float) -> None:
        self.busy_s += seconds
        self.iterations += 1
        self.items_done += len(self._batch)
        self._start_s = now_s
        self._end_s = end_s = now_s + seconds
        self._alarm = self.schedule(end_s, self._on_end, self)

    def _end(self, _event: object) -> None:
        start_s, end_s, row_s = self._start_s, self._end_s, self._row_s
        ready = self._ready
        for session in self._batch:  # which stays until the last is done, so that a `submit` from here on only queues
            item = session.item
            rows, _, _, _, _, own_s, kind, parts = item
            session.gpu_share_s += rows * row_s if kind == PASS else own_s
            if session.charged:
                booked_until_s = session.booked_until_s
                if booked_until_s < start_s:
                    session.cloud_queue_s += start_s - booked_until_s
                    booked_until_s = start_s
                session.booked_until_s = end_s
                spent_s = end_s - booked_until_s
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
                if session.traced:
                    session.ready_s = end_s
                ready.append(session)
            else:
                session.served(end_s)
        self._batch = []
        if ready:
            self._begin(end_s)

    def forget(self, session: CloudSession) -> None:
        """The session is over, or gone elsewhere."""
        del self.sessions[session]

    def crash(self, now_s: float) -> None:
        """All work and memory are lost; the sessions are told, in order of opening."""
        if self._batch:
            self.busy_s -= self._end_s - now_s
            self._alarm.callbacks = ()
        working = set(map(id, self._batch))
        while self._ready:
            working.add(id(self._ready.popleft()))
        self._batch = []
        self.stop(now_s)
        sessions = list(self.sessions)
        self.sessions.clear()
        self.kv_tokens = 0
        for session in sessions:
            session.replica = None
            session.crashed(now_s, id(session) in working)

    def stop(self, now_s: float) -> None:
        self.up = False
        self.up_s += now_s - self.since_s

    def recover(self, now_s: float) -> None:
        self.up = True
        self.since_s = now_s


class _EvictingReplica(Replica):
    """A replica whose sessions share the memory: kv_tokens is what is held, `_held` by whom, longest unused first."""

    __slots__ = ("_held", "capacity")

    def __init__(self, capacity: float, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.capacity = capacity
        self._held: dict[CloudSession, int] = {}

    def _begin(self, now_s: float) -> None:
        ready, held = self._ready, self._held
        batch: list[CloudSession] = []
        self._batch = batch
        while ready and len(batch) < self.max_batch:
            session = ready.popleft()
            item = session.item
            if item[6] == PASS:
                known = held.pop(session, None)
                if not self._free(item[2] - (known or 0), batch):
                    if known is not None:
                        held[session] = known
                    ready.appendleft(session)
                    break
                held[session] = item[2]
                self.kv_tokens += item[2] - (known or 0)
                if known is None and item[2] > item[1]:
                    session.item = recomputed(item, self.costs)
            batch.append(session)
        if len(batch) == 1:
            item = batch[0].item
            if item[6] == PASS:
                self._row_s = item[5] / item[0]
            self._run(now_s, item[5])
        else:
            self._run(now_s, self._batch_seconds(batch))

    def _free(self, need: int, batch: list[CloudSession]) -> bool:
        """Take memory from those who used it longest ago, none of this batch, until `need` fits; whether it does."""
        excess = self.kv_tokens + need - self.capacity
        if excess <= 0:
            return True
        victims = []
        for session, tokens in self._held.items():
            if session not in batch:
                victims.append(session)
                excess -= tokens
                if excess <= 0:
                    break
        else:
            return False
        for session in victims:
            self.kv_tokens -= self._held.pop(session)
        return True

    def forget(self, session: CloudSession) -> None:
        super().forget(session)
        self.kv_tokens -= self._held.pop(session, 0)

    def crash(self, now_s: float) -> None:
        self._held.clear()
        super().crash(now_s)

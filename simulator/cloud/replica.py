"""A replica: iterations over batches of waiting sessions, and its KV memory."""

from collections.abc import Callable
from typing import Any

from simulator.cloud.queues import TwoModels, queue_of
from simulator.cloud.rules import CloudTier
from simulator.cloud.work import CloudSession
from simulator.pricing.costs import Costs, Work
from simulator.pricing.program import (
    COMPANION,
    ENCODE,
    ITEM_KIND,
    ITEM_KV_TOKENS,
    ITEM_ROWS,
    ITEM_SECONDS,
    ITEM_TOKENS,
    PASS,
    Item,
)

# schedule(time_s, callbacks, subject): call each callback at that virtual time with an alarm, which carries `time_s` and `subject`;
# returns the alarm.
Schedule = Callable[[float, tuple[Callable[[Any], None], ...], Any], Any]


def recomputed(item: Item, costs: Costs) -> Item:
    """Return the pass as it is after its cache was lost: cached and new positions in one pass. Other items stay the same."""
    rows, tokens, kv_tokens, attended, logits, _, kind, parts = item
    if kind != PASS:
        return item
    cached = (kv_tokens - tokens) // rows
    work = Work(rows, kv_tokens, kv_tokens, attended + rows * (cached * (cached + 1) // 2), logits)
    return (*work, costs.pass_seconds(work), kind, parts)


class Replica:
    """One copy of the cloud model with its queue.

    Attributes:
        costs: Costs of the cloud model.
        companion: Costs of the device's model if it runs in the cloud; else None.
        max_batch: Largest number of sessions in one iteration.
        schedule: Registers callbacks for a point in virtual time.
        number: Number of the replica.
        sessions: Open sessions, in order of opening.
        kv_tokens: Cached positions that are reserved or held, rows counted.
        up: Whether it accepts sessions.
        since_s: Time at which it last came up.
        up_s: Seconds up before `since_s`.
        empty_s: Time at which the last session left.
        busy_s: Seconds in iterations; the current one counts in full.
        iterations: Iterations started.
        items_done: Items of work in them.
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
        "companion",
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

    def __init__(self, tier: CloudTier, schedule: Schedule, number: int = 0, now_s: float = 0.0) -> None:
        """Start a replica of a cloud, which is up from `now_s` on."""
        self.costs = tier.costs
        self.companion = tier.companion
        self.max_batch = tier.max_batch
        self.schedule = schedule
        self.number = number
        self.sessions: dict[CloudSession, None] = {}
        self.kv_tokens = 0
        self.up = True
        self.since_s = now_s
        self.up_s = 0.0
        self.empty_s = now_s
        self.busy_s = 0.0
        self.iterations = self.items_done = 0
        queue = tier.rules.queue
        self._ready: Any = queue_of(queue) if tier.companion is None else TwoModels(queue, tier.max_batch)
        self._batch: list[CloudSession] = []  # of the current iteration; empty when idle
        self._start_s = self._end_s = 0.0
        self._row_s = 0.0  # GPU seconds per row of the batch
        self._on_end = (self._end,)
        self._alarm: Any = None  # of the end of the iteration

    @property
    def working(self) -> int:
        """Number of sessions with work in the queue or in the current iteration."""
        return len(self._ready) + len(self._batch)

    def busy_until(self, now_s: float) -> float:
        """Return the seconds spent in iterations until now."""
        return self.busy_s - (self._end_s - now_s if self._batch else 0.0)

    def submit(self, session: CloudSession, now_s: float, items: tuple[Item, ...]) -> None:
        """Queue the work of a session's next call (at least one item). Calls `session.served` when all of it is done."""
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
        size = min(len(ready) if self.companion is None else ready.choose(), self.max_batch)
        if size == 1:
            session = ready.popleft()
            item = session.item
            seconds = item[ITEM_SECONDS]
            if item[ITEM_KIND] <= COMPANION:
                self._row_s = seconds / item[ITEM_ROWS]
            self._batch = [session]
        else:
            self._batch = batch = [ready.popleft() for _ in range(size)]
            seconds = self._batch_seconds(batch)
        self.busy_s += seconds  # `_run` inlined: this is the hot path
        self.iterations += 1
        self.items_done += size
        self._start_s = now_s
        self._end_s = end_s = now_s + seconds
        self._alarm = self.schedule(end_s, self._on_end, self)

    def _batch_seconds(self, batch: list[CloudSession]) -> float:
        rows = tokens = kv_tokens = attended = logits = 0
        seconds = 0.0
        costs, batched = self.costs, PASS
        if self.companion is not None and batch[0].item[ITEM_KIND] == COMPANION:
            costs, batched = self.companion, COMPANION
        for session in batch:
            item_rows, item_tokens, item_kv_tokens, item_attended, item_logits, own_s, kind, _ = session.item
            if kind == batched:
                rows += item_rows
                tokens += item_tokens
                kv_tokens += item_kv_tokens
                attended += item_attended
                logits += item_logits
            else:
                seconds += own_s
        if rows:
            pass_s = costs.pass_seconds(Work(rows, tokens, kv_tokens, attended, logits))
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
        for session in self._batch:  # stays set during the loop, so that `submit` only queues
            item = session.item
            rows, _, _, _, _, own_s, kind, parts = item
            session.gpu_share_s += rows * row_s if kind <= COMPANION else own_s
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
                session.trace_iteration(start_s, end_s, self.number, self._batch)
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
        """Remove a session that has ended or is now bound to another replica."""
        del self.sessions[session]

    def crash(self, now_s: float) -> None:
        """Lose all work and memory, then call `crashed` of the sessions in order of opening."""
        working = self.stop(now_s)
        sessions = list(self.sessions)
        self.sessions.clear()
        self.kv_tokens = 0
        for session in sessions:
            session.replica = None
            session.crashed(now_s, id(session) in working)

    def stop(self, now_s: float) -> set[int]:
        """Stop serving, and drop all work, background jobs included. Returns `id()` of each session whose work was dropped."""
        if self._batch:
            self.busy_s -= self._end_s - now_s
            self._alarm.callbacks = ()
        working = set(map(id, self._batch))
        while self._ready:
            working.add(id(self._ready.popleft()))
        self._batch = []
        self.up = False
        self.up_s += now_s - self.since_s
        return working

    def recover(self, now_s: float) -> None:
        self.up = True
        self.since_s = now_s


class EvictingReplica(Replica):
    """A replica that evicts the least recently used cache when its memory is full.

    `_held` maps each session to its cached positions, least recently used first; `kv_tokens` is their sum, `capacity` their limit.
    """

    __slots__ = ("_held", "capacity")

    def __init__(self, tier: CloudTier, schedule: Schedule, number: int = 0, now_s: float = 0.0) -> None:
        super().__init__(tier, schedule, number, now_s)
        self.capacity = tier.rules.kv_tokens
        self._held: dict[CloudSession, int] = {}

    def _begin(self, now_s: float) -> None:
        ready, held = self._ready, self._held
        batch: list[CloudSession] = []
        self._batch = batch
        size = min(len(ready) if self.companion is None else ready.choose(), self.max_batch)
        while len(batch) < size:
            session = ready.popleft()
            item = session.item
            if item[ITEM_KIND] == PASS:
                known = held.pop(session, None)
                if not self._free(item[ITEM_KV_TOKENS] - (known or 0), batch):
                    if known is not None:
                        held[session] = known
                    ready.appendleft(session)
                    break
                held[session] = item[ITEM_KV_TOKENS]
                self.kv_tokens += item[ITEM_KV_TOKENS] - (known or 0)
                if known is None and item[ITEM_KV_TOKENS] > item[ITEM_TOKENS]:
                    session.item = recomputed(item, self.costs)
            batch.append(session)
        if len(batch) == 1:
            item = batch[0].item
            if item[ITEM_KIND] <= COMPANION:
                self._row_s = item[ITEM_SECONDS] / item[ITEM_ROWS]
            self._run(now_s, item[ITEM_SECONDS])
        else:
            self._run(now_s, self._batch_seconds(batch))

    def _free(self, need: int, batch: list[CloudSession]) -> bool:
        """Evict least recently used caches of sessions outside the batch until `need` more positions fit. Returns whether they fit."""
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

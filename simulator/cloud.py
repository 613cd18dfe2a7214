"""The cloud: replicas that batch per iteration, so that a session of 256 passes never blocks another one.

An idle replica takes waiting sessions, at most `max_batch` of them, in the order of its queue discipline, and runs the
next item of each: the passes as one batch, other work (caption encoder, image decoder) after it, one by one. Then each
session goes on with its next item, at the tail of the queue. What becomes ready while an iteration runs waits for the
next one.

A session is bound to a replica when it opens and stays there, also while its device thinks, until its last call is
answered or the replica crashes. Where every replica is full (`max_sessions`, KV memory) it waits for admission, first come
first served, or is refused (`max_waiting`).
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simulator.costs import Costs, Work
from simulator.replay import ENCODE, OTHER, PASS, Down, Item
from simulator.rng import stream

# Calls the callbacks with an object that carries `subject`, at a point in virtual time (seconds); gives that object back.
Schedule = Callable[[float, tuple[Callable[[Any], None], ...], Any], Any]

# Of the whole cloud at a moment: sessions with work in a replica's queue (other tenants' jobs too), sessions that wait for admission,
# sessions in an iteration under way, sessions bound to a replica, replicas that are up.
SAMPLED = ("time_s", "queued", "admission", "serving", "sessions", "replicas_up")

Discipline = Literal["fifo", "shortest-first", "earliest-deadline", "priority"]
Routing = Literal["least-loaded", "round-robin", "join-shortest-queue"]


@dataclass(frozen=True)
class Crash:
    """A replica (counted from 0) loses its memory and its work at `at_s` and takes up work again `down_s` later."""

    replica: int
    at_s: float
    down_s: float


@dataclass(frozen=True)
class Autoscale:
    """Replicas come and go between the first ones and `max_replicas`.

    Where open and waiting sessions exceed `sessions_per_replica` for each replica that runs or starts, another one starts
    and serves `start_up_s` later. One that stood empty for `idle_s` stops.
    """

    max_replicas: int
    sessions_per_replica: float
    start_up_s: float
    idle_s: float


@dataclass(frozen=True)
class Background:
    """Other tenants: on each replica Poisson jobs of `job_s` that fill this share of it. They queue like any session."""

    utilisation: float
    job_s: float


@dataclass(frozen=True)
class CloudRules:
    """How the cloud takes up work; the defaults bound nothing.

    queue: who is served first, at every iteration; ties and `fifo` by when they became ready. shortest-first: least work left
    in the call, by its times alone. routing: which replica a session is bound to; least-loaded: fewest open sessions;
    join-shortest-queue: fewest that have work there at this moment. max_sessions: open on a replica. max_waiting: for
    admission, in the whole cloud; more are refused. kv_tokens: cached positions (rows counted) that fit a replica's memory.
    evict: sessions open without a reservation, and the memory that was used longest ago is taken and recomputed with the next
    pass; otherwise each reserves the most it will need and waits until that is free. seed: of the background load.
    """

    queue: Discipline = "fifo"
    routing: Routing = "least-loaded"
    max_sessions: int | None = None
    max_waiting: int | None = None
    kv_tokens: float = math.inf
    evict: bool = False
    crashes: Sequence[Crash] = ()
    autoscale: Autoscale | None = None
    background: Background | None = None
    seed: int = 0


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
        "deadline_s",
        "encode_s",
        "gpu_s",
        "image_decode_s",
        "index",
        "item",
        "items",
        "kv_need",
        "left_s",
        "mark_s",
        "priority",
        "ready_s",
        "replica",
        "traced",
    )  # fmt: skip

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.items: tuple[Item, ...] = ()  # of the call under way
        self.index = 0
        self.item: Item  # items[index]
        self.ready_s = 0.0  # since when the item waits; kept up where it is traced
        self.charged = False
        self.mark_s = 0.0
        self.cloud_queue_s = self.cloud_compute_s = self.encode_s = self.image_decode_s = self.gpu_s = 0.0
        self.traced = False
        self.deadline_s = math.inf
        self.priority = 0  # higher is served first
        self.left_s = 0.0  # of the call, kept by the discipline shortest-first alone
        self.kv_need = 0  # most cached positions at a time, rows counted; only read where memory is bounded

    def admitted(self, now_s: float) -> None:
        """It waited for a replica and is bound to one now."""
        raise NotImplementedError

    def refused(self, now_s: float) -> None:
        """There is no replica for it, and no room to wait for one."""
        raise NotImplementedError

    def crashed(self, now_s: float, working: bool) -> None:
        """Its replica is gone, with its cache. working: a call was under way, at `index`."""
        raise NotImplementedError

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        """Parts of a reply leave the cloud."""
        raise NotImplementedError

    def served(self, now_s: float) -> None:
        """The last item of the call is done."""
        raise NotImplementedError

    def trace_iteration(self, start_s: float, end_s: float) -> None:
        """An iteration with this session ends; `ready_s` is still its item's. Called for traced sessions only."""
        raise NotImplementedError


class _Ordered:
    """A queue by a key of the session, the least first; equal keys in order of arrival."""

    def __init__(self, key: Callable[[CloudSession], float]) -> None:
        self._key = key
        self._heap: list[tuple[float, int, CloudSession]] = []
        self._arrivals = itertools.count()
        self._returns = itertools.count(-1, -1)

    def __len__(self) -> int:
        return len(self._heap)

    def append(self, session: CloudSession) -> None:
        heapq.heappush(self._heap, (self._key(session), next(self._arrivals), session))

    def appendleft(self, session: CloudSession) -> None:
        """Back where it was taken from: ahead of all of the same key."""
        heapq.heappush(self._heap, (self._key(session), next(self._returns), session))

    def popleft(self) -> CloudSession:
        return heapq.heappop(self._heap)[2]

    def clear(self) -> None:
        self._heap.clear()


def _work_left_s(session: CloudSession) -> float:
    items, index = session.items, session.index
    session.left_s = session.left_s - items[index - 1][5] if index else sum(item[5] for item in items)
    return session.left_s


def _queue_of(discipline: Discipline) -> "deque[CloudSession] | _Ordered":
    match discipline:
        case "fifo":
            return deque()
        case "shortest-first":
            return _Ordered(_work_left_s)
        case "earliest-deadline":
            return _Ordered(lambda session: session.deadline_s)
        case "priority":
            return _Ordered(lambda session: -session.priority)


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
    )  # fmt: skip

    def __init__(
        self, costs: Costs, max_batch: int, schedule: Schedule, queue: Discipline = "fifo", number: int = 0, now_s: float = 0.0
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


class _Job(CloudSession):
    """Work of another tenant."""

    __slots__ = ()

    def served(self, now_s: float) -> None:
        pass


class Cloud:
    """All replicas, those that stopped included."""

    def __init__(
        self, costs: Costs, replicas: int, max_batch: int, schedule: Schedule, rules: CloudRules | None = None, start_s: float = 0.0
    ) -> None:
        """max_batch: sessions in one iteration at most. start_s: when it opens.

        Raises ValueError where a count is below 1, or a crash is of a replica that does not exist.
        """
        rules = rules or CloudRules()
        if replicas < 1 or max_batch < 1:
            raise ValueError(f"replicas and max_batch must be >= 1, got {replicas} and {max_batch}")
        if rules.max_sessions is not None and rules.max_sessions < 1:
            raise ValueError(f"max_sessions must be >= 1, got {rules.max_sessions}")
        for crash in rules.crashes:
            if not 0 <= crash.replica < replicas:
                raise ValueError(f"replica {crash.replica} cannot crash, there are {replicas}, counted from 0")
        self.costs = costs
        self.max_batch = max_batch
        self.schedule = schedule
        self.rules = rules
        self.waiting: deque[CloudSession] = deque()  # for admission
        self.refused = 0
        self._least = replicas  # the first ones never stop
        self._starting = 0
        self._turn = 0
        self.replicas: list[Replica] = []
        for _ in range(replicas):
            self._add(start_s)
        for crash in rules.crashes:
            schedule(crash.at_s, (self._on_crash,), crash)

    def open(self, session: CloudSession, now_s: float) -> Replica | None:
        """Bind a session to a replica. None where it has to wait, then `admitted` follows, or is `refused`."""
        replica = None if self.waiting else self._choose(session)
        if replica is not None:
            self._bind(session, replica)
        elif self.rules.max_waiting is not None and len(self.waiting) >= self.rules.max_waiting:
            self.refused += 1
            session.refused(now_s)
        else:
            self.waiting.append(session)
        if self.rules.autoscale is not None:
            self._scale_up(now_s, self.rules.autoscale)
        return replica

    def close(self, session: CloudSession, now_s: float) -> None:
        """The session needs no replica any more; nothing where it has none."""
        replica = session.replica
        if replica is None:
            return
        replica.forget(session)
        session.replica = None
        if not self.rules.evict:
            replica.kv_tokens -= session.kv_need
        if self.waiting:
            self._admit(now_s)
        if self.rules.autoscale is not None and not replica.sessions and replica.number >= self._least:
            replica.empty_s = now_s
            self.schedule(now_s + self.rules.autoscale.idle_s, (self._on_idle,), (replica, now_s))

    def mean_batch(self) -> float:
        """Sessions per iteration; NaN before the first iteration."""
        iterations = sum(r.iterations for r in self.replicas)
        return sum(r.items_done for r in self.replicas) / iterations if iterations else float("nan")

    def sample(self, now_s: float) -> tuple[float, ...]:
        """What `SAMPLED` names, at this moment."""
        replicas = self.replicas
        serving = sum(len(r._batch) for r in replicas)
        queued = sum(r.working for r in replicas) - serving
        return now_s, queued, len(self.waiting), serving, sum(len(r.sessions) for r in replicas), sum(r.up for r in replicas)

    def up_s(self, now_s: float) -> list[float]:
        """Seconds that each replica was up until now."""
        return [replica.up_s + (now_s - replica.since_s if replica.up else 0.0) for replica in self.replicas]

    # Routing and admission.

    def _choose(self, session: CloudSession) -> Replica | None:
        rules = self.rules
        fits = [r for r in self.replicas if r.up]
        if rules.max_sessions is not None:
            fits = [r for r in fits if len(r.sessions) < rules.max_sessions]
        if not rules.evict and rules.kv_tokens < math.inf:
            fits = [r for r in fits if r.kv_tokens + session.kv_need <= rules.kv_tokens]
        if not fits:
            return None
        match rules.routing:
            case "least-loaded":
                return min(fits, key=lambda r: len(r.sessions))
            case "join-shortest-queue":
                return min(fits, key=lambda r: (r.working, len(r.sessions)))
            case "round-robin":
                chosen = min(fits, key=lambda r: (r.number - self._turn) % len(self.replicas))
                self._turn = chosen.number + 1
                return chosen

    def _bind(self, session: CloudSession, replica: Replica) -> None:
        replica.sessions[session] = None
        session.replica = replica
        if not self.rules.evict:
            replica.kv_tokens += session.kv_need

    def _admit(self, now_s: float) -> None:
        while self.waiting and (replica := self._choose(self.waiting[0])) is not None:
            session = self.waiting.popleft()
            self._bind(session, replica)
            session.admitted(now_s)

    # Replicas that come and go.

    def _add(self, now_s: float) -> None:
        rules = self.rules
        more: dict[str, Any] = {"queue": rules.queue, "number": len(self.replicas), "now_s": now_s}
        if rules.evict and rules.kv_tokens < math.inf:
            replica: Replica = _EvictingReplica(rules.kv_tokens, self.costs, self.max_batch, self.schedule, **more)
        else:
            replica = Replica(self.costs, self.max_batch, self.schedule, **more)
        self.replicas.append(replica)
        if rules.background is not None and rules.background.utilisation > 0.0:
            self._disturb(replica, rules.background, now_s)

    def _on_crash(self, alarm: Any) -> None:
        crash: Crash = alarm.subject
        replica = self.replicas[crash.replica]
        if replica.up:
            self.schedule(alarm.time_s + crash.down_s, (self._on_recovery,), replica)
            replica.crash(alarm.time_s)

    def _on_recovery(self, alarm: Any) -> None:
        alarm.subject.recover(alarm.time_s)
        self._admit(alarm.time_s)

    def _scale_up(self, now_s: float, rule: Autoscale) -> None:
        up = sum(r.up for r in self.replicas)
        load = len(self.waiting) + sum(len(r.sessions) for r in self.replicas)
        while load > rule.sessions_per_replica * (up + self._starting) and up + self._starting < rule.max_replicas:
            self._starting += 1
            self.schedule(now_s + rule.start_up_s, (self._on_started,), self)

    def _on_started(self, alarm: Any) -> None:
        self._starting -= 1
        stopped = next((r for r in self.replicas[self._least :] if not r.up), None)
        if stopped is None:
            self._add(alarm.time_s)
        else:
            stopped.recover(alarm.time_s)
        self._admit(alarm.time_s)

    def _on_idle(self, alarm: Any) -> None:
        replica, empty_s = alarm.subject
        if replica.up and not replica.sessions and replica.empty_s == empty_s:
            replica.stop(alarm.time_s)

    # Background.

    def _disturb(self, replica: Replica, load: Background, now_s: float) -> None:
        draws = stream(self.rules.seed, "cloud.background", replica.number)
        mean_gap_s = load.job_s / load.utilisation
        items: tuple[Item, ...] = ((0, 0, 0, 0, 0, load.job_s, OTHER, ()),)

        def gaps() -> float:
            return float(draws.standard_exponential()) * mean_gap_s

        def on_job(alarm: Any) -> None:
            if replica.up:
                replica.submit(_Job(), alarm.time_s, items)
            self.schedule(alarm.time_s + gaps(), callbacks, None)

        callbacks = (on_job,)
        self.schedule(now_s + gaps(), callbacks, None)

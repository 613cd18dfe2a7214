"""The cloud: replicas with batching per iteration, so that a session of 256 passes never blocks another one.

An idle replica takes up to `max_batch` waiting sessions in the order of its queue discipline and runs the next item of
each session: the passes as one batch, then other work (caption encoder, image decoder) one by one. Each session then queues
again with its next item. Work that becomes ready during an iteration waits for the next one. If the device's model also runs
in the cloud, its passes have their own iterations (`TwoModels`).

A session is bound to a replica from its first call until its last reply, or until the replica crashes. If every replica is
full (`max_sessions`, KV memory), the session waits for admission, first come first served, or is refused (`max_waiting`).
"""

import math
from collections import deque
from typing import Any

from simulator.cloud.background import standing
from simulator.cloud.replica import EvictingReplica, Replica, Schedule
from simulator.cloud.rules import Autoscale, Background, CloudTier, Crash
from simulator.cloud.work import CloudSession, SessionReplica
from simulator.core.rng import stream
from simulator.pricing.program import OTHER, Item

# State of the whole cloud at one time: sessions with work in a queue (background jobs included), sessions waiting for admission,
# sessions in the current iterations (background jobs included), sessions bound to a replica, replicas that are up.
SAMPLED = ("time_s", "queued", "admission", "serving", "sessions", "replicas_up")


class _Job(CloudSession):
    """A background job."""

    __slots__ = ()

    def served(self, now_s: float) -> None:
        pass


def _job(seconds: float) -> tuple[Item, ...]:
    return ((0, 0, 0, 0, 0, seconds, OTHER, ()),)


class Cloud:
    """All replicas of one place, stopped ones included, with routing, admission, crashes and autoscaling."""

    def __init__(self, tier: CloudTier, schedule: Schedule, start_s: float = 0.0, first: int = 0) -> None:
        """Start the replicas, with their background load, and schedule the crashes.

        Args:
            tier: Its size, costs and rules.
            schedule: Registers callbacks for a point in virtual time.
            start_s: Time at which the replicas come up.
            first: Number of the first replica.

        Raises:
            ValueError: A count is below 1, or a crash names a replica that does not exist.
        """
        replicas, rules = tier.replicas, tier.rules
        if replicas < 1 or tier.max_batch < 1:
            raise ValueError(f"replicas and max_batch must be >= 1, got {replicas} and {tier.max_batch}")
        if rules.max_sessions is not None and rules.max_sessions < 1:
            raise ValueError(f"max_sessions must be >= 1, got {rules.max_sessions}")
        for crash in rules.crashes:
            if not 0 <= crash.replica < replicas:
                raise ValueError(f"replica {crash.replica} cannot crash, there are {replicas}, counted from 0")
        self.tier = tier
        self.schedule = schedule
        self.rules = rules
        self.waiting: deque[CloudSession] = deque()  # for admission, in order
        self.refused = 0
        self._least = first + replicas  # replicas below this number are never stopped by autoscaling
        self._first = first
        self._starting = 0
        self._turn = first
        self.replicas: list[Replica] = []
        for _ in range(replicas):
            self._add(start_s)
            if rules.background is not None and rules.background.utilisation > 0.0:
                self._fill(self.replicas[-1], rules.background, start_s)
        for crash in rules.crashes:
            schedule(crash.at_s, (self._on_crash,), crash)

    def open(self, session: CloudSession, now_s: float) -> Replica | None:
        """Bind a session to a replica and return it; None if the session waits (`admitted` follows) or is refused."""
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
        """Release the session's replica, if any."""
        replica = session.replica
        if replica is None:
            return
        replica.forget(session)
        session.replica = None
        if not self.rules.evict:
            replica.kv_tokens -= session.kv_need
        if self.waiting:
            self._admit(now_s)
        self._stop_if_idle(replica, now_s)

    def sample(self, now_s: float) -> tuple[float, ...]:
        """Return the values of `SAMPLED`."""
        replicas = self.replicas
        serving = sum(len(r._batch) for r in replicas)
        queued = sum(r.working for r in replicas) - serving
        return (
            now_s,
            queued,
            len(self.waiting),
            serving,
            sum(len(r.sessions) for r in replicas),
            sum(r.up for r in replicas),
        )

    def up_s(self, now_s: float) -> list[float]:
        """Return the seconds that each replica has been up."""
        return [replica.up_s + (now_s - replica.since_s if replica.up else 0.0) for replica in self.replicas]

    def busy_s(self, now_s: float) -> list[float]:
        """Return the seconds that each replica has spent in iterations."""
        return [replica.busy_until(now_s) for replica in self.replicas]

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

    # Crashes and autoscaling.

    def _add(self, now_s: float) -> None:
        rules = self.rules
        kind = EvictingReplica if rules.evict and rules.kv_tokens < math.inf else Replica
        replica = kind(self.tier, self.schedule, self._first + len(self.replicas), now_s)
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
        up = sum(r.up for r in self.replicas) + self._starting
        most = rule.max_replicas - sum(
            not r.up for r in self.replicas if r.number < self._least
        )  # crashed replicas recover, so they keep their place
        load = len(self.waiting) + sum(len(r.sessions) for r in self.replicas)
        while load > rule.sessions_per_replica * up and up < most:
            up += 1
            self._starting += 1
            self.schedule(now_s + rule.start_up_s, (self._on_started,), self)

    def _on_started(self, alarm: Any) -> None:
        self._starting -= 1
        started = next((r for r in self.replicas if r.number >= self._least and not r.up), None)
        if started is None:
            self._add(alarm.time_s)
            started = self.replicas[-1]
        else:
            started.recover(alarm.time_s)
        self._admit(alarm.time_s)
        self._stop_if_idle(started, alarm.time_s)  # other replicas may have served the load meanwhile

    def _stop_if_idle(self, replica: SessionReplica, now_s: float) -> None:
        """Schedule the stop of a started replica without sessions; it happens if it has none until `idle_s` has passed."""
        if self.rules.autoscale is not None and not replica.sessions and replica.number >= self._least:
            replica.empty_s = now_s
            self.schedule(now_s + self.rules.autoscale.idle_s, (self._on_idle,), (replica, now_s))

    def _on_idle(self, alarm: Any) -> None:
        replica, empty_s = alarm.subject
        if replica.up and not replica.sessions and replica.empty_s == empty_s:
            replica.stop(alarm.time_s)

    # Background.

    def _fill(self, replica: Replica, load: Background, now_s: float) -> None:
        """Give a replica its background jobs in steady state. Replicas that start or recover later start empty."""
        left_s, waiting = standing(
            load, self.tier.max_batch, stream(self.rules.seed, "cloud.background.standing", replica.number)
        )
        if left_s > 0.0:
            replica.submit(_Job(), now_s, _job(left_s))
        for _ in range(waiting):
            replica.submit(_Job(), now_s, _job(load.job_s))

    def _disturb(self, replica: Replica, load: Background, now_s: float) -> None:
        draws = stream(self.rules.seed, "cloud.background", replica.number)
        mean_gap_s = load.job_s / load.utilisation
        items = _job(load.job_s)

        def gaps() -> float:
            return float(draws.standard_exponential()) * mean_gap_s

        def on_job(alarm: Any) -> None:
            if replica.up:
                replica.submit(_Job(), alarm.time_s, items)
            self.schedule(alarm.time_s + gaps(), callbacks, None)

        callbacks = (on_job,)
        self.schedule(now_s + gaps(), callbacks, None)

"""The rules of a cloud: queue discipline, routing, admission, crashes, autoscaling, background load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simulator.pricing.costs import Costs

Discipline = Literal["fifo", "shortest-first", "earliest-deadline", "priority"]
Routing = Literal["least-loaded", "round-robin", "join-shortest-queue"]


@dataclass(frozen=True)
class Crash:
    """A crash: the replica (counted from 0) loses its memory and work at `at_s`, and serves again `down_s` later."""

    replica: int
    at_s: float
    down_s: float


@dataclass(frozen=True)
class Autoscale:
    """The number of replicas follows the load, between the initial one and `max_replicas`.

    Attributes:
        max_replicas: Upper limit; crashed replicas count.
        sessions_per_replica: Another replica starts when open and waiting sessions exceed this times the replicas that run or start.
        start_up_s: Time until a started replica serves.
        idle_s: A started replica stops after this time without sessions.
    """

    max_replicas: int
    sessions_per_replica: float
    start_up_s: float
    idle_s: float


@dataclass(frozen=True)
class Background:
    """Background load of other tenants: Poisson arrivals of jobs of `job_s` seconds, queued like sessions.

    Attributes:
        utilisation: Share of each replica's time that the jobs take.
        job_s: Length of a job.
    """

    utilisation: float
    job_s: float


@dataclass(frozen=True)
class CloudRules:
    """How the cloud schedules work; the defaults limit nothing.

    Attributes:
        queue: Order of service at each iteration. `fifo`, and ties: by the time at which the work became ready. `shortest-first`: least
            work left in the call, priced at batch size 1.
        routing: Replica of a new session. `least-loaded`: fewest open sessions. `join-shortest-queue`: fewest sessions with work.
        max_sessions: Largest number of open sessions per replica.
        max_waiting: Largest number of sessions waiting for admission in the whole cloud; further sessions are refused.
        kv_tokens: Cached positions (rows counted) that fit in the memory of a replica.
        evict: If true, sessions open without a reservation, and the least recently used cache is dropped and recomputed with its next
            pass. If false, a session reserves the most it will need and waits until that is free.
        crashes: Crashes, in any order; one of a replica that is down has no effect.
        autoscale: Autoscaling; None for a fixed number of replicas.
        background: Background load; None for none.
        seed: Seed of the background load.
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


@dataclass(frozen=True)
class CloudTier:
    """A cloud.

    Attributes:
        costs: Costs of the cloud model.
        replicas: Number of replicas at the start; autoscaling never goes below it.
        max_batch: Largest number of sessions in one iteration.
        rules: How it schedules work.
        companion: Costs of the device's model if it runs in the cloud; None if no session uses it there.
    """

    costs: Costs
    replicas: int
    max_batch: int
    rules: CloudRules = field(default_factory=CloudRules)
    companion: Costs | None = None

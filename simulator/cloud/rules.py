"""The rules of a cloud: queue discipline, routing, admission, crashes, autoscaling, background load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Discipline = Literal["fifo", "shortest-first", "earliest-deadline", "priority"]
Routing = Literal["least-loaded", "round-robin", "join-shortest-queue"]


@dataclass(frozen=True)
class Crash:
    """A replica (counted from 0) loses its memory and its work at `at_s` and serves again `down_s` later."""

    replica: int
    at_s: float
    down_s: float


@dataclass(frozen=True)
class Autoscale:
    """The number of replicas follows the load, between the initial one and `max_replicas`.

    Attributes:
        sessions_per_replica: another replica starts where open and waiting sessions exceed this for each one that runs or starts.
        start_up_s: until a started replica serves.
        idle_s: a replica without sessions for so long stops.
    """

    max_replicas: int
    sessions_per_replica: float
    start_up_s: float
    idle_s: float


@dataclass(frozen=True)
class Background:
    """Other tenants: Poisson jobs of `job_s` seconds that use this share of each replica, queued like any session."""

    utilisation: float
    job_s: float


@dataclass(frozen=True)
class CloudRules:
    """How the cloud schedules work; the defaults limit nothing.

    Attributes:
        queue: order of service at every iteration; ties, and `fifo`, by the time of becoming ready. shortest-first: least work
            left in the call, by its times when run alone.
        routing: replica of a new session. least-loaded: fewest open sessions; join-shortest-queue: fewest with work there now.
        max_sessions: open on a replica at a time.
        max_waiting: sessions that wait for admission, in the whole cloud; more are refused.
        kv_tokens: cached positions (rows counted) that fit the memory of a replica.
        evict: sessions open without a reservation, and the least recently used cache is dropped and recomputed with its next pass;
            otherwise each session reserves the most it will need, and waits until that is free.
        seed: of the background load.
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

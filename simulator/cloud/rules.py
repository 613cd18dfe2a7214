"""The rules of a cloud: queue discipline, routing, admission, crashes, autoscaling, background load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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

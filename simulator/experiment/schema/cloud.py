"""`cloud:` of a scenario: the GPUs that serve it, in one place or in tiers."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from simulator.core.part import Part, filled_in, found_text, items
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.experiment.schema.compute import ChosenHardware, catalogued
from simulator.experiment.schema.network import MS_PER_1000_KM, RttMs


class CrashAt(Part):
    """A replica, counted from 0, loses its work and memory, and is back `down_s` later.

    Attributes:
        replica: Its number, from 0.
        at_s: When it crashes.
        down_s: How long it is away.
    """

    replica: int = Field(ge=0)
    at_s: float = Field(ge=0, le=1e9)
    down_s: float = Field(gt=0, le=1e9)


class AutoscaleRule(Part):
    """Replicas beyond `replicas` start where more sessions are open or waiting than this for each, and stop when idle.

    Attributes:
        max_replicas: Replicas at most, those of `replicas` included.
        sessions_per_replica: Sessions open or waiting for each replica, beyond which one more starts.
        start_up_s: How long a replica takes to start.
        idle_s: After so long without a session a replica beyond `replicas` stops.
    """

    max_replicas: int = Field(ge=1, le=100_000)
    sessions_per_replica: float = Field(gt=0, le=1e6)
    start_up_s: float = Field(default=60.0, ge=0, le=1e6)
    idle_s: float = Field(default=300.0, gt=0, le=1e8)


class BackgroundLoad(Part):
    """Other tenants on every replica: Poisson jobs of `job_ms` that take up this share of its time. They hold no memory.

    A run begins with the jobs that such a replica holds on average, 500 at the largest share.

    Attributes:
        utilisation: Share of a replica's time that they take up; 0 for none.
        job_ms: How long a job holds its replica.
    """

    utilisation: float = Field(ge=0, le=0.999)
    job_ms: float = Field(default=20.0, ge=0.01, le=1e6)


class Serving(Part):
    """GPUs, the largest batch of one pass in sessions, who is served first and where, a price for `cost_usd`.

    Attributes:
        replicas: Copies of the cloud model, a GPU each.
        max_batch: Sessions in one iteration at most.
        queue: Whose work is served first: fifo, shortest-first, earliest-deadline (by slo_s) or priority (by kind of device).
        crashes: Crashes of replicas.
        autoscale: Starts and stops replicas by load; none without it.
        background: Other tenants; none without it.
        price_usd_per_gpu_hour: Makes `cost_usd`.
        max_sessions: Open on a replica at a time; others wait for admission.
        max_waiting: Sessions that wait for admission, in all; more are refused.
        kv_memory_gb: For KV caches, per replica, beside the weights.
        kv_full: What happens where that is short.
    """

    replicas: int = Field(default=1, ge=1, le=100_000)
    max_batch: int = Field(default=16, ge=1, le=100_000)
    queue: Literal["fifo", "shortest-first", "earliest-deadline", "priority"] = "fifo"
    routing: Literal["least-loaded", "round-robin", "join-shortest-queue"] = Field(
        default="least-loaded",
        description="where a session goes when it opens: fewest open sessions, in turns, or fewest at work",
    )
    max_sessions: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_waiting: int | None = Field(default=None, ge=0, le=1_000_000_000)
    kv_memory_gb: float | None = Field(default=None, gt=0, le=1e6)
    kv_full: Literal["wait", "evict"] = Field(
        default="wait",
        description="wait: a session reserves the most it will need; evict: what was used longest ago is recomputed",
    )
    crashes: Annotated[tuple[CrashAt, ...], BeforeValidator(items)] = ()
    autoscale: AutoscaleRule | None = None
    background: BackgroundLoad | None = None
    price_usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=1e6)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for index, crash in enumerate(self.crashes):
            if crash.replica >= self.replicas:
                refuse(
                    f"must be below replicas, {self.replicas}, counted from 0, got {crash.replica}",
                    "crashes",
                    index,
                    "replica",
                )
        if self.autoscale is not None and self.autoscale.max_replicas < self.replicas:
            refuse(
                f"must be >= replicas, {self.replicas}, got {self.autoscale.max_replicas}", "autoscale", "max_replicas"
            )
        if self.max_waiting is not None and self.max_sessions is None and self.kv_memory_gb is None:
            refuse(
                "goes with max_sessions or kv_memory_gb: without either no session waits for admission", "max_waiting"
            )
        return self


class Tier(Serving):
    """A cloud at one place, with GPUs and a queue of its own.

    Attributes:
        runtime: Of its GPUs; None: that of `compute.cloud`.
        distance_km: From the devices; 22 ms of round trip for 1000 km.
        rtt_ms: Of the way behind the access network, in place of a distance.
        hardware: Of its GPUs; None: that of `compute.cloud`.
    """

    distance_km: float | None = Field(default=None, ge=0, le=40_000)
    rtt_ms: RttMs | None = None
    hardware: ChosenHardware | None = None
    runtime: Literal["eager", "cuda-graphs"] | None = None

    @model_validator(mode="after")
    def _placed(self) -> Self:
        if (self.distance_km is None) == (self.rtt_ms is None):
            refuse(
                "needs distance_km or rtt_ms: how far it is"
                if self.rtt_ms is None
                else "conflicts with rtt_ms: the distance is given twice; give one of them",
                *(() if self.rtt_ms is None else ("distance_km",)),
            )
        if self.hardware == "local":
            refuse("must be a name of the catalogue or figures, got local", "hardware")
        if isinstance(self.hardware, str):
            return filled_in(self, hardware=catalogued(self.hardware))
        return self

    @property
    def way_s(self) -> float:
        """Round trip between the access network and the tier."""
        if self.rtt_ms is not None:
            return self.rtt_ms * 1e-3
        assert self.distance_km is not None
        return MS_PER_1000_KM * self.distance_km * 1e-6


TierName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)]


class Cloud(Serving):
    """The serving side: one cloud by the keys of `Serving`, or several by name.

    Attributes:
        tiers: Clouds by name, each with the keys of one, its distance and its hardware.
        tier: The one that serves all devices but those of kinds that name their own.
    """

    tiers: dict[TierName, Tier] = Field(default_factory=dict)
    tier: str | None = None

    @model_validator(mode="after")
    def _tiers(self) -> Self:
        if not self.tiers:
            if self.tier is not None:
                refuse("needs tiers, which are missing", "tier")
            return self
        for name, field in Serving.model_fields.items():
            if getattr(self, name) != field.default:
                refuse("conflicts with tiers: give it in each tier", name)
        if self.tier is not None:
            check_tier(self.tier, self.tiers, "tier")
        return self


def check_tier(name: str, tiers: dict[str, Tier], *at: str | int) -> None:
    """Refuse a tier that is not there. at: where it is named."""
    if not tiers:
        refuse("needs cloud.tiers, which are missing", *at)
    if name not in tiers:
        refuse(f"must be a tier of the cloud, got {found_text(name)}{did_you_mean(name, tiers)}", *at)

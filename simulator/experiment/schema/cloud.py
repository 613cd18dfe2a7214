"""`cloud:` of a scenario: the GPUs that serve it, in one place or in tiers."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from simulator.core.part import Part, filled_in, found_text, items
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.experiment.schema.compute import CloudHardware, Runtime, catalogued
from simulator.experiment.schema.network import MS_PER_1000_KM, RttMs


class CrashAt(Part):
    """A replica, counted from 0, loses its work and memory, and is up again `down_s` later.

    Attributes:
        replica: Number of the replica, from 0.
        at_s: When it crashes.
        down_s: Time until it is up again.
    """

    replica: int = Field(ge=0)
    at_s: float = Field(ge=0, le=1e9)
    down_s: float = Field(gt=0, le=1e9)


class AutoscaleRule(Part):
    """Starts replicas beyond `replicas` when more than this many sessions per replica are open or waiting, and stops them when idle.

    Attributes:
        max_replicas: Largest number of replicas, including those of `replicas`.
        sessions_per_replica: Open or waiting sessions per replica above which another replica starts.
        start_up_s: Time that a replica takes to start.
        idle_s: Time without a session after which a replica beyond `replicas` stops.
    """

    max_replicas: int = Field(ge=1, le=100_000)
    sessions_per_replica: float = Field(gt=0, le=1e6)
    start_up_s: float = Field(default=60.0, ge=0, le=1e6)
    idle_s: float = Field(default=300.0, gt=0, le=1e8)


class BackgroundLoad(Part):
    """Other tenants on every replica: Poisson jobs of `job_ms` that occupy this share of its time. They take no memory.

    A run begins with the jobs that such a replica has on average, 500 at the largest share.

    Attributes:
        utilisation: Share of a replica's time that the jobs occupy; 0 for none.
        job_ms: Time for which a job occupies its replica.
    """

    utilisation: float = Field(ge=0, le=0.999)
    job_ms: float = Field(default=20.0, ge=0.01, le=1e6)


class Serving(Part):
    """GPUs, the largest batch of one pass in sessions, who is served first and where, a price for `cost_usd`.

    Attributes:
        replicas: Copies of the cloud model, a GPU each.
        max_batch: Largest number of sessions in one iteration.
        queue: Order of service: fifo, shortest-first, earliest-deadline (by slo_s) or priority (by kind of device).
        crashes: Crashes of replicas.
        autoscale: Starts and stops replicas by load; by default off.
        background: Other tenants; by default none.
        price_usd_per_gpu_hour: Price from which `cost_usd` follows.
        max_sessions: Sessions open on a replica at a time; others wait for admission.
        max_waiting: Sessions that may wait for admission in total; further ones are refused.
        kv_memory_gb: Memory for KV caches per replica, in addition to the weights.
        kv_full: What happens when it is full.
    """

    replicas: int = Field(default=1, ge=1, le=100_000)
    max_batch: int = Field(default=16, ge=1, le=100_000)
    queue: Literal["fifo", "shortest-first", "earliest-deadline", "priority"] = "fifo"
    routing: Literal["least-loaded", "round-robin", "join-shortest-queue"] = Field(
        default="least-loaded",
        description="replica of a new session: with the fewest open sessions, the next in turn, or with the fewest sessions at work",
    )
    max_sessions: int | None = Field(default=None, ge=1, le=1_000_000_000)
    max_waiting: int | None = Field(default=None, ge=0, le=1_000_000_000)
    kv_memory_gb: float | None = Field(default=None, gt=0, le=1e6)
    kv_full: Literal["wait", "evict"] = Field(
        default="wait",
        description="wait: a session reserves the most it will need; evict: the least recently used cache is dropped and recomputed",
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
    """A cloud at one place, with its own GPUs and queue.

    Attributes:
        runtime: Runtime of its GPUs; None: that of `compute.cloud`.
        distance_km: Distance from the devices; 22 ms of round trip for 1000 km.
        rtt_ms: Round trip behind the access network, instead of a distance.
        hardware: Hardware of its GPUs; None: that of `compute.cloud`.
    """

    distance_km: float | None = Field(default=None, ge=0, le=40_000)
    rtt_ms: RttMs | None = None
    hardware: CloudHardware | None = None
    runtime: Runtime | None = None

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
        tier: The tier that serves all devices, except kinds of devices that name another.
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
    """Refuse an unknown tier. at: the place that names it."""
    if not tiers:
        refuse("needs cloud.tiers, which are missing", *at)
    if name not in tiers:
        refuse(f"must be a tier of the cloud, got {found_text(name)}{did_you_mean(name, tiers)}", *at)

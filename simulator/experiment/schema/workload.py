"""`workload:` of a scenario: the number of devices, their kinds, and when they request images."""

import math
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from simulator.core.errors import ScenarioError
from simulator.core.part import Part, folder_of, fork, found_text, items
from simulator.core.settings import refuse
from simulator.core.yamlfile import did_you_mean
from simulator.engine.workload import device_counts, read_times
from simulator.experiment.schema.network import ScenarioNetwork
from simulator.pricing import catalogue


class PoissonArrivals(Part):
    """Requests of the whole fleet arrive at random with this mean rate.

    Attributes:
        poisson_per_s: Mean rate of the whole fleet.
    """

    poisson_per_s: float = Field(gt=0, le=1e6)


class BurstyArrivals(Part):
    """Requests of the whole fleet come in bursts (a Markov-modulated Poisson process of two states).

    Attributes:
        burst_factor: Rate within a burst divided by the rate between bursts.
        burst_s: Mean length of a burst.
        calm_s: Mean time between bursts.
    """

    bursty_per_s: float = Field(gt=0, le=1e6, description="mean rate over bursts and calm")
    burst_factor: float = Field(default=10.0, ge=1.0, le=1e6)
    burst_s: float = Field(default=30.0, gt=0, le=1e8)
    calm_s: float = Field(default=300.0, gt=0, le=1e8)


class ClosedArrivals(Part):
    """A closed loop: a device sends its next request after it has its image and a think time with this mean has passed.

    Attributes:
        think_s: Mean of the exponential think times.
    """

    think_s: float = Field(gt=0, le=1e8)


class TraceArrivals(Part):
    """Requests of the whole fleet at the times in a file of arrivals of any known format. Read when the scenario is loaded.

    Times in a CSV file with the column `requested_s` are used as given; those of other formats count from the first request.

    Attributes:
        trace: The file.
        unit: Unit of the times, if the file does not state it.
        window_s: Two times, the part of the file to use, counted from its start.
        time_scale: Multiplies all times: 0.5 doubles the rate of requests.
    """

    trace: str
    unit: str | None = None
    window_s: Annotated[tuple[float, float] | None, BeforeValidator(items)] = None
    time_scale: float = Field(default=1.0, ge=1e-6, le=1e6)

    @field_validator("trace")
    @classmethod
    def _path(cls, trace: str, info: ValidationInfo) -> str:
        if info.context is None:
            return trace
        if "\0" in trace:
            refuse(f"must be the path of a file, got {found_text(trace)}")
        return os.path.realpath(folder_of(info) / trace)

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> Self:
        if info.context is not None:
            try:
                self.times()
            except ScenarioError as error:
                refuse(str(error), "trace")
        return self

    def times(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the times of requests [n] in seconds, and the assumptions of the reader. Raises ScenarioError."""
        return read_times(Path(self.trace), self.unit, self.window_s, self.time_scale)


Arrivals = Annotated[
    Annotated[PoissonArrivals, Tag("<poisson>")]
    | Annotated[BurstyArrivals, Tag("<bursty>")]
    | Annotated[ClosedArrivals, Tag("<closed>")]
    | Annotated[TraceArrivals, Tag("<trace>")],
    fork({"bursty_per_s": "<bursty>", "think_s": "<closed>", "trace": "<trace>"}, "<poisson>"),
]


class FleetKind(Part):
    """Devices of one kind. The defaults of hardware, network and slo_s are the scenario's.

    Attributes:
        hardware: Hardware of these devices, a name of the catalogue; None: the scenario's.
        network: Network of these devices; None: the scenario's.
        slo_s: Latency objective of these devices; None: the workload's.
        share: Share of the fleet's devices.
        priority: Devices with a higher value are served first with `cloud.queue: priority`.
        tier: Tier of the cloud that serves these devices, if not `cloud.tier`.
    """

    share: float = Field(gt=0, le=1)
    hardware: str | None = None
    network: ScenarioNetwork | None = None
    priority: int = Field(default=0, ge=-1000, le=1000)
    slo_s: float | None = Field(default=None, gt=0, le=1e8)
    tier: str | None = None

    @field_validator("hardware")
    @classmethod
    def _known(cls, hardware: str | None) -> str | None:
        if hardware is None:
            return None
        name, known = catalogue.canonical("hardware", hardware), catalogue.names("hardware")
        if name not in known:
            refuse(f"must be a name of the catalogue, got {found_text(hardware)}{did_you_mean(hardware, known)}")
        return name


class SequentialWorkload(Part):
    """One device requests every prompt once, one after another.

    Attributes:
        arrivals: sequential, or a form of timed arrivals for a fleet.
        devices: One.
    """

    arrivals: Literal["sequential"] = "sequential"
    devices: Literal[1] = 1
    # Defaults for settings that only a fleet has.
    fleet: ClassVar[tuple[FleetKind, ...]] = ()
    slo_s: ClassVar[float | None] = None
    warmup_s: ClassVar[float] = 0.0


class FleetWorkload(Part):
    """A fleet of devices. Requests arrive for `duration_s` and are served to their end, for at most as long again.

    Attributes:
        devices: Devices of the fleet.
        arrivals: When requests of the whole fleet arrive.
        duration_s: Time during which requests arrive.
        fleet: Kinds of devices with their shares; by default all devices are alike.
        warmup_s: Requests that arrive before this time are left out of the summary.
        slo_s: Latency objective, for goodput and deadlines.
    """

    devices: int = Field(default=1, ge=1, le=10_000_000)
    arrivals: Arrivals
    duration_s: float = Field(gt=0, le=1e8)
    warmup_s: float = Field(default=0.0, ge=0, le=1e8)
    slo_s: float | None = Field(default=None, gt=0, le=1e8)
    fleet: Annotated[tuple[FleetKind, ...], BeforeValidator(items)] = ()

    @model_validator(mode="after")
    def _whole(self) -> "FleetWorkload":
        if self.warmup_s >= self.duration_s:
            refuse(f"must be below duration_s {self.duration_s:g}, got {self.warmup_s:g}", "warmup_s")
        shares = [kind.share for kind in self.fleet]
        if shares and not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
            refuse(
                f"must have shares that add up to 1, got {' + '.join(f'{share:g}' for share in shares)} = {sum(shares):g}",
                "fleet",
            )
        for index, count in enumerate(device_counts(shares, self.devices) if shares else ()):
            if count == 0:
                refuse(f"is not a whole device: {shares[index]:g} of {self.devices} devices", "fleet", index, "share")
        return self


_FORMS = "{poisson_per_s}, {bursty_per_s}, {think_s} or {trace}"


def _one_workload(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    arrivals = data.get("arrivals", "sequential")
    if isinstance(arrivals, dict):
        forms: dict[str, type[Part]] = {
            "poisson_per_s": PoissonArrivals,
            "bursty_per_s": BurstyArrivals,
            "think_s": ClosedArrivals,
            "trace": TraceArrivals,
        }
        known = {head: sorted(form.model_fields) for head, form in forms.items()}
        heads = [head for head in forms if head in arrivals]
        if len(heads) > 1:
            refuse(f"conflicts with {heads[0]}: two forms at once; give one of {_FORMS}", "arrivals", heads[1])
        for key in arrivals:
            names = list(dict.fromkeys(name for fields in known.values() for name in fields))
            if key not in names:
                refuse(f"is not a known key{did_you_mean(key, names)}", "arrivals", key)
            if not heads or key not in known[heads[0]]:
                owner = next(head for head, fields in known.items() if key in fields)
                refuse(f"goes with {owner} only", "arrivals", key)
        return data
    if arrivals != "sequential":
        refuse(f"must be sequential or one of {_FORMS}, got {found_text(arrivals)}", "arrivals")
    for key in ("duration_s", "warmup_s", "slo_s", "fleet"):
        if key in data:
            refuse("does not go with arrivals: sequential; use arrivals: {poisson_per_s: RATE}", key)
    if data.get("devices", 1) != 1:
        refuse(f"must be 1 with arrivals: sequential, got {found_text(data['devices'])}", "devices")
    return data


def _workload_form(data: Any) -> str:
    arrivals = data.get("arrivals", "sequential") if isinstance(data, dict) else getattr(data, "arrivals", "sequential")
    return "<sequential>" if isinstance(arrivals, str) else "<fleet>"


Workload = Annotated[
    Annotated[SequentialWorkload, Tag("<sequential>")] | Annotated[FleetWorkload, Tag("<fleet>")],
    Discriminator(_workload_form),
    BeforeValidator(_one_workload),
]

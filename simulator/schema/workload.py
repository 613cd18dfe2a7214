"""`workload:` of a scenario: how many devices ask for pictures, and when."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from simulator.methods import refuse
from simulator.schema.base import Part, found_text


class PoissonArrivals(Part):
    """Requests of the whole fleet arrive at random, at this mean rate."""

    poisson_per_s: float = Field(gt=0, le=1e6)


class SequentialWorkload(Part):
    """One device asks for every prompt once, one after another, never two at a time."""

    arrivals: Literal["sequential"] = "sequential"
    devices: Literal[1] = 1


class PoissonWorkload(Part):
    """A fleet of devices; requests arrive for `duration_s` and are all served to their end."""

    devices: int = Field(default=1, ge=1, le=10_000_000)
    arrivals: PoissonArrivals
    duration_s: float = Field(gt=0, le=1e8)


def _one_workload(data: Any) -> Any:
    if isinstance(data, dict) and not isinstance(data.get("arrivals", "sequential"), dict):
        if data.get("arrivals", "sequential") != "sequential":
            refuse(f"must be sequential or {{poisson_per_s: RATE}}, got {found_text(data['arrivals'])}", "arrivals")
        if "duration_s" in data:
            refuse("does not go with arrivals: sequential; use arrivals: {poisson_per_s: RATE}", "duration_s")
        if data.get("devices", 1) != 1:
            refuse(f"must be 1 with arrivals: sequential, got {found_text(data['devices'])}", "devices")
    return data


def _workload_form(data: Any) -> str:
    arrivals = data.get("arrivals", "sequential") if isinstance(data, dict) else getattr(data, "arrivals", "sequential")
    return "<sequential>" if isinstance(arrivals, str) else "<poisson>"


Workload = Annotated[
    Annotated[SequentialWorkload, Tag("<sequential>")] | Annotated[PoissonWorkload, Tag("<poisson>")],
    Discriminator(_workload_form),
    BeforeValidator(_one_workload),
]

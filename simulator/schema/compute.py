"""`compute:` and `cloud:` of a scenario: how long a pass takes, and what serves the cloud's."""

from typing import Literal, TypeVar

from pydantic import Field, model_validator

from simulator import catalogue
from simulator.methods import refuse
from simulator.schema.base import Part, filled_in, found_text
from simulator.yamlfile import did_you_mean

SideT = TypeVar("SideT", "DeviceCompute", "CloudCompute")


class DeviceCompute(Part):
    """How long the device's passes take. hardware: `local` or a name of the catalogue."""

    model: Literal["pair", "llamagen-xl-1layer"] = "llamagen-xl-1layer"
    hardware: str = Field(default="", description="local (times measured here, with model: pair) or a catalogue name")
    runtime: Literal["eager", "cuda-graphs"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "DeviceCompute":
        return _choose_hardware(self, "snapdragon-8-gen-3")


class CloudCompute(Part):
    """How long the cloud's passes take. hardware: `local` or a name of the catalogue."""

    model: Literal["pair", "llamagen-xl"] = "llamagen-xl"
    hardware: str = Field(default="", description="local (times measured here, with model: pair) or a catalogue name")
    runtime: Literal["eager", "cuda-graphs"] | None = None

    @model_validator(mode="after")
    def _fits(self) -> "CloudCompute":
        return _choose_hardware(self, "a100")


def _choose_hardware(side: SideT, default: str) -> SideT:
    hardware = side.hardware or ("local" if side.model == "pair" else default)
    if hardware == "local":
        if side.model != "pair":
            refuse(
                f"must be a name of the catalogue with model {side.model}, got local; local goes with model: pair",
                "hardware",
            )
        if side.runtime is not None:
            refuse("goes with catalogue hardware; local times are measured as they are", "runtime")
        return filled_in(side, hardware=hardware)
    hardware = catalogue.canonical("hardware", hardware)
    known: tuple[str, ...] = catalogue.names("hardware")
    if hardware not in known:
        refuse(f"is not known, got {found_text(hardware)}{did_you_mean(hardware, ['local', *known])}", "hardware")
    return filled_in(side, hardware=hardware, runtime=side.runtime or "eager")


class Compute(Part):
    """Sizes and hardware at which passes are priced: both sides at the pair's own size, or both as LlamaGen-XL."""

    device: DeviceCompute = Field(default_factory=lambda: DeviceCompute())
    cloud: CloudCompute = Field(default_factory=lambda: CloudCompute())

    @model_validator(mode="after")
    def _same_size(self) -> "Compute":
        if (self.device.model == "pair") != (self.cloud.model == "pair"):
            refuse(
                f"device.model {self.device.model} and cloud.model {self.cloud.model} do not belong together; "
                "allowed: pair and pair, or llamagen-xl-1layer and llamagen-xl"
            )
        return self


class Cloud(Part):
    """The serving side: GPUs, the largest batch of one pass in sessions, the queue, a price for `cost_usd`."""

    replicas: int = Field(default=1, ge=1, le=100_000)
    max_batch: int = Field(default=16, ge=1, le=100_000)
    queue: Literal["fifo"] = "fifo"
    price_usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=1e6)

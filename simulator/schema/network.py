"""`network:` of a scenario: a preset of the catalogue, or a link by its figures."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Tag, field_validator

from simulator import catalogue
from simulator.methods import refuse
from simulator.schema.base import LATER, Part, fork, found_text
from simulator.yamlfile import did_you_mean


@dataclass(frozen=True)
class LinkFigures:
    """A link in base units: rates in bit/s, round trip and standard deviation of the one-way delay in seconds."""

    down_bps: float
    up_bps: float
    rtt_s: float
    jitter_s: float


class PresetNetwork(Part):
    """A preset of the network catalogue."""

    preset: str

    @field_validator("preset")
    @classmethod
    def _exists(cls, preset: str) -> str:
        name, known = catalogue.canonical("networks", preset), catalogue.names("networks")
        if name not in known:
            refuse(f"is not a known preset, got {found_text(preset)}{did_you_mean(preset, known)}")
        return name


class ExplicitNetwork(Part):
    """A link by its figures. jitter_ms: standard deviation of the one-way delay."""

    rtt_ms: float = Field(ge=0, le=600_000)
    up_mbps: float = Field(gt=0, le=1e7)
    down_mbps: float = Field(gt=0, le=1e7)
    jitter_ms: float = Field(default=0.0, ge=0, le=60_000)

    @field_validator("up_mbps", "down_mbps")
    @classmethod
    def _not_absurd(cls, rate_mbps: float) -> float:
        if rate_mbps < 1e-3:
            refuse(f"must be >= 0.001 (1 kbit/s), got {rate_mbps}")
        return rate_mbps


def _one_form(data: Any) -> Any:
    figures = ", ".join(ExplicitNetwork.model_fields)
    if isinstance(data, dict):
        for key in ("loss_pct", "trace", "transport"):
            if key in data:
                refuse(f"{LATER}; allowed: preset, or {figures}", key)
        both = [key for key in data if key in ExplicitNetwork.model_fields]
        if "preset" in data and both:
            refuse(f"stands beside preset: two forms at once; give either preset or {figures}", both[0])
        for key in data:
            if key != "preset" and key not in ExplicitNetwork.model_fields:
                refuse(f"is not a known key{did_you_mean(key, ['preset', *ExplicitNetwork.model_fields])}", key)
    return data


Network = Annotated[
    Annotated[PresetNetwork, Tag("<preset>")] | Annotated[ExplicitNetwork, Tag("<explicit>")],
    fork({"preset": "<preset>"}, "<explicit>"),
    BeforeValidator(_one_form),
]

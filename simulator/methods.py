"""Settings of every decoding method: names, defaults, allowed ranges and sources. No torch here, so that a scenario is refused
before anything heavy is imported. The programs themselves live in `models/methods/`, one file a method.
"""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of the method settings: frozen, unknown keys refused, no silent conversion, no NaN or infinity unless allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Decoding(Settings):
    """How distributions become tokens, the same for every method of a scenario (LlamaGen's chain: guidance, temperature, top-k, top-p)."""

    guidance: float = Field(3.0, ge=1.0, le=100.0, description="classifier-free guidance on both sides; 1 runs one row instead of two")
    temperature: float = Field(1.0, gt=0.0, le=100.0, description="divides the logits")
    top_k: int = Field(0, ge=0, le=65536, description="keep the k largest; 0 is off")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="keep the smallest set of this mass; 1 is off")
    cloud: Literal["sampled", "greedy"] = Field("sampled", description="how the cloud picks a token")
    device: Literal["greedy", "sampled"] = Field("greedy", description="how the device picks a token (assumption A4)")
    text_encoder: Literal["cloud", "device"] = Field(
        "cloud", description="where the caption is encoded; from the cloud the valid caption rows travel down once (assumption A12)"
    )


PrefixRate = Annotated[float, Field(ge=0.0, lt=1.0)]


class BaseSettings(Settings):
    """The cloud model alone."""

    deliver: Literal["stream", "ids", "image"] = Field(
        "stream", description="tokens one by one as they are decided, all ids at the end, or the finished picture as PNG"
    )


class DeviceOnlySettings(Settings):
    """The one-layer device model alone."""


class CodeSettings(Settings):
    """CoDe in CIAR's adaptation: the cloud makes the first tokens, the device the rest."""

    prefix_rate: PrefixRate = Field(0.3, description="share of tokens the cloud makes first")


class CiarSettings(Settings):
    """CIAR: the device decodes, the cloud decides where the Inter-Head doubts (docs/methods/ciar.md)."""

    threshold: float = Field(
        0.30, ge=0.0, allow_inf_nan=True, description="accept locally while the score is below it (paper: 0.30); .inf never asks the cloud"
    )
    prefix_rate: PrefixRate = Field(0.06, description="share of tokens the cloud makes first (paper: 0.06)")
    score: Literal["u", "omega", "lower-top"] = Field(
        "u", description="u: sqrt(V)*Omega*Sigma (assumption A2); omega: total width; lower-top: 1 - lower bound of the top token"
    )
    features: Literal["fp16", "off"] = Field("fp16", description="interval features sent with pending tokens and added in the cloud")


METHODS: dict[str, type[Settings]] = {
    "base": BaseSettings,
    "device-only": DeviceOnlySettings,
    "code": CodeSettings,
    "ciar": CiarSettings,
}

# Raised whenever a method's program changes what it records, so that old recordings are not taken for new ones.
REVISIONS: dict[str, int] = {"base": 1, "device-only": 1, "code": 1, "ciar": 1}


def prefix_length(prefix_rate: float, image_tokens: int) -> int:
    """m = floor(rho * T) (CIAR, prefix injection), with rho taken as the decimal that was written: 0.06 * 50 is 3, not 2.999...96."""
    return int(Fraction(str(prefix_rate)) * image_tokens)

"""Decoding methods, one file each: two small generator programs over the ops of `simulator/protocol/ops.py`."""

from typing import Any, Protocol

from models.pair import Pair
from simulator.protocol.messages import Message
from simulator.protocol.methods import (
    METHODS,
    BaseSettings,
    CiarSettings,
    CodeSettings,
    DeviceOnlySettings,
    Eagle2Settings,
    GatedSettings,
    LanternSettings,
    LanternStaticSettings,
    MethodSettings,
    SpeculativeSettings,
)
from simulator.protocol.ops import CloudProgram, DeviceProgram

from .base import Base
from .ciar import Ciar
from .code import Code
from .device_only import DeviceOnly
from .eagle2 import Eagle2
from .gated import Gated
from .lantern import Lantern, LanternStatic
from .session import CloudState, DeviceState
from .speculative import Speculative

__all__ = ["CloudState", "DeviceState", "Method", "make_method"]


class Method(Protocol):
    """A decoding method: what the device does for one image, and how the cloud answers one of its messages."""

    def device(self, s: DeviceState) -> DeviceProgram: ...

    def cloud(self, s: CloudState, message: Message) -> CloudProgram: ...


def make_method(name: str, settings: dict[str, Any], pair: Pair) -> Method:
    """The method of that name for a pair. settings: as validated by its class in `simulator.protocol.methods.METHODS`."""
    parsed: MethodSettings = METHODS[name].model_validate(settings)
    image_tokens, dim = pair.manifest.image_tokens, pair.manifest.cloud.dim
    match parsed:
        case BaseSettings():
            return Base(parsed)
        case DeviceOnlySettings():
            return DeviceOnly(parsed)
        case SpeculativeSettings():
            return Speculative(parsed, pair.manifest.codebook_size)
        case Eagle2Settings():
            return Eagle2(parsed, pair.manifest)
        case LanternSettings():
            return Lantern(parsed, pair)
        case LanternStaticSettings():
            return LanternStatic(parsed, pair)
        case CodeSettings():
            return Code(parsed, image_tokens)
        case CiarSettings():
            return Ciar(parsed, image_tokens, dim)
        case GatedSettings():
            return Gated(parsed, image_tokens)
    raise AssertionError(f"method {name} has settings but no program")

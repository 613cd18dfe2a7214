"""Decoding methods, one file each: two small generator programs over the ops of `simulator/ops.py`."""

from typing import Any, Protocol

from simulator.messages import Message
from simulator.methods import METHODS, BaseSettings, CiarSettings, CodeSettings, DeviceOnlySettings, Settings
from simulator.ops import CloudProgram, DeviceProgram

from .base import Base
from .ciar import Ciar
from .code import Code
from .device_only import DeviceOnly
from .session import CloudState, DeviceState

__all__ = ["CloudState", "DeviceState", "Method", "make_method"]


class Method(Protocol):
    """A decoding method: what the device does for one image, and how the cloud answers one of its messages."""

    def device(self, s: DeviceState) -> DeviceProgram: ...

    def cloud(self, s: CloudState, message: Message) -> CloudProgram: ...


def make_method(name: str, settings: dict[str, Any], image_tokens: int, dim: int) -> Method:
    """The method of that name. settings: as validated by its class in `simulator.methods.METHODS`.

    image_tokens: T. dim: D, the width of an interval feature on the wire.
    """
    parsed: Settings = METHODS[name].model_validate(settings)
    match parsed:
        case BaseSettings():
            return Base(parsed)
        case DeviceOnlySettings():
            return DeviceOnly(parsed)
        case CodeSettings():
            return Code(parsed, image_tokens)
        case CiarSettings():
            return Ciar(parsed, image_tokens, dim)
    raise AssertionError(f"method {name} has settings but no program")

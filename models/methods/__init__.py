"""Decoding methods, one file each: two small generator programs over the ops of `simulator/protocol/ops.py`."""

from typing import Any, Protocol

from models.pair import Pair
from simulator.protocol.messages import Message
from simulator.protocol.methods import METHODS
from simulator.protocol.ops import CloudProgram, DeviceProgram

from .session import CloudState, DeviceState

__all__ = ["CloudState", "DeviceState", "Method", "make_method"]


class Method(Protocol):
    """A decoding method: what the device does for one image, and how the cloud answers one of its messages."""

    def device(self, s: DeviceState) -> DeviceProgram: ...

    def cloud(self, s: CloudState, message: Message) -> CloudProgram: ...


def make_method(name: str, settings: dict[str, Any], pair: Pair) -> Method:
    """Return the programs of a method.

    Args:
        name: A key of `simulator.protocol.methods.METHODS`.
        settings: The values of its settings class.
        pair: The models it runs on.

    Raises:
        MethodError: The programs cannot be imported.
    """
    kind = METHODS[name]
    method: Method = kind.load_program()(kind.settings.model_validate(settings), pair)
    return method

"""device-only: the one-layer device model decides every token; the cloud at most encodes the caption."""

from models.pair import Pair
from simulator.protocol.messages import Message, Start
from simulator.protocol.methods import DeviceOnlySettings
from simulator.protocol.ops import CloudProgram, Compute, DeviceProgram
from simulator.protocol.recording import FROM_DEVICE

from .session import CloudState, DeviceState, answer_start, open_session


class DeviceOnly:
    """Needs the cloud only to encode the caption, and not at all with `text_encoder: device`."""

    prefix_length = 0

    def __init__(self, settings: DeviceOnlySettings, pair: Pair) -> None:
        self.settings = settings

    def device(self, s: DeviceState) -> DeviceProgram:
        if self.prefix_length == 0 and s.decoding.text_encoder == "device":
            s.caption_rows = yield Compute("caption_encoder", s.caption)
        else:
            yield from open_session(s, self.prefix_length)
        while not s.done:
            step = yield s.unfed("device")
            s.accept(step.token, FROM_DEVICE, step)
        yield Compute("image_decoder", s.tokens)

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        assert isinstance(message, Start)
        return (yield from answer_start(s, message))

"""base: the cloud model decides every token. It is the reference of every speed-up."""

from models.images import png_bytes
from models.pair import Pair
from simulator.protocol.messages import Message, Picture, Start, Started, Tokens, pack_ids, unpack_ids
from simulator.protocol.methods import BaseSettings
from simulator.protocol.ops import Await, CloudProgram, Compute, DeviceProgram, Emit, Send
from simulator.protocol.recording import FROM_CLOUD

from .session import CloudState, DeviceState


class Base:
    """Its setting `deliver`: each id as it is decided (`stream`), all ids at the end (`ids`), or the image (`image`)."""

    def __init__(self, settings: BaseSettings, pair: Pair) -> None:
        self.settings = settings

    def device(self, s: DeviceState) -> DeviceProgram:
        start = s.start(s.image_tokens, want_caption=False, deliver=self.settings.deliver)
        handle = yield Send(start)
        reply = yield Await(handle)
        if isinstance(reply, Picture):
            return
        for part in (*handle.parts, reply):
            for token in unpack_ids(part.ids):
                s.accept(token, FROM_CLOUD)
        yield Compute("image_decoder", s.tokens)

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        assert isinstance(message, Start)
        yield from s.open(message)
        for position in range(message.count):
            step = yield s.decide()
            s.take(step)
            if message.deliver == "stream" and position < message.count - 1:
                yield Emit(Tokens(pack_ids([step.token])))
        if message.deliver == "stream":
            return Tokens(pack_ids(s.tokens[-1:]))
        if message.deliver == "image":
            image = yield Compute("image_decoder", s.tokens)
            return Picture(png_bytes(image))
        return Started(ids=pack_ids(s.tokens))

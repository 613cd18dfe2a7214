"""ciar: the device decodes, its Inter-Head doubts, and only doubtful tokens go to the cloud with interval features.

Source: Wu et al., "CIAR: Interval-based Collaborative Decoding for Image Generation Acceleration" (arXiv 2603.25463); round
protocol as in docs/methods/ciar.md, assumptions A3 (constant threshold), A6 (rounds, variant `resample`), A7 and A8 (features).
"""

import numpy as np

from simulator.messages import Message, Start, Tokens, Verify, pack_floats, pack_ids, unpack_floats, unpack_ids
from simulator.methods import CiarSettings, prefix_length
from simulator.ops import Call, CloudProgram, Compute, DeviceProgram
from simulator.recording import FROM_CLOUD, FROM_DEVICE

from .session import CloudState, DeviceState, Step, answer_start, open_session

SCORE_COLUMN = {"u": "u", "omega": "omega", "lower-top": "lower_top"}


class Ciar:
    """Prefix injection, self-verification by U(P_t) < threshold, interval-enhanced decoding."""

    def __init__(self, settings: CiarSettings, image_tokens: int, dim: int) -> None:
        self.settings = settings
        self.prefix_length = prefix_length(settings.prefix_rate, image_tokens)
        self.dim = dim

    def self_verified(self, step: Step) -> bool:
        """The threshold rule (CIAR, uncertainty score U = Omega * Sigma): accept locally while the score is below tau."""
        return step.score(SCORE_COLUMN[self.settings.score]) < self.settings.threshold

    def device(self, s: DeviceState) -> DeviceProgram:
        yield from open_session(s, self.prefix_length)
        pending: list[int] = []  # accepted here since the cloud last decided
        features: list[np.ndarray] = []  # f^I = phi(concat(f, P)) of each
        while not s.done:
            step = yield s.unfed("device")
            if self.self_verified(step):
                s.accept(step.token, FROM_DEVICE, step)
                pending.append(step.token)
                if self.settings.features != "off":
                    features.append((yield Compute("phi", step)))
            else:
                packed = pack_floats(np.stack(features)) if features else b""
                reply = yield Call(Verify(pack_ids(pending), packed, pack_ids([step.token])))
                s.accept(unpack_ids(reply.ids)[0], FROM_CLOUD, step)
                pending, features = [], []
        yield Compute("image_decoder", s.tokens)

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            return (yield from answer_start(s, message))
        assert isinstance(message, Verify)
        s.accept(unpack_ids(message.ids), unpack_floats(message.features, self.dim) if message.features else None)
        step = yield s.decide()
        s.accept([step.token])
        return Tokens(pack_ids([step.token]))

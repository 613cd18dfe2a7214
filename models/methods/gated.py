"""The loop of all gated methods: entropy-lens, softmax-corr, random, discrete, and ciar, which extends it.

The cloud decides a prefix, then the device decodes token by token. If a token's score is not below the threshold, the cloud
decides the token, in one pass over the tokens that it has not processed yet. The methods differ only in the score (`scores.py`).

Source: CIAR section 3.1 (self-verification, prefix injection); round protocol: assumption A6.
"""

from collections.abc import Generator
from typing import Any

import numpy as np

from models.pair import Pair
from simulator.protocol.messages import Message, Start, Tokens, Verify, pack_ids, unpack_ids
from simulator.protocol.methods import GatedSettings, prefix_length
from simulator.protocol.ops import Call, CloudProgram, Compute, DeviceProgram, Op
from simulator.protocol.recording import FROM_CLOUD, FROM_DEVICE
from simulator.protocol.thresholds import Threshold, make_threshold

from .scores import Score, make_score
from .session import CloudState, DeviceState, Step, answer_start, finish_on_device, open_session


class Pending:
    """Tokens accepted on the device that have not been sent to the cloud, and the interval feature f^I [D] of each, if any."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.features: list[np.ndarray] = []

    def take(self) -> tuple[bytes, list[np.ndarray]]:
        """Return the packed ids and the features of all pending tokens, and clear them."""
        taken = pack_ids(self.ids), self.features
        self.ids, self.features = [], []
        return taken


class Gated:
    """The plain loop: ids are sent without features, and the cloud draws the uncertain token itself."""

    def __init__(self, settings: GatedSettings, pair: Pair) -> None:
        self.settings = settings
        self.prefix_length = prefix_length(settings.prefix_rate, pair.manifest.image_tokens)
        self.scored = pair.manifest.image_tokens - self.prefix_length  # number of positions with a score

    def device(self, s: DeviceState) -> DeviceProgram:
        yield from open_session(s, self.prefix_length)
        score, threshold, pending = self.score(s), self.threshold(), Pending()
        while not s.done:
            step = self.read((yield s.unfed("device")))
            value = yield from score.of(step, len(s.tokens))
            accepted = threshold.accepts(value)
            s.decisions.note(threshold.margin)
            if accepted:
                s.accept(step.token, FROM_DEVICE, step, value)
                yield from self.keep(pending, step)
            else:
                yield from self.ask(s, pending, step, value)
                threshold.keep(len(s.tokens) - self.prefix_length)  # drops the scores of tokens that the cloud revoked
        yield Compute("image_decoder", s.tokens)

    def score(self, s: DeviceState) -> Score:
        """Return the session's uncertainty score. Override it for a method with its own score."""
        return make_score(self.settings, s)

    def threshold(self) -> Threshold:
        """Return the session's threshold. Override it if the settings are not `ThresholdSettings`."""
        return make_threshold(self.settings, self.scored)

    def read(self, step: Step) -> Step:
        """Return the device's step with the bounds and scores that the method uses."""
        return step

    def keep(self, pending: Pending, step: Step) -> Generator[Op, Any, None]:
        """Handle a token that the device accepted: add it to the pending ones."""
        pending.ids.append(step.token)
        yield from ()

    def ask(self, s: DeviceState, pending: Pending, step: Step, value: float) -> Generator[Op, Any, None]:
        """Let the cloud decide the next token; after a missed deadline, finish the image on the device."""
        ids, _ = pending.take()
        reply = yield Call(Verify(ids, b"", pack_ids([step.token])), deadline=True)
        if reply is None:
            yield from finish_on_device(s, step, value)
            return
        s.accept(unpack_ids(reply.ids)[0], FROM_CLOUD, step, value)

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            return (yield from answer_start(s, message))
        assert isinstance(message, Verify)
        s.accept(unpack_ids(message.ids))
        step = yield s.decide()
        s.take(step)
        return Tokens(pack_ids([step.token]))

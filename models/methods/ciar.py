"""ciar: the device decodes and asks the cloud about tokens with a high uncertainty score; device tokens are sent with interval features.

Source: Wu et al., "CIAR: Interval-based Collaborative Decoding for Image Generation Acceleration" (arXiv 2603.25463). The round
protocol is in docs/methods/ciar.md: assumptions A1 (reach), A6 (rounds and their variants), A7 and A8 (features).
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.interval import reachable
from models.pair import Pair
from models.sampling import wire_weights
from simulator.protocol.messages import (
    Message,
    Revised,
    Row,
    Start,
    Tokens,
    Upload,
    Verify,
    pack_floats,
    pack_ids,
    pack_int8,
    unpack_floats,
    unpack_ids,
    unpack_int8,
)
from simulator.protocol.methods import CiarSettings
from simulator.protocol.ops import Call, CloudProgram, Compute, DeviceProgram, Op, Send
from simulator.protocol.recording import FROM_CLOUD

from .gated import Gated, Pending
from .scores import all_scores
from .session import CloudState, DeviceState, Step, answer_start, finish_on_device
from .speculative import accepted_drafts, residual

WIDEST = 64  # interval entries that phi reads with `features: top-64`


class Ciar(Gated):
    """The loop of `Gated` with the Inter-Head's score, interval features, and the variants of a round."""

    settings: CiarSettings

    def __init__(self, settings: CiarSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.dim = pair.manifest.cloud.dim

    # --- device

    def device(self, s: DeviceState) -> DeviceProgram:
        s.bounds = self.settings.bounds
        return super().device(s)

    def read(self, step: Step) -> Step:
        if not self.settings.reach:
            return step
        assert step.lower is not None
        assert step.upper is not None
        lower, upper = reachable(step.lower, step.upper)
        return replace(step, lower=lower, upper=upper, scores=all_scores(step.logits, lower, upper).cpu().numpy())

    def keep(self, pending: Pending, step: Step) -> Generator[Op, Any, None]:
        pending.ids.append(step.token)
        if self.settings.features != "off":
            source = widest(step, WIDEST) if self.settings.features == "top-64" else step
            pending.features.append((yield Compute("phi", source)))  # f^I = phi(concat(f, P))
        if self.settings.upload == "eager":
            yield Send(self.pack(pending))

    def ask(self, s: DeviceState, pending: Pending, step: Step, value: float) -> Generator[Op, Any, None]:
        if self.settings.variant == "resample":
            reply = yield Call(self.pack(pending, step.token), deadline=True)
        else:
            reply = yield from self.ask_to_verify(s, pending, step)
        if reply is None:
            yield from finish_on_device(s, step, value)
        elif isinstance(reply, Revised):
            s.revise(reply.position, unpack_ids(reply.ids)[0])
        else:
            s.accept(unpack_ids(reply.ids)[0], FROM_CLOUD, step, value)

    def ask_to_verify(self, s: DeviceState, pending: Pending, step: Step) -> Generator[Op, Any, Message | None]:
        """Send the candidate and its weight in the distribution it was drawn from, with all weights if the distribution is sparse.

        Returns:
            The cloud's reply, or None if it missed the deadline.
        """
        probs = candidate_probs(s, step)  # [V]
        candidate = s.pick(probs, len(s.tokens), "token", "device")
        sampled, _ = s.decoding.local_sampling
        if not sampled:
            s.decisions.note(step.margin)
        few = not sampled or s.decoding.top_k > 0
        support = np.flatnonzero(probs) if few else np.zeros(0, np.int64)
        weights = probs[support] if few else probs[[candidate]]
        reply: Message | None = yield Call(
            self.pack(pending, candidate, pack_floats(weights), pack_ids(support)), deadline=True
        )
        if isinstance(reply, Tokens) and not reply.ids:  # rejected: the cloud needs the distribution
            reply = yield Call(Row(pack_floats(probs)), deadline=True)
        return reply

    def pack(self, pending: Pending, candidate: int | None = None, probs: bytes = b"", support: bytes = b"") -> Message:
        """Return the message with all pending tokens and, if the cloud is to decide a token, the candidate.

        Args:
            pending: pending tokens and features; none are left afterwards.
            candidate: the device's token for the uncertain position, or None.
            probs: packed weights, for `verify`.
            support: packed ids of the weights, or b"" if there is only the candidate's.
        """
        ids, features = pending.take()
        asked = b"" if candidate is None else pack_ids([candidate])
        fine = coarse = b""
        if features and self.settings.features == "int8":
            coarse = pack_int8(np.stack(features))
        elif features:
            fine = pack_floats(np.stack(features))
        return Upload(ids, fine, coarse, asked, probs, support) if coarse or probs else Verify(ids, fine, asked)

    # --- cloud

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            return (yield from answer_start(s, message))
        if isinstance(message, Row):
            p, s.held = s.held, None
            return self.decided(s, corrected(s, p, unpack_weights(message.probs)))
        assert isinstance(message, Verify | Upload)
        s.accept(unpack_ids(message.ids), self.features_of(message))
        if not message.candidate:  # `upload: eager`
            return Tokens(b"")
        if self.settings.revise == 0 and self.settings.variant == "resample":
            step = yield s.decide()
            s.take(step)
            return Tokens(pack_ids([step.token]))
        step = yield s.decide("all" if self.settings.revise > 0 else "last")
        rows = step.logits.reshape(-1, step.logits.shape[-1])
        p = s.policy.probs(rows).cpu().numpy()  # [n + 1, V], the n pending positions and the uncertain one, or [1, V]
        s.note_arg_max(rows)
        if self.settings.revise > 0 and (revised := self.revised(s, p[:-1])) is not None:
            return revised
        if self.settings.variant == "verify":
            assert isinstance(message, Upload)
            return self.verified(s, p[-1], message)
        return self.decided(s, s.pick(p[-1], len(s.tokens), "token", "cloud"))

    def decided(self, s: CloudState, token: int) -> Message:
        """Accept the token at the uncertain position, and return the reply."""
        s.accept([token])
        return Tokens(pack_ids([token]))

    def revised(self, s: CloudState, p: np.ndarray) -> Revised | None:
        """Decide the first vetoed pending token again, and discard those after it (option `revise`, assumption A6); None if there is none.

        p: [n, V], the cloud's distribution at each of the last n positions, which are pending.
        """
        first = len(s.tokens) - len(p)
        pending = s.tokens[first:]
        kept = vetoed(p, pending, self.settings.revise)
        for row, token in zip(p, pending[: kept + 1], strict=False):
            s.decisions.note(abs(row[token] - self.settings.revise))
        if kept == len(pending):
            return None
        s.cut(first + kept)
        token = s.pick(p[kept], first + kept, "token", "cloud")
        s.accept([token])
        return Revised(first + kept, pack_ids([token]))

    def verified(self, s: CloudState, p: np.ndarray, message: Upload) -> Message:
        """Verify the candidate x (variant `verify`, assumption A6): accept it iff r < p(x) / q(x), else draw from the residual.

        If the residual needs weights that were not sent, the reply holds no id and the device sends them.
        """
        candidate, support = unpack_ids(message.candidate), unpack_ids(message.support)
        q = np.zeros_like(p)  # [V], known for the candidate, and for all tokens if the support was sent
        q[support or candidate] = unpack_weights(message.probs)
        if accepted_drafts(s, p[candidate], q[candidate], len(s.tokens)):
            return self.decided(s, candidate[0])
        if support:
            return self.decided(s, corrected(s, p, q))
        s.held = p
        return Tokens(b"")

    def features_of(self, message: Verify | Upload) -> np.ndarray | None:
        """Return f^I of the tokens in a message, float32 [n, D] in wire precision, or None."""
        if isinstance(message, Upload) and message.coarse:
            return unpack_int8(message.coarse, self.dim)
        return unpack_floats(message.features, self.dim) if message.features else None


# --- rules


def widest(step: Step, count: int) -> Step:
    """Return the step with the bounds of all but its `count` widest intervals set to zero (assumption A8)."""
    assert step.lower is not None
    assert step.upper is not None
    delta = step.upper - step.lower  # [V]
    kept = torch.zeros_like(delta).scatter(-1, delta.topk(min(count, len(delta))).indices, 1.0)
    return replace(step, lower=step.lower * kept, upper=step.upper * kept)


def candidate_probs(s: DeviceState, step: Step) -> np.ndarray:
    """Return the weights float64 [V], in wire precision, from which the device draws its candidate; greedy: all on its arg max."""
    sampled, top_p = s.decoding.local_sampling
    own = replace(s.policy, sampled=sampled, top_p=top_p)
    return wire_weights(own.probs(step.logits.unsqueeze(0))[0].cpu().numpy())


def vetoed(p: np.ndarray, pending: Sequence[int], below: float) -> int:
    """Return the index of the first pending token whose probability is below a bound, or n (assumption A6, option `revise`).

    Args:
        p: [n, V], the cloud's distribution at each pending position.
        pending: the n pending tokens.
        below: the bound.
    """
    return next((index for index, token in enumerate(pending) if p[index, token] < below), len(pending))


def corrected(s: CloudState, p: np.ndarray, q: np.ndarray) -> int:
    """Draw the token that replaces a rejected candidate.

    Args:
        s: the cloud's state.
        p: the cloud's distribution, [V].
        q: weights from which the candidate was drawn, [V].
    """
    return s.pick(residual(p, q), len(s.tokens), "residual")


def unpack_weights(blob: bytes) -> np.ndarray:
    """Return float64 [n] from packed fp16 weights."""
    return unpack_floats(blob, 1)[:, 0].astype(np.float64)

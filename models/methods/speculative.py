"""speculative: the device drafts a few tokens, the cloud tests them all in one pass; the image's law is the cloud's own.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", algorithm 1; Chen et al., "Accelerating Large
Language Model Decoding with Speculative Sampling". `accept` and `residual` are the rule of every method that tests drafts so.
"""

from collections.abc import Sequence

import numpy as np

from models.pair import Pair
from models.sampling import draw, wire_weights
from simulator.protocol.messages import (
    Drafts,
    Message,
    Row,
    Start,
    Verdict,
    pack_floats,
    pack_ids,
    unpack_floats,
    unpack_ids,
)
from simulator.protocol.methods import SpeculativeSettings
from simulator.protocol.ops import Call, CloudProgram, Compute, DeviceProgram
from simulator.protocol.recording import FROM_CLOUD, FROM_DEVICE

from .session import CloudState, DeviceState, answer_start, open_session


def accept(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """How many drafts are accepted: the leading ones with r <= p(x) / q(x).

    p, q: [..., K], the target's probability of each draft and the weight it was drawn with. r: uniform draws [..., K].
    Returns int [...]. With all mass on the arg max in p and in q this is greedy acceptance, x = arg max p.
    Source: Leviathan et al., algorithm 1.
    """
    passed = r * q <= p
    count: np.ndarray = np.logical_and.accumulate(passed, axis=-1).sum(axis=-1)
    return count


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What the next token is drawn from after a draft from q was rejected: norm(max(p - q, 0)), [..., V].

    q: weights whose sum s is one, or a little more where they were rounded up. A draft comes out as x with probability
    min(p(x), q(x)) / s, so exactly p(x) - min(p(x), q(x)) / s is left for this draw; with s = 1 that is max(p - q, 0).
    Source: Leviathan et al., algorithm 1; the sum is for rounded weights.
    """
    left = np.maximum(p - np.minimum(p, q) / q.sum(axis=-1, keepdims=True), 0.0)
    total = left.sum(axis=-1, keepdims=True)
    return np.where(total > 0, left / np.where(total > 0, total, 1.0), p)  # where p = q nothing is ever rejected


class Speculative:
    """A round: up to `gamma` drafts up, the number accepted and one token down; twice so with `residual: two-phase`.

    A round drafts at most so many tokens that its last one, the cloud's own, still fits the image.
    """

    def __init__(self, settings: SpeculativeSettings, pair: Pair) -> None:
        self.settings = settings
        self.vocab_size = pair.manifest.codebook_size

    def device(self, s: DeviceState) -> DeviceProgram:
        yield from open_session(s, 0)
        target = s.target
        while not s.done:
            first = len(s.tokens)
            weights: list[np.ndarray] = []  # what each draft was drawn from, as the wire carries it
            for _ in range(min(self.settings.gamma, s.image_tokens - first - 1)):
                step = yield s.unfed("device")
                law = target.laws(step.logits.unsqueeze(0))[0].cpu().numpy()  # [V]
                weights.append(wire_weights(law))
                s.accept(draw(weights[-1], s.draw(len(s.tokens), "draft")), FROM_DEVICE, step)
            reply = yield Call(self.pack(s.tokens[first:], weights if target.sampled else []))
            s.cut(first + reply.accepted)
            ids = reply.ids
            if not ids:  # rejected, and the cloud needs the row to correct for it
                ids = (yield Call(Row(pack_floats(weights[reply.accepted])))).ids
            s.accept(unpack_ids(ids)[0], FROM_CLOUD)
        yield Compute("image_decoder", s.tokens)

    def pack(self, drafts: Sequence[int], weights: Sequence[np.ndarray]) -> Drafts:
        """The drafts, each one's weight, and of the rows they were drawn from what `residual` says."""
        ids = pack_ids(drafts)
        if not weights:
            return Drafts(ids)
        own = pack_floats(np.array([row[x] for row, x in zip(weights, drafts, strict=True)]))
        if self.settings.residual == "all":
            return Drafts(ids, own, rows=pack_floats(np.stack(weights)))
        if self.settings.residual == "top-k":
            held = [np.flatnonzero(row) for row in weights]
            values = np.concatenate([row[support] for row, support in zip(weights, held, strict=True)])
            sizes = pack_ids([len(support) for support in held])
            return Drafts(
                ids, own, support=pack_ids(np.concatenate(held)), support_weights=pack_floats(values), sizes=sizes
            )
        return Drafts(ids, own)

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            return (yield from answer_start(s, message))
        if isinstance(message, Row):  # second phase: correct the rejected draft
            p, s.held = s.held, None
            return self.next(s, 0, residual(p, unpack_floats(message.probs, self.vocab_size)[0].astype(np.float64)))
        assert isinstance(message, Drafts)
        drafts, first = unpack_ids(message.ids), len(s.tokens)
        s.accept(drafts)
        step = yield s.decide("all")
        p = s.target.laws(step.logits).cpu().numpy()  # [K + 1, V]
        q = (
            unpack_floats(message.weights, 1)[:, 0].astype(np.float64) if s.target.sampled else np.ones(len(drafts))
        )  # [K]
        r = np.array([s.draw(first + i, "accept") for i in range(len(drafts))])
        accepted = int(accept(p[np.arange(len(drafts)), drafts], q, r))
        s.cut(first + accepted)
        law = p[accepted]
        if accepted < len(drafts) and s.target.sampled:
            rows = self.rows(message)
            if rows is None:
                s.held = law
                return Verdict(accepted)
            law = residual(law, rows[accepted])
        return self.next(s, accepted, law)

    def next(self, s: CloudState, accepted: int, law: np.ndarray) -> Verdict:
        """The round's last token, drawn from `law` [V], and the reply that ends it."""
        token = draw(law, s.draw(len(s.tokens), "token", "cloud"))
        s.accept([token])
        return Verdict(accepted, pack_ids([token]))

    def rows(self, message: Drafts) -> np.ndarray | None:
        """Weights float64 [K, V] that the drafts were drawn from, None where they did not travel."""
        if message.rows:
            return unpack_floats(message.rows, self.vocab_size).astype(np.float64)
        if not message.sizes:
            return None
        sizes = unpack_ids(message.sizes)
        rows = np.zeros((len(sizes), self.vocab_size))
        rows[np.repeat(np.arange(len(sizes)), sizes), unpack_ids(message.support)] = unpack_floats(
            message.support_weights, 1
        )[:, 0]
        return rows

"""speculative: the device drafts a few tokens, and the cloud verifies them in one pass. Lossless.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", algorithm 1; Chen et al., "Accelerating Large
Language Model Decoding with Speculative Sampling". `accept` and `residual` are also used by other methods.
"""

from collections.abc import Sequence

import numpy as np

from models.pair import Pair
from models.sampling import wire_weights
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
    """Return how many leading drafts have r < p(x) / q(x) and are accepted, int [...].

    A draft with p(x) = 0 is never accepted. If p and q have all mass on their arg max, this is greedy acceptance, x = arg max p.

    Args:
        p: the cloud's probability of each draft, [..., K].
        q: weight with which each draft was drawn, [..., K].
        r: uniform draws in [0, 1), [..., K].

    Source: Leviathan et al., algorithm 1.
    """
    passed = r * q < p
    count: np.ndarray = np.logical_and.accumulate(passed, axis=-1).sum(axis=-1)
    return count


def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the distribution of the next token after the rejection of a draft from q: norm(max(p - q, 0)), [..., V].

    The sum s of q is 1, or slightly more after rounding up (`wire_weights`). Token x is drafted and accepted with probability
    min(p(x), q(x)) / s, so p(x) - min(p(x), q(x)) / s remains for this draw; for s = 1 that is max(p - q, 0).
    Source: Leviathan et al., algorithm 1, extended to rounded weights.

    Args:
        p: the cloud's distribution, [..., V].
        q: weights from which the draft was drawn, [..., V].
    """
    left = np.maximum(p - np.minimum(p, q) / q.sum(axis=-1, keepdims=True), 0.0)
    total = left.sum(axis=-1, keepdims=True)
    return np.where(total > 0, left / np.where(total > 0, total, 1.0), p)  # for p = q nothing is ever rejected


def accepted_drafts(s: CloudState, p: np.ndarray, q: np.ndarray, first: int) -> int:
    """Return `accept` of p and q, each [K], with the session's draws for the positions from `first` on."""
    r = np.array([s.draw(first + i, "accept") for i in range(len(p))])
    accepted = int(accept(p, q, r))
    for i in range(min(accepted + 1, len(p)) if s.policy.sampled else 0):
        s.decisions.note(abs(p[i] / q[i] - r[i]) if q[i] > 0 else np.inf)
    return accepted


class Speculative:
    """Vanilla speculative decoding. Up in each round: at most `gamma` drafts. Down: the number accepted, and one token.

    With `residual: two-phase`, a rejection adds a second call. The drafts of a round always leave a position for the cloud's token.
    """

    def __init__(self, settings: SpeculativeSettings, pair: Pair) -> None:
        self.settings = settings
        self.vocab_size = pair.manifest.codebook_size

    def device(self, s: DeviceState) -> DeviceProgram:
        yield from open_session(s, 0)
        policy = s.policy
        while not s.done:
            first = len(s.tokens)
            weights: list[np.ndarray] = []  # each draft's distribution in wire precision, [V]
            for _ in range(min(self.settings.gamma, s.image_tokens - first - 1)):
                step = yield s.unfed("device")
                probs = policy.probs(step.logits.unsqueeze(0))[0].cpu().numpy()  # [V]
                weights.append(wire_weights(probs))
                s.note_arg_max(step.logits.unsqueeze(0))
                s.accept(s.pick(weights[-1], len(s.tokens), "draft"), FROM_DEVICE, step, picked=False)
            reply = yield Call(self.pack(s.tokens[first:], weights if policy.sampled else []))
            s.cut(first + reply.accepted)
            ids = reply.ids
            if not ids:  # rejected: the cloud needs the row
                ids = (yield Call(Row(pack_floats(weights[reply.accepted])))).ids
            s.accept(unpack_ids(ids)[0], FROM_CLOUD)
        yield Compute("image_decoder", s.tokens)

    def pack(self, drafts: Sequence[int], weights: Sequence[np.ndarray]) -> Drafts:
        """Return the message with the drafts, the weight of each, and the parts of their distributions that `residual` selects.

        weights: the distribution of each draft; empty under greedy decoding.
        """
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
        if isinstance(message, Row):  # second phase: replace the rejected draft
            p, s.held = s.held, None
            return self.next(s, 0, residual(p, unpack_floats(message.probs, self.vocab_size)[0].astype(np.float64)))
        assert isinstance(message, Drafts)
        drafts, first = unpack_ids(message.ids), len(s.tokens)
        s.accept(drafts)
        step = yield s.decide("all")
        sampled = s.policy.sampled
        p = s.policy.probs(step.logits).cpu().numpy()  # [K + 1, V]
        q = unpack_floats(message.weights, 1)[:, 0].astype(np.float64) if sampled else np.ones(len(drafts))  # [K]
        accepted = accepted_drafts(s, p[np.arange(len(drafts)), drafts], q, first)
        s.note_arg_max(step.logits[: accepted + 1])
        s.cut(first + accepted)
        probs = p[accepted]
        if accepted < len(drafts) and sampled:
            rows = self.rows(message)
            if rows is None:
                s.held = probs
                return Verdict(accepted)
            probs = residual(probs, rows[accepted])
        return self.next(s, accepted, probs)

    def next(self, s: CloudState, accepted: int, probs: np.ndarray) -> Verdict:
        """Draw the round's last token from `probs` [V], and return the reply that ends the round."""
        token = s.pick(probs, len(s.tokens), "token", "cloud")
        s.accept([token])
        return Verdict(accepted, pack_ids([token]))

    def rows(self, message: Drafts) -> np.ndarray | None:
        """Return the weights float64 [K, V] from which the drafts were drawn, or None if they were not sent."""
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

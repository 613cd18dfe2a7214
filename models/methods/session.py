"""State of a method's two programs, one object per side. They share no objects; the sides exchange only messages."""

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from models.sampling import draw_with_margin, filter_probs, greedy, greedy_margins, warp_probs
from models.tree import Tree
from simulator.core.rng import draws
from simulator.protocol.messages import Start, Started, pack_floats, pack_ids, unpack_floats, unpack_ids
from simulator.protocol.methods import Decoding
from simulator.protocol.ops import Call, Compute, Forward, Op, Send
from simulator.protocol.recording import FROM_CLOUD, FROM_FALLBACK, SCORES

NEAR_TIE = 1e-4  # in other batches, float32 changed a cumulative probability of the scenes pair by 4.4e-6 at most


@dataclass
class Decisions:
    """Counts the decisions of a session that rounding could reverse: draws, acceptance tests, thresholds, arg maxes.

    Not counted: the choice of drafts in a tree, the edges of top-k and top-p, and the first token of a greedy session with draft trees
    (counting it would change existing recordings).

    Attributes:
        count: decisions made.
        near_ties: those within NEAR_TIE of another outcome, in the unit of the compared values (a probability, a ratio,
            a score, a logit).
    """

    count: int = 0
    near_ties: int = 0

    def note(self, margin: float) -> None:
        """Count one decision; margin: its distance to another outcome."""
        self.count += 1
        self.near_ties += bool(margin < NEAR_TIE)


@dataclass(slots=True)
class Step:
    """The result of a forward pass: the token picked for the next position, and the values that the pick used.

    Attributes:
        token: the picked token (greedy or sampled, guided and filtered).
        logits: guided logits [V]; with `outputs="all"` [m, V], one row for each position that predicts an image token
            (the last caption slot and every token).
        hidden: [D], final-norm hidden state of the conditional row.
        scores: device pass: float32 [len(SCORES)]; else None.
        lower: device pass: lower bounds of the probability intervals, [V].
        upper: device pass: upper bounds, [V].
        radius: device pass: radii of the logits, [V].
        states: [rows, n, D], final-norm hidden states of every guidance row at the last new position; with
            `outputs="all"` at all new positions, including caption slots.
        nll: cloud pass: negative log-likelihood of the token in nats under the guided distribution at temperature 1.
        best: cloud pass: most likely token.
        margin: distance of the pick to another outcome, see `Decisions`.
    """

    token: int
    logits: torch.Tensor
    hidden: torch.Tensor
    scores: np.ndarray | None = None
    lower: torch.Tensor | None = None
    upper: torch.Tensor | None = None
    radius: torch.Tensor | None = None
    states: torch.Tensor | None = None
    nll: float = math.nan
    best: int = -1
    margin: float = math.inf

    def score(self, name: str) -> float:
        assert self.scores is not None
        return float(self.scores[SCORES.index(name)])


@dataclass(frozen=True)
class DecodingPolicy:
    """How the cloud picks a token from guided logits. Both sides know it; drafters use it, too."""

    sampled: bool  # False: the arg max
    guidance: float
    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "DecodingPolicy":
        """Return the policy of the mapping `Decoding.told`."""
        settings = dict(told)
        return cls(settings.pop("pick") == "sampled", **settings)

    @property
    def rows(self) -> int:
        """Sequences in a pass: 1 without guidance, 2 with it."""
        return 2 if self.guidance > 1 else 1

    def probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the distribution of the next token, float64 [n, V], from guided logits [n, V]; greedy: all mass on the arg max."""
        if not self.sampled:
            return torch.zeros_like(logits, dtype=torch.float64).scatter(-1, greedy(logits).unsqueeze(-1), 1.0)
        return filter_probs(logits.double(), *self._filter(len(logits)))

    def drafts(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of drafts in a tree, [n, V], from guided logits [n, V], after the filter chain of EAGLE and LANTERN.

        Under greedy decoding they are not filtered.
        """
        if not self.sampled:
            return logits.log_softmax(-1)
        return warp_probs(logits, *self._filter(len(logits))).log()

    def _filter(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (
            torch.full((count,), self.temperature),
            torch.full((count,), self.top_k),
            torch.full((count,), self.top_p),
        )


@dataclass
class ModelState:
    """One side of a session: the image's tokens so far, and how many of them are in the KV cache of the side's model."""

    image_tokens: int  # T
    caption_dim: int
    tokens: list[int] = field(default_factory=list)
    caption_rows: np.ndarray | None = None  # float32 [n, caption_dim], the valid rows
    bounds: str = ""  # `Forward.bounds` of every device pass
    decisions: Decisions = field(default_factory=Decisions)
    _fed: int = -1  # image tokens in the KV cache; -1: the caption has not been fed
    # Positions in the KV cache of the last draft tree's accepted nodes, and of decided tokens fed with it.
    _path: list[int] = field(default_factory=list)
    _stale: bool = False  # whether the KV cache holds more than `_fed` tokens, so that the next pass must roll it back
    _draws: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.image_tokens

    @property
    def key(self) -> tuple[int, str]:
        """Seed and caption, which key the session's random draws on both sides."""
        raise NotImplementedError

    def draw(self, position: int, *purpose: str) -> float:
        """Return the uniform draw in [0, 1) for a purpose and an image position. It is the same at any time and on both sides."""
        if purpose not in self._draws:
            seed, caption = self.key
            self._draws[purpose] = draws(seed, self.image_tokens + 1, *purpose, caption)
        return float(self._draws[purpose][position])

    @property
    def policy(self) -> DecodingPolicy:
        """How the cloud picks its tokens."""
        raise NotImplementedError

    def note_arg_max(self, logits: torch.Tensor) -> None:
        """Count the arg max of each row of logits [n, V] as a decision if the cloud decodes greedily."""
        if not self.policy.sampled:
            for margin in greedy_margins(logits).tolist():
                self.decisions.note(margin)

    def pick(self, probs: np.ndarray, position: int, *purpose: str) -> int:
        """Draw an id from weights float64 [V] with the draw of that position and purpose."""
        token, margin = draw_with_margin(probs, self.draw(position, *purpose))
        self.decisions.note(margin)
        return token

    def unfed(self, role: str, features: np.ndarray | None = None, outputs: Literal["last", "all"] = "last") -> Forward:
        """Return the pass that feeds all tokens that are not in the KV cache yet; the first pass also feeds the caption.

        The tokens then count as fed.

        Args:
            role: the model.
            features: float [n, D], interval features of the n tokens fed, or None.
            outputs: see `Forward`.
        """
        first, start = self._fed < 0, max(self._fed, 0)
        keep = start if self._stale else None
        self._fed, self._stale = len(self.tokens), False
        caption = self.caption_rows if first else None
        bounds = self.bounds if role == "device" else ""
        return Forward(
            role, self.tokens[start:], caption=caption, features=features, keep=keep, outputs=outputs, bounds=bounds
        )

    def cut(self, length: int) -> None:
        """Remove all tokens from position `length` on; the next pass rolls the KV cache back."""
        del self.tokens[length:]
        if length < self._fed:
            self._fed, self._stale = length, True

    def feed_tree(self, tree: Tree) -> Forward:
        """Return the cloud's pass over a draft tree whose root is the newest token.

        The pass first moves the cache entries that the last `keep_path` accepted to their places, and feeds the decided tokens before the
        root that are not in the cache. Its result is the root's; `revisit` requests other nodes.
        """
        held = self._fed + len(self._path)
        chain = self.tokens[held:-1]
        parents = _after(len(chain), tree.parents)
        tokens = [*chain, *tree.tokens]
        op = Forward("cloud", tokens, keep=self._fed, gather=self._path, tree=parents, outputs="some", chain=len(chain))
        self._fed, self._path = held, list(range(held, held + len(chain)))
        return op

    def revisit(self, tree: Tree, node: int) -> Forward:
        """Return the part of the pass over a draft tree for one node, to be run after those of its ancestors."""
        parents = _after(len(self._path), tree.parents[: node + 1])
        return Forward("cloud", tree.tokens[node : node + 1], tree=parents, outputs="some", revisit=True)

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Mark these nodes of the tree just fed as final, root first. The caller accepts their tokens."""
        first = self._fed + len(self._path)  # position of the root, after the decided tokens fed with the tree
        self._path = [*self._path, *(first + node for node in nodes)]


def _after(chain: int, parents: Sequence[int]) -> list[int]:
    """Return the parents of a chain of so many entries, followed by a tree whose root is the child of the chain's last entry."""
    return [*range(-1, chain - 1), *(parent + chain for parent in parents)]


@dataclass
class DeviceState(ModelState):
    """State of the device side: prompt, decoding settings and seed, and for each token who decided it and its scores."""

    caption: str = ""
    decoding: Decoding = field(default_factory=lambda: Decoding.model_validate({}))
    seed: int = 0
    decided_by: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, str]:
        return self.seed, self.caption

    @property
    def policy(self) -> DecodingPolicy:
        """How the cloud picks its tokens."""
        return DecodingPolicy.of(self.decoding.told)

    def accept(
        self, token: int, decided_by: int, step: Step | None = None, gate: float = math.nan, *, picked: bool = True
    ) -> None:
        """Append the token decided for the next position.

        Args:
            token: its id.
            decided_by: FROM_CLOUD, FROM_DEVICE or FROM_FALLBACK.
            step: the device's own pass for this position, whose scores are stored; or None.
            gate: the score that was compared with a threshold.
            picked: whether the token is the one that `step` picked.
        """
        if picked and step is not None and decided_by != FROM_CLOUD:
            self.decisions.note(step.margin)
        self.tokens.append(token)
        self.decided_by.append(decided_by)
        scores = (
            step.scores.copy()
            if step is not None and step.scores is not None
            else np.full(len(SCORES), np.nan, np.float32)
        )
        scores[-1] = gate
        self.scores.append(scores)

    def cut(self, length: int) -> None:
        super().cut(length)
        del self.decided_by[length:], self.scores[length:]

    def revise(self, position: int, token: int) -> None:
        """Replace an earlier token by the cloud's, and discard all later tokens. The replaced token's scores are kept."""
        scores = self.scores[position]
        self.cut(position)
        self.accept(token, FROM_CLOUD)
        self.scores[-1] = scores

    def start(self, count: int, want_caption: bool, deliver: str = "ids") -> Start:
        """Return the message that opens the session and requests the first `count` tokens."""
        return Start(self.caption, count, self.decoding.told, self.seed, want_caption, deliver)


@dataclass
class CloudState(ModelState):
    """State of the cloud side, which knows only the contents of messages.

    Attributes:
        opening: message that opened the session; it has the decoding settings and the seed.
        features: interval feature f^I [D] of each token, or None for zero.
        held: value that a method stores from one call to the next.
    """

    opening: Start | None = None
    features: list[np.ndarray | None] = field(default_factory=list)
    held: Any = None

    @property
    def key(self) -> tuple[int, str]:
        assert self.opening is not None, "the cloud has no seed before the session is opened"
        return self.opening.seed, self.opening.caption

    @property
    def policy(self) -> DecodingPolicy:
        """How tokens are picked here."""
        assert self.opening is not None, "the cloud has no decoding settings before the session is opened"
        return DecodingPolicy.of(self.opening.decoding)

    def open(self, message: Start) -> Generator[Op, Any, None]:
        """Process the opening message: store it and encode the caption."""
        self.opening = message
        self.caption_rows = yield Compute("caption_encoder", message.caption)

    def accept(self, tokens: list[int], features: np.ndarray | None = None) -> None:
        """Append tokens: the device's, with features [n, D] or None, or those just decided here."""
        self.tokens.extend(tokens)
        self.features.extend([None] * len(tokens) if features is None else list(features))

    def take(self, step: Step) -> None:
        """Append the token that a cloud pass picked."""
        self.decisions.note(step.margin)
        self.accept([step.token])

    def cut(self, length: int) -> None:
        super().cut(length)
        del self.features[length:]

    def decide(self, outputs: Literal["last", "all"] = "last") -> Forward:
        """Return the pass that predicts the next token; its inputs are E(x) + f^I of the tokens not fed yet (assumption A6)."""
        fresh = self.features[max(self._fed, 0) :]
        if all(feature is None for feature in fresh):
            return self.unfed("cloud", outputs=outputs)
        width = next(len(feature) for feature in fresh if feature is not None)
        zero = np.zeros(width, np.float32)
        return self.unfed("cloud", np.stack([zero if feature is None else feature for feature in fresh]), outputs)


def open_session(s: DeviceState, count: int) -> Generator[Op, Any, None]:
    """Open the session: request the first `count` tokens (prefix injection) and, unless the device encodes the caption, the caption rows.

    If neither is needed, the message is sent without waiting for a reply, so that it costs no round trip.
    """
    here = s.decoding.text_encoder == "device"
    start = s.start(count, want_caption=not here)
    if here and count == 0:
        yield Send(start)
    else:
        # The device cannot decode without caption rows, so it may stop waiting only if it has a caption encoder.
        reply: Started | None = yield Call(start, deadline=here)
        if reply is None:
            s.caption_rows = yield Compute("caption_encoder", s.caption)
            yield from finish_on_device(s)
            return
        for token in unpack_ids(reply.ids):
            s.accept(token, FROM_CLOUD)
        if not here:
            s.caption_rows = unpack_floats(reply.caption_rows, s.caption_dim)
    if here:
        s.caption_rows = yield Compute("caption_encoder", s.caption)


def finish_on_device(s: DeviceState, step: Step | None = None, gate: float = math.nan) -> Generator[Op, Any, None]:
    """Decode the rest of the image as `device-only` does, after a missed deadline (CIAR's off-line mode).

    Args:
        s: the device's state.
        step: the device's pass for the next position, if it has been run.
        gate: its score.
    """
    if step is not None:
        s.accept(step.token, FROM_FALLBACK, step, gate)
    while not s.done:
        following: Step = yield s.unfed("device")
        s.accept(following.token, FROM_FALLBACK, following)


def answer_start(s: CloudState, message: Start) -> Generator[Op, Any, Started]:
    """Run the cloud side of `open_session`: encode the caption, decide the first tokens, reply with what was requested."""
    yield from s.open(message)
    for _ in range(message.count):
        step: Step = yield s.decide()
        s.take(step)
    rows = pack_floats(s.caption_rows) if message.want_caption and s.caption_rows is not None else b""
    return Started(ids=pack_ids(s.tokens), caption_rows=rows)

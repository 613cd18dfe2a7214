"""State of a method's two programs, one object each. They share no reference: only messages pass between them."""

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

NEAR_TIE = 1e-4  # float32 in another batch moved a cumulative probability of the scenes pair by 4.4e-6 at most


@dataclass
class Decisions:
    """Decisions of a session that floating point could reverse: draws, acceptance tests, thresholds, arg maxes.

    The choice of drafts in a tree and the edges of top-k and top-p are not counted, nor a tie for the first token of a greedy session that
    drafts trees: counting it would change the recordings that exist.

    Attributes:
        count: decisions made.
        near_ties: those within NEAR_TIE of the opposite outcome, in units of what is compared (a probability, a ratio,
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
    """Result of a forward pass as its program sees it: the token picked for the next position, and what the pick used.

    Attributes:
        token: picked by the role's rule (greedy or sampled, guided and filtered).
        logits: guided, [V]; of a pass with `outputs="all"` [m, V], a row for each position that predicts an image token
            (the last caption slot and every token).
        hidden: [D], the conditional row's final-norm hidden state.
        scores: float32 [len(SCORES)] on the device, else None.
        lower: [V], lower bounds of the probability intervals, on the device.
        upper: [V], upper bounds, on the device.
        radius: [V], radii of the logits, on the device.
        states: [rows, n, D], final-norm hidden states of every guidance row at the last new position; with
            `outputs="all"` at all of them, caption slots included.
        nll: nats of the token under the guided distribution at temperature 1, of a cloud pass.
        best: most likely token, of a cloud pass.
        margin: distance of the pick from another token, see `Decisions`.
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
    """How the cloud picks a token from guided logits. Both sides know it, and draft with it."""

    sampled: bool  # else the arg max
    guidance: float
    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "DecodingPolicy":
        """told: as `Decoding.told` gives it."""
        settings = dict(told)
        return cls(settings.pop("pick") == "sampled", **settings)

    @property
    def rows(self) -> int:
        """Sequences in a pass: two with guidance."""
        return 2 if self.guidance > 1 else 1

    def probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Distribution of the next token: guided logits [n, V] -> float64 [n, V]; all mass on the arg max if not `sampled`."""
        if not self.sampled:
            return torch.zeros_like(logits, dtype=torch.float64).scatter(-1, greedy(logits).unsqueeze(-1), 1.0)
        return filter_probs(logits.double(), *self._filter(len(logits)))

    def drafts(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of drafts in a tree, [n, V], after the filter chain of EAGLE and LANTERN; unfiltered if not
        `sampled`."""
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
    """One model's side of a session: the tokens of the image so far and how many of them its KV cache holds."""

    image_tokens: int  # T
    caption_dim: int
    tokens: list[int] = field(default_factory=list)
    caption_rows: np.ndarray | None = None  # float32 [n, caption_dim], the valid rows
    bounds: str = ""  # of every device pass, see `Forward.bounds`
    decisions: Decisions = field(default_factory=Decisions)
    _fed: int = -1  # image tokens in the KV cache; -1: not even the caption
    # Accepted nodes of the last draft tree: where they stand in the KV cache.
    _path: list[int] = field(default_factory=list)
    _stale: bool = False  # whether the KV cache holds more than these, to be rolled back by the next pass
    _draws: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.image_tokens

    @property
    def key(self) -> tuple[int, str]:
        """Seed and caption, which key the session's random draws on both sides."""
        raise NotImplementedError

    def draw(self, position: int, *purpose: str) -> float:
        """The uniform draw in [0, 1) of one purpose for one image position; the same whenever and on whichever side."""
        if purpose not in self._draws:
            seed, caption = self.key
            self._draws[purpose] = draws(seed, self.image_tokens + 1, *purpose, caption)
        return float(self._draws[purpose][position])

    @property
    def policy(self) -> DecodingPolicy:
        """How the cloud picks its tokens."""
        raise NotImplementedError

    def note_arg_max(self, logits: torch.Tensor) -> None:
        """Count the cloud's choice of the most likely token in each row of logits [n, V], if it decodes greedily."""
        if not self.policy.sampled:
            for margin in greedy_margins(logits).tolist():
                self.decisions.note(margin)

    def pick(self, probs: np.ndarray, position: int, *purpose: str) -> int:
        """An id drawn from weights float64 [V] with the draw of that position and purpose."""
        token, margin = draw_with_margin(probs, self.draw(position, *purpose))
        self.decisions.note(margin)
        return token

    def unfed(self, role: str, features: np.ndarray | None = None, outputs: Literal["last", "all"] = "last") -> Forward:
        """The pass that brings the KV cache up to all tokens so far; the first one feeds the caption as well.

        features: float [n, D] for the n tokens fed, or None. On return the tokens count as fed.
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
        """Take back all tokens from position `length` on; the next pass rolls the KV cache back."""
        del self.tokens[length:]
        if length < self._fed:
            self._fed, self._stale = length, True

    def feed_tree(self, tree: Tree) -> Forward:
        """The cloud's pass over a draft tree whose root is the newest token, after those before it that its KV cache does not hold.

        What the last `keep_path` accepted is moved to its place first. The result is that of the root; `revisit` gives the others.
        """
        held = self._fed + len(self._path)
        chain = self.tokens[held:-1]
        parents = _after(len(chain), tree.parents)
        tokens = [*chain, *tree.tokens]
        op = Forward("cloud", tokens, keep=self._fed, gather=self._path, tree=parents, outputs="some", chain=len(chain))
        self._fed, self._path = held, list(range(held, held + len(chain)))
        return op

    def revisit(self, tree: Tree, node: int) -> Forward:
        """The part of the pass over a draft tree that is about one node; its ancestors come before it."""
        parents = _after(len(self._path), tree.parents[: node + 1])
        return Forward("cloud", tree.tokens[node : node + 1], tree=parents, outputs="some", revisit=True)

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Of the tree just fed these nodes are final, root first; their tokens are to be accepted by the caller."""
        first = self._fed + len(self._path)  # after the decided tokens that were fed with it
        self._path = [*self._path, *(first + node for node in nodes)]


def _after(chain: int, parents: Sequence[int]) -> list[int]:
    """Parents of a chain of so many entries and of a tree whose root hangs on its end."""
    return [*range(-1, chain - 1), *(parent + chain for parent in parents)]


@dataclass
class DeviceState(ModelState):
    """Device side: knows the prompt and the user's settings; collects the tokens, who decided each, and its scores."""

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
        """How the cloud will pick its tokens."""
        return DecodingPolicy.of(self.decoding.told)

    def accept(
        self, token: int, decided_by: int, step: Step | None = None, gate: float = math.nan, *, picked: bool = True
    ) -> None:
        """Append the token decided for the next position.

        Args:
            token: its id.
            decided_by: FROM_CLOUD, FROM_DEVICE or FROM_FALLBACK.
            step: the device's own pass there, whose scores are kept.
            gate: the score that was compared with a threshold.
            picked: the token is the one that `step` picked.
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
        """The cloud replaced an earlier token; later tokens are discarded, the device's scores there stay."""
        scores = self.scores[position]
        self.cut(position)
        self.accept(token, FROM_CLOUD)
        self.scores[-1] = scores

    def start(self, count: int, want_caption: bool, deliver: str = "ids") -> Start:
        """The message that opens the session and asks for the first `count` tokens."""
        return Start(self.caption, count, self.decoding.told, self.seed, want_caption, deliver)


@dataclass
class CloudState(ModelState):
    """Cloud side: knows only what messages contain.

    Attributes:
        opening: message that opened the session; it holds how to decide tokens (guidance, filters, pick, seed).
        features: per token, the interval feature f^I [D], or None for zero.
        held: what a method keeps from one call for the next.
    """

    opening: Start | None = None
    features: list[np.ndarray | None] = field(default_factory=list)
    held: Any = None

    @property
    def key(self) -> tuple[int, str]:
        assert self.opening is not None, "the cloud was asked for a draw before it was told the seed"
        return self.opening.seed, self.opening.caption

    @property
    def policy(self) -> DecodingPolicy:
        """How tokens are picked here."""
        assert self.opening is not None, "the cloud was asked before it was told how to decide"
        return DecodingPolicy.of(self.opening.decoding)

    def open(self, message: Start) -> Generator[Op, Any, None]:
        """Process the opening message: remember how to decide, encode the caption."""
        self.opening = message
        self.caption_rows = yield Compute("caption_encoder", message.caption)

    def accept(self, tokens: list[int], features: np.ndarray | None = None) -> None:
        """Tokens final for this image, from the device (with features [n, D]) or just decided here (without)."""
        self.tokens.extend(tokens)
        self.features.extend([None] * len(tokens) if features is None else list(features))

    def take(self, step: Step) -> None:
        """Accept the token that a pass picked here."""
        self.decisions.note(step.margin)
        self.accept([step.token])

    def cut(self, length: int) -> None:
        super().cut(length)
        del self.features[length:]

    def decide(self, outputs: Literal["last", "all"] = "last") -> Forward:
        """The pass that yields the next token's distribution: x + f^I for every token not yet seen (assumption A6)."""
        fresh = self.features[max(self._fed, 0) :]
        if all(feature is None for feature in fresh):
            return self.unfed("cloud", outputs=outputs)
        width = next(len(feature) for feature in fresh if feature is not None)
        zero = np.zeros(width, np.float32)
        return self.unfed("cloud", np.stack([zero if feature is None else feature for feature in fresh]), outputs)


def open_session(s: DeviceState, count: int) -> Generator[Op, Any, None]:
    """Start the session and, unless the caption is encoded on the device, wait for the caption rows.

    The cloud makes the first `count` tokens ("prefix injection" when CIAR asks). With nothing to wait for (a caption encoded here
    and no prefix) the start message is sent without awaiting an answer, so that it costs no round trip.
    """
    here = s.decoding.text_encoder == "device"
    start = s.start(count, want_caption=not here)
    if here and count == 0:
        yield Send(start)
    else:
        # Without the caption rows the device can do nothing, so only with its own caption encoder may it stop waiting.
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
    """Finish the image on the device after a missed deadline (CIAR's off-line mode), as `device-only` decodes.

    Args:
        step: the device's pass at the next position, if it has been made.
        gate: its score.
    """
    if step is not None:
        s.accept(step.token, FROM_FALLBACK, step, gate)
    while not s.done:
        following: Step = yield s.unfed("device")
        s.accept(following.token, FROM_FALLBACK, following)


def answer_start(s: CloudState, message: Start) -> Generator[Op, Any, Started]:
    """Cloud side of `open_session`: encode the caption, decide the first tokens, send back what was asked for."""
    yield from s.open(message)
    for _ in range(message.count):
        step: Step = yield s.decide()
        s.take(step)
    rows = pack_floats(s.caption_rows) if message.want_caption and s.caption_rows is not None else b""
    return Started(ids=pack_ids(s.tokens), caption_rows=rows)

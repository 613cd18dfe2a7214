"""What the two programs of a method hold, one state each; they share no reference. All that passes between them is a message."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from models.sampling import filter_probs, greedy, warp_probs
from models.tree import Tree
from simulator.core.rng import draws
from simulator.protocol.messages import Start, Started, pack_floats, unpack_floats, unpack_ids
from simulator.protocol.methods import Decoding
from simulator.protocol.ops import Call, Compute, Forward, Op, Send
from simulator.protocol.recording import FROM_CLOUD, FROM_FALLBACK, SCORES


@dataclass(slots=True)
class Step:
    """What a forward pass gives its program: the token picked for the next position, and what the pick rests on.

    token: picked by the role's rule (greedy or sampled, guided and filtered). scores: float32 [len(SCORES)] on the device, else
    None. hidden: [D], the conditional row's final-norm hidden state. logits: [V], guided. lower, upper: [V], the interval of
    probabilities, and radius: [V], of the logits, on the device. states: [rows, n, D], final-norm hidden states of the last new
    position of every guidance row; of a pass with `outputs="all"`, of all of them, caption slots included, and logits is [m, V]
    then, one row for each that predicts an image token (the last caption slot and every token). nll, best: of a pass of the cloud,
    the token's nats under the guided distribution at temperature 1, and the token that it puts first.
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

    def score(self, name: str) -> float:
        assert self.scores is not None
        return float(self.scores[SCORES.index(name)])


@dataclass(frozen=True)
class DecodingPolicy:
    """How the cloud picks a token from guided logits. Both sides know it, and draft by it."""

    sampled: bool  # else the arg max
    guidance: float
    temperature: float
    top_k: int
    top_p: float

    @property
    def rows(self) -> int:
        """Sequences in a pass: two with guidance."""
        return 2 if self.guidance > 1 else 1

    def laws(self, logits: torch.Tensor) -> torch.Tensor:
        """What a token is drawn from: guided logits [n, V] -> float64 [n, V]; with all mass on the arg max if not `sampled`."""
        if not self.sampled:
            return torch.zeros_like(logits, dtype=torch.float64).scatter(-1, greedy(logits).unsqueeze(-1), 1.0)
        return filter_probs(logits.double(), *self._filter(len(logits)))

    def drafts(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of drafts in a tree, [n, V]: behind the chain that EAGLE and LANTERN use, or behind none if not
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
    _fed: int = -1  # image tokens in the KV cache; -1: not even the caption
    _path: list[int] = field(
        default_factory=list
    )  # accepted nodes of the last draft tree: where they stand in the KV cache
    _stale: bool = False  # whether the KV cache holds more than these, to be rolled back by the next pass
    _draws: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.image_tokens

    @property
    def key(self) -> tuple[int, str]:
        """Seed and caption: what the session's random draws are named by, on both sides."""
        raise NotImplementedError

    def draw(self, position: int, *purpose: str) -> float:
        """The uniform draw in [0, 1) of one purpose for one image position, whenever and on whichever side it is asked for."""
        if purpose not in self._draws:
            seed, caption = self.key
            self._draws[purpose] = draws(seed, self.image_tokens + 1, *purpose, caption)
        return float(self._draws[purpose][position])

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

    def feed_tree(self, role: str, tree: Tree) -> Forward:
        """The pass over a draft tree whose root is the newest token, the only one that the KV cache does not hold.

        What the last `keep_path` accepted is moved to its place first.
        """
        assert len(self.tokens) == self._fed + len(self._path) + 1
        op = Forward(role, tree.tokens, keep=self._fed, gather=self._path, tree=tree.parents, outputs="all")
        self._fed, self._path = self._fed + len(self._path), []
        return op

    def keep_path(self, nodes: Sequence[int]) -> None:
        """Of the tree just fed these nodes are final, root first; their tokens are to be accepted by the caller."""
        self._path = [self._fed + node for node in nodes]


@dataclass
class DeviceState(ModelState):
    """Device side: knows the prompt and the user's settings; gathers the image, who decided each token, and its scores."""

    caption: str = ""
    decoding: Decoding = field(default_factory=lambda: Decoding.model_validate({}))
    seed: int = 0
    decided_by: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, str]:
        return self.seed, self.caption

    @property
    def target(self) -> DecodingPolicy:
        """How the cloud will pick its tokens."""
        d = self.decoding
        return DecodingPolicy(d.cloud == "sampled", d.guidance, d.temperature, d.top_k, d.top_p)

    def accept(self, token: int, decided_by: int, step: Step | None = None, gate: float = math.nan) -> None:
        """Token decided for the next position; step: the device's own pass there, whose scores are kept; gate: the one of them
        that was held against a threshold."""
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
        """The cloud decides an earlier position otherwise; what came after is void, the device's scores there stay."""
        scores = self.scores[position]
        self.cut(position)
        self.accept(token, FROM_CLOUD)
        self.scores[-1] = scores

    def start(self, count: int, want_caption: bool, deliver: str = "ids") -> Start:
        """The message that opens the session and asks for the first `count` tokens."""
        d = self.decoding
        decoding = {
            "guidance": d.guidance,
            "temperature": d.temperature,
            "top_k": d.top_k,
            "top_p": d.top_p,
            "pick": d.cloud,
        }
        return Start(self.caption, count, decoding, self.seed, want_caption, deliver)


@dataclass
class CloudState(ModelState):
    """Cloud side: knows only what messages told it. features: per token, the interval feature f^I [D] or None for zero.

    opening: the message that opened the session; it says how to decide tokens (guidance, filters, pick, seed).
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
    def target(self) -> DecodingPolicy:
        """How tokens are picked here."""
        assert self.opening is not None, "the cloud was asked before it was told how to decide"
        d = self.opening.decoding
        return DecodingPolicy(d["pick"] == "sampled", d["guidance"], d["temperature"], d["top_k"], d["top_p"])

    def open(self, message: Start) -> Generator[Op, Any, None]:
        """Take in the opening message: remember how to decide, encode the caption."""
        self.opening = message
        self.caption_rows = yield Compute("caption_encoder", message.caption)

    def accept(self, tokens: list[int], features: np.ndarray | None = None) -> None:
        """Tokens final for this image, from the device (with features [n, D]) or just decided here (without)."""
        self.tokens.extend(tokens)
        self.features.extend([None] * len(tokens) if features is None else list(features))

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
    """A deadline was missed: the device makes the rest of the image alone (CIAR's off-line mode), as `device-only` would go on.

    step: the device's pass at the next position, if it has been made; gate: its score.
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
        s.accept([step.token])
    rows = pack_floats(s.caption_rows) if message.want_caption and s.caption_rows is not None else b""
    return Started(ids=np.asarray(s.tokens, "<u2").tobytes(), caption_rows=rows)

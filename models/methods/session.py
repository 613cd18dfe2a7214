"""What the two programs of a method hold, one state each; they share no reference. All that passes between them is a message."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from simulator.messages import Start, Started, pack_floats, unpack_floats, unpack_ids
from simulator.methods import Decoding
from simulator.ops import Call, Compute, Forward, Op, Send
from simulator.recording import FROM_CLOUD, SCORES


@dataclass(slots=True)
class Step:
    """What a forward pass gives its program: the token picked for the next position, and what the pick rests on.

    token: picked by the role's rule (greedy or sampled, guided and filtered). scores: float32 [len(SCORES)] on the device, else
    None. hidden: [D], the conditional row's final-norm hidden state. logits: [V], guided. lower, upper: [V], the interval.
    """

    token: int
    logits: torch.Tensor
    hidden: torch.Tensor
    scores: np.ndarray | None = None
    lower: torch.Tensor | None = None
    upper: torch.Tensor | None = None

    def score(self, name: str) -> float:
        assert self.scores is not None
        return float(self.scores[SCORES.index(name)])


@dataclass
class ModelState:
    """One model's side of a session: the tokens of the image so far and how many of them its KV cache holds."""

    image_tokens: int  # T
    caption_dim: int
    tokens: list[int] = field(default_factory=list)
    caption_rows: np.ndarray | None = None  # float32 [n, caption_dim], the valid rows
    _fed: int = -1  # image tokens in the KV cache; -1: not even the caption

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.image_tokens

    def unfed(self, role: str, features: np.ndarray | None = None) -> Forward:
        """The pass that brings the KV cache up to all tokens so far; the first one feeds the caption as well.

        features: float [n, D] for the n tokens fed, or None. On return the tokens count as fed.
        """
        first = self._fed < 0
        tokens = self.tokens[max(self._fed, 0) :]
        self._fed = len(self.tokens)
        return Forward(role, tokens, caption=self.caption_rows if first else None, features=features)


@dataclass
class DeviceState(ModelState):
    """Device side: knows the prompt and the user's settings; gathers the image, who decided each token, and its scores."""

    caption: str = ""
    decoding: Decoding = field(default_factory=lambda: Decoding.model_validate({}))
    seed: int = 0
    decided_by: list[int] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def accept(self, token: int, decided_by: int, step: Step | None = None) -> None:
        """Token decided for the next position; step: the device's own pass there, whose scores are kept."""
        self.tokens.append(token)
        self.decided_by.append(decided_by)
        scores = step.scores if step is not None and step.scores is not None else np.full(len(SCORES), np.nan, np.float32)
        self.scores.append(scores)

    def start(self, count: int, want_caption: bool, deliver: str = "ids") -> Start:
        """The message that opens the session and asks for the first `count` tokens."""
        d = self.decoding
        decoding = {"guidance": d.guidance, "temperature": d.temperature, "top_k": d.top_k, "top_p": d.top_p, "pick": d.cloud}
        return Start(self.caption, count, decoding, self.seed, want_caption, deliver)


@dataclass
class CloudState(ModelState):
    """Cloud side: knows only what messages told it. features: per token, the interval feature f^I [D] or None for zero.

    opening: the message that opened the session; it says how to decide tokens (guidance, filters, pick, seed).
    """

    opening: Start | None = None
    features: list[np.ndarray | None] = field(default_factory=list)

    def open(self, message: Start) -> Generator[Op, Any, None]:
        """Take in the opening message: remember how to decide, encode the caption."""
        self.opening = message
        self.caption_rows = yield Compute("caption_encoder", message.caption)

    def accept(self, tokens: list[int], features: np.ndarray | None = None) -> None:
        """Tokens final for this image, from the device (with features [n, D]) or just decided here (without)."""
        self.tokens.extend(tokens)
        self.features.extend([None] * len(tokens) if features is None else list(features))

    def decide(self) -> Forward:
        """The pass that yields the next token's distribution: x + f^I for every token not yet seen (assumption A6)."""
        fresh = self.features[max(self._fed, 0) :]
        if all(feature is None for feature in fresh):
            return self.unfed("cloud")
        width = next(len(feature) for feature in fresh if feature is not None)
        zero = np.zeros(width, np.float32)
        return self.unfed("cloud", np.stack([zero if feature is None else feature for feature in fresh]))


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
        reply: Started = yield Call(start)
        for token in unpack_ids(reply.ids):
            s.accept(token, FROM_CLOUD)
        if not here:
            s.caption_rows = unpack_floats(reply.caption_rows, s.caption_dim)
    if here:
        s.caption_rows = yield Compute("caption_encoder", s.caption)


def answer_start(s: CloudState, message: Start) -> Generator[Op, Any, Started]:
    """Cloud side of `open_session`: encode the caption, decide the first tokens, send back what was asked for."""
    yield from s.open(message)
    for _ in range(message.count):
        step: Step = yield s.decide()
        s.accept([step.token])
    rows = pack_floats(s.caption_rows) if message.want_caption and s.caption_rows is not None else b""
    return Started(ids=np.asarray(s.tokens, "<u2").tobytes(), caption_rows=rows)

"""vvs: LANTERN on EAGLE-2's trees with skipped rounds, in which a path of the tree is accepted unverified and no message is sent.

Source: "VVS: Accelerating Speculative Decoding for Visual Autoregressive Generation via Partial Verification Skipping". The choice of
skipped rounds, and the drafter's inputs after them, follow its code.
"""

import itertools
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from models.pair import Pair
from models.tree import Tree
from simulator.protocol.messages import (
    DraftTree,
    Message,
    Start,
    Tokens,
    TreeAfter,
    pack_ids,
    unpack_ids,
)
from simulator.protocol.methods import VvsSettings
from simulator.protocol.ops import Call, CloudProgram, Emit, Op
from simulator.protocol.recording import FROM_DEVICE

from .eagle2 import Drafted
from .lantern import Lantern
from .session import CloudState, DeviceState

ALWAYS_VERIFIED = 5  # no round is skipped before the image has this many tokens
DECAY = 0.9  # factor between the weights of two depths in `path_similarity`


def path_similarity(paths: Sequence[Sequence[int]], codebook: Tensor, decay: float = DECAY) -> float:
    """Return the mean similarity of all pairs of paths; NaN for a single path.

    The similarity of two paths is the weighted sum over depth of the cosines of their code vectors, 0 after the end of either path. The
    weights are proportional to decay^depth and sum to one over the depths of the longest path.

    Args:
        paths: Tokens of each path, without the root.
        codebook: float [V, C].
        decay: Factor between the weights of two depths; 1: equal weights.

    Source: VVS's code, `exp_decay`.
    """
    if len(paths) < 2:
        return float("nan")
    longest = max(map(len, paths))
    vectors = torch.zeros(len(paths), longest, codebook.shape[1], dtype=torch.float64)  # [P, depth, C]
    for row, path in zip(vectors, paths, strict=True):
        row[: len(path)] = torch.nn.functional.normalize(codebook[list(path)].double().cpu(), dim=-1)
    weights = decay ** torch.arange(longest, dtype=torch.float64)
    cosines = torch.einsum("pdc,qdc,d->pq", vectors, vectors, weights / weights.sum())
    return float(torch.triu(cosines, diagonal=1).sum() / (len(paths) * (len(paths) - 1) / 2))


def unverified_path(tree: Tree, paths: Sequence[Sequence[int]], u: float) -> list[int]:
    """Return the tokens that a skipped round accepts: a random path, cut to the mean length of all paths.

    The mean is rounded down; the root is not included. Source: VVS's code.

    Args:
        tree: the draft tree.
        paths: its root-to-leaf paths.
        u: uniform draw in [0, 1) that selects the path.
    """
    length = sum(map(len, paths)) // len(paths) - 1
    chosen = paths[min(int(u * len(paths)), len(paths) - 1)]
    return [tree.tokens[node] for node in chosen[1 : length + 1]]


class Rounds:
    """Decides which rounds of an image are skipped, and the tokens accepted in them. It runs wherever the drafter runs."""

    def __init__(self, settings: VvsSettings, codebook: Tensor) -> None:
        self.settings, self.codebook = settings, codebook
        self.index = 0
        self.skipped = False  # whether the previous round was skipped

    def take(self, s: DeviceState | CloudState, tree: Tree) -> list[int]:
        """Return the tokens that the next round accepts unverified; none if the round is to be verified."""
        paths = tree.paths(ordered=s.policy.sampled)
        due = len(s.tokens) >= ALWAYS_VERIFIED and not self.skipped and self.due(s, tree, paths)
        self.index, self.skipped = self.index + 1, due
        if not due:
            return []
        taken = unverified_path(tree, paths, s.draw(len(s.tokens), "skip"))
        return taken[: s.image_tokens - len(s.tokens)]

    def due(self, s: DeviceState | CloudState, tree: Tree, paths: Sequence[Sequence[int]]) -> bool:
        """Whether the rule (VVS-U: interval, VVS-D: similarity of every second path) skips the next round."""
        if self.settings.similarity is None:
            return self.index % self.settings.every == 1
        tokens = [[tree.tokens[node] for node in path[1:]] for path in itertools.islice(paths, 0, None, 2)]
        found = path_similarity(tokens, self.codebook)
        s.decisions.note(abs(found - self.settings.similarity))
        return found >= self.settings.similarity


class Vvs(Lantern):
    """VVS. The tokens of a skipped round are sent with the next tree, and the cloud feeds both in one pass."""

    settings: VvsSettings

    def __init__(self, settings: VvsSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.codebook = pair.tokenizer.quantize.embedding.weight.detach()

    def draft(self, s: DeviceState) -> Generator[Op, Any, None]:
        drafting, rounds = self.drafting(s), Rounds(self.settings, self.codebook)
        fresh, features = yield from self.opened(s)
        unsent = list[int]()
        while not s.done:
            drafted = yield from drafting.grow(fresh, features)
            fresh = rounds.take(s, drafted.tree)
            if fresh:
                features, unsent = repeated(features, len(fresh)), unsent + fresh
                for token in fresh:
                    s.accept(token, FROM_DEVICE)
                continue
            reply = yield Call(self.pack_after(unsent, drafted))
            fresh = self.take_reply(s, drafted, reply)
            features, unsent = self.features(s, reply.features), []

    def pack_after(self, unsent: Sequence[int], drafted: Drafted) -> Message:
        """Return the message with the tree and the tokens before it that have not been sent."""
        packed = self.pack(drafted)
        return TreeAfter(pack_ids(unsent), packed.ids, packed.parents) if unsent else packed

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, TreeAfter):
            s.accept(unpack_ids(message.decided))
            message = DraftTree(message.ids, message.parents)
        assert isinstance(message, Start | DraftTree)
        return (yield from super().cloud(s, message))

    def draft_here(self, s: CloudState, features: Tensor) -> Generator[Op, Any, Message]:
        drafting, rounds, sent = self.drafting(s), Rounds(self.settings, self.codebook), 0
        while not s.done:
            fresh, sent = s.tokens[sent:], len(s.tokens)
            yield Emit(Tokens(pack_ids(fresh)))
            drafted = yield from drafting.grow(fresh, features)
            taken = rounds.take(s, drafted.tree)
            if taken:
                s.accept(taken)
                features = repeated(features, len(taken))
            else:
                _, _, features = yield from self.test(s, drafted)
        return Tokens(pack_ids(s.tokens[sent:]))


def repeated(features: Any, count: int) -> Any:
    """Repeat the last of the features [rows, n, D] `count` times, as the drafter's input after a round without a cloud pass."""
    return features[:, [-1] * count]

"""vvs: LANTERN on EAGLE-2's trees, with rounds that are not verified: a path of the tree is taken as it is, and no message is sent.

Source: "VVS: Accelerating Speculative Decoding for Visual Autoregressive Generation via Partial Verification Skipping"; which rounds are
skipped, and what the drafter is fed after them, as in its code.
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
from simulator.protocol.recording import FROM_CLOUD, FROM_DEVICE

from .eagle2 import Drafted
from .lantern import Lantern
from .session import CloudState, DeviceState

ALWAYS_VERIFIED = 5  # tokens of an image before which no round is skipped
DECAY = 0.9  # of the weight of a depth in `path_similarity`


def path_similarity(paths: Sequence[Sequence[int]], codebook: Tensor, decay: float = DECAY) -> float:
    """Mean similarity of all pairs of paths; NaN where there is one path alone.

    Of two paths: the cosines of their code vectors at each depth, 0 where one of them has ended, weighted by decay^depth; the weights of
    the longest path's depths add up to one.

    Args:
        paths: Tokens of each, the root left out.
        codebook: float [V, C].
        decay: 1 weighs all depths alike.

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
    """Tokens taken from a tree in a skipped round: one path, drawn with u in [0, 1), as long as paths are on average.

    The average is rounded down and the root left out. Source: VVS's code.
    """
    length = sum(map(len, paths)) // len(paths) - 1
    chosen = paths[min(int(u * len(paths)), len(paths) - 1)]
    return [tree.tokens[node] for node in chosen[1 : length + 1]]


class Rounds:
    """Which rounds of an image are skipped, and what is taken in them. Both sides can tell, so the drafter's place does not matter."""

    def __init__(self, settings: VvsSettings, codebook: Tensor) -> None:
        self.settings, self.codebook = settings, codebook
        self.index = 0
        self.skipped = False  # whether the round before was

    def take(self, s: DeviceState | CloudState, tree: Tree) -> list[int]:
        """Tokens of the next round that are taken unverified, none if the round is to be verified."""
        paths = tree.paths(ordered=s.policy.sampled)
        due = len(s.tokens) >= ALWAYS_VERIFIED and not self.skipped and self.due(s, tree, paths)
        self.index, self.skipped = self.index + 1, due
        if not due:
            return []
        taken = unverified_path(tree, paths, s.draw(len(s.tokens), "skip"))
        return taken[: s.image_tokens - len(s.tokens)]

    def due(self, s: DeviceState | CloudState, tree: Tree, paths: Sequence[Sequence[int]]) -> bool:
        if self.settings.similarity is None:
            return self.index % self.settings.every == 1
        tokens = [[tree.tokens[node] for node in path[1:]] for path in itertools.islice(paths, 0, None, 2)]
        found = path_similarity(tokens, self.codebook)
        s.decisions.note(abs(found - self.settings.similarity))
        return found >= self.settings.similarity


class Vvs(Lantern):
    """Tokens of a skipped round travel with the next tree, and the cloud feeds both in one pass."""

    settings: VvsSettings

    def __init__(self, settings: VvsSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.codebook = pair.tokenizer.quantize.embedding.weight.detach()

    def draft(self, s: DeviceState) -> Generator[Op, Any, None]:
        drafting, rounds = self.drafting(s), Rounds(self.settings, self.codebook)
        reply = yield Call(s.start(1, want_caption=False))
        fresh = unpack_ids(reply.ids)
        s.accept(fresh[0], FROM_CLOUD)
        features, unsent = self.features(s, reply.features), list[int]()
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
        """The tree, after tokens that the cloud has not been sent."""
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
    """The last of the features [rows, n, D], `count` times: what the drafter is fed in place of those that no pass has made."""
    return features[:, [-1] * count]

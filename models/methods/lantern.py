"""lantern and lantern-static: the draft test adds the probability of the nearest codes, so that more drafts are accepted. Lossy.

Source: Jang et al., "LANTERN: Accelerating Visual Autoregressive Models with Relaxed Speculative Decoding" (relaxed acceptance within
a bound delta on the total variation); Park et al., "LANTERN++" (static trees, and the multiplicative bound, here `lambda_`).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from models.pair import Pair
from models.sampling import wire_weights
from models.tree import Tree, top
from models.vq import Quantizer
from simulator.protocol.messages import DraftTree, pack_floats, pack_ids, unpack_floats, unpack_ids
from simulator.protocol.methods import STATIC_TREES, LanternSettings, LanternStaticSettings, RelaxedSettings
from simulator.protocol.ops import Forward, Op

from .eagle2 import Drafted, Drafting, DraftTest, Eagle2, normalised
from .session import CloudState, DeviceState

_TABLES: WeakKeyDictionary[Quantizer, np.ndarray] = WeakKeyDictionary()
_CHUNK = 512  # codes whose distances to all others are in memory at a time


def neighbours(codebook: Tensor, count: int) -> np.ndarray:
    """Return every code's nearest other codes by Euclidean distance, nearest first: uint16 [V, count].

    The codebook's rows are not normalised here, although LlamaGen looks codes up by normalised rows. At equal distances the lower id
    comes first. Source: LANTERN, latent proximity sets.

    Args:
        codebook: float [V, C].
        count: neighbours per code, less than V.
    """
    rows = codebook.double()
    squared = (rows**2).sum(-1)
    found = []
    for first in range(0, len(rows), _CHUNK):
        some = rows[first : first + _CHUNK]
        distance = squared[first : first + _CHUNK, None] - 2 * some @ rows.T + squared  # [n, V], squared
        distance[torch.arange(len(some)), torch.arange(first, first + len(some))] = torch.inf
        found.append(top(-distance, count).cpu())
    table: np.ndarray = torch.cat(found).numpy().astype(np.uint16)
    return table


def neighbour_table(pair: Pair, count: int) -> np.ndarray:
    """Return `neighbours` of the pair's codebook, computed once per codebook; uint16 [V, at least count]."""
    quantizer = pair.tokenizer.quantize
    if quantizer not in _TABLES or _TABLES[quantizer].shape[1] < count:
        _TABLES[quantizer] = neighbours(quantizer.embedding.weight.detach(), count)
    return _TABLES[quantizer]


@dataclass(frozen=True)
class Relaxation:
    """LANTERN's relaxed acceptance.

    Attributes:
        table: int [V, at least min(k + 1, V - 1)], nearest codes, see `neighbours`.
        k: number of nearest codes whose probability may be added.
        delta: bound on the added probability; None: lambda_ determines the bound.
        lambda_: the added probability is at most (lambda_ - 1) p(x).
        removes: "neighbours": a rejection removes the nearest codes too; "draft": only the draft.
    """

    table: np.ndarray
    k: int
    delta: float | None = None
    lambda_: float | None = None
    removes: Literal["neighbours", "draft"] = "neighbours"

    def relaxed_accept(self, p: np.ndarray, token: int) -> tuple[float, np.ndarray]:
        """Return the relaxed probability p'(x) of a draft x, and the codes that its rejection removes in addition to x.

        C_j is the sum of the probabilities of the j nearest codes. For the largest j <= k with C_j within the bound,
        p'(x) = p(x) + C_j; if there is none, p'(x) = p(x). A rejection removes the k + 1 nearest codes if j >= 1, else none; none with
        `removes` "draft". Source: the relaxed acceptance is LANTERN's equation; the codes that a rejection removes are those of its code.

        Args:
            p: float64 [V], the cloud's distribution.
            token: x.
        """
        near = self.table[token]
        mass = np.cumsum(p[near[: self.k]])
        bound = self.delta if self.delta is not None else ((self.lambda_ or 1.0) - 1.0) * p[token]
        j = int(np.searchsorted(mass, bound, side="right"))
        if j == 0:
            return float(p[token]), near[:0]
        return float(p[token] + mass[j - 1]), near[: self.k + 1 if self.removes == "neighbours" else 0]

    def relaxed_best(self, logits: Tensor, token: int) -> bool:
        """Whether the draft is the arg max after p'(x) replaces p(x) (greedy acceptance). logits: [V], unfiltered.

        Source: LANTERN's code, greedy.
        """
        p = logits.double().softmax(-1).cpu().numpy()
        p[token] = self.relaxed_accept(p, token)[0]
        return int(p.argmax()) == token


@dataclass(frozen=True)
class ChosenTest:
    """LANTERN's test of a deterministic draft (q = 1): accept iff r < p'(x). A rejection removes x and `relaxed_accept`'s codes from p."""

    relaxation: Relaxation
    tree: Tree

    def ratio(self, p: np.ndarray, node: int) -> float:
        return self.relaxation.relaxed_accept(p, self.tree.tokens[node])[0]

    def rejected(self, p: np.ndarray, node: int) -> np.ndarray:
        token = self.tree.tokens[node]
        _, others = self.relaxation.relaxed_accept(p, token)
        p = p.copy()
        p[token] = 0.0
        p[others] = 0.0
        return normalised(p)


class DrawnTest:
    """LANTERN's test of a draft drawn without replacement: accept iff r < p'(x) / q'(x).

    q'(x) is the probability of the draw, given the earlier siblings. After a rejection, p becomes norm(max(p - w, 0)). w is q without the
    earlier siblings, renormalised, then set to 0 at the codes that `relaxed_accept` removes. A draft with q'(x) = 0 is skipped.
    Source: LANTERN's code for static trees (EAGLE's sampling without replacement).
    """

    def __init__(self, relaxation: Relaxation, drafted: Drafted) -> None:
        assert drafted.weights is not None
        assert drafted.rows is not None
        self.relaxation, self.tree, self.weights, self.rows = relaxation, drafted.tree, drafted.weights, drafted.rows
        self.row_of = {parent: row for row, parent in enumerate(dict.fromkeys(self.tree.parents[1:]))}

    def ratio(self, p: np.ndarray, node: int) -> float:
        if self.weights[node] <= 0:
            return 0.0
        return self.relaxation.relaxed_accept(p, self.tree.tokens[node])[0] / float(self.weights[node])

    def rejected(self, p: np.ndarray, node: int) -> np.ndarray:
        if self.weights[node] <= 0:
            return p
        tokens, parents = self.tree.tokens, self.tree.parents
        _, others = self.relaxation.relaxed_accept(p, tokens[node])
        w = self.rows[self.row_of[parents[node]]].copy()
        w[[tokens[other] for other in range(parents[node] + 1, node) if parents[other] == parents[node]]] = 0.0
        w = w / w.sum()
        w[others] = 0.0
        return normalised(np.maximum(p - w, 0.0))


class Lantern(Eagle2):
    """EAGLE-2 with relaxed acceptance."""

    def __init__(self, settings: LanternSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.relaxation = relaxation(settings, pair)

    def draft_test(self, drafted: Drafted) -> DraftTest:
        return ChosenTest(self.relaxation, drafted.tree)

    def accepts(self, logits: Tensor, token: int) -> bool:
        return self.relaxation.relaxed_best(logits, token)


def relaxation(settings: RelaxedSettings, pair: Pair) -> Relaxation:
    """Return the relaxed acceptance of the settings in the pair's codebook."""
    count = min(settings.k + 1, pair.manifest.codebook_size - 1)
    table = neighbour_table(pair, count)
    return Relaxation(table, settings.k, settings.absolute_bound, settings.lambda_, settings.removes)


# --- static trees


def static_parents(child_counts: Sequence[Sequence[int]]) -> list[int]:
    """Return the parents of a tree's nodes, level by level.

    child_counts: the numbers of children of each level's nodes, root level first; nodes missing at the end of a level have none.
    """
    parents, level = [-1], [0]
    for counts in child_counts:
        following: list[int] = []
        for node, count in zip(level, counts, strict=False):
            following += range(len(parents), len(parents) + count)
            parents += [node] * count
        level = following
    return parents


class StaticDrafting(Drafting):
    """Drafting of a fixed tree: each inner node's children are drawn without replacement from the drafter's distribution.

    Under greedy decoding they are the most likely tokens. Distributions are rounded to wire precision before the draws.
    """

    def __init__(self, parents: Sequence[int], s: DeviceState | CloudState) -> None:
        super().__init__(s)
        self.parents = list(parents)

    def grow(self, tokens: Sequence[int], features: Any) -> Generator[Op, Any, Drafted]:
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents[1:], start=1):
            children.setdefault(parent, []).append(node)
        ids, weights = [tokens[-1], *[0] * (len(self.parents) - 1)], np.zeros(len(self.parents))
        rows: dict[int, np.ndarray] = {}
        states: dict[int, Tensor] = {}  # the drafter's output [rows, D] at each inner node
        fed: list[int] = []  # inner nodes without the root, in the order in which they were fed
        step = yield self.committed(tokens, features)
        level, logits, depth = [0], step.logits.unsqueeze(0), 0
        while level:
            probs = self.policy.drafts(logits).double().exp().cpu().numpy()  # [n, V]
            for at, node in enumerate(level):
                states[node] = step.states[:, at]
                rows[node] = wire_weights(probs[at])
                if self.policy.sampled:
                    self.draw_children(children[node], rows[node], depth, ids, weights)
                else:
                    best = top(torch.from_numpy(probs[at]), len(children[node])).tolist()
                    ids[children[node][0] : children[node][0] + len(best)] = best
            level, depth = [child for node in level for child in children[node] if child in children], depth + 1
            if level:
                fed += level
                tree = [-1 if self.parents[node] == 0 else fed.index(self.parents[node]) for node in fed]
                given = torch.stack([states[self.parents[node]] for node in level], dim=1)  # [rows, n, D]
                tokens_fed = [ids[node] for node in level]
                step = yield Forward("drafter", tokens_fed, features=given, tree=tree, outputs="all", decides=False)
                logits = step.logits
        tree_drafted = Tree(ids, self.parents)
        if not self.policy.sampled:
            return Drafted(tree_drafted)
        return Drafted(tree_drafted, weights, np.stack([rows[node] for node in sorted(rows)]))

    def draw_children(
        self, nodes: Sequence[int], row: np.ndarray, depth: int, ids: list[int], weights: np.ndarray
    ) -> None:
        """Draw the tokens of one node's children without replacement, and set the conditional probability of each draw.

        If the filter leaves fewer tokens than there are children, the remaining children keep weight zero.

        Args:
            nodes: the children.
            row: weights [V].
            depth: of their parent.
            ids: tokens of all nodes, changed in place.
            weights: conditional probabilities of all nodes, changed in place.
        """
        left = row.copy()
        position = min(len(self.state.tokens) + depth, self.state.image_tokens)
        for node in nodes:
            total = left.sum()
            if total > 0:
                ids[node] = self.state.pick(left, position, "draft", str(node))
                weights[node] = float(np.float16(left[ids[node]] / total))  # wire precision
                left[ids[node]] = 0.0


class LanternStatic(Eagle2):
    """LANTERN++ on a fixed tree that both sides know. Up: the ids, their conditional probabilities and their distributions."""

    def __init__(self, settings: LanternStaticSettings, pair: Pair) -> None:
        super().__init__(settings, pair)
        self.relaxation = relaxation(settings, pair)
        self.vocab_size = pair.manifest.codebook_size
        self.parents = static_parents(STATIC_TREES[settings.tree])

    def drafting(self, s: DeviceState | CloudState) -> Drafting:
        return StaticDrafting(self.parents, s)

    def pack(self, drafted: Drafted) -> DraftTree:
        ids = pack_ids(drafted.tree.tokens[1:])
        if drafted.weights is None or drafted.rows is None:
            return DraftTree(ids)
        return DraftTree(ids, weights=pack_floats(drafted.weights[1:]), rows=pack_floats(drafted.rows))

    def unpack(self, root: int, message: DraftTree) -> Drafted:
        tree = Tree([root, *unpack_ids(message.ids)], self.parents)
        if not message.rows:
            return Drafted(tree)
        weights = np.append(0.0, unpack_floats(message.weights, 1)[:, 0].astype(np.float64))
        return Drafted(tree, weights, unpack_floats(message.rows, self.vocab_size).astype(np.float64))

    def draft_test(self, drafted: Drafted) -> DraftTest:
        return DrawnTest(self.relaxation, drafted)

    def accepts(self, logits: Tensor, token: int) -> bool:
        return self.relaxation.relaxed_best(logits, token)

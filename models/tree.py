"""Draft trees: their growth, re-ranking, attention masks and root-to-leaf paths.

Source: Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", sections 4.1 (expansion) and 4.2
(re-ranking). A tree is a list of tokens and a list of parents. Node 0 is the root, the newest decided token, with parent -1. A
parent's index is always below its child's. Of equal scores the lower index comes first, so that with every kept node its parent is
kept, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """A draft tree.

    Attributes:
        tokens: token of each of the N nodes, root first.
        parents: index of each node's parent, -1 for the root.
    """

    tokens: list[int]
    parents: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def paths(self, ordered: bool) -> list[list[int]]:
        """Return the root-to-leaf paths as node indices. Their order determines which sibling is tried first.

        Args:
            ordered: sort lexicographically: the reference's order for sampling. Otherwise the paths are in the order of their leaves:
                the reference's order for greedy decoding.
        """
        inner = set(self.parents)
        found = []
        for leaf in (node for node in range(len(self)) if node not in inner):
            path = [leaf]
            while self.parents[path[-1]] >= 0:
                path.append(self.parents[path[-1]])
            found.append(path[::-1])
        return sorted(found) if ordered else found


@lru_cache(maxsize=1024)
def layout(parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return each node's depth, int64 [N], and the nodes it attends to, bool [N, N]: its ancestors and itself."""
    depth, sees = np.zeros(len(parents), np.int64), np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        assert -1 <= parent < node, f"node {node} has parent {parent}"
        if parent >= 0:
            depth[node] = depth[parent] + 1
            sees[node] |= sees[parent]
    return torch.from_numpy(depth), torch.from_numpy(sees)


def top(scores: Tensor, k: int) -> Tensor:
    """Return the indices int64 [..., k] of the k largest scores [..., n], best first; of equal scores the lower index comes first."""
    value, index = scores.topk(min(k + 1, scores.shape[-1]), dim=-1)  # one more, to detect a tie at the cut
    if bool((value[..., 1:] == value[..., :-1]).any()):
        index = scores.sort(dim=-1, descending=True, stable=True).indices
    return index[..., :k]


@dataclass
class Growth:
    """A growing draft tree: in each level, the `top_k` best nodes (the beam) are expanded by their `top_k` best children.

    Attributes:
        top_k: K.
        tokens: tokens of all recorded nodes, in recording order.
        parents: parents of the recorded nodes, as indices of recorded nodes; -1 is the root.
        scores: sum of log q from the root to each recorded node, one tensor per level.
        fed: recorded nodes of all beams so far, in the order in which the drafter processes them.
        fed_parents: parents of the nodes in `fed`, as indices into `fed`; -1 is the root.
        beam_rows: for each node of the beam, the row of the drafter's last output [K, ...] that is its feature: its parent's.
    """

    top_k: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    fed_parents: list[int] = field(default_factory=list)
    beam_rows: list[int] = field(default_factory=list)

    def begin(self, log_q: Tensor) -> None:
        """Add the root's children. log_q: [V], the drafter's log-distribution after the root."""
        best = top(log_q, self.top_k)  # [K]
        self.tokens, self.parents = best.tolist(), [-1] * len(best)
        self.scores = [log_q[best]]
        self.fed, self.fed_parents = list(range(len(best))), [-1] * len(best)
        self.beam_rows = [0] * len(best)

    @property
    def beam(self) -> list[int]:
        """The recorded nodes that the drafter processes next."""
        return self.fed[len(self.fed) - len(self.beam_rows) :]

    def grow(self, log_q: Tensor) -> None:
        """Add the beam's children. log_q: [K, V], the drafter's log-distributions after the beam's nodes, in the beam's order."""
        beam, first = self.beam, len(self.tokens)
        best = top(log_q, self.top_k)  # [K, K]
        scores = torch.cat(self.scores)[beam].unsqueeze(-1) + log_q.gather(-1, best)  # [K, K]
        self.tokens += best.flatten().tolist()
        self.parents += [node for node in beam for _ in range(best.shape[1])]
        self.scores.append(scores.flatten())
        chosen = top(scores.flatten(), self.top_k).tolist()  # the next beam, among this level's nodes
        self.beam_rows = [node // best.shape[1] for node in chosen]
        base = len(self.fed) - len(beam)
        self.fed_parents += [base + row for row in self.beam_rows]
        self.fed += [first + node for node in chosen]

    def best(self, root: int, total_tokens: int) -> Tree:
        """Return the tree of the root and the best total_tokens - 1 recorded nodes (re-ranking), in recording order."""
        kept = sorted(top(torch.cat(self.scores), total_tokens - 1).tolist())
        place = {-1: 0, **{node: index for index, node in enumerate(kept, start=1)}}
        return Tree([root] + [self.tokens[node] for node in kept], [-1] + [place[self.parents[node]] for node in kept])


def accepted_children(paths: Sequence[Sequence[int]], prefix: Sequence[int]) -> list[int]:
    """Return the nodes that follow `prefix` (a path from the root) in any of the paths, each once, in the paths' order."""
    length = len(prefix)
    found = (path[length] for path in paths if len(path) > length and list(path[:length]) == list(prefix))
    return list(dict.fromkeys(found))

"""Trees of drafted tokens: growing them, keeping the best nodes, what each node may see, and their root-to-leaf paths.

Source: Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", sections 4.1 (expansion) and 4.2
(re-ranking). A tree is a list of tokens and a list of parents; node 0 is the root, the newest decided token, with parent -1, and
a parent's index is always below its child's. Where scores are equal the lower index goes first, so that the nodes kept are
closed under parents whatever the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """A tree of drafted tokens.

    Attributes:
        tokens: of its N nodes, the root's first.
        parents: index of each node's parent, -1 for the root.
    """

    tokens: list[int]
    parents: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def paths(self, ordered: bool) -> list[list[int]]:
        """Root-to-leaf paths as node indices; in the leaves' order, or `ordered`: lexicographically, a path that goes on first.

        The order decides which sibling is tried first: `ordered` is the reference's for sampling, the leaves' that for greedy.
        """
        inner = set(self.parents)
        found = []
        for leaf in (node for node in range(len(self)) if node not in inner):
            path = [leaf]
            while self.parents[path[-1]] >= 0:
                path.append(self.parents[path[-1]])
            found.append(path[::-1])
        if ordered:
            longest = max(len(path) for path in found)
            found.sort(key=lambda path: path + [len(self)] * (longest - len(path)))
        return found


@lru_cache(maxsize=1024)
def layout(parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Depth of each node, int64 [N], and which nodes each one sees, bool [N, N]: its ancestors and itself."""
    depth, sees = np.zeros(len(parents), np.int64), np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        assert -1 <= parent < node, f"node {node} has parent {parent}"
        if parent >= 0:
            depth[node] = depth[parent] + 1
            sees[node] |= sees[parent]
    return torch.from_numpy(depth), torch.from_numpy(sees)


def top(scores: Tensor, k: int) -> Tensor:
    """Indices int64 [..., k] of the k largest scores [..., n], best first; of equal ones the lower index first."""
    value, index = scores.topk(min(k + 1, scores.shape[-1]), dim=-1)  # one more: what it ties with may be left out
    if bool((value[..., 1:] == value[..., :-1]).any()):
        index = scores.sort(dim=-1, descending=True, stable=True).indices
    return index[..., :k]


@dataclass
class Growth:
    """A tree being grown: level by level, the `top_k` best nodes of a level are expanded by their `top_k` best children.

    Attributes:
        top_k: K.
        tokens: of all recorded nodes, in recording order.
        parents: of them, indices among recorded nodes, -1: the root.
        scores: log q summed from the root, a tensor per level.
        fed: recorded nodes that were or are in a beam, in the order they are fed.
        fed_parents: parent of each of these, index into `fed`, -1: the root.
        beam_rows: of each node of the beam, the row of the drafter's last output [K, ...] that is its feature: its parent's.
    """

    top_k: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    fed_parents: list[int] = field(default_factory=list)
    beam_rows: list[int] = field(default_factory=list)

    def begin(self, log_q: Tensor) -> None:
        """The root's children. log_q: [V], the drafter's log-distribution after the root."""
        best = top(log_q, self.top_k)  # [K]
        self.tokens, self.parents = best.tolist(), [-1] * len(best)
        self.scores = [log_q[best]]
        self.fed, self.fed_parents = list(range(len(best))), [-1] * len(best)
        self.beam_rows = [0] * len(best)

    @property
    def beam(self) -> list[int]:
        """The recorded nodes to feed next."""
        return self.fed[len(self.fed) - len(self.beam_rows) :]

    def grow(self, log_q: Tensor) -> None:
        """The beam's children. log_q: [K, V], the drafter's log-distributions after the beam's nodes, in its order."""
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
        """Re-ranking: the best total_tokens - 1 recorded nodes after the root, in recording order."""
        kept = sorted(top(torch.cat(self.scores), total_tokens - 1).tolist())
        place = {-1: 0, **{node: index for index, node in enumerate(kept, start=1)}}
        return Tree([root] + [self.tokens[node] for node in kept], [-1] + [place[self.parents[node]] for node in kept])


def accepted_children(paths: Sequence[Sequence[int]], prefix: Sequence[int]) -> list[int]:
    """Nodes that continue `prefix` (a path from the root) in any of the paths, each once, in the paths' order."""
    length = len(prefix)
    found = (path[length] for path in paths if len(path) > length and list(path[:length]) == list(prefix))
    return list(dict.fromkeys(found))

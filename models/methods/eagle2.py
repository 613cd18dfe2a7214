"""eagle2: a feature-level drafter grows a tree of drafts, the cloud tests the whole tree in one pass; the law is the cloud's own.

Source: Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees"; drafter and details of LANTERN's port to
LlamaGen (see `models/eagle.py`). Growing and re-ranking are in `models/tree.py`.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from models.pair import Pair
from models.sampling import draw, greedy
from models.tree import Growth, Tree, accepted_children
from simulator.protocol.messages import (
    DraftTree,
    Message,
    Opened,
    Path,
    Start,
    Tokens,
    pack_floats,
    pack_ids,
    unpack_floats,
    unpack_ids,
)
from simulator.protocol.methods import DrafterSettings, TreeSettings
from simulator.protocol.ops import Await, Call, CloudProgram, Compute, DeviceProgram, Emit, Forward, Op, Send
from simulator.protocol.recording import FROM_CLOUD, FROM_DEVICE

from .session import CloudState, DecodingPolicy, DeviceState

# A draft on trial: target's law p [V] as earlier siblings left it, node number, uniform draw -> None where it is accepted, else p as
# its rejection leaves it.
Trial = Callable[[np.ndarray, int, float], np.ndarray | None]
# Whether a drafted token is accepted under greedy decoding, given the target's logits [V].
Accepts = Callable[[Tensor, int], bool]


@dataclass(frozen=True)
class Drafted:
    """A tree of drafts and, where they were drawn and not chosen, their laws.

    weights: float64 [N], conditional probability of each node's draw among its siblings'. rows: float64 [inner nodes, V], weights
    of the laws that inner nodes' children were drawn from, inner nodes in order. Both None for chosen drafts.
    """

    tree: Tree
    weights: np.ndarray | None = None
    rows: np.ndarray | None = None


def normalised(p: np.ndarray) -> np.ndarray:
    """p [V] with sum one; uniform if nothing is left of it, as in the reference."""
    total = p.sum()
    return p / total if total > 0 else np.full_like(p, 1 / len(p))


def own_trial(tree: Tree) -> Trial:
    """Accept a child x iff r <= p(x), for drafts count as deterministic (q = 1); else strike x from p.

    Every token comes out with the target's law. Source: EAGLE-2's posterior evaluation, sampling.
    """

    def trial(p: np.ndarray, node: int, r: float) -> np.ndarray | None:
        token = tree.tokens[node]
        if r <= p[token]:
            return None
        p = p.copy()
        p[token] = 0.0
        return normalised(p)

    return trial


def is_best(logits: Tensor, token: int) -> bool:
    """Greedy acceptance: the draft is the target's arg max."""
    return int(greedy(logits)) == token


def verify(
    paths: Sequence[Sequence[int]], law: Callable[[int], np.ndarray], r: Callable[[int, int], float], trial: Trial
) -> tuple[list[int], np.ndarray]:
    """Walk down from the root: the children of a node are on trial one after another until one is accepted.

    paths: root-to-leaf paths of the tree, whose order is that of the trials. law: target's distribution float64 [V] behind a node.
    r: uniform draw for (depth of the parent, number of the sibling tried).
    Returns the accepted nodes, root first, and the distribution [V] of the next token: p as the rejections left it, or untouched
    behind a leaf. Source: EAGLE-2's posterior evaluation, sampling; LANTERN's alike.
    """
    nodes = [0]
    while True:
        p = law(nodes[-1])
        for sibling, child in enumerate(accepted_children(paths, nodes)):
            left = trial(p, child, r(len(nodes) - 1, sibling))
            if left is None:
                nodes.append(child)
                break
            p = left
        else:
            return nodes, p


def verify_greedy(
    tree: Tree, paths: Sequence[Sequence[int]], logits: Tensor, accepts: Accepts = is_best
) -> tuple[list[int], int]:
    """The path with the most accepted nodes from the root on, the first of equal ones; and the token that follows it.

    logits: [N, V], the target's behind every node. Source: EAGLE-2's posterior evaluation, greedy; LANTERN's alike.
    """
    passed = [True]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        passed.append(passed[parent] and accepts(logits[parent], token))
    best = [0]
    for path in paths:
        length = next((i for i, node in enumerate(path) if not passed[node]), len(path))
        if length > len(best):
            best = list(path[:length])
    return best, int(greedy(logits[best[-1]]))


class Drafting:
    """The drafter's side of a session, wherever it runs. Its cache keeps the committed positions; a tree's entries are dropped."""

    def __init__(self, settings: TreeSettings, target: DecodingPolicy) -> None:
        self.settings = settings
        self.target = target
        self._held = -1  # image positions in the cache; -1: not even the caption

    def grow(self, tokens: Sequence[int], features: Any) -> Generator[Op, Any, Drafted]:
        """A tree behind the newest tokens, which the drafter has not seen.

        features: float [rows, n, D], the cloud model's at the position before each token; on the first call, of the caption
        positions, when the one token is the image's first.
        """
        growth = Growth(self.settings.top_k)
        step = yield self.committed(tokens, features)
        growth.begin(self.target.drafts(step.logits.unsqueeze(0))[0])
        for _ in range(self.settings.depth):
            beam = [growth.tokens[node] for node in growth.beam]
            states = step.states[:, growth.beam_rows]  # [rows, K, D], the outputs behind the nodes' parents
            step = yield Forward(
                "drafter", beam, features=states, tree=list(growth.fed_parents), outputs="all", decides=False
            )
            growth.grow(self.target.drafts(step.logits))
        return Drafted(growth.best(tokens[-1], self.settings.total_tokens))

    def committed(self, tokens: Sequence[int], features: Any) -> Forward:
        """The pass over decided tokens."""
        if self._held < 0:
            op = Forward("drafter", tokens, caption=features, decides=False)
        else:
            op = Forward("drafter", tokens, features=features, keep=self._held, decides=False)
        self._held = max(self._held, 0) + op.new_positions
        return op


class Eagle2:
    """A round: a tree up; an accepted path, the token that follows and the path's features down. With the drafter in the cloud
    only tokens travel. Lantern is this with other trials."""

    def __init__(self, settings: DrafterSettings, pair: Pair) -> None:
        self.settings = settings
        self.dim = pair.manifest.cloud.dim
        self.caption_slots = pair.manifest.caption_slots

    # --- what variants replace

    def drafting(self, s: DeviceState | CloudState) -> Drafting:
        assert isinstance(self.settings, TreeSettings)
        return Drafting(self.settings, s.target)

    def pack(self, drafted: Drafted) -> DraftTree:
        tree = drafted.tree
        return DraftTree(pack_ids(tree.tokens[1:]), bytes(tree.parents[1:]))

    def unpack(self, root: int, message: DraftTree) -> Drafted:
        return Drafted(Tree([root, *unpack_ids(message.ids)], [-1, *message.parents]))

    def trial(self, drafted: Drafted) -> Trial:
        return own_trial(drafted.tree)

    def accepts(self, logits: Tensor, token: int) -> bool:
        return is_best(logits, token)

    # --- device

    def device(self, s: DeviceState) -> DeviceProgram:
        if self.settings.drafter == "cloud":
            handle = yield Send(s.start(s.image_tokens, want_caption=False, deliver="stream"))
            reply = yield Await(handle)
            for part in (*handle.parts, reply):
                for token in unpack_ids(part.ids):
                    s.accept(token, FROM_CLOUD)
        else:
            yield from self.draft(s)
        yield Compute("image_decoder", s.tokens)

    def draft(self, s: DeviceState) -> Generator[Op, Any, None]:
        """All rounds with the drafter on the device."""
        drafting = self.drafting(s)
        reply = yield Call(s.start(1, want_caption=False))
        fresh = unpack_ids(reply.ids)
        s.accept(fresh[0], FROM_CLOUD)
        while not s.done:
            features = unpack_floats(reply.features, self.dim).reshape(s.target.rows, -1, self.dim)  # [rows, n, D]
            drafted = yield from drafting.grow(fresh, features)
            reply = yield Call(self.pack(drafted))
            nodes = drafted.tree.paths(ordered=s.target.sampled)[reply.path][1 : reply.accepted + 1]
            fresh = [drafted.tree.tokens[node] for node in nodes] + unpack_ids(reply.ids)
            for index, token in enumerate(fresh):
                s.accept(token, FROM_DEVICE if index < reply.accepted else FROM_CLOUD)

    # --- cloud

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            yield from s.open(message)
            step = yield s.decide("all")
            s.accept([self.pick(s, s.target.laws(step.logits)[-1].cpu().numpy())])
            caption = step.states[:, : self.caption_slots]  # [rows, caption_slots, D]
            if self.settings.drafter == "cloud":
                return (yield from self.draft_here(s, caption))
            return Opened(pack_ids(s.tokens), _pack(caption))
        assert isinstance(message, DraftTree)
        drafted = self.unpack(s.tokens[-1], message)
        nodes, token, features = yield from self.test(s, drafted)
        paths = drafted.tree.paths(ordered=s.target.sampled)
        number = next(index for index, path in enumerate(paths) if path[: len(nodes)] == nodes)
        return Path(number, len(nodes) - 1, pack_ids(token), b"" if s.done else _pack(features))

    def draft_here(self, s: CloudState, features: Tensor) -> Generator[Op, Any, Message]:
        """All rounds with the drafter here; each round's tokens leave at once. features: [rows, caption_slots, D]."""
        drafting = self.drafting(s)
        sent = 0
        while not s.done:
            fresh, sent = s.tokens[sent:], len(s.tokens)
            yield Emit(Tokens(pack_ids(fresh)))
            drafted = yield from drafting.grow(fresh, features)
            _, _, features = yield from self.test(s, drafted)
        return Tokens(pack_ids(s.tokens[sent:]))

    def test(self, s: CloudState, drafted: Drafted) -> Generator[Op, Any, tuple[list[int], list[int], Tensor]]:
        """One pass over the tree, and what comes of it: the accepted nodes, root first, cut where the image ends; the token that
        follows, none where it ends; the features [rows, accepted + 1, D] of these nodes."""
        first, target = len(s.tokens), s.target
        step = yield s.feed_tree("cloud", drafted.tree)
        paths = drafted.tree.paths(ordered=target.sampled)
        law, best = np.zeros(0), -1
        if target.sampled:
            nodes, law = verify(
                paths,
                lambda node: target.laws(step.logits[node : node + 1])[0].cpu().numpy(),
                lambda depth, sibling: (
                    s.draw(first + depth, "accept", str(sibling)) if first + depth < s.image_tokens else 1.0
                ),
                self.trial(drafted),
            )
        else:
            nodes, best = verify_greedy(drafted.tree, paths, step.logits, self.accepts)
        nodes = nodes[: s.image_tokens - first + 1]
        s.accept([drafted.tree.tokens[node] for node in nodes[1:]])
        s.keep_path(nodes)
        token: list[int] = []
        if not s.done:
            token = [self.pick(s, law) if target.sampled else best]
            s.accept(token)
        return nodes, token, step.states[:, nodes]

    def pick(self, s: CloudState, law: np.ndarray) -> int:
        return draw(law, s.draw(len(s.tokens), "token", "cloud"))


def _pack(features: Tensor) -> bytes:
    return pack_floats(features.reshape(-1, features.shape[-1]).float().cpu().numpy())

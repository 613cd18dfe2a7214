"""eagle2: a feature-level drafter grows a draft tree, and the cloud verifies the whole tree in one pass. Lossless.

Source: Li et al., "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees"; the drafter and details are those of
LANTERN's port to LlamaGen (see `models/eagle.py`). Growth and re-ranking are in `models/tree.py`.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.pair import Pair
from models.sampling import greedy
from models.tree import Growth, Tree, accepted_children
from simulator.protocol.llama import LlamaConfig
from simulator.protocol.messages import (
    DraftTree,
    Message,
    Opened,
    OpenedPrompt,
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

from .session import CloudState, DeviceState

Found = TypeVar("Found")
# Whether a drafted token is accepted under greedy decoding, given the target's logits [V].
Accepts = Callable[[Tensor, int], bool]


@dataclass(frozen=True)
class Drafted:
    """A draft tree; if its drafts were sampled, also their distributions.

    Attributes:
        tree: tokens and parents.
        weights: float64 [N], probability of each node's draw, given the draws of its earlier siblings; None if the drafts are the
            drafter's most likely tokens.
        rows: float64 [inner nodes, V], the weights from which each inner node's children were drawn, in the order of the nodes; or
            None.
    """

    tree: Tree
    weights: np.ndarray | None = None
    rows: np.ndarray | None = None


def normalised(p: np.ndarray) -> np.ndarray:
    """Return p [V] divided by its sum; uniform if the sum is 0, as in the reference."""
    total = p.sum()
    return p / total if total > 0 else np.full_like(p, 1 / len(p))


class DraftTest(Protocol):
    """A draft test (see the glossary). p [V] is the cloud's distribution after the rejections of earlier siblings."""

    def ratio(self, p: np.ndarray, node: int) -> float:
        """Return the bound of acceptance: the node's draft is accepted iff its uniform draw r in [0, 1) is below it."""
        ...

    def rejected(self, p: np.ndarray, node: int) -> np.ndarray:
        """Return p [V] after the rejection of the node's draft."""
        ...


class OwnTest:
    """EAGLE-2's test: accept a draft x iff r < p(x), because drafts are deterministic (q = 1). A rejection removes x from p.

    Every token has the cloud's distribution (lossless). Source: EAGLE-2's posterior evaluation, sampling.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def ratio(self, p: np.ndarray, node: int) -> float:
        return float(p[self.tree.tokens[node]])

    def rejected(self, p: np.ndarray, node: int) -> np.ndarray:
        p = p.copy()
        p[self.tree.tokens[node]] = 0.0
        return normalised(p)


def is_best(logits: Tensor, token: int) -> bool:
    """Whether the draft is the cloud's arg max (greedy acceptance)."""
    return int(greedy(logits)) == token


def verify(
    paths: Sequence[Sequence[int]],
    r: Callable[[int, int], float],
    test: DraftTest,
    note: Callable[[float], None] = lambda margin: None,
) -> Generator[int, np.ndarray, tuple[list[int], np.ndarray]]:
    """Descend from the root: test the children of the last accepted node in turn until one is accepted.

    A draft is accepted iff r < ratio, so a draft of ratio 0 never is. The generator yields each accepted node and receives the cloud's
    distribution float64 [V] after it.

    Args:
        paths: root-to-leaf paths of the tree; siblings are tested in their order.
        r: uniform draw in [0, 1) for (depth of the parent, index of the sibling).
        test: the draft test.
        note: called with the margin |ratio - r| of every decision.

    Returns:
        The accepted nodes, root first, and the distribution [V] of the next token: p after the rejections, or the
        unmodified one after a leaf. Source: EAGLE-2's posterior evaluation, sampling; LANTERN's is the same.
    """
    nodes = [0]
    while True:
        p = yield nodes[-1]
        for sibling, child in enumerate(accepted_children(paths, nodes)):
            draw, ratio = r(len(nodes) - 1, sibling), test.ratio(p, child)
            note(abs(ratio - draw))
            if draw < ratio:
                nodes.append(child)
                break
            p = test.rejected(p, child)
        else:
            return nodes, p


def verify_greedy(
    tree: Tree, paths: Sequence[Sequence[int]], accepts: Accepts = is_best
) -> Generator[int, Tensor, tuple[list[int], int]]:
    """Find the path with the most accepted nodes from the root (the first one on ties).

    The generator yields each node whose logits it needs once and receives the cloud's logits [V] after it.

    Returns:
        The accepted nodes, root first, and the next token.

    Source: EAGLE-2's posterior evaluation, greedy; LANTERN's is the same.
    """
    logits: dict[int, Tensor] = {}
    passed = [True]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        if passed[parent] and parent not in logits:
            logits[parent] = yield parent
        passed.append(passed[parent] and accepts(logits[parent], token))
    best = [0]
    for path in paths:
        length = next((i for i, node in enumerate(path) if not passed[node]), len(path))
        if length > len(best):
            best = list(path[:length])
    if best[-1] not in logits:
        logits[best[-1]] = yield best[-1]
    return best, int(greedy(logits[best[-1]]))


class Drafting:
    """The drafter of a session, on the device or in the cloud. Between rounds its KV cache holds only committed positions."""

    def __init__(self, s: DeviceState | CloudState) -> None:
        self.state, self.policy = s, s.policy
        self._held = -1  # image positions in the cache; -1: the caption has not been fed

    def grow(self, tokens: Sequence[int], features: Any) -> Generator[Op, Any, Drafted]:
        """Feed the newest decided tokens to the drafter, and return a draft tree after them.

        Args:
            tokens: the decided tokens since the last call; on the first call the image's first token.
            features: float [rows, n, D], the cloud model's features at the position before each token; on the first call at the
                last n caption positions.
        """
        raise NotImplementedError

    def committed(self, tokens: Sequence[int], features: Any) -> Forward:
        """Return the pass over decided tokens. Arguments are those of `grow`."""
        if self._held < 0:
            op = Forward("drafter", tokens, caption=features, prompt=self.state.caption_rows, decides=False)
        else:
            op = Forward("drafter", tokens, features=features, keep=self._held, decides=False)
        self._held = max(self._held, 0) + op.new_positions
        return op


class DynamicDrafting(Drafting):
    """EAGLE-2's drafting: expand the most probable nodes, then keep the best nodes (`Growth`)."""

    def __init__(self, settings: TreeSettings, s: DeviceState | CloudState) -> None:
        super().__init__(s)
        self.settings = settings

    def grow(self, tokens: Sequence[int], features: Any) -> Generator[Op, Any, Drafted]:
        growth = Growth(self.settings.top_k)
        step = yield self.committed(tokens, features)
        growth.begin(self.policy.drafts(step.logits.unsqueeze(0))[0])
        for _ in range(self.settings.depth):
            beam = [growth.tokens[node] for node in growth.beam]
            states = step.states[:, growth.beam_rows]  # [rows, K, D], the drafter's outputs at the nodes' parents
            step = yield Forward(
                "drafter", beam, features=states, tree=list(growth.fed_parents), outputs="all", decides=False
            )
            growth.grow(self.policy.drafts(step.logits))
        return Drafted(growth.best(tokens[-1], self.settings.total_tokens))


class Eagle2:
    """EAGLE-2. Up in each round: a draft tree. Down: the accepted path, the next token and the path's features.

    With the drafter in the cloud, only tokens are sent down. Variants such as LANTERN replace the methods of the first section.
    """

    def __init__(self, settings: DrafterSettings, pair: Pair) -> None:
        self.settings = settings
        self.dim = pair.manifest.cloud.dim
        self.caption_slots = pair.manifest.caption_slots
        # Whether the drafter reads the prompt's tokens.
        self.reads_prompt = isinstance(pair.manifest.cloud, LlamaConfig)

    # --- what variants replace

    def drafting(self, s: DeviceState | CloudState) -> Drafting:
        """Return the session's drafter."""
        assert isinstance(self.settings, TreeSettings)
        return DynamicDrafting(self.settings, s)

    def pack(self, drafted: Drafted) -> DraftTree:
        """Return the message with a draft tree."""
        tree = drafted.tree
        return DraftTree(pack_ids(tree.tokens[1:]), bytes(tree.parents[1:]))

    def unpack(self, root: int, message: DraftTree) -> Drafted:
        """Return the draft tree of a message. root: the newest decided token."""
        return Drafted(Tree([root, *unpack_ids(message.ids)], [-1, *message.parents]))

    def draft_test(self, drafted: Drafted) -> DraftTest:
        """Return the draft test for sampling."""
        return OwnTest(drafted.tree)

    def accepts(self, logits: Tensor, token: int) -> bool:
        """Whether a draft is accepted under greedy decoding, given the cloud's logits [V]."""
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
        """Run all rounds with the drafter on the device."""
        drafting = self.drafting(s)
        fresh, features = yield from self.opened(s)
        while not s.done:
            drafted = yield from drafting.grow(fresh, features)
            reply = yield Call(self.pack(drafted))
            fresh, features = self.take_reply(s, drafted, reply), self.features(s, reply.features)

    def opened(self, s: DeviceState) -> Generator[Op, Any, tuple[list[int], np.ndarray]]:
        """Open the session, and return the first token in a list and the features of the caption, float32 [rows, n, D]."""
        reply = yield Call(s.start(1, want_caption=self.reads_prompt))
        if self.reads_prompt:
            s.caption_rows = unpack_floats(reply.caption_rows, s.caption_dim)
        fresh = unpack_ids(reply.ids)
        s.accept(fresh[0], FROM_CLOUD)
        return fresh, self.features(s, reply.features)

    def features(self, s: DeviceState, blob: bytes) -> np.ndarray:
        """Return the cloud model's features in a reply, float32 [rows, n, D]."""
        return unpack_floats(blob, self.dim).reshape(s.policy.rows, -1, self.dim)

    def take_reply(self, s: DeviceState, drafted: Drafted, reply: Path) -> list[int]:
        """Accept the round's tokens and return them."""
        nodes = drafted.tree.paths(ordered=s.policy.sampled)[reply.path][1 : reply.accepted + 1]
        fresh = [drafted.tree.tokens[node] for node in nodes] + unpack_ids(reply.ids)
        for index, token in enumerate(fresh):
            s.accept(token, FROM_DEVICE if index < reply.accepted else FROM_CLOUD)
        return fresh

    # --- cloud

    def cloud(self, s: CloudState, message: Message) -> CloudProgram:
        if isinstance(message, Start):
            yield from s.open(message)
            step = yield s.decide("all")
            s.accept([self.pick(s, s.policy.probs(step.logits)[-1].cpu().numpy())])
            assert s.caption_rows is not None
            # A drafter that reads the prompt masks padding; any other one sees all caption slots.
            first = self.caption_slots - len(s.caption_rows) if self.reads_prompt else 0
            caption = step.states[:, first : self.caption_slots]  # [rows, n, D]
            if self.settings.drafter == "cloud":
                return (yield from self.draft_here(s, caption))
            if self.reads_prompt:
                return OpenedPrompt(pack_ids(s.tokens), _pack(caption), pack_floats(s.caption_rows))
            return Opened(pack_ids(s.tokens), _pack(caption))
        assert isinstance(message, DraftTree)
        drafted = self.unpack(s.tokens[-1], message)
        nodes, token, features = yield from self.test(s, drafted)
        paths = drafted.tree.paths(ordered=s.policy.sampled)
        number = next(index for index, path in enumerate(paths) if path[: len(nodes)] == nodes)
        return Path(number, len(nodes) - 1, pack_ids(token), b"" if s.done else _pack(features))

    def draft_here(self, s: CloudState, features: Tensor) -> Generator[Op, Any, Message]:
        """Run all rounds with the drafter in the cloud, and send each round's tokens at once. features: [rows, n, D], of the caption."""
        drafting = self.drafting(s)
        sent = 0
        while not s.done:
            fresh, sent = s.tokens[sent:], len(s.tokens)
            yield Emit(Tokens(pack_ids(fresh)))
            drafted = yield from drafting.grow(fresh, features)
            _, _, features = yield from self.test(s, drafted)
        return Tokens(pack_ids(s.tokens[sent:]))

    def test(self, s: CloudState, drafted: Drafted) -> Generator[Op, Any, tuple[list[int], list[int], Tensor]]:
        """Run the cloud's pass over the tree, and verify its drafts. Only the nodes that the verification visits are computed.

        Returns:
            The accepted nodes, root first, cut at the end of the image.
            The next token as a list, empty at the end of the image.
            The features [rows, accepted + 1, D] of the accepted nodes.
        """
        first, tree, policy = len(s.tokens), drafted.tree, s.policy
        seen: dict[int, Any] = {0: (yield s.feed_tree(tree))}

        def walk(search: Generator[int, Any, Found], read: Callable[[Tensor], Any]) -> Generator[Op, Any, Found]:
            """Run a search to its end, sending it what `read` extracts from the logits of each node that it yields."""
            node = next(search)
            while True:
                if node not in seen:
                    seen[node] = yield s.revisit(tree, node)
                try:
                    node = search.send(read(seen[node].logits))
                except StopIteration as stop:
                    found: Found = stop.value
                    return found

        paths = tree.paths(ordered=policy.sampled)
        probs, best = np.zeros(0), -1
        if policy.sampled:
            nodes, probs = yield from walk(
                verify(
                    paths,
                    lambda depth, sibling: (
                        s.draw(first + depth, "accept", str(sibling)) if first + depth < s.image_tokens else math.inf
                    ),
                    self.draft_test(drafted),
                    s.decisions.note,
                ),
                lambda logits: policy.probs(logits.unsqueeze(0))[0].cpu().numpy(),
            )
        else:
            nodes, best = yield from walk(verify_greedy(tree, paths, self.accepts), lambda logits: logits)
            s.note_arg_max(torch.stack([seen[node].logits for node in nodes]))
        nodes = nodes[: s.image_tokens - first + 1]
        s.accept([tree.tokens[node] for node in nodes[1:]])
        s.keep_path(nodes)
        token: list[int] = []
        if not s.done:
            token = [self.pick(s, probs) if policy.sampled else best]
            s.accept(token)
        return nodes, token, torch.cat([seen[node].states for node in nodes], dim=1)

    def pick(self, s: CloudState, probs: np.ndarray) -> int:
        """Draw the cloud's next token from weights [V]."""
        return s.pick(probs, len(s.tokens), "token", "cloud")


def _pack(features: Tensor) -> bytes:
    return pack_floats(features.reshape(-1, features.shape[-1]).float().cpu().numpy())

"""The ops that a decoding method yields: they describe what happens, but not how long it takes.

A method is two generator programs, one on the device and one in the cloud (`models/methods/`). Each `yield`s the ops below and receives
their results from the recorder, which ignores time; the simulator replays the recorded ops in virtual time.

| op | result of the yield |
|---|---|
| `Forward` | a `Step` of the driver: token, logits, hidden state, uncertainty |
| `Compute` | the output of its kind (caption rows, an interval feature, an image) |
| `Send`    | a `Handle` of the call it opens |
| `Await` | the call's reply (a message), or None if a deadline was allowed and missed; streamed parts are in `handle.parts` |
| `Call`    | `Send` and `Await` together: the reply |
| `Emit`    | None; cloud side only: part of a reply leaves before the rest is done |
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.protocol.messages import Message

ROLES = ("device", "cloud", "drafter")
COMPUTE_KINDS = ("caption_encoder", "phi", "image_decoder", "interval_samples")
INTERVAL_SAMPLES = 20  # distributions over the codebook that one `interval_samples` draws


@dataclass(slots=True)
class Forward:
    """One pass of a model over new positions of this session.

    The drafter reads, at each position, the next token together with the base model's feature there. So its caption is float
    [rows, n, D], the features of the last n caption positions, its features are float [rows, len(tokens), D] (without the
    first token's after a caption), and the first token after a caption stands in the last caption slot.

    Attributes:
        role: Which model runs (`ROLES`).
        tokens: Ids of the image tokens that are the input, in order.
        caption: float32 [n, caption_dim], the valid caption rows; if given, the caption slots come first (prefill).
        features: float [len(tokens), D], interval features added to the token embeddings, or None.
        keep: Image positions of the KV cache that stay valid before this pass (roll-back); None keeps all.
        gather: Image positions of the cache that move, in this order, right after the kept ones before the pass: accepted tree nodes.
        tree: Parents of all entries after the committed sequence, the last len(tokens) of them new, earlier ones in the cache already.
            A parent is an index into these entries, below its child's, or -1 for the committed sequence. An entry's position is the
            committed length plus its depth; it sees the committed sequence, its ancestors and itself. None: a plain continuation.
        outputs: Positions that the step covers: the last new one, all, or, in a tree, `some`: its root, and the nodes that later passes
            with `revisit` request. Only a `last` pass draws a token.
        decides: Whether the pass decides a token of the image, which is what `cloud_call_pct` counts on the cloud.
        bounds: For a device pass, the training of the Inter-Head's radius that gives the interval; "" is the pair's first.
        revisit: The pass is a part of the previous one, over a tree with `some` outputs: the node whose token is given; `tree` has the
            parents up to it. Nodes that are never requested decide nothing, so a driver need not compute them; the pass over
            the whole tree is the one that counts.
        chain: Entries of the tree before its root: decided tokens, one after the other.
        prompt: float32 [n, caption_dim], with a drafter's caption: the valid caption rows, for a drafter that reads the prompt's tokens.
    """

    role: str
    tokens: Sequence[int] = ()
    caption: Any = None
    features: Any = None
    keep: int | None = None
    gather: Sequence[int] = ()
    tree: Sequence[int] | None = None
    outputs: Literal["last", "all", "some"] = "last"
    decides: bool = True
    bounds: str = ""
    revisit: bool = False
    chain: int = 0
    prompt: Any = None

    @property
    def new_positions(self) -> int:
        """Image positions that the pass adds to the cache."""
        return len(self.tokens) - (self.role == "drafter" and self.caption is not None)

    @property
    def hidden(self) -> int:
        """Number of causal query-key pairs per row that the mask excludes: pairs of a new entry and an entry of another branch."""
        if self.tree is None:
            return 0
        seen: list[int] = []  # number of entries in the tree that each entry attends to: its ancestors and itself
        for parent in self.tree:
            seen.append(1 + (seen[parent] if parent >= 0 else 0))
        first = len(self.tree) - len(self.tokens)
        return sum(entry + 1 - seen[entry] for entry in range(first, len(self.tree)))


@dataclass(slots=True)
class Compute:
    """Priced work other than a decoder pass: one of `COMPUTE_KINDS`, with its input."""

    kind: str
    payload: Any = None


@dataclass(slots=True)
class Handle:
    """An open call: its index within the session and the parts that were streamed before the reply."""

    call: int
    parts: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class Send:
    """A message from device to cloud, which opens a call."""

    message: Message


@dataclass(slots=True)
class Await:
    """The wait for the reply to a call.

    Attributes:
        handle: The call.
        deadline: Whether the session may give up the reply. The scenario, not the program, sets the length of the deadline.
    """

    handle: Handle
    deadline: bool = False


@dataclass(slots=True)
class Call:
    """`Send` and `Await` together."""

    message: Message
    deadline: bool = False  # as in `Await`


@dataclass(slots=True)
class Emit:
    """A part of the reply, which leaves the cloud before the rest."""

    part: Message


Op = Forward | Compute | Send | Await | Call | Emit
DeviceProgram = Generator[Op, Any, None]
CloudProgram = Generator[Op, Any, Message]

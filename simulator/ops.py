"""The ops a decoding method yields: they say what happens, never how long it takes.

A method is two generator programs, one on the device and one in the cloud (`models/methods/`). Each `yield`s the ops below and
is sent their results by one of three drivers: the recorder (time ignored), the simulator (virtual time), the testbed (real time).

| op | result of the yield |
|---|---|
| `Forward` | a `Step` of the driver: token, logits, hidden state, uncertainty |
| `Compute` | what the kind produces (caption rows, an interval feature, an image) |
| `Send`    | a `Handle` of the call it opens |
| `Await`   | the call's reply (a message); streamed parts stand in `handle.parts` |
| `Call`    | `Send` and `Await` together: the reply |
| `Emit`    | None; cloud side only: part of a reply leaves before the rest is done |
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulator.messages import Message

ROLES = ("device", "cloud", "drafter")
COMPUTE_KINDS = ("caption_encoder", "phi", "image_decoder")


@dataclass(slots=True)
class Forward:
    """One pass of a model over new positions of this session.

    role: which model runs (`ROLES`). tokens: image token ids fed, in order. caption: float32 [n, caption_dim], the valid caption
    rows; given, the caption slots are fed first (prefill). features: float [len(tokens), D]
    interval features added to the token embeddings, or None.
    keep: image positions of the KV cache that stay valid before this pass (roll-back); None keeps all.
    decides: whether the pass decides a token of the image, which is what `cloud_call_pct` counts on the cloud.
    """

    role: str
    tokens: Sequence[int] = ()
    caption: np.ndarray | None = None
    features: np.ndarray | None = None
    keep: int | None = None
    decides: bool = True


@dataclass(slots=True)
class Compute:
    """Priced work that is no decoder pass: one of `COMPUTE_KINDS`, with the input it works on."""

    kind: str
    payload: Any = None


@dataclass(slots=True)
class Handle:
    """An open call: its index within the session and, once they arrived, the parts streamed ahead of the reply."""

    call: int
    parts: list[Message] = field(default_factory=list)


@dataclass(slots=True)
class Send:
    message: Message


@dataclass(slots=True)
class Await:
    handle: Handle


@dataclass(slots=True)
class Call:
    message: Message


@dataclass(slots=True)
class Emit:
    part: Message


Op = Forward | Compute | Send | Await | Call | Emit
DeviceProgram = Generator[Op, Any, None]
CloudProgram = Generator[Op, Any, Message]

"""The interface between sessions and replicas: a session as the cloud sees it, and a replica as a session sees it."""

import math
from collections.abc import Sequence
from typing import Protocol

from simulator.pricing.program import Down, Item


class SessionReplica(Protocol):
    """What a session and the cloud ask of the replica that serves the session.

    Attributes:
        number: counted from 0.
        sessions: open here, in order of opening.
        kv_tokens: cached positions reserved or held.
        empty_s: when the last session left.
    """

    number: int
    sessions: "dict[CloudSession, None]"
    kv_tokens: int
    empty_s: float

    def submit(self, session: "CloudSession", now_s: float, items: tuple[Item, ...]) -> None:
        """Queue the work of the session's next call."""
        ...

    def forget(self, session: "CloudSession") -> None:
        """The session is over, or bound elsewhere."""
        ...


class CloudSession:
    """Work of one session in the cloud, item by item, and the parts of its latency that are spent there.

    While `charged`, the device waits: an iteration books, at its end, the time since `booked_until_s` under cloud_queue_s
    (before the iteration), cloud_compute_s (in it), or encode_s and image_decode_s (own work of that kind). gpu_share_s is booked
    whether charged or not.

    Attributes:
        items: work of the current call.
        index: of the next item in it.
        item: the next item itself.
        ready_s: since when the item waits; kept for traced sessions only.
        priority: higher is served first, by that discipline.
        left_s: seconds of work left in the call; kept by the discipline shortest-first only.
        kv_need: most cached positions at a time, rows counted; read only where memory is bounded.
    """

    __slots__ = (
        "booked_until_s",
        "charged",
        "cloud_compute_s",
        "cloud_queue_s",
        "deadline_s",
        "encode_s",
        "gpu_share_s",
        "image_decode_s",
        "index",
        "item",
        "items",
        "kv_need",
        "left_s",
        "priority",
        "ready_s",
        "replica",
        "traced",
    )

    def __init__(self) -> None:
        self.replica: SessionReplica | None = None
        self.items: tuple[Item, ...] = ()
        self.index = 0
        self.item: Item
        self.ready_s = 0.0
        self.charged = False
        self.booked_until_s = 0.0
        self.cloud_queue_s = self.cloud_compute_s = self.encode_s = self.image_decode_s = self.gpu_share_s = 0.0
        self.traced = False
        self.deadline_s = math.inf
        self.priority = 0
        self.left_s = 0.0
        self.kv_need = 0

    def admitted(self, now_s: float) -> None:
        """The session waited for a replica and is bound to one now."""
        raise NotImplementedError

    def refused(self, now_s: float) -> None:
        """No replica has room, and neither has the queue for admission."""
        raise NotImplementedError

    def crashed(self, now_s: float, working: bool) -> None:
        """The replica crashed and its cache is lost. working: whether a call was being served, at `index`."""
        raise NotImplementedError

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        """Parts of a reply leave the cloud."""
        raise NotImplementedError

    def served(self, now_s: float) -> None:
        """The last item of the call is done."""
        raise NotImplementedError

    def trace_iteration(self, start_s: float, end_s: float, replica: int, batch: "Sequence[CloudSession]") -> None:
        """An iteration of these sessions ends; `ready_s` is still this one's item's. Called for traced sessions only."""
        raise NotImplementedError

"""The interface between sessions and replicas: a session as the cloud sees it, and a replica as a session sees it."""

import math
from collections.abc import Sequence
from typing import Protocol

from simulator.pricing.program import Down, Item


class SessionReplica(Protocol):
    """The part of a replica that a session and the cloud use.

    Attributes:
        number: Counted from 0 over all clouds.
        sessions: Open sessions, in order of opening.
        kv_tokens: Cached positions that are reserved or held.
        empty_s: Time at which the last session left.
    """

    number: int
    sessions: "dict[CloudSession, None]"
    kv_tokens: int
    empty_s: float

    def submit(self, session: "CloudSession", now_s: float, items: tuple[Item, ...]) -> None:
        """Queue the work of the session's next call."""
        ...

    def forget(self, session: "CloudSession") -> None:
        """Remove a session that has ended or is now bound to another replica."""
        ...


class CloudSession:
    """The work of one session in the cloud, item by item, and the parts of its latency that are spent there.

    While `charged`, the device waits for the cloud: the end of an iteration books the time since `booked_until_s` under
    cloud_queue_s (before the iteration), cloud_compute_s (in it), or encode_s and image_decode_s (the session's own work of that
    kind). gpu_share_s is booked in any case.

    Attributes:
        replica: The replica that the session is bound to; None if none.
        items: Work of the current call.
        index: Index of the next item.
        item: The next item.
        ready_s: Time since which the item waits; set for traced sessions only.
        charged: Whether the device waits for the cloud.
        booked_until_s: Time up to which the latency is booked.
        gpu_share_s: GPU seconds of the session: its share of each batch by rows, and its own other work.
        traced: Whether `trace_iteration` is called.
        deadline_s: Time by which the latency objective is met; key of earliest-deadline.
        priority: Key of the discipline `priority`: the highest is served first.
        left_s: Seconds of work left in the call; set by shortest-first only.
        kv_need: Largest number of cached positions at a time, rows counted; read only if memory is limited.
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
        """Continue a session that waited for admission and is now bound to a replica."""
        raise NotImplementedError

    def refused(self, now_s: float) -> None:
        """End a session for which neither a replica nor the admission queue has room."""
        raise NotImplementedError

    def crashed(self, now_s: float, working: bool) -> None:
        """Handle a crash of the replica, which lost the session's cache.

        Args:
            now_s: Time of the crash.
            working: Whether a call was being served; `index` is its next item.
        """
        raise NotImplementedError

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        """Send parts of a reply."""
        raise NotImplementedError

    def served(self, now_s: float) -> None:
        """Finish a call whose last item is done."""
        raise NotImplementedError

    def trace_iteration(self, start_s: float, end_s: float, replica: int, batch: "Sequence[CloudSession]") -> None:
        """Record the iteration of these sessions that ends; `ready_s` is still that of the finished item. For traced sessions only."""
        raise NotImplementedError

"""A session as the cloud sees it: work to do in order, and where the time of its latest await went."""

import math
from typing import TYPE_CHECKING

from simulator.pricing.program import Down, Item

if TYPE_CHECKING:
    from simulator.cloud.replica import Replica


class CloudSession:
    """A session as the cloud sees it: work to do in order, and where the time of its latest await went.

    While `charged`, time in the cloud belongs to the session's latency: all from `booked_until_s` on that is not yet booked
    under cloud_queue_s (waiting for an iteration), cloud_compute_s (in one), or encode_s and image_decode_s (its own
    such work in one). Each iteration books at its end, whatever happened before `booked_until_s` is nobody's. gpu_s is booked
    in any case.
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
        self.replica: Replica | None = None
        self.items: tuple[Item, ...] = ()  # of the call under way
        self.index = 0
        self.item: Item  # items[index]
        self.ready_s = 0.0  # since when the item waits; kept up where it is traced
        self.charged = False
        self.booked_until_s = 0.0
        self.cloud_queue_s = self.cloud_compute_s = self.encode_s = self.image_decode_s = self.gpu_share_s = 0.0
        self.traced = False
        self.deadline_s = math.inf
        self.priority = 0  # higher is served first
        self.left_s = 0.0  # of the call, kept by the discipline shortest-first alone
        self.kv_need = 0  # most cached positions at a time, rows counted; only read where memory is bounded

    def admitted(self, now_s: float) -> None:
        """It waited for a replica and is bound to one now."""
        raise NotImplementedError

    def refused(self, now_s: float) -> None:
        """There is no replica for it, and no room to wait for one."""
        raise NotImplementedError

    def crashed(self, now_s: float, working: bool) -> None:
        """Its replica is gone, with its cache. working: a call was under way, at `index`."""
        raise NotImplementedError

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        """Parts of a reply leave the cloud."""
        raise NotImplementedError

    def served(self, now_s: float) -> None:
        """The last item of the call is done."""
        raise NotImplementedError

    def trace_iteration(self, start_s: float, end_s: float) -> None:
        """An iteration with this session ends; `ready_s` is still its item's. Called for traced sessions only."""
        raise NotImplementedError

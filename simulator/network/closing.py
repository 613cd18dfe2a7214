"""Links whose connection ends after a silence, because a NAT or firewall on the path drops it.

The device's next message opens a new connection, with its handshake and new windows. Replies do not open one: the cloud cannot reach a
device that the NAT has dropped, so only the device can end the silence of an open call.
"""

import math
from typing import Any

from simulator.network.link import ImpairedLink


class ClosingLink(ImpairedLink):
    """One direction of such a connection.

    Attributes:
        timeout_s: silence of both directions that closes it.
        other: for the device's direction, which opens connections, the opposite direction; None for the latter.
    """

    __slots__ = ("_used_s", "other", "timeout_s")

    def __init__(self, *args: Any, timeout_s: float, **more: Any) -> None:
        """Take the arguments of `ImpairedLink`, and timeout_s."""
        super().__init__(*args, **more)
        self.timeout_s = timeout_s
        self.other: ClosingLink | None = None
        self._used_s = math.inf  # arrival of the latest message; infinite before the first

    def send(self, now_s: float, size_bytes: int) -> float:
        other = self.other
        if other is not None:
            used_s = max(self._used_s, other._used_s) if other._used_s < math.inf else self._used_s
            if now_s - used_s > self.timeout_s:
                self.reconnect()
                other.reconnect()
        arrival_s = super().send(now_s, size_bytes)
        if arrival_s < math.inf:
            self._used_s = arrival_s if self._used_s == math.inf else max(self._used_s, arrival_s)
        return arrival_s

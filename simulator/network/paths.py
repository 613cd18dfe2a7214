"""Several paths at once, such as Wi-Fi and cellular: every message is sent on all of them, and its first copy counts.

This is the redundant scheduler of Multipath TCP (A. Frommgen et al., ReMP TCP, ICC 2016; RFC 8684 leaves the scheduler open): a message
takes the path that delivers it first, and every path carries all bytes and uses its radio. Each path has its own connection, which
opens with the first message. Messages are handed over in order, as of one connection. Left out: splitting a message over the paths,
which would make large ones faster, and acknowledgements that cancel a copy still waiting.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from simulator.network.radio import Radio


class Path(Protocol):
    """A link of one path: see `simulator.network.link`."""

    @property
    def ready_s(self) -> float: ...

    @property
    def open_s(self) -> float: ...

    def send(self, now_s: float, size_bytes: int) -> float: ...

    def reconnect(self, lost: Iterable[int] = ()) -> None: ...


class PathsLink:
    """One direction of a device's paths, with the interface of a link.

    Attributes:
        links: the link of each path.
        ready_s: `ready_s` of the path that delivered the latest message first.
        open_s: the same for `open_s`.
    """

    __slots__ = ("_last_s", "links", "open_s", "ready_s")

    def __init__(self, links: Sequence[Path]) -> None:
        self.links = links
        self.ready_s = -math.inf
        self.open_s = -math.inf
        self._last_s = 0.0

    def send(self, now_s: float, size_bytes: int) -> float:
        """Return the arrival time of the first copy of a message handed over at `now_s`; infinity if none arrives."""
        arrival_s = math.inf
        first = self.links[0]
        for link in self.links:
            there_s = link.send(now_s, size_bytes)
            if there_s < arrival_s:
                arrival_s, first = there_s, link
        self.ready_s, self.open_s = first.ready_s, first.open_s
        if arrival_s < self._last_s:
            return self._last_s
        if arrival_s < math.inf:
            self._last_s = arrival_s
        return arrival_s

    def reconnect(self, lost: Iterable[int] = ()) -> None:
        """Reconnect all paths, see `ImpairedLink.reconnect`."""
        lost = list(lost)
        for link in self.links:
            link.reconnect(lost)
        self._last_s = 0.0


class Radios:
    """The radios of a device's paths, with the interface of one."""

    __slots__ = ("_radios",)

    def __init__(self, radios: Sequence[Radio]) -> None:
        self._radios = radios

    @property
    def request(self) -> int:
        """The request of the next message."""
        return self._radios[0].request

    @request.setter
    def request(self, request: int) -> None:
        for radio in self._radios:
            radio.request = request

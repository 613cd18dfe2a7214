"""Sessions of devices in a fair cell, where the arrival of a message is known only once it has been sent completely."""

from collections.abc import Callable
from functools import partial

from simulator.engine.device import Device
from simulator.engine.measures import NEVER
from simulator.engine.session import LANDED, Session, SessionHost
from simulator.network.fair import FairLink
from simulator.pricing.program import CALL_BYTES, CALL_REPLY, Down, SessionProgram

NOT_AWAITED = -1.0


class CellSession(Session):
    """A session that books a message when it has left the sender, not when it is handed to the link.

    It supports no deadlines, crashes or refusals.
    """

    __slots__ = ("under_way",)

    def __init__(self, run: SessionHost, request: int, device: Device, program: SessionProgram) -> None:
        super().__init__(run, request, device, program)
        # Replies that were handed to the link and have not left it: time since which they are awaited, or NOT_AWAITED.
        self.under_way: dict[int, float] = {}

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        if send >= 0:
            self.sent = send + 1
            size_bytes = self.calls[send][CALL_BYTES]
            self.submit(self.device.up, now_s, size_bytes, partial(self.landing, now_s, send, wait, size_bytes))
        return super().exchange(now_s, -1, wait)

    def landing(self, sent_s: float, call: int, wait: int, size_bytes: int, arrival_s: float) -> None:
        """The call has left the device and arrives at `arrival_s`."""
        if arrival_s == NEVER:
            self.unreachable(sent_s, call, wait)
            return
        self.clock.at(arrival_s, LANDED, self)
        if self.traced:
            self.span("uplink", f"call {call}", sent_s, arrival_s, call=call, bytes=size_bytes)

    def join(self, now_s: float, call: int) -> bool:
        if call in self.under_way:
            self.under_way[call] = now_s
            return False
        return super().join(now_s, call)

    def reply(self, now_s: float) -> None:
        call = self.answered
        self.answered = call + 1
        size_bytes, first = self.calls[call][CALL_REPLY]
        if call == self.last:
            self.device.cloud.close(self, now_s)
        awaited = call == self.awaiting
        if awaited:
            self.awaiting = -1
            self.charged = False
        self.under_way[call] = now_s if awaited else NOT_AWAITED
        self.submit(self.device.down, now_s, size_bytes, partial(self.replied, now_s, call, size_bytes, first))
        if not awaited and self.done_s == self.done_s and self.answered == len(self.calls):
            self.run.close(self)

    def replied(self, sent_s: float, call: int, size_bytes: int, first: bool, arrival_s: float) -> None:
        """The reply has left and arrives at `arrival_s`."""
        awaited_s = self.under_way.pop(call)
        self.came(sent_s, f"reply {call}", f"the reply to call {call}", call, size_bytes, first, arrival_s)
        if awaited_s == NOT_AWAITED:
            self.replies[call] = arrival_s
        else:
            self.receive(awaited_s, arrival_s)

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        call = self.answered
        for size_bytes, first in parts:
            what = f"a part of the reply to call {call}"
            self.submit(
                self.device.down,
                now_s,
                size_bytes,
                partial(self.came, now_s, f"part of {call}", what, call, size_bytes, first),
            )

    def came(
        self, sent_s: float, name: str, what: str, call: int, size_bytes: int, first: bool, arrival_s: float
    ) -> None:
        """A message of the cloud has left and arrives at `arrival_s`."""
        if arrival_s == NEVER:
            self.never(sent_s, self.awaiting, what, "downlink")
        if first:
            self.first_token_s = arrival_s
        if self.traced:
            self.span("downlink", name, sent_s, arrival_s, call=call, bytes=size_bytes)

    def submit(self, link: object, now_s: float, size_bytes: int, arrives: Callable[[float], None]) -> None:
        assert isinstance(link, FairLink)
        radio = self.device.radio
        if radio is not None:
            radio.request = self.request
        link.submit(now_s, size_bytes, arrives)

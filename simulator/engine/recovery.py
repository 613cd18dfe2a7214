"""Sessions after a crash of their replica: they reconnect, send their context again, and the cache is recomputed."""

from simulator.cloud.replica import recomputed
from simulator.engine.impatience import DeadlineSession
from simulator.engine.measures import ID_BYTES
from simulator.engine.session import RESENT
from simulator.pricing.program import CALL_BYTES, CALL_ITEMS, CALL_LEAD, ITEM_KIND, ITEM_PARTS, PASS


class RecoveringSession(DeadlineSession):
    """A session that lost its replica; arriving calls wait for the context."""

    __slots__ = ()

    def serve(self, now_s: float) -> None:
        pass

    def broken(self, now_s: float) -> None:
        """The device learns of the crash."""
        if self.charged and now_s > self.booked_until_s:
            asleep_s = min(self.device.down.ready_s, now_s) - self.booked_until_s
            if asleep_s > 0.0:
                self.wait_s += asleep_s
                self.booked_until_s += asleep_s
            self.downlink_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
        device = self.device
        if device.lost_s > device.reopened_s:
            device.reopened_s = now_s
            device.up.reconnect()
            device.down.reconnect()
        call = self.answered
        size = 0 if call >= len(self.context_bytes) else self.context_bytes[call]
        if self.redo is not None and call < len(self.calls):
            size += (  # the request again, and the ids of the parts that have arrived
                self.calls[call][CALL_BYTES]
                + ID_BYTES * sum(len(item[ITEM_PARTS]) for item in self.calls[call][CALL_ITEMS][: -len(self.redo)])
            )
        self.resent_bytes += size
        arrival_s = self.tell(now_s, device.up, size)
        self.clock.at(arrival_s, RESENT, self)
        if self.traced:
            self.span("uplink", "context again", now_s, arrival_s, bytes=size)

    def resent(self, now_s: float) -> None:
        """The context has arrived: the session can be bound to a replica, and its next pass recomputes the cache."""
        if self.charged and now_s > self.booked_until_s:
            self.wake(now_s)
            self.uplink_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
        self.__class__ = RestartingSession  # type: ignore[assignment]
        self.serve(now_s)


class RestartingSession(DeadlineSession):
    """A session whose next pass recomputes the cache."""

    __slots__ = ()

    def serve(self, now_s: float) -> None:
        if self.answered >= len(self.calls) or (self.redo is None and self.answered >= self.landed):
            return
        replica = self.replica or self.device.cloud.open(self, now_s)
        if replica is None:
            return
        items = self.calls[self.answered][CALL_ITEMS] if self.redo is None else self.redo
        if self.redo is None and self.calls[self.answered][CALL_LEAD]:
            self.emit(now_s, self.calls[self.answered][CALL_LEAD])
        self.redo = None
        first = next((i for i, item in enumerate(items) if item[ITEM_KIND] == PASS), None)
        if first is None:
            if items:
                replica.submit(self, now_s, items)
            else:
                self.reply(now_s)
                self.serve(now_s)
            return
        self.__class__ = DeadlineSession  # type: ignore[assignment]
        replica.submit(
            self, now_s, (*items[:first], recomputed(items[first], self.device.cloud.tier.costs), *items[first + 1 :])
        )

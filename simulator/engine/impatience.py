"""Sessions with a deadline: they repeat a request, or give up a reply and finish on the device alone."""

import math
from typing import cast

from simulator.core.rng import stream
from simulator.engine.clock import Alarm
from simulator.engine.measures import AWAITED, NEVER
from simulator.engine.session import DUE, LANDED_AGAIN, Session
from simulator.pricing.program import CALL_BYTES, CALL_REPLY, DOWN_BYTES, STEP_AWAIT, STEP_SEND


class DeadlineSession(Session):
    """A session with deadlines for replies that it can do without (`Fallback`): it repeats the request, or continues without the reply.

    A retry opens a new connection and sends every unanswered request again. Messages of this session on the old connection are lost.
    The cloud works on each call once: if it already has the request, it only sends the reply, as soon as it knows the new connection.
    """

    __slots__ = ()

    def prepare(self, optional: frozenset[int]) -> None:
        """Set the attributes that `__init__` does not set; a session also enters this class after a crash.

        Args:
            optional: calls whose reply the device can do without.
        """
        self.optional = optional
        self.in_flight = {}  # call -> alarm of the request's arrival
        self.alarm: Alarm | None = None  # at due_s, the deadline of the reply to `expected`
        self.late: tuple[float, float] | None = None  # departure and arrival of a reply that arrives after due_s
        self.disconnected = False  # True until the cloud knows the latest connection
        self.held: set[int] = set()  # calls whose reply waits for that connection, or was lost

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        if wait == send and wait in self.optional:
            self.start_deadline(now_s, wait)
        return super().exchange(now_s, send, wait)

    def join(self, now_s: float, call: int) -> bool:
        if call in self.optional:
            self.start_deadline(now_s, call)
        here = super().join(now_s, call)
        if here:
            self.cancel_deadline()
        return here

    def start_deadline(self, now_s: float, call: int) -> None:
        """Start to wait for the reply to a call."""
        rule = self.run.fallback
        assert rule is not None
        self.expected, self.tries, self.late = call, 1, None
        self.set_deadline(now_s, rule.deadline_s)

    def set_deadline(self, now_s: float, seconds: float) -> None:
        """Set the deadline to `seconds` from now, and remember the time booked so far, which `discard_wait` restores."""
        self.booked_before = (now_s, *[getattr(self, name) for name in AWAITED])
        self.due_s = now_s + seconds
        self.alarm = self.clock.at(self.due_s, DUE, self)

    def cancel_deadline(self) -> None:
        """Cancel the deadline, because the reply arrived in time."""
        if self.alarm is not None:
            self.alarm.callbacks = ()
            self.alarm = None

    def receive(self, now_s: float, arrival_s: float) -> None:
        if self.alarm is not None and arrival_s > self.due_s:
            self.late = (now_s, arrival_s)
        else:
            self.cancel_deadline()
            super().receive(now_s, arrival_s)

    def land(self, now_s: float) -> None:
        """The next call arrives, and then later ones that overtook it on a newer connection of the device."""
        assert self.in_flight is not None
        if self.landed in self.in_flight and self.in_flight[self.landed].time_s > now_s:
            return  # a later call has arrived, but the cloud serves calls in order
        self.in_flight.pop(self.landed, None)
        super().land(now_s)
        while (
            isinstance(self, DeadlineSession)
            and self.landed in self.in_flight
            and self.in_flight[self.landed].time_s < now_s
        ):
            del self.in_flight[self.landed]
            super().land(now_s)

    def reply(self, now_s: float) -> None:
        if self.disconnected:
            self.hold(now_s)
        else:
            super().reply(now_s)

    def hold(self, now_s: float) -> None:
        """A call is done, but there is no connection for its reply: `reply_again` sends it once the cloud knows one."""
        call = self.answered
        self.answered = call + 1
        self.held.add(call)
        self.run.count_bytes(self.request, 0, -self.calls[call][CALL_REPLY][DOWN_BYTES])
        if call == self.awaiting:
            self.charged = False
        if call == self.last:
            self.device.cloud.close(self, now_s)

    def never(self, now_s: float, awaited: int, what: str, way: str) -> None:
        rule = self.run.fallback
        if rule is None or not rule.gives_up or (awaited >= 0 and awaited not in self.optional):
            super().never(now_s, awaited, what, way)

    def due(self, now_s: float) -> None:
        """The deadline has passed: retry, give up, or keep waiting, as `Fallback` says."""
        rule = self.run.fallback
        assert rule is not None
        self.alarm = None
        if self.tries < rule.attempts:
            self.discard_wait(now_s)
            draw = stream(self.run.inputs.seed, "fallback.backoff", self.request, self.expected, self.tries).uniform(
                -1.0, 1.0
            )
            self.set_deadline(now_s, rule.wait_s(self.tries, float(draw)))
            self.tries += 1
            self.booked_until_s = now_s
            late, self.late = self.late, None
            if type(self) is DeadlineSession:
                self.retry(now_s)
            elif late is not None:  # after a crash the device reconnects in any case
                self.receive(now_s, late[1])
        elif rule.gives_up:
            self.discard_wait(now_s)
            self.give_up(now_s)
        elif self.late is not None:
            super().receive(*self.late)

    def discard_wait(self, now_s: float) -> None:
        """The wait ended without a reply: book it under wait_s, and undo its booking under other parts."""
        start_s, *values = self.booked_before
        for name, value in zip(AWAITED, values, strict=True):
            setattr(self, name, value)
        self.wait_s += now_s - start_s

    def retry(self, now_s: float) -> None:
        """Open a new connection and repeat every request whose reply the device has not received."""
        assert self.in_flight is not None
        run, up, down = self.run, self.device.up, self.device.down
        done = self.steps[: self.step]
        heard = {step[STEP_AWAIT] for step in done[:-1]} | {
            call for call, arrival_s in self.replies.items() if arrival_s <= now_s
        }
        again = [step[STEP_SEND] for step in done if step[STEP_SEND] >= 0 and step[STEP_SEND] not in heard]
        for alarm in self.in_flight.values():
            alarm.callbacks = ()
        up.reconnect([self.calls[call][CALL_BYTES] for call in self.in_flight])
        lost = [call for call in again if call < self.answered and call not in self.held]
        down.reconnect([self.calls[call][CALL_REPLY][DOWN_BYTES] for call in lost])
        self.held.update(lost)
        if not self.first_token_s <= now_s:
            self.first_token_s = math.nan
        self.in_flight = {}
        self.disconnected = True
        self.awaiting = self.expected
        self.charged = self.answered <= self.expected < self.landed
        run.retries[self.request] = run.retries.get(self.request, 0) + 1
        for call in again:
            self.replies.pop(call, None)
            size_bytes = self.calls[call][CALL_BYTES]
            run.count_bytes(self.request, size_bytes, 0)
            arrival_s = self.tell(now_s, up, size_bytes)
            if arrival_s == NEVER:
                self.unreachable(now_s, call, self.expected)
                continue
            self.in_flight[call] = self.clock.at(arrival_s, LANDED_AGAIN, (self, call))
            if self.traced:
                self.span("uplink", f"call {call} again", now_s, arrival_s, call=call, bytes=size_bytes)

    def land_again(self, now_s: float, call: int) -> None:
        """A repeated request arrives: the cloud now knows the connection, and repeats the reply if there was one."""
        assert self.in_flight is not None
        self.disconnected = False
        if call >= self.landed:
            self.land(now_s)
            return
        del self.in_flight[call]
        if call < self.answered:
            self.reply_again(now_s, call)

    def reply_again(self, now_s: float, call: int) -> None:
        """Send the reply to a finished call that was lost or held."""
        if call == self.awaiting:
            if self.device.up.ready_s > self.booked_until_s:
                self.wake(now_s)
            self.uplink_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
        size_bytes, first = self.calls[call][CALL_REPLY]
        self.held.discard(call)
        self.run.count_bytes(self.request, 0, size_bytes)
        arrival_s = self.tell(now_s, self.device.down, size_bytes)
        if arrival_s == NEVER:
            self.never(now_s, self.awaiting, f"the reply to call {call}", "downlink")
        elif self.traced:
            self.span("downlink", f"reply {call}", now_s, arrival_s, call=call, bytes=size_bytes)
        if call == self.awaiting:
            self.awaiting = -1
            if first:
                self.first_token_s = arrival_s
            self.receive(now_s, arrival_s)
        else:
            self.replies[call] = arrival_s

    def give_up(self, now_s: float) -> None:
        """The device continues alone; the cloud is not informed, serves the call when it arrives, and replies."""
        call, recovering = self.expected, type(self) is not DeadlineSession
        if not self.first_token_s <= now_s:
            self.first_token_s = math.nan
        program = self.run.timed_out_at(self, call)
        self.steps, self.calls = program.steps, program.calls
        self.run.count_bytes(self.request, 0, -sum(reply[DOWN_BYTES] for _, _, _, reply in self.calls[self.answered :]))
        self.awaiting = -1
        self.charged = self.ended = False
        alone = cast("OfflineSession", self)
        self.__class__ = OfflineSession
        if recovering:
            alone.lost(now_s)
        else:
            alone.settle(now_s)
        self.advance(now_s)


class OfflineSession(DeadlineSession):
    """A session that gave up a call: the device decodes the rest of the image alone, and the cloud's work is wasted.

    The request is over once device and cloud are done; `ended` says that the cloud is.
    """

    __slots__ = ()

    def finish(self, now_s: float) -> None:
        self.done_s = now_s
        if self.run.closed is not None:
            self.run.ask(self.device.number, now_s)
        self.run.keep(self)
        if self.ended:
            self.leave()
        else:
            self.run.draining += 1

    def settle(self, now_s: float) -> None:
        """Release the replica once the cloud has no work for the session and none is on its way."""
        if self.answered < self.landed or self.in_flight:
            return
        self.device.cloud.close(self, now_s)
        if not self.ended:
            self.ended = True
            if self.done_s == self.done_s:
                self.run.draining -= 1
                self.run.keep(self)
                self.leave()

    def leave(self) -> None:
        """Both sides are done."""
        # Not earlier: messages of this session may share the links with those of the device's next one.
        self.device.count(-1)
        self.run.forget()

    def lost(self, now_s: float) -> None:
        """The cloud has lost the session: no message on its way has an effect."""
        assert self.in_flight is not None
        for alarm in self.in_flight.values():
            alarm.callbacks = ()
        self.in_flight = {}
        self.landed = self.answered
        self.settle(now_s)

    def reply(self, now_s: float) -> None:
        call = self.answered
        self.answered = call + 1
        if self.disconnected:
            self.held.add(call)
        else:
            self.reply_again(now_s, call)
        self.settle(now_s)

    def land_again(self, now_s: float, call: int) -> None:
        super().land_again(now_s, call)
        self.settle(now_s)

    def never(self, now_s: float, awaited: int, what: str, way: str) -> None:
        pass

    def admitted(self, now_s: float) -> None:
        super().admitted(now_s)
        self.settle(now_s)

    def refused(self, now_s: float) -> None:
        self.device.cloud.refused -= 1  # the device answers the request
        self.lost(now_s)

    def crashed(self, now_s: float, working: bool) -> None:
        self.lost(now_s)

    def broken(self, now_s: float) -> None:
        pass

    def resent(self, now_s: float) -> None:
        pass

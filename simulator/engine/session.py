"""A request in virtual time: a session runs its program's steps on the device and its calls in the cloud.

Rare states are subclasses, entered by assigning `__class__`: `RefusedSession`, `RecoveringSession`, `RestartingSession`,
`OfflineSession`. They change how most events are handled, and several of them nest (a crash during a fallback). A handler object
asked at each event would add a call per event, and a whole call takes two events; flags would put a branch for each rare state
into every hot method. All subclasses have the same slots, so the assignment is safe, and callbacks that are already scheduled
find the new behaviour because they look the method up when they run.

The file is longer than others because it is one class, whose methods follow one request from its first step to its last.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from simulator.cloud.work import CloudSession
from simulator.core.errors import DeadlockError
from simulator.engine.case import CaseInputs
from simulator.engine.clock import Alarm, Clock
from simulator.engine.device import Device
from simulator.engine.fallback import Fallback
from simulator.engine.measures import NEVER
from simulator.engine.workload import ClosedLoop
from simulator.network.access import AnyLink
from simulator.pricing.program import (
    CALL_BYTES,
    CALL_REPLY,
    COMPANION,
    ENCODE,
    IMAGE_DECODE,
    ITEM_PARTS,
    OTHER,
    PASS,
    CallProgram,
    DeviceStep,
    Down,
    Item,
    SessionProgram,
)
from simulator.results.timeline import Span

# Names of items of work in the timeline, by kind.
_WORK = {
    PASS: "call {}",
    COMPANION: "call {}: the device's model",
    OTHER: "call {}: other work",
    ENCODE: "caption encoder",
    IMAGE_DECODE: "image decoder",
}


class SessionHost(Protocol):
    """The part of a run that its sessions use.

    Attributes:
        closed: the closed loop of the devices; None for predetermined arrivals.
        retries: number of repetitions of open requests, by request.
        draining: answered requests on which the cloud still works.
    """

    clock: Clock
    closed: ClosedLoop | None
    fallback: Fallback | None
    inputs: CaseInputs
    spans: list[Span]
    retries: dict[int, int]
    draining: int

    def ask(self, number: int, now_s: float) -> None:
        """A device of a closed loop thinks from now on, then sends a request."""
        ...

    def close(self, session: "Session") -> None:
        """`keep` and `forget`."""
        ...

    def keep(self, session: "Session") -> None:
        """Store the session's measurements."""
        ...

    def forget(self) -> None:
        """Count one open request less."""
        ...

    def recover(self, session: "Session") -> None:
        """Put the session into the state after a crash of its replica."""
        ...

    def timed_out_at(self, session: "Session", call: int) -> SessionProgram:
        """Return the program of a session that stops waiting for `call`."""
        ...

    def count_bytes(self, request: int, up: int, down: int) -> None:
        """Add payload bytes beyond those of the program."""
        ...


class Session(CloudSession):
    """One request: steps on the device, and calls that the cloud serves in order; several calls may be open at a time.

    The device side may run ahead of the clock (`Device.safe_until_s`), the cloud side never does.
    """

    __slots__ = (
        "alarm",
        "answered",
        "awaiting",
        "booked_before",
        "calls",
        "clock",
        "connect_s",
        "context_bytes",
        "device",
        "device_queue_s",
        "disconnected",
        "done_s",
        "downlink_s",
        "due_s",
        "ended",
        "expected",
        "first_token_s",
        "held",
        "in_flight",
        "landed",
        "last",
        "late",
        "optional",
        "redo",
        "replies",
        "request",
        "resent_bytes",
        "run",
        "sent",
        "step",
        "steps",
        "throttled_s",
        "tries",
        "uplink_s",
        "wait_s",
    )

    def __init__(self, run: SessionHost, request: int, device: Device, program: SessionProgram) -> None:
        super().__init__()
        self.run = run
        self.clock = run.clock
        self.device = device
        self.request = request
        self.steps: tuple[DeviceStep, ...] = program.steps
        self.calls: tuple[CallProgram, ...] = program.calls
        self.context_bytes = program.context_bytes
        self.kv_need = program.kv_tokens
        self.last = len(program.calls) - 1
        self.step = 0  # the next step
        self.sent = 0  # calls sent; counted only where the device has a radio
        self.awaiting = -1  # call whose reply the device waits for
        self.landed = 0  # calls that have arrived in the cloud
        self.answered = 0  # calls whose reply has left the cloud: all before this one
        self.replies: dict[int, float] = {}  # arrivals of replies that were not awaited when they left
        self.redo: tuple[Item, ...] | None = None  # after a crash: remaining items of the call that was being served
        self.in_flight: dict[int, Alarm] | None = None  # see `DeadlineSession`
        self.first_token_s = self.done_s = math.nan
        self.device_queue_s = self.uplink_s = self.downlink_s = self.connect_s = self.wait_s = 0.0
        self.throttled_s = 0.0
        self.resent_bytes = 0

    # Device side.

    def advance(self, now_s: float) -> None:
        """Run the steps from the next one, which is ready at `now_s`: the clock's time, or later but before `safe_until_s`."""
        device = self.device
        steps = self.steps
        while self.step < len(steps):
            seconds, first_s, send, wait = steps[self.step]
            if seconds > 0.0 or first_s >= 0.0:
                start_s = device.free_s
                if start_s > now_s:
                    self.device_queue_s += start_s - now_s
                else:
                    start_s = now_s
                if device.thermal is not None:
                    cool_s, (first_s, seconds) = seconds, device.thermal.stretch(start_s, first_s, seconds)
                    self.throttled_s += seconds - cool_s
                device.free_s = now_s = start_s + seconds
                if first_s >= 0.0:
                    self.first_token_s = start_s + first_s
                if self.traced:
                    self.span("device", "compute", start_s, now_s)
                if now_s >= device.safe_until_s or self.answered < self.sent:
                    self.clock.at(now_s, COMPUTED, self)
                    return
            if not self.exchange(now_s, send, wait):
                return
        if now_s > self.clock.now:
            self.clock.at(now_s, FINISHED, self)
        else:
            self.finish(now_s)

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        """Send and await after the computing of a step. Returns whether the next step is ready at the same time."""
        self.step += 1
        if send >= 0:
            device = self.device
            if device.radio is not None:
                device.radio.request = self.request
                self.sent = send + 1
            arrival_s = device.up.send(now_s, self.calls[send][CALL_BYTES])
            if arrival_s == NEVER:
                self.unreachable(now_s, send, wait)
            else:
                alarm = self.clock.at(arrival_s, LANDED, self)
                if self.in_flight is not None:
                    self.in_flight[send] = alarm
                if self.traced:
                    self.span("uplink", f"call {send}", now_s, arrival_s, call=send, bytes=self.calls[send][CALL_BYTES])
        if wait < 0:
            return True
        if wait == send:
            self.awaiting = wait
            self.booked_until_s = now_s
            return False
        # The state of an earlier call is known only when the clock reaches now_s.
        if now_s > self.clock.now:
            self.clock.at(now_s, JOINED, self)
            return False
        return self.join(now_s, wait)

    def join(self, now_s: float, call: int) -> bool:
        """Await a call of an earlier step. Returns whether its reply has already arrived."""
        arrival_s = self.replies.pop(call, None)
        if arrival_s is None:
            self.awaiting = call
            self.booked_until_s = now_s
            self.charged = call < self.landed
            return False
        if arrival_s <= now_s:
            return True
        self.receive(now_s, arrival_s)
        return False

    def receive(self, now_s: float, arrival_s: float) -> None:
        """The awaited reply has left the cloud and arrives at `arrival_s`."""
        asleep_s = self.device.down.ready_s
        if asleep_s > now_s:
            asleep_s = min(asleep_s, arrival_s) - now_s
            self.wait_s += asleep_s
            self.downlink_s -= asleep_s
        self.downlink_s += arrival_s - now_s
        if arrival_s < self.device.safe_until_s and self.answered >= self.sent:
            self.advance(arrival_s)
        else:
            self.clock.at(arrival_s, RECEIVED, self)

    def finish(self, now_s: float) -> None:
        """The device has finished; calls that are never awaited may still be open."""
        self.done_s = now_s
        self.device.count(-1)
        if self.run.closed is not None:
            self.run.ask(self.device.number, now_s)
        if self.answered == len(self.calls):
            self.run.close(self)

    # Cloud side.

    def land(self, now_s: float) -> None:
        """The next call arrives in the cloud."""
        call = self.landed
        self.landed = call + 1
        if call == self.awaiting:
            if self.device.up.ready_s > self.booked_until_s:
                self.wake(now_s)
            self.uplink_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
            self.charged = True
        if call == self.answered:
            self.serve(now_s)

    def wake(self, landed_s: float) -> None:
        """Book the times that an awaited call waited before it left the device: the handshake, then the radio."""
        up = self.device.up
        if up.open_s > self.booked_until_s:
            open_s = min(up.open_s, landed_s)
            self.connect_s += open_s - self.booked_until_s
            self.booked_until_s = open_s
        if up.ready_s > self.booked_until_s:
            ready_s = min(up.ready_s, landed_s)
            self.wait_s += ready_s - self.booked_until_s
            self.booked_until_s = ready_s

    def serve(self, now_s: float) -> None:
        """Serve arrived calls in order until one has work for a replica."""
        while self.answered < self.landed:
            _, lead, items, _ = self.calls[self.answered]
            replica = self.replica or self.device.cloud.open(self, now_s)
            if replica is None:
                return
            if lead:
                self.emit(now_s, lead)
            if items:
                replica.submit(self, now_s, items)
                return
            self.reply(now_s)

    def served(self, now_s: float) -> None:
        self.reply(now_s)
        if self.answered < self.landed:
            self.serve(now_s)

    def reply(self, now_s: float) -> None:
        call = self.answered
        self.answered = call + 1
        size_bytes, first = self.calls[call][CALL_REPLY]
        device = self.device
        if device.radio is not None:
            device.radio.request = self.request
        arrival_s = device.down.send(now_s, size_bytes)
        if arrival_s == NEVER:
            self.never(now_s, self.awaiting, f"the reply to call {call}", "downlink")
        if first:
            self.first_token_s = arrival_s
        if self.traced and arrival_s < NEVER:
            self.span("downlink", f"reply {call}", now_s, arrival_s, call=call, bytes=size_bytes)
        if call == self.last:  # the request says that it is the last one, so the replica need not wait for the device
            device.cloud.close(self, now_s)
        if call == self.awaiting:  # all time until now is booked already
            self.awaiting = -1
            self.charged = False
            self.receive(now_s, arrival_s)
        else:
            self.replies[call] = arrival_s
            if self.done_s == self.done_s and self.answered == len(self.calls):
                self.run.close(self)

    def emit(self, now_s: float, parts: tuple[Down, ...]) -> None:
        device = self.device
        for size_bytes, first in parts:
            if device.radio is not None:
                device.radio.request = self.request
            arrival_s = device.down.send(now_s, size_bytes)
            if arrival_s == NEVER:
                self.never(now_s, self.awaiting, f"a part of the reply to call {self.answered}", "downlink")
            if first:
                self.first_token_s = arrival_s
            if self.traced and arrival_s < NEVER:
                name = f"part of {self.answered}"
                self.span("downlink", name, now_s, arrival_s, call=self.answered, bytes=size_bytes)

    def unreachable(self, now_s: float, call: int, wait: int) -> None:
        """Handle a request that never arrives. wait: the call that the sending step awaits, -1 for none."""
        opening = self.device.up.open_s == NEVER
        what, way = ("its connection to open", "link") if opening else (f"call {call} to reach the cloud", "uplink")
        self.never(now_s, wait, what, way)

    def never(self, now_s: float, awaited: int, what: str, way: str) -> None:
        """Raise DeadlockError, because a link never carries anything again.

        Args:
            now_s: time from which on the link carries nothing.
            awaited: the call that the device waits for, -1 for none.
            what: what the request waits for, for the message.
            way: the link, for the message.
        """
        raise DeadlockError(
            f"deadlock at {now_s:.6g} s of simulated time: request {self.request} of device {self.device.number} waits for {what}, but the "
            f"{way} has no bandwidth from then on; give network a trace that has some, or let the device go on by a fallback"
        )

    # Rare events.

    def admitted(self, now_s: float) -> None:
        if self.traced:
            self.span("queue", "admission", self.booked_until_s if self.charged else now_s, now_s)
        if self.charged:  # booked here, because a call without work for a replica has no iteration that would book it
            self.cloud_queue_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
        self.serve(now_s)

    def refused(self, now_s: float) -> None:
        """End the session without an answer, because the cloud refused it; the device finishes its current step."""
        self.__class__ = RefusedSession
        self.device.count(-1)
        if self.run.closed is not None:
            self.run.ask(self.device.number, now_s)
        self.run.forget()

    def crashed(self, now_s: float, working: bool) -> None:
        """Break the connection; the device will send the context that a new replica needs, one message of `context_bytes`."""
        if self.charged:
            self.cloud_queue_s += now_s - self.booked_until_s
            self.booked_until_s = now_s
        self.device.lost_s = now_s
        self.redo = None
        if working:  # work before the last part that has left the cloud is not repeated
            left = next((i + 1 for i in range(self.index - 1, -1, -1) if self.items[i][ITEM_PARTS]), 0)
            self.redo = self.items[left:]
        self.run.recover(self)
        self.clock.at(self.tell(now_s, self.device.down, 0), BROKEN, self)

    def tell(self, now_s: float, link: AnyLink, size_bytes: int) -> float:
        """Send a message that is not part of the program, and return its arrival time."""
        device = self.device
        if device.radio is not None:
            device.radio.request = self.request
        return link.send(now_s, size_bytes)

    # Timeline.

    def span(self, track: str, name: str, start_s: float, end_s: float, **args: int | tuple[int, ...]) -> None:
        self.run.spans.append(Span(self.request, self.device.number, track, name, start_s, end_s, tuple(args.items())))

    def trace_iteration(self, start_s: float, end_s: float, replica: int, batch: Sequence[CloudSession]) -> None:
        call = self.answered
        if self.ready_s < start_s:
            self.span("queue", f"call {call}", self.ready_s, start_s, call=call, replica=replica)
        rows, tokens, kv_tokens, _, _, _, kind, _ = self.item
        work = {"rows": rows, "tokens": tokens, "kv_tokens": kv_tokens} if kind <= COMPANION else {}
        # Without background jobs.
        requests = tuple(other.request for other in batch if isinstance(other, Session))
        work["batch"] = len(batch)
        self.span(
            "cloud", _WORK[kind].format(call), start_s, end_s, call=call, replica=replica, requests=requests, **work
        )


class RefusedSession(Session):
    """A session without an answer: its scheduled events do nothing."""

    __slots__ = ()

    def advance(self, now_s: float) -> None:
        pass

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        return False

    def join(self, now_s: float, call: int) -> bool:
        return False

    def finish(self, now_s: float) -> None:
        pass

    def land(self, now_s: float) -> None:
        pass

    def due(self, now_s: float) -> None:
        pass

    def land_again(self, now_s: float, call: int) -> None:
        pass


def _on_broken(alarm: Alarm) -> None:
    alarm.subject.broken(alarm.time_s)


def _on_resent(alarm: Alarm) -> None:
    alarm.subject.resent(alarm.time_s)


def _on_computed(alarm: Alarm) -> None:
    session: Session = alarm.subject
    now_s = alarm.time_s
    _, _, send, wait = session.steps[session.step]
    if session.exchange(now_s, send, wait):
        session.advance(now_s)


def _on_joined(alarm: Alarm) -> None:
    session: Session = alarm.subject
    now_s = alarm.time_s
    if session.join(now_s, session.steps[session.step - 1][3]):
        session.advance(now_s)


def _on_received(alarm: Alarm) -> None:
    alarm.subject.advance(alarm.time_s)


def _on_landed(alarm: Alarm) -> None:
    alarm.subject.land(alarm.time_s)


def _on_finished(alarm: Alarm) -> None:
    alarm.subject.finish(alarm.time_s)


def _on_due(alarm: Alarm) -> None:
    alarm.subject.due(alarm.time_s)


def _on_landed_again(alarm: Alarm) -> None:
    session, call = alarm.subject
    session.land_again(alarm.time_s, call)


COMPUTED, JOINED, RECEIVED, LANDED, FINISHED, BROKEN, RESENT, DUE, LANDED_AGAIN = (
    (_on_computed,),
    (_on_joined,),
    (_on_received,),
    (_on_landed,),
    (_on_finished,),
    (_on_broken,),
    (_on_resent,),
    (_on_due,),
    (_on_landed_again,),
)

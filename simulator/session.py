"""A request in virtual time: the session that walks its program's steps, its device, and the clock that calls both back.

What seldom happens (a refusal, an end of patience, a crash) is a subclass of `Session`, which a session becomes when it happens, so
that the way that is walked a million times knows nothing of it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import simpy
from simpy.events import NORMAL

from simulator.cloud import CloudSession, recomputed
from simulator.costs import Costs
from simulator.errors import DeadlockError
from simulator.heat import Heat, Throttling
from simulator.network import Access, AnyLink, Network
from simulator.replay import PASS, CallProgram, Down, Item, SessionProgram, Step
from simulator.rng import stream

if TYPE_CHECKING:
    from simulator.engine import Run

_NEVER = math.inf
TRACKS = ("device", "uplink", "queue", "cloud", "downlink")  # of a span
ID_BYTES = 2  # of a token id on the wire


@dataclass(frozen=True)
class FleetPart:
    """Devices of one kind: how many, one program per prompt priced for them, their costs and network. priority: higher is served
    first by a queue of that discipline. slo_s: after a request comes its deadline. throttling: of a device that grows hot.
    broken_off: the programs of sessions that stopped waiting, by prompt and call.
    """

    devices: int
    programs: Sequence[SessionProgram]
    device: Costs
    network: Network
    priority: int = 0
    slo_s: float = math.inf
    throttling: Throttling | None = None
    broken_off: Mapping[tuple[int, int], SessionProgram] = field(default_factory=dict)


class Span(NamedTuple):
    """What a session did or waited for. track: one of TRACKS; uplink and downlink run from sending to arrival."""

    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float


class Clock(simpy.Environment):
    """SimPy's clock and queue, with callbacks at absolute times: `now + (t - now)` would not always be t."""

    def at(self, time_s: float, callbacks: tuple[Callable[[Any], None], ...], subject: Any) -> "Alarm":
        alarm = Alarm(callbacks, subject, time_s)
        heappush(self._queue, (time_s, NORMAL, next(self._eid), alarm))  # type: ignore[misc]
        return alarm

    def run(self, until: Any = None) -> Any:
        """As SimPy's; until nothing is scheduled any more, its loop less what only its own events ask of it."""
        if until is not None:
            return super().run(until)
        queue = self._queue
        while queue:
            self._now, _, _, alarm = heappop(queue)
            for callback in alarm.callbacks:
                callback(alarm)
        return None

    def drop(self) -> None:
        """Nothing that is scheduled happens any more."""
        self._queue.clear()

    def events(self) -> int:
        """Events scheduled so far; to be asked once, at the end."""
        return next(self._eid)


class Alarm:
    """As much of a SimPy event as its loop looks at, without the rest."""

    __slots__ = ("callbacks", "subject", "time_s")
    _ok: ClassVar[bool] = True

    def __init__(self, callbacks: tuple[Callable[[Any], None], ...], subject: Any, time_s: float) -> None:
        self.callbacks = callbacks
        self.subject = subject
        self.time_s = time_s


class Device:
    """A device: taken until `free_s`. horizon_s: before it, only the one open session can ask anything of it. ahead: whether it may
    work ahead of the clock at all, which it must not where other devices queue for its wires.
    """

    __slots__ = (
        "ahead", "down", "free_s", "heat", "horizon_s", "lost_s", "next_request_s", "number", "open_sessions", "part", "radio",
        "reopened_s", "up",
    )  # fmt: skip

    def __init__(self, number: int, part: FleetPart, access: Access, ahead: bool = True) -> None:
        self.number = number
        self.part = part
        self.up, self.down, self.radio = access.links(number)
        self.free_s = 0.0
        self.open_sessions = 0
        self.next_request_s = math.inf
        self.heat = None if part.throttling is None else Heat(part.throttling)
        self.lost_s = self.reopened_s = -math.inf  # when a crash last took the connection, and when the device began another one
        self.ahead = ahead and access.network.devices_per_cell == 1
        self.horizon_s = -math.inf

    def count(self, change: int) -> None:
        """A session opens (+1) or ends (-1)."""
        self.open_sessions += change
        self.horizon_s = self.next_request_s if self.open_sessions == 1 and self.ahead else -math.inf


class Session(CloudSession):
    """One request on its way: steps on the device, calls through the cloud in order, several of them open at times.

    The device side may be ahead of the clock (see `Device.horizon_s`), the cloud side never is.
    """

    __slots__ = (
        "alarm",
        "answered",
        "awaiting",
        "before",
        "calls",
        "clock",
        "connect_s",
        "context_bytes",
        "cut",
        "device",
        "device_queue_s",
        "done_s",
        "downlink_s",
        "due_s",
        "ended",
        "expected",
        "first_token_s",
        "flying",
        "held",
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
    )  # fmt: skip

    def __init__(self, run: "Run", request: int, device: Device, program: SessionProgram) -> None:
        super().__init__()
        self.run = run
        self.clock = run.clock
        self.device = device
        self.request = request
        self.steps: tuple[Step, ...] = program.steps
        self.calls: tuple[CallProgram, ...] = program.calls
        self.context_bytes = program.context_bytes
        self.kv_need = program.kv_tokens
        self.last = len(program.calls) - 1
        self.step = 0  # next one to begin
        self.sent = 0  # calls sent; kept up only where the device has a radio
        self.awaiting = -1  # call whose reply the device waits for
        self.landed = 0  # calls that have arrived in the cloud
        self.answered = 0  # calls whose reply has left the cloud: all before this one
        self.replies: dict[int, float] = {}  # arrivals of replies that were not awaited when they left
        self.redo: tuple[Item, ...] | None = None  # after a crash: what is left of the call that was under way
        self.flying: dict[int, Alarm] | None = None  # see `Impatient`
        self.first_token_s = self.done_s = math.nan
        self.device_queue_s = self.uplink_s = self.downlink_s = self.connect_s = self.wait_s = 0.0
        self.throttled_s = 0.0
        self.resent_bytes = 0

    # Device side.

    def advance(self, now_s: float) -> None:
        """Walk on from the next step, ready at `now_s`: the clock, or ahead of it but before the horizon."""
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
                if device.heat is not None:
                    cool_s, (first_s, seconds) = seconds, device.heat.stretch(start_s, first_s, seconds)
                    self.throttled_s += seconds - cool_s
                device.free_s = now_s = start_s + seconds
                if first_s >= 0.0:
                    self.first_token_s = start_s + first_s
                if self.traced:
                    self.span("device", "compute", start_s, now_s)
                if now_s >= device.horizon_s or self.answered < self.sent:
                    self.clock.at(now_s, _COMPUTED, self)
                    return
            if not self.exchange(now_s, send, wait):
                return
        if now_s > self.clock.now:
            self.clock.at(now_s, _FINISHED, self)
        else:
            self.finish(now_s)

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        """The rest of a step once its computing is done; whether the next step is ready at the same time."""
        self.step += 1
        if send >= 0:
            device = self.device
            if device.radio is not None:
                device.radio.request = self.request
                self.sent = send + 1
            arrival_s = device.up.send(now_s, self.calls[send][0])
            if arrival_s == _NEVER:
                self.unreachable(now_s, send, wait)
            else:
                alarm = self.clock.at(arrival_s, _LANDED, self)
                if self.flying is not None:
                    self.flying[send] = alarm
                if self.traced:
                    self.span("uplink", f"call {send}", now_s, arrival_s)
        if wait < 0:
            return True
        if wait == send:
            self.awaiting = wait
            self.mark_s = now_s
            return False
        # How far an earlier call has come is known only once the clock is there.
        if now_s > self.clock.now:
            self.clock.at(now_s, _JOINED, self)
            return False
        return self.join(now_s, wait)

    def join(self, now_s: float, call: int) -> bool:
        """Await a call sent by an earlier step; whether its reply is here already."""
        arrival_s = self.replies.pop(call, None)
        if arrival_s is None:
            self.awaiting = call
            self.mark_s = now_s
            self.charged = call < self.landed
            return False
        if arrival_s <= now_s:
            return True
        self.receive(now_s, arrival_s)
        return False

    def receive(self, now_s: float, arrival_s: float) -> None:
        """The awaited reply is on its way down."""
        asleep_s = self.device.down.ready_s
        if asleep_s > now_s:
            asleep_s = min(asleep_s, arrival_s) - now_s
            self.wait_s += asleep_s
            self.downlink_s -= asleep_s
        self.downlink_s += arrival_s - now_s
        if arrival_s < self.device.horizon_s and self.answered >= self.sent:
            self.advance(arrival_s)
        else:
            self.clock.at(arrival_s, _RECEIVED, self)

    def finish(self, now_s: float) -> None:
        """The device has done its part; calls sent and never awaited may still be open."""
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
            if self.device.up.ready_s > self.mark_s:
                self.wake(now_s)
            self.uplink_s += now_s - self.mark_s
            self.mark_s = now_s
            self.charged = True
        if call == self.answered:
            self.serve(now_s)

    def wake(self, landed_s: float) -> None:
        """Book what an awaited call waited for before it left: the opening of the connection, then the radio."""
        up = self.device.up
        if up.open_s > self.mark_s:
            open_s = min(up.open_s, landed_s)
            self.connect_s += open_s - self.mark_s
            self.mark_s = open_s
        if up.ready_s > self.mark_s:
            ready_s = min(up.ready_s, landed_s)
            self.wait_s += ready_s - self.mark_s
            self.mark_s = ready_s

    def serve(self, now_s: float) -> None:
        """Take up calls that have arrived, in order, until one has work for a replica."""
        while self.answered < self.landed:
            _, lead, items, _ = self.calls[self.answered]
            replica = self.replica or self.run.cloud.open(self, now_s)
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
        size_bytes, first = self.calls[call][3]
        device = self.device
        if device.radio is not None:
            device.radio.request = self.request
        arrival_s = device.down.send(now_s, size_bytes)
        if arrival_s == _NEVER:
            self.never(now_s, self.awaiting, f"the reply to call {call}", "downlink")
        if first:
            self.first_token_s = arrival_s
        if self.traced and arrival_s < _NEVER:
            self.span("downlink", f"reply {call}", now_s, arrival_s)
        if call == self.last:  # which the request says: the replica need not wait for what the device does with it
            self.run.cloud.close(self, now_s)
        if call == self.awaiting:  # then all until now is booked
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
            if arrival_s == _NEVER:
                self.never(now_s, self.awaiting, f"a part of the reply to call {self.answered}", "downlink")
            if first:
                self.first_token_s = arrival_s
            if self.traced and arrival_s < _NEVER:
                self.span("downlink", f"part of {self.answered}", now_s, arrival_s)

    def unreachable(self, now_s: float, call: int, wait: int) -> None:
        """A request that never arrives; the step that sent it awaits `wait`, if anything."""
        opening = self.device.up.open_s == _NEVER
        what, way = ("its connection to open", "link") if opening else (f"call {call} to reach the cloud", "uplink")
        self.never(now_s, wait, what, way)

    def never(self, now_s: float, awaited: int, what: str, way: str) -> None:
        """A link never carries anything again. awaited: the call that the device waits for, -1 for none. Raises DeadlockError."""
        raise DeadlockError(
            f"deadlock at {now_s:.6g} s of simulated time: request {self.request} of device {self.device.number} waits for {what}, but the "
            f"{way} has no bandwidth from then on; give network a trace that has some, or let the device go on by a fallback"
        )

    # What seldom happens: a change of class takes the session out of the way that is walked a million times.

    def admitted(self, now_s: float) -> None:
        if self.traced:
            self.span("queue", "admission", self.mark_s if self.charged else now_s, now_s)
        if self.charged:  # here, because a call without work for a replica would not book it
            self.cloud_queue_s += now_s - self.mark_s
            self.mark_s = now_s
        self.serve(now_s)

    def refused(self, now_s: float) -> None:
        """The device is told; what it has begun it finishes for nothing, and its request has no answer."""
        self.__class__ = Refused
        self.device.count(-1)
        if self.run.closed is not None:
            self.run.ask(self.device.number, now_s)
        self.run.forget()

    def crashed(self, now_s: float, working: bool) -> None:
        """The connection breaks; the device sends what a replica needs to go on: one message, `context_bytes` long."""
        if self.charged:
            self.cloud_queue_s += now_s - self.mark_s
            self.mark_s = now_s
        self.device.lost_s = now_s
        self.redo = None
        if working:  # what has left the cloud is not made again
            left = next((i + 1 for i in range(self.index - 1, -1, -1) if self.items[i][7]), 0)
            self.redo = self.items[left:]
        self.__class__ = Recovering
        if self.flying is None:
            cast("Impatient", self).prepare(frozenset())
        self.clock.at(self.tell(now_s, self.device.down, 0), _BROKEN, self)

    def tell(self, now_s: float, link: AnyLink, size_bytes: int) -> float:
        """Send a message that belongs to no call; when it arrives."""
        device = self.device
        if device.radio is not None:
            device.radio.request = self.request
        return link.send(now_s, size_bytes)

    # Timeline.

    def span(self, track: str, name: str, start_s: float, end_s: float) -> None:
        self.run.spans.append(Span(self.request, self.device.number, track, name, start_s, end_s))

    def trace_iteration(self, start_s: float, end_s: float) -> None:
        name = f"call {self.answered}"
        if self.ready_s < start_s:
            self.span("queue", name, self.ready_s, start_s)
        self.span("cloud", name, start_s, end_s)


class Refused(Session):
    """A session that goes no further: its events come to nothing."""

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


_AWAITED = ("connect_s", "uplink_s", "downlink_s", "wait_s", "cloud_queue_s", "cloud_compute_s", "encode_s", "image_decode_s")


class Impatient(Session):
    """A session that does not wait for ever where it can do without the reply (`Fallback`).

    To try again is to open another connection, over which all goes from then on, and to send every request again that had no answer.
    What was under way for this session on the old one is lost. The cloud works on each call once: where it has the request, it only
    sends the reply, as soon as it knows of the new connection.
    """

    __slots__ = ()

    def prepare(self, optional: frozenset[int]) -> None:
        self.optional = optional  # calls whose reply it can do without
        self.flying = {}  # requests under way: the alarm of their arrival
        self.alarm: Alarm | None = None  # at due_s, the end of its patience with the reply to `expected`
        self.late: tuple[float, float] | None = None  # when a reply left that comes after due_s, and when it comes
        self.cut = False  # the cloud does not know of the latest connection yet
        self.held: set[int] = set()  # calls whose reply waits for that, or was lost and is to be sent again

    def exchange(self, now_s: float, send: int, wait: int) -> bool:
        if wait == send and wait in self.optional:
            self.expect(now_s, wait)
        return super().exchange(now_s, send, wait)

    def join(self, now_s: float, call: int) -> bool:
        if call in self.optional:
            self.expect(now_s, call)
        here = super().join(now_s, call)
        if here:
            self.content()
        return here

    def expect(self, now_s: float, call: int) -> None:
        rule = self.run.fallback
        assert rule is not None
        self.expected, self.tries, self.late = call, 1, None
        self.wait_for(now_s, rule.deadline_s)

    def wait_for(self, now_s: float, seconds: float) -> None:
        self.before = (now_s, *[getattr(self, name) for name in _AWAITED])
        self.due_s = now_s + seconds
        self.alarm = self.clock.at(self.due_s, _DUE, self)

    def content(self) -> None:
        if self.alarm is not None:
            self.alarm.callbacks = ()
            self.alarm = None

    def receive(self, now_s: float, arrival_s: float) -> None:
        if self.alarm is not None and arrival_s > self.due_s:
            self.late = (now_s, arrival_s)
        else:
            self.content()
            super().receive(now_s, arrival_s)

    def land(self, now_s: float) -> None:
        """The next call arrives, and with it those that overtook it on a connection which another session of the device opened."""
        assert self.flying is not None
        if self.landed in self.flying and self.flying[self.landed].time_s > now_s:
            return  # it is a later one that has arrived: the cloud takes calls up in order
        self.flying.pop(self.landed, None)
        super().land(now_s)
        while isinstance(self, Impatient) and self.landed in self.flying and self.flying[self.landed].time_s < now_s:
            del self.flying[self.landed]
            super().land(now_s)

    def reply(self, now_s: float) -> None:
        if self.cut:
            self.hold(now_s)
        else:
            super().reply(now_s)

    def hold(self, now_s: float) -> None:
        """As `reply`, but there is no connection that it could leave by."""
        call = self.answered
        self.answered = call + 1
        self.held.add(call)
        self.run.count_bytes(self.request, 0, -self.calls[call][3][0])
        if call == self.awaiting:
            self.charged = False
        if call == self.last:
            self.run.cloud.close(self, now_s)

    def never(self, now_s: float, awaited: int, what: str, way: str) -> None:
        rule = self.run.fallback
        if rule is None or not rule.gives_up or (awaited >= 0 and awaited not in self.optional):
            super().never(now_s, awaited, what, way)

    def due(self, now_s: float) -> None:
        """The end of its patience."""
        rule = self.run.fallback
        assert rule is not None
        self.alarm = None
        if self.tries < rule.attempts:
            self.in_vain(now_s)
            draw = stream(self.run.inputs.seed, "fallback.backoff", self.request, self.expected, self.tries).uniform(-1.0, 1.0)
            self.wait_for(now_s, rule.wait_s(self.tries, float(draw)))
            self.tries += 1
            self.mark_s = now_s
            late, self.late = self.late, None
            if type(self) is Impatient:
                self.retry(now_s)
            elif late is not None:  # after a crash the device is on its way back to the cloud already
                self.receive(now_s, late[1])
        elif rule.gives_up:
            self.in_vain(now_s)
            self.give_up(now_s)
        elif self.late is not None:
            super().receive(*self.late)

    def in_vain(self, now_s: float) -> None:
        """Book the wait until now as one that brought nothing."""
        start_s, *values = self.before
        for name, value in zip(_AWAITED, values, strict=True):
            setattr(self, name, value)
        self.wait_s += now_s - start_s

    def retry(self, now_s: float) -> None:
        assert self.flying is not None
        run, up, down = self.run, self.device.up, self.device.down
        done = self.steps[: self.step]
        heard = {step[3] for step in done[:-1]} | {call for call, arrival_s in self.replies.items() if arrival_s <= now_s}
        again = [step[2] for step in done if step[2] >= 0 and step[2] not in heard]
        for alarm in self.flying.values():
            alarm.callbacks = ()
        up.reconnect([self.calls[call][0] for call in self.flying])
        lost = [call for call in again if call < self.answered and call not in self.held]
        down.reconnect([self.calls[call][3][0] for call in lost])
        self.held.update(lost)
        if not self.first_token_s <= now_s:
            self.first_token_s = math.nan
        self.flying = {}
        self.cut = True
        self.awaiting = self.expected
        self.charged = self.answered <= self.expected < self.landed
        run.retries[self.request] = run.retries.get(self.request, 0) + 1
        for call in again:
            self.replies.pop(call, None)
            size_bytes = self.calls[call][0]
            run.count_bytes(self.request, size_bytes, 0)
            arrival_s = self.tell(now_s, up, size_bytes)
            if arrival_s == _NEVER:
                self.unreachable(now_s, call, self.expected)
                continue
            self.flying[call] = self.clock.at(arrival_s, _LANDED_AGAIN, (self, call))
            if self.traced:
                self.span("uplink", f"call {call} again", now_s, arrival_s)

    def land_again(self, now_s: float, call: int) -> None:
        assert self.flying is not None
        self.cut = False
        if call >= self.landed:
            self.land(now_s)
            return
        del self.flying[call]
        if call < self.answered:
            self.reply_again(now_s, call)

    def reply_again(self, now_s: float, call: int) -> None:
        """The call is done; its reply was lost or held."""
        if call == self.awaiting:
            if self.device.up.ready_s > self.mark_s:
                self.wake(now_s)
            self.uplink_s += now_s - self.mark_s
            self.mark_s = now_s
        size_bytes, first = self.calls[call][3]
        self.held.discard(call)
        self.run.count_bytes(self.request, 0, size_bytes)
        arrival_s = self.tell(now_s, self.device.down, size_bytes)
        if arrival_s == _NEVER:
            self.never(now_s, self.awaiting, f"the reply to call {call}", "downlink")
        elif self.traced:
            self.span("downlink", f"reply {call}", now_s, arrival_s)
        if call == self.awaiting:
            self.awaiting = -1
            if first:
                self.first_token_s = arrival_s
            self.receive(now_s, arrival_s)
        else:
            self.replies[call] = arrival_s

    def give_up(self, now_s: float) -> None:
        """The device goes on alone. The cloud does not know: it works on the call when it comes, and answers."""
        call, recovering = self.expected, type(self) is not Impatient
        if not self.first_token_s <= now_s:
            self.first_token_s = math.nan
        program = self.run.given_up_at(self, call)
        self.steps, self.calls = program.steps, program.calls
        self.run.count_bytes(self.request, 0, -sum(reply[0] for _, _, _, reply in self.calls[self.answered :]))
        self.awaiting = -1
        self.charged = self.ended = False
        alone = cast("Alone", self)
        self.__class__ = Alone
        if recovering:
            alone.lost(now_s)
        else:
            alone.settle(now_s)
        self.advance(now_s)


class Alone(Impatient):
    """A session that has given up a call: its device makes the rest of the image, while the cloud works for nothing.

    The request is over once both have done their part. ended: the cloud has.
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
            self.run.lingering += 1

    def settle(self, now_s: float) -> None:
        """Where the cloud has no work for the session, and none is on its way, its place and its memory are free."""
        if self.answered < self.landed or self.flying:
            return
        self.run.cloud.close(self, now_s)
        if not self.ended:
            self.ended = True
            if self.done_s == self.done_s:
                self.run.lingering -= 1
                self.run.keep(self)
                self.leave()

    def leave(self) -> None:
        self.device.count(-1)  # only now, for until here messages of this session met those of the device's next one
        self.run.forget()

    def lost(self, now_s: float) -> None:
        """The cloud no longer knows the session."""
        assert self.flying is not None
        for alarm in self.flying.values():
            alarm.callbacks = ()
        self.flying = {}
        self.landed = self.answered
        self.settle(now_s)

    def reply(self, now_s: float) -> None:
        call = self.answered
        self.answered = call + 1
        if self.cut:
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
        self.run.cloud.refused -= 1  # no request without an answer
        self.lost(now_s)

    def crashed(self, now_s: float, working: bool) -> None:
        self.lost(now_s)

    def broken(self, now_s: float) -> None:
        pass

    def resent(self, now_s: float) -> None:
        pass


class Recovering(Impatient):
    """A session without a replica after a crash. Calls that land wait until what a new replica needs is there, too."""

    __slots__ = ()

    def serve(self, now_s: float) -> None:
        pass

    def broken(self, now_s: float) -> None:
        """The device learns of it."""
        if self.charged and now_s > self.mark_s:
            asleep_s = min(self.device.down.ready_s, now_s) - self.mark_s
            if asleep_s > 0.0:
                self.wait_s += asleep_s
                self.mark_s += asleep_s
            self.downlink_s += now_s - self.mark_s
            self.mark_s = now_s
        device = self.device
        if device.lost_s > device.reopened_s:
            device.reopened_s = now_s
            device.up.reconnect()
            device.down.reconnect()
        call = self.answered
        size = 0 if call >= len(self.context_bytes) else self.context_bytes[call]
        if self.redo is not None and call < len(self.calls):  # the request again, and the ids of parts that have arrived
            size += self.calls[call][0] + sum(len(item[7]) for item in self.calls[call][2][: -len(self.redo)]) * ID_BYTES
        self.resent_bytes += size
        self.clock.at(self.tell(now_s, device.up, size), _RESENT, self)

    def resent(self, now_s: float) -> None:
        """A replica can be found again; the next pass feeds anew all that was cached."""
        if self.charged and now_s > self.mark_s:
            self.wake(now_s)
            self.uplink_s += now_s - self.mark_s
            self.mark_s = now_s
        self.__class__ = Restarting  # type: ignore[assignment]
        self.serve(now_s)


class Restarting(Impatient):
    """A session whose cache is to be made anew with its next call."""

    __slots__ = ()

    def serve(self, now_s: float) -> None:
        if self.answered >= len(self.calls) or (self.redo is None and self.answered >= self.landed):
            return
        replica = self.replica or self.run.cloud.open(self, now_s)
        if replica is None:
            return
        items = self.calls[self.answered][2] if self.redo is None else self.redo
        if self.redo is None and self.calls[self.answered][1]:
            self.emit(now_s, self.calls[self.answered][1])
        self.redo = None
        first = next((i for i, item in enumerate(items) if item[6] == PASS), None)
        if first is None:
            if items:
                replica.submit(self, now_s, items)
            else:
                self.reply(now_s)
                self.serve(now_s)
            return
        self.__class__ = Impatient  # type: ignore[assignment]
        replica.submit(self, now_s, (*items[:first], recomputed(items[first], self.run.inputs.cloud), *items[first + 1 :]))


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


_COMPUTED, _JOINED, _RECEIVED, _LANDED, _FINISHED, _BROKEN, _RESENT, _DUE, _LANDED_AGAIN = (
    (_on_computed,), (_on_joined,), (_on_received,), (_on_landed,), (_on_finished,), (_on_broken,), (_on_resent,), (_on_due,),
    (_on_landed_again,),
)  # fmt: skip

# What each session measures for itself; everything else follows from its program.
MEASURED = (
    "done_s", "first_token_s", "connect_s", "device_queue_s", "uplink_s", "downlink_s", "wait_s",
    "cloud_queue_s", "cloud_compute_s", "encode_s", "image_decode_s", "gpu_s", "throttled_s", "resent_bytes",
)  # fmt: skip
measured_of = attrgetter(*MEASURED)

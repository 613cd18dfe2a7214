"""A cell that serves its users in parallel, like a proportional-fair scheduler with users of equal mean rates.

In every time slot the scheduler serves the user whose channel is best relative to its own mean. Over many slots each of n users with
something to send gets 1/n of them; without fading that is 1/n of the cell's rate (processor sharing). If the channels fade
independently, each user is served while its channel is good, which raises the rate of all: for Rayleigh fading of mean signal-to-noise
ratio r and a rate of log2(1 + r x),

    gain(n) = E[log(1 + r max(x_1 .. x_n))] / E[log(1 + r x)],   x_i exponential of mean 1,

which tends to 1 + 1/2 + ... + 1/n for small r. The rate of the cell is that of one user alone. A user's messages wait for one another.
Slots are assumed to be short compared with messages: 1 ms in LTE, less in NR.

Other traffic is one more user of the cell, with its own queue: it takes its share while it is busy.

The time when a message has been sent depends on later messages, so it cannot be computed when the message is handed over: a cell has an
event for every message that it has sent, one for every message that starts later than it is handed over, and one for every time at which
other traffic with pauses begins or ends while users have something to send.

Sources: D. Tse and P. Viswanath, Fundamentals of Wireless Communication, sec. 6.6; E. Liu and K. Leung, VTC Spring 2008, for the sum at
small r.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np

from simulator.network.cross import Traffic
from simulator.network.link import ImpairedLink
from simulator.network.wire import Wire

_FADES = np.linspace(0.0, 60.0, 60_001)  # fading of a channel relative to its mean; 1e-26 of an exponential lies beyond


class Scheduled(Protocol):
    """A scheduled callback of the engine's clock."""

    callbacks: Any
    subject: Any
    time_s: float


At = Callable[[float, tuple[Callable[[Any], None], ...], Any], Scheduled]  # (time, callbacks, subject) -> alarm
Sent = Callable[[float], None]


def gain(users: int, snr_db: float | None = None) -> float:
    """Return the rate of a cell with `users` users that have something to send, divided by that with one. snr_db: None for no fading."""
    return 1.0 if snr_db is None else _mean_rate(users, snr_db) / _mean_rate(1, snr_db)


@cache  # few of the possible numbers of users occur
def _mean_rate(users: int, snr_db: float) -> float:
    """Return E[log(1 + r max(x_1 .. x_users))], by integration by parts."""
    snr = math.pow(10.0, snr_db / 10.0)
    slope = snr / (1.0 + snr * _FADES)  # derivative of log(1 + r x)
    below = -np.expm1(-_FADES)  # probability that the fading of one channel is below x
    return float(np.trapezoid(slope * (1.0 - below**users), _FADES))


class Other:
    """Other traffic in a cell: a user that sends whenever it is busy. Times may be queried in any order."""

    __slots__ = ("_begins_busy", "_ends_s", "_stream", "_traffic")

    def __init__(self, traffic: Traffic, stream: np.random.Generator) -> None:
        """Raises ValueError for fetches of fixed size, whose length depends on the rate that is left for them.

        Args:
            stream: random stream of its periods.
        """
        if traffic.fixed:
            raise ValueError("other traffic of a fair cell is greedy, or busy for times that do not depend on its rate")
        self._traffic = traffic
        self._stream = stream
        self._begins_busy = bool(stream.random() < traffic.busy_share)
        # Ends of its turns. The rest of an exponential turn is like a whole one.
        self._ends_s: list[float] = [self._turn_s(self._begins_busy)]

    def _turn_s(self, busy: bool) -> float:
        mean_s = self._traffic.busy_s if busy else self._traffic.quiet_s
        return mean_s * float(self._stream.standard_exponential()) if mean_s < math.inf else math.inf

    def at(self, time_s: float) -> tuple[bool, float]:
        """Return whether it is busy at a time, and the end of this turn."""
        ends_s = self._ends_s
        while ends_s[-1] <= time_s < math.inf:
            ends_s.append(ends_s[-1] + self._turn_s(self._begins_busy == (len(ends_s) % 2 == 0)))
        turn = bisect_right(ends_s, time_s)
        return self._begins_busy == (turn % 2 == 0), ends_s[min(turn, len(ends_s) - 1)]


class _Job:
    """A message in the cell. left_bits: bits that are still to be sent."""

    __slots__ = ("left_bits", "sent")

    def __init__(self, bits: float, sent: Sent) -> None:
        self.left_bits = bits
        self.sent = sent


class FairCell:
    """One direction of a cell. Its users' messages come in order of time."""

    def __init__(self, wire: Wire, at: At, snr_db: float | None = None, other: Other | None = None) -> None:
        """Create a cell with empty queues.

        Args:
            wire: the wire that its users share.
            at: schedules a callback.
            snr_db: mean signal-to-noise ratio of fading channels; None for no fading.
            other: other traffic; None for none.
        """
        self.wire = wire
        self._snr_db = snr_db
        self._at = at
        self._other = other
        self._queues: dict[int, deque[_Job]] = {}  # by user, for users that have something to send
        self._served_s = 0.0  # time until which all queues are served
        # At the end of the next message, or of the other traffic's turn if that is earlier.
        self._alarm: Scheduled | None = None

    @property
    def users(self) -> int:
        """Number of users that have something to send."""
        return len(self._queues)

    def add(self, now_s: float, start_s: float, user: int, bits: float, sent: Sent) -> None:
        """Queue a message at `now_s` that may not start before `start_s`. sent: called with the time when its last bit is sent."""
        job = _Job(bits, sent)
        if start_s > now_s:
            self._at(start_s, (lambda alarm: self._join(alarm.time_s, user, job),), None)
        else:
            self._join(now_s, user, job)

    def finish_s(self, start_s: float, bits: float) -> float:
        """Return the time at which `bits` of another user would be sent if nobody came or left, see `Wire.finish_s`."""
        return self.wire.finish_s(start_s, bits / self._share(self.users + 1, start_s))

    def _share(self, users: int, time_s: float) -> float:
        """Return the share of the cell's rate for each of `users` users at a time, with other traffic if it is busy."""
        if self._other is not None and self._other.at(time_s)[0]:
            users += 1
        return gain(users, self._snr_db) / users

    def _join(self, now_s: float, user: int, job: _Job) -> None:
        self._serve(now_s)
        queue = self._queues.get(user)
        if queue is not None:
            queue.append(job)
            return
        self._queues[user] = deque([job])
        self._schedule(now_s)

    def _serve(self, now_s: float) -> None:
        if self._queues:
            carried = self.wire.bits(self._served_s, now_s) * self._share(len(self._queues), self._served_s)
            for queue in self._queues.values():
                queue[0].left_bits -= carried
        self._served_s = now_s

    def _schedule(self, now_s: float) -> None:
        if self._alarm is not None:
            self._alarm.callbacks = ()
            self._alarm = None
        if not self._queues:
            return
        least_bits = max(0.0, min(queue[0].left_bits for queue in self._queues.values()))
        end_s = self.wire.finish_s(now_s, least_bits / self._share(len(self._queues), now_s))
        if end_s == math.inf:  # a wire that never carries anything again
            for queue in self._queues.values():
                queue[0].sent(end_s)
            return
        until_s = math.inf if self._other is None else self._other.at(now_s)[1]
        if until_s < end_s:
            self._alarm = self._at(until_s, (self._on_turn,), None)
        else:
            self._alarm = self._at(end_s, (self._on_sent,), None)

    def _on_turn(self, alarm: Scheduled) -> None:
        self._alarm = None
        self._serve(alarm.time_s)
        self._schedule(alarm.time_s)

    def _on_sent(self, alarm: Scheduled) -> None:
        now_s = alarm.time_s
        self._alarm = None
        self._serve(now_s)
        least_bits = min(queue[0].left_bits for queue in self._queues.values())  # 0 except for rounding
        done: list[_Job] = []
        for user, queue in list(self._queues.items()):
            if queue[0].left_bits <= least_bits:
                done.append(queue.popleft())
                if not queue:
                    del self._queues[user]
        self._schedule(now_s)
        for job in done:
            job.sent(now_s)


class FairLink(ImpairedLink):
    """One direction of a device in a `FairCell`: an `ImpairedLink` whose transmission times are those of the cell.

    Framing, radio, handshake, losses and delays are those of `ImpairedLink`. The wait for the window, and the time for which a message
    uses the radio, are computed with the share at the time when it is handed over.
    """

    __slots__ = ("_begun_s", "cell", "user")
    cell: FairCell
    user: int

    def in_cell(self, cell: FairCell, user: int) -> "FairLink":
        """Assign the link to a user of a cell, and return it."""
        self.cell = cell
        self._finish_s = cell.finish_s  # of a handshake
        self.user = user
        self._begun_s = 0.0  # start of the latest message; no message starts before the previous one
        return self

    def send(self, now_s: float, size_bytes: int) -> float:
        """Raise RuntimeError, because the arrival is not known yet; use `submit`."""
        raise RuntimeError("in a fair cell the arrival of a message is not known when it is sent: use submit")

    def submit(self, now_s: float, size_bytes: int, arrives: Sent) -> None:
        """Send a message. arrives: called with the time of its arrival, once that is known; infinity for never."""
        wire_bytes, segments = self.transport.frame(size_bytes)
        bits = 8.0 * wire_bytes
        gate = self._gate
        ready_s = now_s if gate is None else gate.wake(now_s)
        if ready_s < self.open_s:
            ready_s = self._opened_s(ready_s)
        if ready_s == math.inf:
            arrives(ready_s)
            return
        if self._timer is not None:
            self._rto_s = self._timer.rto_s(ready_s)
        self._begun_s = ready_s = max(ready_s, self._begun_s)
        extra_s = 0.0
        loss = self.loss
        if loss is not None and (lost := loss.lost(ready_s, segments)):
            extra_s, bits = self._recovery(loss, ready_s, segments, bits, lost)
        guess_s = self.cell.finish_s(ready_s, bits)
        window_s = 0.0
        if self._window is not None and guess_s < math.inf:
            window_s = self._window.send(ready_s, segments, bits, self.cell.finish_s) - guess_s
        self.sent_bits += bits
        if gate is not None:
            extra_s += gate.used(ready_s, guess_s + window_s, 0.125 * bits)

        def sent(end_s: float) -> None:
            self.ready_s = ready_s if ready_s > now_s else -math.inf
            if end_s == math.inf:
                arrives(end_s)
                return
            end_s += window_s
            tried_s = max(ready_s, self._left_s)
            self._left_s = end_s
            outage_s = self._outage_s(tried_s, end_s) if end_s - tried_s > self._rto_s else 0.0
            delay_s = self.delay_s if self._draw is None else self._draw()
            if self.delay_at is not None:
                delay_s = self._delay_at_s(self.delay_at(end_s), delay_s)
            self._last_s = max(self._last_s, end_s + extra_s + outage_s + delay_s)
            arrives(self._last_s)

        self.cell.add(now_s, ready_s, self.user, bits, sent)

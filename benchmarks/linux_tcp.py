"""Linux's TCP, packet by packet: reference transfer times for `simulator.network.congestion`.

    python -m benchmarks.linux_tcp

Written from the rules of the kernel (tcp_input.c, tcp_output.c, tcp_recovery.c, tcp_cubic.c, tcp_bbr.c of version 6) and the RFCs,
independently of the model: each packet, acknowledgement and timer is an event, and all counts are recomputed from the packets in flight.
It has what ns-3 lacks: RACK, tail loss probes, HyStart, and rate reduction and round trips as Linux counts them. `benchmarks.kernel_tcp`
runs the kernel itself. For each link, size and loss rate it prints how much the mean of the model differs over the same losses, and
the share of transfers whose times agree within 2 %. Most of the others differ where an acknowledgement and a paced packet coincide, or at
a recovery started by a timer, where Linux counts a packet as arrived. Longer than other files, because all rules of a sender act on one
state.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import click
import numpy as np

from benchmarks.ns3_points import Given, losses
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Wire

PAYLOAD, HEADERS = 1448, 52  # bytes
INITIAL = 10  # packets
QUICK = 16  # first packets of a connection, each acknowledged at once
DELAYED_S, FLOOR_S, PROBE_S = 0.04, 0.2, 0.002
TIE_S = 1e-9  # delay of a paced packet, so that it leaves after an acknowledgement of the same time
# Bytes, Mbit/s, round trip in ms, loss in percent.
POINTS = (
    (1_000, 5.0, 25.0, 2.0),
    (5_000, 100.0, 10.0, 5.0),
    (30_000, 3.0, 200.0, 3.0),
    (64_000, 20.0, 40.0, 0.5),
    (64_000, 80.0, 250.0, 2.0),
    (150_000, 7.0, 90.0, 4.0),
    (200_000, 100.0, 300.0, 0.2),
    (250_000, 2.0, 12.0, 5.0),
    (256_000, 10.0, 60.0, 5.0),
    (256_000, 30.0, 150.0, 5.0),
    (1_000_000, 100.0, 30.0, 0.1),
    (1_000_000, 8.0, 120.0, 1.0),
    (1_000_000, 40.0, 15.0, 3.0),
)


@dataclass(slots=True, eq=False)
class Packet:
    """A packet that is not cumulatively acknowledged. The last four fields are the state of the delivery rate when it was sent."""

    number: int
    sent_s: float = 0.0
    order: int = 0
    sacked: bool = False
    lost: bool = False
    again: bool = False  # retransmitted since it was marked lost
    delivered: int = 0
    delivered_s: float = 0.0
    first_s: float = 0.0
    limited: bool = False


class Cubic:
    """tcp_cubic.c, without pacing."""

    def __init__(self) -> None:
        self.reset()
        self.start_round(0, -math.inf)

    def reset(self) -> None:
        self.most, self.epoch_s, self.count, self.least_rtt_s = 0, math.nan, 0, math.inf
        self.acks, self.reno, self.origin, self.k_s = 0, 0, 0, 0.0
        self.found, self.last_window, self.last_s, self.growth = False, 0, -math.inf, 0

    def start_round(self, end: int, now_s: float) -> None:
        """bictcp_hystart_reset."""
        self.round_end, self.round_s, self.train_s = end, now_s, now_s
        self.round_rtt_s, self.samples = math.inf, 0

    def threshold(self, flow: "Flow") -> int:
        window = int(flow.window)
        self.epoch_s = math.nan
        self.most = int(0.85 * window) if window < self.most else window
        return max(int(0.7 * window), 2)

    def timed_out(self, flow: "Flow") -> None:
        self.reset()
        self.start_round(flow.next, flow.now_s)

    def measured(self, flow: "Flow", rtt_s: float) -> None:
        """cubictcp_acked, hystart_update."""
        self.least_rtt_s = min(self.least_rtt_s, rtt_s)
        if self.found or flow.window >= flow.threshold:
            return
        if flow.first > self.round_end:
            self.start_round(flow.next, flow.now_s)
        if flow.window < 16:
            return
        if flow.now_s - self.train_s <= 0.002 + TIE_S:
            self.train_s = flow.now_s
            self.found = flow.now_s - self.round_s > (self.least_rtt_s + 0.001) / 2.0
        self.round_rtt_s = min(self.round_rtt_s, rtt_s)
        if self.samples >= 8:
            rise_s = max(0.004, min(self.least_rtt_s / 8.0, 0.016))
            self.found = self.found or self.round_rtt_s > self.least_rtt_s + rise_s
        self.samples += 1
        if self.found:
            flow.threshold = flow.window

    def acked(self, flow: "Flow", packets: int) -> None:
        slow = flow.window < flow.threshold
        if not (2 * flow.most_out > flow.window if slow else flow.limited):
            return
        if slow:
            window = min(flow.window + packets, flow.threshold)
            packets -= int(window - flow.window)
            flow.window = window
        if packets:
            needed = self.needed(flow, packets)
            if self.count >= needed:
                self.count = 0
                flow.window += 1
            self.count += packets
            more, self.count = divmod(self.count, needed)
            flow.window += more

    def needed(self, flow: "Flow", packets: int) -> int:
        window = int(flow.window)
        self.acks += packets
        if self.last_window == window and flow.now_s - self.last_s <= 1 / 32:
            return self.growth
        self.last_window, self.last_s = window, flow.now_s
        if math.isnan(self.epoch_s):
            self.epoch_s, self.acks, self.reno = flow.now_s, packets, window
            self.origin = max(self.most, window)
            self.k_s = math.cbrt((self.origin - window) / 0.4)
        since_s = flow.now_s - self.epoch_s + self.least_rtt_s - self.k_s
        target = self.origin + int(math.copysign(int(0.4 * abs(since_s) ** 3), since_s))
        needed = window // (target - window) if target > window else 100 * window
        if not self.most:
            needed = min(needed, 20)
        while self.acks > window * 15 >> 3:
            self.acks -= window * 15 >> 3
            self.reno += 1
        if self.reno > window:
            needed = min(needed, window // (self.reno - window))
        self.growth = max(needed, 2)
        return self.growth


class Bbr:
    """tcp_bbr.c, one packet at a time, without the detection of policers, the allowance for aggregated acknowledgements, and PROBE_RTT,
    which is due only after ten seconds."""

    GAIN = 2.89
    CYCLE = (1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

    def __init__(self, rtt_s: float) -> None:
        self.least_s, self.rate = rtt_s, self.GAIN * INITIAL / rtt_s
        self.mode, self.pacing, self.room = "startup", self.GAIN, self.GAIN
        self.rates: list[tuple[int, float]] = []
        self.round = self.next = self.full_rounds = self.cycle = 0
        self.full, self.cycle_s, self.prior = 0.0, 0.0, 0.0
        self.filled = self.conserves = False
        self.before = "open"

    @property
    def top(self) -> float:
        return max((rate for _, rate in self.rates), default=0.0)

    def target(self, gain: float) -> int:
        return math.ceil(gain * self.top * self.least_s) + 3 + 2 * (self.mode == "probe" and self.cycle == 0)

    def save(self, flow: "Flow") -> None:
        self.prior = flow.window if self.before == "open" else max(self.prior, flow.window)

    def timed_out(self) -> None:
        self.before, self.full = "loss", 0.0

    def acked(self, flow: "Flow", newest: Packet, packets: int, lost: int, before: int) -> None:
        took_s = max(flow.now_s - newest.delivered_s, newest.sent_s - newest.first_s)
        rate = (flow.delivered - newest.delivered) / took_s if took_s else 0.0
        begins = newest.delivered >= self.next
        if begins:
            self.next = flow.delivered
            self.round += 1
            self.conserves = False
        if not newest.limited or rate >= self.top:
            self.rates.append((self.round, rate))
        self.rates = [one for one in self.rates if one[0] >= self.round - 10]
        if self.mode == "probe":
            due = flow.now_s - self.cycle_s > self.least_s
            if self.pacing > 1.0:
                due = due and (lost > 0 or before >= self.target(self.pacing))
            elif self.pacing < 1.0:
                due = due or before <= self.target(1.0)
            if due:
                self.cycle, self.cycle_s = (self.cycle + 1) % 8, flow.now_s
                self.pacing = self.CYCLE[self.cycle]
        if not self.filled and begins and not newest.limited:
            if self.top >= 1.25 * self.full:
                self.full, self.full_rounds = self.top, 0
            else:
                self.full_rounds += 1
                self.filled = self.full_rounds >= 3
        if self.mode == "startup" and self.filled:
            self.mode, self.pacing = "drain", 1.0 / self.GAIN
        if self.mode == "drain" and flow.in_flight <= self.target(1.0):
            self.mode, self.pacing, self.room, self.cycle, self.cycle_s = "probe", 1.0, 2.0, 2, flow.now_s
        self.least_s = min(self.least_s, flow.now_s - newest.sent_s)
        pace = 0.99 * self.pacing * self.top
        if pace and (self.filled or pace > self.rate):
            self.rate = pace
        self.set_window(flow, packets, lost)

    def set_window(self, flow: "Flow", packets: int, lost: int) -> None:
        window = max(flow.window - lost, 1) if lost else flow.window
        if flow.state == "recovery" and self.before != "recovery":
            self.conserves, self.next = True, flow.delivered
            window = flow.in_flight + packets
        elif flow.state == "open" and self.before != "open":
            self.conserves = False
            window = max(window, self.prior)
        self.before = flow.state
        if self.conserves:
            flow.window = max(window, flow.in_flight + packets)
            return
        target = self.target(self.room)
        if self.filled:
            window = min(window + packets, target)
        elif window < target or flow.delivered < INITIAL:
            window += packets
        flow.window = max(window, 4)


class Flow:
    """One message over an open connection.

    Attributes:
        now_s: Time of the current event.
    """

    def __init__(self, control: str, message_bytes: int, bps: float, rtt_s: float, drops: Iterable[bool]) -> None:
        """Start a transfer.

        Args:
            control: `cubic` or `bbr`.
            bps: Rate of the link in bit/s.
            drops: Whether each transmission is lost, in order.
        """
        self.cubic = Cubic() if control == "cubic" else None
        self.bbr = Bbr(rtt_s) if control == "bbr" else None
        self.packets = max(1, -(-message_bytes // PAYLOAD))
        self.last_bytes = message_bytes - PAYLOAD * (self.packets - 1) + HEADERS
        self.bps, self.way_s, self.drops = bps, rtt_s / 2.0, iter(drops)
        self.now_s = self.free_s = self.paced_s = self.delivered_s = self.first_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = itertools.count()
        self.timer: tuple[float, str] | None = None
        self.out: dict[int, Packet] = {}
        self.first = self.next = self.orders = self.delivered = self.app_limited = self.lost = self.high = 0
        self.window, self.threshold, self.state = float(INITIAL), math.inf, "open"
        self.most_out, self.most_until, self.limited = 0, 0, False
        self.srtt_s = self.least_rtt_s = rtt_s
        self.mdev_s = 2.0 * rtt_s  # four times the deviation, as in the kernel
        self.round_mdev_s = self.rttvar_s = max(self.mdev_s, FLOOR_S)
        self.measured = 0
        self.backoff, self.probed, self.newest, self.newest_rtt_s = 0, False, -1, 0.0
        self.prior_window, self.reduced, self.resent = 0.0, 0, 0
        self.there, self.apart, self.quick, self.waits = 0, set[int](), QUICK, math.inf
        self.arrived_s = math.inf

    def seconds(self) -> float:
        """Return the time in s at which the whole message has arrived."""
        self.send()
        while self.arrived_s == math.inf:
            if self.timer is not None and (not self.events or self.timer[0] < self.events[0][0]):
                (self.now_s, kind), self.timer = self.timer, None
                self.alarm(kind)
            else:
                self.now_s, _, event = heapq.heappop(self.events)
                event()
        return self.arrived_s

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time_s, next(self.number), event))

    # ---- the receiver

    def arrive(self, number: int) -> None:
        at_once = bool(self.apart) or self.quick > 0 or number > self.there
        self.quick -= 1
        if number == self.there:
            self.there += 1
            while self.there in self.apart:
                self.apart.remove(self.there)
                self.there += 1
            if self.there == self.packets:
                self.arrived_s = self.now_s
        elif number > self.there:
            self.apart.add(number)
        if at_once or self.waits < math.inf:
            self.acknowledge()
        else:
            self.waits = since_s = self.now_s
            self.at(self.now_s + DELAYED_S, lambda: self.acknowledge() if self.waits == since_s else None)

    def acknowledge(self) -> None:
        self.waits = math.inf
        there, apart = self.there, frozenset(self.apart)
        self.at(self.now_s + self.way_s, lambda: self.acked(there, apart))

    # ---- the sender

    @property
    def in_flight(self) -> int:
        return sum(not one.sacked and (not one.lost or one.again) for one in self.out.values())

    @property
    def has_lost(self) -> bool:
        return any(one.lost and not one.sacked for one in self.out.values())

    @property
    def rto_s(self) -> float:
        return (self.srtt_s + max(self.rttvar_s, FLOOR_S)) * 2.0**self.backoff

    def transmit(self, packet: Packet) -> None:
        if len(self.out) == 1 and not packet.order:
            self.first_s = self.delivered_s = self.now_s
        self.orders += 1
        packet.order, packet.sent_s = self.orders, self.now_s
        packet.delivered, packet.delivered_s, packet.first_s = self.delivered, self.delivered_s, self.first_s
        packet.limited = self.app_limited > 0
        self.resent += self.state == "recovery"
        if self.bbr is not None and self.orders >= INITIAL:
            self.paced_s = max(self.paced_s, self.now_s - 2.0 * TIE_S) + 1.0 / self.bbr.rate
        size = self.last_bytes if packet.number == self.packets - 1 else PAYLOAD + HEADERS
        self.free_s = max(self.free_s, self.now_s) + 8.0 * size / self.bps
        if not next(self.drops, False):
            self.at(self.free_s + self.way_s, lambda: self.arrive(packet.number))

    def send(self) -> None:
        """tcp_write_xmit and tcp_xmit_retransmit_queue."""
        sent = full = False
        while True:
            again = next((one for one in self.out.values() if one.lost and not one.again and not one.sacked), None)
            if self.in_flight + 1 > self.window:
                full = True
                break
            if again is None and self.next == self.packets:
                self.app_limited = max(1, self.delivered + self.in_flight)
                break
            if self.bbr is not None and self.orders >= INITIAL and self.paced_s > self.now_s:
                self.at(self.paced_s + TIE_S, self.send)
                break
            if again is not None:
                again.again = True
                self.transmit(again)
                if again.number == self.first and not (self.timer and self.timer[1] == "reorder"):
                    self.timer = (self.now_s + self.rto_s, "timeout")
            else:
                packet = self.out[self.next] = Packet(self.next)
                self.next += 1
                self.transmit(packet)
                sent = True
                if len(self.out) == 1:
                    self.timer = (self.now_s + self.rto_s, "timeout")
        if sent:
            anew = self.first >= self.most_until
            if anew or len(self.out) > self.most_out or full:
                self.most_out = max(len(self.out), 0 if anew else self.most_out)
                self.limited, self.most_until = full or len(self.out) >= self.window, self.next
            self.plan_probe(self.out[self.first].sent_s + self.rto_s - self.now_s)

    def plan_probe(self, timeout_s: float) -> bool:
        """tcp_schedule_loss_probe.

        Args:
            timeout_s: Time until the retransmission timeout.

        Returns:
            Whether a probe is scheduled.
        """
        sacked = any(one.sacked for one in self.out.values())
        if not self.out or self.state != "open" or sacked or self.probed or (self.timer and self.timer[1] == "reorder"):
            return False
        probe_s = 2.0 * self.srtt_s + (FLOOR_S if len(self.out) == 1 else PROBE_S)
        self.timer = (self.now_s + (min(probe_s, timeout_s) if timeout_s > 0.0 else probe_s), "probe")
        return True

    def rearm(self) -> None:
        self.timer = None
        if self.out and not self.plan_probe(self.rto_s):
            self.timer = (self.now_s + self.rto_s, "timeout")

    def alarm(self, kind: str) -> None:
        if kind == "reorder":
            self.find_lost()
            if self.has_lost and self.state == "open":
                self.recover()
                if self.cubic is not None:
                    self.reduce(1, 0, False)
            self.send()
            self.timer = self.timer or (self.now_s + self.rto_s, "timeout")
            return
        if kind == "probe":
            self.probed = True
            if self.next < self.packets:
                self.out[self.next] = Packet(self.next)
                self.next += 1
            self.transmit(next(reversed(self.out.values())))
            self.timer = (self.now_s + self.rto_s, "timeout")
            return
        # tcp_enter_loss
        for one in self.out.values():
            if not one.sacked and (one.number == self.first or self.newest_rtt_s <= self.now_s - one.sent_s):
                one.lost, one.again = True, False
        if self.state == "open" or (self.state == "loss" and not self.backoff):
            self.lower()
        self.state, self.high, self.probed = "loss", self.next, False
        self.window = self.in_flight + 1
        if self.cubic is not None:
            self.cubic.timed_out(self)
        elif self.bbr is not None:
            self.bbr.timed_out()
        self.backoff += 1
        self.timer = (self.now_s + self.rto_s, "timeout")
        self.send()

    def lower(self) -> None:
        if self.cubic is not None:
            self.threshold = self.cubic.threshold(self)
        elif self.bbr is not None:
            self.bbr.save(self)

    def recover(self) -> None:
        self.state, self.high, self.probed = "recovery", self.next, False
        self.prior_window, self.reduced, self.resent = self.window, 0, 0
        if self.cubic is not None:
            self.cubic.count = 0
        self.lower()

    def reduce(self, packets: int, lost: int, advanced: bool) -> None:
        """tcp_cwnd_reduction."""
        room = int(self.threshold) - self.in_flight
        self.reduced += packets
        if room < 0:
            more = -(-int(self.threshold) * self.reduced // int(self.prior_window)) - self.resent
        else:
            more = min(room, max(self.reduced - self.resent, packets) + (advanced and not lost))
        self.window = self.in_flight + max(more, 0 if self.resent else 1)

    def find_lost(self) -> None:
        """tcp_rack_detect_loss."""
        early = self.state != "open" or sum(one.sacked for one in self.out.values()) >= 3
        wait_s = 0.0 if early else min(0.25 * self.least_rtt_s, self.srtt_s)
        late_s = -math.inf
        for one in self.out.values():
            if one.sacked or (one.lost and not one.again) or one.order > self.newest:
                continue
            left_s = self.newest_rtt_s + wait_s - (self.now_s - one.sent_s)
            if left_s <= 1e-12:
                one.lost, one.again = True, False
                self.lost += 1
            else:
                late_s = max(late_s, left_s)
        if late_s > 0.0:
            self.timer = (self.now_s + late_s + PROBE_S, "reorder")

    def acked(self, there: int, apart: frozenset[int]) -> None:
        """tcp_ack."""
        told = [one for one in self.out.values() if not one.sacked and (one.number < there or one.number in apart)]
        if not told:
            return
        before, lost = self.in_flight, self.lost
        newest = max(told, key=lambda one: one.order)
        for one in told:
            one.sacked = True
        advanced = there > self.first
        for number in range(self.first, there):
            del self.out[number]
        self.first = there
        self.delivered += len(told)
        if self.delivered > self.app_limited:
            self.app_limited = 0
        rtt_s = self.now_s - newest.sent_s
        self.least_rtt_s = min(self.least_rtt_s, rtt_s)
        if newest.order > self.newest:
            self.newest, self.newest_rtt_s = newest.order, rtt_s
        self.delivered_s, self.first_s = self.now_s, newest.sent_s
        self.measure(rtt_s)
        if self.cubic is not None:
            self.cubic.measured(self, rtt_s)
        if self.timer is not None and self.timer[1] == "reorder":
            self.timer = None
        if advanced:
            self.backoff, self.probed = 0, False
        ends = self.state != "open" and self.first >= self.high
        if ends:
            if self.state == "recovery" and self.cubic is not None:
                self.window = self.threshold
            self.state = "open"
        if advanced or ends:
            self.rearm()
        self.find_lost()
        if self.has_lost and self.state == "open":
            self.recover()
            if self.timer is not None and self.timer[1] == "probe":
                self.timer = (self.now_s + self.rto_s, "timeout")
        if self.bbr is not None:
            self.bbr.acked(self, newest, len(told), self.lost - lost, before)
        elif self.state == "recovery":
            self.reduce(len(told), self.lost - lost, advanced)
        elif advanced and self.cubic is not None:
            self.cubic.acked(self, len(told))
        self.send()

    def measure(self, rtt_s: float) -> None:
        """tcp_rtt_estimator."""
        error_s = rtt_s - self.srtt_s
        self.srtt_s += error_s / 8.0
        more_s = abs(error_s) - self.mdev_s / 4.0
        self.mdev_s += more_s / 8.0 if error_s < 0.0 < more_s else more_s
        if self.mdev_s > self.round_mdev_s:
            self.round_mdev_s = self.mdev_s
            self.rttvar_s = max(self.rttvar_s, self.mdev_s)
        if self.first > self.measured:
            self.rttvar_s -= max(0.0, self.rttvar_s - self.round_mdev_s) / 4.0
            self.measured, self.round_mdev_s = self.next, FLOOR_S


def modelled_s(control: str, message_bytes: int, mbps: float, rtt_s: float, drops: Iterable[bool]) -> float:
    """Return the time in s of the same transfer in the model."""
    transport = replace(TRANSPORTS["tcp"], congestion=control)
    return ImpairedLink(Wire(1e6 * mbps), rtt_s / 2.0, rtt_s, transport, loss=Given(drops)).send(0.0, message_bytes)


@click.command()
@click.option(
    "--seeds", default=100, show_default=True, help="Patterns of losses of each point; a quarter of them for 1 MB."
)
def main(seeds: int) -> None:
    for control in ("cubic", "bbr"):
        for size, mbps, rtt_ms, loss_pct in POINTS:
            times = []
            for seed in range(seeds if size < 500_000 else max(1, seeds // 4)):
                drops = losses(0.01 * loss_pct, seed, 4000).tolist()
                flow_s = Flow(control, size, 1e6 * mbps, 1e-3 * rtt_ms, drops).seconds()
                times.append((flow_s, modelled_s(control, size, mbps, 1e-3 * rtt_ms, drops)))
            linux, model = np.array(times).T
            same = np.mean(abs(model / linux - 1.0) < 0.02)
            figures = f"{size:7} B {mbps:5g} Mbit/s {rtt_ms:4g} ms {loss_pct:4g} %"
            click.echo(
                f"{control:5} {figures}  {linux.mean():.4g} s  {model.mean() / linux.mean() - 1.0:+.1%}  same {same:.0%}"
            )


if __name__ == "__main__":
    main()

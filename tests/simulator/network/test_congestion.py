"""CUBIC and BBR against ns-3's transfer times under the same losses, closed forms, and laws that hold for any link.

Longer than other files, because every rule of both controls has its closed form here.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import kernel_tcp
from benchmarks.linux_tcp import Flow
from benchmarks.ns3_points import FILE, Given, Point, losses, modelled_s, read, transfer_s
from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.bbr import Bbr
from simulator.network.congestion import OPEN, RECOVERY, Sender
from simulator.network.cross import AQMS, GREEDY, CrossQueue
from simulator.network.cubic import BETA, Cubic
from simulator.network.impairments import Loss
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS, Transport
from simulator.network.wire import Capacity, Wire

CONTROLS = ("cubic", "bbr")


def transport(control: str, **changes: object) -> Transport:
    return replace(TRANSPORTS["tcp"], congestion=control, **changes)  # type: ignore[arg-type]


def link(control: str, bps: float = 1e9, rtt_s: float = 0.1, lost: Sequence[int] = (), **more: object) -> ImpairedLink:
    given_losses = Given([number in lost for number in range(max(lost, default=-1) + 1)])
    return ImpairedLink(Wire(bps), rtt_s / 2, rtt_s, transport(control, **more), loss=given_losses)


def cubic(one: ImpairedLink) -> Cubic:
    assert one._sender is not None
    assert isinstance(one._sender.control, Cubic)
    return one._sender.control


# The points with the shortest messages, of both halves: a second in all. `python -m benchmarks.ns3_points --compare` runs all points.
SHORT = {point: mean_s for point, mean_s, _ in read(FILE) if point.message_bytes < 15_000}


@pytest.mark.parametrize("point", SHORT, ids=str)
def test_transfer_times_are_those_of_ns3(point: Point) -> None:
    assert modelled_s(point) == pytest.approx(SHORT[point], rel=0.05)


# Transfer times in s of 256 kB with 5 % of the packets lost, by seed, as printed by the program of `ns3_transfer.cc`.
TRANSFERS = {
    Point("cubic", False, 256_000, 30.0, 150.0, 5.0): {
        0: 3.54338, 1: 3.73291, 3: 4.44947, 6: 2.37997, 12: 3.24166, 17: 2.88189, 18: 2.98243, 19: 3.39248, 30: 5.73393,
    },
    Point("bbr", False, 256_000, 10.0, 60.0, 5.0): {
        1: 0.387174, 2: 0.404029, 6: 0.410994, 18: 0.478021, 19: 0.403056, 21: 0.418454, 22: 0.424934, 23: 0.458093,
    },
    Point("bbr", False, 250_000, 2.0, 12.0, 5.0): {2: 1.10946, 5: 1.1117, 16: 1.12748, 21: 1.11546},  # the window is above its target
}  # fmt: skip


@pytest.mark.parametrize("point", TRANSFERS, ids=str)
def test_single_transfers_take_the_time_that_they_take_in_ns3(point: Point) -> None:
    """Some of the first 40 seeds whose transfers agree. Their recoveries and chains of timeouts would differ under other rules."""
    for seed, took_s in TRANSFERS[point].items():
        assert transfer_s(point, seed) == pytest.approx(took_s, rel=2e-3), seed


# The same from `benchmarks.linux_tcp`, an implementation independent of the model. These transfers depend on when the window is reduced,
# to what and how often, on what ends a recovery, and on timers and probes.
LINUX_TRANSFERS = {
    Point("cubic", False, 150_000, 7.0, 90.0, 4.0): {
        16: 0.88071, 19: 1.15689, 24: 0.49568, 25: 0.99061, 26: 1.17404, 33: 0.88861, 35: 0.54575,
    },
    Point("cubic", False, 256_000, 30.0, 150.0, 5.0): {3: 5.73322, 20: 5.08892, 27: 0.9918, 42: 1.43932, 51: 5.88202},
    Point("cubic", False, 1_000_000, 40.0, 15.0, 3.0): {14: 0.63024, 20: 1.6193},
    Point("bbr", False, 256_000, 30.0, 150.0, 5.0): {3: 1.23485, 6: 1.05276, 10: 1.22602, 31: 1.14463, 33: 1.18111, 36: 1.05007},
    Point("bbr", False, 1_000_000, 40.0, 15.0, 3.0): {1: 0.27133, 5: 0.29229, 36: 1.00879},
}  # fmt: skip


@pytest.mark.parametrize("point", LINUX_TRANSFERS, ids=str)
def test_single_transfers_take_the_time_that_the_rules_of_linux_give(point: Point) -> None:
    rtt_s = 1e-3 * point.rtt_ms
    for seed, took_s in LINUX_TRANSFERS[point].items():
        drops = Given(losses(0.01 * point.loss_pct, seed, 4000).tolist())
        one = ImpairedLink(Wire(1e6 * point.mbps), rtt_s / 2, rtt_s, transport(point.control), loss=drops)
        assert one.send(0.0, point.message_bytes) == pytest.approx(took_s, rel=1e-2), seed


def test_the_transfers_of_linux_are_those_of_the_benchmark() -> None:
    for point, times_s in LINUX_TRANSFERS.items():
        if point.message_bytes == 1_000_000:  # too slow here
            continue
        seed, took_s = next(iter(times_s.items()))
        drops = losses(0.01 * point.loss_pct, seed, 4000).tolist()
        flow = Flow(point.control, point.message_bytes, 1e6 * point.mbps, 1e-3 * point.rtt_ms, drops)
        assert flow.seconds() == pytest.approx(took_s, abs=1e-5)


# Transfer times in s of 256 kB (1 MB where a buffer is given) over 20 Mbit/s and 40 ms in the TCP of Linux 6.18, by the packets that
# are lost, measured by `benchmarks.kernel_tcp`.
KERNEL_TRANSFERS = (
    ("cubic", (3,), math.inf, 0.6401),
    ("cubic", (9,), math.inf, 0.5097),
    ("cubic", (20,), math.inf, 0.3554),
    ("cubic", (60,), math.inf, 0.2205),
    ("cubic", (3, 30), math.inf, 0.7984),
    ("cubic", (3, 12, 40), math.inf, 0.8018),
    ("cubic", (), 50_000.0, 0.5674),
    ("bbr", (9,), math.inf, 0.2406),
    ("bbr", (10, 50, 100, 150), math.inf, 0.2809),
    ("bbr", (), 50_000.0, 0.5267),
)


@pytest.mark.parametrize(("control", "lost", "buffer_bytes", "took_s"), KERNEL_TRANSFERS)
def test_single_transfers_take_the_time_that_they_take_in_the_kernel(
    control: str, lost: tuple[int, ...], buffer_bytes: float, took_s: float
) -> None:
    """They depend on how long a growth of CUBIC's window is kept (UPDATE_S), on HyStart and on the margin of RACK's timer."""
    drops = Given([number in lost for number in range(200)])
    one = ImpairedLink(Wire(2e7), 0.02, 0.04, transport(control), loss=drops, buffer_bytes=buffer_bytes)
    assert one.send(0.0, 1_000_000 if buffer_bytes < math.inf else 256_000) == pytest.approx(took_s, rel=0.013)


def test_the_kernels_link_is_the_models() -> None:
    """`benchmarks.kernel_tcp`: packets with data take their time on the wire one after another, those without data do not."""
    data = bytes([0x45]) + bytes(31) + bytes([0x80]) + bytes(1500 - 33)
    way = kernel_tcp.Way(kernel_tcp.Line(1.2e6, 0.1, 16_000.0, [False, True]))
    assert way.carry(0, data[:52], 1.0) == pytest.approx(1.05)
    found = [way.carry(0, data, 1.0) for _ in range(14)]
    assert found == pytest.approx([1.06, math.inf, *(1.05 + 0.01 * n for n in range(3, 12)), *[math.inf] * 3])
    assert way.carry(1, data, 1.0) == pytest.approx(1.05)


def test_the_kernels_benchmark_says_in_one_line_that_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = CliRunner().invoke(kernel_tcp.main, ["--seeds", "1"])
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "needs" in result.output


def test_slow_start_ends_at_a_train_of_half_a_round_trip_over_tcp_alone() -> None:
    """At 20 Mbit/s acknowledgements are 1.2 ms apart, at 10 Mbit/s 2.4 ms, which is no train (2 ms). QUIC has HyStart++."""
    found = []
    for name, bps in (("tcp", 2e7), ("tcp", 1e7), ("quic", 2e7)):
        of = replace(TRANSPORTS[name], congestion="cubic")
        one = ImpairedLink(Wire(bps), 0.02, 0.04, of)
        one.send(0.0, 250_000)
        found.append(cubic(one)._threshold)
    assert found == [
        40 + 2 * 18,
        math.inf,
        math.inf,
    ]  # the 18th acknowledgement of the round comes after more than 20.5 ms


def test_a_loss_forgets_what_was_counted_towards_the_next_segment() -> None:
    """Linux sets snd_cwnd_cnt to 0 in every recovery and timeout. Nothing in RFC 9438 says so."""
    for linux, left in ((True, 0), (False, 5)):
        control = Cubic(10, True, linux)
        control._count = 5
        control.recovers(SimpleNamespace(pipe=8, now_s=0.0))  # type: ignore[arg-type]
        assert control._count == left


def test_the_points_are_of_both_controls_and_of_both_halves() -> None:
    for found in ([point for point, _, _ in read(FILE)], SHORT):
        assert {(p.control, p.kept_back) for p in found} == {(c, k) for c in CONTROLS for k in (True, False)}


# --- closed forms


@pytest.mark.parametrize(("segments", "flights"), [(1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (70, 3), (71, 4)])
def test_cubic_doubles_as_the_window_without_losses_does(segments: int, flights: int) -> None:
    arrived_s = link("cubic", 1e12).send(0.0, 1448 * segments)
    assert arrived_s == pytest.approx(0.05 + 0.1 * (flights - 1), abs=1e-4)


def test_bbr_paces_what_follows_the_first_window() -> None:
    """The pace is 2.89 windows of ten a round trip. The eleventh segment leaves at the first acknowledgement, each next after a gap."""
    gap_s = 0.1 / 28.9
    assert link("bbr", 1e12).send(0.0, 10 * 1448) == pytest.approx(0.05, abs=1e-6)
    for more in (1, 2, 5):
        assert link("bbr", 1e12).send(0.0, (10 + more) * 1448) == pytest.approx(0.15 + (more - 1) * gap_s, abs=1e-6)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_wire_slower_than_the_window_is_always_busy(control: str) -> None:
    """At 1 Mbit/s ten segments take 120 ms, longer than the round trip of 10 ms."""
    assert link(control, 1e6, 0.01).send(0.0, 100 * 1448) == pytest.approx(100 * 1500 * 8 / 1e6 + 0.005, rel=0.01)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    ("lost", "later_rtts", "later_s"),
    [
        ([0], 1.0, 0.0),  # three later segments arrive
        ([6], 1.0, 0.0),
        ([7], 1.25, 0.002),  # two later segments arrive: RACK
        ([9], 4.0, 0.0),  # the timeout, counted from the last acknowledgement
        ([8, 9], 4.0, 0.002),  # a tail loss probe after two round trips also detects the loss before it
    ],
)
def test_a_loss_in_the_first_window_costs_what_its_place_says(
    control: str, lost: list[int], later_rtts: float, later_s: float
) -> None:
    """The wire is so fast that only round trips count."""
    found = link(control, 1e12, lost=lost).send(0.0, 10 * 1448)
    assert found == pytest.approx(0.05 + 0.1 * later_rtts + later_s, abs=1e-3)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_lost_only_segment_costs_the_timeout_doubling(control: str) -> None:
    for times, timeouts in ((1, 1), (2, 3), (3, 7)):
        found = link(control, 1e12, lost=range(times)).send(0.0, 1000)
        assert found == pytest.approx(0.05 + 0.3 * timeouts, abs=1e-6)


class Once:
    """Loss of every message's packet, once."""

    def lost(self, now_s: float, packets: int) -> list[int]:
        return [0]

    def lost_again(self, now_s: float, packets: int) -> int:
        return 0


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("rtt_s", [0.1, 0.15, 0.3])
def test_the_first_timeouts_of_a_connection_are_those_without_congestion_control(control: str, rtt_s: float) -> None:
    """At 0.3 s: a probe after 0.8 s, then timeouts of 0.75 s and less. `test_transport` has the closed forms."""
    found = []
    for of in (transport(control), TRANSPORTS["tcp"]):
        one = ImpairedLink(Wire(1e15), rtt_s / 2, rtt_s, of, loss=Once())
        found.append([one.send(5.0 * n, 10) for n in range(6)])
    assert found[0] == pytest.approx(found[1])


def test_a_timeout_sends_the_first_segment_again_at_once() -> None:
    """The first segment is lost twice, the second time at the fast retransmission. The timeout of three round trips resends it.

    It does not wait for what is in flight.
    """
    found = link("cubic", 1e12, 0.4, lost=[0, 12], stack="plain").send(0.0, 14 * 1448)
    assert found == pytest.approx(1.2 + 0.2, abs=5e-3)


@pytest.mark.parametrize("control", CONTROLS)
def test_the_deviation_counts_once_in_a_round_trip(control: str) -> None:
    """Ten segments reduce the excess deviation by a quarter, as one does. The lone packet after them is lost: 0.75 s at 0.3 s."""
    for of in (transport(control), TRANSPORTS["tcp"]):
        one = ImpairedLink(Wire(1e15), 0.15, 0.3, of, loss=Given([number == 10 for number in range(11)]))
        one.send(0.0, 14_480)
        assert one.send(5.0, 10) - 5.0 == pytest.approx(0.15 + 0.75, abs=1e-6)


def test_a_threshold_is_held_while_the_same_segment_times_out() -> None:
    """RFC 5681 sec. 3.1: it stays at seven of the initial ten segments however often the segment times out."""
    for times in (1, 2, 4):
        one = link("cubic", 1e12, lost=range(times))
        one.send(0.0, 1000)
        assert cubic(one)._threshold == 7.0


def test_without_a_loss_there_is_no_threshold_after_a_pause() -> None:
    """The window restarts at ten and doubles as on a new connection."""
    one = link("cubic", 1e12)
    first_s = one.send(0.0, 150 * 1448)
    assert one.send(60.0, 150 * 1448) - 60.0 == pytest.approx(first_s, abs=1e-4)
    assert cubic(one)._threshold == math.inf


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    ("lost", "later_s"),
    [
        ([0], 0.1),  # three later packets arrive: RFC 9002 sec. 6.1.1
        ([7], 0.1125),  # an eighth of a round trip: sec. 6.1.2
        ([9], 0.125 + 0.2 * 0.75**9),  # the probe timeout from the last packet, after nine samples: sec. 6.2.1
        ([9, 10], 3 * (0.125 + 0.2 * 0.75**9)),  # the probe timeout doubles
        ([8, 9], 0.1 + 0.125 + 0.2 * 0.75**8),  # the probe of the first reveals the second
    ],
)
def test_a_loss_in_the_first_window_of_quic(control: str, lost: list[int], later_s: float) -> None:
    """A probe timeout does not reduce the window: only a detected loss does."""
    quic = replace(TRANSPORTS["quic"], congestion=control)
    drops = Given([number in lost for number in range(12)])
    one = ImpairedLink(Wire(1e12), 0.05, 0.1, quic, loss=drops)
    assert one.send(0.0, 10 * 1167 - 8) == pytest.approx(0.05 + later_s, abs=1e-4)
    assert one._sender is not None
    if lost in ([9], [9, 10]):
        assert one._sender.control.window >= 10.0


@pytest.mark.parametrize("lost", [3, 40])
def test_cubic_keeps_seven_tenths_of_the_window_at_a_loss(lost: int) -> None:
    """In slow start the window is the initial ten and one for each segment acknowledged before the loss."""
    one = link("cubic", 1e12, lost=[lost])
    one.send(0.0, 70 * 1448)
    control = cubic(one)
    assert control._most == 10.0 + lost
    assert control._threshold == math.floor(BETA * control._most)


def test_cubic_has_the_reduced_window_after_a_recovery_that_ends_with_its_message() -> None:
    """Proportional rate reduction leaves little more than what is in flight, which is nothing at the end of a message.

    The next message begins at the threshold (RFC 9937 sec. 6.2, Linux tcp_end_cwnd_reduction): seven tenths of the window of 15,
    so 10 segments leave in one flight.
    """
    for segments, flights in ((10, 1), (11, 2)):
        one = link("cubic", 1e12, lost=[5])
        one.send(0.0, 10 * 1448)
        assert one.send(0.4, segments * 1448) == pytest.approx(0.35 + 0.1 * flights, abs=1e-4)


def reduced(pipe: int, advanced: int, lost: int) -> tuple[Cubic, SimpleNamespace]:
    """Return a control and its sender after a loss at a window of 20 and the first acknowledgement, of one segment.

    Args:
        pipe: segments in flight.
        advanced: as in the sender's state.
        lost: segments newly lost at the acknowledgement.
    """
    sender = SimpleNamespace(state=RECOVERY, advanced=advanced, pipe=pipe, recovery_sent=0, peak=20)
    control = Cubic(10, True)
    control.window = 20.0
    control.recovers(sender)  # type: ignore[arg-type]
    control.acked(sender, 1, lost, 0.1)  # type: ignore[arg-type]
    return control, sender


def test_cubic_sends_in_a_recovery_the_share_that_the_window_keeps() -> None:
    """It sends 14 / 20 of what arrives, by the window at the loss (Linux tcp_cwnd_reduction): ceil(0.7 n) after n arrivals."""
    control, sender = reduced(pipe=18, advanced=0, lost=0)
    for arrived in range(1, 20):
        while sender.pipe < control.window:
            sender.pipe += 1
            sender.recovery_sent += 1
        assert sender.recovery_sent == math.ceil(arrived * 14 / 20)
        sender.pipe = max(sender.pipe - 1, 16)
        control.acked(sender, 1, 0, 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("advanced", "lost", "more"), [(1, 0, 2), (1, 1, 1), (0, 0, 1)])
def test_cubic_speeds_a_recovery_up_only_while_nothing_more_is_lost(advanced: int, lost: int, more: int) -> None:
    """Below the threshold each arrival adds one segment, and a second if the first missing segment arrived and nothing new was lost.

    RFC 9937 calls this SafeACK.
    """
    control, _ = reduced(pipe=8, advanced=advanced, lost=lost)
    assert control.window == 8 + more


def test_cubic_is_back_at_its_window_when_its_formula_says() -> None:
    """RFC 9438 equation 2: K = cbrt(0.3 W / 0.4) seconds after a loss. The round trip is long, so Reno's window grows more slowly."""
    one = link("cubic", 1e12, 0.4, lost=[300])
    at_s = one.send(0.0, 1000 * 1448)
    control = cubic(one)
    most, back_s = control._most, math.inf
    k_s = math.cbrt((most - math.floor(BETA * most)) / 0.4)
    while control.window < most:
        at_s = one.send(at_s, 400 * 1448)
        back_s = one._sender.now_s - control._epoch_s
    assert back_s == pytest.approx(k_s, abs=1.0)  # a message takes two round trips


def test_cubic_does_not_jump_off_its_plateau() -> None:
    """Acknowledgements counted on the plateau add at most one segment after it (Linux tcp_cong_avoid_ai)."""
    sender = SimpleNamespace(state=OPEN, advanced=2, peak=10**6, pipe=1000, first=0, sent=0, now_s=0.0)
    control = Cubic(10, True)
    control.window = 1000.0
    control.recovers(sender)  # type: ignore[arg-type]
    control.window = control._threshold
    last = control.window
    while control.window < 1010.0:
        sender.now_s += 4e-4
        control.acked(sender, 2, 0, 0.2)  # type: ignore[arg-type]
        assert control.window <= last + 1.0
        last = control.window
    assert sender.now_s == pytest.approx(math.cbrt(300 / 0.4) + math.cbrt(10 / 0.4) - 0.2, rel=0.05)


@pytest.mark.parametrize(("timeout", "rounds"), [(None, 4), (2, 6), (3, 7)])
def test_bbr_forgets_at_a_timeout_what_the_rate_has_grown_from(timeout: int | None, rounds: int) -> None:
    """The pipe counts as full after three rounds without growth. A timeout restarts the count (Linux bbr_set_state)."""
    control, filled = Bbr(10, 0.1), 0
    while not control.filled:
        filled += 1
        sender = SimpleNamespace(
            state=OPEN, now_s=0.1 * filled, sample=(100.0, 10 * filled, False), pipe=10, delivered=10 * filled + 10
        )
        control.acked(sender, 10, 0, 0.1)  # type: ignore[arg-type]
        if filled == timeout:
            control.timed_out(sender, True)  # type: ignore[arg-type]
    assert filled == rounds


# --- laws


@pytest.mark.parametrize("control", CONTROLS)
def test_more_loss_a_longer_way_and_a_slower_wire_are_later_in_the_mean(control: str) -> None:
    def mean_s(loss: float, rtt_s: float, bps: float) -> float:
        arrived = []
        for seed in range(60):
            drops = Loss(loss, stream(seed, "loss"))
            one = ImpairedLink(Wire(bps), rtt_s / 2, rtt_s, transport(control), loss=drops)
            arrived.append(one.send(0.0, 60_000))
        return float(np.mean(arrived))

    base_s = mean_s(0.01, 0.05, 2e7)
    assert mean_s(0.1, 0.05, 2e7) > base_s
    assert mean_s(0.01, 0.2, 2e7) > base_s
    assert mean_s(0.01, 0.05, 2e6) > base_s


MESSAGES = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 80_000)), min_size=1, max_size=8)


@given(
    MESSAGES,
    st.sampled_from(CONTROLS),
    st.sampled_from(["tcp", "grpc", "quic", "sctp"]),
    st.floats(1e-3, 0.5),
    st.floats(0.0, 0.4),
    st.sampled_from([math.inf, 3000.0, 50_000.0]),
    st.sampled_from([0, 3000, 65_535]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_order_is_kept_and_no_byte_is_lost(
    messages: list[tuple[float, int]],
    control: str,
    name: str,
    rtt_s: float,
    loss: float,
    buffer_bytes: float,
    flow_bytes: int,
    outages: bool,
    seed: int,
) -> None:
    wire = Capacity.with_outages(5e6, 4.0, 1.0).wire(0.3 * (seed % 10), False) if outages else Wire(5e6)
    ways = replace(TRANSPORTS[name], congestion=control, flow_bytes=flow_bytes)
    drops = Loss(loss, stream(seed, "loss")) if loss else None
    one = ImpairedLink(wire, rtt_s / 2, rtt_s, ways, loss=drops, buffer_bytes=buffer_bytes)
    now_s, before_s, framed = 0.0, 0.0, 0.0
    for pause_s, size in messages:
        now_s += pause_s
        arrived_s = one.send(now_s, size)
        bits = 8.0 * ways.frame(size)[0]
        assert arrived_s >= max(before_s, now_s + rtt_s / 2 + bits / 5e6) - 1e-9
        framed += bits
        before_s = arrived_s
        sender = one._sender
        assert sender is not None
        under_way = [segment.bits for segment in sender._missing.values() if not segment.lost]
        assert (sender.pipe, sender._under_way_bits) == (len(under_way), sum(under_way))
    assert before_s < math.inf
    assert one.sent_bits - one.dropped_bits == pytest.approx(framed, rel=1e-9)
    assert one.dropped_bits >= 0.0


@pytest.mark.parametrize("control", CONTROLS)
def test_a_buffer_that_is_too_small_drops_and_the_message_comes_all_the_same(control: str) -> None:
    """The window is ten packets and the buffer two."""
    wire = Wire(1e6)
    one = ImpairedLink(wire, 0.02, 0.04, transport(control), buffer_bytes=3000.0)
    roomy = ImpairedLink(Wire(1e6), 0.02, 0.04, transport(control), buffer_bytes=3e5)
    assert one.send(0.0, 100_000) > roomy.send(0.0, 100_000)
    assert one.dropped_bits >= 6 * 8 * 1500
    assert roomy.dropped_bits == 0.0


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("aqm", ["none", "l4s"])
def test_a_buffer_is_no_larger_beside_others_traffic(control: str, aqm: str) -> None:
    """The buffer is 3000 bytes, two segments: less than a round trip of 5 ms carries."""
    idle = Network(300e6, 5e6, 0.0025, 0.0025, up_buffer_bytes=3000, transport=transport(control))
    shared = replace(idle, up_cross=GREEDY, aqm=replace(AQMS[aqm], drops=False))
    took_s = []
    for network in (idle, shared):
        up = AccessNetwork(network, 0, [0.0], [0.0]).links(0)[0]
        times_s = [2.0 * n for n in range(8)]
        took_s.append(sum(up.send(time_s, 60_000) - time_s for time_s in times_s))
    assert took_s[0] <= took_s[1] <= 1.25 * took_s[0]


def test_in_a_queue_of_its_own_a_message_gets_half_of_the_wire() -> None:
    wire = Wire(1e7)
    queue = CrossQueue(GREEDY, wire, math.inf, AQMS["fq-codel"], 0.02, stream(0, "turns"))
    one = ImpairedLink(wire, 0.01, 0.02, transport("cubic"), queue=queue)
    assert one.send(0.0, 300_000) == pytest.approx(0.01 + 2 * 8 * 311_000 / 1e7, rel=0.06)


@pytest.mark.parametrize("control", CONTROLS)
def test_an_idle_connection_of_cubic_loses_its_window_and_one_of_bbr_does_not(control: str) -> None:
    one = link(control, 1e12)
    for n in range(4):
        one.send(10.0 * n, 150 * 1448)
    one.send(35.0, 150 * 1448)
    assert one._sender is not None
    one._sender.control.begins(one._sender, 60.0)
    assert (one._sender.control.window > 10.0) == (control == "bbr")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", ["tcp", "quic", "sctp"])
@pytest.mark.parametrize(("buffer_bytes", "size_bytes"), [(1500.0, 100_000), (3000.0, 1_000_000)])
def test_no_round_trip_is_shorter_than_the_line(
    name: str, control: str, buffer_bytes: float, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that is repeated although it has arrived is acknowledged at once; its round trip counts from its first transmission.

    BBR took the time from the second one for the least round trip, and kept a window of four segments: over SCTP 1 MB took 5.5 s.
    """
    measured_s: list[float] = []
    monkeypatch.setattr(Sender, "_measure", lambda _, sample_s: measured_s.append(sample_s))
    t = replace(TRANSPORTS[name], congestion=control, handshake_rtts=0)
    arrival_s = ImpairedLink(Wire(10e6), 0.02, 0.04, t, buffer_bytes=buffer_bytes).send(0.0, size_bytes)
    assert min(measured_s) >= 0.04
    assert control == "cubic" or arrival_s < 2.0 * (0.8e-6 * size_bytes + 0.04) + 0.5


@pytest.mark.parametrize("control", ["cubic", "bbr"])
@pytest.mark.parametrize("transport", ["tcp", "quic", "sctp"])
def test_small_messages_that_wait_share_a_segment(transport: str, control: str) -> None:
    """A token every 5 ms over 600 ms: beyond the first window tokens wait, and leave together when there is room."""
    figures = replace(TRANSPORTS[transport], congestion=control)
    link = ImpairedLink(Wire(1e7), 0.3, 0.6, figures)
    arrived = [link.send(0.005 * n, 12) for n in range(400)]
    assert arrived == sorted(arrived)
    waits_s = np.array(arrived) - 0.005 * np.arange(400) - 0.3
    assert waits_s.max() < 0.6  # a token waits for an acknowledgement, not for the tokens before it
    assert waits_s[-1] < 0.1
    # One that does not fit is sent by itself, after the one before it.
    link = ImpairedLink(Wire(1e7), 0.3, 0.6, figures)
    sizes = [12] * 20 + [figures.segment_bytes - 20, 30, 12]
    assert [link.send(1e-4 * n, size) for n, size in enumerate(sizes)][-1] < 2.0


@pytest.mark.parametrize("control", ["cubic", "bbr"])
def test_a_stream_with_losses_takes_what_it_takes_without_congestion_control(control: str) -> None:
    """A token every 35 ms leaves room for its repair: once a stream took three times as long at losses of 10 %."""
    took_s = {}
    for name in ("", control):
        ends_s = []
        for seed in range(8):
            figures = replace(TRANSPORTS["tcp"], congestion=name)
            link = ImpairedLink(Wire(1e7), 0.02, 0.04, figures, loss=Given(losses(0.1, seed, 4000).tolist()))
            ends_s.append([link.send(0.035 * n, 12) for n in range(200)][-1])
        took_s[name] = np.mean(ends_s)
    assert took_s[control] == pytest.approx(took_s[""], rel=0.03)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_dead_wire_carries_nothing(control: str) -> None:
    dead = Capacity([0.0], [0.0], 1.0)
    up, _, _ = AccessNetwork(Network(dead, 1e6, 0.01, 0.01, transport=transport(control)), 0, [], []).links(0)
    assert up.send(0.0, 100) == math.inf
    assert up.send(1.0, 100) == math.inf


def test_bbr_does_not_take_small_messages_for_a_full_pipe() -> None:
    """Occasional messages of five segments do not measure the line's rate. The pace stays that of the first window."""
    one = link("bbr", 1e9)
    for n in range(100):
        assert one.send(0.3 * n, 5 * 1448) - 0.3 * n <= 0.05 + 4 * 0.1 / 28.9 + 1e-3

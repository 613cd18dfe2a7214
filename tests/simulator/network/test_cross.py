"""Cross traffic: standing queues against their closed forms, and laws that hold for any traffic."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import AQMS, GREEDY, PACKET_BITS, CrossQueue, QueueDrops, Traffic
from simulator.network.impairments import Loss
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wifi import BURST_S, Hop, HopWire
from simulator.network.wire import Capacity, VaryingWire, Wire

RATE = 10e6
RTT = 0.04
BUFFER = 250_000  # bytes: 0.2 s at 10 Mbit/s
PLAIN = Network(RATE, RATE, RTT / 2, RTT / 2)


def queue(traffic: Traffic, wire: Wire, buffer_bytes: float = BUFFER, aqm: str = "none", seed: int = 0) -> CrossQueue:
    return CrossQueue(traffic, wire, 8.0 * buffer_bytes, AQMS[aqm], RTT, stream(seed, "turns"))


def arrivals(network: Network, size: int = 1000, count: int = 20, every_s: float = 1.0) -> np.ndarray:
    """Return the transfer times in s of messages on one device's uplink once its connection is open."""
    up = AccessNetwork(network, 0, [0.0], [0.0]).links(0)[0]
    up.send(0.0, size)
    return np.array([up.send(10.0 + n * every_s, size) - 10.0 - n * every_s for n in range(count)])


@pytest.mark.parametrize(("rate", "buffer_s"), [(1e6, 0.05), (10e6, 0.2), (100e6, 1.0)])
def test_a_greedy_flow_before_a_drop_tail_queue_delays_by_buffer_over_rate(rate: float, buffer_s: float) -> None:
    idle = replace(PLAIN, up_bps=rate)
    busy = replace(idle, up_cross=GREEDY, up_buffer_bytes=buffer_s * rate / 8, aqm=replace(AQMS["none"], drops=False))
    assert arrivals(busy) - arrivals(idle) == pytest.approx(buffer_s, rel=1e-9)
    assert arrivals(replace(busy, transport=TRANSPORTS["grpc"])) - arrivals(
        replace(idle, transport=TRANSPORTS["grpc"])
    ) == pytest.approx(buffer_s, rel=1e-9)


def test_a_greedy_flow_behind_a_wifi_hop_keeps_its_order() -> None:
    """Later arrivals wait behind earlier ones, since both see the same bursts and channel waits: 50 of 4 ms."""
    wire = HopWire(Wire(RATE), Hop(stations=5), stream(0, "hop"))
    greedy = queue(GREEDY, wire, 50 * BURST_S * RATE / 8)
    asked_s = np.arange(0.0, 300.0, 0.1)
    clear_s = np.array([greedy.clear_s(float(time_s)) for time_s in asked_s])
    assert np.all(np.diff(clear_s) >= 0.0)
    assert np.mean(clear_s - asked_s) == pytest.approx(greedy.mean_s, rel=0.1)


@pytest.mark.parametrize(("rate", "wait_s"), [(100e6, 0.005), (10e6, 0.005), (1e6, PACKET_BITS / 1e6)])
def test_codel_keeps_its_target_or_one_packet(rate: float, wait_s: float) -> None:
    wire = Wire(rate)
    assert queue(GREEDY, wire, aqm="codel").clear_s(3.0) - 3.0 == pytest.approx(wait_s)
    assert queue(GREEDY, wire, aqm="codel").mean_s == pytest.approx(wait_s)
    least_s = min(wait_s, 8000.0 / rate)  # a buffer below the target fills before CoDel acts
    assert queue(GREEDY, wire, 1000, "codel").clear_s(3.0) - 3.0 == pytest.approx(least_s)


def test_l4s_marks_from_a_millisecond_on_and_drops_nothing() -> None:
    marked = queue(GREEDY, Wire(100e6), aqm="l4s")
    assert marked.clear_s(3.0) - 3.0 == pytest.approx(0.001)
    assert not marked.drops
    assert queue(GREEDY, Wire(100e6), aqm="codel").drops


def test_a_queue_of_its_own_waits_half_a_packet_and_shares_the_rate() -> None:
    own = queue(GREEDY, Wire(RATE), math.inf, "fq-codel")
    assert own.clear_s(3.0) - 3.0 == pytest.approx(0.5 * PACKET_BITS / RATE)
    assert own.finish_s(3.0, PACKET_BITS) - 3.0 == pytest.approx(PACKET_BITS / RATE)
    assert own.finish_s(3.0, 101 * PACKET_BITS) - 3.0 == pytest.approx(201 * PACKET_BITS / RATE)
    one = replace(PLAIN, up_cross=GREEDY, aqm=AQMS["fq-codel"])
    slower_s = arrivals(one, 200_000) - arrivals(PLAIN, 200_000)
    assert slower_s == pytest.approx((1.6e6 - 0.5 * PACKET_BITS) / RATE)  # half the rate for all but half a packet


def test_messages_in_a_queue_of_their_own_take_turns_as_one_of_their_sum() -> None:
    """All queued messages share the turns, short ones too: RFC 8290 serves a backlogged flow as many bytes as the other flow."""
    network = replace(PLAIN, up_cross=GREEDY, aqm=AQMS["fq-codel"])
    for size, count in ((1000, 40), (5000, 8)):
        up = AccessNetwork(network, 0, [0.0], [0.0]).links(0)[0]
        last_s = [up.send(0.0, size) for _ in range(count)][-1]
        packet_bits = min(8.0 * size, PACKET_BITS)
        assert last_s == pytest.approx((0.5 * PACKET_BITS + 2 * 320_000 - packet_bits) / RATE + RTT / 2)


@pytest.mark.parametrize(("transport", "size", "count"), [("ideal", 1400, 10), ("tcp", 14_480, 1)])
def test_a_queue_of_its_own_has_the_room_that_the_buffer_has(transport: str, size: int, count: int) -> None:
    """About 15 kB at once fit into a buffer of 15 kB. Half the rate doubles the wait, not the bytes that wait."""
    ways = TRANSPORTS[transport] if transport == "ideal" else replace(TRANSPORTS[transport], congestion="cubic")
    network = replace(PLAIN, up_buffer_bytes=15_000, transport=ways)
    for cross in ({}, {"up_cross": GREEDY, "aqm": AQMS["fq-codel"]}):
        up = AccessNetwork(replace(network, **cross), 0, [0.0], [0.0]).links(0)[0]  # type: ignore[arg-type]
        for _ in range(count):
            up.send(0.0, size)
        assert isinstance(up, ImpairedLink)
        assert up.dropped_bits == 0.0


def test_a_long_turn_over_an_interrupted_wire_is_asked_once_until_its_queue_is_full() -> None:
    """A flow busy for an hour may cross 1800 handovers. They must not be walked for each message."""
    walked = 0

    class Counted(Wire):
        def bits(self, start_s: float, end_s: float) -> float:
            nonlocal walked
            walked += 1
            return super().bits(start_s, end_s)

    one = queue(Traffic(3600.0, 3600.0), Counted(RATE))
    waits = [one.clear_s(100.0 + time_s) - 100.0 - time_s for time_s in range(1000)]
    assert walked <= 30 + 4 * sum(0.0 < wait_s < 0.19 for wait_s in waits)


def test_the_first_packet_of_a_slow_start_meets_the_queue_once_a_round_trip() -> None:
    """Two flights, of 10 and 20 segments: 100 ms up for each, 20 ms down in between. Own bits hardly queue at this rate."""
    network = replace(PLAIN, up_bps=1e9, down_bps=1e9, transport=TRANSPORTS["tcp"])
    more = {"up_cross": GREEDY, "down_cross": GREEDY, "up_buffer_bytes": 12.5e6, "down_buffer_bytes": 2.5e6}
    queued = replace(network, aqm=replace(AQMS["none"], drops=False), **more)  # 100 ms up, 20 ms down
    size = 30 * 1448
    extra_s = arrivals(queued, size, 1)[0] - arrivals(network, size, 1)[0]
    assert extra_s == pytest.approx(0.1 + 0.12, rel=0.01)


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(2.0, 6.0),
        Traffic(0.3, 0.3),
        Traffic(5.0, 0.5),
        Traffic(0.05, 0.2),
        Traffic(0.5, 3.5, fixed=True),
        Traffic(0.1, 3.9, fixed=True),
        Traffic(0.5, 0.15, fixed=True),
    ],
)
def test_the_mean_queue_of_a_flow_with_pauses_is_that_of_its_fluid(traffic: Traffic) -> None:
    """Times are not multiples of a cycle. The standard error of the mean is below 1 % in each case."""
    limit_s = 0.2
    one = queue(traffic, Wire(RATE), limit_s * RATE / 8)
    times = np.arange(30_000) * 0.6180339887 * (traffic.busy_s + traffic.quiet_s)
    waits = np.array([one.clear_s(float(t)) - t for t in times])
    assert waits.max() <= limit_s + 1e-6
    assert waits.mean() == pytest.approx(one.mean_s, rel=0.04)
    assert one.mean_s == pytest.approx(traffic.mean_wait_s(limit_s))


def test_closed_forms_of_the_mean() -> None:
    assert GREEDY.mean_wait_s(0.3) == 0.3
    # The queue fills for 0.2 s, is full for 0.6 s and drains for 0.2 s. A short fetch is sent in half of its time.
    assert Traffic(1.0, 3.0, fixed=True).mean_wait_s(0.2) == pytest.approx((0.2**2 + 0.2 * 0.6) / 4.0)
    assert Traffic(0.1, 3.9, fixed=True).mean_wait_s(0.2) == pytest.approx(0.05**2 / 4.0)
    assert Traffic(1.0, 1.0).mean_wait_s(0.2) == pytest.approx(0.1)  # symmetric
    short = Traffic(1e-3, 1.0).mean_wait_s(1.0)  # like M/M/1: nearly empty, the limit is never reached
    assert short == pytest.approx(2.0 / (999.0**2) / (2.0 / 999.0 + 1.0), rel=1e-3)
    assert Traffic(1.0, 1.0 + 1e-9).mean_wait_s(0.2) == pytest.approx(0.1)


def test_a_video_fetches_a_segment_of_four_seconds_at_the_rate_of_the_line() -> None:
    assert Traffic.video(20e6) == Traffic(1.0, 3.0, True)
    assert Traffic.video(5e6) == Traffic.video(1e6) == GREEDY


@pytest.mark.parametrize("limit_s", [0.005, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("rate", [5.1e6, 6e6, 10e6, 40e6, 90e6])
def test_a_video_keeps_its_line_busy_for_its_five_megabits_a_second(rate: float, limit_s: float) -> None:
    """This holds for any queue limit: what is sent at twice the rate at first is not sent again."""
    video = Traffic.video(rate)
    one = CrossQueue(video, Wire(rate), limit_s * rate, AQMS["none"], RTT, stream(0, "turns"))
    times = 100.0 + np.arange(4000) * 0.6180339887 * 4.0
    waits = np.array([one.clear_s(float(t)) - t for t in times])
    assert np.mean(waits > 0.0) == pytest.approx(5e6 / rate, abs=0.01)
    assert waits.mean() == pytest.approx(one.mean_s, rel=0.02)
    assert one.mean_s < GREEDY.mean_wait_s(limit_s)


def test_a_queue_in_an_outage_waits_for_its_end() -> None:
    wire = VaryingWire(Capacity([0.0, 1.0, 3.0], [8e6, 0.0, 8e6], 10.0))
    one = queue(GREEDY, wire, 500_000)
    assert one.clear_s(0.2) == pytest.approx(0.7)
    assert one.clear_s(0.8) == pytest.approx(3.3)
    assert one.clear_s(math.inf) == math.inf


@pytest.mark.parametrize("aqm", ["none", "codel"])
def test_a_shared_queue_drops_what_its_flow_needs_to_be_told(aqm: str) -> None:
    """Mathis: a window W loses 3 / (2 W^2). At 200,000 packets and 0.35 % or more, five standard errors are below 20 %."""
    one = queue(GREEDY, Wire(1e6), 25_000, aqm)
    bits = min(200_000.0, PACKET_BITS if aqm == "codel" else math.inf)
    window = max((RTT * 1e6 + bits) / PACKET_BITS, 4.0)
    assert one.drop_share(1.0) == pytest.approx(1.5 / window**2)
    drops = QueueDrops(one, None, stream(1, "drops"))
    found = sum(len(drops.lost(float(n), 100)) for n in range(2000)) / 200_000
    assert found == pytest.approx(one.drop_share(1.0), rel=0.2)
    both = QueueDrops(one, Loss(0.5, stream(2, "loss")), stream(1, "drops"))
    indices = both.lost(0.0, 1000)
    assert list(indices) == sorted(set(indices))
    assert len(indices) > 400
    assert both.lost_again(0.0, 1000) > 400


def test_a_pausing_flow_drops_only_while_its_queue_is_full() -> None:
    one = queue(Traffic(1.0, 3.0, fixed=True), Wire(1e6), 25_000)
    shares = {one.drop_share(0.01 * n) for n in range(1000)}
    full = sum(one.drop_share(0.01 * n) > 0.0 for n in range(4000)) / 4000
    assert len(shares) == 2
    assert full == pytest.approx(
        0.6 / 4.0, rel=0.05
    )  # the queue takes 0.2 s of the busy second to fill, and 0.2 s to drain while nothing is sent


def test_devices_of_a_cell_meet_one_flow() -> None:
    network = replace(PLAIN, up_cross=Traffic(0.5, 0.5), up_buffer_bytes=BUFFER, devices_per_cell=2)
    access = AccessNetwork(network, 0, [0.0] * 4, [0.0] * 4)
    ups = [access.links(number)[0] for number in range(4)]
    assert isinstance(ups[0], ImpairedLink)
    waits = np.array([[up.send(100.0 * n, 100) - 100.0 * n for up in ups] for n in range(1, 40)])
    assert np.allclose(waits[:, 0], waits[:, 1], atol=2e-3)
    assert not np.allclose(waits[:, 0], waits[:, 2], atol=2e-3)
    # The wire keeps its rate: messages of both devices leave one after another, behind the queue.
    busy = AccessNetwork(
        replace(network, up_cross=GREEDY, aqm=replace(AQMS["none"], drops=False)), 0, [0.0] * 2, [0.0] * 2
    )
    both = [busy.links(number)[0].send(0.0, 12_500) for number in range(2)]
    assert both == pytest.approx([0.2 + 0.01 + RTT / 2, 0.2 + 0.02 + RTT / 2])


def test_cross_traffic_needs_a_limit() -> None:
    with pytest.raises(ValueError, match="needs a buffer"):
        queue(GREEDY, Wire(RATE), math.inf)


# --- laws

messages = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 60_000)), min_size=1, max_size=20)
rates = st.floats(1e5, 1e8)
wires = st.one_of(
    rates.map(Wire),
    st.tuples(rates, rates).map(lambda two: VaryingWire(Capacity([0.0, 0.7], list(two), 1.6))),
)
flows = st.one_of(
    st.just(GREEDY),
    st.tuples(st.floats(0.05, 5), st.floats(0.05, 5), st.booleans()).map(lambda turns: Traffic(*turns)),
)


def send_all(link: ImpairedLink, gaps: list[tuple[float, int]]) -> list[float]:
    at = np.cumsum([gap for gap, _ in gaps]).tolist()
    return [link.send(now, size) for now, (_, size) in zip(at, gaps, strict=True)]


@settings(max_examples=60, deadline=None)
@given(messages, wires, flows, st.sampled_from(sorted(AQMS)), st.floats(2e3, 1e6))
def test_more_cross_traffic_is_never_earlier_and_keeps_the_order(
    gaps: list[tuple[float, int]], wire: Wire, flow: Traffic, aqm: str, buffer_bytes: float
) -> None:
    """No flow, the drawn flow and a greedy flow, without drops, since their retransmissions are random."""
    found = []
    for traffic in (None, flow, GREEDY):
        wire.free_s = 0.0
        ahead = None
        if traffic is not None:
            ahead = CrossQueue(
                traffic, wire, 8.0 * buffer_bytes, replace(AQMS[aqm], drops=False), RTT, stream(3, "turns")
            )
        found.append(send_all(ImpairedLink(wire, RTT / 2, RTT, TRANSPORTS["ideal"], queue=ahead), gaps))
    for less, more in itertools.pairwise(found):
        assert less == sorted(less)
        assert all(one <= other + 1e-7 for one, other in zip(less, more, strict=True))


@settings(max_examples=60, deadline=None)
@given(messages, wires, flows, st.sampled_from(sorted(AQMS)), st.sampled_from(sorted(TRANSPORTS)), st.floats(0, 0.3))
def test_bits_are_conserved_with_drops(
    gaps: list[tuple[float, int]], wire: Wire, flow: Traffic, aqm: str, name: str, p: float
) -> None:
    wire.free_s = 0.0
    transport = TRANSPORTS[name]
    ahead = CrossQueue(flow, wire, 8.0 * 20_000, AQMS[aqm], RTT, stream(3, "turns"))
    loss = QueueDrops(ahead, Loss(p, stream(1, "loss")) if p > 0.0 else None, stream(1, "drops"))
    link = ImpairedLink(wire, RTT / 2, RTT, transport, loss=loss, buffer_bytes=2e4, queue=ahead)
    arrived = send_all(link, gaps)
    assert arrived == sorted(arrived)
    framed = sum(8.0 * transport.frame(size)[0] for _, size in gaps)
    assert link.sent_bits == pytest.approx(framed + link.dropped_bits, rel=1e-12)

"""The general link: delays, losses against closed forms, buffers, shared wires."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.impairments import DISTRIBUTIONS, Jitter, Loss, cut_normal_centre
from simulator.network.link import ImpairedLink, Link
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import StepFunction, VaryingWire, Wire
from tests.simulator.network.test_varying_wire import steps

IDEAL, TCP = TRANSPORTS["ideal"], TRANSPORTS["tcp"]


# --- delay


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_delays_have_the_mean_and_the_deviation_asked_for(distribution: str) -> None:
    """The Pareto distribution of ratio 0.2 has a heavy fourth moment, so its deviation converges slowest: within 5 % at this seed."""
    draw = Jitter(0.02, distribution).draws(0.1, stream(4, "jitter", distribution))
    drawn = draw(200_000)
    assert drawn.min() >= 0.0
    assert drawn.mean() == pytest.approx(0.1, rel=0.005)
    assert drawn.std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.43, 0.5, 1.0, 5.0, 20.0, 100.0])
def test_a_cut_normal_keeps_its_mean(ratio: float) -> None:
    """The numerical integral of max(0, N(c, s)) equals the mean. At low ratios hardly any is cut and the centre stays the mean."""
    sd_s = ratio * 0.01
    centre_s = cut_normal_centre(0.01, sd_s)
    x = np.linspace(0.0, max(0.0, centre_s) + 12 * sd_s, 400_001)
    density = np.exp(-0.5 * ((x - centre_s) / sd_s) ** 2) / (sd_s * math.sqrt(2 * math.pi))
    mean_s = float(np.trapezoid(x * density, x))
    assert mean_s == pytest.approx(0.01, rel=1.5e-3 if centre_s == 0.01 else 1e-6)
    assert (centre_s == 0.01) == (ratio <= 0.4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0, 3.0])
def test_the_mean_delay_is_kept_whatever_the_jitter(distribution: str, ratio: float) -> None:
    """The mean of 400,000 draws is within 5 standard errors. Those of gamma, lognormal and Pareto at high ratios are the widest."""
    drawn = Jitter(0.01 * ratio, distribution).draws(0.01, stream(2, "jitter", distribution))(400_000)
    assert drawn.min() >= 0.0
    assert abs(drawn.mean() - 0.01) < 0.0015 * 0.01 + 5 * drawn.std() / math.sqrt(400_000)


@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0, 3.0])
def test_the_plain_link_keeps_the_mean_delay_whatever_the_jitter(ratio: float) -> None:
    link = Link(math.inf, 0.01, 0.01 * ratio, stream(2, "jitter"))
    spaced = np.array([link.send(1e3 * n, 1) - 1e3 * n for n in range(40_000)])
    assert abs(spaced.mean() - 0.01) < 0.0015 * 0.01 + 5 * spaced.std() / math.sqrt(40_000)


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=20), st.floats(1e-4, 100))
def test_measured_deviations_keep_the_mean(samples: list[float], mean_s: float) -> None:
    delays = Jitter(samples_s=tuple(samples))._moved_samples(mean_s)
    assert delays.min() >= 0.0
    assert delays.mean() == pytest.approx(mean_s, rel=1e-9)
    order = np.argsort(samples)
    assert np.all(np.diff(delays[order]) >= 0.0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_jitter_keeps_the_mean_of_a_delay_that_varies(distribution: str) -> None:
    """The delay alternates between 2 and 40 ms. The jitter of 15 ms far exceeds the first."""
    jitter = Jitter(0.015, distribution)
    for begin_s, mean_s in ((0.5, 0.002), (1.5, 0.040)):
        link = ImpairedLink(
            Wire(math.inf),
            0.021,
            0.042,
            IDEAL,
            draw=jitter.draws(0.021, stream(3, "jitter")),
            delay_at=StepFunction([0.0, 1.0], [0.002, 0.040], 2.0).entered_at(0.0),
            reach_s=jitter.reach_s(0.021),
        )
        delays = np.array([link.send(begin_s + 10.0 * n, 1) - begin_s - 10.0 * n for n in range(20_000)])
        assert delays.min() >= 0.0
        assert abs(delays.mean() - mean_s) < 0.002 * mean_s + 5 * delays.std() / math.sqrt(20_000)
        assert delays.std() > 0.05 * mean_s


def test_measured_deviations_are_drawn_as_they_are() -> None:
    drawn = Jitter(samples_s=(-1.0, 0.0, 0.25)).draws(0.5, stream(0, "jitter"))(30_000)
    values, counts = np.unique(drawn, return_counts=True)
    assert values == pytest.approx([0.0, 0.625, 0.875])  # none below 0, and the mean is 0.5
    assert counts / 30_000 == pytest.approx([1 / 3] * 3, abs=5 * math.sqrt(2 / 9 / 30_000))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_messages_stay_in_order_and_delays_do_not_depend_on_blocks(distribution: str) -> None:
    def link() -> ImpairedLink:
        return ImpairedLink(
            Wire(1e9), 0.05, 0.1, IDEAL, draw=Jitter(0.04, distribution).draws(0.05, stream(1, "jitter"))
        )

    one = link()
    arrived = [one.send(0.001 * n, 100) for n in range(500)]
    assert arrived == sorted(arrived)
    drawn = Jitter(0.04, distribution).draws(0.05, stream(1, "jitter"))(500)
    far = link()
    assert [far.send(10.0 * n, 100) - 10.0 * n for n in range(500)] == pytest.approx(
        (drawn + 800e-9).tolist(), abs=1e-11
    )


@pytest.mark.parametrize(
    ("jitter", "mean"),
    [
        (Jitter(-1.0), 1.0),
        (Jitter(math.nan), 1.0),
        (Jitter(0.1, "gamma"), 0.0),
        (Jitter(0.1), 0.0),
        (Jitter(101.0), 1.0),
        (Jitter(101.0, "lognormal"), 1.0),
        (Jitter(samples_s=(0.0, 1.0)), 0.0),
        (Jitter(0.0, "pareto"), 1.0),
        (Jitter(0.1, "cauchy"), 1.0),
        (Jitter(samples_s=(0.0, math.nan)), 1.0),
    ],
)
def test_a_delay_that_cannot_be_is_refused(jitter: Jitter, mean: float) -> None:
    with pytest.raises(ValueError, match=r"must be|needs a (mean|deviation)"):
        jitter.draws(mean, stream(0, "jitter"))


# --- loss

RTT, RTO = 0.060, 0.260


def extra_delays(size: int, p: float, messages: int, burst: float | None = None) -> np.ndarray:
    """Return the delay in s that loss adds to each of many messages far apart. The wire takes no time, the RTT is 60 ms."""
    loss = Loss(p, stream(11, "loss", size), burst)
    link = ImpairedLink(Wire(math.inf), RTT / 2, RTT, IDEAL, loss=loss)
    sent = 32.0 * np.arange(messages)
    late = np.array([link.send(float(at), size) for at in sent]) - sent - RTT / 2
    return np.asarray(np.round(late, 6))  # times reach 4e6 s


def repeats_s(segments: int, p: float) -> float:
    """Return the mean timeout in s for lost retransmissions. The j-th costs RTO 2**(j-1) if a segment is lost more than j times."""
    return sum((1.0 - (1.0 - p ** (j + 1)) ** segments) * RTO * 2.0 ** (j - 1) for j in range(1, 9))


def test_loss_of_a_small_message_costs_a_timeout() -> None:
    """120,000 messages at 5 % loss: the mean's standard error is 1.3 %."""
    p = 0.05
    extra = extra_delays(100, p, 120_000)
    assert np.mean(extra > 0.0) == pytest.approx(p, rel=0.05)
    assert extra.mean() == pytest.approx(RTO * p / (1.0 - 2.0 * p), rel=0.05)  # sum of p**k (1 - p) (2**k - 1) RTO
    assert np.percentile(extra, 99) == pytest.approx(RTO)
    assert np.percentile(extra, 99.9) == pytest.approx(3.0 * RTO)


def test_loss_in_a_long_message_costs_a_round_trip() -> None:
    """64 KB are 46 segments: at 1 % loss 37 % of the messages lose one. Most lose a round trip, the last segment a tail loss probe."""
    p, n = 0.01, 46
    extra = extra_delays(65536, p, 40_000)
    probe = 2.0 * RTT + 0.002
    mean = sum(p * (1.0 - p) ** behind * RTT * (1.0 if behind >= 3 else 1.25) for behind in range(1, n)) + p * (
        probe + p * RTT
    )
    mean += repeats_s(n, p)
    assert np.mean(extra > 0.0) == pytest.approx(1.0 - (1.0 - p) ** n, rel=0.05)
    assert extra.mean() == pytest.approx(mean, rel=0.05)
    assert np.percentile(extra, 70) == pytest.approx(RTT)
    # Above a round trip: a loss among the last three segments, or of a retransmission (0.46 %).
    assert np.mean(extra > 1.1 * RTT) == pytest.approx(1.0 - (1.0 - p) ** 3 + 1.0 - (1.0 - p * p) ** n, rel=0.1)
    assert probe <= np.percentile(extra, 99) <= 1.05 * probe


def test_bursts_have_the_mean_and_the_length_asked_for() -> None:
    loss = Loss(0.02, stream(3, "loss"), 4.0)
    lost = np.array(loss.lost(0.0, 2_000_000))
    bursts = 1 + np.count_nonzero(np.diff(lost) > 1)
    assert len(lost) / 2_000_000 == pytest.approx(0.02, rel=0.05)
    assert len(lost) / bursts == pytest.approx(4.0, rel=0.05)
    # Bursts lose packets together, so fewer messages suffer: those that begin in a burst, or in which one begins.
    hit = np.mean([bool(Loss(0.02, stream(n, "loss"), 4.0).lost(0.0, 10)) for n in range(8000)])
    assert hit == pytest.approx(0.02 + 0.98 * (1.0 - (1.0 - 0.02 / 0.98 / 4.0) ** 9), abs=4 * math.sqrt(0.06 / 8000))


def test_the_smallest_loss_there_is_loses_nothing() -> None:
    loss = Loss(5e-324, stream(0, "loss"), burst_packets=8.0)
    assert all(loss.lost(float(n), 100) == () for n in range(100))


def test_a_burst_is_over_after_a_pause() -> None:
    """Losses of packets a second apart are independent whatever the burst length; those a millisecond apart are not."""
    for spacing, expected in ((1.0, 0.1), (0.001, 0.8)):
        loss = Loss(0.1, stream(8, "loss"), 5.0)
        lost = np.array([bool(loss.lost(spacing * n, 1)) for n in range(40_000)])
        assert lost.mean() == pytest.approx(0.1, rel=0.1)
        assert np.mean(lost[1:][lost[:-1]]) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("mean", "burst"),
    [
        (0.0, None),
        (1.0, None),
        (-0.1, None),
        (math.nan, None),
        (0.1, 0.5),
        (0.1, math.inf),
        (0.1, math.nan),
        (0.9, 2.0),
    ],
)
def test_a_loss_that_cannot_be_is_refused(mean: float, burst: float | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        Loss(mean, stream(0, "loss"), burst)


# --- buffers, outages, sharing


def test_a_message_that_finds_the_buffer_full_is_tried_again_after_a_timeout() -> None:
    # A byte takes a millisecond, the timeout is 0.3 s.
    link = ImpairedLink(Wire(8000.0), 0.05, 0.1, IDEAL, buffer_bytes=1000)
    assert link.send(0.0, 1200) == pytest.approx(1.25)
    assert link.send(0.1, 500) == pytest.approx(1.75)  # 1100 bytes wait at first, 800 after a timeout
    assert link.sent_bits == 8 * (1200 + 2 * 500)
    assert link.dropped_bits == 8 * 500
    assert link.send(0.2, 900) == pytest.approx(2.65)  # 1500, 1200, then 600 wait: timeouts of 0.3 and 0.6 s
    assert link.dropped_bits == 8 * (500 + 2 * 900)


def test_a_message_that_fills_the_buffer_exactly_leaves_room_for_the_next() -> None:
    """A message is dropped only if more than `buffer_bytes` wait."""
    link = ImpairedLink(Wire(8000.0), 0.05, 0.1, IDEAL, buffer_bytes=1000)
    assert link.send(0.0, 1000) == pytest.approx(1.05)
    assert link.send(0.0, 500) == pytest.approx(1.55)
    assert link.dropped_bits == 0.0


def test_room_of_just_its_size_is_found_at_any_time() -> None:
    """Rounding of times once dropped half of the second messages. The times here are not exact in binary."""
    for time_s in np.arange(1.0, 50.0) * math.pi:
        link = ImpairedLink(Wire(3e6), 0.05, 0.1, IDEAL, buffer_bytes=1200)
        first_s, second_s = link.send(time_s, 1200), link.send(time_s, 1200)
        assert second_s - first_s == pytest.approx(0.0032, abs=1e-9)


def test_packets_that_find_no_room_in_the_buffer_are_sent_again() -> None:
    """A buffer of 10 kB holds 6 packets besides the one being sent. A lost tail costs a probe and a round trip."""
    link = ImpairedLink(Wire(8e6), 0.05, 0.1, IDEAL, buffer_bytes=10_000)
    size, packets = 100 * 1448, 100
    rounds = math.ceil((packets - 7) / 7)
    assert link.send(0.0, size) == pytest.approx(size * 8 / 8e6 + 0.05 + rounds * (0.2 + 0.002 + 0.1))
    dropped = sum(packets - 7 - 7 * n for n in range(rounds))
    assert link.dropped_bits == pytest.approx(8 * 1448 * dropped)
    assert link.sent_bits == pytest.approx(8 * size + link.dropped_bits)
    roomy = ImpairedLink(Wire(8e6), 0.05, 0.1, IDEAL, buffer_bytes=size)
    assert roomy.send(0.0, size) == pytest.approx(size * 8 / 8e6 + 0.05)


@pytest.mark.parametrize("flow_bytes", [0, 100 * 1448])
def test_what_a_window_holds_back_does_not_wait_in_the_buffer(flow_bytes: int) -> None:
    """Messages of some 115 kB at once leave in flights of ten packets and more. A buffer of 20 kB changes no arrival."""
    for sizes in ([80 * 1448], [20 * 1448] * 4, [2 * 1448] * 40):
        small, endless = (
            ImpairedLink(Wire(8e6), 0.05, 0.1, replace(TCP, flow_bytes=flow_bytes), buffer_bytes=room)
            for room in (20_000, math.inf)
        )
        came = [[one.send(0.0, size) for size in sizes] for one in (small, endless)]
        assert came[0] == pytest.approx(came[1])
        assert small.dropped_bits == 0.0


def test_a_window_outgrows_path_and_buffer_once() -> None:
    """8 Mbit/s and 100 ms hold 66 packets of 1500 bytes, the buffer 10 more. The window stops at 76; the excess costs a round trip."""
    link = ImpairedLink(Wire(8e6), 0.05, 0.1, TCP, buffer_bytes=15_000)
    free = ImpairedLink(Wire(8e6), 0.05, 0.1, TCP)
    size = 1448 * 400
    assert link.send(0.0, size) == pytest.approx(free.send(0.0, size) + 0.1, rel=0.05)
    assert 0 < link.dropped_bits <= 8 * 1500 * 76
    before = link.dropped_bits
    assert link.send(1.0, size) == pytest.approx(free.send(1.0, size), rel=0.01)  # the window has stopped growing
    assert link.dropped_bits == before
    link.reconnect()
    link.send(100.0, size)
    assert link.dropped_bits > before


@pytest.mark.parametrize("distribution", ["normal", "lognormal", "gamma", "pareto"])
def test_jitter_on_top_adds_its_mean_and_never_less_than_nothing(distribution: str) -> None:
    """At 40,000 draws the mean's standard error is 0.5 % of the deviation. The Pareto tail needs a wider tolerance."""
    jitter = Jitter(0.01, distribution, on_top=True)
    found = jitter.draws(0.03, stream(1, "j"))(40_000)
    assert found.min() >= 0.03
    assert found.mean() == pytest.approx(0.03 + jitter.added_s, rel=0.02)
    assert jitter.added_s == 0.01
    assert jitter.reach_s(0.03) == 0.0
    assert Jitter(0.01, distribution).added_s == 0.0


def test_samples_on_top_are_counted_from_the_least() -> None:
    jitter = Jitter(samples_s=(-0.002, 0.0, 0.006), on_top=True)
    assert sorted(set(np.round(jitter.draws(0.03, stream(1, "j"))(100), 9))) == [0.03, 0.032, 0.038]
    assert jitter.added_s == pytest.approx(0.01 / 3)


def test_devices_that_share_a_wire_queue_for_it_together() -> None:
    wire = Wire(8e6, shared=True)
    one, two = ImpairedLink(wire, 0.05, 0.1, IDEAL), ImpairedLink(wire, 0.01, 0.02, IDEAL)
    assert one.send(0.0, 1000) == pytest.approx(0.051)
    assert two.send(0.0, 1000) == pytest.approx(0.012)
    assert one.send(0.0, 1000) == pytest.approx(0.053)
    assert two.send(1.0, 1000) == pytest.approx(1.011)
    # A full window delays its own message and leaves the wire free.
    slow = ImpairedLink(Wire(8e6, shared=True), 0.5, 1.0, TCP)
    assert slow.send(0.0, 15 * 1448) > 1.5
    quick = ImpairedLink(slow.wire, 0.0, 0.0, IDEAL)
    assert quick.send(0.0, 1000) == pytest.approx((15 * 1500 + 1000) * 8 / 8e6)


@pytest.mark.parametrize(
    "bad", [{"delay_s": -1.0}, {"delay_s": math.inf}, {"rtt_s": math.nan}, {"buffer_bytes": 0.0}, {"rttvar_s": -1.0}]
)
def test_a_link_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImpairedLink(Wire(1e6), **({"delay_s": 0.1, "rtt_s": 0.2} | bad), transport=IDEAL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be"):
        Wire(0.0)


# --- laws

messages = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100_000)), min_size=1, max_size=25)
pieces = st.lists(st.tuples(st.floats(0.05, 3), st.floats(1e4, 1e8) | st.just(0.0)), min_size=1, max_size=6).filter(
    lambda found: any(rate for _, rate in found)
)


def timed(gaps: list[tuple[float, int]]) -> list[tuple[float, int]]:
    at = np.cumsum([gap for gap, _ in gaps]).tolist()
    return list(zip(at, [size for _, size in gaps], strict=True))


@given(
    messages,
    pieces,
    st.sampled_from(sorted(TRANSPORTS)),
    st.floats(0, 0.3),
    st.floats(0.01, 0.3),
    st.booleans(),
    st.floats(0, 20),
)
def test_nothing_is_lost_or_made_on_the_way(
    gaps: list[tuple[float, int]],
    rate: list[tuple[float, float]],
    name: str,
    delay: float,
    p: float,
    full: bool,
    until: float,
) -> None:
    transport = TRANSPORTS[name]
    wire = VaryingWire(steps(*rate), 0.7)
    link = ImpairedLink(
        wire, delay, 2 * delay, transport, loss=Loss(p, stream(1, "l"), 3.0), buffer_bytes=5e4 if full else math.inf
    )
    sent = timed(gaps)
    arrived = [link.send(*one) for one in sent]
    assert arrived == sorted(arrived)
    framed = [8.0 * transport.frame(size)[0] for _, size in sent]
    for (at, _), bits, arrival in zip(sent, framed, arrived, strict=True):
        assert arrival >= wire.finish_s(at, bits) + delay - 1e-7
    delivered = sum(bits for bits, arrival in zip(framed, arrived, strict=True) if arrival <= until)
    in_flight = sum(bits for bits, arrival in zip(framed, arrived, strict=True) if arrival > until)
    assert link.sent_bits == pytest.approx(delivered + in_flight + link.dropped_bits, rel=1e-12)


@given(messages, st.floats(1e4, 1e9), st.floats(1e-3, 1), st.floats(1, 10), st.floats(0, 1), st.floats(0, 0.2))
def test_a_slower_or_longer_link_is_never_earlier(
    gaps: list[tuple[float, int]], rate: float, delay: float, slower: float, longer: float, p: float
) -> None:
    def arrivals(rate: float, delay: float) -> list[float]:
        draw = Jitter(0.01).draws(delay, stream(0, "jitter"))
        loss = Loss(p, stream(0, "loss")) if p > 0.0 else None
        link = ImpairedLink(Wire(rate), delay, 2 * delay, IDEAL, draw=draw, loss=loss)
        return [link.send(*one) for one in timed(gaps)]

    best = arrivals(rate, delay)
    for worse in (arrivals(rate / slower, delay), arrivals(rate, delay + longer)):
        assert all(a <= b + 1e-9 for a, b in zip(best, worse, strict=True))


@given(st.integers(1, 1_000_000), st.floats(1e5, 1e9), st.floats(0.001, 1), st.floats(1, 10), st.floats(0, 1))
def test_a_fresh_connection_is_never_faster_for_less_rate_or_more_delay(
    size: int, rate: float, delay: float, slower: float, longer: float
) -> None:
    def arrival(rate: float, delay: float) -> float:
        return ImpairedLink(Wire(rate), delay, 2 * delay, TCP).send(0.0, size)

    best = arrival(rate, delay)
    assert best <= arrival(rate / slower, delay) + 1e-9
    assert best <= arrival(rate, delay + longer) + 1e-9


@given(messages, st.floats(1e4, 1e9), st.floats(0, 1))
def test_without_impairments_it_is_the_plain_link(gaps: list[tuple[float, int]], rate: float, delay: float) -> None:
    plain, general = Link(rate, delay), ImpairedLink(Wire(rate), delay, 2 * delay, IDEAL)
    sent = timed(gaps)
    arrived = [plain.send(*one) for one in sent]
    assert [general.send(*one) for one in sent] == arrived
    assert all(a <= b for a, b in pairwise(arrived))

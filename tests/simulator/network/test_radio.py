"""The radio: the wait of each direction by the length of the silence, and the request that the energy is booked to."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink
from simulator.network.radio import Radio, RadioFigures
from simulator.network.transport import TRANSPORTS, opened_by
from simulator.network.wire import Capacity, VaryingWire, Wire

IDEAL = TRANSPORTS["ideal"]
FIGURES = RadioFigures(
    promotion_s=0.25,
    inactivity_s=10.0,
    drx_after_s=0.25,
    drx_cycle_s=0.5,
    paging_cycle_s=1.0,
    grant_bytes=128,
    grant_s=2.0**-7,
    promotion_w=2.0,
    active_w=1.0,
    drx_w=0.5,
    up_j_per_byte=2.0**-10,
    down_j_per_byte=2.0**-12,
)


def device(seed: int = 0, figures: RadioFigures = FIGURES) -> tuple[ImpairedLink, ImpairedLink, Radio, list[float]]:
    """Return an uplink and a downlink of 1024 B/s without delay, their radio, and the joules of three requests."""
    joules, static = [0.0] * 3, [0.0] * 3
    radio = Radio(figures, stream(seed, "radio"), joules, static)
    up, down = (ImpairedLink(Wire(8192.0), 0.0, 0.0, IDEAL, gate=gate) for gate in (radio.up, radio.down))
    return up, down, radio, joules


def test_an_uplink_message_waits_for_a_promotion_after_the_inactivity_timer_only() -> None:
    up, _, _, _ = device()
    assert up.send(0.0, 128) == 0.375  # idle at first
    assert up.ready_s == 0.25
    assert up.send(0.0, 128) == 0.5
    assert up.send(10.5, 128) == 10.625  # DRX does not delay the uplink
    assert up.send(20.75, 128) == 21.125  # 10.125 s of silence


def test_a_radio_on_the_shared_channel_of_umts_is_promoted_from_there() -> None:
    """The radio is in FACH from 5 s to 17 s after the last bit, in both directions. Each promotion is booked to its request."""
    figures = RadioFigures(
        promotion_s=2.0,
        fach_promotion_s=1.5,
        inactivity_s=17.0,
        drx_after_s=5.0,
        promotion_w=2.0,
        active_w=1.0,
        drx_w=0.5,
    )
    up, down, radio, joules = device(figures=figures)
    assert up.send(0.0, 128) == 2.125
    assert up.send(7.0, 128) == 7.125  # 4.875 s of silence: still on the dedicated channel
    radio.request = 1
    assert up.send(13.125, 128) == 13.125 + 1.5 + 0.125
    assert up.ready_s == 14.625
    radio.request = 2
    assert down.send(24.75, 128) == 24.75 + 1.5 + 0.125
    assert down.send(24.75, 128) == 24.75 + 1.5 + 0.25
    assert up.send(46.0, 128) == 46.0 + 2.0 + 0.125  # 19.5 s: idle
    awake_s = 0.125 + 4.875 + 0.125 + 5.0  # first request: two messages and the silence after each
    assert joules[0] == pytest.approx(2.0 * 2.0 + awake_s + 0.5 * 1.0)
    assert joules[1] == pytest.approx(2.0 * 1.5 + 0.125 + 5.0 + 0.5 * 5.0)


def test_what_a_sleeping_radio_makes_wait_is_no_more_than_it_is() -> None:
    """Five small messages arrive within a DRX cycle of 320 ms. All fit into a buffer of 100 ms at line rate and leave together."""
    radio = replace(FIGURES, drx_cycle_s=0.32)
    small, endless = (
        Network(1e7, 1e7, 0.03, 0.03, radio=radio, down_buffer_bytes=room) for room in (125_000.0, math.inf)
    )
    for seed in range(20):
        came = []
        for network in (small, endless):
            up, down, _ = AccessNetwork(network, seed, [0.0], [0.0]).links(0)
            up.send(0.0, 100)
            came.append([down.send(5.0 + 0.01 * n, 300) for n in range(5)])
        assert came[0] == came[1]


def test_a_long_uplink_message_waits_for_a_second_grant() -> None:
    up, _, _, _ = device()
    assert up.send(0.0, 128) == 0.375
    assert up.send(1.0, 256) == 1.25 + 2.0**-7
    assert up.send(1.0, 256) == 1.5  # the buffer was not empty: further grants were pending
    assert up.send(3.0, 128) == 3.125


def downlink_waits(silence_s: float, count: int = 4000) -> np.ndarray:
    found = []
    for seed in range(count):
        up, down, _, _ = device(seed)
        last_s = up.send(0.0, 128)
        found.append(down.send(last_s + silence_s, 128) - last_s - silence_s - 0.125)
        assert down.ready_s == pytest.approx(last_s + silence_s + found[-1]) or found[-1] == 0.0
    return np.array(found)


@pytest.mark.parametrize(("silence_s", "low_s", "high_s"), [(0.125, 0.0, 0.0), (1.0, 0.0, 0.5), (12.0, 0.25, 1.25)])
def test_a_downlink_message_waits_uniformly_for_a_sleeping_radio(silence_s: float, low_s: float, high_s: float) -> None:
    """The mean of 1000 draws is off by more than five standard errors at one of 1.7 million seeds."""
    waits = downlink_waits(silence_s, 1000)
    assert waits.min() >= low_s - 1e-9
    assert waits.max() <= high_s + 1e-9
    error_s = (high_s - low_s) / math.sqrt(12 * 1000)
    assert waits.mean() == pytest.approx((low_s + high_s) / 2, abs=5 * error_s + 1e-9)
    assert waits.std() == pytest.approx((high_s - low_s) / math.sqrt(12), rel=0.1, abs=1e-9)


def test_messages_after_a_page_wait_for_the_same_promotion() -> None:
    up, down, _, _ = device()
    up.send(0.0, 128)
    first_s = down.send(100.0, 128)
    assert 100.375 <= first_s <= 101.375
    assert down.send(100.0, 128) == pytest.approx(first_s + 0.125)
    assert up.send(100.0, 128) == pytest.approx(first_s)  # awake from first_s - 0.125 on


def test_energy_of_a_message_and_of_the_silence_after_it() -> None:
    up, down, radio, joules = device()
    up.send(0.0, 1024)  # a promotion of 0.25 s and 1 s on the wire
    assert joules == [0.5 + 1.0 + 1.0, 0.0, 0.0]
    radio.request = 1
    down.send(1.25 + 0.125, 512)  # after 1/8 s awake, booked to request 0
    assert joules == [2.5 + 0.125, 0.5 + 0.125, 0.0]
    radio.request = 2
    up.send(3.875, 128)  # 2 s later, awake for the first quarter
    assert joules == [2.625, 0.625 + 0.25 + 0.5 * 1.75, 0.125 + 0.125]
    radio.finish()
    assert joules == [2.625, 1.75, 0.25 + 0.25 + 0.5 * 9.75]


def test_static_energy_is_what_carries_no_message() -> None:
    """A promotion of 0.25 s at 2 W, then 0.25 s awake at 1 W and 9.75 s of DRX at 0.5 W."""
    joules, static = [0.0], [0.0]
    radio = Radio(FIGURES, stream(0, "radio"), joules, static)
    ImpairedLink(Wire(8192.0), 0.0, 0.0, IDEAL, gate=radio.up).send(0.0, 1024)
    radio.finish()
    assert static == [0.5 + 0.25 + 0.5 * 9.75]
    assert joules == [static[0] + 1.0 + 1.0]  # 1 s on the wire, and the bytes


def test_a_radio_that_only_costs_energy_waits_for_nothing() -> None:
    figures = RadioFigures(inactivity_s=0.25, active_w=2.0, drx_w=1.0, up_j_per_byte=2.0**-10)
    up, down, radio, joules = device(figures=figures)
    assert [up.send(0.0, 1024), down.send(100.0, 1024)] == [1.0, 101.0]
    radio.finish()
    assert joules[0] == 2.0 + 1.0 + 0.5 + 2.0 + 0.5


@given(st.lists(st.tuples(st.floats(0, 15), st.integers(1, 4000), st.booleans(), st.integers(0, 2)), max_size=20))
def test_energy_is_that_of_states_and_bytes_whoever_pays(events: list[tuple[float, int, bool, int]]) -> None:
    """The total lies between the least for one message and promotion power throughout, plus the energy of the bytes."""
    up, down, radio, joules = device()
    now_s, at_bytes = 0.0, 0.0
    for gap_s, size, way, request in events:
        now_s += gap_s
        radio.request = request
        (up if way else down).send(now_s, size)
        at_bytes += size * (FIGURES.up_j_per_byte if way else FIGURES.down_j_per_byte)
    radio.finish()
    if events:
        end_s = radio._last_s + FIGURES.inactivity_s
        assert 0.5 + 1.0 * 0.25 + 0.5 * 9.75 + at_bytes <= sum(joules) + 1e-9
        assert sum(joules) <= at_bytes + 2.0 * end_s + 1e-9
    else:
        assert joules == [0.0] * 3


def waits_for_uplink(figures: RadioFigures, count: int = 2000, sizes: int = 1) -> np.ndarray:
    """Return the waits in s of one device's small messages at random times far apart."""
    radio = Radio(figures, stream(0, "radio", 3), [0.0], [0.0])
    up = ImpairedLink(Wire(1e15), 0.0, 0.0, IDEAL, gate=radio.up)
    times = 1.0 + np.cumsum(stream(1, "times").uniform(0.5, 1.5, count))
    return np.array([up.send(float(at), sizes) for at in times]) - times


@pytest.mark.parametrize(
    ("figures", "low_ms", "high_ms"),
    [
        ({"sr_period_s": 0.010}, 0.0, 10.0),
        ({"sr_period_s": 0.010, "sr_grant_s": 0.012}, 12.0, 22.0),
        ({"sr_period_s": 0.040, "sr_grant_s": 0.003}, 3.0, 43.0),
        ({"slot_s": 0.0025}, 0.0, 2.5),
        ({"sr_period_s": 0.010, "sr_grant_s": 0.003, "slot_s": 0.0025}, 5.0, 15.0),  # the grant waits for a slot
        ({"sr_period_s": 0.010, "sr_grant_s": 0.005, "slot_s": 0.0025}, 5.0, 15.0),
        ({"configured_s": 0.005}, 0.0, 5.0),
        ({"configured_s": 0.005, "slot_s": 0.0025}, 0.0, 5.0),
    ],
)
def test_a_message_waits_for_its_turn_in_the_uplink(figures: dict[str, float], low_ms: float, high_ms: float) -> None:
    """Waits are uniform from the best case to the worst. The mean is that of `mean_access_s`, within 1 % of the range."""
    of = RadioFigures(**figures)
    waits_ms = 1e3 * waits_for_uplink(of, 20_000)
    span = high_ms - low_ms
    assert waits_ms.min() == pytest.approx(low_ms, abs=0.01 * span)
    assert waits_ms.max() == pytest.approx(high_ms, abs=0.01 * span)
    assert waits_ms.mean() == pytest.approx(0.5 * (low_ms + high_ms), abs=0.01 * span)
    assert 1e3 * of.mean_access_s == pytest.approx(0.5 * (low_ms + high_ms))


def test_messages_that_queue_go_along_with_the_grant_of_the_first() -> None:
    figures = RadioFigures(sr_period_s=0.125, sr_grant_s=0.25)
    radio = Radio(figures, stream(0, "radio"), [0.0], [0.0])
    up = ImpairedLink(Wire(8192.0), 0.0, 0.0, IDEAL, gate=radio.up)
    first_s = up.send(5.0, 128)
    assert 5.375 <= first_s <= 5.5
    assert up.send(5.0, 128) == first_s + 0.125
    assert up.send(first_s, 128) == first_s + 0.25
    assert up.send(first_s + 5.0, 128) >= first_s + 5.375


def test_a_promotion_ends_with_a_grant() -> None:
    figures = RadioFigures(promotion_s=0.5, inactivity_s=10.0, sr_period_s=4.0, sr_grant_s=2.0)
    up, _, _, _ = device(figures=figures)
    assert up.send(1.0, 128) == 1.625
    assert up.send(5.0, 128) > 7.0


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 900)), min_size=1, max_size=15),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0.0, 0.05),
    st.integers(0, 99),
)
def test_rarer_opportunities_never_make_a_message_earlier(
    sent: list[tuple[float, int]], doublings: int, slots: int, grant_s: float, seed: int
) -> None:
    """Order and bytes are kept. A period that divides the other never makes the first message later."""
    period_s = 0.01

    def arrivals(figures: RadioFigures | None) -> list[float]:
        gate = None if figures is None else Radio(figures, stream(seed, "radio"), [0.0], [0.0]).up
        up = ImpairedLink(Wire(1e5), 0.0, 0.0, IDEAL, gate=gate)
        times = np.cumsum([pause for pause, _ in sent]).tolist()
        found = [up.send(at, size) for at, (_, size) in zip(times, sent, strict=True)]
        assert found == sorted(found)
        assert up.sent_bits == sum(8.0 * size for _, size in sent)
        return found

    slotted = RadioFigures(sr_period_s=period_s, sr_grant_s=grant_s, slot_s=period_s / 2**slots)
    asked = arrivals(slotted)
    assert all(a <= b + 1e-9 for a, b in zip(arrivals(None), asked, strict=True))
    # Only for the first message: a later one sent before the buffer is empty shares its grant.
    assert arrivals(replace(slotted, slot_s=0.0))[0] <= asked[0] + 1e-9
    assert asked[0] <= arrivals(replace(slotted, sr_period_s=period_s * 2**doublings))[0] + 1e-9


@pytest.mark.parametrize(
    ("figures", "step_ms"),
    [
        ({"sr_period_s": 0.040, "sr_grant_s": 0.012}, 80.0),  # 12 ms and a round trip of 60 ms, in whole periods
        ({"sr_period_s": 0.010, "sr_grant_s": 0.012}, 80.0),
        ({"sr_period_s": 0.010, "sr_grant_s": 0.003, "slot_s": 0.0025}, 70.0),
        ({"slot_s": 0.009}, 63.0),
        ({"configured_s": 0.025}, 75.0),
        ({}, 60.0),
    ],
)
@pytest.mark.parametrize(
    ("name", "handshake"), [("tcp", "full"), ("grpc", "full"), ("grpc", "0-rtt"), ("sctp", "full")]
)
def test_what_a_device_sends_to_open_a_connection_waits_for_its_turn(
    figures: dict[str, float], step_ms: float, name: str, handshake: str
) -> None:
    """Every round trip takes a whole number of periods, from the first packet's opportunity to that of the first message."""
    transport = opened_by(TRANSPORTS[name], handshake)
    network = Network(1e15, 1e15, 0.02, 0.04, radio=RadioFigures(**figures))
    open_network = replace(network, transport=replace(transport, handshake_rtts=0))
    for device in range(20):
        at_s = 1.0 + 0.0137 * device
        open_up, _, _ = AccessNetwork(open_network, 0, [0.0], [0.0]).links(device)
        up, _, _ = AccessNetwork(replace(network, transport=transport), 0, [0.0], [0.0]).links(device)
        took_s = up.send(at_s, 100) - open_up.send(at_s, 100)
        assert 1e3 * took_s == pytest.approx(step_ms * transport.handshake_rtts)


@pytest.mark.parametrize(
    ("name", "handshake", "more"),
    [("tcp", "full", 0), ("grpc", "full", 1), ("grpc", "resumed", 1), ("grpc", "0-rtt", 0), ("quic", "full", 1)],
)
def test_a_hello_beyond_the_first_grant_waits_for_another_one(name: str, handshake: str, more: int) -> None:
    """A TLS hello of 500 or 1200 bytes needs another grant, 8 ms later. A SYN fits into the first."""

    def opened_s(**figures: float) -> float:
        of = RadioFigures(promotion_s=0.25, inactivity_s=10.0, **figures)
        network = Network(1e15, 1e15, 0.03, 0.03, transport=opened_by(TRANSPORTS[name], handshake), radio=of)
        up, _, _ = AccessNetwork(network, 0, [0.0], [0.0]).links(0)
        up.send(1.0, 10)
        return up.open_s

    assert opened_s(grant_bytes=150, grant_s=0.008) - opened_s() == pytest.approx(0.008 * more)


def test_a_packet_of_a_handshake_that_is_sent_again_waits_for_its_turn() -> None:
    """TCP's only round trip is lost once. The retransmission after 1 s takes the seventh opportunity: they are 160 ms apart."""

    class FirstLost:
        left = 1

        def lost(self, now_s: float, packets: int) -> list[int]:
            return []

        def lost_again(self, now_s: float, packets: int) -> int:
            self.left -= 1
            return int(self.left == 0)

    network = Network(1e15, 1e15, 0.03, 0.03, radio=RadioFigures(sr_period_s=0.16))
    open_up, _, _ = AccessNetwork(network, 0, [0.0], [0.0]).links(0)
    up, _, _ = AccessNetwork(replace(network, transport=TRANSPORTS["tcp"]), 0, [0.0], [0.0]).links(0)
    up.loss = FirstLost()  # type: ignore[union-attr]
    first_s = open_up.send(1.0, 100) - 0.03
    assert up.send(1.0, 100) == pytest.approx(first_s + 8 * 0.16 + 0.03)
    assert up.open_s == pytest.approx(first_s + 7 * 0.16 + 0.06)


def test_a_packet_of_a_handshake_whose_timer_outlasts_an_outage_waits_for_its_turn() -> None:
    """An outage lasts from 5 to 20 s. A packet sent at 5 s is sent again at 6, 8, 12 and 20 s, and then waits for an opportunity."""
    rate = Capacity([0.0, 5.0, 20.0], [1e15, 0.0, 1e15], 1000.0)
    figures = RadioFigures(sr_period_s=0.3)
    up, down = (
        ImpairedLink(VaryingWire(rate), 0.0, 0.0, IDEAL, gate=gate)
        for radio in [Radio(figures, stream(0, "radio"), [0.0], [0.0])]
        for gate in (radio.up, radio.down)
    )
    turn_s = up.send(20.0, 1)
    assert 20.0 < turn_s < 20.3
    assert up.opening_s(5.0, 0.0) == pytest.approx(turn_s)
    assert down.opening_s(5.0, 0.0) == pytest.approx(20.0)


def test_each_device_draws_an_operator_by_its_share() -> None:
    """400 devices: the shares are within four standard errors. The order in which devices are created does not matter."""
    quick, slow = replace(FIGURES, inactivity_s=5.0), replace(FIGURES, inactivity_s=11.2)
    network = Network(1e6, 1e6, 0.0, 0.0, radio=FIGURES, operators=((0.25, quick), (0.75, slow)))
    access = AccessNetwork(network, 4, [], [])
    drawn = [access.links(device)[2].figures.inactivity_s for device in range(400)]  # type: ignore[union-attr]
    assert drawn.count(5.0) / 400 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    assert set(drawn) == {5.0, 11.2}
    other = AccessNetwork(network, 4, [], [])
    assert [other.links(device)[2].figures.inactivity_s for device in (17, 3)] == [drawn[17], drawn[3]]  # type: ignore[union-attr]


def test_the_timer_of_an_operator_decides_who_is_promoted() -> None:
    quick, slow = replace(FIGURES, inactivity_s=5.0), replace(FIGURES, inactivity_s=11.2)
    network = Network(8192.0, 8192.0, 0.0, 0.0, radio=FIGURES, operators=((0.5, quick), (0.5, slow)))
    access = AccessNetwork(network, 0, [0.0], [0.0])
    for number in range(8):
        up, _, radio = access.links(number)
        assert radio is not None
        up.send(0.0, 128)
        assert up.send(8.0, 128) == (8.375 if radio.figures.inactivity_s == 5.0 else 8.125)

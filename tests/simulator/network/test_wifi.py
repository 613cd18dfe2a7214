"""The Wi-Fi hop: Bianchi's fixed point, a slotted simulation of stations written again, and its effect on a link."""

import random
from dataclasses import replace

import numpy as np
import pytest

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import GREEDY
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wifi import BURST_S, BUSY_S, DOUBLINGS, SLOT_S, WINDOW, Channel, Hop, HopWire, first_access_s
from simulator.network.wire import Capacity, VaryingWire, Wire


def waits(hop: Hop, count: int) -> np.ndarray:
    wire = HopWire(Wire(1e12), hop, stream(0, "test"))
    return np.array([wire.finish_s(10.0 * n, 1.0) - 10.0 * n for n in range(count)])


def test_stations_succeed_as_often_as_in_bianchis_fixed_point() -> None:
    """G. Bianchi, IEEE JSAC 18 (2000), equations 7 to 9; ten stations are so many that his independent slots do not matter."""
    stations, low, high = 10, 0.0, 1.0
    for _ in range(60):
        p = 0.5 * (low + high)
        tau = 2.0 / (WINDOW + 1.0 + p * WINDOW * sum((2.0 * p) ** k for k in range(DOUBLINGS)))
        low, high = (p, high) if 1.0 - (1.0 - tau) ** (stations - 1) > p else (low, p)
    channel = Channel(stations, stream(0, "test"))
    slots, sent, succeeded = channel.slot, 20_000, 0
    for _ in range(sent):
        succeeded += channel.transmit() >= 0
    slots = channel.slot - slots
    quiet = (1.0 - tau) ** stations
    assert sent / slots == pytest.approx(1.0 - quiet, rel=0.02)
    assert succeeded / sent == pytest.approx(stations * tau * (1.0 - tau) ** (stations - 1) / (1.0 - quiet), rel=0.02)


def simulated_waits_s(stations: int, count: int, bursts: int) -> np.ndarray:
    """Simulate saturated stations and one that sends sometimes, slot by slot. Returns the waits of its bursts, float64 [count, bursts]."""
    chance = random.Random(1)
    stage = [0] * stations
    left = [chance.randrange(WINDOW) for _ in range(stations)]
    waits_s = np.empty((count, bursts))

    def next_slots(own: int | None) -> tuple[int, bool, bool]:
        """Return the slots until the next transmission, whether the device takes part, and whether it is a collision."""
        step = min(left if own is None else [*left, own])
        sending = [i for i, one in enumerate(left) if one == step]
        collision = len(sending) + (own == step) > 1
        left[:] = [one - step - 1 for one in left]  # a transmission counts as a slot
        for i in sending:
            stage[i] = min(stage[i] + 1, DOUBLINGS) if collision else 0
            left[i] = chance.randrange(WINDOW * 2 ** stage[i])
        return step, own == step, collision

    for n in range(count):
        for _ in range(8 * stations):
            next_slots(None)
        wait_s = BUSY_S * chance.random()
        for burst in range(bursts):
            doublings, own = 0, chance.randrange(WINDOW)
            while True:
                step, mine, collision = next_slots(own)
                wait_s += step * SLOT_S
                if mine and not collision:
                    break
                wait_s += BUSY_S
                own -= step + 1
                if mine:
                    doublings = min(doublings + 1, DOUBLINGS)
                    own = chance.randrange(WINDOW * 2**doublings)
            waits_s[n, burst] = wait_s
            wait_s = BUSY_S - BURST_S  # the acknowledgement
    return waits_s


@pytest.mark.parametrize(("stations", "count"), [(1, 3000), (2, 2500), (5, 800)])
def test_waits_are_those_of_simulated_stations(stations: int, count: int) -> None:
    """The first wait is exact; later ones are those of a sender without end, which are up to a tenth shorter beside several stations."""
    found = simulated_waits_s(stations, count, 3)
    error = found.std(axis=0) / count**0.5
    assert abs(found[:, 0].mean() - Hop(stations).mean_wait_s) < 4.0 * error[0]
    assert np.quantile(found[:, 0], 0.9) == pytest.approx(np.quantile(first_access_s(stations), 0.9), rel=0.1)
    assert found[:, 1:].mean() == pytest.approx(Hop(stations).next_wait_s, rel=0.12, abs=4.0 * error[1])


@pytest.mark.parametrize("stations", [1, 10])
def test_waits_of_a_wire_are_those_of_its_stations(stations: int) -> None:
    found = waits(Hop(stations), 20_000)
    assert abs(found.mean() - Hop(stations).mean_wait_s) < 4.0 * found.std() / len(found) ** 0.5
    assert Hop(1).mean_wait_s < Hop(2).mean_wait_s < Hop(10).mean_wait_s


@pytest.mark.parametrize("stations", [1, 3])
def test_a_sender_that_always_has_data_gets_what_each_station_gets(stations: int) -> None:
    """Of the channel's time all of them get the same, so the bursts of all and their overhead leave only collisions and idle slots."""
    share = (stations + 1) * Hop(stations).share
    assert 0.8 < share < BURST_S / BUSY_S


@pytest.mark.parametrize("hop", [Hop(0), Hop(0, tail=0.2), Hop(2)])
def test_what_comes_beside_others_of_its_sender_meets_their_wait_at_a_random_moment(hop: Hop) -> None:
    """The mean is E[w^2] / (2 E[w + burst]): 0.2 * 0.00583 / (2 * 0.019) for a tail of 0.05 to 0.1 s in a fifth of the bursts."""
    wire = HopWire(Wire(1e12), hop, stream(0, "test"))
    found = np.zeros(20_000)
    for n in range(len(found)):
        wire.occupied(10.0 * n)
        found[n] = wire.finish_s(10.0 * n, 1.0) - 10.0 * n
    assert abs(found.mean() - hop.met_wait_s) <= 5.0 * found.std() / len(found) ** 0.5 + 1e-6
    if hop.tail:
        assert hop.met_wait_s == pytest.approx(0.2 * (0.1**3 - 0.05**3) / 3 / 0.05 / (2 * 0.019), rel=0.02)
    assert (hop.met_wait_s > hop.mean_wait_s) == (hop.stations > 0 or hop.tail > 0.0)


def test_a_tail_is_as_frequent_and_as_long_as_asked_for() -> None:
    found = waits(Hop(tail=0.1), 20_000)
    slow = found[found > 1e-6]
    assert len(slow) / len(found) == pytest.approx(0.1, rel=0.08)
    assert slow.min() >= 0.05
    assert slow.max() <= 0.1
    assert found.mean() == pytest.approx(Hop(tail=0.1).mean_wait_s, rel=0.08)


def test_a_long_message_gets_its_share_of_the_channel_and_order_is_kept() -> None:
    hop = Hop(stations=3)
    wire = HopWire(Wire(40e6), hop, stream(1, "test"))
    bits = 2000 * BURST_S * 40e6
    assert wire.mean_bps == pytest.approx(40e6 * BURST_S / (BURST_S + hop.next_wait_s))
    assert bits / wire.finish_s(0.0, bits) == pytest.approx(wire.mean_bps, rel=0.15)
    assert wire.bits(1.0, 3.0) == pytest.approx(2.0 * wire.mean_bps)
    link = ImpairedLink(wire, 0.01, 0.02, TRANSPORTS["ideal"])
    arrivals = [link.send(0.001 * n, 500) for n in range(50)]
    assert arrivals == sorted(arrivals)
    assert len({round(arrival, 3) for arrival in arrivals}) < 35  # messages that wait together go together
    dead = HopWire(VaryingWire(Capacity([0.0, 1.0], [1e6, 0.0], 2.0)), hop, stream(1, "test"))
    assert list(dead.outages(0.0, 1.5)) == [(1.0, 2.0)]


def test_before_a_slow_line_a_message_waits_as_before_a_fast_one() -> None:
    """Of 5 Mbit/s a burst of 40 Mbit/s and 4 ms takes 32 ms. Meanwhile the next one waits for the channel, most often for less."""
    hop, bits = Hop(stations=5), 8 * 15_000
    found = np.array([HopWire(Wire(5e6), hop, stream(n, "test")).finish_s(0.0, bits) for n in range(1500)])
    assert abs(found.mean() - bits / 5e6 - hop.mean_wait_s) < 4.0 * found.std() / len(found) ** 0.5
    wire, many = HopWire(Wire(5e6), hop, stream(0, "test")), 8 * 40_000_000
    assert many / wire.finish_s(0.0, many) == pytest.approx(wire.mean_bps, rel=0.05)
    assert 0.6 < wire.mean_bps / 5e6 < 0.8
    assert hop.before(5e6).share == pytest.approx(wire.mean_bps / 5e6)
    assert hop.before(40e6) == hop.before(0.0) == hop
    assert Hop(stations=1).before(1e6).share > 0.98
    moments = np.zeros(4000)
    for n in range(len(moments)):
        wire.occupied(1e4 + n)
        moments[n] = wire.finish_s(1e4 + n, 1.0) - 1e4 - n
    assert abs(moments.mean() - wire.met_wait_s) < 5.0 * moments.std() / len(moments) ** 0.5


def test_each_direction_of_a_network_has_its_hop() -> None:
    plain = Network(1e7, 1e7, 0.01, 0.01, transport=TRANSPORTS["tcp"])
    latest = []
    for network in (plain, Network(1e7, 1e7, 0.01, 0.01, transport=TRANSPORTS["tcp"], wifi=Hop(stations=1))):
        up, down, _ = AccessNetwork(network, 0, [0.0], [0.0]).links(0)
        latest.append([np.mean([link.send(1.0 * n, 100) - 1.0 * n for n in range(1, 4000)]) for link in (up, down)])
    for without_s, with_s in zip(*latest, strict=True):
        assert with_s - without_s == pytest.approx(Hop(1).mean_wait_s, rel=0.1)


@pytest.mark.parametrize("congestion", ["", "cubic"])
def test_a_second_flight_waits_for_its_acknowledgement_and_once_more_for_the_channel(congestion: str) -> None:
    """25 segments in two flights: three one-way delays and three waits for the channel, one of them of the acknowledgement."""
    hop = Hop(stations=1)
    transport = replace(TRANSPORTS["tcp"], handshake_rtts=0, congestion=congestion)
    network = Network(1e9, 1e9, 0.05, 0.05, wifi=hop, transport=transport)
    found = [AccessNetwork(network, seed, [], []).links(0)[0].send(0.0, 25 * 1448) for seed in range(400)]
    assert np.mean(found) - 0.15 == pytest.approx(3.0 * hop.mean_wait_s, rel=0.1)


def test_devices_of_a_cell_keep_their_order_behind_a_hop() -> None:
    for seed in range(40):
        network = Network(2e7, 2e7, 0.01, 0.01, wifi=Hop(stations=5), devices_per_cell=2)
        access = AccessNetwork(network, seed, [], [])
        (first, _, _), (second, _, _) = access.links(0), access.links(1)
        assert first.send(0.0, 50_000) < second.send(1e-4, 1000)


def test_a_device_alone_in_a_cell_behind_a_hop_waits_as_one_without_a_cell() -> None:
    """This also holds next to a greedy flow: asking twice for the wait of its queue returns the same."""
    network = Network(2e7, 2e7, 0.01, 0.01, wifi=Hop(stations=2), up_cross=GREEDY, up_buffer_bytes=5e4)
    alone, shared = (
        AccessNetwork(one, 0, [], []).links(0)[0] for one in (network, replace(network, devices_per_cell=2))
    )
    for n in range(40):
        assert alone.send(0.01 * n, 300) == shared.send(0.01 * n, 300)

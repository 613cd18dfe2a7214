"""The Wi-Fi hop: Bianchi's fixed point, its mean wait, a slotted simulation of stations, and its effect on a link."""

import random
from dataclasses import replace

import numpy as np
import pytest

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import GREEDY
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wifi import BURST_S, BUSY_S, DOUBLINGS, SLOT_S, WINDOW, Hop, HopWire, mean_access_s, transmits
from simulator.network.wire import Capacity, VaryingWire, Wire


def waits(hop: Hop, count: int) -> np.ndarray:
    wire = HopWire(Wire(1e12), hop, stream(0, "test"))
    return np.array([wire.finish_s(10.0 * n, 1.0) - 10.0 * n for n in range(count)])


def test_the_fixed_point() -> None:
    assert transmits(1) == pytest.approx(2.0 / (WINDOW + 1))  # nobody to collide with
    for stations in (2, 5, 30):
        tau = transmits(stations)
        p = 1.0 - (1.0 - tau) ** (stations - 1)
        asked = 2.0 * (1.0 - 2.0 * p) / ((1.0 - 2.0 * p) * (WINDOW + 1) + p * WINDOW * (1.0 - (2.0 * p) ** DOUBLINGS))
        assert tau == pytest.approx(asked, rel=1e-9)


@pytest.mark.parametrize("stations", [1, 10])
def test_the_mean_wait_is_the_closed_form(stations: int) -> None:
    found = waits(Hop(stations), 20_000)
    assert abs(found.mean() - mean_access_s(stations)) < 4.0 * found.std() / len(found) ** 0.5
    assert mean_access_s(1) < mean_access_s(2) < mean_access_s(10)


def test_the_mean_wait_is_that_of_simulated_stations() -> None:
    """A slotted simulation of five saturated stations and one that sends occasionally."""
    chance = random.Random(1)
    stations, found = 5, []
    stage = [0] * (stations + 1)
    left = [chance.randrange(WINDOW) for _ in range(stations)] + [10**9]
    now_s, comes_s, asked_s = 0.0, 0.02, 0.0
    while len(found) < 6000:
        step = min(left)
        if left[-1] > 10**8 and now_s + step * SLOT_S >= comes_s:  # it arrives in idle slots
            step = max(0, int((comes_s - now_s) / SLOT_S))
            left, now_s = [one - step for one in left], now_s + step * SLOT_S
            left[-1], asked_s = chance.randrange(WINDOW), comes_s
            continue
        now_s += step * SLOT_S
        ready = [i for i, one in enumerate(left) if one == step]
        left = [one - step - 1 for one in left]  # as for Bianchi, a transmission counts as a slot
        if ready == [stations]:
            found.append(now_s - asked_s)
        now_s += BUSY_S
        for one in ready:
            stage[one] = 0 if len(ready) == 1 else min(stage[one] + 1, DOUBLINGS)
            left[one] = chance.randrange(WINDOW * 2 ** stage[one])
        if ready == [stations]:
            left[-1], comes_s = 10**9, now_s + chance.expovariate(50.0)
        elif left[-1] > 10**8 and now_s >= comes_s:  # it arrived during the transmission
            left[-1], asked_s = chance.randrange(WINDOW), comes_s
    # Bianchi assumes independent slots: the mean of 20,000 waits is a tenth below the closed form, with a standard error of 2 %.
    assert np.mean(found) == pytest.approx(0.9 * mean_access_s(stations), rel=0.08)


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
    bits = 400 * BURST_S * 40e6
    assert wire.mean_bps == pytest.approx(40e6 * BURST_S / (BURST_S + hop.mean_wait_s))
    assert bits / wire.finish_s(0.0, bits) == pytest.approx(wire.mean_bps, rel=0.15)
    assert wire.bits(1.0, 3.0) == pytest.approx(2.0 * wire.mean_bps)
    link = ImpairedLink(wire, 0.01, 0.02, TRANSPORTS["ideal"])
    arrivals = [link.send(0.001 * n, 500) for n in range(50)]
    assert arrivals == sorted(arrivals)
    assert len({round(arrival, 3) for arrival in arrivals}) < 25  # messages that wait together go together
    dead = HopWire(VaryingWire(Capacity([0.0, 1.0], [1e6, 0.0], 2.0)), hop, stream(1, "test"))
    assert list(dead.outages(0.0, 1.5)) == [(1.0, 2.0)]


def test_each_direction_of_a_network_has_its_hop() -> None:
    plain = Network(1e7, 1e7, 0.01, 0.01, transport=TRANSPORTS["tcp"])
    latest = []
    for network in (plain, Network(1e7, 1e7, 0.01, 0.01, transport=TRANSPORTS["tcp"], wifi=Hop(stations=1))):
        up, down, _ = AccessNetwork(network, 0, [0.0], [0.0]).links(0)
        latest.append([np.mean([link.send(1.0 * n, 100) - 1.0 * n for n in range(1, 4000)]) for link in (up, down)])
    for without_s, with_s in zip(*latest, strict=True):
        assert with_s - without_s == pytest.approx(mean_access_s(1), rel=0.1)


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

"""Outages on the general link: when the timer of a message starts, and when its connection is open again."""

import pytest

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.cross import AQMS, GREEDY, CrossQueue
from simulator.network.link import ImpairedLink
from simulator.network.transport import MAX_RTO_S, TRANSPORTS
from simulator.network.wire import VaryingWire
from tests.simulator.network.test_varying_wire import steps

IDEAL = TRANSPORTS["ideal"]
RTT, RTO = 0.060, 0.260


def test_an_outage_ends_for_a_transport_with_its_next_retransmission() -> None:
    def arrival(begin: float, length: float, at: float) -> float:
        link = ImpairedLink(VaryingWire(steps((begin, 8e6), (length, 0.0), (50.0, 8e6))), 0.03, RTT, IDEAL)
        return link.send(at, 1000) - 0.03

    assert arrival(1.0, 0.2, 1.1) == pytest.approx(1.201)  # shorter than the timeout: the packet waits in the network
    assert arrival(1.0, 1.0, 1.1) == pytest.approx(1.1 + 7 * RTO + 0.001)  # sent again after 0.26, 0.78 and 1.82 s
    assert arrival(1.0, 20.0, 1.0) == pytest.approx(1.0 + 127 * RTO + 0.001)
    # Back-off is capped at two minutes.
    assert arrival(1.0, 1000.0, 1.0) == pytest.approx(1.0 + 511 * RTO + 8 * MAX_RTO_S + 0.001)


def test_a_timer_runs_while_its_message_queues_behind_others_in_an_outage() -> None:
    """Behind another device, other traffic, or the messages of a connection that was given up."""
    blocked = steps((1.0, 8e6), (1.0, 0.0), (50.0, 8e6))
    alone = ImpairedLink(VaryingWire(blocked), 0.03, RTT, IDEAL).send(1.1, 1000)
    assert alone == pytest.approx(1.1 + 7 * RTO + 0.001 + 0.03)
    shared = VaryingWire(blocked, shared=True)
    ImpairedLink(shared, 0.03, RTT, IDEAL).send(1.0, 1000)
    assert ImpairedLink(shared, 0.03, RTT, IDEAL).send(1.1, 1000) == pytest.approx(alone + 0.001)
    wire = VaryingWire(blocked)
    queue = CrossQueue(GREEDY, wire, 8.0 * 1000, AQMS["none"], RTT, stream(0, "turns"))
    behind = ImpairedLink(wire, 0.03, RTT, IDEAL, queue=queue, buffer_bytes=1000)
    assert behind.send(1.1, 1000) == pytest.approx(alone + 0.001)
    again = ImpairedLink(VaryingWire(blocked), 0.03, RTT, IDEAL)
    again.send(1.0, 1000)
    own = again.send(1.05, 1000)  # behind its own connection, whose first message waits for its retransmission
    assert own == pytest.approx(1.0 + 7 * RTO + 0.001 + 0.03)
    again.reconnect()
    assert again.send(1.1, 1000) == pytest.approx(alone + 0.002)


def test_a_connection_opened_in_an_outage_has_waited_for_its_end() -> None:
    network = Network(steps((1.0, 8e6), (3.0, 0.0), (50.0, 8e6)), 8e6, 0.03, 0.03, transport=TRANSPORTS["grpc"])
    first, later = (AccessNetwork(network, 3, [0.0], [0.0]).links(0)[0] for _ in range(2))
    at_s = next(begin_s for begin_s, _ in first.wire.outages(0.0, 100.0)) + 0.5
    later.send(at_s - 1.0, 1000)
    later.reconnect()
    assert later.send(at_s, 1000) == first.send(at_s, 1000)

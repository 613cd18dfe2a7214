"""Connections that close after an idle timeout; flow windows."""

import math
from dataclasses import replace

import pytest

from simulator.network.access import AccessNetwork, Network
from simulator.network.transport import TRANSPORTS, FlowWindow, opened_by
from simulator.network.wire import Wire

NAT = Network(1e9, 1e9, 0.05, 0.05, transport=TRANSPORTS["tcp"], idle_timeout_s=30.0)


@pytest.mark.parametrize(("pause_s", "opens"), [(1.0, False), (29.9, False), (30.2, True), (1e4, True)])
def test_after_the_timeout_a_message_pays_for_another_handshake(pause_s: float, opens: bool) -> None:
    up, down, _ = AccessNetwork(NAT, 0, [], []).links(0)
    there_s = up.send(0.0, 100)
    assert there_s == pytest.approx(0.15, abs=1e-4)
    back_s = down.send(there_s, 100)
    again_s = back_s + pause_s
    assert up.send(again_s, 100) == pytest.approx(again_s + (0.15 if opens else 0.05), abs=1e-4)


def test_messages_either_way_keep_a_connection_alive() -> None:
    up, down, _ = AccessNetwork(NAT, 0, [], []).links(0)
    up.send(0.0, 100)
    for n in range(1, 10):
        down.send(20.0 * n, 100)
    assert up.send(200.0, 100) == pytest.approx(200.05, abs=1e-4)


def test_a_reply_that_comes_after_the_timeout_still_arrives() -> None:
    up, down, _ = AccessNetwork(NAT, 0, [], []).links(0)
    up.send(0.0, 100)
    assert down.send(100.0, 100) == pytest.approx(100.05, abs=1e-4)
    assert up.send(120.0, 100) == pytest.approx(120.05, abs=1e-4)


def test_a_connection_that_opens_in_no_time_begins_with_its_first_window_all_the_same() -> None:
    """QUIC with 0-RTT: three messages of 100 packets grow the window to hold the next one. A new connection needs four flights."""
    transport = opened_by(TRANSPORTS["quic"], "0-rtt")
    up, _, _ = AccessNetwork(replace(NAT, up_bps=1e12, transport=transport), 0, [], []).links(0)
    size = 100 * transport.segment_bytes - 8
    flights = [round((up.send(at_s, size) - at_s - 0.05) / 0.1) + 1 for at_s in (0.0, 1.0, 2.0, 3.0, 100.0)]
    assert flights == [4, 1, 1, 1, 4]


@pytest.mark.parametrize("congestion", ["", "cubic", "bbr"])
def test_a_new_connection_begins_with_its_first_window(congestion: str) -> None:
    """Three messages of 100 segments grow the window to hold the next one. A new connection needs four flights."""
    transport = replace(TRANSPORTS["tcp"], congestion=congestion, idle_restart=False)
    for pause_s, flights in ((1.0, 1), (100.0, 4)):
        up, _, _ = AccessNetwork(replace(NAT, up_bps=1e12, transport=transport), 0, [], []).links(0)
        now_s = 0.0
        for _ in range(3):
            now_s = up.send(now_s + 1.0, 100 * 1448)
        took_s = up.send(now_s + pause_s, 100 * 1448) - now_s - pause_s
        least_s = 0.05 + 0.1 * (flights - 1) + (0.1 if flights > 1 else 0.0)
        assert least_s - 1e-6 <= took_s <= least_s + (0.15 if congestion == "bbr" else 1e-3)


@pytest.mark.parametrize(
    ("segments", "flow", "flights"), [(10, 4, 3), (40, 20, 3), (100, 45, 4), (200, 45, 6), (100, 10_000, 4), (3, 2, 2)]
)
def test_a_message_beyond_the_flow_window_waits_for_round_trips(segments: int, flow: int, flights: int) -> None:
    """Flights have 10, 20, 40, ... segments, at most the flow window."""
    transport = replace(TRANSPORTS["tcp"], flow_bytes=1448 * flow)
    window = FlowWindow(transport, 0.1, 0.3)
    end_s = window.send(0.0, segments, segments * 12_000.0, Wire(1e13).finish_s)
    assert round(end_s / 0.1) + 1 == flights
    assert window.overflow() == 0


@pytest.mark.parametrize("congestion", ["", "cubic", "bbr"])
def test_the_flow_window_counts_what_is_in_messages_not_how_many(congestion: str) -> None:
    """Eight messages of 50 bytes are 800 bytes with their headers and fit into 1500. Thirty do not: the last waits two round trips.

    It waits one with BBR, which paces the eleventh, so that the next ones go in one segment with it.
    """
    transport = replace(TRANSPORTS["tcp"], flow_bytes=1500, congestion=congestion)
    for count, waits in ((8, 0), (30, 1 if congestion == "bbr" else 2)):
        up, _, _ = AccessNetwork(replace(NAT, transport=transport), 0, [], []).links(0)
        begin_s = up.send(0.0, 50)
        arrived = [up.send(begin_s + 1.0, 50) for _ in range(count)]
        assert round((arrived[-1] - arrived[0]) / 0.1) == waits


def test_no_timeout_is_no_other_link() -> None:
    up, _, _ = AccessNetwork(replace(NAT, idle_timeout_s=math.inf), 0, [], []).links(0)
    up.send(0.0, 100)
    assert up.send(1e6, 100) == pytest.approx(1e6 + 0.05, abs=1e-4)

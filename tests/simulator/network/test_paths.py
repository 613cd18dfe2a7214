"""Several paths: every path carries every message. A message arrives with its first copy, in order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink
from simulator.network.paths import PathsLink, Radios
from simulator.network.radio import RadioFigures
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, Wire

IDEAL = TRANSPORTS["ideal"]
QUICK = Network(8192.0, 8192.0, 0.5, 0.5)
WIDE = Network(8 * 8192.0, 8 * 8192.0, 1.0, 1.0)


def test_a_small_message_arrives_by_the_short_path_and_a_large_one_by_the_wide_one() -> None:
    """1024 B/s with a delay of 0.5 s and 8192 B/s with 1 s take equally long at 585 B."""
    up, down, radio = AccessNetwork(replace(QUICK, also=(WIDE,)), 0, [], []).links(0)
    assert radio is None
    assert isinstance(up, PathsLink)
    for link in (up, down):
        assert link.send(0.0, 256) == 0.75
        assert link.send(8.0, 1024) == 9.125
        assert link.send(16.0, 256) == 16.75


def test_messages_stay_in_order() -> None:
    """The first message arrives at 9 s over the slow path. The second, over the quick path, waits for it."""
    slow_to_start = Wire(8192.0)
    up = PathsLink([ImpairedLink(slow_to_start, 0.0, 0.0, IDEAL), ImpairedLink(Wire(1e12), 1.0, 0.0, IDEAL)])
    slow_to_start.free_s = 8.5
    assert up.send(8.0, 1024) == pytest.approx(9.0)
    slow_to_start.free_s = 8.0
    assert up.send(8.0, 128) == pytest.approx(9.0)


def test_a_reply_takes_a_path_whose_connection_is_open() -> None:
    """The message arrives after 0.01 s over the first path, whose downlink takes 0.9 s. The second path's connection opens at 0.8 s."""
    first = Network(1e12, 1e12, 0.01, 0.9)
    second = Network(1e12, 1e12, 0.2, 0.2, transport=replace(TRANSPORTS["grpc"], hello_bytes=0, handshake_bytes=0))
    for networks, back_s in (
        ((first, second), 0.91),
        ((second, first), 0.91),
        ((second, replace(first, down_delay_s=2)), 1.0),
    ):
        up, down, _ = AccessNetwork(replace(networks[0], also=networks[1:]), 0, [], []).links(0)
        there_s = up.send(0.0, 10)
        assert there_s == pytest.approx(0.01)
        assert down.send(there_s, 10) == pytest.approx(back_s)


def test_a_dead_path_is_no_path() -> None:
    dead = Capacity([0.0], [0.0], 1.0)
    network = Network(dead, dead, 0.0, 0.0, also=(QUICK,))
    up, _, _ = AccessNetwork(network, 0, [], []).links(0)
    assert up.send(0.0, 256) == 0.75
    up.reconnect([256])
    assert up.send(1.0, 256) == 1.75


def test_each_path_has_its_radio_and_its_draws() -> None:
    radio = RadioFigures(promotion_s=1.0, inactivity_s=10.0, promotion_w=2.0, active_w=1.0)
    joules = [0.0, 0.0]
    both = AccessNetwork(replace(QUICK, radio=radio, also=(replace(QUICK, radio=radio),)), 0, joules, [0.0, 0.0])
    up, _, radios = both.links(0)
    assert isinstance(radios, Radios)
    assert len(both.radios) == 2
    radios.request = 1
    assert radios.request == 1
    assert up.send(0.0, 1024) == 2.5
    assert up.ready_s == 1.0
    assert joules == [0.0, 2 * (2.0 + 1.0)]
    jitters = Network(1e9, 1e9, 1.0, 1.0, 0.1, 0.1)
    link, _, _ = AccessNetwork(replace(jitters, also=(jitters,)), 3, [], []).links(5)
    assert isinstance(link, PathsLink)
    first, second = (one.send(0.0, 1) for one in link.links)
    assert first != second
    alone, _, _ = AccessNetwork(jitters, 3, [], []).links(5)
    assert alone.send(0.0, 1) == first  # another path changes none of its draws


def test_a_shared_wire_of_any_path_is_shared() -> None:
    assert not replace(QUICK, also=(WIDE,)).shared
    assert replace(QUICK, also=(replace(WIDE, devices_per_cell=3),)).shared


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 4000)), min_size=1, max_size=15),
    st.lists(st.tuples(st.floats(100.0, 1e6), st.floats(0.0, 2.0), st.floats(0.0, 0.3)), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_more_paths_never_make_a_message_later_and_order_and_bytes_are_kept(
    sent: list[tuple[float, int]], figures: list[tuple[float, float, float]], seed: int
) -> None:
    def links() -> list[ImpairedLink]:
        found = []
        for number, (rate, delay_s, loss) in enumerate(figures):
            network = Network(rate, rate, delay_s, delay_s, up_loss=loss, transport=TRANSPORTS["tcp"])
            link = AccessNetwork(network, seed, [], [], path=number).links(0)[0]
            assert isinstance(link, ImpairedLink)
            found.append(link)
        return found

    alone, few, every = links(), PathsLink(links()[:1]), links()
    together = PathsLink(every)
    now_s = last_s = 0.0
    for pause_s, size in sent:
        now_s += pause_s
        arrivals = [link.send(now_s, size) for link in alone]
        arrival_s = together.send(now_s, size)
        assert arrival_s == max(last_s, min(arrivals))
        assert arrival_s <= few.send(now_s, size)
        last_s = arrival_s
    assert [link.sent_bits for link in every] == [link.sent_bits for link in alone]
    payload = sum(8.0 * TRANSPORTS["tcp"].frame(size)[0] for _, size in sent)
    assert all(link.sent_bits - link.dropped_bits == pytest.approx(payload) for link in every)


def test_streams_of_a_path_are_named_after_it() -> None:
    assert (
        AccessNetwork(QUICK, 1, [], [], path=2)._stream("handover", 3).random()
        == stream(1, "path.2.handover", 3).random()
    )

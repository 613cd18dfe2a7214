"""Handovers: nothing passes during one, and their rate and lengths are those of the figures."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.handover import Handovers, Interruptions, PausingWire
from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, Wire

IDEAL = TRANSPORTS["ideal"]
Gap = tuple[float, float]


class At(Interruptions):
    """Interruptions at the given times, and none after them."""

    __slots__ = ("gaps",)

    def __init__(self, gaps: list[Gap]) -> None:
        super().__init__(Handovers(1e12, 1e-3), streams(0))
        self.gaps = gaps

    def first(self, time_s: float) -> Gap:
        return next((gap for gap in self.gaps if gap[1] > time_s), (1e12, 2e12))


def streams(seed: int, device: int = 0) -> Callable[[int], np.random.Generator]:
    return partial(stream, seed, "handover", device)


def link(gaps: list[Gap], wire: Wire | None = None, transport: str = "ideal", rtt_s: float = 100.0) -> ImpairedLink:
    """Return a link of 1024 B/s without delay. The default round trip makes the retransmission timer longer than any gap."""
    return ImpairedLink(PausingWire(wire or Wire(8192.0), At(gaps)), 0.0, rtt_s, TRANSPORTS[transport])


def test_a_message_waits_for_the_end_and_its_rest_follows_after_one() -> None:
    up = link([(1.0, 1.5), (3.0, 3.25)])
    assert up.send(0.0, 512) == 0.5
    assert up.send(0.75, 512) == 1.75  # half before the gap, half after
    assert up.send(2.0, 512) == 2.5
    assert up.send(3.125, 128) == 3.375
    assert up.send(4.0, 128) == 4.125


def test_one_message_spans_several() -> None:
    assert link([(0.25, 0.5), (0.75, 1.0), (1.25, 1.5)]).send(0.0, 1024) == 1.75


def test_a_message_that_ends_as_one_begins_is_not_held() -> None:
    up = link([(0.5, 1.5)])
    assert up.send(0.0, 512) == 0.5
    assert up.send(0.5, 512) == 2.0


def test_what_a_varying_rate_carries_meanwhile_is_lost() -> None:
    """The rate alternates between 2048 B/s and 0 each second."""
    wire = Capacity([0.0, 1.0], [16384.0, 0.0], 2.0).wire(0.0, False)
    up = link([(0.5, 2.25)], wire)
    assert up.send(0.0, 2048) == 2.75
    assert PausingWire(wire, At([(0.5, 2.25)])).bits(0.0, 3.0) == 16384.0 * (0.5 + 0.75)


def test_gaps_that_outlast_the_retransmission_timer_are_outages() -> None:
    """A message of 0.25 s meets a gap of 2 s. The timer of 0.2 s doubles: tries 0.2, 0.6, 1.4 and 3 s after the gap begins."""
    up = link([(0.125, 2.125)], rtt_s=0.0)
    assert up.send(0.0, 256) == pytest.approx(0.25 + 2.0 + (3.0 - 2.0))


def test_outages_join_where_gaps_and_the_wires_own_overlap() -> None:
    wire = PausingWire(Capacity([0.0, 1.0], [8192.0, 0.0], 2.0).wire(0.0, False), At([(0.75, 1.5), (2.25, 2.5)]))
    assert list(wire.outages(0.0, 3.5)) == [(0.75, 2.0), (2.25, 2.5), (3.0, 4.0)]


@pytest.mark.parametrize(("every_s", "gap_s"), [(1.0, 0.05), (2.0, 0.5)])
def test_rate_and_length_are_those_asked_for(every_s: float, gap_s: float) -> None:
    """50,000 handovers: their share of the time and the mean wait 13 / 24 g^2 / T of a message at a random time, within 1 %."""
    gaps = Interruptions(Handovers(every_s, gap_s), streams(0))
    begins, ends = np.array(list(gaps.between(0.0, 50_000 * every_s))).T
    assert len(ends) == pytest.approx(50_000, rel=0.01)
    lengths = ends - begins
    assert (lengths.min(), lengths.max()) == pytest.approx((0.5 * gap_s, 1.5 * gap_s), rel=1e-3)
    assert lengths.sum() / ends[-1] == pytest.approx(gap_s / every_s, rel=0.01)
    assert (lengths**2).sum() / 2.0 / ends[-1] == pytest.approx(13 / 24 * gap_s**2 / every_s, rel=0.01)


def test_messages_wait_as_long_as_the_closed_form_says() -> None:
    """40,000 small messages at random times: the standard error is 0.7 %."""
    up = ImpairedLink(PausingWire(Wire(1e12), Interruptions(Handovers(1.0, 0.4), streams(3))), 0.0, 1e9, IDEAL)
    times = np.cumsum(stream(1, "times").exponential(2.0, 40_000))
    waits = np.array([up.send(float(at), 1) for at in times]) - times
    assert waits.mean() == pytest.approx(13 / 24 * 0.4**2 / 1.0, rel=0.02)


def test_they_are_the_same_in_whatever_order_one_asks() -> None:
    """Forwards, backwards, and first late in a run."""
    figures = Handovers(1.0, 0.05)
    times = [0.0, 3.0, 255.9, 256.0, 1e4, 1e9]
    forwards = Interruptions(figures, streams(5))
    found = [forwards.first(at) for at in times]
    backwards = Interruptions(figures, streams(5))
    assert [backwards.first(at) for at in reversed(times)][::-1] == found
    assert [forwards.first(at) for at in times] == found
    assert all(end > at for at, (_, end) in zip(times, found, strict=True))
    late = list(forwards.between(1e6, 1e6 + 5000.0))
    assert all(one[1] <= other[0] for one, other in pairwise(late))


def test_both_directions_pause_together_and_each_device_at_times_of_its_own() -> None:
    network = Network(8192.0, 8192.0, 0.0, 0.0, handovers=Handovers(3.0, 1.0))
    links = [AccessNetwork(network, 7, [], []).links(device) for device in range(5)]
    ends = [
        [way.wire.finish_s(at, 1024.0) for at in np.arange(0.0, 60.0, 0.25)]
        for up, down, _ in links
        for way in (up, down)
    ]  # type: ignore[union-attr]
    assert ends[::2] == ends[1::2]
    assert len({tuple(one) for one in ends}) == 5
    again = AccessNetwork(network, 7, [], []).links(3)[0]
    assert [again.wire.finish_s(at, 1024.0) for at in np.arange(0.0, 60.0, 0.25)] == ends[6]  # type: ignore[union-attr]


def test_a_shared_cell_has_no_handovers() -> None:
    network = Network(1e6, 1e6, 0.0, 0.0, handovers=Handovers(3.0, 1.0), devices_per_cell=2)
    with pytest.raises(ValueError, match="leaves its cell"):
        AccessNetwork(network, 0, [], [])
    with pytest.raises(ValueError, match="devices do not share"):
        PausingWire(Wire(1e6, shared=True), At([]))


@pytest.mark.parametrize(("every_s", "gap_s"), [(1.0, 0.0), (1.0, 0.7), (math.inf, 1.0), (0.0, 0.1)])
def test_handovers_that_cannot_be_are_refused(every_s: float, gap_s: float) -> None:
    with pytest.raises(ValueError, match="handovers need"):
        Handovers(every_s, gap_s)


GAPS = st.lists(st.floats(0.01, 2.0), min_size=2, max_size=12).map(
    lambda steps: [(begin, end) for begin, end in list(pairwise(np.cumsum(steps).tolist()))[::2]]
)
SENT = st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 3000)), min_size=1, max_size=12)


@given(GAPS, SENT, st.data(), st.sampled_from(["ideal", "tcp"]), st.sampled_from([0.0, 100.0]))
def test_more_interruptions_never_make_a_message_earlier_and_keep_order_and_bytes(
    gaps: list[Gap], sent: list[tuple[float, int]], data: st.DataObject, transport: str, rtt_s: float
) -> None:
    fewer = [gap for gap in gaps if data.draw(st.booleans())]
    links = [link(chosen, None, transport, rtt_s) for chosen in ([], fewer, gaps)]
    now_s = 0.0
    last = 0.0
    for pause_s, size in sent:
        now_s += pause_s
        none, few, all_of_them = (one.send(now_s, size) for one in links)
        assert none <= few + 1e-9
        assert last <= all_of_them
        if rtt_s:  # with a short timer, two gaps can time out before one long one
            assert few <= all_of_them + 1e-9
        last = all_of_them
    assert len({one.sent_bits for one in links}) == 1
    assert links[2].dropped_bits == 0.0


@given(GAPS, st.floats(0.0, 20.0), st.floats(1.0, 30_000.0))
def test_the_wire_carries_what_was_sent(gaps: list[Gap], start_s: float, bits: float) -> None:
    wire = PausingWire(Wire(8192.0), At(gaps))
    end_s = wire.finish_s(start_s, bits)
    assert wire.bits(start_s, end_s) == pytest.approx(bits, abs=1e-6)
    more = PausingWire(Wire(8192.0), At([*gaps[:-1], (gaps[-1][0], gaps[-1][1] + 1.0)]))
    assert more.finish_s(start_s, bits) >= end_s - 1e-9


def test_a_message_in_a_handover_is_not_open_to_the_handshake_either() -> None:
    network = replace(Network(1e9, 1e9, 0.01, 0.01, transport=TRANSPORTS["tcp"]), handovers=Handovers(30.0, 15.0))
    gap = Interruptions(Handovers(30.0, 15.0), streams(0)).first(0.0)
    up = AccessNetwork(network, 0, [], []).links(0)[0]
    assert up.send(gap[0] + 0.5, 100) > gap[1]

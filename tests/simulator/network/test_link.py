"""The link: a wire that serialises in order, and a delay that does not occupy it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.link import Link

messages = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100_000)), min_size=1, max_size=30)
rates = st.floats(1e4, 1e9)
delays = st.floats(0, 1)


def send_all(link: Link, gaps: list[tuple[float, int]]) -> tuple[list[float], list[float]]:
    """Return the send times and arrivals of messages given as (seconds after the previous one, bytes)."""
    sent, arrived, now = [], [], 0.0
    for gap, size in gaps:
        now += gap
        sent.append(now)
        arrived.append(link.send(now, size))
    return sent, arrived


def test_messages_sent_together_arrive_one_serialisation_apart() -> None:
    link = Link(8e6, 0.050)
    assert [link.send(0.0, 1000) for _ in range(4)] == pytest.approx([0.051, 0.052, 0.053, 0.054], abs=1e-15)


def test_an_idle_wire_does_not_remember() -> None:
    link = Link(2.0**10, 0.5)
    assert link.send(0.0, 128) == 1.5
    assert link.send(1.0, 128) == 2.5  # the wire is free while the first message is in flight
    assert link.send(8.0, 256) == 10.5


def test_an_infinite_rate_costs_nothing() -> None:
    link = Link(math.inf, 0.25)
    assert [link.send(1.0, 10**9), link.send(1.0, 10**9)] == [1.25, 1.25]


@given(messages, rates, delays)
def test_arrival_is_serialisation_and_delay_after_sending_and_in_order(
    gaps: list[tuple[float, int]], rate: float, delay: float
) -> None:
    sent, arrived = send_all(Link(rate, delay), gaps)
    for (_, size), at, arrival in zip(gaps, sent, arrived, strict=True):
        assert arrival >= at + 8.0 * size / rate + delay - 1e-9
    assert arrived == sorted(arrived)


@given(messages, rates, st.floats(0.005, 1), st.floats(0, 0.5), st.integers(0, 5))
def test_jitter_never_beats_serialisation_nor_reorders(
    gaps: list[tuple[float, int]], rate: float, delay: float, jitter: float, seed: int
) -> None:
    sent, arrived = send_all(Link(rate, delay, jitter, stream(seed, "jitter")), gaps)
    for (_, size), at, arrival in zip(gaps, sent, arrived, strict=True):
        assert arrival >= at + 8.0 * size / rate - 1e-9
    assert arrived == sorted(arrived)


@given(messages, rates, st.floats(1e-3, 1), st.floats(1, 10), st.floats(0, 1), st.sampled_from([0.0, 0.01]))
def test_a_slower_or_longer_link_is_never_earlier(
    gaps: list[tuple[float, int]], rate: float, delay: float, slower: float, longer: float, jitter: float
) -> None:
    best = send_all(Link(rate, delay, jitter, stream(0, "jitter")), gaps)[1]
    slow = send_all(Link(rate / slower, delay, jitter, stream(0, "jitter")), gaps)[1]
    far = send_all(Link(rate, delay + longer, jitter, stream(0, "jitter")), gaps)[1]
    assert all(a <= b + 1e-9 for a, b in zip(best, slow, strict=True))
    assert all(a <= b + 1e-9 for a, b in zip(best, far, strict=True))


def test_jitter_has_the_standard_deviation_asked_for() -> None:
    """With 20,000 messages the standard error of the deviation is 0.5 %. A correct link exceeds five of them (2.5 %) at one of
    1.7 million seeds."""
    link = Link(math.inf, 0.5, 0.01, stream(3, "jitter"))
    delays = [link.send(10.0 * n, 100) - 10.0 * n for n in range(20_000)]
    mean = sum(delays) / len(delays)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in delays) / len(delays))
    assert mean == pytest.approx(0.5, abs=5 * 0.01 / math.sqrt(20_000))
    assert deviation == pytest.approx(0.01, rel=0.025)


def test_jitter_follows_its_stream_alone() -> None:
    gaps = [(0.5, 1000)] * 200
    again = [send_all(Link(1e6, 0.1, 0.01, stream(7, "jitter", 3)), gaps)[1] for _ in range(2)]
    other = send_all(Link(1e6, 0.1, 0.01, stream(7, "jitter", 4)), gaps)[1]
    assert again[0] == again[1] != other


@pytest.mark.parametrize(
    ("rate", "delay", "jitter"),
    [(0, 0, 0), (-1, 0, 0), (math.nan, 0, 0), (1, -1, 0), (1, math.inf, 0), (1, 0, -1), (1, 0, 1), (1, 1, 1)],
)
def test_a_link_that_cannot_be_is_refused(rate: float, delay: float, jitter: float) -> None:
    with pytest.raises(ValueError, match=r"must be|needs a stream"):
        Link(rate, delay, jitter)

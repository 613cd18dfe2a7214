"""Varying rates: exact finishing times against a walk over packets."""

import math

import numpy as np
import pytest

from simulator.network.link import ImpairedLink
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity, VaryingWire


def steps(*pieces: tuple[float, float]) -> Capacity:
    """Return a repeating capacity of consecutive (seconds, bit/s)."""
    ends = np.cumsum([seconds for seconds, _ in pieces])
    return Capacity(np.append(0.0, ends[:-1]), [rate for _, rate in pieces], float(ends[-1]))


def walk(pieces: list[tuple[float, float]], offset_s: float, sent: list[tuple[float, int]]) -> list[float]:
    """Return the time each message's last packet is sent, computed by packet and piece without cumulative sums."""
    duration = sum(seconds for seconds, _ in pieces)
    done: list[float] = []
    now = 0.0
    for at, size in sent:
        now = max(now, at)
        while size > 0:
            packet = min(size, 1500)
            size -= packet
            bits = 8.0 * packet
            while bits > 0.0:
                phase = (now + offset_s) % duration
                for seconds, rate in pieces:  # noqa: B007
                    if phase < seconds:
                        break
                    phase -= seconds
                left = seconds - phase
                if rate * left >= bits:
                    now += bits / rate
                    bits = 0.0
                else:
                    bits -= rate * left
                    now += left + 1e-12  # past the edge despite rounding
        done.append(now)
    return done


def test_one_event_finishing_times_equal_a_packet_walk() -> None:
    """200 random traces with stretches of rate 0 and random offsets, and messages of one byte to some hundred packets."""
    random = np.random.default_rng(5)
    for _ in range(200):
        count = int(random.integers(1, 12))
        pieces = list(
            zip(random.uniform(0.05, 2.0, count).tolist(), random.uniform(0.2e6, 40e6, count).tolist(), strict=True)
        )
        pieces = [
            (seconds, 0.0 if random.random() < 0.2 and index else rate) for index, (seconds, rate) in enumerate(pieces)
        ]
        offset = float(random.uniform(0.0, 20.0))
        at = np.cumsum(random.exponential(0.3, 40))
        sizes = np.where(random.random(40) < 0.5, random.integers(1, 3000, 40), random.integers(1, 400_000, 40))
        sent = list(zip(at.tolist(), sizes.tolist(), strict=True))
        wire = VaryingWire(steps(*pieces), offset)
        link = ImpairedLink(wire, 0.0, 0.0, TRANSPORTS["ideal"])
        link._rto_s = math.inf  # the wire alone: test_impairments tests outages of a transport
        slowest = min(rate for _, rate in pieces if rate)
        expected = walk(pieces, offset, sent)
        found = [link.send(*one) for one in sent]
        assert found == pytest.approx(expected, abs=1e-7)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 12_000 / slowest


def test_a_varying_wire_is_exact_at_its_edges() -> None:
    wire = VaryingWire(steps((1.0, 1024.0), (1.0, 0.0), (2.0, 512.0)))
    assert wire.finish_s(0.0, 512.0) == 0.5
    assert wire.finish_s(0.0, 1024.0) == 1.0  # the end of the stretch, not of the pause
    assert wire.finish_s(0.0, 1536.0) == 3.0
    assert wire.finish_s(1.5, 512.0) == 3.0
    assert wire.finish_s(0.0, 2048.0) == 4.0  # the end of the period
    assert wire.finish_s(0.0, 2048.0 * 1000 + 512.0) == 4000.5
    assert wire.finish_s(1.5, 0.0) == 1.5
    assert wire.bits(0.5, 3.0) == 1024.0
    assert list(wire.outages(0.0, 4.0)) == [(1.0, 2.0)]
    assert list(wire.outages(1.5, 6.0)) == [(1.0, 2.0), (5.0, 6.0)]
    assert VaryingWire(steps((2.0, 0.0)), 0.3).finish_s(1.0, 1.0) == math.inf


def test_an_outage_runs_over_the_end_of_the_trace() -> None:
    wire = VaryingWire(steps((1.0, 0.0), (1.0, 8.0), (1.0, 0.0)), offset_s=2.0)
    assert list(wire.outages(0.0, 3.5)) == [(0.0, 2.0), (3.0, 5.0)]


@pytest.mark.parametrize(
    ("times", "rate", "duration"),
    [
        ([], [], 1.0),
        ([0.5], [1.0], 1.0),
        ([0.0, 1.0], [1.0], 2.0),
        ([0.0, 1.0], [1.0, 2.0], 1.0),
        ([0.0, 1.0, 0.5], [1.0] * 3, 3.0),
        ([0.0], [-1.0], 1.0),
        ([0.0], [math.nan], 1.0),
        ([0.0], [math.inf], 1.0),
        ([0.0], [1.0], math.inf),
        ([0.0, math.nan], [1.0] * 2, 2.0),
    ],
)
def test_a_rate_that_cannot_be_is_refused(times: list[float], rate: list[float], duration: float) -> None:
    with pytest.raises(ValueError, match=r"times|rate"):
        Capacity(times, rate, duration)

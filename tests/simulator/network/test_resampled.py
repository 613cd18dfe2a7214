"""A trace followed in blocks: against the same blocks written out, and the trace's own means; draws depend on seed and device alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.rng import stream
from simulator.network.access import AccessNetwork, Network
from simulator.network.link import ImpairedLink
from simulator.network.resampled import STRETCH, Blocks, Onward
from simulator.network.wire import Capacity, StepFunction, VaryingWire

TRACE = Capacity([0.0, 1.0, 1.5, 4.0], [8e3, 0.0, 24e3, 0.0], 5.0)
OUTAGES_AT_BOTH_ENDS = Capacity([0.0, 0.5, 2.0], [0.0, 8e3, 0.0], 2.5)


class Told(Blocks):
    """Blocks with the given lengths and places, over and over."""

    def __init__(self, lengths_s: list[float], places_s: list[float]) -> None:
        super().__init__(1.0, 1.0, streams(0))
        self.ends_s = np.cumsum(lengths_s).tolist()
        self.places_s = places_s

    def at(self, time_s: float) -> tuple[float, float, float]:
        turn, within_s = divmod(time_s, self.ends_s[-1])
        index = int(np.searchsorted(self.ends_s, within_s, side="right"))
        begin_s = turn * self.ends_s[-1] + (self.ends_s[index - 1] if index else 0.0)
        return begin_s, turn * self.ends_s[-1] + self.ends_s[index], self.places_s[index] - begin_s


def streams(seed: int, device: int = 0) -> Callable[[int], np.random.Generator]:
    return partial(stream, seed, "link.blocks", device)


def written_out(trace: Capacity, lengths_s: list[float], places_s: list[float]) -> VaryingWire:
    """Return a wire that follows the blocks as a trace of their own. All times are multiples of 1/8 s."""
    rates = []
    for length_s, place_s in zip(lengths_s, places_s, strict=True):
        for eighth in range(round(8 * length_s)):
            phase_s = (place_s + eighth / 8) % trace.duration_s
            rates.append(trace.rates_bps[int(np.searchsorted(trace.edges_s, phase_s, side="right")) - 1])
    return VaryingWire(Capacity(np.arange(len(rates)) / 8, rates, len(rates) / 8))


EIGHTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 39)), min_size=1, max_size=6)


@given(EIGHTHS, st.sampled_from([TRACE, OUTAGES_AT_BOTH_ENDS]), st.floats(0.0, 40.0), st.floats(1.0, 3e5))
def test_blocks_are_as_the_same_blocks_written_out(
    eighths: list[tuple[int, int]], trace: Capacity, start_s: float, bits: float
) -> None:
    lengths_s, places_s = ([eighth / 8 for eighth in row] for row in zip(*eighths, strict=True))
    there = written_out(trace, lengths_s, places_s)
    if not there.mean_bps:
        return
    wire = Told(lengths_s, places_s).wire(trace, False)
    end_s = wire.finish_s(start_s, bits)
    assert end_s == pytest.approx(there.finish_s(start_s, bits), abs=1e-6)
    assert wire.bits(start_s, end_s) == pytest.approx(bits, abs=1e-6 * bits + 0.03)  # no bit is lost
    assert end_s == pytest.approx(wire.finish_s(wire.finish_s(start_s, 0.5 * bits), 0.5 * bits), abs=1e-6)

    def within(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(max(begin_s, start_s), stop_s) for begin_s, stop_s in found]

    for until_s in (start_s + 1e-9, start_s + 7.3):
        told = within(list(there.outages(start_s, until_s)))
        assert np.ravel(within(list(wire.outages(start_s, until_s)))) == pytest.approx(np.ravel(told))


@given(st.floats(1e-3, 1e4), st.integers(0, 3 * STRETCH), st.integers(0, 2**32))
def test_one_block_begins_where_another_ends(block_s: float, skipped: int, seed: int) -> None:
    blocks = Blocks(block_s, 5.0, streams(seed))
    time_s = block_s * (skipped if skipped % 2 else STRETCH)  # every other one at the end of a stretch
    for _ in range(20):
        begin_s, end_s, offset_s = blocks.at(time_s)
        assert begin_s <= time_s < end_s
        assert -1e-6 <= begin_s + offset_s <= 5.0 + 1e-6
        assert blocks.at(math.nextafter(end_s, 0.0))[1] == end_s
        time_s = end_s
    assert Blocks(block_s, 5.0, streams(seed)).at(begin_s) == (begin_s, end_s, offset_s)


def test_means_are_those_of_the_trace_and_lengths_are_exponential() -> None:
    """Of n independent blocks, a mean has at most the deviation of one block's mean over sqrt(n), weighted by squared lengths."""
    blocks, lengths_s, time_s = Blocks(2.0, TRACE.duration_s, streams(1)), [], 0.0
    while len(lengths_s) < 20_000:
        begin_s, time_s, _ = blocks.at(time_s)
        lengths_s.append(time_s - begin_s)
    assert np.mean(lengths_s) == pytest.approx(2.0, rel=0.03)
    assert np.mean(np.array(lengths_s) > 2.0) == pytest.approx(math.exp(-1.0), abs=0.015)
    wire = blocks.wire(TRACE, False)
    assert wire.mean_bps == TRACE.mean_bps
    assert wire.bits(0.0, time_s) / time_s == pytest.approx(TRACE.mean_bps, rel=0.02)
    share = sum(stop_s - begin_s for begin_s, stop_s in wire.outages(0.0, time_s)) / time_s
    assert share == pytest.approx(1.5 / 5.0, rel=0.04)
    delay = blocks.value(StepFunction([0.0, 1.0], [0.01, 0.03], 5.0))
    assert np.mean([delay(time_s) for time_s in np.arange(0.0, time_s, 1.7)]) == pytest.approx(0.026, rel=0.02)


def test_one_endless_block_is_the_trace_from_a_place_on() -> None:
    blocks = Blocks(1e12, TRACE.duration_s, streams(3))
    onward = Onward(blocks.at(0.0)[2])
    one, other = blocks.wire(TRACE, False), onward.wire(TRACE, False)
    for start_s in np.arange(0.0, 20.0, 0.37):
        assert one.finish_s(start_s, 9000.0) == other.finish_s(start_s, 9000.0)
        assert one.bits(start_s, start_s + 3.0) == other.bits(start_s, start_s + 3.0)
    assert one.finish_s(1.0, 0.0) == 1.0
    assert one.finish_s(math.inf, 1.0) == math.inf
    silent = Capacity([0.0], [0.0], 5.0)
    assert blocks.wire(silent, False).finish_s(1.0, 1.0) == math.inf
    assert list(blocks.wire(silent, False).outages(0.0, 9.0)) == []


@pytest.mark.parametrize(("block_s", "period_s"), [(0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_blocks_that_cannot_be(block_s: float, period_s: float) -> None:
    with pytest.raises(ValueError, match="blocks need block_s and period_s > 0"):
        Blocks(block_s, period_s, streams(0))


def arrivals(network: Network, seed: int, device: int) -> tuple[list[float], list[float]]:
    up, down, _ = AccessNetwork(network, seed, [], []).links(device)
    assert isinstance(up, ImpairedLink)
    assert isinstance(down, ImpairedLink)
    return [up.send(0.4 * i, 900) for i in range(50)], [down.send(0.4 * i, 900) for i in range(50)]


def test_draws_depend_on_seed_and_device_and_both_directions_follow_the_same_blocks() -> None:
    delay = StepFunction([0.0, 1.0], [0.01, 0.03], 5.0)
    network = Network(TRACE, TRACE, delay, delay, block_s=2.0)
    one = arrivals(network, 0, 0)
    assert one == arrivals(network, 0, 0)
    assert one[0] == one[1]
    assert one != arrivals(network, 0, 1)
    assert one != arrivals(network, 1, 0)
    assert one != arrivals(replace(network, block_s=3.0), 0, 0)
    cell = AccessNetwork(replace(network, devices_per_cell=2), 0, [], [])
    here, there = (cell.links(device)[0] for device in (0, 1))
    assert here.wire is there.wire  # type: ignore[union-attr]


def test_constant_links_have_no_blocks() -> None:
    constant = Network(1e6, 1e6, 0.01, 0.01, up_jitter_s=0.002, down_jitter_s=0.002, up_loss=0.1)
    assert arrivals(replace(constant, block_s=2.0), 0, 0) == arrivals(constant, 0, 0)

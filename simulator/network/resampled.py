"""Traces resampled in blocks: each device follows its own endless sequence of randomly chosen parts of one trace.

Source: D. Politis and J. Romano, The stationary bootstrap, JASA 1994, in continuous time. Blocks have exponential lengths and begin at
places that are uniform over the trace, which is a circle. The place is therefore uniform at every time, so means over time are those of the
trace, and a block contains the trace as it is. All quantities of both directions jump at the same times and to the same places.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator

import numpy as np

from simulator.network.wire import Capacity, StepFunction, VaryingWire, Wire

STRETCH = 256  # mean number of blocks in a stretch
KEPT = 4  # number of stretches kept: queries are about the present or the near future

Block = tuple[float, float, float]


class Onward:
    """A trace followed from one place on; it repeats."""

    __slots__ = ("_offset_s",)

    def __init__(self, offset_s: float) -> None:
        self._offset_s = offset_s

    def wire(self, capacity: Capacity, shared: bool) -> Wire:
        """Return a wire that follows a capacity."""
        return capacity.wire(self._offset_s, shared)

    def value(self, function: StepFunction) -> Callable[[float], float]:
        """Return a step function as a function of time."""
        return function.entered_at(self._offset_s)


class Blocks:
    """A trace followed in blocks by one device or cell.

    They are drawn by stretches of time, each from its own random stream, so that a device that is first used late in a long run needs
    only the current stretch. The end of a stretch ends a block: one in `STRETCH`.
    """

    __slots__ = ("_block", "_block_s", "_known", "_period_s", "_streams", "_stretch_s")

    def __init__(self, block_s: float, period_s: float, streams: Callable[[int], np.random.Generator]) -> None:
        """Raises ValueError for times that are not above 0.

        Args:
            block_s: mean length of a block.
            period_s: duration of the trace.
            streams: random streams by number of the stretch.
        """
        if not (0.0 < block_s < math.inf and 0.0 < period_s < math.inf):
            raise ValueError(f"blocks need block_s and period_s > 0, got {block_s} and {period_s}")
        self._block_s, self._period_s, self._streams = block_s, period_s, streams
        self._stretch_s = STRETCH * block_s
        # By stretch: begins of its blocks, and what to add for the place in the trace.
        self._known: dict[int, tuple[list[float], list[float]]] = {}
        self._block = (math.inf, -math.inf, 0.0)  # latest result of `at`

    def wire(self, capacity: Capacity, shared: bool) -> Wire:
        """Return a wire that follows a capacity."""
        return ResampledWire(capacity, self, shared)

    def value(self, function: StepFunction) -> Callable[[float], float]:
        """Return a step function as a function of time."""
        value = function.entered_at(0.0)
        return lambda time_s: value(time_s + self.at(time_s)[2])

    def at(self, time_s: float) -> Block:
        """Return begin and end of the block at a time, and what to add to a time in it for the place in the trace."""
        block = self._block
        if block[0] <= time_s < block[1]:
            return block
        number = int(time_s // self._stretch_s)
        if time_s >= (number + 1) * self._stretch_s:  # by rounding
            number += 1
        begins_s, offsets_s = self._known.get(number) or self._draw(number)
        index = max(0, bisect_right(begins_s, time_s) - 1)
        end_s = begins_s[index + 1] if index + 1 < len(begins_s) else (number + 1) * self._stretch_s
        self._block = block = (begins_s[index], end_s, offsets_s[index])
        return block

    def _draw(self, number: int) -> tuple[list[float], list[float]]:
        random = self._streams(number)
        after_s = np.append(0.0, np.cumsum(self._block_s * random.standard_exponential(2 * STRETCH)))
        begins_s = number * self._stretch_s + after_s[after_s < self._stretch_s]
        places_s = self._period_s * random.random(len(begins_s))
        found = (begins_s.tolist(), (places_s - begins_s).tolist())
        if len(self._known) == KEPT:
            del self._known[min(self._known)]
        self._known[number] = found
        return found


class ResampledWire(Wire):
    """A wire whose rate follows a `Capacity` in blocks."""

    __slots__ = ("_block", "_blocks", "_capacity", "_wire")

    def __init__(self, capacity: Capacity, blocks: Blocks, shared: bool = False) -> None:
        super().__init__(math.inf, shared)
        self._capacity = capacity
        self._blocks = blocks
        self._block: Block | None = None  # that of `_wire`
        self._wire = VaryingWire(capacity)

    @property
    def mean_bps(self) -> float:
        return self._capacity.mean_bps

    def finish_s(self, start_s: float, bits: float) -> float:
        if bits <= 0.0:
            return start_s
        if start_s == math.inf or not self._capacity.total_bits:
            return math.inf
        while True:
            wire, (_, end_s, _) = self._in(start_s)
            finish_s = wire.finish_s(start_s, bits)
            if finish_s <= end_s:
                return finish_s
            bits -= wire.bits(start_s, end_s)
            if bits <= 0.0:  # the last bit of a block, by rounding
                return end_s
            start_s = end_s

    def bits(self, start_s: float, end_s: float) -> float:
        carried = 0.0
        while start_s < end_s:
            wire, (_, stop_s, _) = self._in(start_s)
            stop_s = min(stop_s, end_s)
            carried += wire.bits(start_s, stop_s)
            start_s = stop_s
        return carried

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Yield outages, merged if one block ends in one and the next begins in one."""
        if not self._capacity.outages_s or end_s == math.inf:
            return
        open_s: float | None = None  # begin of an outage that lasts until `start_s`
        while open_s is not None or start_s < end_s:
            wire, (begin_s, stop_s, _) = self._in(start_s)
            lasts = False  # until the end of the block
            for from_s, until_s in wire.outages(start_s, stop_s):
                from_s, lasts = max(from_s, begin_s), until_s >= stop_s
                if open_s is not None and from_s > start_s:
                    yield open_s, start_s
                    open_s = None
                if open_s is None:
                    if from_s >= end_s:
                        return
                    open_s = from_s
                if not lasts:
                    yield open_s, until_s
                    open_s = None
            if open_s is not None and not lasts:
                yield open_s, start_s
                open_s = None
            start_s = stop_s

    def _in(self, time_s: float) -> tuple[VaryingWire, Block]:
        """Return a wire that is right within the block at a time, and the block."""
        block = self._blocks.at(time_s)
        if block is not self._block:
            self._block, self._wire = block, VaryingWire(self._capacity, block[2])
        return self._wire, block

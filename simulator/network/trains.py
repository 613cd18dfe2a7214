"""A wire that carries packet trains after an idle time, as CellReplay combines its two workloads.

Source: Sentosa et al., CellReplay, NSDI 2025. A packet that meets an idle queue starts a train: it leaves at once, and the packets after it
leave at the offsets of the train that was measured at that time. Packets beyond the last one of the train go through the queue of a
saturated link.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from simulator.network.wire import Capacity, StepFunction, VaryingWire

_SAME_S = 1e-9


class TrainCapacity(Capacity):
    """The capacity of a saturated link, and packet trains in its idle state.

    Attributes:
        packet_bits: size of a packet of a train.
    """

    def __init__(
        self,
        capacity: Capacity,
        times_s: ArrayLike,
        offsets_s: Sequence[Sequence[float]],
        duration_s: float,
        base_s: StepFunction,
        size_delays_s: Sequence[tuple[int, float]] = (),
        packet_bytes: int = 1400,
    ) -> None:
        """The arguments are those of the saturated link, and then of `simulator.traces.trace.Trains`.

        Args:
            capacity: of the saturated link.
            times_s: time from which each train applies.
            offsets_s: packet offsets of each train.
            duration_s: period after which they repeat.
            base_s: one-way delay of the first packet of a train.
            size_delays_s: (bytes, seconds): additional delay of a packet, by its size.
            packet_bytes: size of a packet of a train.
        """
        super().__init__(capacity.edges_s[:-1], capacity.rates_bps, capacity.duration_s)
        self._times_s: list[float] = np.asarray(times_s, np.float64).tolist()
        self._offsets_s = [list(offsets) for offsets in offsets_s]
        self._trains_s = duration_s
        self.base_s = base_s
        self._sizes = np.array([size for size, _ in size_delays_s], np.float64)
        self._delays_s = np.array([delay_s for _, delay_s in size_delays_s], np.float64)
        self.packet_bits = 8.0 * packet_bytes

    def wire(self, offset_s: float, shared: bool) -> "TrainWire":
        return TrainWire(self, offset_s, shared)

    def train_at(self, time_s: float) -> list[float]:
        """Return the offsets of the train that applies at a time."""
        return self._offsets_s[bisect_right(self._times_s, time_s % self._trains_s) - 1]

    def size_delay_s(self, packet_bytes: float) -> float:
        """Return the additional delay of a packet of this size; outside the table that of the nearest size; 0 without a table."""
        return float(np.interp(packet_bytes, self._sizes, self._delays_s)) if len(self._sizes) else 0.0


class TrainWire(VaryingWire):
    """A wire of a `TrainCapacity`. Calls come in order of time; a call that starts before the end of another one concerns the same
    packets."""

    __slots__ = ("_base_s", "_busy_s", "_next", "_offsets", "_train_s", "_trains")

    def __init__(self, capacity: TrainCapacity, offset_s: float = 0.0, shared: bool = False) -> None:
        super().__init__(capacity, offset_s, shared)
        self._trains = capacity
        self._base_s = capacity.base_s.entered_at(offset_s)
        self._offsets: list[float] = []
        self._train_s = -math.inf  # time at which the train's first packet was sent
        self._busy_s = -math.inf  # time until which the queue is not idle
        self._next = 0  # next packet of the train at _busy_s

    def finish_s(self, start_s: float, bits: float) -> float:
        """Return the time at which the last packet of `bits`, sent at `start_s`, leaves the wire."""
        if bits <= 0.0 or start_s == math.inf:
            return start_s
        trains = self._trains
        if start_s > self._busy_s:
            self._offsets = trains.train_at(start_s + self._offset_s)
            self._train_s, self._next = start_s, 0
        offsets = self._offsets
        first = bisect_left(offsets, start_s - self._train_s - _SAME_S)
        if start_s >= self._busy_s:
            first = max(first, self._next)
        packets = math.ceil(bits / trains.packet_bits - _SAME_S)
        light = min(packets, max(0, len(offsets) - first))
        if light == packets:
            last_bytes = 0.125 * (bits - (packets - 1) * trains.packet_bits)
            end_s = self._train_s + offsets[first + packets - 1] + trains.size_delay_s(last_bytes)
        else:
            last_s = offsets[-1]
            enter_s = start_s + max(0.0, last_s - self._base_s(start_s))
            end_s = max(super().finish_s(enter_s, bits - light * trains.packet_bits), self._train_s + last_s)
        busy_s = max(self._busy_s, start_s, end_s)
        if busy_s > self._busy_s or first + light > self._next:
            self._busy_s, self._next = busy_s, max(self._next, first + light)
        return end_s

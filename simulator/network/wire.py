"""Wires: a capacity, constant or varying over time, that messages occupy one after another."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike


class Wire:
    """A wire of constant rate.

    Attributes:
        rate_bps: bits per second.
        shared: whether several devices queue for it. A message then occupies it from the time when it is handed over, whatever else
            delays the message (a sleeping radio, a full window).
        free_s: time when it has sent its last bit.
    """

    __slots__ = ("free_s", "rate_bps", "shared")

    def __init__(self, rate_bps: float, shared: bool = False) -> None:
        """Raises ValueError for a rate not above 0."""
        if not rate_bps > 0.0:
            raise ValueError(f"rate_bps must be > 0, got {rate_bps}")
        self.rate_bps = rate_bps
        self.shared = shared
        self.free_s = 0.0

    @property
    def mean_bps(self) -> float:
        """Mean rate over time."""
        return self.rate_bps

    @property
    def mean_wait_s(self) -> float:
        """Mean extra time of `finish_s` in addition to the bits, if nothing was sent before."""
        return 0.0

    @property
    def met_wait_s(self) -> float:
        """The same if other traffic always has something to send on it: see `occupied`."""
        return 0.0

    def occupied(self, time_s: float) -> None:
        """Other traffic had something to send on it all the time until `time_s`."""

    def finish_s(self, start_s: float, bits: float) -> float:
        """Return the time at which the last of `bits` is sent, starting at `start_s`; infinity for never."""
        return start_s + bits / self.rate_bps

    def bits(self, start_s: float, end_s: float) -> float:
        """Return the bits that the wire can carry between two times."""
        return (end_s - start_s) * self.rate_bps

    def waiting_bits(self, start_s: float, free_s: float) -> float:
        """Return the bits that wait at `start_s` if they keep the wire busy until `free_s`."""
        return self.bits(start_s, free_s)

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        """Yield start and end of each stretch of rate 0 that lies at least partly between two times."""
        return iter(())


class Capacity:
    """Cumulative capacity of a repeating rate, computed once and shared by all wires that follow it."""

    def __init__(self, times_s: ArrayLike, rate_bps: ArrayLike, duration_s: float) -> None:
        """Raises ValueError if times do not ascend to the duration, or a rate is negative or not finite.

        Args:
            times_s: float [n], from 0 on.
            rate_bps: float [n], from each time until the next, the last until `duration_s`.
            duration_s: period after which the rate repeats.
        """
        times = np.asarray(times_s, np.float64)
        rate = np.asarray(rate_bps, np.float64)
        if len(times) == 0 or len(times) != len(rate) or times[0] != 0.0:
            raise ValueError("a rate needs as many times as values, at least one, the first of them 0")
        edges = np.append(times, duration_s)
        if not (np.all(np.isfinite(edges)) and np.all(np.diff(edges) > 0.0)):
            raise ValueError("times must be finite and ascend up to the duration")
        if not (np.all(np.isfinite(rate)) and np.all(rate >= 0.0)):
            raise ValueError("rates must be finite and >= 0")
        # Lists: indexing one takes half the time of indexing an array.
        self.duration_s = float(duration_s)
        self.edges_s: list[float] = edges.tolist()
        self.rates_bps: list[float] = rate.tolist()
        self.bits: list[float] = np.append(0.0, np.cumsum(rate * np.diff(edges))).tolist()  # carried before each edge
        self.total_bits = self.bits[-1]
        self.outages_s = _zero_stretches(self.edges_s, self.rates_bps) if self.total_bits else []

    @property
    def mean_bps(self) -> float:
        """Mean rate over time."""
        return self.total_bits / self.duration_s

    def wire(self, offset_s: float, shared: bool) -> "VaryingWire":
        """Return a wire that follows it, starting at `offset_s`."""
        return VaryingWire(self, offset_s, shared)

    @classmethod
    def with_outages(cls, rate_bps: float, every_s: float, outage_s: float) -> "Capacity":
        """Return a constant rate with a pause of `outage_s` in every `every_s`."""
        return cls([0.0, every_s - outage_s], [rate_bps, 0.0], every_s)


def _zero_stretches(edges_s: Sequence[float], rates: Sequence[float]) -> list[tuple[float, float]]:
    """Return start and end of each stretch of rate 0 in a period; one that continues in the next period ends after this one."""
    found: list[tuple[float, float]] = []
    for begin_s, end_s, rate in zip(edges_s, edges_s[1:], rates, strict=False):
        if rate == 0.0:
            if found and found[-1][1] == begin_s:
                found[-1] = (found[-1][0], end_s)
            else:
                found.append((begin_s, end_s))
    if len(found) > 1 and found[0][0] == 0.0 and found[-1][1] == edges_s[-1]:
        found[-1] = (found[-1][0], edges_s[-1] + found.pop(0)[1])
    return found


class VaryingWire(Wire):
    """A wire whose rate follows a `Capacity`, starting at `offset_s`."""

    __slots__ = ("_begin_s", "_capacity", "_end_s", "_offset_s")

    def __init__(self, capacity: Capacity, offset_s: float = 0.0, shared: bool = False) -> None:
        super().__init__(math.inf, shared)
        self._capacity = capacity
        self._offset_s = offset_s
        self._begin_s, self._end_s = math.inf, -math.inf  # stretch of the latest message, which has the rate `rate_bps`

    @property
    def mean_bps(self) -> float:
        return self._capacity.mean_bps

    def finish_s(self, start_s: float, bits: float) -> float:
        """See `Wire.finish_s`: the inverse of the cumulative capacity. Most messages are in the stretch of the latest one."""
        if start_s >= self._begin_s:
            end_s = start_s + bits / self.rate_bps
            if end_s <= self._end_s:
                return end_s
        return self._seek(start_s, bits)

    def _seek(self, start_s: float, bits: float) -> float:
        c = self._capacity
        if bits <= 0.0:
            return start_s
        if c.total_bits == 0.0 or start_s == math.inf:
            return math.inf
        phase_s = (start_s + self._offset_s) % c.duration_s
        here = bisect_right(c.edges_s, phase_s) - 1
        rate_bps = c.rates_bps[here]
        if bits <= (c.edges_s[here + 1] - phase_s) * rate_bps:  # all of them in the stretch in which they start
            self.rate_bps = rate_bps
            self._begin_s = start_s - phase_s + c.edges_s[here]
            self._end_s = start_s - phase_s + c.edges_s[here + 1]
            return start_s + bits / rate_bps
        more, target = divmod(c.bits[here] + (phase_s - c.edges_s[here]) * rate_bps + bits, c.total_bits)
        if target == 0.0:  # the last bit of a period, not the first bit of the next one
            more, target = more - 1.0, c.total_bits
        there = bisect_left(c.bits, target) - 1  # its rate is above 0, because the capacity grows in it
        rate_bps = c.rates_bps[there]
        shift_s = more * c.duration_s - phase_s + start_s
        self.rate_bps = rate_bps
        self._begin_s = shift_s + c.edges_s[there]
        self._end_s = shift_s + c.edges_s[there + 1]
        return max(start_s, self._begin_s + (target - c.bits[there]) / rate_bps)

    def bits(self, start_s: float, end_s: float) -> float:
        return self._carried(end_s) - self._carried(start_s)

    def _carried(self, time_s: float) -> float:
        c = self._capacity
        periods, phase_s = divmod(time_s + self._offset_s, c.duration_s)
        here = min(bisect_right(c.edges_s, phase_s) - 1, len(c.rates_bps) - 1)
        return periods * c.total_bits + c.bits[here] + (phase_s - c.edges_s[here]) * c.rates_bps[here]

    def outages(self, start_s: float, end_s: float) -> Iterator[tuple[float, float]]:
        c = self._capacity
        if not c.outages_s or end_s == math.inf:
            return
        shift_s = ((start_s + self._offset_s) // c.duration_s - 1.0) * c.duration_s - self._offset_s
        while shift_s < end_s:
            # A period can have tens of thousands of outages, so a bisection skips those before the first.
            first = bisect_right(c.outages_s, start_s - shift_s, key=itemgetter(1))
            for place in range(first, len(c.outages_s)):
                begin_s, stop_s = c.outages_s[place]
                if shift_s + begin_s >= end_s:
                    return
                yield shift_s + begin_s, shift_s + stop_s
            shift_s += c.duration_s


class StepFunction:
    """A repeating step function of time: a one-way delay in seconds, or a share of packets lost."""

    def __init__(self, times_s: ArrayLike, values: ArrayLike, duration_s: float) -> None:
        """Take the arguments of `Capacity`, with `values` instead of rates."""
        times, held = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
        self.duration_s = float(duration_s)
        self.mean = float(held @ np.diff(times, append=duration_s) / duration_s)
        self.edges_s: list[float] = [*times.tolist(), self.duration_s]
        self.values: list[float] = held.tolist()

    def entered_at(self, offset_s: float) -> Callable[[float], float]:
        """Return the value as a function of time, starting at `offset_s`."""
        # The search leaves out the last edge, because a remainder can round to the whole duration.
        edges_s, values, last = self.edges_s, self.values, len(self.values)
        return lambda time_s: values[bisect_right(edges_s, (time_s + offset_s) % self.duration_s, 0, last) - 1]


def mean_of(value: float | StepFunction) -> float:
    """Return the mean over time of a constant or varying quantity."""
    return value.mean if isinstance(value, StepFunction) else value

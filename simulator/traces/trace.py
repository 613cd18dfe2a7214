"""Data structures for trace files: `Trace` for networks, `Arrivals` for requests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from simulator.traces.series import Floats, RateSeries, StepSeries

MOST_STEPS = 10**7


@dataclass(frozen=True, eq=False)
class Trains:
    """Packet trains over time (CellReplay): when packets leave that enter an idle queue together. The sequence repeats.

    Attributes:
        times_s: float64 [n], time from which each train applies; starts at 0, increases.
        offsets_s: per train, the departure of each packet in seconds after the first packet, ascending from 0.
        duration_s: duration of the sequence.
    """

    times_s: Floats
    offsets_s: tuple[tuple[float, ...], ...]
    duration_s: float


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of a link in a trace. Each series repeats after its own duration. An attribute is None if the trace does not state it.

    Attributes:
        rate: bit/s.
        delay_s: one-way delay in seconds.
        loss: share of packets lost in this direction, 0 to 1.
        packets: delivery opportunities in one pass of the trace (mahimahi only).
        trains: departures of packets that enter an idle queue, used instead of the rate.
        size_delays_s: additional delay by packet size, as (bytes, seconds) in ascending order, interpolated between sizes.

    Raises:
        TraceError: a loss is above 1.
    """

    rate: RateSeries | None = None
    delay_s: StepSeries | None = None
    loss: StepSeries | None = None
    packets: int | None = None
    trains: Trains | None = None
    size_delays_s: tuple[tuple[int, float], ...] | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and self.loss.values.max() > 1.0:
            raise TraceError(f"loss must be a share of 0 to 1, got {self.loss.values.max():g}")


@dataclass(frozen=True, eq=False)
class Trace:
    """A network trace. A round trip is stored as two equal one-way delays.

    Attributes:
        format: a name of `simulator.traces.read.FORMATS`, or several joined by `+`.
        down: the downlink.
        up: the uplink.
        notes: what the reader assumed, in words.
    """

    format: str
    down: Direction
    up: Direction
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Duration of the longest series, in seconds."""
        return max(series.duration_s for series in self.series())

    def series(self) -> list[RateSeries | StepSeries]:
        parts = [part for way in (self.down, self.up) for part in (way.rate, way.delay_s, way.loss)]
        return [part for part in parts if part is not None]

    def rtt_s(self) -> StepSeries | None:
        """Return the round trip in seconds, the sum of both one-way delays; None unless both are known."""
        down, up = self.down.delay_s, self.up.delay_s
        if down is None or up is None:
            return None
        duration_s = max(down.duration_s, up.duration_s)
        times_s, (a, b) = on_one_grid([down, up], duration_s)
        return StepSeries(times_s, a + b, duration_s)


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Arrival times of requests.

    Attributes:
        format: a name of `simulator.traces.read.FORMATS`.
        requested_s: float64 [n], seconds since the first request, never decreasing.
        input_tokens: int64 [n], None if the file has none.
        output_tokens: int64 [n], None if the file has none.
        notes: what the reader assumed, in words.
    """

    format: str
    requested_s: Floats
    input_tokens: NDArray[np.int64] | None = None
    output_tokens: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Seconds from the first request to the last."""
        return float(self.requested_s[-1])

    def rate_per_s(self) -> float:
        """Return the mean rate: 1 / mean time between requests."""
        return (len(self.requested_s) - 1) / self.duration_s


def on_one_grid(
    series: list[RateSeries | StepSeries] | list[StepSeries], duration_s: float
) -> tuple[Floats, list[Floats]]:
    """Return the times [n] before `duration_s` at which any series changes, and the values [n] of each series there.

    Shorter series repeat. Times are rounded to the nanosecond, so that equal times with different rounding errors merge.

    Raises:
        TraceError: repeating a short series would give more than `MOST_STEPS` steps.
    """
    starts = []
    for one in series:
        if len(one.times_s) * duration_s / one.duration_s > MOST_STEPS:
            raise TraceError(
                f"a series of {one.duration_s:g} s cannot be repeated for {duration_s:g} s; allowed: {MOST_STEPS:.0e} steps"
            )
        passes = np.arange(int(np.ceil(duration_s / one.duration_s - 1e-12)))
        starts.append(np.round((one.times_s + passes[:, None] * one.duration_s).ravel(), 9))
    merged = np.unique(np.concatenate(starts))
    times_s = np.asarray(merged[merged < duration_s - 1e-9], dtype=np.float64)
    values = []
    for one, own_s in zip(series, starts, strict=True):
        place = np.searchsorted(own_s, times_s, side="right") - 1
        held = one.rate_bps if isinstance(one, RateSeries) else one.values
        values.append(held[place % len(held)])
    return times_s, values

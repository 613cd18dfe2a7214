"""The form in which every trace file is held: `Trace` of a network, `Arrivals` of requests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import TraceError
from simulator.traces.series import Floats, RateSeries, StepSeries

MOST_STEPS = 10**7


@dataclass(frozen=True, eq=False)
class Trains:
    """When packets leave that are sent at once into an idle queue, from moment to moment (CellReplay). It repeats.

    Attributes:
        times_s: float64 [n], since when each train is the one that counts; starts at 0, increases.
        offsets_s: of each train, seconds after its first packet at which its packets leave, ascending from 0.
        duration_s: of the whole.
    """

    times_s: Floats
    offsets_s: tuple[tuple[float, ...], ...]
    duration_s: float


@dataclass(frozen=True, eq=False)
class Direction:
    """What a trace says of one direction of a link. Each series loops at its own duration.

    Attributes:
        rate: bit/s; this and the others are None where the trace says nothing.
        delay_s: one-way delay in seconds.
        loss: share of packets lost in this direction, 0 to 1.
        packets: chances to send a packet in one pass (mahimahi only).
        trains: what packets meet after an idle time, in place of the rate.
        size_delays_s: delay that a packet has besides, by its size: (bytes, seconds), ascending; between them it is interpolated.

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
        """Of the longest series."""
        return max(series.duration_s for series in self.series())

    def series(self) -> list[RateSeries | StepSeries]:
        parts = [part for way in (self.down, self.up) for part in (way.rate, way.delay_s, way.loss)]
        return [part for part in parts if part is not None]

    def rtt_s(self) -> StepSeries | None:
        """Round trip: the sum of both one-way delays, where both are known."""
        down, up = self.down.delay_s, self.up.delay_s
        if down is None or up is None:
            return None
        duration_s = max(down.duration_s, up.duration_s)
        times_s, (a, b) = on_one_grid([down, up], duration_s)
        return StepSeries(times_s, a + b, duration_s)


@dataclass(frozen=True, eq=False)
class Arrivals:
    """When requests were made.

    Attributes:
        format: a name of `simulator.traces.read.FORMATS`.
        requested_s: float64 [n], seconds since the first request, never decreasing.
        input_tokens: int64 [n], None where the file has none.
        output_tokens: the same.
        notes: what the reader assumed, in words.
    """

    format: str
    requested_s: Floats
    input_tokens: NDArray[np.int64] | None = None
    output_tokens: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """From the first request to the last."""
        return float(self.requested_s[-1])

    def rate_per_s(self) -> float:
        """1 over the mean time between requests."""
        return (len(self.requested_s) - 1) / self.duration_s


def on_one_grid(
    series: list[RateSeries | StepSeries] | list[StepSeries], duration_s: float
) -> tuple[Floats, list[Floats]]:
    """times_s [n] at which any of the series changes before `duration_s`, and the values [n] of each there; shorter ones loop.

    Times are rounded to the nanosecond, so that one moment computed in two ways is one time.

    Raises:
        TraceError: a short series would be repeated for more than `MOST_STEPS` steps.
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

"""Excerpts of traces, and traces at another speed."""

import math
from dataclasses import replace

import numpy as np

from simulator.core.errors import TraceError
from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Direction, Trace, Trains, on_one_grid

Window = tuple[float, float]
TIME_SCALE = (1e-6, 1e6)


def excerpt(trace: Trace, window_s: Window | None = None, time_scale: float = 1.0) -> Trace:
    """Cut a window out of a trace and multiply its times by a factor. Rates, delays and losses do not change.

    Args:
        trace: any network trace.
        window_s: begin and end, in seconds of the trace in the file; None for the whole trace.
        time_scale: factor of all times; 0.5 plays the trace twice as fast.

    Raises:
        TraceError: the window is empty or ends after the trace, or the factor is out of range.
    """
    begin_s, end_s = _checked(window_s, time_scale, trace.duration_s)
    if window_s is None and time_scale == 1.0:
        return trace

    def part(way: Direction) -> Direction:
        rate, delay_s, loss = way.rate, way.delay_s, way.loss
        return Direction(
            None if rate is None else RateSeries(*_steps(rate, begin_s, end_s, time_scale)),
            None if delay_s is None else StepSeries(*_steps(delay_s, begin_s, end_s, time_scale)),
            None if loss is None else StepSeries(*_steps(loss, begin_s, end_s, time_scale)),
            way.packets if window_s is None else None,
            None if way.trains is None else _trains(way.trains, begin_s, end_s, time_scale),
            way.size_delays_s,
        )

    return replace(
        trace, down=part(trace.down), up=part(trace.up), notes=(*trace.notes, *excerpt_notes(window_s, time_scale))
    )


def excerpt_of_arrivals(trace: Arrivals, window_s: Window | None = None, time_scale: float = 1.0) -> Arrivals:
    """Cut arrivals as `excerpt` does. Times count from the first request in the window; a factor of 0.5 doubles the request rate.

    Raises:
        TraceError: as `excerpt`, or the window has no two requests at different times.
    """
    times_s = trace.requested_s
    begin_s, end_s = _checked(window_s, time_scale, math.inf)
    if window_s is None and time_scale == 1.0:
        return trace
    inside = slice(None) if window_s is None else (times_s >= begin_s) & (times_s < end_s)
    kept_s = times_s[inside]
    if not len(kept_s) or kept_s[-1] == kept_s[0]:
        raise TraceError(
            f"window_s {begin_s:g} to {end_s:g}: needs two requests at different times, holds {len(kept_s)}"
        )
    tokens = [None if values is None else values[inside] for values in (trace.input_tokens, trace.output_tokens)]
    notes = (*trace.notes, *excerpt_notes(window_s, time_scale))
    return Arrivals(trace.format, (kept_s - kept_s[0]) * time_scale, tokens[0], tokens[1], notes)


def times_in_window(times_s: Floats, window_s: Window | None, time_scale: float) -> Floats:
    """Return the times within a window, from its begin, multiplied by a factor. The window counts from the first time.

    Raises:
        TraceError: as `excerpt`, or the window holds no time.
    """
    begin_s, end_s = _checked(window_s, time_scale, math.inf)
    if window_s is None:
        return times_s * time_scale
    times_s = times_s - times_s[0]
    kept_s = times_s[(times_s >= begin_s) & (times_s < end_s)]
    if not len(kept_s):
        raise TraceError(f"window_s {begin_s:g} to {end_s:g} holds no request; allowed: at least one")
    return (kept_s - begin_s) * time_scale


def _checked(window_s: Window | None, time_scale: float, duration_s: float) -> Window:
    if not TIME_SCALE[0] <= time_scale <= TIME_SCALE[1]:
        raise TraceError(f"time_scale must be {TIME_SCALE[0]:g} to {TIME_SCALE[1]:g}, got {time_scale:g}")
    if window_s is None:
        return 0.0, duration_s
    begin_s, end_s = window_s
    if not 0.0 <= begin_s < end_s <= duration_s * (1.0 + 1e-9):
        allowed = f"from 0 to {duration_s:g} s, where the trace ends" if math.isfinite(duration_s) else ">= 0 s"
        raise TraceError(f"window_s must be two rising times {allowed}, got {begin_s:g} to {end_s:g}")
    return begin_s, min(end_s, duration_s)


def excerpt_notes(window_s: Window | None, time_scale: float) -> tuple[str, ...]:
    """Return notes that describe an excerpt."""
    window = () if window_s is None else (f"the window from {window_s[0]:g} s to {window_s[1]:g} s",)
    return (*window, *((f"times multiplied by {time_scale:g}",) if time_scale != 1.0 else ()))


def _trains(trains: Trains, begin_s: float, end_s: float, time_scale: float) -> Trains:
    """Return the trains of a window. Their offsets are not scaled."""
    if begin_s == 0.0 and end_s >= trains.duration_s:
        return Trains(trains.times_s * time_scale, trains.offsets_s, trains.duration_s * time_scale)
    passes = np.arange(math.floor(begin_s / trains.duration_s), math.ceil(end_s / trains.duration_s))
    times_s = (trains.times_s + passes[:, None] * trains.duration_s).ravel()
    first, last = int(np.searchsorted(times_s, begin_s, side="right")) - 1, int(np.searchsorted(times_s, end_s))
    kept_s = np.append(begin_s, times_s[first + 1 : last])
    offsets_s = tuple(trains.offsets_s[place % len(trains.offsets_s)] for place in range(first, last))
    return Trains((kept_s - begin_s) * time_scale, offsets_s, (end_s - begin_s) * time_scale)


def _steps(
    series: RateSeries | StepSeries, begin_s: float, end_s: float, time_scale: float
) -> tuple[Floats, Floats, float]:
    """Return times, values and duration of the window of a series. A series shorter than the trace repeats."""
    if begin_s == 0.0 and end_s == series.duration_s:
        values = series.rate_bps if isinstance(series, RateSeries) else series.values
        return series.times_s * time_scale, values, series.duration_s * time_scale
    times_s, (values,) = on_one_grid([series], end_s)
    first = int(np.searchsorted(times_s, begin_s, side="right")) - 1
    kept_s = np.append(begin_s, times_s[first + 1 :])
    return (kept_s - begin_s) * time_scale, values[first:], (end_s - begin_s) * time_scale

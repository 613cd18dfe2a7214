"""Time stamps of a trace: intervals and gaps between them, and traces with one or two directions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.source import Source
from simulator.traces.trace import Direction, Trace
from simulator.traces.units import Told, Way

NOTED_GAP_STEPS = 3.0  # in median steps; longer gaps are noted
LONGEST_GAP_S, LONGEST_GAP_STEPS = 60.0, 100.0  # in seconds and in median steps; a gap that exceeds both is refused


def intervals(times_s: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the times from the first [n], and whether each interval between two of them is longer than 0 [n - 1]."""
    from_zero = np.asarray(times_s - times_s[0], dtype=np.float64)
    return from_zero, np.diff(from_zero) > 0.0


def held_rows(times_s: Floats) -> tuple[NDArray[np.bool_], Floats, float]:
    """Return the periods of rows that apply until the next row, the last one as long as the median row.

    Args:
        times_s: float64 [n], never decreasing, with at least two different values.

    Returns:
        bool [n], the rows used: the last of those at one time. Their start times from 0. The total duration in seconds.
    """
    from_zero, long = intervals(times_s)
    last = np.append(long, True)
    return last, from_zero[last], float(from_zero[-1] + np.median(np.diff(from_zero)[long]))


def gap_notes(
    source: Source, times_s: Floats, lines: Sequence[int] | None, rule: str, *, repeat: bool = False
) -> tuple[str, ...]:
    """Return notes on time stamps: the number of equal ones, and the number of gaps, the longest gap and how gaps are filled.

    Args:
        source: the file, named in errors.
        times_s: float64 [n], seconds, never decreasing, with at least two different values.
        lines: line number of each time; None if line numbers do not locate it (JSON arrays).
        rule: how gaps are filled.
        repeat: whether equal times are normal in the format, so that no note mentions them.

    Raises:
        TraceError: a gap is longer than 60 s and than 100 median steps.
    """
    steps_s = np.diff(times_s)
    same = 0 if repeat else int((steps_s == 0.0).sum())
    twice = (f"{same} of {len(times_s)} values have the same time as the one before: one of such values is used",)
    median_s = float(np.median(steps_s[steps_s > 0]))
    most_s = max(LONGEST_GAP_S, LONGEST_GAP_STEPS * median_s)
    wrong = np.flatnonzero(steps_s > most_s)
    if wrong.size:
        i = int(wrong[0]) + 1
        found = f"time jumps by {steps_s[i - 1]:g} s; allowed: {most_s:g} s, which is 60 s or 100 median steps"
        source.fail(f"{found} (are two units mixed? else cut the trace in two)", None if lines is None else lines[i])
    gaps = np.flatnonzero(steps_s > NOTED_GAP_STEPS * median_s)
    if not gaps.size:
        return twice if same else ()
    longest = int(gaps[np.argmax(steps_s[gaps])])
    where = "" if lines is None else f" before line {lines[longest + 1]}"
    number = f"{gaps.size} gap{'s' if gaps.size > 1 else ''} of more than {NOTED_GAP_STEPS:g} median steps"
    return (*(twice if same else ()), f"{number}, the longest {steps_s[longest]:.4g} s{where}: {rule}")


def way_of(source: Source, said: Told) -> Way:
    """Return the direction that the user states, or that of the file's name (`x.up`, `up-pdo`, `latency-offset-up`); else "down"."""
    name = source.path.name
    by_name: Way = "up" if name.endswith((".up", "-up")) or name.startswith("up-") else "down"
    return said.direction or by_name


def one_way(name: str, way: Way, part: Direction, notes: tuple[str, ...] = ()) -> Trace:
    return Trace(name, *((part, Direction()) if way == "down" else (Direction(), part)), notes)


def both_ways(
    name: str,
    rtt_s: StepSeries | None,
    loss: StepSeries | None,
    notes: tuple[str, ...] = (),
    down: RateSeries | None = None,
    up: RateSeries | None = None,
) -> Trace:
    """Return a trace whose directions each have half the round trip and the same loss share."""
    delay_s = None if rtt_s is None else replace(rtt_s, values=rtt_s.values / 2.0)
    return Trace(name, Direction(down, delay_s, loss), Direction(up, delay_s, loss), notes)

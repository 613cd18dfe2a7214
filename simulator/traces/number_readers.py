"""Readers of files of numbers, one, two or seven per line: mahimahi, LeoReplayer delays, time and rate, Starlink CSV.

Each reader takes a `Source` of its format and the user's `Told`. docs/traces.md explains the numbers.
"""

import numpy as np

from simulator.traces.series import MOST_BPS, MOST_MBPS, Floats, RateSeries, StepSeries
from simulator.traces.source import Source, held
from simulator.traces.timing import gap_notes, held_rows, intervals, one_way, way_of
from simulator.traces.trace import Direction, Trace
from simulator.traces.units import LENGTH_S, MOST_TIME, TIME_UNITS, Told, ask_for_unit, unit_of_rates, unit_of_steps

PACKET_BITS = 12_000  # of one mahimahi delivery opportunity: 1500 bytes
CHANCE_BPS = (1e4, 5e9)  # plausible mean rates of a mahimahi trace
DELAY_SLOT_S = 0.01  # duration of a line of a LeoReplayer delay file
FILLER_MS = 200.0  # placeholder for the delay in rows of the Starlink CSV whose probes were all lost


# --- one number a line ------------------------------------------------------------------------------------------------------


def is_integers(source: Source) -> bool:
    return len(source.first_cells) == 1 and source.first_cells[0].lstrip("+-").isdigit()


def read_integers(source: Source, said: Told) -> Trace:
    """Read a mahimahi trace (delivery times, never decreasing) or a LeoReplayer delay file (ms per slot of 10 ms)."""
    lines, values = source.columns(1)
    times = values[:, 0]
    source.need(times == np.floor(times), lines, times, "must be a whole number of milliseconds")
    source.need(times >= 0, lines, times, "milliseconds must be >= 0")
    source.need(times <= MOST_TIME, lines, times, f"must be <= {MOST_TIME:g}")
    if _is_delays(times):
        series = StepSeries(
            np.arange(len(times), dtype=np.float64) * DELAY_SLOT_S, times / 1e3, len(times) * DELAY_SLOT_S
        )
        part = Direction(delay_s=series)
        return Trace("leoreplayer-delay", part, part)
    source.need_sorted(times, lines, "mahimahi time")
    if lines[-1] - lines[0] + 1 != len(lines):
        gap = next(line for line, before in zip(lines[1:], lines, strict=False) if line != before + 1)
        source.fail(
            "an empty line or a comment stands before this one; a mahimahi trace holds one number in every line", gap
        )
    if times[-1] == 0:
        source.fail("the last time is 0: the trace has no duration; allowed: > 0 ms", lines[-1])
    slots_per_s = 1e3
    note = "times in ms: the format's convention"
    if said.time_unit is not None:
        slots_per_s = min(TIME_UNITS[said.time_unit], 1e3)
        times = np.floor(times * slots_per_s / TIME_UNITS[said.time_unit])
        note = f"times in {said.time_unit}, as given"
        if times[-1] == 0:
            source.fail(f"the last time is below 1 ms in {said.time_unit}; allowed: >= 1 ms", lines[-1])
    else:
        mean_bps = len(times) * PACKET_BITS * slots_per_s / times[-1]
        if not CHANCE_BPS[0] <= mean_bps <= CHANCE_BPS[1] or times[-1] / slots_per_s > LENGTH_S:
            found = f"in ms it would last {times[-1] / 1e3:.6g} s at a mean rate of {mean_bps / 1e6:.4g} Mbit/s"
            raise ask_for_unit(source, "time", found, TIME_UNITS)
    way = way_of(source, said)
    notes = (
        note,
        f"a line is an opportunity to send 1500 bytes; a {'millisecond' if slots_per_s == 1e3 else 'second'} without one is an outage",
    )
    return one_way("mahimahi", way, Direction(rate=_chances(times, slots_per_s), packets=len(times)), notes)


def _is_delays(times: Floats) -> bool:
    """Return whether the numbers are delays, rather than increasing times with an error among them.

    Delays vary around one level: the difference of last and first is far smaller than the sum of absolute changes.
    """
    change = np.diff(times)
    if len(times) < 10 or not (change < 0).any() or times.max() >= 5000:
        return False
    return float(times[-1] - times[0]) < 0.3 * float(np.abs(change).sum())


def _chances(times: Floats, slots_per_s: float) -> RateSeries:
    """Return the rate of delivery times in slots: k times in a slot are k packets. The last time is time 0 of the next pass."""
    period = times[-1]
    starts, chances = np.unique(np.where(times == period, 0.0, times), return_counts=True)
    edges = np.unique(np.concatenate([[0.0], starts, starts + 1.0]))
    edges = edges[edges < period]
    rate_bps = np.zeros(len(edges))
    rate_bps[np.searchsorted(edges, starts)] = chances * PACKET_BITS * slots_per_s
    return RateSeries(edges / slots_per_s, rate_bps, period / slots_per_s)


# --- two numbers a line -----------------------------------------------------------------------------------------------------


def is_two_columns(source: Source) -> bool:
    return len(source.first_cells) == 2 and _are_numbers(source.first_cells)


def _are_numbers(cells: list[str]) -> bool:
    try:
        return bool([float(cell or "0") for cell in cells])
    except ValueError:
        return False


def read_time_rate(source: Source, said: Told) -> Trace:
    """Read times and rates. A rate applies from the time of the previous line, so the first line only sets the start."""
    lines, values = source.columns(2)
    times, rates = values.T
    source.need(times >= 0, lines, times, "time must be >= 0")
    source.need_sorted(times, lines)
    source.need(rates >= 0, lines, rates, "rate must be >= 0")
    if not (np.diff(times) > 0).any():
        source.fail("has no duration: two different times are needed")
    rate_unit = unit_of_rates(source, said, rates)
    time_unit = unit_of_steps(source, said, times, "s")
    rates_bps, times_s = rate_unit.base(rates), time_unit.base(times - times[0])
    source.need(rates_bps <= MOST_BPS, lines, rates_bps, f"rate in bit/s must be <= {MOST_BPS:g}")
    notes = (
        time_unit.note,
        rate_unit.note,
        "the rate of a line applies since the time of the previous line",
        *gap_notes(source, times_s, lines, "the rate after it applies throughout"),
    )
    from_zero, long = intervals(times_s)
    series = RateSeries(from_zero[:-1][long], rates_bps[1:][long], float(from_zero[-1]))
    return one_way("time-rate", way_of(source, said), Direction(rate=series), notes)


# --- seven numbers a line ---------------------------------------------------------------------------------------------------


def is_seven_columns(source: Source) -> bool:
    return len(source.first_cells) == 7 and _are_numbers(source.first_cells)


def read_starlink(source: Source, said: Told) -> Trace:
    """Read rate up, down (Mbit/s); one-way delay up, down (ms); loss up, down (shares); time (ms). An empty cell repeats the last value."""
    lines, values = source.columns(7, np.nan)
    source.need(
        ~(values.min(axis=1) < 0),
        lines,
        np.nanmin(np.where(np.isnan(values), np.inf, values), axis=1),
        "all columns must be >= 0",
    )
    for column, name in ((4, "up"), (5, "down")):
        share = values[:, column]
        source.need(~(share > 1), lines, share, f"column {column + 1}, {name} loss, must be a share of 0 to 1")
    for column in (0, 1):
        rate = values[:, column]
        source.need(~(rate > MOST_MBPS), lines, rate, f"column {column + 1} must be <= {MOST_MBPS:g} Mbit/s")
    times = values[:, 6]
    source.need(~np.isnan(times), lines, times, "column 7, time, must not be empty")
    source.need_sorted(times, lines)
    if not (np.diff(times) > 0).any():
        source.fail("has no duration: two different times are needed")
    # Steps below 10 ms mean that the column is in seconds, or that the file has another format.
    time_unit = unit_of_steps(source, said, times, "ms", least_s=0.01)
    all_lost = (values[:, 2:4] == FILLER_MS).all(axis=1) & (values[:, 4:6] == 1.0).all(axis=1)
    values[all_lost, 2:4] = np.nan
    times_s = time_unit.base(times - times[0])  # first the difference: a Unix time divided loses digits
    last, starts_s, duration_s = held_rows(times_s)
    rate_unit = unit_of_rates(source, said, values[:, :2][~np.isnan(values[:, :2])])

    def column_of(place: int) -> Floats | None:
        filled = held(values[:, place])
        return None if filled is None else filled[last]

    def direction(rate: int, delay: int, loss: int) -> Direction:
        rates, ms, share = column_of(rate), column_of(delay), column_of(loss)
        return Direction(
            None if rates is None else RateSeries(starts_s, rate_unit.base(rates), duration_s),
            None if ms is None else StepSeries(starts_s, ms / 1e3, duration_s),
            None if share is None else StepSeries(starts_s, share, duration_s),
        )

    empty = int(np.isnan(values[~all_lost]).sum())
    notes = (
        time_unit.note,
        rate_unit.note,
        "a row applies until the next, the last as long as the median row",
        *((f"{empty} empty cells repeat the value before them",) if empty else ()),
        *(
            (f"{int(all_lost.sum())} rows lost every probe: loss 1; the delay before them applies",)
            if all_lost.any()
            else ()
        ),
        *gap_notes(source, times_s, lines, "the values before it apply"),
    )
    return Trace("starlink-csv", direction(1, 3, 5), direction(0, 2, 4), notes)

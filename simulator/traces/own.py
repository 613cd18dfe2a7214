"""The project's own CSV format of traces, to which all other formats can be converted."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from simulator.core.errors import TraceError, reason
from simulator.core.files import write_atomically
from simulator.traces.arrival_readers import OWN_COLUMNS
from simulator.traces.series import MOST_MBPS, Floats, RateSeries, StepSeries
from simulator.traces.source import Source, held
from simulator.traces.trace import Arrivals, Direction, Trace, on_one_grid
from simulator.traces.units import Told

# Column -> maximum. rtt_ms and loss_pct apply to both directions: half the round trip and the whole loss each.
COLUMNS = {
    "down_mbps": MOST_MBPS,
    "up_mbps": MOST_MBPS,
    "rtt_ms": 1e9,
    "delay_down_ms": 1e9,
    "delay_up_ms": 1e9,
    "loss_pct": 100.0,
    "loss_down_pct": 100.0,
    "loss_up_pct": 100.0,
}


def is_own(source: Source) -> bool:
    return source.has_columns("time_s")


def read_own(source: Source, said: Told) -> Trace:
    """Read time_s and at least one of `COLUMNS`. An empty cell repeats the value above it."""
    table = source.table()
    for name in table.names:
        if name != "time_s" and name not in COLUMNS:
            source.fail(f"column {name[:40]!r} is not known; allowed beside time_s: {', '.join(COLUMNS)}")
    if len(table.names) < 2:
        source.fail(f"has no column but time_s; needed: at least one of {', '.join(COLUMNS)}")
    for both, one in (("rtt_ms", "delay_{}_ms"), ("loss_pct", "loss_{}_pct")):
        for single in (one.format("down"), one.format("up")):
            if both in table.names and single in table.names:
                source.fail(f"columns {both!r} and {single!r} say the same thing twice")
    times_s = table.numbers("time_s")
    source.need_sorted(times_s, table.lines, "time_s")
    twice = np.flatnonzero(np.diff(times_s) == 0)
    if twice.size:
        source.fail(f"time_s {times_s[twice[0]]:g} occurs twice", table.lines[int(twice[0]) + 1])
    if times_s[0] != 0.0:
        source.fail(f"time_s must start at 0, got {times_s[0]:g}", table.lines[0])
    if len(times_s) < 2:
        source.fail("holds one row; at least two are needed, since the last holds as long as the one before it")
    duration_s = round(float(2.0 * times_s[-1] - times_s[-2]), 9)

    empty = sum(not cell for name in table.names for cell in table.texts(name))

    def column_of(name: str) -> Floats | None:
        if name not in table.names:
            return None
        values = table.numbers(name, missing="")
        source.need(~(values > COLUMNS[name]), table.lines, values, f"{name} must be <= {COLUMNS[name]:g}")
        if np.isnan(values[0]):
            source.fail(f"{name} must have a value in the first row", table.lines[0])
        return held(values)

    def steps(value: Floats | None, scale: float) -> StepSeries | None:
        return None if value is None else StepSeries(times_s, value * scale, duration_s)

    def direction(name: str) -> Direction:
        mbps, both = column_of(f"{name}_mbps"), column_of("rtt_ms")
        delay_ms = both / 2.0 if both is not None else column_of(f"delay_{name}_ms")
        loss_pct = column_of("loss_pct" if "loss_pct" in table.names else f"loss_{name}_pct")
        rate = None if mbps is None else RateSeries(times_s, mbps * 1e6, duration_s)
        return Direction(rate, steps(delay_ms, 1e-3), steps(loss_pct, 1e-2))

    notes = (f"{empty} empty cells repeat the value above them",) if empty else ()
    return Trace("ciar-sim-csv", direction("down"), direction("up"), notes)


def as_own(trace: Trace | Arrivals) -> Trace | Arrivals:
    """Return the trace as the form can hold it, with a note about what is left out."""
    if isinstance(trace, Arrivals):
        return trace
    ways = (trace.down, trace.up)
    parts = {
        "packet trains": any(way.trains is not None for way in ways),
        "the additional delay by packet size": any(way.size_delays_s is not None for way in ways),
    }
    if not any(parts.values()):
        return trace
    down, up = (replace(way, trains=None, size_delays_s=None) for way in ways)
    note = f"left out, as this form cannot hold it: {' and '.join(part for part, there in parts.items() if there)}"
    return replace(trace, down=down, up=up, notes=(*trace.notes, note))


def own_text(trace: Trace | Arrivals, comment: str = "") -> str:
    """Format a trace as the project's own CSV, with one row for each step of a series. Shorter series repeat.

    Args:
        trace: the trace.
        comment: lines to write before the header, each after `#`.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    if isinstance(trace, Arrivals):
        tokens = [(name, getattr(trace, name)) for name in OWN_COLUMNS[1:]]
        columns = [(name, values) for name, values in tokens if values is not None]
        head += ",".join(["requested_s", *(name for name, _ in columns)]) + "\n"
        rows = zip(
            map(_text, trace.requested_s.tolist()), *(map(str, values.tolist()) for _, values in columns), strict=True
        )
        return head + "".join(",".join(row) + "\n" for row in rows)
    series = _columns(trace)
    duration_s = trace.duration_s
    times_s, values = on_one_grid([one for _, one, _ in series], duration_s)
    scaled = np.array([held_values * scale for held_values, (_, _, scale) in zip(values, series, strict=True)])
    # The last row lasts as long as the one before it, so a last interval of another length is written as two halves.
    if len(times_s) < 2 or abs(duration_s - 2.0 * times_s[-1] + times_s[-2]) > 1e-8:
        times_s, scaled = (
            np.append(times_s, (times_s[-1] + duration_s) / 2.0),
            np.append(scaled, scaled[:, -1:], axis=1),
        )
    head += ",".join(["time_s", *(name for name, _, _ in series)]) + "\n"
    rows_text = (
        ",".join([f"{time:.15g}", *map(_text, row)])
        for time, row in zip(times_s.tolist(), scaled.T.tolist(), strict=True)
    )
    return head + "".join(row + "\n" for row in rows_text)


def _columns(trace: Trace) -> list[tuple[str, RateSeries | StepSeries, float]]:
    """Return (column, series, factor to the column's unit) of every series of the trace."""
    down, up = trace.down, trace.up
    columns: list[tuple[str, RateSeries | StepSeries | None, float]] = [
        ("down_mbps", down.rate, 1e-6),
        ("up_mbps", up.rate, 1e-6),
    ]
    if _same(down.delay_s, up.delay_s):
        columns.append(("rtt_ms", down.delay_s, 2e3))
    else:
        columns += [("delay_down_ms", down.delay_s, 1e3), ("delay_up_ms", up.delay_s, 1e3)]
    if _same(down.loss, up.loss):
        columns.append(("loss_pct", down.loss, 1e2))
    else:
        columns += [("loss_down_pct", down.loss, 1e2), ("loss_up_pct", up.loss, 1e2)]
    return [(name, series, scale) for name, series, scale in columns if series is not None]


def _same(one: StepSeries | None, other: StepSeries | None) -> bool:
    if one is None or other is None:
        return one is other
    equal = np.array_equal(one.times_s, other.times_s) and np.array_equal(one.values, other.values)
    return equal and one.duration_s == other.duration_s


def _text(value: float) -> str:
    """Format with twelve digits, which suffice for measurements and hide rounding errors such as 30.000000000000004."""
    return f"{value:.12g}"


def write_own(trace: Trace | Arrivals, path: Path, comment: str = "") -> None:
    """Write `own_text` atomically. Raises TraceError if the file cannot be written."""
    write(path, own_text(trace, comment).encode())


def write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TraceError(f"{path}: cannot be written: {reason(error)}") from None

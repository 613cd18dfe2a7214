"""Readers of logs of phones and probes: G-NetTrack, ping as CSV, RIPE Atlas.

An unanswered ping is a loss. Three or more in a row are an outage, in which every packet is lost. The others give one loss share for
the rest of the log. G-NetTrack and RIPE Atlas state a share for each row or result. A probe crosses the link twice, so each direction
loses 1 - sqrt(1 - share).
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

import numpy as np

from simulator.traces.json_fields import numbers_of
from simulator.traces.series import Floats, RateSeries, StepSeries
from simulator.traces.source import Source, Table, held
from simulator.traces.timing import both_ways, gap_notes, held_rows
from simulator.traces.trace import Trace
from simulator.traces.units import MOST_TIME, Told

DAY_S = 86400.0
OUTAGE_PROBES = 3  # unanswered in a row; at 10 % loss one in a thousand probes begins such a run by chance
SPLIT_S = 5.0  # a longer pause between G-NetTrack rows is a gap; stamps that skip seconds are at most 3 s apart
# Cells of an unanswered probe, in lower case.
UNANSWERED = frozenset(
    [
        "",
        "-",
        "*",
        "nan",
        "n/a",
        "na",
        "none",
        "null",
        "lost",
        "timeout",
        "timed out",
        "request timed out",
        "request timed out.",
    ]
)


def probed(
    name: str, source: Source, times_s: Floats, rtt_ms: Floats, lines: Sequence[int] | None, notes: tuple[str, ...]
) -> Trace:
    """Return the trace of a log with one round trip per probe.

    Args:
        name: the format.
        source: the file, named in errors.
        times_s: float64 [n], send time of each probe, never decreasing.
        rtt_ms: float64 [n], NaN for an unanswered probe.
        lines: line number of each probe, or None.
        notes: what the reader assumed.

    Raises:
        TraceError: a round trip is 0, no probe was answered, all have one time, or a gap is too long (`timing.gap_notes`).
    """
    source_lines = range(len(times_s)) if lines is None else lines
    source.need(
        ~(rtt_ms == 0.0), source_lines, rtt_ms, "a round trip must be > 0 ms (an unanswered probe has no number)"
    )
    delay, last = _held(source, times_s, rtt_ms, "probe", "probes")
    lost = np.isnan(rtt_ms)
    loss = None
    if lost.any():
        outage = _runs(lost)
        share = float((lost & ~outage).sum() / max(1, (~outage).sum()))
        unanswered = np.where(outage, 1.0, share)
        loss = StepSeries(delay.times_s, _each_way(unanswered[last]), delay.duration_s)
        notes = (
            *notes,
            f"{int(lost.sum())} of {len(lost)} probes unanswered: {int(outage.sum())} in outages of {OUTAGE_PROBES} or more "
            f"in a row, where every packet is lost; of the others {100 * share:.3g} %, split evenly over both directions; "
            "the round trip before an unanswered probe holds",
        )
    notes = (*notes, "half the round trip each way", *gap_notes(source, times_s, lines, "the values before it apply"))
    return both_ways(name, delay, loss, notes)


def _held(source: Source, times_s: Floats, rtt_ms: Floats, one: str, several: str) -> tuple[StepSeries, np.ndarray]:
    """Return round trips, each valid until the next, and bool [n], the entries used: the last of those at one time."""
    filled = held(rtt_ms)
    if filled is None:
        source.fail(f"no {one} was answered; allowed: at least one round trip")
    if not (np.diff(times_s) > 0.0).any():
        source.fail(f"two {several} at different times are needed")
    last, starts_s, duration_s = held_rows(times_s)
    return StepSeries(starts_s, filled[last] / 1e3, duration_s), last


def _each_way(share: Floats) -> Floats:
    """Return the loss share of each direction if a share of the probes is unanswered."""
    return 1.0 - np.sqrt(1.0 - share)


def _runs(lost: np.ndarray) -> np.ndarray:
    """Return bool [n], whether each probe is in a run of at least `OUTAGE_PROBES` lost ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(np.int8)))
    found = np.zeros(len(lost), dtype=bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        found[begin:end] = end - begin >= OUTAGE_PROBES
    return found


# --- ping as CSV ------------------------------------------------------------------------------------------------------------


def is_ping_csv(source: Source) -> bool:
    return source.has_columns("Probe Number", "RTT [ms]", "Probe Send Time")


def read_ping_csv(source: Source, said: Told) -> Trace:
    """Read one probe per row, sent at a time of day. A skipped probe number is an unanswered probe; its time is interpolated."""
    table = source.table()
    times_s: list[float] = []
    for text, line in zip(table.texts("Probe Send Time"), table.lines, strict=True):
        try:
            sent = datetime.strptime(text, "%H:%M:%S")
        except ValueError:
            source.fail(f"Probe Send Time {text[:40]!r}; allowed: HH:MM:SS", line)
        time_s = sent.hour * 3600.0 + sent.minute * 60.0 + sent.second
        if times_s and time_s < times_s[-1] - DAY_S / 2.0:  # past midnight
            time_s += DAY_S
        times_s.append(time_s)
    rtt_ms = _round_trips(table, "RTT [ms]")
    source.need_sorted(np.array(times_s), table.lines, "Probe Send Time (in s)")
    numbers = table.numbers("Probe Number")
    source.need(numbers == np.floor(numbers), table.lines, numbers, "Probe Number must be a whole number")
    steps = np.diff(numbers)
    if (steps < 1).any() or steps.sum() > 10 * len(numbers) + 1000:  # no running number: it shows no loss
        return probed("ping-csv", source, np.array(times_s), rtt_ms, table.lines, ())
    every = np.arange(numbers[0], numbers[-1] + 1)
    place = np.searchsorted(numbers, every)
    present = numbers[place] == every
    all_ms = np.where(present, rtt_ms[place], np.nan)
    missing = int((~present).sum())
    notes = (f"{missing} probe numbers are missing: unanswered",) if missing else ()
    lines = np.array(table.lines)[place].tolist()
    return probed(
        "ping-csv", source, np.asarray(np.interp(every, numbers, times_s), dtype=np.float64), all_ms, lines, notes
    )


def _round_trips(table: Table, column: str) -> Floats:
    """Return float64 [rows] in ms, NaN for an unanswered probe."""
    cells = ["" if cell.lower() in UNANSWERED else cell for cell in table.texts(column)]
    values = table.source.parse([[cell] for cell in cells], table.lines, np.nan, column)
    table.source.need(~(values < 0.0), table.lines, values, f"{column} must be > 0, or empty for an unanswered probe")
    return values


# --- RIPE Atlas -------------------------------------------------------------------------------------------------------------


def is_ripe_atlas(source: Source) -> bool:
    return {"msm_id", "prb_id", "timestamp"} <= set(source.first_record)


def read_ripe_atlas(source: Source, said: Told) -> Trace:
    """Read ping results of one probe. A result has a Unix time and the round trips of its packets, usually three."""
    records = source.records()
    times_s = numbers_of(source, records, "timestamp", MOST_TIME)
    rtt_ms, lost = np.full(len(records), np.nan), np.zeros(len(records))
    first = records[0].value
    for i, record in enumerate(records):
        value = record.value
        for key in ("prb_id", "msm_id"):
            if value.get(key) != first[key]:
                found = f"{str(value.get(key))[:20]} beside {str(first[key])[:20]}"
                source.fail(
                    f"key {record.place}{key}: {found}; allowed: one probe and one measurement per file", record.line
                )
        packets = value.get("result")
        if value.get("type", "ping") != "ping" or not isinstance(packets, list) or not packets:
            source.fail(f"key {record.place}result: must be a list of the packets of a ping", record.line)
        # Duplicates and late replies are entries in addition to that of their packet.
        packets = [one for one in packets if not (isinstance(one, dict) and ("dup" in one or "late" in one))]
        if not packets:
            source.fail(f"key {record.place}result: holds late replies and duplicates alone", record.line)
        found_ms = []
        for packet in packets:
            rtt = packet.get("rtt") if isinstance(packet, dict) else None
            if rtt is None:
                continue
            if isinstance(rtt, bool) or not isinstance(rtt, int | float) or not 0 < rtt <= 1e7:
                source.fail(
                    f"key {record.place}result: rtt must be a number > 0 (ms), got {repr(rtt)[:40]}", record.line
                )
            found_ms.append(float(rtt))
        lost[i] = 1.0 - len(found_ms) / len(packets)
        if found_ms:
            rtt_ms[i] = np.mean(found_ms)
    lines = [record.line for record in records]
    source.need_sorted(times_s, lines, "timestamp")
    delay, last = _held(source, times_s, rtt_ms, "packet", "results")
    loss = None
    notes: tuple[str, ...] = (
        "the mean round trip of a result's packets, half of it each way, applies until the next result",
    )
    if lost.any():
        loss = StepSeries(delay.times_s, _each_way(lost[last]), delay.duration_s)
        notes += ("unanswered packets are losses, split evenly over both directions",)
    notes += gap_notes(source, times_s, lines, "the values before it apply")
    return both_ways("ripe-atlas", delay, loss, notes)


# --- G-NetTrack -------------------------------------------------------------------------------------------------------------


def is_gnettrack(source: Source) -> bool:
    return source.has_columns("Timestamp", "NetworkMode", "DL_bitrate")


def read_gnettrack(source: Source, said: Told) -> Trace:
    """Read about one row per second: DL_bitrate and UL_bitrate in kbit/s, PINGAVG in ms and PINGLOSS in percent on some rows.

    Stamps are whole seconds that repeat and skip. The rows between two gaps of more than 5 s are therefore spread evenly. `-` or an
    empty cell repeats the value before it.
    """
    table = source.table()
    stamps = [_stamp(source, text, line) for text, line in zip(table.texts("Timestamp"), table.lines, strict=True)]
    times_s = np.array(stamps)
    source.need_sorted(times_s, table.lines, "Timestamp (in s)")
    duration_s = float(times_s[-1] - times_s[0])
    if duration_s <= 0:
        source.fail("has no duration: two different time stamps are needed")
    kept, starts_s = _spread(times_s - times_s[0])

    def column_of(name: str, scale: float) -> Floats | None:
        if name not in table.names:
            return None
        filled = held(table.numbers(name, missing="-"))
        return None if filled is None else filled * scale

    down, up, ping, lost = (
        column_of(name, scale)
        for name, scale in (("DL_bitrate", 1e3), ("UL_bitrate", 1e3), ("PINGAVG", 1e-3), ("PINGLOSS", 1e-2))
    )
    if down is None:
        source.fail("column 'DL_bitrate' holds no value")
    if lost is not None and lost.max() > 1.0:
        source.fail(f"PINGLOSS must be 0 to 100 %, got {100 * lost.max():g}")
    notes = gap_notes(source, times_s, table.lines, "the values before it apply", repeat=True)
    return both_ways(
        "gnettrack",
        None if ping is None else StepSeries(starts_s, ping[kept], duration_s),
        None if lost is None else StepSeries(starts_s, _each_way(lost[kept]), duration_s),
        notes,
        down=RateSeries(starts_s, down[kept], duration_s),
        up=None if up is None else RateSeries(starts_s, up[kept], duration_s),
    )


def _spread(times_s: Floats) -> tuple[np.ndarray, Floats]:
    """Return the rows kept [k] and their start times [k], evenly spaced between gaps. The last row ends at the last time."""
    borders = [0, *(np.flatnonzero(np.diff(times_s) > SPLIT_S) + 1).tolist(), len(times_s)]
    kept, starts = [], []
    for begin, end in pairwise(borders):
        span_s = float(times_s[end - 1] - times_s[begin])
        if span_s == 0.0:  # the last of rows at one time counts, unless they end the log: they would have no duration
            if times_s[begin] < times_s[-1]:
                kept.append([end - 1])
                starts.append([times_s[begin]])
            continue
        kept.append(list(range(begin, end)))
        starts.append(times_s[begin] + np.arange(end - begin) * (span_s / (end - begin)))
    return np.concatenate(kept), np.concatenate(starts)


def _stamp(source: Source, text: str, line: int) -> float:
    try:
        stamp = datetime.strptime(text, "%Y.%m.%d_%H.%M.%S")
    except ValueError:
        source.fail(f"Timestamp {text[:40]!r}; allowed: YYYY.MM.DD_HH.MM.SS", line)
    return (stamp - datetime(1970, 1, 1)).total_seconds()  # local time without a zone

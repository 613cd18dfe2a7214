"""Readers of other people's network trace files: each takes a `Source` whose content is of its format and gives a `Trace`.

What a line of each format means, and who writes it, stands in docs/traces.md.
"""

from datetime import datetime
from typing import Any, Literal

import numpy as np

from simulator.traces.series import MOST_BPS, Floats, RateSeries, StepSeries
from simulator.traces.source import Source, held
from simulator.traces.trace import Direction, Trace

Way = Literal["down", "up"]

PACKET_BITS = 12_000  # of one mahimahi delivery chance: 1500 bytes
DELAY_SLOT_S = 0.01  # of a LeoReplayer delay file
FILLER_MS = 200.0  # stands for a delay where every probe of the Starlink CSV was lost
LONGEST_GAP_S, LONGEST_GAP_STEPS = 60.0, 100.0  # a time-rate file that jumps further mixes seconds and milliseconds
LATEST_MS = 10**11  # three years
MOST_MBPS = MOST_BPS / 1e6
DAY_S = 86400.0


def one_way(name: str, way: Way, part: Direction) -> Trace:
    return Trace(name, part, Direction()) if way == "down" else Trace(name, Direction(), part)


def both_ways(name: str, rtt_s: StepSeries | None, loss: StepSeries | None, **rates: RateSeries | None) -> Trace:
    """A round trip and a loss that hold alike in both directions."""
    delay_s = None if rtt_s is None else StepSeries(rtt_s.times_s, rtt_s.values / 2.0, rtt_s.duration_s)
    return Trace(name, Direction(rates.get("down"), delay_s, loss), Direction(rates.get("up"), delay_s, loss))


def _edges(times_s: Floats) -> tuple[Floats, np.ndarray]:
    """Start times of the intervals between distinct times, counted from the first; and which interval of the input each is."""
    from_zero = np.asarray(times_s - times_s[0], dtype=np.float64)
    long = np.diff(from_zero) > 0.0
    return from_zero, long


# --- one or two columns of numbers -----------------------------------------------------------------------------------------


def integers(source: Source) -> bool:
    return len(source.first_cells) == 1 and source.first_cells[0].lstrip("+-").isdigit()


def read_integers(source: Source, way: Way) -> Trace:
    """A mahimahi trace (delivery times in ms, never decreasing) or a LeoReplayer delay file (ms per 10-ms slot)."""
    lines, values = source.columns(1)
    times = values[:, 0]
    source.need(times == np.floor(times), lines, times, "must be a whole number of milliseconds")
    source.need(times >= 0, lines, times, "milliseconds must be >= 0")
    source.need(times <= LATEST_MS, lines, times, f"milliseconds must be <= {LATEST_MS}")
    if _wanders(times):
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
    if way == "down" and source.path.suffix == ".up":
        way = "up"
    return one_way("mahimahi", way, Direction(rate=_chances(times), packets=len(times)))


def _wanders(times: Floats) -> bool:
    """Is this a series of delays, not of rising times with a slip in them?

    Delays go up and down around one level, so that their end is nowhere near their start plus all their ups and downs.
    """
    change = np.diff(times)
    if len(times) < 10 or not (change < 0).any() or times.max() >= 5000:
        return False
    return float(times[-1] - times[0]) < 0.3 * float(np.abs(change).sum())


def _chances(times_ms: Floats) -> RateSeries:
    """k chances in one millisecond are k x 12 Mbit/s for that millisecond; the last time is time 0 of the next pass."""
    period_ms = times_ms[-1]
    starts_ms, chances = np.unique(np.where(times_ms == period_ms, 0.0, times_ms), return_counts=True)
    edges_ms = np.unique(np.concatenate([[0.0], starts_ms, starts_ms + 1.0]))
    edges_ms = edges_ms[edges_ms < period_ms]
    rate_bps = np.zeros(len(edges_ms))
    rate_bps[np.searchsorted(edges_ms, starts_ms)] = chances * PACKET_BITS * 1e3
    return RateSeries(edges_ms / 1e3, rate_bps, period_ms / 1e3)


def two_columns(source: Source) -> bool:
    return len(source.first_cells) == 2 and _numbers(source.first_cells)


def _numbers(cells: list[str]) -> bool:
    try:
        return bool([float(cell or "0") for cell in cells])
    except ValueError:
        return False


def read_time_rate(source: Source, way: Way) -> Trace:
    """Seconds and Mbit/s; the rate of a line holds since the time of the line before it, so the first line only sets the start."""
    lines, values = source.columns(2)
    times_s, rates = values.T
    source.need(times_s >= 0, lines, times_s, "time in s must be >= 0")
    source.need_sorted(times_s, lines)
    source.need((rates >= 0) & (rates <= MOST_MBPS), lines, rates, f"rate in Mbit/s must be 0 to {MOST_MBPS:g}")
    steps_s = np.diff(times_s)
    if not (steps_s > 0).any():
        source.fail("has no duration: two different times are needed")
    most_s = max(LONGEST_GAP_S, LONGEST_GAP_STEPS * float(np.median(steps_s[steps_s > 0])))
    wrong = np.flatnonzero(steps_s > most_s)
    if wrong.size:
        found = f"time jumps by {steps_s[wrong[0]]:g} s; allowed: {most_s:g} s (are seconds and milliseconds mixed?)"
        source.fail(found, lines[int(wrong[0]) + 1])
    from_zero, long = _edges(times_s)
    return one_way(
        "time-rate", way, Direction(rate=RateSeries(from_zero[:-1][long], 1e6 * rates[1:][long], from_zero[-1]))
    )


# --- comma-separated --------------------------------------------------------------------------------------------------------


def seven_columns(source: Source) -> bool:
    return len(source.first_cells) == 7 and _numbers(source.first_cells)


def read_starlink(source: Source, way: Way) -> Trace:
    """up Mbit/s, down Mbit/s, up delay ms, down delay ms, up loss, down loss (shares), time ms. An empty cell holds the last value."""
    lines, values = source.columns(7, np.nan)
    source.need(
        ~(values.min(axis=1) < 0),
        lines,
        np.nanmin(np.where(np.isnan(values), np.inf, values), axis=1),
        "all columns must be >= 0",
    )
    for column, name in ((4, "up"), (5, "down")):
        source.need(
            ~(values[:, column] > 1),
            lines,
            values[:, column],
            f"column {column + 1}, {name} loss, must be a share of 0 to 1",
        )
    for column in (0, 1):
        source.need(
            ~(values[:, column] > MOST_MBPS),
            lines,
            values[:, column],
            f"column {column + 1} must be <= {MOST_MBPS:g} Mbit/s",
        )
    times_s = values[:, 6] / 1e3
    source.need(~np.isnan(times_s), lines, times_s, "column 7, time in ms, must not be empty")
    source.need_sorted(times_s, lines)
    all_lost = (values[:, 2:4] == FILLER_MS).all(axis=1) & (values[:, 4:6] == 1.0).all(axis=1)
    values[all_lost, 2:4] = np.nan
    from_zero, long = _edges(times_s)
    if not long.any():
        source.fail("has no duration: two different times are needed")
    last = np.append(long, True)  # of rows at one time the last counts
    starts_s, duration_s = from_zero[last], float(from_zero[-1] + np.median(np.diff(from_zero)[long]))

    def column_of(place: int) -> Floats | None:
        filled = held(values[:, place])
        return None if filled is None else filled[last]

    def direction(rate: int, delay: int, loss: int) -> Direction:
        mbps, ms, share = column_of(rate), column_of(delay), column_of(loss)
        return Direction(
            None if mbps is None else RateSeries(starts_s, 1e6 * mbps, duration_s),
            None if ms is None else StepSeries(starts_s, ms / 1e3, duration_s),
            None if share is None else StepSeries(starts_s, share, duration_s),
        )

    return Trace("starlink-csv", direction(1, 3, 5), direction(0, 2, 4))


def gnettrack(source: Source) -> bool:
    return source.has_columns("Timestamp", "NetworkMode", "DL_bitrate")


def read_gnettrack(source: Source, way: Way) -> Trace:
    """One row about every second, DL_bitrate and UL_bitrate in kbit/s, pings on some rows.

    Stamps are whole seconds that repeat and skip, so the rows are spread evenly from the first to the last. `-` or an empty cell
    holds the last value. A ping's loss is shared by both directions: 1 - sqrt(1 - PINGLOSS).
    """
    table = source.table()
    stamps = [_stamp(source, text, line) for text, line in zip(table.texts("Timestamp"), table.lines, strict=True)]
    times_s = np.array(stamps)
    source.need_sorted(times_s, table.lines, "Timestamp (in s)")
    duration_s = float(times_s[-1] - times_s[0])
    if duration_s <= 0:
        source.fail("has no duration: two different time stamps are needed")
    starts_s = np.arange(len(times_s), dtype=np.float64) * (duration_s / len(times_s))

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
    return both_ways(
        "gnettrack",
        None if ping is None else StepSeries(starts_s, ping, duration_s),
        None if lost is None else StepSeries(starts_s, 1.0 - np.sqrt(1.0 - lost), duration_s),
        down=RateSeries(starts_s, down, duration_s),
        up=None if up is None else RateSeries(starts_s, up, duration_s),
    )


def _stamp(source: Source, text: str, line: int) -> float:
    try:
        return (
            datetime.strptime(text, "%Y.%m.%d_%H.%M.%S") - datetime(1970, 1, 1)
        ).total_seconds()  # local time, no zone told
    except ValueError:
        source.fail(f"Timestamp {text[:40]!r}; allowed: YYYY.MM.DD_HH.MM.SS", line)


def pings(source: Source) -> bool:
    return source.has_columns("Probe Number", "RTT [ms]", "Probe Send Time")


def read_pings(source: Source, way: Way) -> Trace:
    """A probe a row, sent at a time of day; its round trip holds until the next is sent."""
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
    rtt_s = held(table.numbers("RTT [ms]", missing=""))
    source.need_sorted(np.array(times_s), table.lines, "Probe Send Time (in s)")
    from_zero, long = _edges(np.array(times_s))
    if rtt_s is None or not long.any():
        source.fail("two probes at different times are needed")
    last = np.append(long, True)
    duration_s = float(from_zero[-1] + np.median(np.diff(from_zero)[long]))
    return both_ways("ping-csv", StepSeries(from_zero[last], rtt_s[last] / 1e3, duration_s), None)


# --- JSON -------------------------------------------------------------------------------------------------------------------


def sabre(source: Source) -> bool:
    if not source.first.startswith("["):
        return False
    return isinstance(source.json, list) and bool(source.json) and _has(source.json[0], "bandwidth_kbps")


def _has(item: Any, *keys: str) -> bool:
    return isinstance(item, dict) and set(keys) <= set(item)


def read_sabre(source: Source, way: Way) -> Trace:
    """Entries played in order and looped: duration_ms, bandwidth_kbps, latency_ms (a round trip; may be absent from all)."""
    entries = _entries(source, source.json, "")
    duration_s = _values(source, entries, "", "duration_ms") / 1e3
    rate_bps = _values(source, entries, "", "bandwidth_kbps", most=MOST_BPS / 1e3) * 1e3
    rtt_s = None
    if any(entry.get("latency_ms") is not None for entry in entries):
        rtt_s = _played(source, duration_s, _values(source, entries, "", "latency_ms") / 1e3)
    return both_ways("sabre-json", rtt_s, None, **{way: RateSeries(*_segments(source, duration_s, rate_bps, ""))})


def opennetlab(source: Source) -> bool:
    return source.first.startswith("{") and (_has(source.json, "uplink") or _has(source.json, "downlink"))


def read_opennetlab(source: Source, way: Way) -> Trace:
    """Per direction a trace_pattern of duration ms, capacity kbit/s and, where told, loss (a share) and rtt (ms).

    A missing loss or rtt, and an rtt of 0, leave what was before. `jitter` and `type` are not read.
    """
    ways: dict[str, Direction] = {}
    rtt_s: list[StepSeries] = []
    for key in ("downlink", "uplink"):
        section = source.json.get(key)
        if section is not None and not isinstance(section, dict):
            source.fail(f"key {key}: must be an object, got {_found(section)}")
        if not section or section.get("trace_pattern") in (None, []):
            ways[key] = Direction()
            continue
        place = f"{key}.trace_pattern"
        entries = _entries(source, section["trace_pattern"], place)
        duration_s = _values(source, entries, place, "duration") / 1e3
        rate_bps = _values(source, entries, place, "capacity", most=MOST_BPS / 1e3) * 1e3
        loss = held(_values(source, entries, place, "loss", most=1.0, missing=np.nan))
        rtt_ms = _values(source, entries, place, "rtt", missing=np.nan)
        rtt = held(np.where(rtt_ms == 0.0, np.nan, rtt_ms))
        if rtt is not None:
            rtt_s.append(_played(source, duration_s, rtt / 1e3))
        ways[key] = Direction(
            RateSeries(*_segments(source, duration_s, rate_bps, place)),
            loss=None if loss is None else _played(source, duration_s, loss),
        )
    if ways["downlink"].rate is None and ways["uplink"].rate is None:
        source.fail("neither downlink nor uplink holds a trace_pattern")
    # Where one direction alone tells the round trip, the other shares it; where both do, each gives its own half.
    halves = [StepSeries(one.times_s, one.values / 2.0, one.duration_s) for one in rtt_s]
    down, up = ways["downlink"], ways["uplink"]
    if not halves:
        return Trace("opennetlab-json", down, up)
    return Trace("opennetlab-json", Direction(down.rate, halves[0], down.loss), Direction(up.rate, halves[-1], up.loss))


def pantheon(source: Source) -> bool:
    return source.first.startswith("{") and _has(source.json, "timestamps", "bandwidths")


def read_pantheon(source: Source, way: Way) -> Trace:
    """timestamps s, bandwidths Mbit/s that hold up to their time stamp, delays ms ONE-WAY, loss (a share). Not read: queue, delay_noise."""
    data = source.json
    times_s = _list(source, data, "timestamps")
    rates = _list(source, data, "bandwidths", most=MOST_MBPS)
    if len(times_s) != len(rates):
        source.fail(f"key bandwidths: holds {len(rates)} values; allowed: {len(times_s)}, as many as timestamps")
    for i in np.flatnonzero(np.diff(times_s) < 0):
        source.fail(f"key timestamps[{i + 1}]: {times_s[i + 1]:g} after {times_s[i]:g}; allowed: never decreasing")
    from_zero, long = _edges(times_s)
    if not long.any():
        source.fail("key timestamps: no duration; two different times are needed")
    starts_s, duration_s = from_zero[:-1][long], float(from_zero[-1])

    def spread(key: str, most: float) -> StepSeries | None:
        if data.get(key) is None:
            return None
        whole = data if isinstance(data[key], list) else {key: [data[key]]}
        values = _list(source, whole, key, most=most)
        if len(values) == 1:
            return StepSeries(np.zeros(1), values, duration_s)
        if len(values) != len(times_s):
            source.fail(f"key {key}: holds {len(values)} values; allowed: 1 or {len(times_s)}, as many as timestamps")
        return StepSeries(starts_s, values[1:][long], duration_s)

    delay_ms, loss = spread("delays", 1e9), spread("loss", 1.0)
    delay_s = None if delay_ms is None else StepSeries(delay_ms.times_s, delay_ms.values / 1e3, duration_s)
    rate = RateSeries(starts_s, 1e6 * rates[1:][long], duration_s)
    down, up = (
        Direction(rate if way == one else None, delay_s, loss if way == one else None) for one in ("down", "up")
    )
    return Trace("pantheon-json", down, up)


def _found(value: Any) -> str:
    return repr(value)[:40]


def _number(source: Source, value: Any, place: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        source.fail(f"key {place}: must be a number, got {_found(value)}")
    if not 0 <= value <= most:
        source.fail(f"key {place}: must be 0 to {most:g}, got {_found(value)}")
    return float(value)


def _list(source: Source, data: dict[str, Any], key: str, most: float = 1e12) -> Floats:
    if not isinstance(data[key], list) or not data[key]:
        source.fail(f"key {key}: must be a list of numbers, got {_found(data[key])}")
    return np.array([_number(source, value, f"{key}[{i}]", most) for i, value in enumerate(data[key])])


def _entries(source: Source, entries: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not entries:
        source.fail(f"key {place or '(top)'}: must be a list of objects, got {_found(entries)}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            source.fail(f"key {place}[{i}]: must be an object, got {_found(entry)}")
    return entries


def _values(
    source: Source,
    entries: list[dict[str, Any]],
    place: str,
    key: str,
    most: float = 1e12,
    missing: float | None = None,
) -> Floats:
    """float64 [entries] of one key. missing: what an absent key stands for; None where it must be there."""
    values = np.empty(len(entries))
    for i, entry in enumerate(entries):
        if entry.get(key) is not None:
            values[i] = _number(source, entry[key], f"{place}[{i}].{key}", most)
        elif missing is None:
            source.fail(f"key {place}[{i}].{key}: is missing; found: {', '.join(map(str, entry)) or 'nothing'}")
        else:
            values[i] = missing
    return values


def _segments(source: Source, durations_s: Floats, values: Floats, place: str) -> tuple[Floats, Floats, float]:
    """Start times, values and whole duration of segments played in order; a segment of no duration says nothing."""
    if not durations_s.sum() > 0.0:
        source.fail(f"key {place or '(top)'}: the durations add up to 0; allowed: > 0")
    ends_s = np.cumsum(durations_s)
    starts_s = np.append(0.0, ends_s[:-1])
    long = ends_s > starts_s
    return starts_s[long], values[long], float(ends_s[-1])


def _played(source: Source, durations_s: Floats, values: Floats) -> StepSeries:
    return StepSeries(*_segments(source, durations_s, values, ""))

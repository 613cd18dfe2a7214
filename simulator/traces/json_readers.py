"""Readers of network traces in JSON: Sabre, OpenNetLab, Genet/Pantheon, iperf3.

Each reader takes a `Source` of its format and the user's `Told`. docs/traces.md explains the keys.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from simulator.traces.json_fields import found, has_keys, number_list, numbers_of, objects
from simulator.traces.series import MOST_BPS, MOST_MBPS, Floats, RateSeries, StepSeries
from simulator.traces.source import Record, Source, held
from simulator.traces.timing import both_ways, gap_notes, intervals, way_of
from simulator.traces.trace import Direction, Trace
from simulator.traces.units import Told, unit_of_steps

# --- Sabre ------------------------------------------------------------------------------------------------------------------


def is_sabre(source: Source) -> bool:
    head = source.json_head()
    return isinstance(head, list) and bool(head) and has_keys(head[0], "bandwidth_kbps")


def read_sabre(source: Source, said: Told) -> Trace:
    """Read entries that are played in order and looped: duration_ms, bandwidth_kbps, latency_ms (a round trip; in all or none)."""
    entries = objects(source, source.json(), "")
    duration_s = numbers_of(source, entries, "duration_ms") / 1e3
    rate_bps = numbers_of(source, entries, "bandwidth_kbps", MOST_BPS / 1e3) * 1e3
    rtt_s = None
    if any(entry.value.get("latency_ms") is not None for entry in entries):
        rtt_s = _played(source, duration_s, numbers_of(source, entries, "latency_ms") / 1e3)
    rate = RateSeries(*_segments(source, duration_s, rate_bps, ""))
    if way_of(source, said) == "down":
        return both_ways("sabre-json", rtt_s, None, down=rate)
    return both_ways("sabre-json", rtt_s, None, up=rate)


# --- OpenNetLab -------------------------------------------------------------------------------------------------------------


def is_opennetlab(source: Source) -> bool:
    head = source.json_head()
    return any(
        has_keys(head, key) and (head[key] is None or isinstance(head[key], dict)) for key in ("uplink", "downlink")
    )


def read_opennetlab(source: Source, said: Told) -> Trace:
    """Read a trace_pattern per direction: duration (ms), capacity (kbit/s) and optionally loss (a share) and rtt (ms)."""
    data = source.json()
    ways: dict[str, Direction] = {}
    rtt_s: list[StepSeries] = []
    for key in ("downlink", "uplink"):
        section = data.get(key)
        if section is not None and not isinstance(section, dict):
            source.fail(f"key {key}: must be an object, got {found(section)}")
        if not section or section.get("trace_pattern") in (None, []):
            ways[key] = Direction()
            continue
        place = f"{key}.trace_pattern"
        entries = objects(source, section["trace_pattern"], place)
        duration_s = numbers_of(source, entries, "duration") / 1e3
        rate_bps = numbers_of(source, entries, "capacity", MOST_BPS / 1e3) * 1e3
        loss = held(numbers_of(source, entries, "loss", 1.0, missing=np.nan))
        rtt_ms = numbers_of(source, entries, "rtt", missing=np.nan)
        rtt = held(np.where(rtt_ms == 0.0, np.nan, rtt_ms))
        if rtt is not None:
            rtt_s.append(_played(source, duration_s, rtt / 1e3))
        ways[key] = Direction(
            RateSeries(*_segments(source, duration_s, rate_bps, place)),
            loss=None if loss is None else _played(source, duration_s, loss),
        )
    down, up = ways["downlink"], ways["uplink"]
    if down.rate is None and up.rate is None:
        source.fail("neither downlink nor uplink holds a trace_pattern")
    # If only one direction has a round trip, both take half of it. If both have one, each takes half of its own.
    halves = [replace(one, values=one.values / 2.0) for one in rtt_s]
    if not halves:
        return Trace("opennetlab-json", down, up)
    notes = ("half the round trip each way",)
    return Trace(
        "opennetlab-json", Direction(down.rate, halves[0], down.loss), Direction(up.rate, halves[-1], up.loss), notes
    )


# --- Genet, Pantheon --------------------------------------------------------------------------------------------------------


def is_pantheon(source: Source) -> bool:
    return has_keys(source.json_head(), "timestamps", "bandwidths")


def read_pantheon(source: Source, said: Told) -> Trace:
    """Read timestamps (s), bandwidths (Mbit/s), delays (one-way, ms) and loss (a share). A value applies from its time stamp on.

    The last time stamp is the end of the trace, so the last value is not used.
    """
    data = source.json()
    times_s = number_list(source, data, "timestamps")
    rates = number_list(source, data, "bandwidths", most=MOST_MBPS)
    if len(times_s) != len(rates):
        source.fail(f"key bandwidths: holds {len(rates)} values; allowed: {len(times_s)}, as many as timestamps")
    for i in np.flatnonzero(np.diff(times_s) < 0):
        source.fail(f"key timestamps[{i + 1}]: {times_s[i + 1]:g} after {times_s[i]:g}; allowed: never decreasing")
    if not (np.diff(times_s) > 0).any():
        source.fail("key timestamps: no duration; two different times are needed")
    time_unit = unit_of_steps(source, said, times_s, "s")
    times_s = time_unit.base(times_s - times_s[0])
    from_zero, long = intervals(times_s)
    starts_s, duration_s = from_zero[:-1][long], float(from_zero[-1])

    def series_of(key: str, most: float) -> StepSeries | None:
        if data.get(key) is None:
            return None
        whole = data if isinstance(data[key], list) else {key: [data[key]]}
        values = number_list(source, whole, key, most=most)
        if len(values) == 1:
            return StepSeries(np.zeros(1), values, duration_s)
        if len(values) != len(times_s):
            source.fail(f"key {key}: holds {len(values)} values; allowed: 1 or {len(times_s)}, as many as timestamps")
        return StepSeries(starts_s, values[:-1][long], duration_s)

    delay_ms, loss = series_of("delays", 1e9), series_of("loss", 1.0)
    delay_s = None if delay_ms is None else replace(delay_ms, values=delay_ms.values / 1e3)
    rate = RateSeries(starts_s, 1e6 * rates[:-1][long], duration_s)
    way = way_of(source, said)
    down, up = (
        Direction(rate if way == one else None, delay_s, loss if way == one else None) for one in ("down", "up")
    )
    notes = (time_unit.note, *gap_notes(source, times_s, None, "the values before it apply"))
    return Trace("pantheon-json", down, up, notes)


# --- iperf3 -----------------------------------------------------------------------------------------------------------------


def is_iperf3(source: Source) -> bool:
    head = source.json_head()
    return has_keys(head, "start", "intervals", "end") or (has_keys(head, "event", "data") and head["event"] == "start")


def read_iperf3(source: Source, said: Told) -> Trace:
    """Read the intervals of `iperf3 --json` or `--json-stream`.

    The client is the device: it sends on the uplink, receives on the downlink with --reverse, and does both with --bidir. The server's
    file has the same flows, as measured at the server.
    """
    data = _iperf3_events(source) if "event" in source.json_head() else source.json()
    if isinstance(data.get("error"), str):
        source.fail(f"iperf3 ended with an error: {data['error'][:60]!r}; allowed: finished tests")
    entries = objects(source, data["intervals"], "intervals")
    start = data["start"] if isinstance(data["start"], dict) else {}
    test = start.get("test_start")
    test = test if isinstance(test, dict) else {}
    server = "accepted_connection" in start
    forward: tuple[str, str] = ("down", "up") if test.get("reverse") in (1, True) else ("up", "down")
    rates: dict[str, RateSeries] = {}
    gaps: list[str] = []
    sent: list[str] = []  # directions whose rate is the sender's
    for key, way in zip(("sum", "sum_bidir_reverse"), forward, strict=True):
        kept = [
            Record(0, f"{entry.place}{key}.", flow)
            for entry in entries
            if isinstance(flow := entry.value.get(key), dict) and flow.get("omitted") is not True
        ]
        if kept:
            rates[way], found_gaps = _iperf3_rate(source, kept, key)
            gaps += [note for note in found_gaps if note not in gaps]
            if kept[0].value.get("sender", (way == "up") != server) is True:  # versions before 3.7 do not write the key
                sent.append(f"{way}link")
    if not rates:
        source.fail("key intervals: none holds a sum that was not omitted; allowed: at least one")
    notes = ["the iperf3 client is the device", "rates are those of the flow in each interval", *gaps]
    if test.get("protocol") == "UDP" and sent:
        other = "client" if server else "server"
        notes.append(
            f"UDP: of the {' and '.join(sent)} the rate that was sent, which is not what arrived; that is in the {other}'s file"
        )
    return Trace("iperf3-json", Direction(rate=rates.get("down")), Direction(rate=rates.get("up")), tuple(notes))


def _iperf3_events(source: Source) -> dict[str, Any]:
    """Convert the output of `--json-stream`, one object per line, to the object that `--json` writes at the end."""
    data: dict[str, Any] = {"intervals": []}
    for record in source.records():
        event = record.value.get("event")
        if event == "interval":
            data["intervals"].append(record.value.get("data"))
        elif event == "start" and "start" in data:
            source.fail("a second test begins; allowed: one a file", record.line)
        else:
            data[str(event)] = record.value.get("data")
    return data


def _iperf3_rate(source: Source, kept: list[Record], key: str) -> tuple[RateSeries, tuple[str, ...]]:
    """Return the rate, and notes on missing intervals."""
    starts_s, ends_s = numbers_of(source, kept, "start", 1e9), numbers_of(source, kept, "end", 1e9)
    rate_bps = numbers_of(source, kept, "bits_per_second", MOST_BPS)
    for i in np.flatnonzero((ends_s < starts_s) | (np.diff(starts_s, prepend=starts_s[0]) < 0.0)):
        place = kept[i].place.rstrip(".")
        source.fail(f"key {place}: start and end must rise, got {starts_s[i]:g} and {ends_s[i]:g}")
    edges_s = np.append(starts_s, ends_s[-1]) - starts_s[0]
    from_zero, long = intervals(edges_s)
    if not long.any():
        source.fail(f"key intervals: {key} has no duration; allowed: > 0 s")
    notes = gap_notes(source, edges_s, None, "the rate before it applies")
    return RateSeries(from_zero[:-1][long], rate_bps[long], float(from_zero[-1])), notes


def _segments(source: Source, durations_s: Floats, values: Floats, place: str) -> tuple[Floats, Floats, float]:
    """Return start times, values and total duration of segments played in order. Segments of duration 0 are dropped."""
    if not durations_s.sum() > 0.0:
        source.fail(f"key {place or '(top)'}: the durations add up to 0; allowed: > 0")
    ends_s = np.cumsum(durations_s)
    starts_s = np.append(0.0, ends_s[:-1])
    long = ends_s > starts_s
    return starts_s[long], values[long], float(ends_s[-1])


def _played(source: Source, durations_s: Floats, values: Floats) -> StepSeries:
    return StepSeries(*_segments(source, durations_s, values, ""))

"""Readers of logs of phones and probes: G-NetTrack, ping as CSV, the output of `ping`, RIPE Atlas.

An unanswered probe is a loss. Three or more in a row are an outage, in which every packet is lost; the others make a share that is
the same over the rest of the log. A probe crosses the link twice, so each direction loses 1 - sqrt(1 - share).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
SPLIT_S = 5.0  # between G-NetTrack rows; stamps that skip are at most 3 s apart
# As cells, in lower case.
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
    """A trace of single probes.

    Args:
        name: of the format.
        source: the file, named in errors.
        times_s: float64 [n], when each probe was sent, never decreasing.
        rtt_ms: float64 [n], NaN for an unanswered probe.
        lines: line number of each probe, or None.
        notes: what the reader assumed.
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
    notes = (*notes, "half the round trip each way", *gap_notes(source, times_s, lines, "the values before it hold"))
    return both_ways(name, delay, loss, notes)


def _held(source: Source, times_s: Floats, rtt_ms: Floats, one: str, several: str) -> tuple[StepSeries, np.ndarray]:
    """Round trips that hold until the next one; bool [n], the entries that count, of those at one time the last."""
    filled = held(rtt_ms)
    if filled is None:
        source.fail(f"no {one} was answered; allowed: at least one round trip")
    if not (np.diff(times_s) > 0.0).any():
        source.fail(f"two {several} at different times are needed")
    last, starts_s, duration_s = held_rows(times_s)
    return StepSeries(starts_s, filled[last] / 1e3, duration_s), last


def _each_way(share: Floats) -> Floats:
    """The share of packets that each direction loses where `share` of the probes have no answer."""
    return 1.0 - np.sqrt(1.0 - share)


def _runs(lost: np.ndarray) -> np.ndarray:
    """bool [n]: whether each probe is in a run of at least `OUTAGE_PROBES` lost ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(np.int8)))
    found = np.zeros(len(lost), dtype=bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        found[begin:end] = end - begin >= OUTAGE_PROBES
    return found


# --- ping as CSV ------------------------------------------------------------------------------------------------------------


def is_ping_csv(source: Source) -> bool:
    return source.has_columns("Probe Number", "RTT [ms]", "Probe Send Time")


def read_ping_csv(source: Source, said: Told) -> Trace:
    """A probe a row, sent at a time of day. A skipped probe number is an unanswered probe; its time is interpolated."""
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
    if (steps < 1).any() or steps.sum() > 10 * len(numbers) + 1000:  # no running number: nothing is missing by it
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
    """float64 [rows], ms; NaN for an unanswered probe."""
    cells = ["" if cell.lower() in UNANSWERED else cell for cell in table.texts(column)]
    values = table.source.parse([[cell] for cell in cells], table.lines, np.nan)
    table.source.need(~(values < 0.0), table.lines, values, f"{column} must be > 0, or empty for an unanswered probe")
    return values


# --- output of `ping` -------------------------------------------------------------------------------------------------------

# Linux translates all of a line but the numbers of a probe: `64 octets de x : icmp_seq=1 ttl=9 temps=0,1 ms`.
_TIME = r"(?<![^\s:])[^\W\d_]+[=<]\s*(\d+(?:[.,]\d+)?)\s*ms\b"
_NUMBER = r"\bicmp_seq[=\s](\d+)\b"
_REPLY = re.compile(rf"{_NUMBER}.*?{_TIME}")  # Linux, macOS, BusyBox with seq= below
_REPLY_BUSYBOX = re.compile(rf" bytes from .*?\bseq=(\d+)\b.*?{_TIME}")  # httping has a seq= of its own
_REPLY_WINDOWS = re.compile(rf"^Reply from \S+:(?: bytes=\d+.*?)? {_TIME}")  # tcping's replies name a port
_REPLY_TRANSLATED = re.compile(r"[=<]\s?\d+\s?ms TTL=\d+$")  # of Windows, whose lost probes have words alone
_NO_REPLY_WINDOWS = re.compile(
    r"^(Request timed out|Reply from |General failure|Hardware error|PING: transmit failed|Destination .*unreachable)"
)
_NO_REPLY = re.compile(_NUMBER)
_NO_TIME = re.compile(r" bytes from |\bttl=\d|^Reply from .*\d\s?ms\b")  # a reply, though none with a time= of its own
_STAMP = re.compile(
    r"^\[?(?:(\d{9,}(?:\.\d+)?)|(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?))\b"
)  # ping -D, or a script
_OTHER_STAMP = re.compile(r"^.{0,30}\d\d:\d\d:\d\d.{0,12}(?:\d+ bytes from|Reply from)")
_HEAD = re.compile(r"\bPING6?[ (]|\bPinging ")
_SENT = re.compile(r"^(\d+)\s(?:packets transmitted|[^\d,]+,\s*\d+\s[^\d]+.*\d\s?%)")  # or in another language
_RECEIVED = re.compile(r"^\d+[^\d,]+,\s*([1-9]\d*)\b")
_TOOK = re.compile(r"\b(\d+)\s*ms$")
_FAST = re.compile(
    r"\bpipe \d|\bipg/ewma\b"
)  # ends the statistics of probes sent before the last reply, or by its arrival
LEAST_STEP_S = 0.19  # between probes of a user who is not root, 0.2 s by default
MOST_PROBES = 10**7
SEQUENCE = 65536  # numbers of probes begin again after it


def is_ping_text(source: Source) -> bool:
    patterns: tuple[re.Pattern[str], ...] = (_REPLY, _REPLY_BUSYBOX, _REPLY_WINDOWS, _REPLY_TRANSLATED)
    lines = source.lines[:20]
    if _HEAD.search(source.first):  # such a log may begin in an outage, or be one
        patterns += (_NO_REPLY, _NO_REPLY_WINDOWS, _SENT)
        lines = source.lines
    return any(pattern.search(text) for _, text in lines for pattern in patterns)


@dataclass
class _PingLog:
    """What the output of `ping` says.

    Attributes:
        replies: by number of the probe, the line of its reply and the round trip in ms.
        sent_s: by number, when the probe was sent by the time stamp of its reply.
        fractions: whether a time stamp has a fraction of a second.
        below: replies of which a round trip below a number is told, such as time<1ms.
        first: the lowest number of a probe; None without one.
        last: the highest; -1 without one.
        other_stamps: whether replies have time stamps of an unknown form.
        ended: the line of the statistics at the end; 0 without them.
        sent: probes by the statistics.
        took_ms: their time by the statistics, where these say it.
    """

    replies: dict[int, tuple[int, float]] = field(default_factory=dict)
    sent_s: dict[int, float] = field(default_factory=dict)
    fractions: bool = False
    below: int = 0
    first: int | None = None
    last: int = -1
    other_stamps: bool = False
    ended: int = 0
    sent: int = 0
    took_ms: float | None = None


def read_ping_text(source: Source, said: Told) -> Trace:
    """What `ping` prints on Linux, macOS, BusyBox or, in English, Windows. Numbers without a reply are unanswered probes."""
    log = _ping_log(source)
    first = min(log.first or 0, 1) if log.sent else (log.first or 0)
    heard = log.last - first + 1
    count = max(heard, log.sent)
    if count > min(MOST_PROBES, heard + SEQUENCE):
        source.fail(
            f"{log.sent} packets transmitted, of which the last reply is to number {log.last}; allowed: up to {SEQUENCE} more"
        )
    received = next((_RECEIVED.search(text) for line, text in source.lines if line == log.ended), None)
    if received and int(received[1]) > len(log.replies):
        there = f"{len(log.replies)} replies: lines are missing" if log.replies else "no reply (ping -q?)"
        source.fail(
            f"says that {received[1]} of {log.sent} probes were answered, and the log holds {there}; allowed: a line a reply",
            log.ended,
        )
    unanswered = (source.lines[0][0], np.nan)
    probes = [log.replies.get(number, unanswered) for number in range(first, first + count)]
    step_s, note = _ping_step(source, log)
    notes: tuple[str, ...] = (note,)
    if log.below:
        notes += (f"{log.below} round trips that ping tells as below a number (time<1ms) are taken as that",)
    times_s = _ping_times(log, np.arange(first, first + count, dtype=np.float64), step_s)
    return probed("ping-text", source, times_s, np.array([ms for _, ms in probes]), [line for line, _ in probes], notes)


def _ping_log(source: Source) -> _PingLog:
    log = _PingLog()
    turn = 0  # what a number lacks after numbers began again
    for line, text in source.lines:
        reply = _REPLY.search(text) or _REPLY_BUSYBOX.search(text)
        windows = _REPLY_WINDOWS.search(text)
        numbered = reply or _NO_REPLY.search(text)
        if numbered:
            number = int(numbered[1]) + turn
            if number < log.last - SEQUENCE // 2:
                turn += SEQUENCE
                number += SEQUENCE
        elif windows or _NO_REPLY_WINDOWS.search(text):
            number = log.last + 1
        elif _REPLY_TRANSLATED.search(text):
            source.fail("a reply of Windows in another language; allowed: ping of Windows in English", line)
        else:
            sent, took = _SENT.search(text), _TOOK.search(text)
            if sent:
                log.sent, log.ended = int(sent[1]), line
                log.took_ms = float(took[1]) if took else None
            continue
        if log.ended:
            source.fail(f"a probe stands after the statistics of line {log.ended}; allowed: one log a file", line)
        if not reply and not windows and _NO_TIME.search(text):
            source.fail("a reply without its time in ms; allowed: time=NUMBER ms", line)
        if reply and number in log.replies and "DUP!" not in text:
            source.fail(
                f"icmp_seq {number - turn} is answered on line {log.replies[number][0]} already; allowed: one log a file",
                line,
            )
        if number - max(log.last, 0) > SEQUENCE:
            source.fail(f"icmp_seq {number} stands far after {log.last}; allowed: numbers that rise", line)
        log.last = max(log.last, number)
        log.first = number if log.first is None else min(log.first, number)
        answer = reply or windows
        if answer and number not in log.replies:  # a second reply to one probe is a duplicate
            ms = float(answer.groups()[-1].replace(",", "."))
            log.replies[number] = (line, ms)
            log.below += "<" in answer[0]
            stamp = _STAMP.search(text)
            if stamp:
                stamp_s = _seconds(source, stamp, line)
                log.sent_s[number] = stamp_s - ms / 1e3
                log.fractions = log.fractions or stamp_s % 1.0 != 0.0
            elif _OTHER_STAMP.search(text):
                log.other_stamps = True
    return log


def _ping_step(source: Source, log: _PingLog) -> tuple[float, str]:
    """Seconds between probes, and how they are known: by time stamps, by the statistics, else by the default of ping."""
    if len(log.sent_s) > 1 and (span_s := max(log.sent_s.values()) - min(log.sent_s.values())) > 0:
        step_s = span_s / (max(log.sent_s) - min(log.sent_s))
        return step_s, f"probes {step_s:.4g} s apart, by the time stamps"
    default = "probes 1 s apart, assumed: the default of ping; "
    if log.took_ms is None or log.sent < 2:
        return 1.0, default + (
            "the form of its time stamps is not known" if log.other_stamps else "the output tells no times"
        )
    step_s = log.took_ms / 1e3 / (log.sent - 1)
    fast = any(_FAST.search(text) for _, text in source.lines)
    if log.took_ms == 0 or (log.took_ms < 1e3 and step_s < LEAST_STEP_S and not fast):
        # iputils of 2018 prints the time without its whole seconds: 60 probes in 59.06 s are "time 60ms".
        return 1.0, default + (
            f"the statistics at the end say {log.took_ms:g} ms for {log.sent} probes, "
            "from which some versions of ping leave out whole seconds"
        )
    return step_s, f"probes {step_s:.4g} s apart, by the statistics at the end"


def _ping_times(log: _PingLog, numbers: Floats, step_s: float) -> Floats:
    """When each probe was sent: by time stamps with fractions of a second, so that a pause stays one; else evenly."""
    known = sorted(log.sent_s)
    if len(known) < 2 or not log.fractions:
        return (numbers - numbers[:1]) * step_s
    sent_s = np.maximum.accumulate([log.sent_s[number] - log.sent_s[known[0]] for number in known])
    beyond = numbers - np.clip(numbers, known[0], known[-1])
    return np.asarray(np.interp(numbers, known, sent_s) + beyond * step_s, dtype=np.float64)


def _seconds(source: Source, stamp: re.Match[str], line: int) -> float:
    """A time stamp in seconds; a date without a zone is taken as UTC."""
    if stamp[1]:
        return float(stamp[1])
    try:
        return datetime.fromisoformat(stamp[2].replace(",", ".")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        source.fail(f"{stamp[2]!r} is no time; allowed: YYYY-MM-DD HH:MM:SS with any fraction", line)


# --- RIPE Atlas -------------------------------------------------------------------------------------------------------------


def is_ripe_atlas(source: Source) -> bool:
    return {"msm_id", "prb_id", "timestamp"} <= set(source.first_record)


def read_ripe_atlas(source: Source, said: Told) -> Trace:
    """Ping results of one probe: per result a Unix time and the round trips of its packets, mostly three."""
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
                    f"key {record.place}{key}: {found}; allowed: one probe and one measurement a file", record.line
                )
        packets = value.get("result")
        if value.get("type", "ping") != "ping" or not isinstance(packets, list) or not packets:
            source.fail(f"key {record.place}result: must be a list of the packets of a ping", record.line)
        # A duplicate, and a reply too late to count, stand beside the entry of their packet.
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
        "the mean round trip of a result's packets, half of it each way, holds until the next result",
    )
    if lost.any():
        loss = StepSeries(delay.times_s, _each_way(lost[last]), delay.duration_s)
        notes += ("unanswered packets are losses, split evenly over both directions",)
    notes += gap_notes(source, times_s, lines, "the values before it hold")
    return both_ways("ripe-atlas", delay, loss, notes)


# --- G-NetTrack -------------------------------------------------------------------------------------------------------------


def is_gnettrack(source: Source) -> bool:
    return source.has_columns("Timestamp", "NetworkMode", "DL_bitrate")


def read_gnettrack(source: Source, said: Told) -> Trace:
    """One row about every second, DL_bitrate and UL_bitrate in kbit/s, pings on some rows.

    Stamps are whole seconds that repeat and skip, so rows are spread evenly from the first to the last, in each stretch without a
    gap of more than 5 s. `-` or an empty cell holds the last value.
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
    notes = gap_notes(source, times_s, table.lines, "the values before it hold", repeat=True)
    return both_ways(
        "gnettrack",
        None if ping is None else StepSeries(starts_s, ping[kept], duration_s),
        None if lost is None else StepSeries(starts_s, _each_way(lost[kept]), duration_s),
        notes,
        down=RateSeries(starts_s, down[kept], duration_s),
        up=None if up is None else RateSeries(starts_s, up[kept], duration_s),
    )


def _spread(times_s: Floats) -> tuple[np.ndarray, Floats]:
    """Rows that are kept [k], and their start times [k]: even in each stretch between gaps. The last row ends at the last time."""
    borders = [0, *(np.flatnonzero(np.diff(times_s) > SPLIT_S) + 1).tolist(), len(times_s)]
    kept, starts = [], []
    for begin, end in pairwise(borders):
        span_s = float(times_s[end - 1] - times_s[begin])
        if span_s == 0.0:  # of rows at one time the last counts; the last row of all needs time to hold
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

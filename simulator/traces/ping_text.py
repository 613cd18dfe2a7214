"""Reader of the output of `ping`, on Linux in any language, macOS and BusyBox, and on Windows in English."""

import re
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from simulator.traces.probe_readers import probed
from simulator.traces.series import Floats
from simulator.traces.source import Source
from simulator.traces.trace import Trace
from simulator.traces.units import Told

# Linux translates everything but icmp_seq, ttl and numbers: `64 octets de x : icmp_seq=1 ttl=9 temps=0,1 ms`.
_TIME = r"(?<![^\s:])[^\W\d_]+[=<]\s*(\d+(?:[.,]\d+)?)\s*ms\b"
_NUMBER = r"\bicmp_seq[=\s](\d+)\b"
_REPLY = re.compile(rf"{_NUMBER}.*?{_TIME}")  # Linux and macOS
_REPLY_BUSYBOX = re.compile(rf" bytes from .*?\bseq=(\d+)\b.*?{_TIME}")  # not httping, which prints seq= too
_REPLY_WINDOWS = re.compile(rf"^Reply from \S+:(?: bytes=\d+.*?)? {_TIME}")  # not tcping, which names a port
_REPLY_TRANSLATED = re.compile(r"[=<]\s?\d+\s?ms TTL=\d+$")  # of Windows; a lost probe is translated completely
_NO_REPLY_WINDOWS = re.compile(
    r"^(Request timed out|Reply from |General failure|Hardware error|PING: transmit failed|Destination .*unreachable)"
)
_NO_REPLY = re.compile(_NUMBER)
_NO_TIME = re.compile(r" bytes from |\bttl=\d|^Reply from .*\d\s?ms\b")  # a reply without time=
_STAMP = re.compile(
    r"^\[?(?:(\d{9,}(?:\.\d+)?)|(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?)(?: ?(Z|[+-]\d\d:?\d\d))?)(?!\w)"
)  # ping -D, or a script
_OTHER_STAMP = re.compile(r"^.{0,30}\d\d:\d\d:\d\d.{0,12}(?:\d+ bytes from|Reply from)")
_HEAD = re.compile(r"\bPING6?[ (]|\bPinging ")
_HEAD_WINDOWS = re.compile(r"^Pinging .* with \d+ bytes of data:")
_SENT = re.compile(r"^(\d+)\s(?:packets transmitted|[^\d,]+,\s*\d+\s[^\d]+.*\d\s?%)")  # or in another language
_SENT_WINDOWS = re.compile(r"^\s*Packets: Sent = (\d+), Received = \d+")
_RECEIVED = re.compile(r"^\d+[^\d,]+,\s*([1-9]\d*)\b")
_TOOK = re.compile(r"\b(\d+)\s*ms$")
_FAST = re.compile(
    r"\bpipe \d|\bipg/ewma\b"
)  # in the statistics if probes were sent before the previous reply, or at its arrival
LEAST_STEP_S = 0.19  # least interval without root privileges, 0.2 s by default
MOST_PROBES = 10**7
SEQUENCE = 65536  # icmp_seq restarts after this many probes
EVEN_S = 2.0  # stamps of whole seconds, and clocks that are adjusted, differ by less from evenly spaced probes


def is_ping_text(source: Source) -> bool:
    patterns: tuple[re.Pattern[str], ...] = (_REPLY, _REPLY_BUSYBOX, _REPLY_WINDOWS, _REPLY_TRANSLATED)
    lines = source.lines[:20]
    if _HEAD.search(source.first):  # such a log may begin with an outage, or have no reply at all
        patterns += (_NO_REPLY, _NO_REPLY_WINDOWS, _SENT)
        lines = source.lines
    return any(pattern.search(text) for _, text in lines for pattern in patterns)


@dataclass
class _PingLog:
    """Content of the output of `ping`.

    Attributes:
        replies: by probe number, the line of the reply and the round trip in ms.
        sent_s: by probe number, the send time: time stamp of the reply minus round trip.
        fractions: whether a time stamp has a fraction of a second.
        below: number of replies that give an upper bound only, such as time<1ms.
        first: lowest probe number; None without probes.
        last: highest probe number; -1 without probes.
        other_stamps: whether replies have time stamps in an unknown format.
        ended: line of the final statistics; 0 without them.
        sent: number of probes in the statistics.
        took_ms: duration in the statistics, in ms; None if not stated.
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
    """Read the output of `ping` on Linux, macOS, BusyBox or Windows in English. Numbers without a reply are unanswered probes."""
    log = _ping_log(source)
    first = min(log.first or 0, 1) if log.sent else (log.first or 0)
    heard = log.last - first + 1
    count = max(heard, log.sent)
    if count > min(MOST_PROBES, heard + SEQUENCE):
        source.fail(
            f"{log.sent} packets transmitted, but the last reply is to number {log.last}; allowed: up to {SEQUENCE} more"
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
        notes += (f"{log.below} round trips that ping reports as below a number (time<1ms) are taken as that number",)
    times_s = _ping_times(source, log, np.arange(first, first + count, dtype=np.float64), step_s)
    return probed("ping-text", source, times_s, np.array([ms for _, ms in probes]), [line for line, _ in probes], notes)


def _ping_log(source: Source) -> _PingLog:
    log = _PingLog()
    turn = 0  # offset of the numbers after icmp_seq restarted
    for line, text in source.lines:
        if log.last >= 0 and _HEAD_WINDOWS.search(text):
            source.fail("a second ping begins; allowed: one log per file", line)
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
            _add_statistics(source, log, line, text)
            continue
        if log.ended:
            source.fail(f"a probe follows the statistics of line {log.ended}; allowed: one log per file", line)
        if not reply and not windows and _NO_TIME.search(text):
            source.fail("a reply without its time in ms; allowed: time=NUMBER ms", line)
        if reply and number in log.replies and "DUP!" not in text:
            source.fail(
                f"icmp_seq {number - turn} is answered on line {log.replies[number][0]} already; allowed: one log per file",
                line,
            )
        if number - max(log.last, 0) > SEQUENCE:
            source.fail(f"icmp_seq {number} is far after {log.last}; allowed: numbers that rise", line)
        log.last = max(log.last, number)
        log.first = number if log.first is None else min(log.first, number)
        answer = reply or windows
        if answer and number not in log.replies:  # a second reply to one probe is a duplicate
            _add_reply(source, log, number, answer, line)
    return log


def _add_statistics(source: Source, log: _PingLog, line: int, text: str) -> None:
    """Note what the final statistics say, if the line belongs to them."""
    sent, took, windows = _SENT.search(text), _TOOK.search(text), _SENT_WINDOWS.search(text)
    if windows and int(windows[1]) > log.last + 1:  # Windows prints a line for every probe
        source.fail(
            f"says that {windows[1]} probes were sent, and the log holds {log.last + 1}: lines are missing; "
            "allowed: a line a probe",
            line,
        )
    if sent:
        log.sent, log.ended = int(sent[1]), line
        log.took_ms = float(took[1]) if took else None


def _add_reply(source: Source, log: _PingLog, number: int, answer: re.Match[str], line: int) -> None:
    """Note the first reply to a probe, and its time stamp. answer: the match in the reply's line."""
    ms = float(answer.groups()[-1].replace(",", "."))
    log.replies[number] = (line, ms)
    log.below += "<" in answer[0]
    stamp = _STAMP.search(answer.string)
    if stamp:
        stamp_s = _seconds(source, stamp, line)
        log.sent_s[number] = stamp_s - ms / 1e3
        log.fractions = log.fractions or stamp_s % 1.0 != 0.0
    elif _OTHER_STAMP.search(answer.string):
        log.other_stamps = True


def _ping_step(source: Source, log: _PingLog) -> tuple[float, str]:
    """Return the seconds between probes and how they are known: from time stamps, the statistics, or the default of ping."""
    if len(log.sent_s) > 1 and (span_s := max(log.sent_s.values()) - min(log.sent_s.values())) > 0:
        step_s = span_s / (max(log.sent_s) - min(log.sent_s))
        return step_s, f"probes {step_s:.4g} s apart, by the time stamps"
    default = "probes 1 s apart, assumed: the default of ping; "
    if log.took_ms is None or log.sent < 2:
        return 1.0, default + (
            "the form of its time stamps is not known" if log.other_stamps else "the output has no times"
        )
    step_s = log.took_ms / 1e3 / (log.sent - 1)
    fast = any(_FAST.search(text) for _, text in source.lines)
    if log.took_ms == 0 or (log.took_ms < 1e3 and step_s < LEAST_STEP_S and not fast):
        # iputils of 2018 omits whole seconds: it prints "time 60ms" for 60 probes in 59.06 s.
        return 1.0, default + (
            f"the statistics at the end say {log.took_ms:g} ms for {log.sent} probes, "
            "from which some versions of ping leave out whole seconds"
        )
    return step_s, f"probes {step_s:.4g} s apart, by the statistics at the end"


def _ping_times(source: Source, log: _PingLog, numbers: Floats, step_s: float) -> Floats:
    """Return the send time of each probe: evenly spaced, or where time stamps have fractions or show a pause, by them.

    Raises:
        TraceError: Time stamps go back.
    """
    known = sorted(log.sent_s)
    if len(known) < 2:
        return (numbers - numbers[:1]) * step_s
    places = np.array(known, dtype=np.float64)
    stamps_s = np.array([log.sent_s[number] - log.sent_s[known[0]] for number in known])
    sent_s = np.maximum.accumulate(stamps_s)
    back = np.flatnonzero(stamps_s < sent_s - EVEN_S)
    if back.size:
        i = int(back[0])
        source.fail(
            f"the time stamp goes back by {sent_s[i] - stamps_s[i]:.4g} s; allowed: never decreasing (where a clock was set back, as at "
            "the end of summer time, cut the log in two)",
            log.replies[known[i]][0],
        )
    if not log.fractions:
        if np.abs(sent_s - (places - places[0]) * step_s).max() <= EVEN_S:
            return (numbers - numbers[:1]) * step_s
        # Even between the first probes of two seconds.
        first = np.append(True, np.diff(sent_s) >= 0.5)
        first[-1] = True
        places, sent_s = places[first], sent_s[first]
    beyond = numbers - np.clip(numbers, places[0], places[-1])
    return np.asarray(np.interp(numbers, places, sent_s) + beyond * step_s, dtype=np.float64)


def _seconds(source: Source, stamp: re.Match[str], line: int) -> float:
    """Return a time stamp in seconds. A date without a zone is taken as UTC."""
    if stamp[1]:
        return float(stamp[1])
    try:
        return datetime.fromisoformat(stamp[2].replace(",", ".") + (stamp[3] or "Z")).timestamp()
    except ValueError:
        source.fail(f"{stamp[2]!r} is not a time; allowed: YYYY-MM-DD HH:MM:SS with any fraction", line)

"""Unanswered probes, missing rows, and gaps in time."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from simulator.traces.read import read_trace
from simulator.traces.summary import summary
from tests.simulator.traces.examples import GNETTRACK, IPERF3, file

HEADER = "Probe Number,RTT [ms],Probe Send Time\n"


def log_of(cells: list[str], numbers: list[int] | None = None) -> str:
    numbers = numbers or list(range(1, len(cells) + 1))
    return HEADER + "".join(
        f"{n},{cell},10:{n // 60:02d}:{n % 60:02d}\n" for n, cell in zip(numbers, cells, strict=True)
    )


@given(st.lists(st.booleans(), min_size=2, max_size=50).filter(any))
def test_the_same_losses_however_a_log_writes_them(
    tmp_path_factory: pytest.TempPathFactory, answered: list[bool]
) -> None:
    """An empty cell, a word and a missing row all mean an unanswered probe."""
    folder = tmp_path_factory.getbasetemp()
    answered = [True, *answered, True]  # a missing row is detected only between others
    present = [i + 1 for i, one in enumerate(answered) if one]
    logs = [
        log_of(["20" if one else "" for one in answered]),
        log_of(["20" if one else "Request timed out." for one in answered]),
        log_of(["20"] * len(present), present),
    ]
    ping = "PING x\n" + "".join(f"64 bytes from x: icmp_seq={n} ttl=9 time=20 ms\n" for n in present)
    figures = [summary(read_trace([file(folder, content, "log")])) for content in (*logs, ping)]
    assert len({str(one["loss_pct"]) for one in figures}) == 1
    assert len({one["duration_s"] for one in figures}) == 1
    assert (figures[0]["loss_pct"] is None) == all(answered)


def test_single_losses_are_a_share_and_runs_are_outages(tmp_path: Path) -> None:
    cells = ["20", "", "30", "30", "", "", "", "40", "40", "40"]
    trace = read_trace([file(tmp_path, log_of(cells))])
    loss, delay_s = trace.down.loss, trace.up.delay_s
    assert loss is not None
    assert delay_s is not None
    each_way = 1 - math.sqrt(1 - 1 / 7)
    assert loss.values.tolist() == pytest.approx([each_way] * 4 + [1.0] * 3 + [each_way] * 3)
    assert (2e3 * delay_s.values).tolist() == pytest.approx([20, 20, 30, 30, 30, 30, 30, 40, 40, 40])
    assert any("4 of 10 probes unanswered: 3 in outages" in note for note in trace.notes)


def test_a_log_without_any_answer_is_refused(tmp_path: Path) -> None:
    for cells, message in (
        (["", "-", "*"], "no probe was answered"),
        (["20", "0", "20"], ":3: a round trip must be > 0"),
    ):
        with pytest.raises(TraceError, match=message):
            read_trace([file(tmp_path, log_of(cells))])


PINGS = {
    "Linux with time stamps": (
        "PING x\n"
        + "".join(f"[{1700000000 + n / 2:.3f}] 64 bytes from x: icmp_seq={n} time=0.1 ms\n" for n in (1, 2, 4)),
        2.0,
    ),
    "macOS": (
        "PING x: 56 data bytes\n64 bytes from x: icmp_seq=0 ttl=9 time=0.1 ms\n64 bytes from x: icmp_seq=1 ttl=9 time=0.1 ms\n"
        "Request timeout for icmp_seq 2\n64 bytes from x: icmp_seq=3 ttl=9 time=0.1 ms\n",
        4.0,
    ),
    "BusyBox": ("PING x\n" + "".join(f"64 bytes from x: seq={n} ttl=9 time=0.1 ms\n" for n in (0, 1, 3)), 4.0),
    "Windows": (
        "Pinging x\nReply from x: bytes=32 time=1ms TTL=9\nReply from x: bytes=32 time<1ms TTL=9\nRequest timed out.\n"
        "Reply from x: bytes=32 time=1ms TTL=9\n",
        4.0,
    ),
    "a duplicate": (
        "PING x\n"
        + "".join(
            f"64 bytes from x: icmp_seq={n} time=0.1 ms{end}\n"
            for n, end in ((1, ""), (2, ""), (2, " (DUP!)"), (4, ""))
        ),
        4.0,
    ),
    "Windows, replies cut": (
        "Pinging x\nReply from x: bytes=68 (sent 1400) time=1ms TTL=9\nReply from x: time<1ms\nRequest timed out.\n"
        "Reply from x: bytes=68 (sent 1400) time=1ms TTL=9\n",
        4.0,
    ),
    "Windows without a network": (
        "Pinging x\nReply from x: bytes=32 time=1ms TTL=9\nPING: transmit failed. General failure.\n"
        "Reply from x: bytes=32 time=1ms TTL=9\nReply from x: bytes=32 time=1ms TTL=9\n",
        4.0,
    ),
    "Windows beyond the last hop": (
        "Pinging x\nReply from x: bytes=32 time=1ms TTL=9\nReply from y: TTL expired in transit.\n"
        "Reply from x: bytes=32 time=1ms TTL=9\nReply from x: bytes=32 time=1ms TTL=9\n",
        4.0,
    ),
    "a decimal comma": ("PING x\n" + "".join(f"64 bytes from x: icmp_seq={n} time=0,1 ms\n" for n in (1, 2, 4)), 4.0),
    "Linux in French": (
        "PING x (x) 56(84) octets de données.\n"
        + "".join(f"64\u00a0octets de x\u00a0: icmp_seq={n} ttl=9 temps=0,1\u00a0ms\n" for n in (1, 2, 3))
        + "\n--- statistiques ping x ---\n4\u00a0paquets transmis, 3 reçus, 25\u00a0% paquets perdus, temps 6000\u00a0ms\n",
        8.0,
    ),
    "Linux in German": (
        "PING x (x) 56(84) Bytes an Daten.\n"
        + "".join(f"64 Bytes von x (x): icmp_seq={n} ttl=9 Zeit=0,1 ms\n" for n in (1, 2, 4))
        + "Von y icmp_seq=3 Ziel nicht erreichbar\n4 Pakete übertragen, 3 empfangen, 25% Paketverlust, Zeit 1500ms\n",
        2.0,
    ),
    "numbers that begin again": (
        "".join(f"64 bytes from x: icmp_seq={n} time=0.1 ms\n" for n in (65534, 65535, 1)),
        4.0,
    ),
}


@pytest.mark.parametrize("case", PINGS)
def test_ping_of_every_system(case: str, tmp_path: Path) -> None:
    content, duration_s = PINGS[case]
    figures = summary(read_trace([file(tmp_path, content)]))
    assert figures["format"] == "ping-text"
    assert figures["duration_s"] == pytest.approx(duration_s, abs=1e-3)
    assert figures["loss_pct"] == pytest.approx(100 * (1 - math.sqrt(0.75)))


@pytest.mark.parametrize(
    "lost", ["Request timeout for icmp_seq {}", "no answer yet for icmp_seq={}", "Request timed out."]
)
def test_a_log_that_begins_in_an_outage(lost: str, tmp_path: Path) -> None:
    """The log begins in an outage, such as a tunnel. A log without any answer is refused: the host may ignore pings."""
    head = "Pinging x\n" if "{" not in lost else "PING x (192.0.2.1): 56 data bytes\n"
    reply = "Reply from x: time=20ms\n" if "{" not in lost else "64 bytes from x: icmp_seq=40 time=20 ms\n"
    waits = "".join(lost.format(number) + "\n" for number in range(40))
    trace = read_trace([file(tmp_path, head + waits + reply)])
    assert trace.down.loss is not None
    assert trace.down.loss.values.tolist() == [1.0] * 40 + [0.0]
    for nothing in (waits, "3 packets transmitted, 0 received, 100% packet loss, time 2000ms\n"):
        with pytest.raises(TraceError, match="no probe was answered"):
            read_trace([file(tmp_path, head + nothing)])


def test_a_second_log_in_a_file_is_refused(tmp_path: Path) -> None:
    """The probes of a second log are not duplicates of those of the first."""
    content = "PING x\n" + "".join(f"64 bytes from x: icmp_seq={n} time=0.1 ms\n" for n in (1, 2, 3))
    with pytest.raises(TraceError, match=r":6: icmp_seq 1 is answered on line 2 already"):
        read_trace([file(tmp_path, content + content)])
    other = content.replace("=1 ", "=7 ").replace("=2 ", "=8 ").replace("=3 ", "=9 ")
    with pytest.raises(TraceError, match=r":7: a probe follows the statistics of line 5"):
        read_trace([file(tmp_path, f"{content}3 packets transmitted, 3 received, time 2000ms\n{other}")])
    timeless = (
        "64 bytes from x: icmp_seq=4",
        "12 octets de x : icmp_seq=4 ttl=9",
        "Reply from x: 0.1ms",
        "Reply from x on port 80: time=1 ms",
    )
    for reply in timeless:
        with pytest.raises(TraceError, match=r":5: a reply without its time"):
            read_trace([file(tmp_path, f"{content}{reply}\n")])


@pytest.mark.parametrize(
    ("sent", "took_ms", "end", "step_s"),
    [
        (60, 60, "", 1.0),  # iputils of 2018 prints 59.06 s without the whole seconds
        (2, 0, "", 1.0),
        (4, 611, "", 611 / 3e3),  # ping -i 0.2
        (60, 1180, "", 1.18 / 59),
        (60, 590, "rtt min/avg/max/mdev = 20.1/20.2/20.9/0.1 ms, pipe 3", 0.01),
        (60, 590, "rtt min/avg/max/mdev = 9.1/9.2/9.9/0.1 ms, ipg/ewma 10.0/9.2 ms", 0.01),
    ],
)
def test_statistics_without_whole_seconds_do_not_shorten_a_log(
    sent: int, took_ms: int, end: str, step_s: float, tmp_path: Path
) -> None:
    replies = "".join(f"64 bytes from x: icmp_seq={n} ttl=9 time=20 ms\n" for n in range(1, sent + 1))
    statistics = f"{sent} packets transmitted, {sent} received, 0% packet loss, time {took_ms}ms\n{end}\n"
    trace = read_trace([file(tmp_path, f"PING x\n{replies}\n--- x ping statistics ---\n{statistics}")])
    assert trace.duration_s == pytest.approx(sent * step_s)
    assert any("leave out whole seconds" in note for note in trace.notes) == (step_s == 1.0)


def test_a_pause_in_the_time_stamps_of_ping_stays_one(tmp_path: Path) -> None:
    """A phone that slept continues the sequence numbers."""
    sent_s = {1: 0, 2: 1, 3: 2, 5: 4, 6: 44, 7: 45}
    lines = [f"[{1.7e9 + at + 0.02:.3f}] 64 bytes from x: icmp_seq={n} ttl=9 time=20 ms\n" for n, at in sent_s.items()]
    trace = read_trace([file(tmp_path, "PING x\n" + "".join(lines))])
    assert trace.down.delay_s is not None
    assert trace.down.delay_s.times_s.tolist() == pytest.approx([0, 1, 2, 3, 4, 44, 45], abs=1e-3)
    assert any("the longest 40 s" in note for note in trace.notes)
    statistics = "8 packets transmitted, 6 received, 25% packet loss, time 46000ms\n"
    whole = [f"{1700000000 + n // 4} 64 bytes from x: icmp_seq={n} ttl=9 time=20 ms\n" for n in range(9)]  # of `date`
    assert read_trace([file(tmp_path, "".join(whole))]).duration_s == pytest.approx(9 * 0.25)
    longer = read_trace([file(tmp_path, "PING x\n" + "".join(lines) + statistics)])
    assert longer.down.delay_s is not None
    assert longer.down.delay_s.times_s[-1] == pytest.approx(45 + 45 / 6, abs=1e-3)


@pytest.mark.parametrize("form", ["%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S.25"])
def test_a_pause_between_time_stamps_of_whole_seconds_stays_one(form: str, tmp_path: Path) -> None:
    """A laptop slept. Otherwise the time stamps follow the probes, in any of the printed forms."""
    lines = []
    for number in range(1, 41):
        at = datetime(2024, 3, 31, tzinfo=UTC) + timedelta(seconds=number // 5 + (50 if number > 20 else 0))
        stamp = at.strftime(form) if "%Y" in form else str(int(at.timestamp()))
        lines.append(f"{stamp} 64 bytes from x: icmp_seq={number} ttl=9 time=20 ms\n")
    trace = read_trace([file(tmp_path, "".join(lines))])
    assert trace.down.delay_s is not None
    steps_s = np.diff(trace.down.delay_s.times_s)
    assert (sum(steps_s > 40), sum(steps_s > 2)) == (1, 1)
    assert any("1 gap" in note and "the longest 5" in note for note in trace.notes)


def test_time_stamps_of_ping_are_read_with_their_zone(tmp_path: Path) -> None:
    """The clock changes to winter time in the log. Without the zone the time goes back."""
    line = "2024-10-27{}{}{} 64 bytes from x: icmp_seq={} ttl=9 time=20 ms\n"
    for zones in (("+0200", "+0100"), (" +02:00", " +01:00"), ("Z", "-0100"), ("", "")):
        times = ("T02:59:58.5", "T02:59:59.5", "T02:00:00.5", "T02:00:01.5")
        content = "".join(line.format(at, "", zones[n // 2], n + 1) for n, at in enumerate(times))
        if zones == ("", ""):
            with pytest.raises(TraceError, match=":3: the time stamp goes back by 3599 s"):
                read_trace([file(tmp_path, content)])
        else:
            assert read_trace([file(tmp_path, content)]).duration_s == pytest.approx(4.0, abs=1e-3)


def test_a_log_of_windows_holds_every_probe_of_one_ping(tmp_path: Path) -> None:
    """The statistics of Windows count router replies as answers, so the number of sent probes is checked."""
    head, reply = "\nPinging x with 32 bytes of data:\n", "Reply from x: bytes=32 time=9ms TTL=9\n"
    end = "\nPing statistics for x:\n    Packets: Sent = {}, Received = {}, Lost = 0 (0% loss),\n"
    whole = head + 3 * reply + end.format(3, 3)
    assert read_trace([file(tmp_path, whole)]).duration_s == 3.0
    assert read_trace([file(tmp_path, whole + reply + end.format(4, 4))]).duration_s == 4.0  # Ctrl-Break
    with pytest.raises(TraceError, match=":8: says that 50 probes were sent, and the log holds 3: lines are missing"):
        read_trace([file(tmp_path, whole.replace("Sent = 3", "Sent = 50"))])
    with pytest.raises(TraceError, match=":10: a second ping begins"):
        read_trace([file(tmp_path, whole + whole)])


def test_lines_that_a_log_lacks_are_no_lost_probes(tmp_path: Path) -> None:
    """The log is of ping -q, or its beginning was cut off."""
    statistics = "60 packets transmitted, 59 received, 1.7% packet loss, time 59153ms"
    for replies, held in (
        ("", r"no reply \(ping -q"),
        (
            "64 bytes from x: icmp_seq=59 ttl=9 time=1 ms\n64 bytes from x: icmp_seq=60 ttl=9 time=1 ms\n",
            "2 replies: lines",
        ),
    ):
        with pytest.raises(TraceError, match=f"says that 59 of 60 probes were answered, and the log holds {held}"):
            read_trace([file(tmp_path, f"PING x\n{replies}--- x ping statistics ---\n{statistics}\n")])


def test_what_ping_tells_as_below_a_number_is_said(tmp_path: Path) -> None:
    trace = read_trace([file(tmp_path, PINGS["Windows"][0])])
    assert any(note.startswith("1 round trips that ping reports as below a number") for note in trace.notes)
    assert not any("below" in note for note in read_trace([file(tmp_path, PINGS["macOS"][0])]).notes)


def test_windows_in_another_language_is_refused_as_that(tmp_path: Path) -> None:
    """Its unanswered probes are words in an unknown language, which cannot be recognised."""
    content = (
        "Ping wird ausgeführt für x mit 32 Bytes Daten:\nAntwort von x: Bytes=32 Zeit=14ms TTL=9\nZeitüberschreitung\n"
    )
    with pytest.raises(
        TraceError, match=":2: a reply of Windows in another language; allowed: ping of Windows in English"
    ):
        read_trace([file(tmp_path, content)])


def test_the_sequence_numbers_of_other_tools_are_no_pings(tmp_path: Path) -> None:
    """httping measures a connection and a request."""
    with pytest.raises(TraceError, match="is of no known trace format"):
        read_trace(
            [file(tmp_path, "".join(f"connected to x:80 (319 bytes), seq={n} time= 93.5 ms\n" for n in range(3)))]
        )


def test_intervals_that_are_missing_from_iperf3_are_a_gap(tmp_path: Path) -> None:
    sums = [{"sum": {"start": s, "end": s + 1, "bits_per_second": 1e6}} for s in (0, 1, 2, 3, 9, 10)]
    trace = read_trace([file(tmp_path, json.dumps({"start": {}, "intervals": sums, "end": {}}))])
    assert any(note.startswith("1 gap of more than 3 median steps, the longest 6 s") for note in trace.notes)


def iperf3(role: str, reverse: int, protocol: str, sums: str) -> str:
    """Return the JSON of iperf3 3.12 for two sockets. The socket options and the target rate are duplicate keys."""
    socket = '"sock_bufsize": 0, "sndbuf_actual": 16384, "rcvbuf_actual": 131072'
    start = f'"target_bitrate": 0, {socket}, "target_bitrate": 0, {socket.replace("16384", "87040")}, "{role}": {{}}'
    test = f'"test_start": {{"protocol": "{protocol}", "reverse": {reverse}}}'
    return f'{{"start": {{{start}, {test}}}, "intervals": [{{{sums}}}], "end": {{}}}}'


def iperf3_sum(name: str, mbps: int, sender: str) -> str:
    return f'"{name}": {{"start": 0, "end": 1, "bits_per_second": {mbps}e6{sender}, "omitted": false}}'


SENDS, RECEIVES = ', "sender": true', ', "sender": false'


@pytest.mark.parametrize(
    ("role", "reverse", "senders", "down", "up", "sent"),
    [
        ("connecting_to", 0, [SENDS], None, 5, "uplink"),
        ("connecting_to", 0, [""], None, 5, "uplink"),  # before 3.7
        ("connecting_to", 1, [RECEIVES], 5, None, None),
        ("connecting_to", 1, [""], 5, None, None),
        ("connecting_to", 0, [SENDS, RECEIVES], 7, 5, "uplink"),
        ("accepted_connection", 0, [RECEIVES], None, 5, None),
        ("accepted_connection", 1, [SENDS], 5, None, "downlink"),
        ("accepted_connection", 0, [RECEIVES, SENDS], 7, 5, "downlink"),
    ],
)
def test_iperf3_of_either_end(
    role: str, reverse: int, senders: list[str], down: int | None, up: int | None, sent: str | None, tmp_path: Path
) -> None:
    """The client is the device, whichever end wrote the file. Over UDP a sender does not know what arrived."""
    sums = ", ".join(
        iperf3_sum(name, mbps, sender)
        for name, mbps, sender in zip(("sum", "sum_bidir_reverse"), (5, 7), senders, strict=False)
    )
    trace = read_trace([file(tmp_path, iperf3(role, reverse, "UDP", sums))])
    found = [None if way.rate is None else way.rate.rate_bps.tolist() for way in (trace.down, trace.up)]
    assert found == [None if mbps is None else [mbps * 1e6] for mbps in (down, up)]
    told = [note for note in trace.notes if "UDP" in note]
    assert [f"of the {sent} the rate that was sent" in note for note in told] == ([] if sent is None else [True])
    assert not any("UDP" in note for note in read_trace([file(tmp_path, iperf3(role, reverse, "TCP", sums))]).notes)


def test_iperf3_as_a_stream_is_what_it_is_at_the_end(tmp_path: Path) -> None:
    whole = json.loads(IPERF3)
    events = [("start", whole["start"]), *(("interval", one) for one in whole["intervals"]), ("end", whole["end"])]
    lines = [json.dumps({"event": event, "data": data}) + "\n" for event, data in events]
    assert summary(read_trace([file(tmp_path, "".join(lines))])) == summary(read_trace([file(tmp_path, IPERF3)]))
    for more, found in (
        ('{"event": "error", "data": "interrupt - the client has terminated"}', "iperf3 ended with an error"),
        ("".join(lines), f":{len(lines) + 1}: a second test begins"),
    ):
        with pytest.raises(TraceError, match=found):
            read_trace([file(tmp_path, "".join(lines) + more)])


def test_probes_lost_at_the_end_count(tmp_path: Path) -> None:
    content = "PING x\n64 bytes from x: icmp_seq=1 time=5 ms\n64 bytes from x: icmp_seq=2 time=5 ms\n"
    trace = read_trace(
        [file(tmp_path, content + "--- x ping statistics ---\n5 packets transmitted, 2 received, time 4000ms\n")]
    )
    assert trace.down.loss is not None
    assert trace.down.loss.values.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(TraceError, match="packets transmitted"):
        read_trace([file(tmp_path, content + "999999999 packets transmitted\n")])


def test_two_probes_of_ripe_atlas_are_not_one_trace(tmp_path: Path) -> None:
    rows = '{"msm_id": 1, "prb_id": %d, "timestamp": %d, "type": "ping", "result": [{"rtt": 9}]}\n'
    with pytest.raises(TraceError, match=":2: key prb_id: 8 beside 7"):
        read_trace([file(tmp_path, rows % (7, 0) + rows % (8, 60))])


def test_late_and_double_replies_of_ripe_atlas_are_no_packets(tmp_path: Path) -> None:
    packets = (
        '{"rtt": 20}, {"rtt": 26}, {"rtt": 20, "dup": 1}',
        '{"x": "*"}, {"late": 1}, {"rtt": 30}',
    )
    rows = [
        f'{{"msm_id": 1, "prb_id": 7, "timestamp": {60 * i}, "type": "ping", "result": [{packet}]}}\n'
        for i, packet in enumerate(packets)
    ]
    trace = read_trace([file(tmp_path, "".join(rows))])
    assert trace.down.loss is not None
    assert trace.down.delay_s is not None
    assert (2e3 * trace.down.delay_s.values).tolist() == pytest.approx([23, 30])
    assert trace.down.loss.values.tolist() == pytest.approx([0, 1 - math.sqrt(0.5)])
    late = rows[1].replace(packets[1], '{"late": 2}')
    with pytest.raises(TraceError, match=":2: key result: holds late replies and duplicates alone"):
        read_trace([file(tmp_path, rows[0] + late)])


@pytest.mark.parametrize("gap_s", [2, 4, 30, 59, 70, 1000])
def test_a_gap_in_rates_is_named_or_refused(gap_s: int, tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 3 + gap_s, 4 + gap_s]
    path = file(tmp_path, "".join(f"{time} {i + 1}\n" for i, time in enumerate(times)))
    if gap_s > 100:
        with pytest.raises(TraceError, match=f":5: time jumps by {gap_s} s; allowed: 100 s"):
            read_trace([path])
        return
    trace = read_trace([path])
    assert any(f"the longest {gap_s} s before line 5" in note for note in trace.notes) == (gap_s > 3)
    assert trace.down.rate is not None
    assert trace.down.rate.rate_bps[3] == 5e6  # the rate after the gap holds throughout


def test_a_gap_in_a_phone_log_keeps_its_length(tmp_path: Path) -> None:
    """Rows are spread evenly between gaps, never into one."""
    rows = "".join(
        f"2020.02.14_00.00.{second:02d},-8.3,5G,{kbps},0,D,-,-\n"
        for second, kbps in ((0, 1000), (1, 2000), (2, 3000), (32, 4000), (34, 5000))
    )
    trace = read_trace([file(tmp_path, GNETTRACK.splitlines()[0] + "\n" + rows)])
    assert trace.down.rate is not None
    assert trace.duration_s == 34.0
    at = np.searchsorted(trace.down.rate.times_s, [0.1, 1.9, 20.0, 32.5, 33.5], side="right") - 1
    assert trace.down.rate.rate_bps[at].tolist() == [1e6, 3e6, 3e6, 4e6, 5e6]
    assert any("gap" in note for note in trace.notes)

"""Export of a scenario's links and messages, read back by a small parser of each format."""

import copy
import json
import math
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from benchmarks.mahimahi import Delay, DeliveryLink, Drops, ways_of
from ciar_sim.cli.main import main
from ciar_sim.decide.emulate import deliveries_ms, mahimahi, netem
from ciar_sim.decide.messages import CLOUD_IP, DEVICE_IP, checksum, messages_of
from simulator.experiment.loading import load_scenario
from simulator.experiment.schema.network import ExplicitNetwork
from simulator.experiment.sweep import expand
from simulator.network.transport import TRANSPORTS
from simulator.network.wire import Capacity
from simulator.results.timeline import Span
from simulator.traces.choice import TraceChoice
from simulator.traces.series import RateSeries
from tests.ciar_sim.setting_rows import BASE, SETTINGS, put


@pytest.fixture
def path(scenario: dict[str, Any], tmp_path: Path) -> Path:
    """File of a scenario with two prompts."""
    return written(tmp_path, {**scenario, "prompts": {"source": "scenes", "count": 2}})


def written(folder: Path, scenario: dict[str, Any]) -> Path:
    (folder / "s.yaml").write_text(yaml.safe_dump(scenario))
    return folder / "s.yaml"


def exported(path: Path, form: str, *more: str) -> str:
    result = CliRunner().invoke(main, ["export", str(path), "--as", form, *more])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["export", *arguments])
    assert result.exit_code == 2, result.output
    return result.stderr


# ---- netem -----------------------------------------------------------------------------------------------------------------


def test_netem_has_the_figures_of_each_way(path: Path) -> None:
    text = exported(
        path, "netem", "--set", "network={rtt_ms: 30, up_mbps: 5, down_mbps: 20, jitter_ms: 2, loss_pct: 1}"
    )
    ways = re.findall(r'put "(delay .*)" "(.*)"', text)
    assert ways == [
        (
            "delay 15ms 2ms distribution normal loss 1% rate 5000000bit limit 1000000",
            "delay 15ms 2ms distribution normal loss 1% rate 20000000bit limit 1000000",
        )
    ]
    assert "left out: one delay for a message" in text


def test_netem_s_bursts_keep_share_and_length(path: Path) -> None:
    line = "network={rtt_ms: 30, up_mbps: 12, down_mbps: 12, loss_pct: 2, loss_burst_packets: 4, buffer_ms: 100}"
    found = re.search(r"gemodel ([\d.]+)% ([\d.]+)% rate \d+bit limit (\d+)", exported(path, "netem", "--set", line))
    assert found is not None
    enter, leave = float(found[1]) / 100, float(found[2]) / 100
    assert 1 / leave == pytest.approx(4)
    assert enter / (enter + leave) == pytest.approx(0.02)
    assert int(found[3]) == 100 + 15  # packets in the buffer and in flight


def test_netem_follows_outages(path: Path) -> None:
    line = "network={rtt_ms: 30, up_mbps: 5, down_mbps: 20, outage_every_s: 10, outage_ms: 500}"
    steps = re.findall(r'step ([\d.]+) "(.*)" ".*"', exported(path, "netem", "--set", line))
    assert [(float(seconds), "loss 100%" in up) for seconds, up in steps] == [(9.5, False), (0.5, True)]


def test_netem_of_a_trace_has_the_means_of_its_seconds(path: Path, tmp_path: Path) -> None:
    rows = "".join(f"{n / 10},{1 + n % 10},2,{40 + 20 * (n // 10)}\n" for n in range(0, 1200))
    (tmp_path / "link.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n" + rows)
    steps = re.findall(
        r'step 1 "delay (\S+)ms rate (\d+)bit .*" "delay \S+ms rate (\d+)bit',
        exported(path, "netem", "--set", "network={trace: link.csv}"),
    )
    assert len(steps) == 120
    assert steps[3] == ("50", "2000000", "5500000")


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (["0,8,2,40", "1,4,1,60"], ""),
        (["0,8,2,40", "1.5,4,1,60"], "changes within a second: each has its means"),
        (["0,8,2,40", "4000,4,1,60"], "what comes after 3600 s"),
    ],
)
def test_netem_names_the_changes_that_its_steps_leave_out(
    path: Path, tmp_path: Path, rows: list[str], notes: str
) -> None:
    (tmp_path / "link.csv").write_text("\n".join(["time_s,down_mbps,up_mbps,rtt_ms", *rows, ""]))
    text = exported(path, "netem", "--set", "network={trace: link.csv}")
    found = re.findall("left out: (changes within.*|what comes.*)", text)
    assert found == [notes] * bool(notes)
    if notes.startswith("changes"):  # the delay of a second is its mean, too
        assert 'step 1 "delay 25ms rate 1500000bit' in text


@pytest.mark.parametrize(
    ("jitter", "notes"),
    [
        ("jitter_ms: 3", []),
        ("jitter_ms: 30", ["delays below 0, which netem makes 0: they add up to 5.93 ms to the mean delay of a way"]),
        (
            "jitter_ms: 4, jitter_on: top",
            ["that jitter only adds to the delay: netem's also takes away, with the same mean"],
        ),
    ],
)
def test_netem_names_what_its_jitter_adds(path: Path, jitter: str, notes: list[str]) -> None:
    text = exported(path, "netem", "--set", f"network={{rtt_ms: 30, up_mbps: 5, down_mbps: 20, {jitter}}}")
    assert re.findall("left out: (delays below.*|that jitter.*)", text) == notes


def test_what_an_emulator_cannot_do_is_named(path: Path, tmp_path: Path) -> None:
    for name in ("up-light", "down-light"):
        (tmp_path / name).write_text("0 20 0 1 3\n500 30 0 2 2\n1000 40 0\n")
    for name in ("up-pdo", "down-pdo"):
        (tmp_path / name).write_text("1\n1000\n")
    files = "{trace: [up-light, up-pdo, down-light, down-pdo], radio: lte}"
    text = exported(path, "netem", "--set", f"network={files}")
    assert "left out: packet trains of an idle queue" in text
    assert "left out: the radio lte" in text
    (tmp_path / "link.csv").write_text("time_s,down_mbps,up_mbps,rtt_ms\n0,8,2,40\n1,4,1,60\n")
    text = exported(path, "netem", "--set", "network={trace: link.csv, resample_s: 60}")
    assert "left out: blocks of the trace at random (resample_s)" in text


NEEDED = {"rtt_ms", "up_mbps", "down_mbps", "buffer_ms", "buffer_bytes", "outage_every_s", "outage_ms"}  # else refused


@pytest.mark.usefixtures("short_gaps")
@pytest.mark.parametrize("key", sorted(ExplicitNetwork.model_fields))
def test_every_figure_of_a_link_is_emulated_or_named_as_left_out(key: str) -> None:
    row = SETTINGS.get(f"ExplicitNetwork.{key}", "missing")
    assert not isinstance(row, str), f"SETTINGS of tests/ciar_sim/setting_rows.py needs a row for ExplicitNetwork.{key}"
    before, change = row
    cases = []
    for more in ({}, change):
        data = copy.deepcopy(BASE)
        put(data, before)
        if not more and key not in NEEDED:
            data["network"].pop(key, None)
        put(data, more)
        cases.append(expand(load_scenario(data))[0])
    unnamed = f"{key} changes nothing in what is exported: name it in _left_out of ciar_sim/decide/emulate.py"
    assert netem(cases[0]) != netem(cases[1]), unnamed
    if key != "jitter_distribution":  # mahimahi has no jitter at all; its script says so
        assert mahimahi(cases[0]) != mahimahi(cases[1]), unnamed


def test_kinds_and_tiers_have_links_of_their_own(tmp_path: Path, scenario: dict[str, Any]) -> None:
    spread = {
        **scenario,
        "cloud": {"tier": "edge", "tiers": {"edge": {"rtt_ms": 0}, "far": {"rtt_ms": 100}}},
        "workload": {
            "devices": 2,
            "arrivals": {"poisson_per_s": 1},
            "duration_s": 2,
            "fleet": [{"share": 0.5}, {"share": 0.5, "tier": "far"}],
        },
    }
    text = exported(written(tmp_path, spread), "netem")
    assert re.findall(r"kind_\d+\(\) {  # (.*)", text) == [
        "kind 1 of the fleet, to edge",
        "kind 2 of the fleet, to far",
    ]
    assert re.findall(r'put "delay (\d+)ms', text) == ["10", "60"]


def test_a_shell_reads_the_script(path: Path, tmp_path: Path) -> None:
    for network in ("{preset: wifi}", "{preset: 5g-mmwave}"):
        out = tmp_path / "link.sh"
        exported(path, "netem", "--set", f"network={network}", "--out", str(out))
        assert subprocess.run(["sh", "-n", str(out)], check=False).returncode == 0
        assert out.read_text().count("\n") < 4000


# The kernel's tc as far as the script uses it: adding what exists fails, and so does replacing a filter of this kind.
TC = """#!/bin/sh
case "$1 $2" in
*" add" | "filter replace") [ ! -e "$FOLDER/is_$1" ] || { echo "Error: File exists." >&2; exit 2; }; touch "$FOLDER/is_$1" ;;
*" del") rm "$FOLDER/is_qdisc" "$FOLDER/is_filter" 2>/dev/null || { echo "Error: Cannot find qdisc." >&2; exit 2; } ;;
esac
echo "$@" >>"$FOLDER/log"
"""


def test_the_script_runs_again_on_the_same_interface(path: Path, tmp_path: Path) -> None:
    """A second run replaces the link, for instance by that of another kind of device."""
    out, programs = tmp_path / "link.sh", tmp_path / "programs"
    exported(path, "netem", "--set", "network={rtt_ms: 30, up_mbps: 5, down_mbps: 20}", "--out", str(out))
    programs.mkdir()
    for name, text in (("tc", TC), ("ip", "#!/bin/sh\n"), ("modprobe", "#!/bin/sh\nexit 1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    place = {"PATH": f"{programs}:{os.environ['PATH']}", "FOLDER": str(tmp_path)}
    for _ in range(2):
        ran = subprocess.run(["sh", str(out), "eth7"], env=place, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
    put = [line for line in (tmp_path / "log").read_text().splitlines() if "netem" in line]
    assert put == 2 * [
        "qdisc replace dev eth7 root netem delay 15ms rate 5000000bit limit 1000000",
        "qdisc replace dev ifb0 root netem delay 15ms rate 20000000bit limit 1000000",
    ]


# ---- mahimahi --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate_bps", [2e3, 5.3e6, 1e9, 1e13])
def test_a_delivery_trace_carries_its_rate(rate_bps: float) -> None:
    times = deliveries_ms(rate_bps)
    assert times == sorted(times)
    assert len(times) * 12e6 / times[-1] == pytest.approx(rate_bps, rel=1e-3)


@pytest.mark.parametrize(
    "rate",
    [
        Capacity.with_outages(5e6, 10.0, 0.5),
        Capacity([0.0, 1.0, 2.0], [3e6, 0.0, 9e6], 4.0),
        Capacity([0.0, 0.01], [1e5, 2e5], 0.02),
        Capacity([0.0, 3000.0], [1e9, 2e9], 9000.0),  # only the first packets are exported
    ],
)
def test_a_delivery_trace_follows_a_rate_that_varies(rate: Capacity) -> None:
    times = deliveries_ms(rate)
    assert times == sorted(times)
    mean_bps = 1e9 if rate.duration_s == 9000.0 else rate.mean_bps
    assert len(times) * 12e6 / times[-1] == pytest.approx(mean_bps, rel=0.01)
    if rate.duration_s == 4.0:
        assert not [time for time in times if 1001 < time <= 2000]


def test_both_delivery_traces_of_a_link_end_together(monkeypatch: pytest.MonkeyPatch, scenario: dict[str, Any]) -> None:
    """Outages of both ways at once stay at once, and the script says how far the traces go."""
    monkeypatch.setattr("ciar_sim.decide.emulate.MOST_PACKETS", 10_000)
    scenario["network"] = {"rtt_ms": 20, "up_mbps": 6, "down_mbps": 12, "outage_every_s": 40, "outage_ms": 2000}
    files = mahimahi(expand(load_scenario(scenario))[0])
    up, down, script = (
        next(text for name, text in files.items() if name.endswith(end)) for end in ("up", "down", "sh")
    )
    assert up.split()[-1] == down.split()[-1] == b"10000"
    assert (len(up.split()), len(down.split())) == (5_000, 10_000)
    assert b"left out: what comes after 10 s, when a way has carried 10000 packets" in script


def test_a_sum_that_is_off_by_rounding_costs_no_packet() -> None:
    """Sums over the milliseconds of a trace have such rounding errors."""
    assert len(deliveries_ms(Capacity([0.0], [12e6 * (1.0 - 2e-13)], 140.0))) == 140_000


def test_mahimahi_s_files_are_read_back_as_the_link(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "emulated"
    exported(
        path,
        "mahimahi",
        "--out",
        str(out),
        "--set",
        "network={rtt_ms: 42, up_mbps: 5, down_mbps: 20, loss_pct: 0.5, buffer_bytes: 9000}",
    )
    assert sorted(file.name for file in out.iterdir()) == ["tiny.down", "tiny.sh", "tiny.up"]
    trace = TraceChoice((str(out / "tiny.down"), str(out / "tiny.up")), ("down", "up")).read()
    assert trace.up.rate is not None
    assert trace.down.rate is not None
    assert [mean_bps(rate) for rate in (trace.up.rate, trace.down.rate)] == pytest.approx([5e6, 20e6], rel=0.01)
    command = (out / "tiny.sh").read_text().splitlines()[-1]
    assert command.startswith("exec mm-delay 21 mm-loss uplink 0.005 mm-loss downlink 0.005 mm-link ")
    assert "--uplink-queue=droptail --uplink-queue-args=bytes=9000" in command
    assert command.endswith('-- "$@"')
    up, down = ways_of(out / "tiny.sh")
    assert [type(part) for part in up] == [type(part) for part in down[::-1]] == [DeliveryLink, Drops, Delay]
    full_ms = 1e3 * 12_000 / 5e6
    found = [up[0].leaves_ms(0.0, 1500) for _ in range(7)]
    assert found == [
        *(math.ceil(full_ms * n) for n in range(1, 6)),
        math.inf,
        math.inf,
    ]  # 9000 bytes hold five with headers


def test_mahimahi_s_rules_as_its_sources_have_them() -> None:
    """`benchmarks.mahimahi`: an opportunity in the same millisecond or before is lost; small packets share one, large ones use two."""
    link = DeliveryLink([2, 4, 6, 10])
    assert [link.leaves_ms(0.7, 1500), link.leaves_ms(2.0, 52)] == [2, 4]
    assert [link.leaves_ms(3.0, 52), link.leaves_ms(3.0, 1500)] == [4, 6]  # the second begins at 4, behind the others
    assert link.leaves_ms(6.9, 52) == 10  # what was left of 6 is lost
    assert [link.leaves_ms(29.0, 1500), link.leaves_ms(29.0, 52)] == [30, 32]  # the third time round, then the fourth
    assert Delay(20).leaves_ms(3.9, 52) == 23
    with pytest.raises(ValueError, match="ascends"):
        DeliveryLink([3, 2])


@pytest.mark.parametrize(("rtt_ms", "said"), [(42, False), (25, True)])
def test_mahimahi_s_script_says_that_its_delay_is_rounded(scenario: dict[str, Any], rtt_ms: int, said: bool) -> None:
    network = {"rtt_ms": rtt_ms, "up_mbps": 5, "down_mbps": 20}
    script = mahimahi(expand(load_scenario({**scenario, "network": network}))[0])["tiny.sh"].decode()
    assert ("the delay is 12.5 ms each way" in script) == said


def mean_bps(rate: RateSeries) -> float:
    return Capacity(rate.times_s, rate.rate_bps, rate.duration_s).mean_bps


# ---- messages --------------------------------------------------------------------------------------------------------------


def table_of(path: Path, cache: Path, *more: str) -> pd.DataFrame:
    out = path.parent / "messages.csv"
    exported(path, "messages", "--cache", str(cache), "--out", str(out), *more)
    return pd.read_csv(out)


def test_messages_add_up_to_the_run(path: Path, cache: Path, tmp_path: Path) -> None:
    import ciar_sim

    table = table_of(path, cache)
    assert list(table.columns) == [
        "method",
        "request",
        "device",
        "call",
        "direction",
        "kind",
        "bytes",
        "sent_s",
        "delivered_s",
    ]
    assert set(table["kind"]) == {"request", "part", "reply"}
    assert (table["delivered_s"] >= table["sent_s"] + 0.01).all()  # half of a round trip of 20 ms
    run = ciar_sim.run(path, out=tmp_path / "run", cache=cache).requests
    sent = table.groupby(["method", "request", "direction"])["bytes"].sum().unstack(fill_value=0)
    asked = run.set_index(["method", "request"]).loc[sent.index]
    assert sent["up"].tolist() == asked["bytes_up"].tolist()
    assert sent["down"].tolist() == asked["bytes_down"].tolist()
    calls = table[table["kind"] == "request"].groupby(["method", "request"]).size()
    assert calls.tolist() == asked["calls"].loc[calls.index].tolist()
    again = table_of(tmp_path / "run", cache, "--method", "speculative", "--request", "1")
    wanted = table[(table["method"] == "speculative") & (table["request"] == 1)]
    pd.testing.assert_frame_equal(again, wanted.reset_index(drop=True))


def test_messages_sent_together_stand_in_the_order_of_their_stream() -> None:
    """Replies of one batch to two requests of one device; that to the later request arrives first."""
    spans = [
        Span(request, 0, "downlink", "reply 0", 1.0, end_s, (("call", 0), ("bytes", 9)))
        for request, end_s in ((0, 1.3), (1, 1.2))
    ]
    assert messages_of(spans)["request"].tolist() == [1, 0]


def test_lines_hold_the_rows_of_the_table(path: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "messages.jsonl"
    more = ("--cache", str(cache), "--method", "code", "--request", "0")
    exported(path, "messages", *more, "--out", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.DataFrame(rows), table_of(path, cache, *more[2:]))


class Packet(NamedTuple):
    time_s: float
    ip: bytes
    protocol: int
    source: bytes
    body: bytes


def packets_of(data: bytes) -> Iterator[Packet]:
    """Read a classic pcap capture of Ethernet and IPv4, checking every checksum."""
    magic, major, minor, _, _, snaplen, kind = struct.unpack("<IHHiIII", data[:24])
    assert (magic, major, minor, kind) == (0xA1B2C3D4, 2, 4, 1)
    at = 24
    while at < len(data):
        seconds, micros, kept, length = struct.unpack("<IIII", data[at : at + 16])
        frame = data[at + 16 : at + 16 + kept]
        at += 16 + kept
        assert kept == length <= snaplen
        assert frame[12:14] == b"\x08\x00"
        ip = frame[14:]
        (total,) = struct.unpack("!H", ip[2:4])
        assert total == len(ip)
        assert checksum(ip[:20]) == 0
        body = ip[20:]
        pseudo = ip[12:20] + struct.pack("!BBH", 0, ip[9], len(body))
        assert checksum(pseudo + body) == 0
        yield Packet(seconds + 1e-6 * micros, ip, ip[9], ip[12:16], body)


@pytest.mark.parametrize("transport", ["tcp", "grpc", "quic", "sctp", "ideal"])
def test_a_capture_holds_every_message(path: Path, cache: Path, tmp_path: Path, transport: str) -> None:
    more = ("--cache", str(cache), "--method", "code", "--set", f"network.transport={transport}")
    out = tmp_path / "one.pcap"
    exported(path, "pcap", *more, "--out", str(out))
    table = table_of(path, cache, "--request", "0", *more[2:])
    packets = list(packets_of(out.read_bytes()))
    assert [one.time_s for one in packets] == sorted(one.time_s for one in packets)
    framing = TRANSPORTS[transport]
    headers = 28 if transport == "ideal" else 0  # the ideal transport counts no headers
    for direction, address, time in (("up", DEVICE_IP, "sent_s"), ("down", CLOUD_IP, "delivered_s")):
        mine = [one for one in packets if one.source == address]
        sent = table[table["direction"] == direction]
        frames = [framing.frame(size) for size in sent["bytes"]]
        assert len(mine) == sum(segments for _, segments in frames)
        assert sum(len(one.ip) for one in mine) == sum(size + headers * segments for size, segments in frames)
        assert {one.protocol for one in mine} == {6 if transport in ("tcp", "grpc") else 17}
        assert {round(1e6 * one.time_s) for one in mine} == {round(1e6 * at) for at in sent[time]}
        if transport in ("tcp", "grpc"):  # one stream without gaps
            following = 1
            for one in mine:
                sequence, _, offset = struct.unpack("!IIB", one.body[4:13])
                assert sequence == following
                following += len(one.body) - 4 * (offset >> 4)


def test_what_does_not_go_together_is_one_line(path: Path, cache: Path, tmp_path: Path) -> None:
    assert "--as pcap: is not a text format; name a file with --out" in refused(str(path), "--as", "pcap")
    assert "--as mahimahi: is not a text format; name a folder with --out" in refused(str(path), "--as", "mahimahi")
    assert "--method: does not go with netem" in refused(str(path), "--as", "netem", "--method", "base")
    assert "--set: goes with netem, mahimahi, messages, pcap" in refused(str(path), "--set", "seed=1")
    assert "did you mean code?" in refused(str(path), "--as", "messages", "--method", "coda")
    more = ("--cache", str(cache), "--method", "base", "--request", "99")
    assert "--request 99: base has no message of it" in refused(str(path), "--as", "messages", *more)
    assert "no such file" in refused("nothing-there", "--as", "netem")
    assert "not a run folder" in refused(str(tmp_path), "--as", "netem")

"""Traces: a small file of every format, bad files, the project's own CSV, generators, commands; and real files where they lie beside."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ciar_sim.cli.main import main
from simulator.core.errors import TraceError
from simulator.core.rng import stream
from simulator.traces.generate import KINDS, LEO_STEPS_S, Kind, LogRate, Outages, ar1, generate, generate_as, outages
from simulator.traces.own import own_text
from simulator.traces.read import FORMATS, read, read_arrivals, read_trace
from simulator.traces.series import RateSeries, StepSeries
from simulator.traces.trace import Arrivals, Direction, Trace, summary

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "traces"

GNETTRACK = """\
Timestamp,Longitude,NetworkMode,DL_bitrate,UL_bitrate,State,PINGAVG,PINGLOSS
2020.02.13_23.59.58,-8.3,5G,1000,10,D,-,-
2020.02.13_23.59.58,-8.3,5G,3000,10,D,50.0,0.0
2020.02.14_00.00.01,-8.3,LTE,-,10,I,-,-
2020.02.14_00.00.02,-8.3,LTE,0,50,D,70.0,19.0
"""
SABRE = '[{"duration_ms": 1000, "bandwidth_kbps": 2000, "latency_ms": 100}, {"duration_ms": 3000, "bandwidth_kbps": 0, "latency_ms": 100}]'
OPENNETLAB = """{"type": "video", "downlink": {}, "uplink": {"trace_pattern": [
 {"duration": 1000, "capacity": 500, "loss": 0.2, "rtt": 100, "jitter": 3}, {"duration": 1000, "capacity": 1500, "rtt": 0}]}}"""
PANTHEON = '{"timestamps": [0, 0.5, 1.0], "bandwidths": [9, 1.0, 3.0], "delays": [17.5], "loss": 0, "queue": 10}'
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:05.9799600,31,8"
)
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
9,GPT-4,8,0,8,API log
"""
GENTD26 = """\
gmt_create,predict_type,predict_status,exec_time_seconds,groupId
2024-11-15 16:57:50,TXT_2_IMG,SUCCEED,32.0,G0000
2024-11-15 16:57:50,TXT_2_IMG,FAILED,,G0001
2024-11-15 16:58:00,IMG_2_IMG,SUCCEED,1.0,G0001
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 10, "output_length": 5, "hash_ids": [0]}
{"timestamp": 0, "input_length": 20, "output_length": 6, "hash_ids": [0, 1]}
{"timestamp": 4000, "input_length": 30, "output_length": 7, "hash_ids": []}
"""
STARLINK = "20.0,100.0,30.0,40.0,0.0,0.1,500\n20.0,,200.0,200.0,1.0,1.0,600\n10.0,50.0,32.0,42.0,0.0,0.0,700\n"
DELAYS = "".join(f"{12 + (i * 7) % 5}\n" for i in range(100))
OWN = "# a note\ntime_s,down_mbps,up_mbps,rtt_ms,loss_pct\n0,8,2,40,1\n1,,0,60,\n3,4,2,50,0\n"

# content -> format, duration, mean down Mbit/s, mean up Mbit/s, mean RTT ms, loss %, packets; all worked out by hand
NETWORK = {
    "mahimahi": ("0\n0\n5\n5\n5\n10\n", "mahimahi", 0.010, 7.2, None, None, None, 6),
    "mahimahi, CRLF and blank lines at the end": ("3\r\n10\r\n\r\n\n", "mahimahi", 0.010, 2.4, None, None, None, 2),
    "delays": (DELAYS, "leoreplayer-delay", 1.0, None, None, 28.0, None, None),
    "time-rate": ("100.0\t9.0\n100.5\t1.0\n100.5\t7.0\n102.0\t3.0\n\n", "time-rate", 2.0, 2.5, None, None, None, None),
    "starlink": (
        STARLINK,
        "starlink-csv",
        0.3,
        250 / 3,
        50 / 3,
        (70 + 70 + 74) / 3,
        100 * (1.0 / 3 + 1.1 / 3) / 2,
        None,
    ),
    "gnettrack": (GNETTRACK, "gnettrack", 4.0, (1 + 3 + 3 + 0) / 4, 0.02, (50 + 50 + 50 + 70) / 4, 2.5, None),
    "ping": (
        "Probe Number,RTT [ms],Probe Send Time\n1,20,11:40:59\n2,30,11:41:00\n",
        "ping-csv",
        2.0,
        None,
        None,
        25.0,
        None,
        None,
    ),
    "sabre": (SABRE, "sabre-json", 4.0, 0.5, None, 100.0, None, None),
    "opennetlab": (OPENNETLAB, "opennetlab-json", 2.0, None, 1.0, 100.0, 20.0, None),
    "pantheon": (PANTHEON, "pantheon-json", 1.0, 2.0, None, 35.0, 0.0, None),
    "own": (
        OWN,
        "ciar-sim-csv",
        5.0,
        (8 + 2 * 8 + 2 * 4) / 5,
        (2 + 0 + 4) / 5,
        (40 + 120 + 100) / 5,
        (1 + 2 + 0) / 5,
        None,
    ),
}
ARRIVALS = {
    "azure": (AZURE, "azure-llm-csv", 2.0, 2),
    "burstgpt": (BURSTGPT, "burstgpt-csv", 4.0, 2),
    "gentd26": (GENTD26, "gentd26-csv", 10.0, 3),
    "mooncake": (MOONCAKE, "mooncake-jsonl", 4.0, 3),
    "own": ("requested_s,input_tokens\n0.5,3\n2.5,4\n", "ciar-sim-arrivals-csv", 2.0, 2),
}


def file(folder: Path, content: str | bytes, name: str = "trace.dat") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("case", NETWORK)
def test_network_formats(case: str, tmp_path: Path) -> None:
    content, name, duration_s, down, up, rtt_ms, loss_pct, packets = NETWORK[case]
    trace = read_trace([file(tmp_path, content)])
    figures = summary(trace)
    assert list(figures) == ["format", "duration_s", "down_mbps", "up_mbps", "rtt_ms", "loss_pct", "packets"]
    assert (figures["format"], figures["packets"]) == (name, packets)
    assert figures["duration_s"] == pytest.approx(duration_s)
    for rate, mean in ((trace.down.rate, down), (trace.up.rate, up)):
        assert (None if rate is None else rate.mean_bps() / 1e6) == (None if mean is None else pytest.approx(mean))
    assert (figures["rtt_ms"] and figures["rtt_ms"]["mean"]) == (rtt_ms and pytest.approx(rtt_ms))
    assert figures["loss_pct"] == (None if loss_pct is None else pytest.approx(loss_pct))
    # Whatever it was, the project's own CSV says the same.
    again = read_trace([file(tmp_path, own_text(trace, "from elsewhere"), "own.csv")])
    for key in ("duration_s", "down_mbps", "up_mbps", "rtt_ms", "loss_pct"):
        assert summary(again)[key] == (
            figures[key] if figures[key] is None else pytest.approx(figures[key], rel=1e-9, abs=1e-12)
        ), key


@pytest.mark.parametrize("case", ARRIVALS)
def test_arrival_formats(case: str, tmp_path: Path) -> None:
    content, name, duration_s, requests = ARRIVALS[case]
    arrivals = read_arrivals(file(tmp_path, content))
    expected = {
        "format": name,
        "duration_s": duration_s,
        "requests": requests,
        "rate_per_s": (requests - 1) / duration_s,
    }
    assert summary(arrivals) == pytest.approx(expected)
    again = read_arrivals(file(tmp_path, own_text(arrivals), "own.csv"))
    assert np.allclose(again.requested_s, arrivals.requested_s, rtol=0, atol=1e-9)
    for one, other in ((again.input_tokens, arrivals.input_tokens), (again.output_tokens, arrivals.output_tokens)):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)


def test_every_format_is_tried_here_and_documented() -> None:
    tried = {case[1] for case in NETWORK.values()} | {case[1] for case in ARRIVALS.values()}
    page = (ROOT / "docs" / "traces.md").read_text()
    assert tried == set(FORMATS)
    assert all(f"`{name}`" in page for name in [*FORMATS, *KINDS])
    assert f"Kinds:{','.join(KINDS)}." in "".join(call("generate", "--help").output.split())  # it folds at hyphens


def test_a_millisecond_of_a_mahimahi_trace_has_its_chances(tmp_path: Path) -> None:
    rate = read_trace([file(tmp_path, "0\n0\n5\n5\n5\n10\n")]).down.rate
    assert rate is not None
    assert rate.times_s.tolist() == [0.0, 0.001, 0.005, 0.006]  # time 10 is time 0 of the next pass
    assert rate.rate_bps.tolist() == [36e6, 0.0, 36e6, 0.0]


def test_files_that_belong_together(tmp_path: Path) -> None:
    down, up = file(tmp_path, "1\n10\n", "x.down"), file(tmp_path, "1\n2\n20\n", "x.up")
    delay, plain = file(tmp_path, DELAYS, "delay.txt"), file(tmp_path, "5\n1000\n", "bw.txt")
    pair = summary(read([down, up]))
    assert (pair["format"], pair["packets"], pair["duration_s"]) == ("mahimahi", 5, 0.02)
    assert pair["up_mbps"]["mean"] == pytest.approx(1.8)
    leo = summary(read([plain, delay]))
    assert (leo["format"], leo["packets"], leo["rtt_ms"]["mean"]) == ("leoreplayer", 2, pytest.approx(28.0))
    assert summary(read([plain], "up"))["up_mbps"]["mean"] == pytest.approx(0.024)
    with pytest.raises(TraceError, match=r"bw\.txt.*downlink rate.*x\.down"):
        read([down, plain])
    with pytest.raises(TraceError, match="cannot be joined"):
        read([down, file(tmp_path, MOONCAKE, "m")])


BAD = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "binary": (b"\x1f\x8b\x08\x00\x00\xff", "text"),
    "zeros": (b"1\n\x00\x00\n", "binary"),
    "unknown": ("when,how fast\n1,2\n", "looked for"),
    "words": ("hello world and all\n", "looked for"),
    "other table": ("interval,RTT1,KeepOrDrop\n0,52,YEP\n", "looked for"),
    "json of something else": ('{"a": 1}', "looked for"),
    "mahimahi goes back": ("0\n5\n3\n8\n", ":3: mahimahi time goes back: 3 after 5"),
    "mahimahi negative": ("-5\n3\n", ":1: milliseconds must be >= 0, got -5"),
    "mahimahi fraction": ("1\n2.5\n", ":2: must be a whole number"),
    "mahimahi two columns": ("1\n2 3\n", ":2: holds 2 columns; allowed: 1"),
    "mahimahi word": ("1\nx\n", ":2: 'x' is not a number"),
    "mahimahi not finite": ("1\ninf\n", ":2: 'inf' is not a finite number"),
    "mahimahi hole": ("1\n\n3\n", ":3: an empty line"),
    "mahimahi in nanoseconds": ("0\n90000000000\n", "duration_s must be beyond the last time 0.001 and at most 1e+07"),
    "mahimahi without duration": ("0\n0\n", ":2: the last time is 0"),
    "time-rate goes back": ("0 1\n2 1\n1 1\n", ":3: time goes back: 1 after 2"),
    "time-rate negative": ("0 1\n1 -2\n", ":2: rate in Mbit/s must be 0 to 1e+06, got -2"),
    "time-rate not finite": ("0 1\n1 nan\n", ":2: 'nan' is not a finite number"),
    "time-rate in bit/s": ("0 1\n1 5000000\n", ":2: rate in Mbit/s"),
    "time-rate in s and ms": ("0 1\n1 1\n2 1\n3000 1\n", ":4: time jumps by 2998 s"),
    "time-rate columns": ("0 1\n1 1 1\n", ":2: holds 3 columns; allowed: 2"),
    "time-rate one line": ("0 1\n", "no duration"),
    "starlink columns": (STARLINK + "1,2\n", ":4: holds 2 columns; allowed: 7"),
    "starlink loss in percent": (STARLINK.replace("0.1,500", "10,500"), ":1: column 6, down loss"),
    "starlink negative": (STARLINK.replace("32.0", "-32.0"), ":3: all columns must be >= 0, got -32"),
    "gnettrack goes back": (GNETTRACK.replace("02.14_00.00.02", "02.13_00.00.02"), ":5: Timestamp (in s) goes back"),
    "gnettrack stamp": (GNETTRACK.replace("2020.02.14_00.00.01", "yesterday"), ":4: Timestamp 'yesterday'"),
    "gnettrack columns": (GNETTRACK + "2020.02.14_00.00.03,1\n", ":6: holds 2 columns; allowed: 8"),
    "gnettrack negative": (GNETTRACK.replace("3000", "-3000"), ":3: DL_bitrate must be >= 0, got -3000"),
    "header alone": (GNETTRACK.splitlines()[0], "header and no rows"),
    "cut-off json": (SABRE[:-20], ":1: damaged or cut-off JSON"),
    "sabre without a key": ('[{"bandwidth_kbps": 1}]', "[0].duration_ms: is missing"),
    "sabre word": (SABRE.replace("3000", '"long"'), "[1].duration_ms: must be a number, got 'long'"),
    "sabre negative": (SABRE.replace("2000", "-2000"), "[0].bandwidth_kbps"),
    "sabre NaN": (SABRE.replace("2000", "NaN"), "[0].bandwidth_kbps"),
    "sabre without duration": ('[{"duration_ms": 0, "bandwidth_kbps": 1}]', "add up to 0"),
    "opennetlab empty": ('{"uplink": {}, "downlink": {}}', "trace_pattern"),
    "opennetlab loss": (OPENNETLAB.replace("0.2", "20"), "uplink.trace_pattern[0].loss: must be 0 to 1, got 20"),
    "pantheon lengths": (PANTHEON.replace("9, 1.0", "9"), "holds 2 values; allowed: 3"),
    "pantheon goes back": (PANTHEON.replace("0.5", "2.5"), "timestamps[2]: 1 after 2.5"),
    "azure goes back": (AZURE + "\n2023-11-16 18:17:04,1,1\n", ":4: arrival (in s) goes back"),
    "azure stamp": (AZURE.replace("2023-11-16 18:17:05.9799600", "noon"), ":3: TIMESTAMP 'noon'"),
    "mooncake cut off": (MOONCAKE[:-30], ":3: damaged or cut-off JSON"),
    "mooncake negative": (MOONCAKE.replace("4000", "-4000"), ":3: key timestamp"),
    "burstgpt tokens": (BURSTGPT.replace("472", "4.5"), ":2: tokens must be a whole number, got 4.5"),
    "one request": ("requested_s\n1\n", "no duration"),
    "own alone": ("time_s\n0\n1\n", "time_s alone"),
    "own unit": ("time_s,down_kbps\n0,1\n1,1\n", "column 'down_kbps' is not known"),
    "own two units": ("time_s,rtt_ms,delay_up_ms\n0,1,1\n1,1,1\n", "twice"),
    "own column twice": ("time_s,rtt_ms,rtt_ms\n0,1,1\n1,1,1\n", "stands twice"),
    "own late start": ("time_s,rtt_ms\n1,1\n2,1\n", ":2: time_s must start at 0, got 1"),
    "own time twice": ("time_s,rtt_ms\n0,1\n0,2\n", ":3: time_s 0 stands twice"),
    "own one row": ("time_s,rtt_ms\n0,1\n", "one row"),
    "own first cell": ("time_s,rtt_ms\n0,\n1,2\n", ":2: rtt_ms must have a value"),
    "own loss": ("time_s,loss_pct\n0,1\n1,101\n", ":3: loss_pct must be <= 100, got 101"),
}


def lines_of(content: str) -> list[str]:
    return content.replace("\r\n", "\n").rstrip("\n").split("\n")


# what stands in such files and can mean one thing only -> the same content written so; mahimahi allows no comment inside
WRITTEN = {
    "a byte order mark": lambda lines: "\ufeff" + "\n".join(lines),
    "CRLF and empty lines at the end": lambda lines: "\r\n".join([*lines, "", " ", ""]),
    "blanks around a line": lambda lines: "\n".join(f" {line} " for line in lines),
    "comments and empty lines first": lambda lines: "\n".join(["# made by hand", "", *lines]),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("case", [*NETWORK, *ARRIVALS])
def test_the_same_file_written_otherwise(case: str, written: str, tmp_path: Path) -> None:
    content = str((NETWORK.get(case) or ARRIVALS[case])[0])
    if "comments" in written and lines_of(content)[0][0] in "[{":
        return  # JSON knows none
    path = file(tmp_path, WRITTEN[written](lines_of(content)))
    assert summary(read([path])) == summary(read([file(tmp_path, content, "plain")]))


OTHERWISE = {
    "columns in another order": (
        "gnettrack",
        "\n".join(",".join(line.split(",")[::-1]) for line in lines_of(GNETTRACK)),
    ),
    "tabs": ("gnettrack", GNETTRACK.replace(",", "\t")),
    "semicolons and quotes": ("gnettrack", '"' + GNETTRACK.replace("\n", '"\n"').replace(",", '";"').removesuffix('"')),
    "commas at the end": ("gnettrack", GNETTRACK.replace("\n", ",,\n")),
    "unused columns without a name": (
        "azure",
        AZURE.replace("\r\n", "\n").replace("\n", "\n0,,").replace("TIMESTAMP", ",,TIMESTAMP"),
    ),
    "zone and no fraction": ("azure", re.sub(r"\.\d+", "+00:00", AZURE)),
    "more columns": (
        "burstgpt",
        re.sub(r"\n(\d+),", r"\n\1,77,", BURSTGPT).replace("Timestamp,", "Timestamp,Session ID,"),
    ),
    "decimal seconds": ("burstgpt", BURSTGPT.replace("\n5,", "\n5.0,").replace("\n9,", "\n9.0,")),
    "keys in another order": (
        "mooncake",
        re.sub(r'("timestamp": \d+), ("input_length": \d+)', r'\2, "model": "x", \1', MOONCAKE),
    ),
    "commas": ("time-rate", "100.0,9.0\n100.5, 1.0\n100.5,7.0\n102.0,3.0\n"),
    "tabs between seven": ("starlink", STARLINK.replace(",,", ",100.0,").replace(",", "\t")),
    "a comment inside": ("own", OWN.replace("\n1,", "\n# later\n1,")),
    "no pattern": ("opennetlab", OPENNETLAB.replace('"downlink": {}', '"downlink": {"trace_pattern": []}')),
    "null": ("opennetlab", OPENNETLAB.replace(', "rtt": 0', ', "rtt": null, "loss": null')),
    "no direction": ("opennetlab", OPENNETLAB.replace('"downlink": {}', '"downlink": null')),
    "on one line": ("opennetlab", OPENNETLAB.replace("\n", "")),
    "a value for each time": (
        "pantheon",
        PANTHEON.replace("[17.5]", "[17.5, 17.5, 17.5]").replace('"loss": 0', '"loss": [0, 0, 0]'),
    ),
    "a number alone": ("pantheon", PANTHEON.replace("[17.5]", "17.5")),
    "spread over lines": ("sabre", json.dumps(json.loads(SABRE), indent=2)),
    "over midnight": ("ping", "Probe Number,RTT [ms],Probe Send Time\n1,20,23:59:59\n2,30,00:00:00\n"),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_other_ways_to_say_the_same(case: str, tmp_path: Path) -> None:
    original, content = OTHERWISE[case]
    plain = str((NETWORK.get(original) or ARRIVALS[original])[0])
    assert content != plain
    assert summary(read([file(tmp_path, content)])) == summary(read([file(tmp_path, plain, "plain")]))


CELLS = [
    *("", "0", "-1", "1e308", "1e9", "0.001", "9" * 14, "9" * 400, "nan", "inf", "null", "true", "2024-02-30"),
    *'-",[]{#\t\ud7ff',
]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A small file of some format in which lines or stretches of text were lost, doubled, swapped or replaced."""
    text = str(draw(st.sampled_from([*NETWORK.values(), *ARRIVALS.values()]))[0])
    for _ in range(draw(st.integers(1, 3))):
        by_line = draw(st.booleans())
        parts = text.splitlines(keepends=True) if by_line else re.split(r"(\W)", text)
        start = draw(st.integers(0, max(len(parts) - 1, 0)))
        end = draw(st.integers(start, min(len(parts), start + 5)))
        if by_line:
            new = draw(
                st.sampled_from([[], parts[start:end] * 2, parts[start:end][::-1], ["\n"], ["0\n"], ["x,y,z\n"]])
            )
        else:
            new = [draw(st.sampled_from(CELLS))]
        text = "".join([*parts[:start], *new, *parts[end:]])
        if draw(st.integers(0, 9)) == 0:
            text = text[: draw(st.integers(0, len(text)))]
    return text


@settings(max_examples=200, deadline=None)
@given(damaged())
def test_whatever_befell_a_file_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    """And what is read can be shown, written, and read again."""
    folder = tmp_path_factory.getbasetemp()
    path, out = file(folder, content, "damaged"), folder / "again.csv"
    out.unlink(missing_ok=True)
    result = call("import", path, "--out", out)
    if result.exit_code:
        assert_refused(result, str(path))
        assert not out.exists()
    else:
        shown = call("show", out, "--json")
        assert shown.exit_code == 0, shown.output
        assert json.loads(shown.stdout)["duration_s"] == pytest.approx(summary(read([path]))["duration_s"], rel=1e-6)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["traces", *map(str, arguments)])


def assert_refused(result: Result, named: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    assert named in result.stderr


@pytest.mark.parametrize("case", BAD)
def test_bad_files_get_one_error_and_leave_nothing(case: str, tmp_path: Path) -> None:
    content, named = BAD[case]
    path = file(tmp_path, content)
    result = call("import", path, "--out", tmp_path / "out.csv")
    assert_refused(result, named)
    assert str(path) in result.stderr
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_other_bad_arguments(tmp_path: Path) -> None:
    path = file(tmp_path, OWN)
    assert_refused(call("show", tmp_path / "absent"), "absent")
    assert_refused(call("show", tmp_path), str(tmp_path))
    assert_refused(call("import", path, "--out", path), "another name")
    assert path.read_text() == OWN
    assert_refused(call("import", path, "--out", path / "below.csv"), "below.csv")
    assert_refused(call("generate", "lte-drivign", "--out", tmp_path / "x.csv"), "did you mean")
    assert_refused(call("generate", "lte", "--duration-s", "nan", "--out", tmp_path / "x.csv"), "duration_s")
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(TraceError, match="request arrivals"):
        read_trace([file(tmp_path, MOONCAKE, "m")])
    with pytest.raises(TraceError, match="network trace"):
        read_arrivals(path)


def test_show_and_import(tmp_path: Path) -> None:
    path = file(tmp_path, GNETTRACK)
    result = call("show", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == summary(read([path]))
    assert not list(tmp_path.glob("*.png"))
    result = call("show", path)
    assert "lower bound" in result.stdout
    assert (tmp_path / "trace.dat.png").read_bytes().startswith(b"\x89PNG")
    result = call("import", path, "--out", tmp_path / "own.csv")
    assert result.exit_code == 0
    lines = (tmp_path / "own.csv").read_text().splitlines()
    assert lines[:2] == ["# from trace.dat (gnettrack)", "time_s,down_mbps,up_mbps,rtt_ms,loss_pct"]
    assert call("show", file(tmp_path, MOONCAKE, "m"), "--out", tmp_path / "m.png").exit_code == 0
    assert (tmp_path / "m.png").exists()


SERIES = st.integers(1, 20).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(1, 5000).map(lambda ms: ms / 1e3)),
        arrays(np.float64, n, elements=st.integers(0, 10**6).map(lambda kbps: kbps * 1e3)),
    )
)


@settings(max_examples=25, deadline=None)
@given(SERIES, SERIES)
def test_own_csv_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> None:
    down, up = (
        RateSeries(np.append(0.0, np.cumsum(steps)[:-1]), rates, float(steps.sum())) for steps, rates in (one, other)
    )
    trace = Trace("ciar-sim-csv", Direction(down), Direction(up))
    path = file(tmp_path_factory.getbasetemp(), own_text(trace), "round.csv")
    again = read_trace([path])
    assert again.duration_s == pytest.approx(trace.duration_s)
    probes = (np.arange(200) + 0.4321) * trace.duration_s / 200
    for before, after in ((down, again.down.rate), (up, again.up.rate)):
        assert after is not None
        at = [s.rate_bps[np.searchsorted(s.times_s, probes % s.duration_s, side="right") - 1] for s in (before, after)]
        near = (
            np.abs(probes % before.duration_s - before.times_s[:, None]).min(axis=0) < 1e-6
        )  # a probe on a step may fall either side
        assert np.allclose(at[0][~near], at[1][~near])


@pytest.mark.parametrize(
    ("times_s", "rates", "duration_s", "named"),
    [
        ([], [], 1, "at least one"),
        ([1.0], [1.0], 2, "start at 0"),
        ([0, 2, 2], [1, 1, 1], 3, "must increase"),
        ([0, 1], [1.0], 2, "one length"),
        ([0, 1], [1, -1], 2, "rate_bps"),
        ([0, 1], [1, math.nan], 2, "rate_bps"),
        ([0, 1], [1, 1], 1.0, "duration_s"),
        ([0, 1], [1, 1], math.inf, "duration_s"),
        ([0], [2e12], 1, "1e+12"),
    ],
)
def test_a_series_keeps_its_rules(times_s: list[float], rates: list[float], duration_s: float, named: str) -> None:
    with pytest.raises(TraceError, match=re.escape(named)):
        RateSeries(np.array(times_s), np.array(rates), duration_s)


def test_bins_of_a_series() -> None:
    series = RateSeries(np.array([0.0, 0.5, 2.0]), np.array([4.0, 8.0, 2.0]), 2.5)
    assert series.binned().tolist() == [6.0, 8.0, 2.0]
    assert series.mean_bps() == (2 + 12 + 1) / 2.5
    assert RateSeries(np.array([0.0]), np.array([4.0]), 2.125).binned().tolist() == [4.0, 4.0]
    assert not series.rate_bps.flags.writeable
    with pytest.raises(TraceError, match="share"):
        Direction(loss=StepSeries(np.array([0.0]), np.array([1.5]), 1.0))


# --- generators: sampling errors of a long trace, so that a bound of 4 standard errors fails by chance once in 16,000 ---------

LONG_S = 40_000


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.leo])
def test_generated_rates_have_the_parameters_asked_for(kind: str) -> None:
    trace, parameters = generate(kind, 1, LONG_S), KINDS[kind]
    share = 0.0 if parameters.outages is None else parameters.outages.share
    for way, asked in ((trace.down, parameters.down), (trace.up, parameters.up)):
        assert way.rate is not None
        rate = way.rate.rate_bps / 1e6
        assert rate.mean() == pytest.approx(asked.mean_mbps, abs=5e-4)  # whole kbit/s
        up, phi, sd = rate > 0, asked.autocorrelation, asked.sd_ln(share)
        logs = np.log(np.where(up, rate, 1.0))
        z = (logs - logs[up].mean()) / sd
        n = int(up.sum())
        # Of a Gaussian AR(1): Var(sample variance) = 2 (1 + phi^2) / (1 - phi^2) / n, Var(phi estimate) = (1 - phi^2) / n. Outages
        # thin the pairs by a factor below 1.5.
        assert abs((z[up] ** 2).mean() - 1) < 4 * math.sqrt(1.5 * 2 * (1 + phi**2) / (1 - phi**2) / n)
        pairs = up[1:] & up[:-1]
        estimate = (z[1:] * z[:-1])[pairs].mean() / (z[up] ** 2).mean()
        assert abs(estimate - phi) < 4 * math.sqrt(1.5 * (1 - phi**2) / n) + 4 / math.sqrt(n) * (share > 0)
        # E[x^2] decides cv; with z_t of correlation phi^k, Var(mean of exp(2 s z)) is bounded by its value for k -> integrated time.
        times = 1.5 * (1 + phi) / (1 - phi)
        relative = math.sqrt(times * (math.exp(4 * sd**2) - 1) / n)
        if parameters.outages is not None:  # scaled to the mean, E[x^2] goes with 1 / (1 - share) of the sample
            memory = 1 - 1 / parameters.outages.run_s / (1 - share)
            relative += math.sqrt(share / (1 - share) * (1 + memory) / (1 - memory) / LONG_S)
        assert abs((rate**2).mean() / asked.mean_mbps**2 / (1 + asked.cv**2) - 1) < 4 * relative


@pytest.mark.parametrize(("share", "run_s"), [(0.05, 1.5), (0.23, 4.6), (0.10, 15.0)])
def test_outages_have_the_share_and_the_length_asked_for(share: float, run_s: float) -> None:
    out = outages(Outages(share, run_s), LONG_S, stream(3, "test"))
    ends, begins = 1 / run_s, share / (1 - share) / run_s
    memory = 1 - ends - begins
    assert abs(out.mean() - share) < 4 * math.sqrt(share * (1 - share) * (1 + memory) / (1 - memory) / LONG_S)
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], out.astype(int), [0]]))))[::2]
    assert abs(runs.mean() - run_s) < 4 * math.sqrt(run_s * (run_s - 1) / len(runs))


def test_the_autoregression_alone() -> None:
    z = ar1(0.9, LONG_S, stream(1, "test"))
    assert abs((z[1:] * z[:-1]).mean() / (z**2).mean() - 0.9) < 4 * math.sqrt((1 - 0.81) / LONG_S)
    firsts = np.array([ar1(0.9, 2, stream(i, "test")) for i in range(2000)])
    assert np.abs(firsts.std(axis=0) - 1).max() < 4 / math.sqrt(2 * 2000)  # stationary from the first value


def test_a_leo_link_steps_every_fifteen_seconds() -> None:
    trace = generate("leo", 2, 3600)
    down, delay_s = trace.down.rate, trace.down.delay_s
    assert down is not None
    assert delay_s is not None
    stops = down.times_s[down.rate_bps == 0]
    assert len(stops) == 4 * 60
    assert set(stops % 60) == set(LEO_STEPS_S)
    holds_s = down.times_s[np.flatnonzero(down.rate_bps == 0) + 1] - stops
    assert holds_s.min() >= 0.05 - 1e-9
    assert holds_s.max() <= 0.2 + 1e-9
    assert np.array_equal(delay_s.times_s[1:], down.times_s[np.flatnonzero(down.rate_bps == 0) + 1])
    assert len(np.unique(down.rate_bps)) > 200
    assert summary(trace)["down_mbps"]["mean"] == pytest.approx(100, rel=1e-4)
    assert abs(summary(trace)["rtt_ms"]["mean"] - 45) < 4 * 20 / math.sqrt(12 * 241)


def test_generators_depend_on_seed_and_arguments_alone() -> None:
    assert own_text(generate("lte", 1, 60)) == own_text(generate("lte", 1, 60))
    assert own_text(generate("lte", 1, 60)) != own_text(generate("lte", 2, 60))
    assert generate("lte", 1, 59.5).duration_s == 59.5


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Kind(LogRate(-1, 0.5, 0.5), LogRate(1, 0.5, 0.5), None, ""), "mean_mbps"),
        (Kind(LogRate(1, 0.5, 1.0), LogRate(1, 0.5, 0.5), None, ""), "autocorrelation"),
        (Kind(LogRate(1, 0.1, 0.5), LogRate(1, 0.1, 0.5), Outages(0.5, 3.0), ""), "cv must be >= 1"),
        (Kind(LogRate(1, 2, 0.5), LogRate(1, 2, 0.5), Outages(0.5, 0.5), ""), "run_s"),
        (Kind(LogRate(1, 2, 0.5), LogRate(1, 2, 0.5), Outages(1.0, 5), ""), "share"),
    ],
)
def test_parameters_out_of_range(kind: Kind, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        generate_as(kind, "own", 0, 60)


SHIPPED = re.findall(r"^ciar-sim traces generate .*$", (ROOT / "traces" / "README.md").read_text(), re.MULTILINE)


def test_the_shipped_traces_are_those_the_readme_generates(tmp_path: Path) -> None:
    made = set()
    for command in SHIPPED:
        arguments = shlex.split(command)[1:]
        place = arguments.index("--out") + 1
        shipped = ROOT / arguments[place]
        arguments[place] = str(tmp_path / shipped.name)
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes(), shipped.name
        assert shipped.stat().st_size < 50_000
        made.add(shipped.name)
    assert made == {path.name for path in (ROOT / "traces").glob("*.csv")}


# --- real files, where a folder of them lies beside the checkout --------------------------------------------------------------


def facts() -> dict[str, list[str]]:
    """A row of each folder's table of facts by file."""
    rows = {}
    for page in sorted(REAL.glob("*/README.md")):
        for line in page.read_text().splitlines():
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) == 10 and (page.parent / cells[0]).is_file():
                rows[f"{page.parent.name}/{cells[0]}"] = cells
    return rows


FACTS = facts()


@pytest.mark.skipif(not FACTS, reason="no folder of real traces beside the checkout")
def test_real_files_have_the_figures_of_their_tables(tmp_path: Path) -> None:
    """As they are, and once imported."""
    compared = 0
    for name, (_, _, _, duration_s, lines, _, rates, rtt, _, _) in FACTS.items():
        path = REAL / name
        if duration_s == "-" and name.startswith(("rrc_probe", "speedtests")) and "/ping_" not in name:
            with pytest.raises(TraceError, match="looked for"):  # tables of independent tests, no time series
                read([path])
            continue
        trace = read([path])
        figures = summary(trace)
        again = (
            summary(read([file(tmp_path, own_text(trace), "own.csv")])) if path.stat().st_size < 300_000 else figures
        )  # it takes long
        for key in set(figures) - {"format", "packets"}:
            assert again[key] == (
                figures[key] if figures[key] is None else pytest.approx(figures[key], rel=1e-3, abs=1e-6)
            ), (name, key)
        if duration_s != "-":
            assert figures["duration_s"] == pytest.approx(float(duration_s), rel=1e-3), name
        if isinstance(trace, Arrivals):
            assert figures["requests"] == int(lines)
            assert figures["rate_per_s"] == pytest.approx(float(rates.split()[0]), rel=0.01)
            compared += 1
            continue
        if figures["packets"] is not None:
            assert figures["packets"] == int(lines), name
        triple = re.match(r"([\d.]+) / ([\d.]+) / ([\d.]+)", rates)
        if triple:
            mean, p5, p95 = map(float, triple.groups())
            found = figures["down_mbps"] or figures["up_mbps"]
            assert found["mean"] == pytest.approx(mean, rel=0.01), name
            assert found["p5"] == pytest.approx(p5, rel=0.05, abs=0.005), name  # tables round to 2 or 3 digits
            assert found["p95"] == pytest.approx(p95, rel=0.05), name
            compared += 1
        rtt_mean = re.match(r"mean ([\d.]+)", rtt)
        if rtt_mean:
            assert figures["rtt_ms"]["mean"] == pytest.approx(float(rtt_mean.group(1)), rel=0.01), name
    assert (
        compared == sum(" / " in cells[6] or "req/s" in cells[6] for cells in FACTS.values()) - 1
    )  # the 4G speed tests

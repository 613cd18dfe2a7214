"""Bad files and arguments: one error that names file and line, exit code 2, nothing left behind."""

import re
from pathlib import Path

import pytest

from simulator.core.errors import TraceError
from simulator.traces.read import read_arrivals, read_trace
from tests.simulator.traces.examples import (
    AZURE,
    BURSTGPT,
    GNETTRACK,
    MOONCAKE,
    OPENNETLAB,
    OWN,
    PANTHEON,
    SABRE,
    STARLINK,
    assert_refused,
    call,
    file,
)

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
    "mahimahi in nanoseconds": (
        "0\n90000000000\n",
        "the unit of time is not stated and cannot be inferred: in ms it would last 9e+07 s",
    ),
    "mahimahi without duration": ("0\n0\n", ":2: the last time is 0"),
    "time-rate goes back": ("0 1\n2 1\n1 1\n", ":3: time goes back: 1 after 2"),
    "time-rate negative": ("0 1\n1 -2\n", ":2: rate must be >= 0, got -2"),
    "time-rate not finite": ("0 1\n1 nan\n", ":2: 'nan' is not a finite number"),
    "time-rate in bit/s": (
        "0 1000000\n1 5000000\n",
        "the unit of rates is not stated and cannot be inferred: the median rate is 3e+06",
    ),
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
    "sabre word": (SABRE.replace("3000", '"long"'), "[1].duration_ms: must be a number >= 0, got 'long'"),
    "sabre negative": (SABRE.replace("2000", "-2000"), "[0].bandwidth_kbps"),
    "sabre NaN": (SABRE.replace("2000", "NaN"), "[0].bandwidth_kbps"),
    "sabre without duration": ('[{"duration_ms": 0, "bandwidth_kbps": 1}]', "add up to 0"),
    "opennetlab empty": ('{"uplink": {}, "downlink": {}}', "trace_pattern"),
    "opennetlab loss": (OPENNETLAB.replace("0.2", "20"), "uplink.trace_pattern[0].loss: must be 0 to 1, got 20"),
    "pantheon lengths": (PANTHEON.replace("1.0, 3.0", "3.0"), "holds 2 values; allowed: 3"),
    "pantheon goes back": (PANTHEON.replace("0.5", "2.5"), "timestamps[2]: 1 after 2.5"),
    "azure empty cell": (AZURE + "\n2023-11-16 18:19:04,,1\n", ":4: '' is not a number (column ContextTokens)"),
    "azure goes back": (AZURE + "\n2023-11-16 18:17:04,1,1\n", ":4: arrival (in s) goes back"),
    "azure date": (re.sub(r" 18:[\d:.]+", "", AZURE), ":2: TIMESTAMP '2023-11-16'; allowed: YYYY-MM-DD HH:MM:SS"),
    "azure stamp": (AZURE.replace("2023-11-16 18:17:05.9799600", "noon"), ":3: TIMESTAMP 'noon'"),
    "mooncake cut off": (MOONCAKE[:-30], ":3: damaged or cut-off JSON"),
    "mooncake negative": (MOONCAKE.replace("4000", "-4000"), ":3: key timestamp"),
    "burstgpt tokens": (BURSTGPT.replace("472", "4.5"), ":2: tokens must be a whole number, got 4.5"),
    "one request": ("requested_s\n1\n", "no duration"),
    "own alone": ("time_s\n0\n1\n", "no column but time_s"),
    "own unit": ("time_s,down_kbps\n0,1\n1,1\n", "column 'down_kbps' is not known"),
    "own two units": ("time_s,rtt_ms,delay_up_ms\n0,1,1\n1,1,1\n", "twice"),
    "own column twice": ("time_s,rtt_ms,rtt_ms\n0,1,1\n1,1,1\n", "occurs twice"),
    "own late start": ("time_s,rtt_ms\n1,1\n2,1\n", ":2: time_s must start at 0, got 1"),
    "own time twice": ("time_s,rtt_ms\n0,1\n0,2\n", ":3: time_s 0 occurs twice"),
    "own one row": ("time_s,rtt_ms\n0,1\n", "one row"),
    "own first cell": ("time_s,rtt_ms\n0,\n1,2\n", ":2: rtt_ms must have a value"),
    "own loss": ("time_s,loss_pct\n0,1\n1,101\n", ":3: loss_pct must be <= 100, got 101"),
}


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

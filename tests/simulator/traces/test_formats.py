"""Every trace format: figures calculated by hand, the conversion to the project's own CSV, and other spellings of the same file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import TraceError
from simulator.traces.choice import TraceChoice
from simulator.traces.generate import KINDS
from simulator.traces.own import own_text
from simulator.traces.read import FORMATS, read, read_arrivals, read_trace
from simulator.traces.summary import summary
from simulator.traces.units import Way, told
from tests.simulator.traces.examples import (
    ARRIVALS,
    AZURE,
    BURSTGPT,
    DELAYS,
    GNETTRACK,
    MOONCAKE,
    NETWORK,
    OPENNETLAB,
    OWN,
    PANTHEON,
    ROOT,
    SABRE,
    STARLINK,
    call,
    file,
    lines_of,
)


@pytest.mark.parametrize("case", NETWORK)
def test_network_formats(case: str, tmp_path: Path) -> None:
    content, name, duration_s, down, up, rtt_ms, loss_pct, packets = NETWORK[case]
    trace = read_trace([file(tmp_path, content)])
    figures = summary(trace)
    assert list(figures) == ["format", "duration_s", "down_mbps", "up_mbps", "rtt_ms", "loss_pct", "packets", "assumed"]
    assert (figures["format"], figures["packets"]) == (name, packets)
    assert figures["duration_s"] == pytest.approx(duration_s)
    for rate, mean in ((trace.down.rate, down), (trace.up.rate, up)):
        assert (None if rate is None else rate.mean_bps() / 1e6) == (None if mean is None else pytest.approx(mean))
    assert (figures["rtt_ms"] and figures["rtt_ms"]["mean"]) == (rtt_ms and pytest.approx(rtt_ms))
    assert figures["loss_pct"] == (None if loss_pct is None else pytest.approx(loss_pct))
    # The project's own CSV has the same figures.
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
    figures = summary(arrivals)
    figures.pop("assumed")
    assert figures == pytest.approx(expected)
    again = read_arrivals(file(tmp_path, own_text(arrivals), "own.csv"))
    assert np.allclose(again.requested_s, arrivals.requested_s, rtol=0, atol=1e-9)
    for one, other in ((again.input_tokens, arrivals.input_tokens), (again.output_tokens, arrivals.output_tokens)):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)


def test_every_format_is_tried_here_and_documented() -> None:
    tried = {case[1] for case in NETWORK.values()} | {case[1] for case in ARRIVALS.values()}
    page = (ROOT / "docs" / "traces.md").read_text()
    untried = set(FORMATS) - tried - {"cellreplay-offset"}  # goes with another file: test_cellular.py
    assert not untried, (
        f"NETWORK or ARRIVALS of tests/simulator/traces/examples.py needs an example of {', '.join(sorted(untried))}"
    )
    untold = [name for name in [*FORMATS, *KINDS] if f"`{name}`" not in page]
    assert not untold, f"docs/traces.md needs a row for {', '.join(untold)}"
    assert f"Kinds:{','.join(KINDS)}." in "".join(call("generate", "--help").output.split())  # wrapped at hyphens


def test_a_millisecond_of_a_mahimahi_trace_has_its_chances(tmp_path: Path) -> None:
    rate = read_trace([file(tmp_path, "0\n0\n5\n5\n5\n10\n")]).down.rate
    assert rate is not None
    assert rate.times_s.tolist() == [0.0, 0.001, 0.005, 0.006]  # time 10 is time 0 of the next pass
    assert rate.rate_bps.tolist() == [36e6, 0.0, 36e6, 0.0]


@pytest.mark.parametrize(
    "content", [one[0] for one in NETWORK.values() if "direction" in FORMATS[one[1]].asks], ids=lambda text: text[:12]
)
def test_a_direction_that_a_file_does_not_state_is_told_or_named(content: str, tmp_path: Path) -> None:
    cases: tuple[tuple[str, Way | None, str, str], ...] = (
        ("x.up", None, "uplink", "by the file's name"),
        ("up-x", None, "uplink", "by the file's name"),
        ("x.up", "down", "downlink", "as given"),
        ("x.txt", "up", "uplink", "as given"),
        ("x.down", None, "downlink", "assumed: the file does not say"),
    )
    for name, said, way, known in cases:
        trace = read_trace([file(tmp_path, content, name)], told(said))
        other, given = (trace.down, trace.up) if way == "uplink" else (trace.up, trace.down)
        assert (other.rate, other.trains) == (None, None)
        assert given.rate is not None or given.trains is not None
        assert f"the {way}, {known}" in trace.notes


def test_a_file_under_down_or_up_of_a_scenario_is_of_the_direction_that_it_was_told(tmp_path: Path) -> None:
    down, up = (str(file(tmp_path, "1\n10\n", name)) for name in ("a.txt", "b.txt"))
    notes = TraceChoice((down, up), ("down", "up")).read().notes
    assert [note for note in notes if "link" in note] == ["down: the downlink, as given", "up: the uplink, as given"]


def test_files_that_belong_together(tmp_path: Path) -> None:
    down, up = file(tmp_path, "1\n10\n", "x.down"), file(tmp_path, "1\n2\n20\n", "x.up")
    delay, plain = file(tmp_path, DELAYS, "delay.txt"), file(tmp_path, "5\n1000\n", "bw.txt")
    pair = summary(read([down, up]))
    assert (pair["format"], pair["packets"], pair["duration_s"]) == ("mahimahi", 5, 0.02)
    assert pair["up_mbps"]["mean"] == pytest.approx(1.8)
    leo = summary(read([plain, delay]))
    assert (leo["format"], leo["packets"], leo["rtt_ms"]["mean"]) == ("leoreplayer", 2, pytest.approx(28.0))
    assert summary(read([plain], told("up")))["up_mbps"]["mean"] == pytest.approx(0.024)
    with pytest.raises(TraceError, match=r"bw\.txt.*downlink rate.*x\.down"):
        read([down, plain])
    with pytest.raises(TraceError, match="cannot be joined"):
        read([down, file(tmp_path, MOONCAKE, "m")])


# The same content written in another unambiguous way. mahimahi files allow no comments.
def figures_of(path: Path) -> dict[str, object]:
    """Return the summary without "assumed", which may name line numbers."""
    return {key: value for key, value in summary(read([path])).items() if key != "assumed"}


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
    path = file(tmp_path, WRITTEN[written](lines_of(content)))
    assert figures_of(path) == figures_of(file(tmp_path, content, "plain"))


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


def test_dates_are_said_to_be_utc_only_if_they_have_no_zone(tmp_path: Path) -> None:
    zoned = re.sub(r"\.\d+", "+01:00", AZURE)
    for content, said in ((AZURE, True), (zoned, False), ("".join(zoned.rsplit("+01:00", 1)), True)):
        found = read_arrivals(file(tmp_path, content))
        assert ("dates without a zone are UTC" in found.notes) == said


@pytest.mark.parametrize("case", OTHERWISE)
def test_other_ways_to_say_the_same(case: str, tmp_path: Path) -> None:
    original, content = OTHERWISE[case]
    plain = str((NETWORK.get(original) or ARRIVALS[original])[0])
    assert content != plain
    assert figures_of(file(tmp_path, content)) == figures_of(file(tmp_path, plain, "plain"))

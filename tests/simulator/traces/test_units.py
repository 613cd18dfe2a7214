"""Units: stated by the layout, given by the user, inferred from unambiguous numbers, or asked for. They are never guessed silently."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from simulator.traces.read import FORMATS, read, read_arrivals, read_trace
from simulator.traces.summary import summary
from simulator.traces.units import RATE_UNITS, TIME_UNITS, told
from tests.simulator.traces.examples import ARRIVALS, NETWORK, assert_refused, call, file

ASKED = "is not stated and cannot be inferred"


def requests(times: list[float], **more: object) -> str:
    return "\n".join(json.dumps({"timestamp": time, "input_length": 5, "output_length": 2, **more}) for time in times)


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\n2024-05-10 02:00:02.123+02:00,1,1\n",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n1715299200000,1,1\n1715299202123,1,1\n",
        requests([1715299200000, 1715299202123]),
    ],
)
def test_unix_times_and_dates_lose_no_digits(text: str, tmp_path: Path) -> None:
    assert read_arrivals(file(tmp_path, text)).requested_s.tolist() == [0.0, 2.123]


def test_unix_times_of_the_starlink_csv_lose_no_digits(tmp_path: Path) -> None:
    rows = "".join(f"10,100,20,25,0,0,{1715299200000 + 100 * row}\n" for row in range(3))
    assert read_trace([file(tmp_path, rows)]).duration_s == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_told_units_of_arrivals_scale_the_times(unit: str, tmp_path: Path) -> None:
    arrivals = read_arrivals(file(tmp_path, requests([0, 1, 4])), told(unit=unit))
    assert arrivals.requested_s.tolist() == pytest.approx([0.0, 1 / TIME_UNITS[unit], 4 / TIME_UNITS[unit]])
    assert f"times in {unit}, as given" in arrivals.notes


@pytest.mark.parametrize(
    ("times", "more", "duration_s"),
    [
        ([0, 3000, 9000], {"hash_ids": []}, 9.0),  # Mooncake
        ([0, 10, 40], {"hash_ids": []}, 0.04),
        ([0, 400, 900], {}, 0.9),
        ([0, 1.087, 4.23], {"hash_ids": []}, None),  # seconds, from another tool
        ([0, 1, 4], {"hash_ids": []}, None),
        ([0, 30, 60], {}, None),
        ([0, 400.5, 900], {}, None),
        ([0, 1.5, 4], {"chat_id": 1, "parent_chat_id": -1}, 4.0),  # Bailian
        ([1700000000, 1700000001, 1700000003], {}, 3.0),  # Unix times show their unit
        ([1700000000, 1700000300, 1700000900], {}, 900.0),
        ([1700000000000, 1700000001000, 1700000003000], {"chat_id": 1, "parent_chat_id": -1}, 3.0),
    ],
)
def test_one_key_of_many_tools(times: list[float], more: dict[str, object], duration_s: float, tmp_path: Path) -> None:
    path = file(tmp_path, requests(times, **more))
    if duration_s is None:
        with pytest.raises(TraceError, match=ASKED):
            read_arrivals(path)
    else:
        assert read_arrivals(path).duration_s == pytest.approx(duration_s)


@pytest.mark.parametrize("time_unit", ["s", "ms", "us"])
@pytest.mark.parametrize("rate_unit", ["Mbit/s", "kbit/s", "bit/s", "B/s"])
def test_two_numbers_a_line_in_any_unit(time_unit: str, rate_unit: str, tmp_path: Path) -> None:
    """9 to 30 Mbit/s, a line per second. Units other than s and Mbit/s are refused unless given."""
    rates_bps = np.array([9e6, 10e6, 30e6, 20e6])
    times = np.arange(4) * TIME_UNITS[time_unit]
    rows = zip(times.tolist(), (rates_bps / RATE_UNITS[rate_unit]).tolist(), strict=True)
    path = file(tmp_path, "".join(f"{time:.0f} {rate:.6f}\n" for time, rate in rows))
    figures = summary(read_trace([path], told(unit=f"{time_unit}, {rate_unit}")))
    assert (figures["duration_s"], figures["down_mbps"]["mean"]) == (3.0, pytest.approx(20.0))
    if (time_unit, rate_unit) == ("s", "Mbit/s"):
        assert summary(read_trace([path]))["down_mbps"] == figures["down_mbps"]
    else:
        with pytest.raises(TraceError, match=ASKED):
            read_trace([path])


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_unix_times_show_their_unit(unit: str, tmp_path: Path) -> None:
    times = [round((1_700_000_000 + half / 2) * TIME_UNITS[unit]) for half in range(0, 10, 2)]
    trace = read_trace([file(tmp_path, "".join(f"{time} {5 + i}\n" for i, time in enumerate(times)))])
    assert trace.duration_s == pytest.approx(4.0)
    assert f"times in {unit}: they are Unix times" in trace.notes


BURSTGPT = "Timestamp,Model,Request tokens,Response tokens\n{},ChatGPT,4,5\n{},ChatGPT,4,5\n"
BLIS = "request_id,arrival_time_us\n1,{}\n2,{}\n"


@pytest.mark.parametrize(
    ("layout", "times", "duration_s", "note"),
    [
        (BURSTGPT, (5, 45), 40.0, "times in s: the layout of BurstGPT"),
        (BURSTGPT, (1_700_000_000, 1_700_000_040), 40.0, "times in s: they are Unix times"),
        (BURSTGPT, (1_700_000_000_000, 1_700_000_040_000), 40.0, "times in ms: they are Unix times"),
        (BLIS, (1_700_000_000, 1_700_500_000), 0.5, "times in us: the column's name"),  # half an hour after some start
    ],
)
def test_a_convention_gives_way_to_unix_times_and_a_name_does_not(
    layout: str, times: tuple[int, int], duration_s: float, note: str, tmp_path: Path
) -> None:
    found = read_arrivals(file(tmp_path, layout.format(*times)))
    assert found.requested_s.tolist() == pytest.approx([0.0, duration_s])
    assert note in found.notes


def test_values_of_one_time_are_told(tmp_path: Path) -> None:
    """Of two rates with the same time, one holds for zero seconds."""
    trace = read_trace([file(tmp_path, "0 5\n1 5\n1 60\n2 5\n")])
    assert "1 of 4 values have the same time as the one before: one of such values is used" in trace.notes


PING = "{} 64 bytes from 192.0.2.1: icmp_seq=1 ttl=57 time=10 ms\n{} 64 bytes from 192.0.2.1: icmp_seq=2 ttl=57 time=10 ms\n"


@pytest.mark.parametrize(
    ("stamps", "step_s", "how"),
    [
        (("[1700000000.5]", "[1700000005.5]"), 5.0, "5 s apart, by the time stamps"),
        (("[1700000000]", "[1700000005]"), 5.0, "5 s apart, by the time stamps"),
        (("1700000000", "1700000005"), 5.0, "5 s apart, by the time stamps"),
        (("2026-03-01 10:00:00", "2026-03-01 10:00:05"), 5.0, "5 s apart, by the time stamps"),
        (("[2026-03-01T10:00:00,250]", "[2026-03-01T10:00:05,250]"), 5.0, "5 s apart, by the time stamps"),
        (
            ("Mar 01 10:00:00", "Mar 01 10:00:05"),
            1.0,
            "1 s apart, assumed: the default of ping; the form of its time stamps is",
        ),
        (("", ""), 1.0, "1 s apart, assumed: the default of ping; the output has no times"),
    ],
)
def test_time_stamps_before_the_lines_of_ping(stamps: tuple[str, str], step_s: float, how: str, tmp_path: Path) -> None:
    trace = read_trace([file(tmp_path, PING.format(*stamps))])
    assert trace.duration_s == pytest.approx(2 * step_s, abs=1e-5)
    assert any(how in note for note in trace.notes), trace.notes


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=30))
def test_what_is_inferred_is_plausible(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    """For any steps, either the unit is asked for or the note states a unit that makes them plausible."""
    times = np.cumsum(steps)
    path = file(tmp_path_factory.getbasetemp(), "".join(f"{time} 10\n" for time in times.tolist()), "steps")
    try:
        trace = read_trace([path])
    except TraceError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert ASKED in refusal or "time jumps" in refusal
        return
    stated = re.match(r"times in (\w+)", next(note for note in trace.notes if note.startswith("times in")))
    assert stated is not None
    assert trace.duration_s == pytest.approx(float(times[-1] - times[0]) / TIME_UNITS[stated.group(1)])
    assert 0.9e-3 <= np.median(np.diff(times)) / TIME_UNITS[stated.group(1)] <= 3600


@pytest.mark.parametrize(
    ("content", "unit", "duration_s", "mbps"),
    [
        ("0\n10000\n20000\n", "us", 0.02, 1.8),  # 3 packets in 20 ms
        ("0\n1\n1\n2\n", "s", 2.0, 0.024),
        ("0\n10\n20\n", "ms", 0.02, 1.8),
    ],
)
def test_delivery_times_in_another_unit(
    content: str, unit: str, duration_s: float, mbps: float, tmp_path: Path
) -> None:
    trace = read_trace([file(tmp_path, content)], told(unit=unit))
    assert trace.down.rate is not None
    assert (trace.duration_s, trace.down.rate.mean_bps() / 1e6) == (duration_s, pytest.approx(mbps))


def test_implausible_delivery_times_are_asked_for(tmp_path: Path) -> None:
    microseconds = "".join(f"{10_000_000 * i}\n" for i in range(1, 30))
    seconds = "".join(f"{second}\n" for second in range(1, 4) for _ in range(1000))
    for content in (microseconds, seconds):
        with pytest.raises(TraceError, match=ASKED):
            read_trace([file(tmp_path, content)])


def test_seven_columns_in_seconds_are_asked_for(tmp_path: Path) -> None:
    content = "".join(f"20,100,30,40,0,0,{i / 10}\n" for i in range(5))
    with pytest.raises(TraceError, match=ASKED):
        read_trace([file(tmp_path, content)])
    assert read_trace([file(tmp_path, content)], told(unit="s")).duration_s == pytest.approx(0.5)


@pytest.mark.parametrize("unit", ["", "min", "ms s", "kbit/s bit/s", "ms kbit/s s", "KBIT/S"])
def test_a_unit_that_is_none(unit: str, tmp_path: Path) -> None:
    assert_refused(call("show", file(tmp_path, "0 1\n1 1\n"), "--json", "--unit", unit), "allowed: one of s, ms")


@pytest.mark.parametrize("case", [*NETWORK, *ARRIVALS])
def test_what_is_told_is_used_or_refused(case: str, tmp_path: Path) -> None:
    """No option is ignored: each changes the result or is refused."""
    content, name = (NETWORK.get(case) or ARRIVALS[case])[:2]
    path = file(tmp_path, content)
    plain = call("show", path, "--json").stdout
    for part, arguments in (
        ("direction", ("--direction", "up")),
        ("time", ("--unit", "us" if name != "mahimahi" else "s")),
        ("rate", ("--unit", "Gbit/s")),
    ):
        result = call("show", path, "--json", *arguments)
        if part in FORMATS[name].asks:
            assert result.exit_code == 0, result.output
            assert result.stdout != plain
        else:
            assert_refused(result, "states its own")


@pytest.mark.usefixtures("undrawn")
def test_every_trace_says_what_its_reader_assumed(tmp_path: Path) -> None:
    for content, name, *_ in [*NETWORK.values(), *ARRIVALS.values()]:
        trace = read([file(tmp_path, content)])
        assert trace.notes, name
        if "direction" in FORMATS[name].asks:
            assert any("link, " in note for note in trace.notes), name
        result = call("show", file(tmp_path, content))
        assert all(f"note: {note}" in result.stdout for note in trace.notes), name

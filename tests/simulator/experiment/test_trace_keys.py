"""Keys of a scenario that say how to read a trace: each has an effect or is refused, and assumptions of a reader are reported."""

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import ScenarioError
from simulator.experiment.assumptions import trace_notes
from simulator.experiment.fleet import network_of
from simulator.experiment.loading import load_scenario
from simulator.experiment.scenario import Scenario, resolved_yaml
from simulator.experiment.schema.workload import FleetWorkload, TraceArrivals
from simulator.network.access import Network
from simulator.network.wire import Capacity

MILLISECONDS = "".join(f"{100 * i} {5000 + 1000 * i}\n" for i in range(6))  # ms, kbit/s


def load(folder: Path, network: str = "{preset: wifi}", arrivals: str = "sequential") -> Scenario:
    more = "" if arrivals == "sequential" else ", duration_s: 60"
    path = folder / "s.yaml"
    path.write_text(f"name: s\nmethods: [base]\nnetwork: {network}\nworkload: {{arrivals: {arrivals}{more}}}\n")
    return load_scenario(path)


def network(folder: Path, text: str) -> Network:
    return network_of(load(folder, text).network.figures(), 0)


def rates(direction: float | Capacity) -> tuple[list[float], list[float]]:
    assert isinstance(direction, Capacity)
    return direction.edges_s, direction.rates_bps


def test_units_of_a_network_trace(tmp_path: Path) -> None:
    (tmp_path / "bw").write_text(MILLISECONDS)
    with pytest.raises(ScenarioError, match=r"network\.trace .*bw: the unit of rates is not stated"):
        network(tmp_path, "{trace: bw, up_mbps: 5, rtt_ms: 40}")
    with pytest.raises(ScenarioError, match=r"s\.yaml:3: network\.unit unit 'min': allowed: one of s, ms"):
        network(tmp_path, "{trace: bw, up_mbps: 5, rtt_ms: 40, unit: min}")
    edges_s, rates_bps = rates(network(tmp_path, "{trace: bw, up_mbps: 5, rtt_ms: 40, unit: ms kbit/s}").down_bps)
    assert edges_s == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert rates_bps == [6e6, 7e6, 8e6, 9e6, 10e6]


def test_a_window_and_a_time_scale_of_a_network_trace(tmp_path: Path) -> None:
    (tmp_path / "bw").write_text("".join(f"{i} {i}\n" for i in range(7)))
    text = "{trace: bw, up_mbps: 5, rtt_ms: 40, window_s: [1.5, 4], time_scale: 2}"
    assert rates(network(tmp_path, text).down_bps) == ([0, 1, 3, 5], [2e6, 3e6, 4e6])
    with pytest.raises(ScenarioError, match=r"network\.trace cannot be used: .*bw: window_s must be two rising times"):
        network(tmp_path, text.replace("4]", "9]"))
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(load(tmp_path, text)))
    assert network_of(load_scenario(again).network.figures(), 0).down_bps.edges_s == [0, 1, 3, 5]  # type: ignore[union-attr]


PAIRS = ["{down: a, up: b}", "{up: b, down: a}", "{down: both.csv, up: b}", "[x.down, x.up]"]


@pytest.mark.parametrize("files", PAIRS)
def test_a_pair_of_files(files: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("0 1\n1 8\n2 8\n")
    (tmp_path / "b").write_text("0 1\n1 2\n2 2\n")
    (tmp_path / "both.csv").write_text("time_s,down_mbps,up_mbps\n0,8,99\n1,8,99\n")
    (tmp_path / "x.down").write_text("1\n2\n3\n")
    (tmp_path / "x.up").write_text("2\n3\n")
    made = network(tmp_path, f"{{trace: {files}, rtt_ms: 40}}")
    down, up = rates(made.down_bps), rates(made.up_bps)
    if "x.up" in files:
        assert (sum(rate > 0 for rate in down[1]), sum(rate > 0 for rate in up[1])) == (3, 2)
    else:
        assert (set(down[1]), set(up[1])) == ({8e6}, {2e6})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("{down: a}", r"must be a file, a list of files or \{down: FILE, up: FILE\}, got down$"),
        ("{}", r"\{down: FILE, up: FILE\}, got an empty mapping$"),
        ("{down: a, up: 3}", "must be the path of a file, got 3"),
        ("[]", "got an empty list"),
        ("{down: a, up: d}", "d: has no uplink rate"),
        ("[a, a]", "gives the downlink rate"),
        ('"a\\0"', r"U\+0000 is not allowed"),
        ("x" * 5000, "is not a usable path, got .*: File name too long"),
        ("nowhere", "which is not there"),
    ],
)
def test_files_that_are_none(files: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("0 1\n1 8\n2 8\n")
    (tmp_path / "d").write_text("time_s,down_mbps\n0,8\n1,8\n")
    with pytest.raises(ScenarioError, match=message) as caught:
        network(tmp_path, f"{{trace: {files}, rtt_ms: 40}}")
    assert len(str(caught.value)) < 1500


def times(folder: Path, text: str) -> list[float]:
    workload = load(folder, arrivals=text).workload
    assert isinstance(workload, FleetWorkload)
    assert isinstance(workload.arrivals, TraceArrivals)
    found, _ = workload.arrivals.times()
    assert isinstance(found, np.ndarray)
    return found.tolist()


def test_arrivals(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("requested_s\n0.5\n2\n4\n")
    (tmp_path / "a.jsonl").write_text(
        "".join(f'{{"timestamp": {time}, "input_length": 1}}\n' for time in (10, 11.5, 14))
    )
    assert times(tmp_path, "{trace: own.csv}") == [0.5, 2, 4]
    assert times(tmp_path, "{trace: own.csv, time_scale: 0.5, window_s: [1, 4]}") == [0.25, 1.25]
    assert times(tmp_path, "{trace: a.jsonl, unit: s}") == [0, 1.5, 4]
    assert times(tmp_path, "{trace: a.jsonl, unit: s, time_scale: 2, window_s: [1, 5]}") == [0, 5]
    for text, message in (
        ("{trace: a.jsonl}", "the unit of time is not stated"),
        ("{trace: own.csv, unit: ms}", "requested_s states its own"),
        ("{trace: own.csv, window_s: [5, 6]}", "holds no request"),
        ("{trace: a.jsonl, unit: kbit/s}", "the unit of time is not stated"),
    ):
        with pytest.raises(ScenarioError, match=rf"workload\.arrivals\.trace .*{message}"):
            times(tmp_path, text)


def test_what_was_assumed_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("0 1\n1 8\n2 8\n")
    (tmp_path / "b.jsonl").write_text(
        '{"input_toks": 1, "arrival_time_ns": 0}\n{"input_toks": 1, "arrival_time_ns": 9}\n'
    )
    made = load(tmp_path, "{trace: a, up_mbps: 5, rtt_ms: 40}", "{trace: b.jsonl}")
    network_note, arrivals_note = trace_notes([made, made])
    assert network_note.startswith("a (time-rate): ")
    for part in (
        "lower bound",
        "times in s, assumed",
        "rates in Mbit/s, assumed",
        "downlink, assumed",
        "applies since",
    ):
        assert part in network_note
    assert arrivals_note == "b.jsonl: times in ns: the key's name"

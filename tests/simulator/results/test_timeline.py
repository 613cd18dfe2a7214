"""timeline.json.gz: every event has the fields that the trace-event format requires for its phase and that Perfetto needs."""

import gzip
import json
from itertools import pairwise
from typing import Any

import numpy as np

from simulator.engine.case import CaseResult
from simulator.engine.workload import poisson_arrivals
from simulator.network.access import Network
from simulator.results.timeline import Span, drawn, timeline_bytes
from tests.simulator.build import base, case, one_forward_calls

# Fields that each phase must have, with their types (Trace Event Format, and what Perfetto's importer reads).
NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "M": {"pid": int, "name": str, "args": dict},
    "X": {"pid": int, "tid": int, "name": str, "cat": str, "ts": float, "dur": float, "args": dict},
    "C": {"pid": int, "name": str, "ts": float, "args": dict},
    "s": {"pid": int, "tid": int, "name": str, "cat": str, "id": int, "ts": float},
    "t": {"pid": int, "tid": int, "name": str, "cat": str, "id": int, "ts": float},
    "f": {"pid": int, "tid": int, "name": str, "cat": str, "id": int, "ts": float, "bp": str},
}


NOBODY = {name: np.empty(0) for name in ("request", "requested_s", "done_s")}  # no answered requests


def timeline(*cases: tuple[str, list[Span], dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return the trace of cases with these titles, spans and samples of the queue."""
    data = timeline_bytes([(title, drawn(spans, samples, NOBODY)) for title, spans, samples in cases])
    found: dict[str, Any] = json.loads(gzip.decompress(data))
    return found


def check(trace: dict[str, Any]) -> None:
    """Assert that events have the fields of their phase and are in order of time, slices of a thread do not overlap, threads have names,
    and flows start and end at slices."""
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    events = trace["traceEvents"]
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[int, list[dict[str, Any]]] = {}
    named = {(e["pid"], e.get("tid")) for e in events if e["ph"] == "M" and e["name"].endswith("_name")}
    for event in events:
        for name, kind in NEEDED[event["ph"]].items():
            assert isinstance(event[name], kind), (event, name)
        assert event["ph"] == "M" or (event["pid"], None) in named
        if event["ph"] == "X":
            assert event["dur"] >= 0.0
            assert (event["pid"], event["tid"]) in named
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "stf":
            flows.setdefault(event["id"], []).append(event)
        elif event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
    timed = [event["ts"] for event in events if event["ph"] != "M"]
    assert timed == sorted(timed)
    assert all(event["ph"] == "M" for event in events[: len(events) - len(timed)])
    for own in slices.values():
        assert all(end <= start + 1e-6 for (_, end), (start, _) in pairwise(own))
    for steps in flows.values():
        assert [step["ph"] for step in steps] in (["s", "f"], ["s", "t", "f"])
        assert len({(step["cat"], step["name"]) for step in steps}) == 1
        for step in steps:
            around = slices[step["pid"], step["tid"]]
            assert any(start - 1e-6 <= step["ts"] <= end + 1e-6 for start, end in around), step
            assert step["ph"] != "f" or step["bp"] == "e"


def loaded(sessions: int) -> CaseResult:
    """Simulate six devices and one replica that is so busy that sessions queue and share iterations."""
    requests = poisson_arrivals(3, 4.0, 60.0, 6, 2)
    network = Network(20e6, 20e6, 0.02, 0.02, 0.002, 0.002)
    programs = [one_forward_calls(10, 2), base(16)]
    return case(programs, requests, network=network, timeline_sessions=sessions, sample_every_s=0.25)


def test_a_loaded_cloud_is_drawn_by_device_link_replica_and_batch() -> None:
    result = loaded(40)
    trace = timeline(("wifi", result.spans, result.samples))
    check(trace)
    events = trace["traceEvents"]
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"compute", "uplink", "downlink", "waiting", "replica 0: iterations", "replica 0: sessions"} <= threads
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert "wifi: cloud" in processes
    assert sum(name.startswith("wifi: device ") for name in processes) == len({span.device for span in result.spans})
    slices = [e for e in events if e["ph"] == "X"]
    assert len([e for e in slices if e["cat"] not in ("iteration", "request")]) == len(result.spans)
    shared = [e for e in slices if e["cat"] == "iteration" and e["args"]["batch"] > 1]
    assert shared
    for iteration in shared:  # each traced session of a batch has a slice of the same time
        inside = [
            e for e in slices if e["cat"] == "cloud" and (e["ts"], e["dur"]) == (iteration["ts"], iteration["dur"])
        ]
        traced = {request for request in iteration["args"]["requests"] if request < 40}
        assert {e["args"]["request"] for e in inside} == traced
    calls = {(e["args"]["request"], e["args"]["call"]) for e in slices if e["cat"] == "uplink"}
    assert len([e for e in events if e["ph"] == "s"]) == len(calls)  # each call has an arrow
    assert all(e["args"]["bytes"] > 0 for e in slices if e["cat"] in ("uplink", "downlink"))
    assert all(e["args"]["kv_tokens"] >= e["args"]["tokens"] for e in slices if "kv_tokens" in e["args"])
    assert any("kv_tokens" in e["args"] for e in slices)
    counted = [e for e in events if e["ph"] == "C"]
    assert max(e["args"]["queued"] for e in counted) == max(
        value
        for time_s, value in zip(result.samples["time_s"], result.samples["queued"], strict=True)
        if time_s <= max(span.end_s for span in result.spans)
    )


def test_lanes_hold_spans_that_overlap_and_equal_spans_give_equal_bytes() -> None:
    spans = [
        Span(3, 0, "cloud", "pass", 0.5, 1.0, (("call", 0), ("replica", 1))),
        Span(3, 0, "uplink", "a", 0.0, 0.5, (("call", 0),)),
        Span(3, 0, "uplink", "b", 0.25, 0.75),
        Span(3, 0, "uplink", "c", 0.5, 1.0),
        Span(4, 1, "device", "forward", 0.0, 0.1),
        Span(3, 0, "downlink", "reply", 1.0, 2.0, (("call", 0),)),
    ]
    trace = timeline(("wifi base", spans, {}))
    check(trace)
    events = trace["traceEvents"]
    slices = {e["name"]: e for e in events if e["ph"] == "X"}
    assert (slices["b"]["ts"], slices["b"]["dur"]) == (250_000.0, 500_000.0)
    assert slices["a"]["tid"] == slices["c"]["tid"] != slices["b"]["tid"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} >= {"uplink", "uplink 2"}
    assert [(e["ph"], e["ts"]) for e in events if e["ph"] in "stf"] == [("s", 250e3), ("t", 750e3), ("f", 1500e3)]
    parts = [("wifi base", drawn(spans, {}, NOBODY))]
    assert timeline_bytes(parts) == timeline_bytes(parts)


def test_the_slice_of_a_request_is_its_latency() -> None:
    """The request waits for its device before its first span, and an unneeded reply arrives after the image. Without an answer, the slice
    covers the spans."""
    spans = [
        Span(3, 0, "device", "compute", 0.5, 1.0),
        Span(3, 0, "downlink", "reply 0", 1.0, 2.0, (("call", 0),)),
        Span(4, 0, "device", "compute", 1.5, 1.75),
    ]
    answered = {"request": np.array([2, 3]), "requested_s": np.array([0.0, 0.25]), "done_s": np.array([0.1, 1.5])}
    events = json.loads(gzip.decompress(timeline_bytes([("base", drawn(spans, {}, answered))])))["traceEvents"]
    found = {e["name"]: (e["ts"], e["dur"]) for e in events if e.get("cat") == "request"}
    assert found == {"request 3": (250e3, 1250e3), "request 4": (1500e3, 250e3)}


def test_cases_share_no_process_and_no_flow() -> None:
    result = loaded(10)
    spans = result.spans
    alone = timeline(("a", spans, result.samples))
    trace = timeline(("a", spans, result.samples), ("empty", [], result.samples), ("b", spans, result.samples))
    check(trace)
    assert len(trace["traceEvents"]) == 2 * len(alone["traceEvents"])
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert sorted(names) == list(range(1, len(names) + 1))  # a process each, in the order of the cases
    assert [name.partition(":")[0] for _, name in sorted(names.items())] == ["a"] * (len(names) // 2) + ["b"] * (
        len(names) // 2
    )
    order = {e["pid"]: e["args"]["sort_index"] for e in trace["traceEvents"] if e["name"] == "process_sort_index"}
    assert order == {pid: pid for pid in names}
    times = [e["ts"] for e in trace["traceEvents"] if e["ph"] == "X"]
    assert times == sorted(2 * [e["ts"] for e in alone["traceEvents"] if e["ph"] == "X"])


def test_without_spans_there_are_no_events() -> None:
    samples = {"time_s": np.array([0.0]), "queued": np.array([1])}
    assert timeline(("wifi", [], samples))["traceEvents"] == []

"""Spans as Chrome trace events (timeline.json.gz), for Perfetto or chrome://tracing.

A process per device, and one for the cloud of each case. A device has a thread for its computing and one per direction of its link; the
cloud has one per replica for its iterations, one per session in an iteration, and those of waiting sessions. Where spans of a thread
would overlap there are further threads, so that slices never cut each other. A flow of arrows joins a call, its work and its reply.
Counters show the cloud's queue. Format: Trace Event Format (Google), phases M, X, C, s, t and f.
"""

import gzip
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

TRACKS = ("device", "uplink", "queue", "cloud", "downlink")
_OF_DEVICE = {"device": "compute", "uplink": "uplink", "downlink": "downlink"}  # track -> name of its thread
_COUNTED = ("queued", "admission", "serving")


class Span(NamedTuple):
    """A stretch of time of one session for the timeline. track: one of `TRACKS`. args: see `simulator.engine.measures.Span`."""

    case: str
    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float
    args: tuple[tuple[str, Any], ...] = ()


class _Slice(NamedTuple):
    start_ns: int
    end_ns: int
    name: str
    track: str
    args: Mapping[str, Any]


class _Process:
    """One process of the timeline: its threads by name, and the events on them."""

    def __init__(self, events: list[dict[str, Any]], pid: int, name: str) -> None:
        self.events = events
        self.pid = pid
        self.threads = 0
        self._name(name, "process")

    def thread(self, name: str, slices: Iterable[_Slice]) -> dict[tuple[int, int], list[tuple[int, _Slice]]]:
        """Put slices on as many threads of that name as they need; (request, call) -> their thread and slice."""
        free_at: list[int] = []  # ns at which each thread is free
        calls: dict[tuple[int, int], list[tuple[int, _Slice]]] = {}
        first = self.threads + 1
        for one in sorted(slices, key=lambda one: one[:3]):
            lane = next((i for i, free in enumerate(free_at) if free <= one.start_ns), len(free_at))
            if lane == len(free_at):
                self.threads += 1
                self._name(name if lane == 0 else f"{name} {lane + 1}", "thread", tid=first + lane)
            free_at[lane : lane + 1] = [one.end_ns]
            time = {"ts": one.start_ns / 1e3, "dur": (one.end_ns - one.start_ns) / 1e3}  # microseconds
            place = {"ph": "X", "pid": self.pid, "tid": first + lane}
            self.events.append({**place, "cat": one.track, "name": one.name, **time, "args": one.args})
            if "call" in one.args and "request" in one.args:
                calls.setdefault((one.args["request"], one.args["call"]), []).append((first + lane, one))
        return calls

    def _name(self, name: str, kind: str, **place: int) -> None:
        order = place.get("tid", self.pid)
        for key, args in ((f"{kind}_name", {"name": name}), (f"{kind}_sort_index", {"sort_index": order})):
            self.events.append({"ph": "M", "pid": self.pid, **place, "name": key, "args": args})


def timeline(spans: Iterable[Span], queues: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> dict[str, Any]:
    """The trace: every span once, the cloud's iterations, flows and counters, in order of time.

    Args:
        queues: `SAMPLED` of each case's cloud; shown while spans of the case last.
    """
    cases: dict[str, list[Span]] = {}
    for span in spans:
        cases.setdefault(span.case, []).append(span)
    events: list[dict[str, Any]] = []
    pid = flows = 0
    for case, own in cases.items():
        places: dict[tuple[int, int], list[tuple[int, int, _Slice]]] = {}  # (request, call) -> process, thread, slice
        devices: dict[int, list[Span]] = {}
        for span in own:
            devices.setdefault(span.device, []).append(span)
        for device, spans_of in sorted(devices.items()):
            pid += 1
            process = _Process(events, pid, f"{case}: device {device}")
            process.thread("requests", _requests(spans_of))
            for track, name in _OF_DEVICE.items():
                slices = [_slice(span) for span in spans_of if span.track == track]
                _add(places, pid, process.thread(name, slices))
        pid += 1
        process = _Process(events, pid, f"{case}: cloud")
        _add(places, pid, _cloud(process, own))
        if queues and len(queues.get(case, {}).get("time_s", ())):
            events += _counters(pid, queues[case], own)
        for (request, call), found in sorted(places.items()):
            flows += 1
            events += _flow(flows, f"request {request}, call {call}", found)
    return {"displayTimeUnit": "ms", "traceEvents": sorted(events, key=_order)}


def timeline_bytes(spans: Iterable[Span], queues: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> bytes:
    text = json.dumps(timeline(spans, queues), separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def _slice(span: Span, **more: Any) -> _Slice:
    args = {"request": span.request, **dict(span.args), **more}
    return _Slice(round(span.start_s * 1e9), round(span.end_s * 1e9), span.name, span.track, args)


def _requests(spans: list[Span]) -> list[_Slice]:
    """A slice per request, from its first span to its last."""
    found: dict[int, tuple[float, float]] = {}
    for span in spans:
        start_s, end_s = found.get(span.request, (span.start_s, span.end_s))
        found[span.request] = min(start_s, span.start_s), max(end_s, span.end_s)
    return [
        _Slice(round(start_s * 1e9), round(end_s * 1e9), f"request {request}", "request", {"request": request})
        for request, (start_s, end_s) in found.items()
    ]


def _cloud(process: _Process, spans: list[Span]) -> dict[tuple[int, int], list[tuple[int, _Slice]]]:
    """Threads of waiting sessions, and of each replica: its iterations with one of the sessions, then the sessions in them."""
    waiting = [_slice(span) for span in spans if span.track == "queue"]
    process.thread("waiting", waiting)
    of_replica: dict[int, list[_Slice]] = {}
    for span in spans:
        if span.track == "cloud":
            one = _slice(span)
            of_replica.setdefault(one.args.get("replica", 0), []).append(one)
    calls: dict[tuple[int, int], list[tuple[int, _Slice]]] = {}
    for replica, slices in sorted(of_replica.items()):
        iterations = {}
        for one in slices:
            batch = one.args.get("batch", 1)
            args = {"batch": batch, "requests": one.args.get("requests", (one.args["request"],))}
            name = f"batch of {batch}" if batch > 1 else "alone"
            iterations[one[:2]] = _Slice(*one[:2], name, "iteration", args)
        process.thread(f"replica {replica}: iterations", iterations.values())
        for place, found in process.thread(f"replica {replica}: sessions", slices).items():
            calls.setdefault(place, []).extend(found)
    return calls


def _add(
    places: dict[tuple[int, int], list[tuple[int, int, _Slice]]],
    pid: int,
    found: Mapping[tuple[int, int], list[tuple[int, _Slice]]],
) -> None:
    for place, slices in found.items():
        places.setdefault(place, []).extend((pid, tid, one) for tid, one in slices)


def _flow(number: int, name: str, found: list[tuple[int, int, _Slice]]) -> list[dict[str, Any]]:
    """Arrows from the call over its first work in the cloud to its last reply; each binds to the slice around the middle of it."""
    up = [place for place in found if place[2].track == "uplink"]
    down = [place for place in found if place[2].track == "downlink"]
    work = sorted((place for place in found if place[2].track == "cloud"), key=lambda place: place[2][:2])
    if not up or not down:
        return []
    first, last = min(up, key=lambda place: place[2][:2]), max(down, key=lambda place: place[2][:2])
    stops = [("s", first), *(("t", place) for place in work[:1]), ("f", last)]
    times = [(one.start_ns + one.end_ns) // 2 / 1e3 for _, (_, _, one) in stops]
    if times != sorted(times):  # a reply sent again for work of an earlier connection
        return []
    head = {"cat": "call", "name": name, "id": number}
    return [
        {"ph": phase, "pid": pid, "tid": tid, **head, "ts": ts, **({"bp": "e"} if phase == "f" else {})}
        for ts, (phase, (pid, tid, _)) in zip(times, stops, strict=True)
    ]


def _counters(pid: int, samples: Mapping[str, np.ndarray], spans: list[Span]) -> list[dict[str, Any]]:
    """The queue from the last sample before the spans to the last one in them."""
    times = np.asarray(samples["time_s"], dtype=np.float64)
    start_s, end_s = min(span.start_s for span in spans), max(span.end_s for span in spans)
    first = max(int(np.searchsorted(times, start_s, side="right")) - 1, 0)
    events = []
    for place in range(first, int(np.searchsorted(times, end_s, side="right"))):
        ts = round(max(float(times[place]), start_s) * 1e9) / 1e3
        args = {name: int(samples[name][place]) for name in _COUNTED if name in samples}
        events.append({"ph": "C", "pid": pid, "name": "sessions in the cloud", "ts": ts, "args": args})
    return events


def _order(event: Mapping[str, Any]) -> tuple[float, int]:
    """Names first, then by time; of one time a slice before the flow that binds to it."""
    if event["ph"] == "M":
        return -1.0, 0
    return event["ts"], 1 if event["ph"] in "XC" else 2

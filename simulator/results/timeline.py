"""Spans as Chrome trace events (timeline.json.gz), for Perfetto or chrome://tracing.

Each case has one process per device and one for its cloud. A device has threads for its requests, its computing and both directions
of its link. The cloud has threads for waiting sessions and, per replica, for its iterations and the sessions in them. Overlapping
spans go to further threads of the same name, so that slices never intersect. A flow of arrows connects a call, its work and its
reply. Counters show the cloud's queue. Format: Trace Event Format (Google), phases M, X, C, s, t and f.

The events of a case are made by the process that simulates it; merging the cases only renumbers processes and flows.
"""

import gzip
import zlib
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np

TRACKS = ("device", "uplink", "queue", "cloud", "downlink")
_OF_DEVICE = {"device": "compute", "uplink": "uplink", "downlink": "downlink"}  # track -> name of its thread
_COUNTED = ("queued", "admission", "serving")
_LEVEL = 3  # of gzip: takes 40 % of the time of level 6 and gives a quarter more bytes


class Span(NamedTuple):
    """One bar of the timeline: work or a wait of a session.

    Attributes:
        request: Number of the request.
        device: Number of the device.
        track: One of `TRACKS`. Spans of uplink and downlink last from sending to arrival.
        name: Text of the bar.
        start_s: Start, in virtual time.
        end_s: End, in virtual time.
        args: Details: "call" (number in the session), "bytes" (payload), "replica", "batch" (sessions in the iteration), "requests"
            (numbers of their requests), "rows", "tokens" and "kv_tokens" (of the pass).
    """

    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float
    args: tuple[tuple[str, int | tuple[int, ...]], ...] = ()


_NO_ARGS = msgspec.Raw(b"null")


class _Event(msgspec.Struct, omit_defaults=True):
    """An event of the trace-event format; its phase `ph` determines which fields are set. Times are microseconds, args encoded JSON."""

    ph: str
    pid: int
    name: str
    tid: int | None = None
    cat: str | None = None
    ts: float | None = None
    dur: float | None = None
    id: int | None = None
    bp: str | None = None
    args: msgspec.Raw = _NO_ARGS


class _Slice(NamedTuple):
    start_ns: int
    end_ns: int
    name: str
    track: str
    args: Mapping[str, Any]


class _Process:
    """One process of the timeline: its threads by name, and the events on them."""

    def __init__(self, events: list[_Event], pid: int, name: str) -> None:
        self.events = events
        self.pid = pid
        self.threads = 0
        self._name(name, "process")

    def thread(self, name: str, slices: Iterable[_Slice]) -> dict[tuple[int, int], list[tuple[int, _Slice]]]:
        """Put slices on as many threads of this name as necessary. Returns (request, call) -> threads and slices of the call."""
        free_at: list[int] = []  # ns at which each thread is free
        calls: dict[tuple[int, int], list[tuple[int, _Slice]]] = {}
        first = self.threads + 1
        for one in sorted(slices, key=itemgetter(0, 1, 2)):
            start_ns, end_ns, title, track, args = one
            for lane, free_ns in enumerate(free_at):
                if free_ns <= start_ns:
                    free_at[lane] = end_ns
                    break
            else:
                lane = len(free_at)
                free_at.append(end_ns)
                self.threads += 1
                self._name(name if lane == 0 else f"{name} {lane + 1}", "thread", tid=first + lane)
            time_us = start_ns / 1e3, (end_ns - start_ns) / 1e3
            self.events.append(_Event("X", self.pid, title, first + lane, track, *time_us, args=_raw(args)))
            if "call" in args:
                calls.setdefault((args["request"], args["call"]), []).append((first + lane, one))
        return calls

    def _name(self, name: str, kind: str, tid: int | None = None) -> None:
        order = self.pid if tid is None else tid
        for key, args in ((f"{kind}_name", {"name": name}), (f"{kind}_sort_index", {"sort_index": order})):
            self.events.append(_Event("M", self.pid, key, tid, args=_raw(args)))


def drawn(spans: Sequence[Span], samples: Mapping[str, np.ndarray], answered: Mapping[str, np.ndarray]) -> bytes:
    """Return the compressed events of one case in order of time: spans, iterations of the cloud, flows, counters. Empty without spans.

    Args:
        spans: Spans of the case.
        samples: `SAMPLED` of its cloud; shown for the time of the spans.
        answered: Columns `request`, `requested_s` and `done_s` of the case's answered requests.
    """
    if not spans:
        return b""
    events: list[_Event] = []
    places: dict[tuple[int, int], list[tuple[int, int, _Slice]]] = {}  # (request, call) -> process, thread, slice
    devices: dict[int, list[Span]] = {}
    for span in spans:
        devices.setdefault(span.device, []).append(span)
    columns = (answered[name].tolist() for name in ("request", "requested_s", "done_s"))
    lasted = {request: (start_s, end_s) for request, start_s, end_s in zip(*columns, strict=True)}
    for pid, (device, own) in enumerate(sorted(devices.items()), start=1):
        process = _Process(events, pid, f"device {device}")
        process.thread("requests", _requests(own, lasted))
        for track, name in _OF_DEVICE.items():
            slices = [_slice(span) for span in own if span.track == track]
            _add(places, pid, process.thread(name, slices))
    pid = 1 + len(devices)
    _add(places, pid, _cloud(_Process(events, pid, "cloud"), spans))
    if len(samples.get("time_s", ())):
        events += _counters(pid, samples, spans)
    for number, ((request, call), found) in enumerate(sorted(places.items()), start=1):
        events += _flow(number, f"request {request}, call {call}", found)
    return zlib.compress(_encode(sorted(events, key=_order)), 1)


def timeline_bytes(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """Merge the events of several cases into timeline.json.gz: names first, then by time. parts: title and result of `drawn` by case."""
    names: list[_Event] = []
    timed: list[_Event] = []
    decoder = msgspec.json.Decoder(list[_Event])
    pids = flows = 0
    for case, part in parts:
        events = decoder.decode(zlib.decompress(part)) if part else []
        for event in events:
            event.pid += pids
            if event.id is not None:
                event.id += flows
            elif event.ph == "M":
                if event.name == "process_name":
                    event.args = _raw({"name": f"{case}: {msgspec.json.decode(event.args)['name']}"})
                elif event.name == "process_sort_index":
                    event.args = _raw({"sort_index": event.pid})
        first = next((place for place, event in enumerate(events) if event.ph != "M"), len(events))
        names += events[:first]
        timed += events[first:]
        pids = max((event.pid for event in events), default=pids)
        flows = max((event.id for event in events if event.id is not None), default=flows)
    timed.sort(key=attrgetter("ts"))  # stable: at equal times a slice stays before the flow that binds to it
    return gzip.compress(
        _encode({"displayTimeUnit": "ms", "traceEvents": [*names, *timed]}), compresslevel=_LEVEL, mtime=0
    )


_encode = msgspec.json.Encoder().encode


def _raw(args: Mapping[str, Any]) -> msgspec.Raw:
    return msgspec.Raw(_encode(args))


def _slice(span: Span) -> _Slice:
    args = {"request": span.request, **dict(span.args)}
    return _Slice(round(span.start_s * 1e9), round(span.end_s * 1e9), span.name, span.track, args)


def _requests(spans: Sequence[Span], lasted: Mapping[int, tuple[float, float]]) -> list[_Slice]:
    """Return a slice per request: its latency, or from its first span to its last one if it was not answered.

    Spans do not show the latency: a request may wait for its device before the first one, and an unneeded reply may follow the image.
    """
    found: dict[int, tuple[float, float]] = {}
    for span in spans:
        start_s, end_s = found.get(span.request, (span.start_s, span.end_s))
        found[span.request] = min(start_s, span.start_s), max(end_s, span.end_s)
    found |= {request: lasted[request] for request in found if request in lasted}
    return [
        _Slice(round(start_s * 1e9), round(end_s * 1e9), f"request {request}", "request", {"request": request})
        for request, (start_s, end_s) in found.items()
    ]


def _cloud(process: _Process, spans: Sequence[Span]) -> dict[tuple[int, int], list[tuple[int, _Slice]]]:
    """Add the threads of waiting sessions and, per replica, of iterations and sessions. Returns (request, call) -> threads and slices."""
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


def _flow(number: int, name: str, found: list[tuple[int, int, _Slice]]) -> list[_Event]:
    """Return the arrows from a call via its first work in the cloud to its last reply. Each binds to the slice at the slice's middle."""
    up = [place for place in found if place[2].track == "uplink"]
    down = [place for place in found if place[2].track == "downlink"]
    work = sorted((place for place in found if place[2].track == "cloud"), key=lambda place: place[2][:2])
    if not up or not down:
        return []
    first, last = min(up, key=lambda place: place[2][:2]), max(down, key=lambda place: place[2][:2])
    stops = [("s", first), *(("t", place) for place in work[:1]), ("f", last)]
    times = [(one.start_ns + one.end_ns) // 2 / 1e3 for _, (_, _, one) in stops]
    if times != sorted(times):  # a reply that was sent again on another connection
        return []
    return [
        _Event(phase, pid, name, tid, "call", ts, id=number, bp="e" if phase == "f" else None)
        for ts, (phase, (pid, tid, _)) in zip(times, stops, strict=True)
    ]


def _counters(pid: int, samples: Mapping[str, np.ndarray], spans: Sequence[Span]) -> list[_Event]:
    """Return the counters of the queue, from the last sample before the spans to the last one within them."""
    times = np.asarray(samples["time_s"], dtype=np.float64)
    start_s, end_s = min(span.start_s for span in spans), max(span.end_s for span in spans)
    first = max(int(np.searchsorted(times, start_s, side="right")) - 1, 0)
    events = []
    for place in range(first, int(np.searchsorted(times, end_s, side="right"))):
        ts = round(max(float(times[place]), start_s) * 1e9) / 1e3
        args = {name: int(samples[name][place]) for name in _COUNTED if name in samples}
        events.append(_Event("C", pid, "sessions in the cloud", ts=ts, args=_raw(args)))
    return events


def _order(event: _Event) -> tuple[float, int]:
    """Sort key: names first, then by time; at equal times a slice before the flow that binds to it."""
    if event.ph == "M":
        return -1.0, 0
    return event.ts or 0.0, 1 if event.ph in "XC" else 2

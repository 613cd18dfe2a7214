"""Spans as Chrome trace events (timeline.json.gz)."""

import gzip
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

TRACKS = ("device", "uplink", "queue", "cloud", "downlink")


class Span(NamedTuple):
    """A stretch of time of one session for the timeline. track: one of `TRACKS`."""

    case: str
    request: int
    device: int
    track: str
    name: str
    start_s: float
    end_s: float


# ---- timeline ---------------------------------------------------------------------------------------------------------


def timeline(spans: Iterable[Span]) -> dict[str, Any]:
    """Chrome trace events (opens in Perfetto): a process per session, a thread per track, further threads where spans overlap."""
    sessions: dict[tuple[str, int, int], list[Span]] = {}
    for span in spans:
        sessions.setdefault((span.case, span.request, span.device), []).append(span)
    events: list[dict[str, Any]] = []
    for pid, ((case, request, device), own) in enumerate(sessions.items(), start=1):
        title = f"{case}: request {request}, device {device}"
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": title}})
        events.append({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}})
        for place, track in enumerate(TRACKS):
            free_at: list[int] = []  # ns at which each thread of the track is free
            for span in sorted((span for span in own if span.track == track), key=lambda s: (s.start_s, s.end_s)):
                start, end = round(span.start_s * 1e9), round(span.end_s * 1e9)
                lane = next((i for i, free in enumerate(free_at) if free <= start), len(free_at))
                tid = 100 * (place + 1) + lane
                if lane == len(free_at):
                    name = track if lane == 0 else f"{track} {lane + 1}"
                    thread = {"ph": "M", "pid": pid, "tid": tid}
                    events.append({**thread, "name": "thread_name", "args": {"name": name}})
                    events.append({**thread, "name": "thread_sort_index", "args": {"sort_index": tid}})
                free_at[lane : lane + 1] = [end]
                time = {"ts": start / 1e3, "dur": (end - start) / 1e3}  # microseconds
                events.append({"ph": "X", "pid": pid, "tid": tid, "cat": track, "name": span.name, **time})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def timeline_bytes(spans: Iterable[Span]) -> bytes:
    text = json.dumps(timeline(spans), separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)

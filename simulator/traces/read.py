"""Read any known trace file: its format is found from what it holds, never from its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from simulator.core.errors import TraceError
from simulator.traces import arrival_readers as arrivals
from simulator.traces import own
from simulator.traces import readers as network
from simulator.traces.readers import Way
from simulator.traces.source import Source
from simulator.traces.trace import Arrivals, Direction, Trace


@dataclass(frozen=True)
class Format:
    """One kind of file: what it looks like in words and as a test, its reader, and what to know before using one."""

    looks_like: str
    matches: Callable[[Source], bool]
    read: Callable[[Source, Way], Trace | Arrivals]
    note: str = ""


# In the order of looking; the names are stable.
FORMATS: dict[str, Format] = {
    "ciar-sim-csv": Format("CSV with the column time_s", own.own, own.read_own),
    "ciar-sim-arrivals-csv": Format(
        "CSV with the column requested_s", arrivals.own_arrivals, arrivals.read_own_arrivals
    ),
    "gnettrack": Format(
        "CSV with Timestamp, NetworkMode, DL_bitrate",
        network.gnettrack,
        network.read_gnettrack,
        "what the phone received: a lower bound of the downlink; the uplink is acknowledgements, not capacity",
    ),
    "ping-csv": Format("CSV with Probe Number, RTT [ms], Probe Send Time", network.pings, network.read_pings),
    "azure-llm-csv": Format("CSV with TIMESTAMP, ContextTokens, GeneratedTokens", arrivals.azure, arrivals.read_azure),
    "burstgpt-csv": Format(
        "CSV with Timestamp, Model, Request tokens, Response tokens", arrivals.burstgpt, arrivals.read_burstgpt
    ),
    "gentd26-csv": Format("CSV with gmt_create, predict_type", arrivals.gentd26, arrivals.read_gentd26),
    "mooncake-jsonl": Format("JSON lines with timestamp, input_length", arrivals.mooncake, arrivals.read_mooncake),
    "sabre-json": Format(
        "a JSON list with bandwidth_kbps",
        network.sabre,
        network.read_sabre,
        "the latency was filled in by the source, not measured",
    ),
    "opennetlab-json": Format(
        "a JSON object with uplink, downlink",
        network.opennetlab,
        network.read_opennetlab,
        "some files hold spikes of many Gbit/s that lift the mean",
    ),
    "pantheon-json": Format(
        "a JSON object with timestamps, bandwidths",
        network.pantheon,
        network.read_pantheon,
        "what one flow got: a lower bound of the path",
    ),
    "starlink-csv": Format("seven comma-separated numbers a line", network.seven_columns, network.read_starlink),
    "time-rate": Format("two numbers a line (s, Mbit/s)", network.two_columns, network.read_time_rate),
    "mahimahi": Format("one whole number a line, never decreasing (ms)", network.integers, network.read_integers),
    "leoreplayer-delay": Format(
        "one whole number a line that goes up and down (ms per 10 ms)", lambda source: False, network.read_integers
    ),  # found by the reader it shares with mahimahi
}
NOTES = {name: form.note for name, form in FORMATS.items()}
LEOREPLAYER = "leoreplayer"  # the pair of a mahimahi file and its delay file


def read(paths: Sequence[Path], way: Way = "down") -> Trace | Arrivals:
    """What one file says, or several that belong together (.up and .down, bandwidth and delay).

    way: the direction of a file that does not say it (a mahimahi file that does not end in .up, columns of time and rate, Sabre,
    Pantheon). Raises TraceError, which names the file and what was found and allowed.
    """
    if not paths:
        raise TraceError("no trace file given")
    found = [_read_one(path, way) for path in paths]
    if len(found) == 1:
        return found[0]
    traces = []
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, Arrivals):
            raise TraceError(f"{path}: request arrivals ({one.format}) cannot be joined with another file")
        traces.append((path, one))
    return reduce(_join, traces)[1]


def read_trace(paths: Sequence[Path], way: Way = "down") -> Trace:
    """As `read`, for a network trace; raises TraceError for arrivals."""
    trace = read(paths, way)
    if isinstance(trace, Arrivals):
        raise TraceError(f"{paths[0]}: holds request arrivals ({trace.format}); needed: a network trace")
    return trace


def read_arrivals(path: Path) -> Arrivals:
    """As `read`, for request arrivals; raises TraceError for a network trace."""
    trace = read([path])
    if isinstance(trace, Trace):
        raise TraceError(f"{path}: holds a network trace ({trace.format}); needed: request arrivals")
    return trace


def _read_one(path: Path, way: Way) -> Trace | Arrivals:
    source = Source(path)
    for form in FORMATS.values():
        if form.matches(source):
            try:
                return form.read(source, way)
            except TraceError as error:
                if str(error).startswith(str(path)):
                    raise
                raise TraceError(f"{path}: {error}") from None
    looked_for = "; ".join(f"{form.looks_like} ({name})" for name, form in FORMATS.items())
    raise TraceError(
        f"{path}: is of no known trace format; first line: {source.first[:60]!r}; looked for: {looked_for}"
    )


def _join(one: tuple[Path, Trace], other: tuple[Path, Trace]) -> tuple[Path, Trace]:
    (first, a), (path, b) = one, other
    names = {a.format, b.format}
    name = LEOREPLAYER if names == {"mahimahi", "leoreplayer-delay"} else "+".join(dict.fromkeys([a.format, b.format]))
    return path, Trace(name, _joined(first, a.down, path, b.down, "down"), _joined(first, a.up, path, b.up, "up"))


def _joined(first: Path, a: Direction, path: Path, b: Direction, way: str) -> Direction:
    for part, what in (("rate", f"{way}link rate"), ("delay_s", f"{way}link delay"), ("loss", f"{way}link loss")):
        if getattr(a, part) is not None and getattr(b, part) is not None:
            raise TraceError(
                f"{path}: gives a {what}, as {first} does; a direction has one (a mahimahi uplink ends in .up)"
            )
    given = {part: getattr(b, part) for part in ("rate", "delay_s", "loss", "packets") if getattr(b, part) is not None}
    return replace(a, **given)

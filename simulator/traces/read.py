"""Reader of all known trace files. It recognises the format by the content; only CellReplay's offset files need their name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path

from simulator.core.errors import TraceError
from simulator.traces import arrival_readers as arrivals
from simulator.traces import cellular_readers as cellular
from simulator.traces import json_readers as documents
from simulator.traces import number_readers as numbers
from simulator.traces import own, ping_text
from simulator.traces import probe_readers as probes
from simulator.traces.source import Source
from simulator.traces.trace import Arrivals, Direction, Trace
from simulator.traces.units import NOTHING_TOLD, Told


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        looks_like: description by which a user recognises it.
        matches: returns whether a file has this format.
        read: the reader.
        notes: assumptions that apply to every file of the format.
        asks: what a file may not state and the user may: "direction", "time" (its unit), "rate" (its unit).
    """

    looks_like: str
    matches: Callable[[Source], bool]
    read: Callable[[Source, Told], Trace | Arrivals]
    notes: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()


def _arrivals(name: str, looks_like: str, *notes: str, asks: tuple[str, ...] = ()) -> Format:
    return Format(looks_like, arrivals.layout_test(name), arrivals.layout_reader(name), notes, asks)


FAILED_COUNT = "failed requests count: they arrived"

# Formats are tried in this order. Their names are stable.
FORMATS: dict[str, Format] = {
    "ciar-sim-csv": Format(
        "CSV with the column time_s",
        own.is_own,
        own.read_own,
        ("a row applies until the next, the last as long as the previous one",),
    ),
    "ciar-sim-arrivals-csv": Format(
        "CSV with the column requested_s", arrivals.is_own_arrivals, arrivals.read_own_arrivals
    ),
    "gnettrack": Format(
        "CSV with Timestamp, NetworkMode, DL_bitrate",
        probes.is_gnettrack,
        probes.read_gnettrack,
        (
            "what the phone received: a lower bound of the downlink; the uplink is acknowledgements, not capacity",
            "rows are spread evenly over time; an empty cell repeats the value before it; half the round trip each way",
        ),
    ),
    "ping-csv": Format("CSV with Probe Number, RTT [ms], Probe Send Time", probes.is_ping_csv, probes.read_ping_csv),
    "azure-llm-csv": _arrivals("azure-llm-csv", "CSV with TIMESTAMP, ContextTokens, GeneratedTokens"),
    "burstgpt-csv": _arrivals(
        "burstgpt-csv", "CSV with Timestamp, Model, Request tokens, Response tokens", FAILED_COUNT
    ),
    "gentd26-csv": _arrivals("gentd26-csv", "CSV with gmt_create, predict_type", FAILED_COUNT),
    "vidur-csv": _arrivals("vidur-csv", "CSV with arrived_at, num_prefill_tokens, num_decode_tokens"),
    "splitwise-sim-csv": _arrivals("splitwise-sim-csv", "CSV with arrival_timestamp, prompt_size, token_size"),
    "blis-csv": _arrivals("blis-csv", "CSV with request_id, arrival_time_us", FAILED_COUNT),
    "llmservingsim-csv": _arrivals("llmservingsim-csv", "CSV or TSV with input_toks, arrival_time_ns"),
    "llmservingsim-jsonl": _arrivals("llmservingsim-jsonl", "JSON objects with input_toks, arrival_time_ns"),
    "bailian-jsonl": _arrivals("bailian-jsonl", "JSON objects with chat_id, parent_chat_id, timestamp, input_length"),
    "mooncake-jsonl": _arrivals("mooncake-jsonl", "JSON objects with timestamp, input_length", asks=("time",)),
    "ripe-atlas": Format("JSON objects with msm_id, prb_id, timestamp", probes.is_ripe_atlas, probes.read_ripe_atlas),
    "sabre-json": Format(
        "a JSON list with bandwidth_kbps",
        documents.is_sabre,
        documents.read_sabre,
        ("the latency was filled in by the source, not measured", "half the round trip each way"),
        ("direction",),
    ),
    "opennetlab-json": Format(
        "a JSON object with uplink, downlink",
        documents.is_opennetlab,
        documents.read_opennetlab,
        (
            "some files hold spikes of many Gbit/s that lift the mean",
            "a missing loss or rtt, and rtt 0, repeat the previous value; jitter is not read",
        ),
    ),
    "pantheon-json": Format(
        "a JSON object with timestamps, bandwidths",
        documents.is_pantheon,
        documents.read_pantheon,
        (
            "the rate of one flow: a lower bound of the path",
            "a value holds from its time stamp until the next; the delay is one-way and holds in both directions",
            "queue and delay_noise are not read",
        ),
        ("direction", "time"),
    ),
    "iperf3-json": Format(
        "a JSON object with start, intervals, end, or one an event (iperf3)", documents.is_iperf3, documents.read_iperf3
    ),
    "ping-text": Format(
        "the output of ping, with icmp_seq and time= in a line", ping_text.is_ping_text, ping_text.read_ping_text
    ),
    "cellreplay-light": Format(
        "lines of time, base delay and ascending offsets from 0 (ms, CellReplay)",
        cellular.is_light_trains,
        cellular.read_light_trains,
        (
            "a train of packets sent at once: after an idle queue packets leave as in the train of that moment, in place of the rate",
            "the base delay goes in a line from train to train; the last train only ends the trace",
        ),
        ("direction",),
    ),
    "cellreplay-offset": Format(
        "sizes and delays in a file named latency-offset (CellReplay)",
        cellular.is_size_delays,
        cellular.read_size_delays,
        ("an additional delay by packet size, for packets of a train only",),
        ("direction",),
    ),
    "nyu-mets-csv": Format(
        "a rate and its unit a line, such as 1.5,Mbits/sec",
        cellular.is_nyu_mets,
        cellular.read_nyu_mets,
        ("the rate of one TCP flow (iPerf): a lower bound of the link", "one line per second"),
        ("direction",),
    ),
    "starlink-csv": Format(
        "seven comma-separated numbers a line", numbers.is_seven_columns, numbers.read_starlink, asks=("time", "rate")
    ),
    "time-rate": Format(
        "two numbers a line (time, rate)",
        numbers.is_two_columns,
        numbers.read_time_rate,
        ("mostly the rate of one flow: a lower bound of the link",),
        ("direction", "time", "rate"),
    ),
    "mahimahi": Format(
        "one whole number a line, never decreasing (ms)",
        numbers.is_integers,
        numbers.read_integers,
        asks=("direction", "time"),
    ),
    "leoreplayer-delay": Format(
        "one whole number a line that goes up and down (ms per 10 ms)",
        lambda source: False,  # recognised by the reader that it shares with mahimahi
        numbers.read_integers,
        ("one-way delay in ms per 10 ms, the same in both directions",),
    ),
}
LEOREPLAYER = "leoreplayer"  # a mahimahi file together with its delay file


def read(paths: Sequence[Path], said: Told = NOTHING_TOLD) -> Trace | Arrivals:
    """Read one file, or several that form one trace (.up and .down, bandwidth and delay).

    Args:
        paths: the files.
        said: what the user states about the files. A statement that no file can use is refused.

    Raises:
        TraceError: names the file, what was found and what is allowed.
    """
    if not paths:
        raise TraceError("no trace file given")
    found = [_read_one(path, said) for path in paths]
    _check_used(paths, found, said)
    if all(isinstance(one, Trace) and not one.series() for one in found):
        raise TraceError(f"{paths[0]}: holds delays by size and nothing else; give it with the other files of its link")
    if len(found) == 1:
        return found[0]
    traces = []
    for path, one in zip(paths, found, strict=True):
        if isinstance(one, Arrivals):
            raise TraceError(f"{path}: request arrivals ({one.format}) cannot be joined with another file")
        traces.append((path, one))
    return cellular.with_trains(reduce(_join, traces)[1])


def read_trace(paths: Sequence[Path], said: Told = NOTHING_TOLD) -> Trace:
    """Read a network trace as `read` does. Raises TraceError for arrivals."""
    trace = read(paths, said)
    if isinstance(trace, Arrivals):
        raise TraceError(f"{paths[0]}: holds request arrivals ({trace.format}); needed: a network trace")
    return trace


def read_arrivals(path: Path, said: Told = NOTHING_TOLD) -> Arrivals:
    """Read request arrivals as `read` does. Raises TraceError for a network trace."""
    trace = read([path], said)
    if isinstance(trace, Trace):
        raise TraceError(f"{path}: holds a network trace ({trace.format}); needed: request arrivals")
    return trace


def _read_one(path: Path, said: Told) -> Trace | Arrivals:
    source = Source(path)
    for form in FORMATS.values():
        if form.matches(source):
            try:
                found = form.read(source, said)
            except TraceError as error:
                if str(error).startswith(str(path)):
                    raise
                raise TraceError(f"{path}: {error}") from None
            form = FORMATS[found.format]  # two formats share a reader
            return replace(found, notes=(*form.notes, *found.notes, *_direction_notes(form, found, said)))
    as_json = source.first.lstrip()[:1] in ("{", "[")
    likely = {name: form for name, form in FORMATS.items() if ("JSON" in form.looks_like) == as_json}
    looked_for = "; ".join(f"{form.looks_like} ({name})" for name, form in likely.items())
    others = ", ".join(name for name in FORMATS if name not in likely)
    raise TraceError(
        f"{path}: is of no known trace format; first line: {source.first[:60]!r}; looked for: {looked_for}; and for {others}"
    )


def _direction_notes(form: Format, found: Trace | Arrivals, said: Told) -> tuple[str, ...]:
    if "direction" not in form.asks or isinstance(found, Arrivals):
        return ()
    # The delay may apply to both directions although the rate applies to one.
    given = (found.down.rate, found.down.trains, found.down.size_delays_s)
    way = "uplink" if all(part is None for part in given) else "downlink"
    if said.direction is not None:
        return (f"the {way}, as given",)
    return (f"the {way}, " + ("assumed: the file does not say" if way == "downlink" else "by the file's name"),)


def _check_used(paths: Sequence[Path], found: Sequence[Trace | Arrivals], said: Told) -> None:
    """Raise TraceError if the user states something that no file can use."""
    asked = {part for one in found for part in FORMATS[one.format].asks}
    for part, what, value in (
        ("direction", "direction", said.direction),
        ("time", "unit of time", said.time_unit),
        ("rate", "unit of rates", said.rate_unit),
    ):
        if value is not None and part not in asked:
            names = ", ".join(name for name, form in FORMATS.items() if part in form.asks)
            raise TraceError(
                f"{paths[0]}: a {what} ({value}) is given, but {found[0].format} states its own; allowed with: {names}"
            )


def _join(one: tuple[Path, Trace], other: tuple[Path, Trace]) -> tuple[Path, Trace]:
    (first, a), (path, b) = one, other
    names = {a.format, b.format}
    name = LEOREPLAYER if names == {"mahimahi", "leoreplayer-delay"} else "+".join(dict.fromkeys([a.format, b.format]))
    notes = tuple(dict.fromkeys([*a.notes, *b.notes]))
    down, up = _joined(first, a.down, path, b.down, "down"), _joined(first, a.up, path, b.up, "up")
    return path, Trace(name, down, up, notes)


def _joined(first: Path, a: Direction, path: Path, b: Direction, way: str) -> Direction:
    for part, what in (
        ("rate", f"{way}link rate"),
        ("delay_s", f"{way}link delay"),
        ("loss", f"{way}link loss"),
        ("size_delays_s", f"{way}link delay by size"),
    ):
        if getattr(a, part) is not None and getattr(b, part) is not None:
            raise TraceError(
                f"{path}: gives the {what}, as {first} does; a direction has one (a mahimahi uplink ends in .up)"
            )
    given = {field.name: getattr(b, field.name) for field in fields(b) if getattr(b, field.name) is not None}
    return replace(a, **given)

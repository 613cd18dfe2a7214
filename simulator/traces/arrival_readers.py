"""Readers of request arrivals: one for each layout of columns or keys in `LAYOUTS`, and one for the project's own CSV."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.traces.json_fields import numbers_of
from simulator.traces.series import Floats
from simulator.traces.source import Record, Source, Table
from simulator.traces.trace import Arrivals
from simulator.traces.units import MOST_TIME, Told, Unit, unit_of_arrivals

MOST_TOKENS = 1e12
OWN_COLUMNS = ("requested_s", "input_tokens", "output_tokens")
GAP_MS = (10.0, 100.0)  # least mean gap of whole numbers that are taken as milliseconds: with hash_ids, without


@dataclass(frozen=True)
class Layout:
    """One layout of request arrivals.

    Attributes:
        form: CSV with a header, or JSON objects.
        time: column or key of the time of a request.
        needs: the columns or keys that identify the layout, in addition to `time`.
        inputs: column or key of the number of input tokens, read if a file has it.
        outputs: the same for output tokens.
        unit: unit of `time`: s, ms, us, ns; "date" for dates with a time of day; None if the layout does not state it.
        why: how the layout states the unit; empty if it does not.
    """

    form: Literal["csv", "json"]
    time: str
    needs: tuple[str, ...]
    inputs: str | None
    outputs: str | None
    unit: str | None
    why: str

    @property
    def names_unit(self) -> bool:
        """Whether the name of the column or key contains the unit, as in `arrival_time_us`."""
        return self.time.endswith(f"_{self.unit}")


LAYOUTS = {
    "azure-llm-csv": Layout(
        "csv",
        "TIMESTAMP",
        ("ContextTokens", "GeneratedTokens"),
        "ContextTokens",
        "GeneratedTokens",
        "date",
        "dates without a zone are UTC",
    ),
    "burstgpt-csv": Layout(
        "csv",
        "Timestamp",
        ("Model", "Request tokens", "Response tokens"),
        "Request tokens",
        "Response tokens",
        "s",
        "the layout of BurstGPT",
    ),
    "gentd26-csv": Layout("csv", "gmt_create", ("predict_type",), None, None, "date", "dates without a zone are UTC"),
    "vidur-csv": Layout(
        "csv",
        "arrived_at",
        ("num_prefill_tokens", "num_decode_tokens"),
        "num_prefill_tokens",
        "num_decode_tokens",
        "s",
        "the layout of Vidur",
    ),
    "splitwise-sim-csv": Layout(
        "csv",
        "arrival_timestamp",
        ("prompt_size", "token_size"),
        "prompt_size",
        "token_size",
        "s",
        "the layout of splitwise-sim",
    ),
    "blis-csv": Layout(
        "csv", "arrival_time_us", ("request_id",), "input_tokens", "output_tokens", "us", "the column's name"
    ),
    "llmservingsim-csv": Layout(
        "csv", "arrival_time_ns", ("input_toks",), "input_toks", "output_toks", "ns", "the column's name"
    ),
    "llmservingsim-jsonl": Layout(
        "json", "arrival_time_ns", ("input_toks",), "input_toks", "output_toks", "ns", "the key's name"
    ),
    "bailian-jsonl": Layout(
        "json",
        "timestamp",
        ("chat_id", "parent_chat_id", "input_length"),
        "input_length",
        "output_length",
        "s",
        "chat_id and parent_chat_id are the layout of Bailian's traces",
    ),
    "mooncake-jsonl": Layout("json", "timestamp", ("input_length",), "input_length", "output_length", None, ""),
}


def layout_test(name: str) -> Callable[[Source], bool]:
    layout = LAYOUTS[name]
    names = {layout.time, *layout.needs}
    if layout.form == "csv":
        return lambda source: source.has_columns(*names)
    return lambda source: names <= set(source.first_record)


def layout_reader(name: str) -> Callable[[Source, Told], Arrivals]:
    layout = LAYOUTS[name]
    return (
        (lambda source, said: _read_table(name, layout, source, said))
        if layout.form == "csv"
        else (lambda source, said: _read_records(name, layout, source, said))
    )


def _read_table(name: str, layout: Layout, source: Source, said: Told) -> Arrivals:
    table = source.table()
    tokens = [
        _whole_table(table, column) if column is not None and column in table.names else None
        for column in (layout.inputs, layout.outputs)
    ]
    if layout.unit == "date":
        seconds, any_without_zone = _dates(table, layout.time)
        note = layout.why if any_without_zone else ""
    else:
        times = table.numbers(layout.time)
        source.need_sorted(times, table.lines, layout.time)
        unit = unit_of_arrivals(source, said, times, layout.unit, layout.why, lambda: None, named=layout.names_unit)
        seconds, note = unit.base(times - times[0]), unit.note
    return _arrivals(name, source, table.lines, seconds, tokens, note)


def _read_records(name: str, layout: Layout, source: Source, said: Told) -> Arrivals:
    records = source.records()
    times = numbers_of(source, records, layout.time, most=MOST_TIME)
    tokens = [
        _whole(source, records, key) if key is not None and key in records[0].value else None
        for key in (layout.inputs, layout.outputs)
    ]
    lines = [record.line for record in records]
    source.need_sorted(times, lines, layout.time)
    unit = _unit_of_records(layout, source, said, records, times)
    return _arrivals(name, source, lines, unit.base(times - times[0]), tokens, unit.note)


def _unit_of_records(layout: Layout, source: Source, said: Told, records: list[Record], times: Floats) -> Unit:
    if layout.unit is not None:
        return unit_of_arrivals(source, said, times, layout.unit, layout.why, lambda: None, named=layout.names_unit)
    # Mooncake writes whole milliseconds and hash_ids. Other tools use the same keys for seconds.
    whole = bool((times == np.floor(times)).all())
    gap = float(times[-1] - times[0]) / max(1, len(times) - 1)
    least = GAP_MS[0] if "hash_ids" in records[0].value else GAP_MS[1]
    keys = "with" if "hash_ids" in records[0].value else "without"
    found = f"{'whole' if whole else 'fractional'} numbers, {gap:.6g} apart on average, {keys} the hash_ids of Mooncake"
    return unit_of_arrivals(source, said, times, None, found, lambda: "ms" if whole and gap >= least else None)


def is_own_arrivals(source: Source) -> bool:
    return source.has_columns("requested_s")


def read_own_arrivals(source: Source, said: Told) -> Arrivals:
    """Read requested_s and, if present, input_tokens and output_tokens."""
    table = own_arrivals_table(source)
    tokens = [_whole_table(table, name) if name in table.names else None for name in OWN_COLUMNS[1:]]
    seconds = table.numbers("requested_s")
    note = (
        f"times count from the first request, at {seconds[0]:g} s; in a run it comes at that time"
        if seconds[0] > 0.0
        else ""
    )
    return _arrivals("ciar-sim-arrivals-csv", source, table.lines, seconds, tokens, note)


def own_arrivals_table(source: Source) -> Table:
    table = source.table()
    for name in table.names:
        if name not in OWN_COLUMNS:
            source.fail(f"column {name[:40]!r} is not known; allowed beside requested_s: input_tokens, output_tokens")
    return table


def _dates(table: Table, column: str) -> tuple[Floats, bool]:
    """Return the seconds from the first of a column's ISO 8601 dates with times, and whether any has no zone; those are taken as UTC."""
    seconds, any_without_zone = np.empty(len(table.rows)), False
    first: datetime | None = None
    for i, text in enumerate(table.texts(column)):
        try:
            # Of a date alone, as a spreadsheet may save it, and of 20231116 every request would be at midnight.
            stamp = datetime.fromisoformat(text if ":" in text else "")
        except ValueError:
            table.source.fail(
                f"{column} {text[:40]!r}; allowed: YYYY-MM-DD HH:MM:SS with any fraction, and a zone or none",
                table.lines[i],
            )
        if stamp.tzinfo is None:
            stamp, any_without_zone = stamp.replace(tzinfo=UTC), True
        first = first or stamp
        seconds[i] = (stamp - first).total_seconds()
    return seconds, any_without_zone


def _arrivals(
    name: str,
    source: Source,
    lines: list[int],
    seconds: Floats,
    tokens: list[NDArray[np.int64] | None],
    note: str,
) -> Arrivals:
    source.need_sorted(seconds, lines, "arrival (in s)")
    if not seconds[-1] > seconds[0]:
        source.fail("has no duration: two requests at different times are needed")
    return Arrivals(name, seconds - seconds[0], tokens[0], tokens[1], (note,) if note else ())


def _whole_table(table: Table, column: str) -> NDArray[np.int64]:
    return _tokens(table.source, table.lines, table.numbers(column))


def _whole(source: Source, records: list[Record], key: str) -> NDArray[np.int64]:
    lines = [record.line for record in records]
    return _tokens(source, lines, numbers_of(source, records, key, MOST_TOKENS))


def _tokens(source: Source, lines: list[int], tokens: Floats) -> NDArray[np.int64]:
    source.need((tokens == np.floor(tokens)) & (tokens <= MOST_TOKENS), lines, tokens, "tokens must be a whole number")
    return tokens.astype(np.int64)

"""Readers of request arrival traces: each takes a `Source` whose content is of its format and gives `Arrivals`."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from simulator.traces.readers import Way
from simulator.traces.series import Floats
from simulator.traces.source import Source, Table
from simulator.traces.trace import Arrivals

MOST_TOKENS = 1e12


def azure(source: Source) -> bool:
    return source.has_columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(source: Source, way: Way) -> Arrivals:
    """TIMESTAMP: date and time of day, to 100 ns, with or without a zone; token counts."""
    table = source.table()
    return _arrivals("azure-llm-csv", table, _clock(table, "TIMESTAMP"), "ContextTokens", "GeneratedTokens")


def gentd26(source: Source) -> bool:
    return source.has_columns("gmt_create", "predict_type")


def read_gentd26(source: Source, way: Way) -> Arrivals:
    """gmt_create: date and time of day, to 1 s. Failed requests count: they arrived."""
    table = source.table()
    return _arrivals("gentd26-csv", table, _clock(table, "gmt_create"))


def burstgpt(source: Source) -> bool:
    return source.has_columns("Timestamp", "Model", "Request tokens", "Response tokens")


def read_burstgpt(source: Source, way: Way) -> Arrivals:
    """Timestamp: seconds since midnight of the first day. Failed requests (no response tokens) count: they arrived."""
    table = source.table()
    return _arrivals("burstgpt-csv", table, table.numbers("Timestamp"), "Request tokens", "Response tokens")


def own_arrivals(source: Source) -> bool:
    return source.has_columns("requested_s")


def read_own_arrivals(source: Source, way: Way) -> Arrivals:
    """requested_s and, if there, input_tokens and output_tokens."""
    table = source.table()
    for name in table.names:
        if name not in OWN_COLUMNS:
            source.fail(f"column {name!r} is not known; allowed beside requested_s: input_tokens, output_tokens")
    tokens = [name if name in table.names else None for name in OWN_COLUMNS[1:]]
    return _arrivals("ciar-sim-arrivals-csv", table, table.numbers("requested_s"), *tokens)


OWN_COLUMNS = ("requested_s", "input_tokens", "output_tokens")


def mooncake(source: Source) -> bool:
    """Whether the first line is one request; the lines after it may be damaged."""
    try:
        first = json.loads(source.first)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"timestamp", "input_length"} <= set(first)


def read_mooncake(source: Source, way: Way) -> Arrivals:
    """An object a line: timestamp (ms), input_length, output_length (tokens). hash_ids: not read."""
    rows, lines = [], []
    for line, text in source.lines:
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            source.fail(f"damaged or cut-off JSON: {getattr(error, 'msg', error)}", line)
        row = []
        for key in ("timestamp", "input_length", "output_length"):
            value = entry.get(key) if isinstance(entry, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
                source.fail(f"key {key}: must be a number >= 0, got {repr(value)[:40]}", line)
            row.append(float(value))
        rows.append(row)
        lines.append(line)
    milliseconds, inputs, outputs = np.array(rows).T
    return _checked("mooncake-jsonl", source, lines, milliseconds / 1e3, inputs, outputs)


def _clock(table: Table, column: str) -> Floats:
    """Seconds of a column of dates with times, ISO 8601; without a zone they are taken as UTC."""
    seconds = np.empty(len(table.rows))
    for i, text in enumerate(table.texts(column)):
        try:
            stamp = datetime.fromisoformat(text)
        except ValueError:
            table.source.fail(f"{column} {text[:40]!r}; allowed: YYYY-MM-DD HH:MM:SS with any fraction", table.lines[i])
        if stamp.tzinfo is None:
            stamp = stamp.replace(tzinfo=UTC)
        # datetime keeps microseconds; a float of the whole is good to 0.24 us, so nothing finer is lost by that
        seconds[i] = stamp.timestamp()
    return seconds


def _arrivals(
    name: str, table: Table, seconds: Floats, inputs: str | None = None, outputs: str | None = None
) -> Arrivals:
    tokens = [None if column is None else table.numbers(column) for column in (inputs, outputs)]
    return _checked(name, table.source, table.lines, seconds, *tokens)


def _checked(
    name: str, source: Source, lines: Sequence[int], seconds: Floats, inputs: Floats | None, outputs: Floats | None
) -> Arrivals:
    source.need_sorted(seconds, lines, "arrival (in s)")
    if not seconds[-1] > seconds[0]:
        source.fail("has no duration: two requests at different times are needed")
    return Arrivals(name, seconds - seconds[0], _whole(source, lines, inputs), _whole(source, lines, outputs))


def _whole(source: Source, lines: Sequence[int], tokens: Floats | None) -> NDArray[np.int64] | None:
    if tokens is None:
        return None
    source.need((tokens == np.floor(tokens)) & (tokens <= MOST_TOKENS), lines, tokens, "tokens must be a whole number")
    return tokens.astype(np.int64)

"""Validated fields of JSON objects. Errors name the key, what was found and what is allowed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.traces.series import Floats
from simulator.traces.source import Record, Source


def has_keys(item: Any, *keys: str) -> bool:
    return isinstance(item, dict) and set(keys) <= set(item)


def found(value: Any) -> str:
    return repr(value)[:40]


def number(source: Source, value: Any, place: str, most: float, line: int | None = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        source.fail(f"key {place}: must be a number >= 0, got {found(value)}", line)
    if not 0 <= value <= most:
        source.fail(f"key {place}: must be 0 to {most:g}, got {found(value)}", line)
    return float(value)


def numbers_of(
    source: Source, records: Sequence[Record], key: str, most: float = 1e12, missing: float | None = None
) -> Floats:
    """Return float64 [records], the values of one key.

    Args:
        source: the file, named in errors.
        records: the objects.
        key: the key.
        most: largest value allowed; the least is 0.
        missing: value of an absent key or null; None if every record must have a number.

    Raises:
        TraceError: a value is missing, not a number or out of range.
    """
    values = np.empty(len(records))
    for i, record in enumerate(records):
        value = record.value.get(key)
        if value is None and missing is not None:
            values[i] = missing
            continue
        if key not in record.value:
            names = ", ".join(map(str, record.value))[:80] or "nothing"
            source.fail(f"key {record.place}{key}: is missing; found: {names}", record.line)
        values[i] = number(source, value, f"{record.place}{key}", most, record.line)
    return values


def number_list(source: Source, data: dict[str, Any], key: str, most: float = 1e12) -> Floats:
    """Return float64 [n], the values of a key that must hold a non-empty list of numbers of 0 to `most`. Raises TraceError."""
    if not isinstance(data[key], list) or not data[key]:
        source.fail(f"key {key}: must be a list of numbers, got {found(data[key])}")
    return np.array([number(source, value, f"{key}[{i}]", most) for i, value in enumerate(data[key])])


def objects(source: Source, entries: Any, place: str) -> list[Record]:
    """Return the records of a list within a document, which must hold at least one JSON object. Raises TraceError."""
    if not isinstance(entries, list) or not entries:
        source.fail(f"key {place or '(top)'}: must be a list of objects, got {found(entries)}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            source.fail(f"key {place}[{i}]: must be an object, got {found(entry)}")
    return [Record(0, f"{place}[{i}].", entry) for i, entry in enumerate(entries)]

"""A trace file as text: its lines, columns, table and JSON, with errors that name file and line."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from simulator.core.errors import TraceError, reason
from simulator.core.files import read_file
from simulator.traces.json_text import Documents, begins_like_json, documents, item_lines
from simulator.traces.series import Floats

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")  # what may stand between the numbers of a line
_MAGIC = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PAR1": "a Parquet file; export it as CSV first",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}
MOST_BYTES = 2**30


@dataclass(frozen=True)
class Record:
    """One JSON object of a list of them.

    Attributes:
        line: where it begins; 0 within a document, where keys alone tell the place.
        place: what stands before its keys in errors; empty where the line says it.
        value: the object.
    """

    line: int
    place: str
    value: dict[str, Any]


class Source:
    """The text of one file.

    Raises:
        TraceError: the file is missing, no regular file, larger than 1 GiB, empty, binary or not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = read_file(path, MOST_BYTES)
        except OSError as error:
            self.fail(f"cannot be read: {reason(error)}")
        except ValueError:  # a NUL in the name
            self.fail("cannot be read: no such name can exist")
        for magic, what in _MAGIC.items():
            if data.startswith(magic):
                self.fail(f"is {what}; allowed: text files, UTF-8")
        try:
            self.text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.fail("is not text (UTF-8); allowed: text files, UTF-8")
        if re.search(r"[\x00-\x08\x0e-\x1f]", self.text):
            self.fail("is a binary file; allowed: text files, UTF-8")
        if not self.text.strip():
            self.fail("is empty")

    def fail(self, what: str, line: int | None = None) -> NoReturn:
        where = f"{self.path}:{line}" if line else f"{self.path}"
        raise TraceError(f"{where}: {what}") from None

    @cached_property
    def lines(self) -> list[tuple[int, str]]:
        """(line number, text) of the lines that hold anything but blanks, and are no comments (`#`)."""
        split = re.split(r"\r\n|\n|\r", self.text)
        stripped = [(number, line.strip(" ")) for number, line in enumerate(split, 1) if line.strip()]
        return [(number, line) for number, line in stripped if not line.startswith("#")]

    @cached_property
    def first(self) -> str:
        """The first of `lines`; empty where there is none."""
        return self.lines[0][1] if self.lines else ""

    @cached_property
    def separator(self) -> str:
        """Of a table with a header: comma, semicolon or tab, whichever the header holds most of."""
        return max(",;\t", key=self.first.count)

    @cached_property
    def header(self) -> list[str]:
        """Column names where the first line reads as such, else none."""
        if self.first.startswith(("{", "[")):
            return []
        try:
            names = [name.strip() for name in next(csv.reader([self.first], delimiter=self.separator), [])]
        except csv.Error:
            return []
        while names and not names[-1]:
            names.pop()
        return names if any(re.match(r"[A-Za-z]", name) for name in names) else []

    def has_columns(self, *names: str) -> bool:
        return set(names) <= set(self.header)

    @cached_property
    def documents(self) -> Documents:
        """The JSON documents of the text; none where it does not begin as JSON."""
        if not self.first.startswith(("{", "[")):
            return Documents()
        read = documents(self._json_text)
        return read if read.found or begins_like_json(self._json_text) else Documents()

    @cached_property
    def _json_text(self) -> str:
        """The text with comment lines blanked: no line of JSON begins with `#`."""
        return re.sub(r"(?m)^ *#.*$", "", self.text)

    def json_head(self) -> Any:
        """The first JSON document, None where the text is no JSON. Raises TraceError where it is damaged."""
        if self.documents.found:
            return self.documents.found[0][1]
        self._refuse_damage()
        return None

    def _refuse_damage(self) -> None:
        if self.documents.error:
            line, what = self.documents.error
            self.fail(what, line)

    def json(self) -> Any:
        """The one JSON document of the text. Raises TraceError for damage, and for anything after it."""
        head = self.json_head()
        self._refuse_damage()
        if len(self.documents.found) != 1:
            self.fail(f"holds {len(self.documents.found)} JSON documents; allowed in this format: one")
        return head

    @cached_property
    def first_record(self) -> dict[str, Any]:
        """The first JSON object of a list of them, in whichever way it is written; empty where there is none."""
        head = self.json_head()
        first = head[0] if isinstance(head, list) and head else head
        return first if isinstance(first, dict) else {}

    def records(self) -> list[Record]:
        """JSON objects, one a line, one after another, or in one array. Raises TraceError for damage and for other values."""
        head = self.json_head()
        self._refuse_damage()
        if isinstance(head, list):
            self.json()
            lines = item_lines(self._json_text)
            rows = [(line, f"[{i}].", value) for i, (line, value) in enumerate(zip(lines, head, strict=True))]
        else:
            rows = [(line, "", value) for line, value in self.documents.found]
        records = []
        for line, place, value in rows:
            if not isinstance(value, dict):
                self.fail(f"{place.rstrip('.') or 'a line'} must be a JSON object, got {repr(value)[:40]}", line)
            records.append(Record(line, place, value))
        return records

    def table(self) -> "Table":
        return Table(self)

    @cached_property
    def first_cells(self) -> list[str]:
        """What stands between blanks, commas or semicolons of the first line."""
        return _BETWEEN.split(self.first.strip())

    def columns(self, count: int, empty: float | None = None) -> tuple[list[int], Floats]:
        """Line numbers [n] and numbers [n, count] of a file of `count` columns and nothing else.

        empty: what an empty cell stands for; None where it is not allowed.
        """
        numbers, rows = [], []
        for line, text in self.lines:
            cells = _BETWEEN.split(text.strip())
            if len(cells) != count:
                self.fail(f"holds {len(cells)} columns; allowed: {count} as in the lines before", line)
            numbers.append(line)
            rows.append(cells)
        return numbers, self.parse(rows, numbers, empty).reshape(-1, count)

    def parse(self, rows: Sequence[Sequence[str]], lines: Sequence[int], empty: float | None = None) -> Floats:
        """float64, every cell in reading order. Raises TraceError at the first that is no finite number."""
        try:
            quick = np.array([float(cell) for row in rows for cell in row])
            if np.isfinite(quick).all() and "_" not in self.text:
                return quick
        except ValueError:
            pass  # found again, with its line, below
        values = np.empty(sum(map(len, rows)))
        place = 0
        for line, row in zip(lines, rows, strict=True):
            for cell in row:
                cell = cell.strip()
                if empty is not None and not cell:
                    value = empty
                else:
                    try:
                        value = float(cell)
                    except ValueError:
                        self.fail(f"{cell[:40]!r} is not a number", line)
                    if not np.isfinite(value) or "_" in cell:
                        self.fail(f"{cell[:40]!r} is not a finite number", line)
                values[place] = value
                place += 1
        return values

    def need(self, fine: np.ndarray, lines: Sequence[int], values: np.ndarray, what: str) -> None:
        """Fail at the first line that is not fine: `what`, and the value found there."""
        wrong = np.flatnonzero(~fine)
        if wrong.size:
            self.fail(f"{what}, got {values[wrong[0]]:.15g}", lines[int(wrong[0])])

    def need_sorted(self, times: np.ndarray, lines: Sequence[int], what: str = "time") -> None:
        """Equal times are fine, decreasing ones are not."""
        wrong = np.flatnonzero(np.diff(times) < 0)
        if wrong.size:
            i = int(wrong[0])
            self.fail(
                f"{what} goes back: {times[i + 1]:.15g} after {times[i]:.15g}; allowed: never decreasing", lines[i + 1]
            )


class Table:
    """A file with a header row of column names."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.names = source.header
        twice = {name for name in self.names if name and self.names.count(name) > 1}
        if twice:
            source.fail(f"column {min(twice)[:40]!r} occurs twice in the header", source.lines[0][0])
        self.lines: list[int] = []
        self.rows: list[list[str]] = []
        for line, text in source.lines[1:]:
            try:
                cells = next(csv.reader([text], delimiter=source.separator))
            except csv.Error as error:
                source.fail(f"is not a line of a table: {error}", line)
            if not any(cells[len(self.names) :]):  # separators at the end of a line
                del cells[len(self.names) :]
            if len(cells) != len(self.names):
                source.fail(f"holds {len(cells)} columns; allowed: {len(self.names)} as in the header", line)
            self.lines.append(line)
            self.rows.append(cells)
        if not self.rows:
            source.fail("holds a header and no rows")

    def texts(self, name: str) -> list[str]:
        place = self.names.index(name)
        return [row[place].strip() for row in self.rows]

    def numbers(self, name: str, missing: str | None = None) -> Floats:
        """float64 [rows], >= 0; a cell that is empty or `missing` is NaN where `missing` is given. Raises TraceError."""
        cells = self.texts(name)
        if missing is not None:
            cells = ["" if cell == missing else cell for cell in cells]
        values = self.source.parse([[cell] for cell in cells], self.lines, None if missing is None else np.nan)
        self.source.need(~(values < 0.0), self.lines, values, f"{name} must be >= 0")
        return values


def held(values: Floats) -> Floats | None:
    """NaN takes the value before it, and before the first value that one; None where all are NaN."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return None
    last = known[np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)]
    return np.asarray(values[last], dtype=np.float64)

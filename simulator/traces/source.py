"""Text of a trace file: its lines, columns, table and JSON, with errors that name file and line."""

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

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")  # separators of the numbers in a line
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
    """One JSON object of a list.

    Attributes:
        line: its first line; 0 inside a document, where errors give the key only.
        place: prefix of its keys in errors; empty if the line number is enough.
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
            self.fail("cannot be read: not a valid file name")
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
        """(line number, text) of all lines that are neither blank nor comments (`#`)."""
        split = re.split(r"\r\n|\n|\r", self.text)
        stripped = [(number, line.strip(" ")) for number, line in enumerate(split, 1) if line.strip()]
        return [(number, line) for number, line in stripped if not line.startswith("#")]

    @cached_property
    def first(self) -> str:
        """Text of the first of `lines`; empty if there is none."""
        return self.lines[0][1] if self.lines else ""

    @cached_property
    def separator(self) -> str:
        """The separator of a table with a header: comma, semicolon or tab, whichever is most frequent in the header."""
        return max(",;\t", key=self.first.count)

    @cached_property
    def header(self) -> list[str]:
        """Column names, if the first line is a header; else empty."""
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
        """The JSON documents of the text; empty if the text does not begin like JSON."""
        if not self.first.startswith(("{", "[")):
            return Documents()
        read = documents(self._json_text)
        return read if read.found or begins_like_json(self._json_text) else Documents()

    @cached_property
    def _json_text(self) -> str:
        """The text with blanked comment lines. A line of JSON cannot begin with `#`."""
        return re.sub(r"(?m)^ *#.*$", "", self.text)

    def json_head(self) -> Any:
        """Return the first JSON document, or None if the text is not JSON. Raises TraceError if that document is damaged."""
        if self.documents.found:
            return self.documents.found[0][1]
        self._refuse_damage()
        return None

    def _refuse_damage(self) -> None:
        if self.documents.error:
            line, what = self.documents.error
            self.fail(what, line)

    def json(self) -> Any:
        """Return the only JSON document of the text. Raises TraceError if it is damaged or anything follows it."""
        head = self.json_head()
        self._refuse_damage()
        if len(self.documents.found) != 1:
            self.fail(f"holds {len(self.documents.found)} JSON documents; allowed in this format: one")
        return head

    @cached_property
    def first_record(self) -> dict[str, Any]:
        """The first JSON object of the text or of its array; empty if there is none."""
        head = self.json_head()
        first = head[0] if isinstance(head, list) and head else head
        return first if isinstance(first, dict) else {}

    def records(self) -> list[Record]:
        """Return the JSON objects of an array or of concatenated documents. Raises TraceError for damage and for other values."""
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
        """Cells of the first line, separated by blanks, commas or semicolons."""
        return _BETWEEN.split(self.first.strip())

    def columns(self, count: int, empty: float | None = None) -> tuple[list[int], Floats]:
        """Return line numbers [n] and numbers [n, count] of a file of `count` columns without header.

        Args:
            count: number of columns.
            empty: value of an empty cell; None if empty cells are not allowed.

        Raises:
            TraceError: a line has another number of columns, or a cell is not a finite number.
        """
        numbers, rows = [], []
        for line, text in self.lines:
            cells = _BETWEEN.split(text.strip())
            if len(cells) != count:
                self.fail(f"holds {len(cells)} columns; allowed: {count} as in the lines before", line)
            numbers.append(line)
            rows.append(cells)
        return numbers, self.parse(rows, numbers, empty).reshape(-1, count)

    def parse(
        self, rows: Sequence[Sequence[str]], lines: Sequence[int], empty: float | None = None, column: str = ""
    ) -> Floats:
        """Return all cells as float64 in reading order. Raises TraceError at the first that is not a finite number.

        Args:
            rows: the cells of each line.
            lines: line number of each row.
            empty: value of an empty cell; None if empty cells are not allowed.
            column: name of the only column, for the error.
        """
        where = f" (column {column[:40]})" if column else ""
        try:
            quick = np.array([float(cell) for row in rows for cell in row])
            if np.isfinite(quick).all() and "_" not in self.text:
                return quick
        except ValueError:
            pass  # the loop below finds it again, with its line
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
                        self.fail(f"{cell[:40]!r} is not a number{where}", line)
                    if not np.isfinite(value) or "_" in cell:
                        self.fail(f"{cell[:40]!r} is not a finite number{where}", line)
                values[place] = value
                place += 1
        return values

    def need(self, fine: np.ndarray, lines: Sequence[int], values: np.ndarray, what: str) -> None:
        """Raise TraceError at the first line that is not `fine`, with the message `what` and the value of that line."""
        wrong = np.flatnonzero(~fine)
        if wrong.size:
            self.fail(f"{what}, got {values[wrong[0]]:.15g}", lines[int(wrong[0])])

    def need_sorted(self, times: np.ndarray, lines: Sequence[int], what: str = "time") -> None:
        """Raise TraceError if the times decrease. Equal times are allowed."""
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
            if not any(cells[len(self.names) :]):  # only separators at the end of the line
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
        """Return float64 [rows], all >= 0. If `missing` is given, cells that are empty or equal to it are NaN. Raises TraceError."""
        cells = self.texts(name)
        if missing is not None:
            cells = ["" if cell == missing else cell for cell in cells]
        values = self.source.parse([[cell] for cell in cells], self.lines, None if missing is None else np.nan, name)
        self.source.need(~(values < 0.0), self.lines, values, f"{name} must be >= 0")
        return values


def held(values: Floats) -> Floats | None:
    """Replace each NaN by the value before it, or by the first value if there is none before. Return None if all are NaN."""
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return None
    last = known[np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)]
    return np.asarray(values[last], dtype=np.float64)

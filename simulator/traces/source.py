"""A trace file as text: its lines, columns and JSON, with errors that name file and line."""

import csv
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from simulator.core.errors import TraceError
from simulator.traces.series import Floats

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")  # what may stand between the numbers of a line


class Source:
    """The text of one file. Raises TraceError for a file that is missing, empty, binary or not UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            self.text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.fail("is not text (UTF-8); allowed: text files, unpacked")
        if re.search(r"[\x00-\x08\x0e-\x1f]", self.text):
            self.fail("is a binary file; allowed: text files, unpacked")
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
    def json(self) -> Any:
        """Raises TraceError for JSON that is damaged or cut off."""
        try:
            return json.loads(self.text)
        except RecursionError:
            self.fail("is JSON nested too deeply for any trace")
        except ValueError as error:
            place = getattr(error, "lineno", None)
            self.fail(f"damaged or cut-off JSON: {getattr(error, 'msg', error)}", place)

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
            source.fail(f"column {min(twice)!r} stands twice in the header")
        self.lines: list[int] = []
        self.rows: list[list[str]] = []
        for line, text in source.lines[1:]:
            try:
                cells = next(csv.reader([text], delimiter=source.separator))
            except csv.Error as error:
                source.fail(f"is no line of a table: {error}", line)
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

"""Serialisation of tables: Parquet, CSV, JSON."""

import csv
import io
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.results.tables import Columns, plain

ROWS = 1 << 17  # rows of a row group, and rows in memory while a table is written


def write_parquet(file: BinaryIO | Path, blocks: Iterable[Columns]) -> None:
    """Write a table given as blocks of `ROWS` rows (the last may be shorter). Equal tables give equal bytes: no metadata, no time."""
    with ExitStack() as stack:
        if isinstance(file, Path):
            file = stack.enter_context(file.open("wb"))  # pyarrow takes names in UTF-8 only
        writer: pq.ParquetWriter | None = None
        for block in blocks:
            table = pa.table({name: _array(values) for name, values in block.items()})
            if writer is None:
                options: dict[str, Any] = {"version": "2.6", "compression": "zstd", "store_schema": False}
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, **options))
            writer.write_table(table, row_group_size=ROWS)


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as Parquet."""
    buffer = io.BytesIO()
    write_parquet(buffer, [{str(name): table[name].to_numpy() for name in table}])
    return buffer.getvalue()


def _array(values: np.ndarray) -> pa.Array:
    numbers = {"i": pa.int64(), "f": pa.float64()}.get(values.dtype.kind)
    return pa.array(values, numbers) if numbers else pa.array(values, pa.string(), from_pandas=True)


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as CSV: floats in the shortest form that is read back as the same number, NaN as NaN, missing text empty."""
    columns = {name: table[name] if table[name].dtype.kind in "fiu" else table[name].fillna("") for name in table}
    text = pd.DataFrame(columns).to_csv(index=False, na_rep="NaN", float_format=_shortest, lineterminator="\n")
    return text.encode()


def csv_text(data: bytes) -> pd.DataFrame:
    """Return the cells of a CSV table, all as text.

    Raises:
        ValueError: The data are empty or not CSV, a row has more or fewer values than the header, or a column occurs twice.
    """
    try:
        lines = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if not lines:
        raise ValueError("it is empty")
    header, *rows = lines
    if twice := next((name for place, name in enumerate(header) if name in header[:place]), None):
        raise ValueError(f"column {twice[:40]!r} occurs twice")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} values, and the header {len(header)} names")
    return pd.DataFrame(rows, columns=header, dtype=object)


def _shortest(value: Any) -> str:
    return repr(float(value))


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON in UTF-8. Bytes of a path that are no UTF-8 are escaped as Python has them, as lone surrogates."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")

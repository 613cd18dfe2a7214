"""Tables as bytes: Parquet, CSV, JSON."""

import io
import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.results.tables import plain


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet; equal tables give equal bytes (fixed options, no metadata, no time)."""
    arrays = {}
    for name in table:
        kind, values = table[name].dtype.kind, table[name].to_numpy()
        numbers = {"i": pa.int64(), "f": pa.float64()}.get(kind)
        arrays[name] = pa.array(values, numbers) if numbers else pa.array(values, pa.string(), from_pandas=True)
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(arrays), buffer, version="2.6", compression="zstd", row_group_size=1 << 20, store_schema=False
    )
    return buffer.getvalue()


def csv_bytes(table: pd.DataFrame) -> bytes:
    """The table as CSV: floats in the shortest form that reads back as the same number, NaN as NaN, absent text empty."""
    columns = {name: table[name] if table[name].dtype.kind in "fiu" else table[name].fillna("") for name in table}
    text = pd.DataFrame(columns).to_csv(index=False, na_rep="NaN", float_format=_shortest, lineterminator="\n")
    return text.encode()


def _shortest(value: Any) -> str:
    return repr(float(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

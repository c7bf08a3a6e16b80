"""Parquet, with the types that the collector told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab import Exit, TrimtabError
from trimtab.collector.beside import beside
from trimtab.collector.output import Column, Row, plain

_TYPES = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_S": pa.timestamp("us"),
    "TIMESTAMP_MS": pa.timestamp("us"),
    "TIMESTAMP_NS": pa.timestamp("us"),
}
_HUGE = {"HUGEINT", "UHUGEINT"}
"""What sums of integers are. Parquet has no such type: 64 bits where they do, else DOUBLE, as DuckDB's own writer does."""


def write_parquet(path: Path, columns: Sequence[Column], rows: Iterable[Row]) -> int:
    """How many rows `path` has now. Raises TrimtabError; then it is as it was."""
    with beside(path, replace=True) as part:
        found = list(rows)
        fields = [(column.name, _array(column, [column.of(row) for row in found])) for column in columns]
        schema = pa.schema([(name, array.type) for name, array in fields])
        pq.write_table(pa.table([array for _, array in fields], schema=schema), part, compression="zstd")
    return len(found)


def _array(column: Column, values: list[Any]) -> pa.Array:
    kind = column.kind.upper()
    try:
        if kind in _HUGE:
            return _huge(values)
        return pa.array([_value(kind, value) for value in values], _type(kind))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        message = f"column {column.name}: {error}; cast it to another type than {column.kind}"
        raise TrimtabError(message.partition("\n")[0], Exit.USAGE) from error


def _huge(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.int64())
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _type(kind: str) -> pa.DataType:
    """Text where Parquet or JSON has nothing nearer."""
    inner = re.fullmatch(r"(.+)\[\d*\]", kind)
    if inner and not kind.startswith(("STRUCT", "MAP", "UNION")):
        return pa.list_(_type(inner[1]))
    if kind.startswith("DECIMAL"):
        # It came as a JSON number.
        return pa.float64()
    return _TYPES.get(kind, pa.string())


def _value(kind: str, value: Any) -> Any:
    of = _type(kind)
    if value is None:
        return None
    if pa.types.is_list(of):
        inner = kind[: kind.rindex("[")]
        return [_value(inner, item) for item in value]
    if pa.types.is_timestamp(of):
        return datetime.fromisoformat(value).replace(tzinfo=None)
    if pa.types.is_date(of):
        return date.fromisoformat(value)
    if pa.types.is_string(of):
        return value if isinstance(value, str) else plain(value) if not isinstance(value, float) else json.dumps(value)
    return value

"""Columns as Arrow tables, which DuckDB reads where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Columns = Mapping[str, Any]
"""Name to values, all of one length: a numpy array, a sequence of texts or bytes, or an Arrow array as it is."""
_TIMESTAMP = pa.timestamp("us")


def table(columns: Columns, times: Sequence[str] = ()) -> pa.Table:
    """`times` are int64 microseconds since the epoch, and become timestamps; below 0 is NULL."""
    return pa.table({name: _time(values) if name in times else _array(values) for name, values in columns.items()})


def floats(matrix: NDArray[np.float64], known: NDArray[np.uint8]) -> list[pa.DoubleArray]:
    """A column for each row of `matrix` float64 [columns, rows], NULL where `known` uint8 [columns, ceil(rows / 8)] has no bit. No copy."""
    rows = matrix.shape[1]
    return [
        pa.Array.from_buffers(pa.float64(), rows, [pa.py_buffer(bits), pa.py_buffer(values)])
        for values, bits in zip(matrix, known, strict=True)
    ]


def known_floats(values: NDArray[np.float64]) -> pa.DoubleArray:
    """NULL where NaN."""
    return pa.array(values, from_pandas=True)


def repeated(values: Sequence[str], lengths: NDArray[np.int64]) -> pa.DictionaryArray:
    """Text `values[i]` for `lengths[i]` rows."""
    return pa.DictionaryArray.from_arrays(np.repeat(np.arange(len(values), dtype=np.int32), lengths), pa.array(values))


def _array(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        return pa.array(values, from_pandas=True) if values.dtype.kind == "f" else pa.array(values)
    return values if isinstance(values, pa.Array) else pa.array(values)


def _time(values: Any) -> Any:
    stamps = np.asarray(values, dtype=np.int64)
    return pa.array(stamps, mask=stamps < 0).cast(_TIMESTAMP)

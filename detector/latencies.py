"""The request latencies of many windows at once: their sums, and their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS
from trimtab.agent.wire import telemetry_pb2 as pb

_LOGS = np.log(np.maximum(MIDDLES_SECONDS, 1e-9))


@dataclass(frozen=True, slots=True)
class Piece:
    """Request latencies of some instances of a node in one slot, as (row, bucket, weight)."""

    rows: NDArray[np.int64]
    buckets: NDArray[np.int64]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """What one sketch column says."""

    rows: NDArray[np.int64]
    """int64 [k]: whose sketches they are, rising by no rule."""
    sums: NDArray[np.float64]
    """float64 [3, k]: how many observations there were, their sum in seconds, and the sum of their logarithms."""
    piece: Piece


def unpack(columns: Sequence[pb.SketchColumn]) -> list[Part]:
    """The columns, which were checked when they came, each as a part. The work is one for all."""

    def joined(name: str, dtype: str) -> NDArray[Any]:
        return np.frombuffer(b"".join([getattr(column, name) for column in columns]), dtype=dtype)

    rows = joined("subjects", "<u4").astype(np.int64)
    weight = 1 / joined("probabilities", "<f8")
    owners = np.repeat(np.arange(len(rows)), joined("lengths", "<u4"))
    buckets, counts = joined("buckets", "<u2").astype(np.int64), joined("counts", "<u4")
    total = np.bincount(owners, counts, len(rows))
    logs = np.bincount(owners, counts * _LOGS[buckets], len(rows))
    sums = np.stack([total * weight, joined("sums", "<f8") * weight, logs * weight])
    cells = Piece(rows[owners], buckets, (counts * weight[owners]).astype(np.float32))
    sketch_ends = np.cumsum([len(column.subjects) // 4 for column in columns]).tolist()
    cell_ends = np.cumsum([len(column.buckets) // 2 for column in columns]).tolist()
    out, sketch, cell = [], 0, 0
    for sketch_end, cell_end in zip(sketch_ends, cell_ends, strict=True):
        here, there = slice(sketch, sketch_end), slice(cell, cell_end)
        piece = Piece(cells.rows[there], cells.buckets[there], cells.weights[there])
        out.append(Part(rows[here], sums[:, here], piece))
        sketch, cell = sketch_end, cell_end
    return out

"""Sketches as the store keeps them: one BLOB each, about a byte and a half for each bucket that holds something.

The first byte is 1 where every observation was sampled; or 2, and then the sampling probability follows as a little-endian float64. Then
come the buckets that hold something, rising. Each is a varint (LEB128) `gap << 1 | more`, where gap is how many buckets were left out since
the one before (or since the first). Without `more` it holds one observation; with it, another varint says how many beyond two.
The buckets themselves are those of agent/sketch/loglinear.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import BUCKETS
from trimtab.collector import kernels

_CELL_BYTES_MAX = 8
"""Two bytes for the gap at most, five for the count, and one to spare."""


@dataclass(frozen=True, slots=True)
class SketchList:
    """n sketches: sketch i has the cells from `offsets[i]` to `offsets[i + 1]`, its buckets rising."""

    offsets: NDArray[np.int64]
    buckets: NDArray[np.uint16]
    counts: NDArray[np.uint32]
    probabilities: NDArray[np.float64]
    """float64 [n]: the probability with which each observation was sampled, in (0, 1]."""

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def sampled(self) -> NDArray[np.float64]:
        """float64 [n]: how many observations each holds, as they were sampled."""
        out = np.empty(len(self))
        kernels.totals(self.offsets, self.counts, out)
        return out

    def merge(self, groups: NDArray[np.int64], among: int) -> SketchList:
        """`among` sketches: those of group i together. Exact where the probabilities of a group are equal; else re-weighted to the highest
        of the group, as `trimtab.agent.sketch.loglinear.merge` does. A group of none is empty, with probability 1."""
        highest = np.zeros(among)
        np.maximum.at(highest, groups, self.probabilities)
        highest[highest == 0] = 1.0
        dense = np.zeros((among, BUCKETS))
        scales = highest[groups] / self.probabilities
        kernels.merge(self.offsets, self.buckets, self.counts, scales, np.ascontiguousarray(groups), dense)
        filled = int(np.count_nonzero(dense))
        offsets = np.empty(among + 1, dtype=np.int64)
        buckets, counts = np.empty(filled, dtype=np.uint16), np.empty(filled, dtype=np.uint32)
        cells = kernels.cells_of(dense, offsets, buckets, counts)
        return SketchList(offsets, buckets[:cells], counts[:cells], highest)

    def summary(self, sums: NDArray[np.float64], order: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """float64 [5, rows]: count re-weighted, mean, p50, p95, p99 of sketch `order[i]` each, NaN where that
        is below 0; None: all in order.

        `sums` float64 [n] are seconds over the sampled observations.
        """
        order = np.arange(len(self)) if order is None else order
        out = np.empty((kernels.SUMMARY, len(order)))
        kernels.summarise(self.offsets, self.buckets, self.counts, self.probabilities, sums, order, out)
        return out

    def pack(self, order: NDArray[np.int64] | None = None) -> pa.BinaryArray:
        """As the store keeps them: sketch `order[i]` each, null where that is below 0; None: all in order."""
        order = np.arange(len(self)) if order is None else order
        ends = np.empty(len(order) + 1, dtype=np.int32)
        data = np.empty(9 * len(self) + _CELL_BYTES_MAX * len(self.buckets), dtype=np.uint8)
        size = kernels.pack(self.offsets, self.buckets, self.counts, self.probabilities, order, ends, data)
        known = np.packbits(order >= 0, bitorder="little")
        buffers = [pa.py_buffer(known), pa.py_buffer(ends), pa.py_buffer(data[:size].copy())]
        return pa.Array.from_buffers(pa.binary(), len(order), buffers)


def unpack(packed: pa.BinaryArray) -> SketchList:
    """What was packed; without nulls. Raises ValueError for bytes that are no sketch."""
    n = len(packed)
    _, ends_buffer, data_buffer = packed.buffers()
    ends = np.frombuffer(ends_buffer, dtype=np.int32)[packed.offset : packed.offset + n + 1].astype(np.int64)
    # Kernels take what may be written.
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)[ends[0] : ends[-1]].copy()
    size = len(data)
    offsets, probabilities = np.empty(n + 1, dtype=np.int64), np.empty(n)
    buckets, counts = np.empty(size, dtype=np.uint16), np.empty(size, dtype=np.uint32)
    cells = kernels.unpack(ends - ends[0], data, offsets, buckets, counts, probabilities)
    if cells < 0:
        raise ValueError(f"sketch {-1 - cells} of {n} is damaged")
    return SketchList(offsets, buckets[:cells], counts[:cells], probabilities)

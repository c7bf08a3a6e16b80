"""The arrays of the kernel that the agent reads through shared memory: no system call, and no copy but of what is asked for."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import BUCKETS, Sketch

HISTOGRAM = np.dtype([("sum_ns", "<u8"), ("counts", "<u4", (BUCKETS,))])
"""`struct histogram` of histogram.h. It only grows, the counts modulo 2^32."""


def view(map_fd: int, of: np.dtype[np.void], length: int) -> NDArray[np.void]:
    """The array as the kernel changes it, [length]; read-only. It outlives the descriptor. Raises OSError."""
    memory = mmap.mmap(map_fd, length * of.itemsize, mmap.MAP_SHARED, mmap.PROT_READ)
    return np.frombuffer(memory, of, length)


def grown(now: NDArray[np.void], before: NDArray[np.void]) -> Sketch | None:
    """What a HISTOGRAM took in between two copies of it; None where that is nothing."""
    # Unsigned, so that a count that went past 2^32 still gives the right difference.
    counts = (now["counts"] - before["counts"]).astype(np.int64)
    return Sketch(counts, int(now["sum_ns"] - before["sum_ns"]) / 1e9) if counts.any() else None

"""The loop that makes one row of many: a free function over arrays, compiled when this module is imported, or read from numba's cache.

It has a plain twin in tests/collector/test_rollup.py, and must agree with it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

Matrix = Any
"""Numba's types stand in the signatures."""


@njit(
    "void(int64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], int64[::1], int64[::1],"
    "int64[:, ::1], float64[:, :, ::1])",
    cache=True,
    nogil=True,
)
def gather(
    known: Matrix,
    low: Matrix,
    mean: Matrix,
    high: Matrix,
    last: Matrix,
    order: Matrix,
    bounds: Matrix,
    out_known: Matrix,
    out: Matrix,
) -> None:
    """Gather rows `order[bounds[g]]` to `order[bounds[g + 1] - 1]`, the oldest first, into group g.

    All matrices are [columns, rows]; `known` says for how many windows a row stands, and where that is 0 the others are not looked at.
    Fills `out_known` int64 [columns, groups] and `out` float64 [4, columns, groups]: min, mean, max, last; NaN where never known. The
    mean runs along, so that it lies within [min, max] and does not overflow.
    """
    for c in range(known.shape[0]):
        for g in range(len(bounds) - 1):
            total = np.int64(0)
            least, middle, most, newest = math.inf, 0.0, -math.inf, math.nan
            for i in range(bounds[g], bounds[g + 1]):
                row = order[i]
                windows = known[c, row]
                if windows == 0:
                    continue
                total += windows
                share = windows / total
                middle = middle * (1 - share) + mean[c, row] * share
                least = min(least, low[c, row])
                most = max(most, high[c, row])
                newest = last[c, row]
            out_known[c, g] = total
            if total == 0:
                out[:, c, g] = math.nan
            else:
                out[0, c, g] = least
                out[1, c, g] = min(max(middle, least), most)
                out[2, c, g] = most
                out[3, c, g] = newest

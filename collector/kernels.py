"""The loops over samples that numpy has no word for, compiled by numba: free functions over arrays.

Each has a plain twin in tests/collector/test_kernels.py, and must agree with it. They are compiled for fixed types when this module is
imported, or read from numba's cache, so that no batch ever waits for a compiler.

A *list of sketches* is (offsets int64 [n + 1], buckets uint16 [cells], counts uint32 [cells]): sketch i has the cells from `offsets[i]`
to `offsets[i + 1]`, buckets rising. The buckets are those of agent/sketch/loglinear.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from trimtab.agent.sketch.loglinear import BUCKETS, MIDDLES_SECONDS

Cells = Any
"""A list of sketches, or an array of it: numba's types stand in the signatures."""

_QUANTILES = np.array([0.5, 0.95, 0.99])
SUMMARY = 5
"""Numbers that stand for a sketch: count, mean, and the quantiles of collector/series.py."""
_POWERS = 10.0 ** np.arange(-300, 301)


@njit("float64(float64)", cache=True, nogil=True)
def rounded(value: float) -> float:
    """To 6 significant digits: a thousandth of what the sketch itself leaves open, and half the bytes in the store."""
    if value == 0.0 or not math.isfinite(value):
        return value
    digits = 5 - math.floor(math.log10(abs(value)))
    if digits < -300 or digits > 300:
        return value
    if digits >= 0:
        return round(value * _POWERS[300 + digits]) / _POWERS[300 + digits]
    return round(value / _POWERS[300 - digits]) * _POWERS[300 - digits]


@njit(
    "void(int64[::1], uint16[::1], uint32[::1], float64[::1], float64[::1], int64[::1], float64[:, ::1])",
    cache=True,
    nogil=True,
)
def summarise(
    offsets: Cells, buckets: Cells, counts: Cells, probabilities: Cells, sums: Cells, order: Cells, out: Cells
) -> None:
    """Fill row i of `out` float64 [SUMMARY, rows] from sketch `order[i]`; NaN where that is below 0.

    The count is re-weighted by 1 / p (Horvitz and Thompson, 1952); then mean, p50, p95, p99, NaN when empty. `sums` are seconds over the
    sampled observations. A quantile is the middle of the bucket that holds rank ceil(q n).
    """
    for i in range(len(order)):
        k = order[i]
        if k < 0:
            out[:, i] = np.nan
            continue
        sampled = np.int64(0)
        for cell in range(offsets[k], offsets[k + 1]):
            sampled += counts[cell]
        out[0, i] = sampled / probabilities[k]
        if sampled == 0:
            out[1:, i] = np.nan
            continue
        out[1, i] = rounded(sums[k] / sampled)
        q, seen = 0, np.int64(0)
        for cell in range(offsets[k], offsets[k + 1]):
            seen += counts[cell]
            while q < 3 and seen >= max(1, math.ceil(_QUANTILES[q] * sampled * (1 - 1e-12))):
                out[2 + q, i] = rounded(MIDDLES_SECONDS[buckets[cell]])
                q += 1


@njit("int64(uint8[::1], int64, uint64)", cache=True, nogil=True)
def _put(data: Cells, at: int, value: int) -> int:
    """Write a varint (LEB128); where the next one goes."""
    while value >= 128:
        data[at] = (value & np.uint64(127)) | np.uint64(128)
        value >>= np.uint64(7)
        at += 1
    data[at] = value
    return at + 1


@njit(
    "int64(int64[::1], uint16[::1], uint32[::1], float64[::1], int64[::1], int32[::1], uint8[::1])",
    cache=True,
    nogil=True,
)
def pack(
    offsets: Cells, buckets: Cells, counts: Cells, probabilities: Cells, order: Cells, ends: Cells, data: Cells
) -> int:
    """Encode sketch `order[i]` for each row, nothing where that is below 0, as collector/packed.py says, one after the other into `data`.

    `ends` int32 [rows + 1] says where each begins. How many bytes.
    """
    at = np.int64(0)
    probability = np.empty(1, dtype=np.float64)
    for i in range(len(order)):
        ends[i] = at
        k = order[i]
        if k < 0:
            continue
        if probabilities[k] == 1.0:
            data[at] = 1
            at += 1
        else:
            data[at] = 2
            probability[0] = probabilities[k]
            data[at + 1 : at + 9] = probability.view(np.uint8)
            at += 9
        before = np.int64(-1)
        for cell in range(offsets[k], offsets[k + 1]):
            count = np.uint64(counts[cell])
            if count == 0:
                continue
            gap = np.uint64(np.int64(buckets[cell]) - before - 1)
            before = np.int64(buckets[cell])
            if count == 1:
                at = _put(data, at, gap << np.uint64(1))
            else:
                at = _put(data, at, gap << np.uint64(1) | np.uint64(1))
                at = _put(data, at, count - np.uint64(2))
    ends[len(order)] = at
    return at


@njit("int64(int64[::1], uint8[::1], int64[::1], uint16[::1], uint32[::1], float64[::1])", cache=True, nogil=True)
def unpack(ends: Cells, data: Cells, offsets: Cells, buckets: Cells, counts: Cells, probabilities: Cells) -> int:
    """The inverse of `pack`, without gaps: fill a list of sketches whose arrays are as long as `data`.

    How many cells; below 0: sketch -1 - i is damaged.
    """
    cell = np.int64(0)
    for i in range(len(ends) - 1):
        at, end = ends[i], ends[i + 1]
        offsets[i] = cell
        if at == end:
            return -1 - i
        if data[at] == 1:
            probabilities[i] = 1.0
            at += 1
        elif data[at] == 2 and end - at >= 9:
            probabilities[i] = data[at + 1 : at + 9].copy().view(np.float64)[0]
            at += 9
        else:
            return -1 - i
        bucket = np.int64(-1)
        while at < end:
            value, shift = np.uint64(0), np.uint64(0)
            while at < end and data[at] >= 128 and shift < 42:
                value |= np.uint64(data[at] & 127) << shift
                shift += np.uint64(7)
                at += 1
            if at >= end:
                return -1 - i
            value |= np.uint64(data[at]) << shift
            at += 1
            bucket += np.int64(value >> np.uint64(1)) + 1
            count = np.uint64(1)
            if value & np.uint64(1):
                count, shift = np.uint64(0), np.uint64(0)
                while at < end and data[at] >= 128 and shift < 42:
                    count |= np.uint64(data[at] & 127) << shift
                    shift += np.uint64(7)
                    at += 1
                if at >= end:
                    return -1 - i
                count |= np.uint64(data[at]) << shift
                count += np.uint64(2)
                at += 1
            if bucket >= BUCKETS or count > 0xFFFFFFFF:
                return -1 - i
            buckets[cell] = bucket
            counts[cell] = count
            cell += 1
    offsets[len(ends) - 1] = cell
    return cell


@njit("void(int64[::1], uint16[::1], uint32[::1], float64[::1], int64[::1], float64[:, ::1])", cache=True, nogil=True)
def merge(offsets: Cells, buckets: Cells, counts: Cells, scales: Cells, groups: Cells, out: Cells) -> None:
    """Add every sketch i, each count times `scales[i]`, to row `groups[i]` of `out` float64 [groups, BUCKETS]."""
    for i in range(len(offsets) - 1):
        row, scale = groups[i], scales[i]
        for cell in range(offsets[i], offsets[i + 1]):
            out[row, buckets[cell]] += counts[cell] * scale


@njit("void(int64[::1], uint32[::1], float64[::1])", cache=True, nogil=True)
def totals(offsets: Cells, counts: Cells, out: Cells) -> None:
    """Fill `out` float64 [n] with the sum of each sketch's counts."""
    for i in range(len(out)):
        total = np.int64(0)
        for cell in range(offsets[i], offsets[i + 1]):
            total += counts[cell]
        out[i] = total


@njit("int64(float64[:, ::1], int64[::1], uint16[::1], uint32[::1])", cache=True, nogil=True)
def cells_of(dense: Cells, offsets: Cells, buckets: Cells, counts: Cells) -> int:
    """The rows of a merge as a list of sketches, counts rounded; the arrays must hold what is not 0. How many cells."""
    cell = np.int64(0)
    for row in range(dense.shape[0]):
        offsets[row] = cell
        for bucket in range(dense.shape[1]):
            if dense[row, bucket] >= 0.5:
                buckets[cell] = bucket
                counts[cell] = min(round(dense[row, bucket]), 0xFFFFFFFF)
                cell += 1
    offsets[dense.shape[0]] = cell
    return cell


@njit(
    "void(float64[::1], int64[:, ::1], int64[::1], float64[:, ::1], uint8[:, ::1], boolean[::1])",
    cache=True,
    nogil=True,
)
def scatter(blocks: Cells, parts: Cells, columns: Cells, out: Cells, known: Cells, bad: Cells) -> None:
    """Lay blocks [series, subjects] into the columns of one table.

    `parts` int64 [parts, 5]: where in `blocks` a part begins, its series, its subjects, its first row of `out`, and where in `columns`
    the columns of its series begin. `out` float64 [columns, rows]; `known` uint8 [columns, ceil(rows / 8)] gets a bit for each value
    that is not NaN, as Arrow has it. A part with an infinity is `bad`.
    """
    for p in range(parts.shape[0]):
        at, series, subjects, row, first = parts[p]
        for s in range(series):
            column = columns[first + s]
            for i in range(subjects):
                value = blocks[at + s * subjects + i]
                if math.isinf(value):
                    bad[p] = True
                elif not math.isnan(value):
                    out[column, row + i] = value
                    known[column, (row + i) >> 3] |= np.uint8(1 << ((row + i) & 7))


@njit(
    "void(int64[:, ::1], uint32[::1], float64[::1], float64[::1], uint32[::1], uint16[::1], int64[::1], int64[::1], boolean[::1])",
    cache=True,
    nogil=True,
)
def check_sketches(
    parts: Cells,
    subjects: Cells,
    probabilities: Cells,
    sums: Cells,
    lengths: Cells,
    buckets: Cells,
    offsets: Cells,
    order: Cells,
    bad: Cells,
) -> None:
    """See whether sketches keep to the contract of telemetry.proto, and which row of the table each belongs to.

    `parts` int64 [parts, 6]: first sketch, sketches, first cell, cells, subjects of its table, first row. Fills `offsets` int64
    [sketches + 1], and `order` int64 [rows] (given as -1) with the sketch of each row. A part that breaks the contract is `bad`.
    """
    for p in range(parts.shape[0]):
        sketch, sketches, cell, cells, rows, row = parts[p]
        end = cell + cells
        for k in range(sketch, sketch + sketches):
            offsets[k] = cell
            subject = np.int64(subjects[k])
            if subject >= rows or order[row + subject] >= 0:
                bad[p] = True
            else:
                order[row + subject] = k
            # Written so that NaN fails too.
            if not (probabilities[k] > 0 and probabilities[k] <= 1 and sums[k] >= 0 and sums[k] < math.inf):
                bad[p] = True
            if cell + lengths[k] > end:
                bad[p] = True
                break
            before = np.int64(-1)
            for c in range(cell, cell + lengths[k]):
                if buckets[c] <= before or buckets[c] >= BUCKETS:
                    bad[p] = True
                before = np.int64(buckets[c])
            cell += lengths[k]
        if cell != end:
            bad[p] = True
        offsets[sketch + sketches] = end

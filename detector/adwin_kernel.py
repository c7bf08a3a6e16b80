"""The loops over streams of `trimtab.detector.adwin`, compiled by numba (see `trimtab.collector.kernels`).

A window is looked at after every `CLOCK` values, and what it is made of is of no use before: so values wait, and enter together. As a
stream begins anew after a cut, its buckets follow from its width: of streams that are equally wide the same buckets are merged. So the
innermost loops go over a block of `LANES` streams, and become vector instructions.

`waiting` float32 [CLOCK, blocks, LANES]: of stream i, which is lane i % LANES of block i // LANES, the first `at[i]` are filled.
`buckets` float64 [blocks, levels, 2, BUCKETS_MAX, LANES]: the sum, and the squared deviations from the mean, of each bucket, the oldest
first. A bucket of level k stands for 2 ** k values. `widths` int64, `totals` and `spreads` float64 [blocks * LANES]: how many values
the window has, their sum, and their squared deviations from its mean, all without what waits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from trimtab.detector.adwin_clock import CLOCK

Arrays = Any
"""numba's types stand in the signatures."""

BUCKETS_MAX = 5
"""Of a level; when there is one more, the oldest two become one of the next level."""
SIDE_MIN = 5
"""Values on each side of a cut."""
LANES = 64
LEVELS_MAX = 40
ANEW = CLOCK + 1
"""`at` of a stream that begins anew with its next value."""
# What is so far below the limit needs no exact look, whatever the rounding.
_SURE = 1 - 1e-6
# After a look, level 0 has four buckets: of the values that wait, the older 28 come up at once, two by two.
_LATEST = BUCKETS_MAX - 1
_PAIRS = (CLOCK - _LATEST) // 2
# What comes up to a level is put behind the buckets that it has: each level begins so much earlier in the scratch arrays.
_BEFORE = LEVELS_MAX * BUCKETS_MAX
_ROWS = _BEFORE + CLOCK


@njit("int64(int64, uint8[::1])", cache=True, nogil=True)
def fill(width: int, filled: Arrays) -> int:
    """How many buckets each level of a window of `width` values has, into `filled` uint8 [LEVELS_MAX]. How many levels there are."""
    level = 0
    while width > 0:
        pairs = max(0, (width - BUCKETS_MAX + 1) // 2)
        filled[level] = width - 2 * pairs
        width, level = pairs, level + 1
    return level


@njit(
    "void(int64, float32[:, :, ::1], int64, float64[::1], float64[::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _measure(block: int, waiting: Arrays, width: int, totals: Arrays, spreads: Arrays, room: Arrays) -> None:
    """Add the moments of what waits to those of the `width` values before it (Chan, Golub and LeVeque, 1983)."""
    first, means, squares = block * LANES, room[0], room[1]
    # About the first value, so that one pass does.
    for lane in range(LANES):
        means[lane], squares[lane] = 0.0, 0.0
    for k in range(1, CLOCK):
        for lane in range(LANES):
            off = np.float64(waiting[k, block, lane]) - np.float64(waiting[0, block, lane])
            means[lane] += off
            squares[lane] += off * off
    for lane in range(LANES):
        means[lane] /= CLOCK
        squares[lane] -= means[lane] * means[lane] * CLOCK
        means[lane] += waiting[0, block, lane]
    weight = width * CLOCK / (width + CLOCK)
    totals_here, spreads_here = totals[first : first + LANES], spreads[first : first + LANES]
    for lane in range(LANES):
        off = means[lane] - totals_here[lane] / max(width, 1)
        spreads_here[lane] += squares[lane] + weight * off * off
        totals_here[lane] += means[lane] * CLOCK


@njit(
    "int64(int64, float32[:, :, ::1], int64, float64[:, :, :, :, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _pair(block: int, waiting: Arrays, width: int, buckets: Arrays, room_sums: Arrays, room_scatters: Arrays) -> int:
    """Make pairs of the older values, which level 0 has no room for, from row _BEFORE on. How many."""
    start = _LATEST // 2 if width else 0
    for k in range(start):
        for lane in range(LANES):
            older, newer = buckets[block, 0, 0, 2 * k, lane], buckets[block, 0, 0, 2 * k + 1, lane]
            room_sums[_BEFORE + k, lane] = older + newer
            room_scatters[_BEFORE + k, lane] = (older - newer) * (older - newer) / 2
    for k in range(_LATEST):
        for lane in range(LANES):
            buckets[block, 0, 0, k, lane] = waiting[2 * _PAIRS + k, block, lane]
    for k in range(_PAIRS):
        for lane in range(LANES):
            older, newer = np.float64(waiting[2 * k, block, lane]), np.float64(waiting[2 * k + 1, block, lane])
            room_sums[_BEFORE + start + k, lane] = older + newer
            room_scatters[_BEFORE + start + k, lane] = (older - newer) * (older - newer) / 2
    return start + _PAIRS


@njit(
    "void(int64, int64, int64, uint8[::1], float64[:, :, :, :, ::1], float64[:, ::1], float64[:, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"contract"},
)
def _rise(
    block: int,
    pairs: int,
    levels: int,
    filled: Arrays,
    buckets: Arrays,
    room_sums: Arrays,
    room_scatters: Arrays,
) -> None:
    """Let the pairs come up, level by level, as if one came after the other. `filled` is that of before."""
    base, level, share = _BEFORE, 0, 0.5
    while pairs > 0:
        level, share = level + 1, share / 2
        start = np.int64(filled[level]) if level < levels else 0
        base, count = base - start, start + pairs
        for k in range(start):
            for lane in range(LANES):
                room_sums[base + k, lane] = buckets[block, level, 0, k, lane]
                room_scatters[base + k, lane] = buckets[block, level, 1, k, lane]
        pairs = max(0, (count - BUCKETS_MAX + 1) // 2)
        for k in range(count - 2 * pairs):
            for lane in range(LANES):
                buckets[block, level, 0, k, lane] = room_sums[base + 2 * pairs + k, lane]
                buckets[block, level, 1, k, lane] = room_scatters[base + 2 * pairs + k, lane]
        for k in range(pairs):
            for lane in range(LANES):
                older, newer = room_sums[base + 2 * k, lane], room_sums[base + 2 * k + 1, lane]
                inner = room_scatters[base + 2 * k, lane] + room_scatters[base + 2 * k + 1, lane]
                room_sums[base + k, lane] = older + newer
                room_scatters[base + k, lane] = inner + (older - newer) * (older - newer) * share


@njit(
    "void(int64, int64, float64, float64[::1], float64[::1], int64, uint8[::1], float64[:, :, :, :, ::1], float64[:, ::1], boolean[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"contract"},
)
def _suspect(
    block: int,
    width: int,
    delta: float,
    totals: Arrays,
    spreads: Arrays,
    levels: int,
    filled: Arrays,
    buckets: Arrays,
    room: Arrays,
    suspects: Arrays,
) -> None:
    """Which lanes may have to be cut, and no other: the limit squared is more than 2 * variance * doubt * (1 / old + 1 / new)."""
    first, old_sums, bounds, excess = block * LANES, room[0], room[1], room[2]
    totals_here, spreads_here = totals[first : first + LANES], spreads[first : first + LANES]
    doubt = math.log(2 * math.log(width) / delta)
    for lane in range(LANES):
        bounds[lane], old_sums[lane], excess[lane] = 2 * doubt * spreads_here[lane] * _SURE, 0.0, 0.0
    old = 0
    for level in range(levels - 1, -1, -1):
        for k in range(filled[level]):
            old += 1 << level
            parts = float(old) * float(width - old)
            for lane in range(LANES):
                old_sums[lane] += buckets[block, level, 0, k, lane]
                apart = old_sums[lane] * width - totals_here[lane] * old
                beyond = apart * apart - bounds[lane] * parts
                excess[lane] = max(excess[lane], beyond)
    for lane in range(LANES):
        suspects[lane] = excess[lane] > 0


@njit(
    "boolean(int64, int64, int64, float64, float64, float64, int64, int64, uint8[::1], float64[:, :, :, :, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _differs(
    block: int,
    lane: int,
    width: int,
    delta: float,
    total: float,
    spread: float,
    dropped: int,
    levels: int,
    filled: Arrays,
    buckets: Arrays,
) -> bool:
    """Whether an older and a newer part differ by more than chance allows (Theorem 3.2), without the `dropped` oldest buckets."""
    variance, doubt = spread / width, math.log(2 * math.log(width) / delta)
    old, old_sum = 0, 0.0
    for level in range(levels - 1, -1, -1):
        for k in range(filled[level]):
            if dropped > 0:
                dropped -= 1
                continue
            old += 1 << level
            old_sum += buckets[block, level, 0, k, lane]
            new = width - old
            if old < SIDE_MIN or new < SIDE_MIN:
                continue
            parts = 1 / (old - SIDE_MIN + 1) + 1 / (new - SIDE_MIN + 1)
            limit = math.sqrt(2 * parts * variance * doubt) + 2 / 3 * doubt * parts
            if abs(old_sum / old - (total - old_sum) / new) > limit:
                return True
    return False


@njit(
    "int64(int64, int64, int64, float64, float64[::1], float64[::1], int64, uint8[::1], float64[:, :, :, :, ::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _cut(
    block: int,
    lane: int,
    width: int,
    delta: float,
    totals: Arrays,
    spreads: Arrays,
    levels: int,
    filled: Arrays,
    buckets: Arrays,
) -> int:
    """Take the oldest bucket out of the window for as long as its parts differ. The width that is left."""
    i, level, k, dropped = block * LANES + lane, levels - 1, 0, 0
    while _differs(block, lane, width, delta, totals[i], spreads[i], dropped, levels, filled, buckets):
        if k == filled[level]:
            level, k = level - 1, 0
        size, left = 1 << level, width - (1 << level)
        totals[i] -= buckets[block, level, 0, k, lane]
        off = buckets[block, level, 0, k, lane] / size - totals[i] / left
        spreads[i] -= buckets[block, level, 1, k, lane] + off * off * size * left / width
        width, k, dropped = left, k + 1, dropped + 1
    return width


@njit(
    "void(float32[::1], float32[:, :, ::1], uint8[::1], int64[::1], float64[::1], float64[::1], int64[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _wait(
    values: Arrays, waiting: Arrays, at: Arrays, widths: Arrays, totals: Arrays, spreads: Arrays, due: Arrays
) -> None:
    """Let the finite values wait; in `due` int64 [blocks], how many streams of each block are to be looked at."""
    for block in range(len(due)):
        first = block * LANES
        due[block], count = 0, at[first]
        if first + LANES <= len(values) and count < ANEW:
            values_here, at_here = values[first : first + LANES], at[first : first + LANES]
            finite, uneven = np.int32(0), np.uint8(0)
            for lane in range(LANES):
                finite += np.int32(values_here[lane] - values_here[lane] == 0)
            for lane in range(LANES):
                uneven |= at_here[lane] ^ count
            if finite == LANES and uneven == 0:
                row = waiting[np.int64(count), block]
                for lane in range(LANES):
                    row[lane] = values_here[lane]
                for lane in range(LANES):
                    at_here[lane] += np.uint8(1)
                due[block] = LANES if count + 1 == CLOCK else 0
                continue
        for i in range(first, min(first + LANES, len(values))):
            if not math.isfinite(values[i]):
                continue
            if at[i] == ANEW:
                at[i], widths[i], totals[i], spreads[i] = 0, 0, 0.0, 0.0
            waiting[at[i], block, i - first] = values[i]
            at[i] += 1
            due[block] += at[i] == CLOCK


@njit(
    "void(int64, int64, boolean[::1], boolean, float32[:, :, ::1], float64[::1], float64[::1], float64[:, :, :, :, ::1], float64[:, ::1], "
    "float64[:, ::1], uint8[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def _enter(
    block: int,
    width: int,
    mask: Arrays,
    mixed: bool,
    waiting: Arrays,
    totals: Arrays,
    spreads: Arrays,
    buckets: Arrays,
    room_sums: Arrays,
    room_scatters: Arrays,
    filled: Arrays,
) -> None:
    """Take what waits into the windows of a block; where it is `mixed`, only into those in the mask. They are `width` wide before."""
    # All lanes at once and some put back costs far less than to look at the mask in every loop.
    some = slice(block, block + 1) if mixed else slice(0, 0)
    streams = slice(some.start * LANES, some.stop * LANES)
    kept, kept_totals, kept_spreads = buckets[some].copy(), totals[streams].copy(), spreads[streams].copy()
    levels = fill(width, filled)
    _measure(block, waiting, width, totals, spreads, room_sums)
    pairs = _pair(block, waiting, width, buckets, room_sums, room_scatters)
    _rise(block, pairs, levels, filled, buckets, room_sums, room_scatters)
    for lane in range(len(kept_totals)):
        if not mask[lane]:
            buckets[block, :, :, :, lane] = kept[0, :, :, :, lane]
            totals[block * LANES + lane], spreads[block * LANES + lane] = kept_totals[lane], kept_spreads[lane]


@njit(
    "void(float32[::1], float64, float32[:, :, ::1], uint8[::1], int64[:, ::1], int64[::1], float64[::1], float64[::1], "
    "float64[:, :, :, :, ::1], boolean[::1])",
    cache=True,
    nogil=True,
    error_model="numpy",
)
def update(
    values: Arrays,
    delta: float,
    waiting: Arrays,
    at: Arrays,
    seen: Arrays,
    widths: Arrays,
    totals: Arrays,
    spreads: Arrays,
    buckets: Arrays,
    changed: Arrays,
) -> None:
    """Enter one value a stream, where it is finite, and say in `changed` bool [blocks * LANES] of which streams the window was cut.

    `seen` int64 [2, blocks * LANES]: how many values the stream had when it last began anew, and before those that the last cut kept.
    `buckets` must have the levels for windows of one more value.
    """
    room_sums, room_scatters = np.empty((_ROWS, LANES)), np.empty((_ROWS, LANES))
    suspects, mask, filled = np.empty(LANES, np.bool_), np.empty(LANES, np.bool_), np.empty(LEVELS_MAX, np.uint8)
    due = np.empty(len(buckets), np.int64)
    changed[:] = False
    _wait(values, waiting, at, widths, totals, spreads, due)
    for block in range(len(buckets)):
        first, last = block * LANES, min((block + 1) * LANES, len(values))
        while due[block] > 0:
            width, mixed = np.int64(-1), False
            for i in range(first, last):
                if at[i] == CLOCK and width < 0:
                    width = widths[i]
                mask[i - first] = at[i] == CLOCK and widths[i] == width
                if mask[i - first]:
                    at[i], widths[i], due[block] = 0, width + CLOCK, due[block] - 1
                else:
                    mixed = True
            _enter(block, width, mask, mixed, waiting, totals, spreads, buckets, room_sums, room_scatters, filled)
            width += CLOCK
            levels = fill(width, filled)
            _suspect(block, width, delta, totals, spreads, levels, filled, buckets, room_sums, suspects)
            for i in range(first, last):
                if mask[i - first] and suspects[i - first]:
                    left = _cut(block, i - first, width, delta, totals, spreads, levels, filled, buckets)
                    if left < width:
                        changed[i], at[i], widths[i] = True, ANEW, left
                        seen[0, i], seen[1, i] = seen[0, i] + width, seen[0, i] + width - left

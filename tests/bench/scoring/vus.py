"""VUS-PR: the volume under the precision-recall surface (Paparrizos et al., "Volume Under the Surface", VLDB 15(11), 2022).

Labelled ranges are widened by soft ramps of half-widths 0 to L / 2, and the area under the range-weighted precision-recall curve is
averaged over them: a detector that is a few rows early or late is not punished as if it had seen nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.bench.scoring.ranges import Bools, ranges

THRESHOLDS = 250


def vus_pr(labels: Bools, scores: NDArray[np.float64], longest: int) -> float:
    """In [0, 1]; `longest` is L, in rows. Unknown scores count as the lowest. Raises ValueError where nothing is labelled."""
    runs = ranges(labels)
    if not runs:
        raise ValueError("labels: nothing is labelled")
    known = np.nan_to_num(scores, nan=float(np.nanmin(scores)))
    passes, predicted = _passes(known)
    return float(np.mean([_area(labels, runs, passes, predicted, width) for width in range(longest + 1)]))


def _passes(scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each row the first of the falling thresholds that it reaches; for each threshold, how many rows do."""
    falling = np.sort(scores)[::-1][np.linspace(0, len(scores) - 1, THRESHOLDS).astype(np.int64)]
    passes = np.minimum(np.searchsorted(-falling, -scores, side="left"), THRESHOLDS - 1)
    return passes, np.cumsum(np.bincount(passes, minlength=THRESHOLDS)).astype(np.float64)


def _area(
    labels: Bools,
    runs: list[tuple[int, int]],
    passes: NDArray[np.int64],
    predicted: NDArray[np.float64],
    width: int,
) -> float:
    soft = _soft(labels, runs, width)
    ramp = np.where(labels, 0.0, soft)
    hits = np.cumsum(np.bincount(passes, weights=soft, minlength=THRESHOLDS))
    positives = labels.sum() + 0.5 * np.cumsum(np.bincount(passes, weights=ramp, minlength=THRESHOLDS))
    recall = np.minimum(hits / positives, 1.0) * _touched(runs, passes, width // 2, len(labels))
    return float(np.sum(np.diff(np.concatenate([[0.0], recall])) * hits / predicted))


def _soft(labels: Bools, runs: list[tuple[int, int]], width: int) -> NDArray[np.float64]:
    """1 in the labelled ranges, and a falling root to both sides of them."""
    soft, reach = labels.astype(np.float64), width // 2
    for first, last in runs:
        after = np.arange(last + 1, min(last + reach + 1, len(labels)))
        before = np.arange(max(first - reach, 0), first)
        soft[after] += np.sqrt(1 - (after - last) / max(width, 1))
        soft[before] += np.sqrt(1 - (first - before) / max(width, 1))
    return np.minimum(soft, 1.0)


def _touched(runs: list[tuple[int, int]], passes: NDArray[np.int64], reach: int, rows: int) -> NDArray[np.float64]:
    """For each threshold, the share of widened ranges in which some row passes it. Ranges that overlap count as one."""
    merged: list[tuple[int, int]] = []
    for first, last in runs:
        low, high = max(first - reach, 0), min(last + reach, rows - 1)
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], high
        else:
            merged.append((low, high))
    earliest = np.asarray([passes[low : high + 1].min() for low, high in merged])
    share: NDArray[np.float64] = np.cumsum(np.bincount(earliest, minlength=THRESHOLDS)) / len(merged)
    return share

"""From windows to seconds: what a window tells is spread over the seconds that it covers.

Sums (requests, errors, seconds of latency) keep their total: each second gets its share of a window by time. What no window covers is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import Vector

COVERED_MIN = 0.5
"""A second that windows cover less than this is unknown."""
_AGE_MAX = 3.0
"""So many windows long a gauge still holds."""


def sums(starts: Vector, durations: Vector, values: Vector, seconds: int) -> Vector:
    """float64 [seconds]: of `values` [windows], each the total of one window; NaN where unknown. Times in seconds, `starts` rising."""
    known = np.isfinite(values)
    covered = _spread(starts[known], durations[known], durations[known], seconds)
    found = _spread(starts[known], durations[known], values[known], seconds)
    return np.where(covered >= COVERED_MIN, found, np.nan)


def gauges(starts: Vector, durations: Vector, values: Vector, seconds: int) -> Vector:
    """float64 [seconds]: the last value that was told at each second's end; NaN where that is too old."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(seconds, np.nan)
    ends, lengths, last = (starts + durations)[known], durations[known], values[known]
    marks = np.arange(1, seconds + 1)
    # A window that ends a moment into the next second still tells of this one.
    at = np.searchsorted(ends, marks + 0.5 * np.median(lengths), side="left") - 1
    age = marks - ends[at]
    return np.where((at >= 0) & (age <= _AGE_MAX * lengths[at]), last[at], np.nan)


def second_of(starts: Vector, durations: Vector) -> NDArray[np.int64]:
    """int64 [windows]: the second in which the middle of each window lies."""
    return np.floor(starts + durations / 2).astype(np.int64)


def _spread(starts: Vector, durations: Vector, values: Vector, seconds: int) -> Vector:
    """Each total over the time of its window, evenly."""
    if not len(starts):
        return np.zeros(seconds)
    # Windows do not overlap but by jitter: whoever begins early waits for the one before.
    begins = np.maximum(starts, np.concatenate(([-np.inf], (starts + durations)[:-1])))
    ends = np.maximum(begins, starts + durations)
    edges = np.column_stack((begins, ends)).ravel()
    totals = np.concatenate(([0.0], np.repeat(np.cumsum(values), 2)))[: len(edges)]
    found: Vector = np.diff(np.interp(np.arange(seconds + 1), edges, totals))
    return found

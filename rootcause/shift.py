"""How far signals stepped at an onset, against how far they step by themselves when nothing is wrong."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Courses = NDArray[np.float64]
"""float64 [time, signals]; NaN where unknown."""

BEFORE_ROWS, AFTER_ROWS = 10, 4
"""A step is the mean of so many rows less the median of so many before them."""
_QUIET_STEPS_MIN = 20
# A step below this share of the signal's own standard deviation is none, however steady it was.
_STANDARD_SHARE = 0.05


def steps(courses: Courses) -> Courses:
    """float64 [time, signals]: the step that begins at each row; NaN where less than half of either side is known."""
    out = np.full(courses.shape, np.nan)
    if len(courses) < BEFORE_ROWS + AFTER_ROWS:
        return out
    before = sliding_window_view(courses, BEFORE_ROWS, axis=0)[:-AFTER_ROWS]
    after = sliding_window_view(courses, AFTER_ROWS, axis=0)[BEFORE_ROWS:]
    known = (np.count_nonzero(~np.isnan(before), axis=2) >= BEFORE_ROWS // 2) & (
        np.count_nonzero(~np.isnan(after), axis=2) >= AFTER_ROWS // 2
    )
    with np.errstate(invalid="ignore"):
        step = _mean(after) - _median(before)
    out[BEFORE_ROWS : BEFORE_ROWS + len(step)] = np.where(known, step, np.nan)
    return out


def shifts(courses: Courses, quiet: NDArray[np.bool_], onset: int) -> NDArray[np.float64]:
    """float64 [signals]: the step at row `onset` in units of the largest in the `quiet` rows (bool [time]); NaN where not known.

    Robust z-scores and the energy statistic compare levels, and take a signal that wanders for one that moved. Here each signal is
    its own measure: above 1 it never stepped so far while nothing was wrong.
    """
    found = np.abs(steps(courses))
    calm = np.zeros(len(courses), dtype=np.bool_)
    span = BEFORE_ROWS + AFTER_ROWS
    if len(courses) >= span:
        calm[BEFORE_ROWS : len(courses) - AFTER_ROWS + 1] = sliding_window_view(quiet, span).all(axis=1)
    usual = np.where(np.isnan(found[calm]), -np.inf, found[calm])
    enough = np.count_nonzero(np.isfinite(usual), axis=0) >= _QUIET_STEPS_MIN
    largest = usual.max(axis=0, initial=0.0)
    least = _STANDARD_SHARE * _deviation(courses[quiet])
    out: NDArray[np.float64] = np.where(enough, found[onset] / np.maximum(np.maximum(largest, least), 1e-12), np.nan)
    return out


def strength(moved: NDArray[np.float64]) -> float:
    """One figure for the signals of a subject: the sum of log(1 + shift²), 0 where nothing is known. Many that hardly move are no cause."""
    return float(np.log1p(np.nan_to_num(moved) ** 2).sum())


def _mean(windows: Courses) -> Courses:
    known = ~np.isnan(windows)
    out: Courses = np.where(known, windows, 0).sum(axis=2) / np.maximum(known.sum(axis=2), 1)
    return out


def _median(windows: Courses) -> Courses:
    ordered = np.sort(windows, axis=2)
    known = np.count_nonzero(~np.isnan(windows), axis=2)
    low = np.take_along_axis(ordered, (np.maximum(known - 1, 0) // 2)[..., None], axis=2)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(known // 2, windows.shape[2] - 1)[..., None], axis=2)[..., 0]
    out: Courses = (low + high) / 2
    return out


def _deviation(courses: Courses) -> NDArray[np.float64]:
    known = ~np.isnan(courses)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, courses, 0).sum(axis=0) / count
    out: NDArray[np.float64] = np.sqrt(np.where(known, (courses - mean) ** 2, 0).sum(axis=0) / count)
    return out

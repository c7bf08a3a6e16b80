"""What recurs: the length of a season, and the course with its season taken off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Course = NDArray[np.float64]
"""float64 [time, features]; NaN where unknown."""

LEAST_ROWS = 24
"""A shorter season is noise that looks back at itself."""
# How far the autocorrelation must rise out of its dip before a season is one.
_RISE_MIN = 0.2
# The first lag that rises nearly as far as the best is the season; the others are its multiples.
_NEARLY = 0.8
# A phase is smoothed with its neighbours to either side, where there are so many that those are about the same time of day.
_SMOOTH, _FINE_ROWS = 2, 100


def season_rows(course: Course) -> int | None:
    """How many rows a season of `course` has, by the mean autocorrelation of the ranks of its features; None where nothing recurs.

    A season is where the autocorrelation has risen farthest above its lowest value so far. At least three of them must be seen.
    """
    known = np.where(np.isnan(course), np.nanmedian(course, axis=0, keepdims=True), course)
    known = known[:, np.ptp(known, axis=0) > 0]
    lags = len(known) // 3
    if known.shape[1] == 0 or lags <= LEAST_ROWS:
        return None
    alike = _autocorrelation(known, lags)
    rise = alike - np.minimum.accumulate(alike)
    rise[:LEAST_ROWS] = 0
    if rise.max() < _RISE_MIN:
        return None
    first = int(np.flatnonzero(rise >= _NEARLY * rise.max())[0])
    peak = first + int(np.argmax(alike[first : int(first * 1.2) + 1]))
    return _sharpened(alike, peak)


def _autocorrelation(course: Course, lags: int) -> NDArray[np.float64]:
    rows = len(course)
    ranks = np.argsort(np.argsort(course, axis=0), axis=0).astype(np.float64)
    ranks = (ranks - ranks.mean(axis=0)) / ranks.std(axis=0)
    spectrum = np.abs(np.fft.rfft(ranks, 2 * rows, axis=0)) ** 2
    alike = np.fft.irfft(spectrum, axis=0)[:lags].mean(axis=1) / (rows - np.arange(lags))
    out: NDArray[np.float64] = alike / alike[0]
    return out


def _sharpened(alike: NDArray[np.float64], peak: int) -> int:
    """Among the lags near the peak the one whose multiples fit best."""
    near = np.arange(max(peak - max(2, peak // 100), LEAST_ROWS), min(peak + max(2, peak // 100) + 1, len(alike)))
    times = range(1, max(2, min(4, len(alike) // (int(near[-1]) + 1) + 1)))
    fit = [np.mean([alike[k * lag] for k in times if k * lag < len(alike)]) for lag in near.tolist()]
    return int(near[int(np.argmax(fit))])


def profile(course: Course, rows: int) -> Course:
    """float64 [rows, features]: the median of each phase; phase 0 is the row that follows the course."""
    whole = len(course) // rows
    if whole == 0:
        raise ValueError(f"course: {len(course)} rows are less than a season of {rows}")
    phases = np.nanmedian(course[len(course) - whole * rows :].reshape(whole, rows, -1), axis=0)
    near = _SMOOTH if rows >= _FINE_ROWS else 0
    smooth: Course = np.mean([np.roll(phases, k, axis=0) for k in range(-near, near + 1)], axis=0)
    return smooth


def without(course: Course, phases: Course, first: int) -> Course:
    """The course less its season, where `first` counts its first row from the one that has phase 0."""
    rest: Course = course - phases[(first + np.arange(len(course))) % len(phases)]
    return rest

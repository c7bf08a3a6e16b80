"""Judges one signal alone: as it comes, where one change is one alarm, or in hindsight, where it is told which rows were strange."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trimtab.detector.episodes import Bools, episodes
from trimtab.detector.outside import Series, outside, within
from trimtab.detector.season import profile, without

ALARM = 0.8
"""The novelty that is an alarm."""
REARM_ROWS = 100
"""For so long after an alarm only what is stranger still is another."""
STRANGE = 4.6
"""In hindsight: the mean distance, in parts of the usual range, that opens an episode."""
KEEPS = 0.15
_RARE = 0.002
_POWER = 4
_SHORT, _STEP, _BEFORE = 5, 20, 100
_SEASONS_MIN, _SEASONS_MAX = 2, 7


def novelty(series: Series, season_rows: int) -> Series:
    """float64 [time]: how far each value is from all before it, as the mean of five views that each see another kind of change.

    They are the value, the mean of the last five, the step from the last value, the difference to the same time of the last seven
    seasons, and the step of the mean of 20 from the mean of the 100 before. Nothing that comes later is looked at.
    """
    mean = _mean(series, _SHORT)
    step = np.concatenate([[0.0], np.diff(series)])
    before = np.concatenate([np.full(_STEP, np.nan), _mean(series, _BEFORE)[:-_STEP]])[: len(series)]
    views = [
        (series, 1),
        (mean, _SHORT),
        (step, 1),
        (_from_last_seasons(series, season_rows), 1),
        (_mean(series, _STEP) - before, _STEP),
    ]
    distances = [outside(np.ascontiguousarray(view), gap, _RARE) for view, gap in views]
    out: Series = np.mean([np.log1p(distance**_POWER) for distance in distances], axis=0)
    return out


def news(scores: Series) -> Series:
    """The scores that are higher than all of the `REARM_ROWS` before, 0 elsewhere: one change is one alarm."""
    padded = np.concatenate([np.zeros(REARM_ROWS), scores])[:-1]
    highest = sliding_window_view(padded, REARM_ROWS).max(axis=1)
    out: Series = np.where(scores > highest, scores, 0.0)
    return out


def hindsight(series: Series, season_rows: int) -> Series:
    """float64 [time]: how far each value is outside of the course, by its middle half and middle nine tenths, with and without season."""
    rest = series
    if len(series) >= _SEASONS_MIN * season_rows:
        phases = profile(series[:, None], season_rows)
        rest = without(series[:, None], phases, -len(series))[:, 0]
    views = [within(part, rare) for part in (series, rest) for rare in (0.25, 0.05)]
    out: Series = np.exp(np.mean([np.log(view + 1e-3) for view in views], axis=0))
    return out


def strange(series: Series, season_rows: int) -> Bools:
    """bool [time]: the rows of the episodes, in hindsight."""
    return episodes(hindsight(series, season_rows), STRANGE, KEEPS)


def _mean(series: Series, rows: int) -> Series:
    out = np.full(len(series), np.nan)
    if len(series) >= rows:
        out[rows - 1 :] = sliding_window_view(series, rows).mean(axis=1)
    return out


def _from_last_seasons(series: Series, rows: int) -> Series:
    """The difference to the median of the same time of the last seasons; NaN before there are two."""
    past = np.full((_SEASONS_MAX, len(series)), np.nan)
    for k in range(1, _SEASONS_MAX + 1):
        past[k - 1, k * rows :] = series[: max(len(series) - k * rows, 0)]
    out = np.full(len(series), np.nan)
    known = slice(_SEASONS_MIN * rows, None)
    if len(series) > _SEASONS_MIN * rows:
        out[known] = series[known] - np.nanmedian(past[:, known], axis=0)
    return out

"""From scores to episodes: when one opens, how long it lasts, and since when it was so."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Bools = NDArray[np.bool_]

OPENS = 0.7
"""How far above what is usual a score opens an episode; 1 is where the strangest hundredth of the training begins."""
KEEPS = 0.6
"""An episode lasts, and began, as long as the score is above this share of its peak."""
SETTLE_SEASONS = 4
"""A machine that is different for half as many seasons is usual again: a deploy, not a fault."""
_LOOKS_A_SEASON = 48


def usual(before: Scores, scores: Scores, season_rows: int) -> Scores:
    """float64 [time]: the median of the `SETTLE_SEASONS` seasons that ended before each of `scores`; `before` are those that came first."""
    course, reach = np.concatenate([before, scores]), SETTLE_SEASONS * season_rows
    step = max(1, season_rows // _LOOKS_A_SEASON)
    out = np.empty(len(scores))
    for row in range(0, len(scores), step):
        end = len(before) + row
        past = course[max(0, end - reach) : end]
        out[row : row + step] = np.nanmedian(past) if np.isfinite(past).any() else 0.0
    return out


def runs(inside: Bools) -> list[tuple[int, int]]:
    """First row and the one after the last of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]])))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def strangest(peaks: Scores, weeks: float, per_week: float) -> Bools:
    """bool [episodes]: the most that may be told in so many weeks, the strangest first.

    Nobody knows which of them are faults. So that no more than `per_week` can be false, no more are told: this holds whatever the data do.
    Of a part of a week one may be told.
    """
    told = np.zeros(len(peaks), dtype=np.bool_)
    told[np.argsort(-peaks, kind="stable")[: math.ceil(weeks * per_week)]] = True
    return told


def episodes(scores: Scores, opens: float = OPENS, keeps: float = KEEPS) -> Bools:
    """bool [time]: the rows that belong to an episode, seen from its end: from its onset, which lies before it opened, on."""
    inside = np.zeros(len(scores), dtype=np.bool_)
    row, known = 0, np.nan_to_num(scores)
    while row < len(known):
        if known[row] < opens:
            row += 1
            continue
        end, peak = row, known[row]
        while end < len(known) and known[end] >= keeps * peak:
            peak = max(peak, known[end])
            end += 1
        since = row
        while since > 0 and known[since - 1] >= keeps * peak:
            since -= 1
        inside[since:end] = True
        row = end
    return inside

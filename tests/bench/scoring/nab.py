"""The Numenta Anomaly Benchmark's standard profile (Lavin and Ahmad, 2015, arXiv:1510.03336), for one threshold fixed beforehand.

An alarm in a labelled window is worth more the earlier it comes, and only the best of a window counts; an alarm outside costs, the more
the farther it is behind a window. 0 is what a detector earns that never alarms, 100 what a perfect one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Windows = Sequence[tuple[int, int]]
"""First and last row of each labelled window."""

_FALSE_ALARM = 0.11
_PROBATION_SHARE, _PROBATION_ROWS = 0.15, 750


def standard(files: Mapping[str, tuple[NDArray[np.float64], Windows]], threshold: float) -> float:
    """`files`: for each, its scores and its windows. The first 15 % of a file, 750 rows at most, are its probation and not scored."""
    earned, windows = 0.0, 0
    for scores, labelled in files.values():
        gained, count = _of_file(scores >= threshold, labelled)
        earned, windows = earned + gained, windows + count
    return 100 * (earned + windows) / (2 * windows) if windows else 0.0


def _of_file(alarms: NDArray[np.bool_], windows: Windows) -> tuple[float, int]:
    """What its alarms earn, and how many windows could be found."""
    probation = int(np.ceil(min(np.floor(_PROBATION_SHARE * len(alarms)), _PROBATION_ROWS)))
    alarms = alarms & (np.arange(len(alarms)) >= probation)
    earned, count, inside = 0.0, 0, np.zeros(len(alarms), dtype=np.bool_)
    for first, last in windows:
        inside[first : last + 1] = True
        if last < probation:
            continue
        count += 1
        hits = first + np.flatnonzero(alarms[first : last + 1])
        earned += max(_sigma(-(last - hits + 1) / (last - first + 1)) / _sigma(np.array(-1.0))) if len(hits) else -1.0
    for row in np.flatnonzero(alarms & ~inside).tolist():
        earned += _FALSE_ALARM * _behind(row, windows)
    return float(earned), count


def _behind(row: int, windows: Windows) -> float:
    """What a false alarm costs: -1 far from, or before, every window; less a little behind one."""
    before = [(first, last) for first, last in windows if last < row]
    if not before:
        return -1.0
    first, last = before[-1]
    return float(_sigma(np.array((row - last) / max(last - first, 1e-9))))


def _sigma(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """The benchmark's scaled sigmoid; a window reaches from -1 to 0."""
    value: NDArray[np.float64] = np.where(position > 3, -1.0, 2 / (1 + np.exp(np.clip(5 * position, -60, 60))) - 1)
    return value

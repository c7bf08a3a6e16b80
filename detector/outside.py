"""How far a value lies outside of what its course has held before."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Series = NDArray[np.float64]
"""float64 [time]; NaN where unknown."""

HISTORY_MIN = 50
"""Values that must be known before anything lies outside of them."""
# A side of the range that is narrower than this share of the other is no measure.
_NARROW = 0.2
# The range is told anew after so many rows, or after a hundredth of the history.
_STEP = 10


@njit(cache=True, nogil=True)
def _distance(value: float, low: float, middle: float, high: float) -> float:
    least = max(_NARROW * max(high - middle, middle - low), 1e-9 + 1e-3 * abs(middle))
    if value > middle:
        return (value - middle) / max(high - middle, least)
    return (middle - value) / max(middle - low, least)


@njit("float64[::1](float64[::1], int64, float64)", cache=True, nogil=True)
def outside(series: Any, gap: int, rare: float) -> Any:
    """float64 [time]: distance from the median of all that came at least `gap` rows before, where 1 is its `rare` quantile on that side.

    0 before `HISTORY_MIN` values are known. Unlike robust standard deviations this does not call half of a heavy-tailed signal strange.
    """
    out = np.zeros(len(series))
    told, low, middle, high = -1, 0.0, 0.0, 0.0
    for t in range(len(series)):
        end = t - gap + 1
        if end >= HISTORY_MIN and (told < 0 or t - told >= max(_STEP, t // 100)):
            past = series[:end]
            past = np.sort(past[~np.isnan(past)])
            if len(past) >= HISTORY_MIN:
                last = len(past) - 1
                low, middle, high = past[int(rare * last)], past[len(past) // 2], past[int((1 - rare) * last)]
                told = t
        if told >= 0 and not np.isnan(series[t]):
            out[t] = _distance(series[t], low, middle, high)
    return out


def within(series: Series, rare: float) -> Series:
    """As `outside`, but against the whole course, in hindsight."""
    low, middle, high = np.nanquantile(series, [rare, 0.5, 1 - rare])
    least = max(_NARROW * max(high - middle, middle - low), 1e-9)
    above, below = (series - middle) / max(high - middle, least), (middle - series) / max(middle - low, least)
    out: Series = np.where(series > middle, above, below)
    return out

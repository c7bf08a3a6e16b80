"""Who fails more of its requests than others: an average that bad news replaces.

An average over the last seconds is late with what has just begun, and keeps what was before it for as long as nothing more is told, as
of one that is drained. So where the newest word alone is surer that an instance fails than the average is, the average starts anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.policy.recent import STALE_SECONDS
from trimtab.actuator.state import State, Vector
from trimtab.detector.history import MERGE_SECONDS

_NOISE = 2.0
"""Nobody is accused within so many standard errors; who is accused is judged by what is likely."""
_EQUAL = 0.01
"""Error ratios that differ by less are equal."""


class Failing:
    """Remembers the errors and the requests of each instance; they fade as news come, and instances that are gone are forgotten."""

    def __init__(self, memory: float) -> None:
        """`memory` in (0, 1): what a second with news is worth a second later."""
        self._memory = memory
        self._counts: dict[str, Vector] = {}
        self._accused: dict[str, bool] = {}

    def observe(self, state: State) -> Vector:
        """float64 [instances]: how much more of its requests each fails than the best does; 0 where that is not known. Called once a
        second."""
        told = np.isfinite(state.error_ratio) & (state.requests_per_second > 0) & (state.age_seconds <= STALE_SECONDS)
        rate = np.where(told, state.requests_per_second, 0)
        second = np.stack([rate * np.nan_to_num(state.error_ratio), rate])
        kept = np.asarray([self._counts.get(i, np.zeros(2)) for i in state.ids]).T
        kept = kept * np.where(told, self._memory, 1) + second
        accused = np.asarray([self._accused.get(i, False) for i in state.ids])
        by_newest = _excess(second * MERGE_SECONDS, accused)
        worse = by_newest > _excess(kept, accused)
        kept = np.where(worse, second * MERGE_SECONDS, kept)
        found = _excess(kept, accused)
        self._counts = dict(zip(state.ids, kept.T.copy(), strict=True))
        self._accused = dict(zip(state.ids, (found > 0).tolist(), strict=True))
        return found


def _excess(counts: Vector, accused: NDArray[np.bool_]) -> Vector:
    """float64 [instances]; `counts`: errors and requests, [2, instances]."""
    errors, requests = counts
    ratio = np.divide(errors, requests, out=np.full_like(errors, np.nan), where=requests > 0)
    best = np.min(ratio, where=requests > 0, initial=1)
    noise = np.sqrt(ratio * (1 - ratio) / np.maximum(requests, 1))
    return np.asarray(np.nan_to_num(np.maximum(ratio - best - _EQUAL - np.where(accused, 0, _NOISE) * noise, 0)))

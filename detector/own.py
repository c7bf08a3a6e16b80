"""Own history: how far an instance is above what is usual for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix, State
from trimtab.detector.baseline import Baseline, worst


class Own:
    """Deviation from the median of the instance's own healthy windows, in robust standard deviations."""

    name = "own"

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        self._baseline = Baseline(floors, warmup_windows)

    def resize(self, instances: int) -> None:
        self._baseline.resize(instances)

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._baseline.forget(rows)

    def expected(self, window: Matrix, groups: NDArray[np.int64]) -> Matrix:
        """The values that would be usual now, float32 [instances, features]; NaN where not known."""
        return self._baseline.usual()[0]

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        return worst(self.scores(window, groups))

    def scores(self, window: Matrix, groups: NDArray[np.int64]) -> Matrix:
        """float32 [instances, features]: as `score`, by each feature alone."""
        return self._baseline.scores(window)

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        self._baseline.learn(window, healthy)

    def save(self) -> State:
        return self._baseline.save()

    def restore(self, state: State) -> None:
        self._baseline.restore(state)


DETECTOR = Own

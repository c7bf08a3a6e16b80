"""How many views say so: beside own history and peers, which decide, those that are asked only when there is something to say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Detector, Matrix
from trimtab.detector.features import SCALE_FLOORS
from trimtab.detector.isolation import Isolation
from trimtab.detector.robust import Array
from trimtab.detector.spanned import Spanned

LEARN_EVERY = 5
"""Windows overlap: every fifth tells nearly all, and learning is what costs."""


class Views:
    """Sub-PCA and isolation forest of the fleet. Rows are instances, as in `Detector`."""

    def __init__(self, warmup_windows: int) -> None:
        self._members: tuple[Detector, ...] = (
            Spanned(SCALE_FLOORS, warmup_windows),
            Isolation(SCALE_FLOORS, warmup_windows),
        )
        self._windows = 0

    def resize(self, instances: int) -> None:
        for member in self._members:
            member.resize(instances)

    def forget(self, rows: NDArray[np.int64]) -> None:
        for member in self._members:
            member.forget(rows)

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        self._windows += 1
        if self._windows % LEARN_EVERY == 0:
            for member in self._members:
                member.learn(window, groups, healthy)

    def agree(
        self, window: Matrix, groups: NDArray[np.int64], others: Sequence[Array]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 [instances], twice: how many views call it odd, and how many know it; `others` are scores that were told already."""
        scores = np.stack([*others, *(member.score(window, groups) for member in self._members)])
        return np.count_nonzero(scores >= 0.5, axis=0), np.count_nonzero(~np.isnan(scores), axis=0)

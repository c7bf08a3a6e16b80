"""Isolation forest: how few cuts set a window apart, by the mean and spread of its features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from trimtab.detector.windows import WIDTH, Points

_TREES, _SAMPLES = 100, 512
# Windows overlap: every fourth tells nearly all.
_EVERY = 4


class Forest:
    """scikit-learn's IsolationForest (Liu, Ting and Zhou, ICDM 2008) on the summaries of windows."""

    def __init__(self, train: Points) -> None:
        points = _summaries(train[::_EVERY])
        samples = min(_SAMPLES, len(points))
        self._trees = IsolationForest(n_estimators=_TREES, max_samples=samples, random_state=0).fit(points)

    def score(self, points: Points) -> NDArray[np.float64]:
        """float64 [windows] in (0, 1)."""
        out: NDArray[np.float64] = -self._trees.score_samples(_summaries(points))
        return out

    def learn(self, points: Points) -> None:
        """Keeps its trees."""


def _summaries(points: Points) -> Points:
    by_feature = points.reshape(len(points), -1, WIDTH)
    summaries: Points = np.concatenate([by_feature.mean(axis=2), by_feature.std(axis=2)], axis=1)
    return summaries

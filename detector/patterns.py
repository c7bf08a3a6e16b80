"""Patterns: how far a window is from every pattern that was seen before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from trimtab.detector.windows import Points

_MORE = 10
"""Patterns that each further season adds."""
# With fewer windows to each pattern, a training is closer to its own patterns than anything that follows.
_WINDOWS_A_PATTERN = 40


class Patterns:
    """A code book of k-means centres, which grows season by season: a new regime is strange for a season, and then known.

    k-means on windows is among the strongest of the simple detectors (Paparrizos et al., TSB-UAD, VLDB 2022).
    """

    def __init__(self, train: Points, count: int) -> None:
        self._centres = _centres(train, count, 3)

    def score(self, points: Points) -> NDArray[np.float64]:
        """float64 [windows]: the distance to the nearest pattern."""
        squares = (points**2).sum(axis=1)[:, None] - 2 * points @ self._centres.T + (self._centres**2).sum(axis=1)
        out: NDArray[np.float64] = np.sqrt(np.maximum(squares.min(axis=1), 0)).astype(np.float64)
        return out

    def learn(self, points: Points) -> None:
        """Add the patterns of these windows."""
        if len(points) >= _WINDOWS_A_PATTERN:
            self._centres = np.concatenate([self._centres, _centres(points, _MORE, 1)])


def _centres(points: Points, count: int, starts: int) -> Points:
    most = max(1, len(points) // _WINDOWS_A_PATTERN)
    means = MiniBatchKMeans(n_clusters=min(count, most), random_state=0, n_init=starts, batch_size=2048)
    centres: Points = means.fit(points).cluster_centers_.astype(np.float32)
    return centres

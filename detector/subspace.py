"""Sub-PCA: what is left of a window when the ways in which its features usually move together are taken off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.windows import Points

_EXPLAINED = 0.5
"""Share of the variance that counts as usual. With more, the faults of the training are explained as well."""


class Subspace:
    """Principal components of windows; the score is the root mean square of the residual (Aggarwal, Outlier Analysis, 2017)."""

    def __init__(self, train: Points) -> None:
        self._mean = train.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov((train[:: max(1, len(train) // 8000)] - self._mean).T))
        values, vectors = values[::-1], vectors[:, ::-1]
        share = np.cumsum(values) / max(float(values.sum()), np.finfo(np.float32).tiny)
        self._basis = vectors[:, : int(np.searchsorted(share, _EXPLAINED)) + 1].astype(np.float32)

    def score(self, points: Points) -> NDArray[np.float64]:
        """float64 [windows]."""
        centred = points - self._mean
        residual = centred - (centred @ self._basis) @ self._basis.T
        out: NDArray[np.float64] = np.sqrt((residual**2).mean(axis=1)).astype(np.float64)
        return out

    def learn(self, points: Points) -> None:
        """Keeps its basis: a covariance that grows season by season was measured to be no better."""

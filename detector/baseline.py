"""What is usual for each row: median and spread of its healthy windows over the last ten minutes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.detector import robust
from trimtab.detector.base import Matrix, State

DEPTH = 120
"""Healthy windows that are remembered."""
STRIDE = 5
"""Beyond twice the warm-up every fifth window is taken: windows overlap, and a memory that is too short learns a creeping fault."""
# The deviation, in robust standard deviations, that scores one half.
_HALF = 4.0


class Baseline:
    """A ring of the last `DEPTH` healthy windows of each row: float32 [rows, DEPTH, features]."""

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        """`floors` are the least standard deviation of each feature, so that a tiny change of a quiet one is no anomaly."""
        self._floors = np.asarray(floors, dtype=np.float32)
        self._warmup = min(warmup_windows, DEPTH)
        self._ring: Matrix = np.full((0, DEPTH, len(floors)), np.nan, dtype=np.float32)
        self._offered = np.zeros(0, dtype=np.int64)
        self._taken = np.zeros(0, dtype=np.int64)
        self._usual: tuple[Matrix, Matrix] | None = None

    def resize(self, rows: int) -> None:
        more = rows - len(self._ring)
        if more < 0:
            raise ValueError(f"{rows} rows, but {len(self._ring)} are known; forget them instead")
        empty = np.full((more, *self._ring.shape[1:]), np.nan, dtype=np.float32)
        self._ring = np.concatenate([self._ring, empty])
        self._offered = np.concatenate([self._offered, np.zeros(more, dtype=np.int64)])
        self._taken = np.concatenate([self._taken, np.zeros(more, dtype=np.int64)])
        self._usual = None

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._ring[rows], self._usual = np.nan, None
        self._offered[rows] = self._taken[rows] = 0

    def learn(self, window: Matrix, healthy: NDArray[np.bool_]) -> None:
        """Remember the rows that are healthy and of which anything is known."""
        rows = np.flatnonzero(healthy & ~np.isnan(window).all(axis=1))
        self._offered[rows] += 1
        rows = rows[(self._taken[rows] < 2 * self._warmup) | (self._offered[rows] % STRIDE == 0)]
        if len(rows):
            self._ring[rows, self._taken[rows] % DEPTH] = window[rows]
            self._taken[rows] += 1
            self._usual = None

    def usual(self) -> tuple[Matrix, Matrix]:
        """Median and spread, float32 [rows, features]; NaN where fewer than the warm-up are known."""
        if self._usual is None:
            middle = robust.median(self._ring, axis=1)
            scale = np.maximum(robust.spread(self._ring, middle, axis=1), self._floors)
            cold = np.count_nonzero(~np.isnan(self._ring), axis=1) < self._warmup
            self._usual = np.where(cold, np.nan, middle), np.where(cold, np.nan, scale)
        return self._usual

    def score(self, window: Matrix) -> NDArray[np.float32]:
        """float32 [rows] in [0, 1]: z² / (z² + 4²) of the feature that is most above what is usual; NaN where none is known."""
        middle, scale = self.usual()
        z = np.maximum((window - middle) / scale, 0)
        worst = np.max(np.where(np.isnan(z), -1, z), axis=1, initial=-1)
        score: NDArray[np.float32] = np.where(worst < 0, np.nan, worst**2 / (worst**2 + _HALF**2)).astype(np.float32)
        return score

    def save(self) -> State:
        return {"ring": self._ring.copy(), "offered": self._offered.copy(), "taken": self._taken.copy()}

    def restore(self, state: State) -> None:
        """Raises ValueError when the state does not fit."""
        missing = {"ring", "offered", "taken"} - state.keys()
        if missing:
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        ring, counts = state["ring"], (state["offered"], state["taken"])
        if ring.ndim != 3 or ring.shape[1:] != self._ring.shape[1:] or any(c.shape != ring.shape[:1] for c in counts):
            raise ValueError(f"state: a ring {ring.shape}; expected [instances, {DEPTH}, {len(self._floors)}]")
        self._ring, self._usual = ring.astype(np.float32), None
        self._offered, self._taken = (c.astype(np.int64) for c in counts)

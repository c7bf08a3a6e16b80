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
        self._usual: tuple[Matrix, Matrix] = self._ring[:, 0], self._ring[:, 0]
        # Rows whose memory changed since `_usual` was told.
        self._changed = np.zeros(0, dtype=np.bool_)

    def resize(self, rows: int) -> None:
        more = rows - len(self._ring)
        if more < 0:
            raise ValueError(f"{rows} rows, but {len(self._ring)} are known; forget them instead")
        empty = np.full((more, *self._ring.shape[1:]), np.nan, dtype=np.float32)
        self._ring = np.concatenate([self._ring, empty])
        self._offered = np.concatenate([self._offered, np.zeros(more, dtype=np.int64)])
        self._taken = np.concatenate([self._taken, np.zeros(more, dtype=np.int64)])
        self._changed = np.concatenate([self._changed, np.ones(more, dtype=np.bool_)])

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._ring[rows], self._changed[rows] = np.nan, True
        self._offered[rows] = self._taken[rows] = 0

    def learn(self, window: Matrix, healthy: NDArray[np.bool_]) -> None:
        """Remember the rows that are healthy and of which anything is known."""
        rows = np.flatnonzero(healthy & ~np.isnan(window).all(axis=1))
        self._offered[rows] += 1
        rows = rows[(self._taken[rows] < 2 * self._warmup) | (self._offered[rows] % STRIDE == 0)]
        if len(rows):
            self._ring[rows, self._taken[rows] % DEPTH] = window[rows]
            self._taken[rows] += 1
            self._changed[rows] = True

    def usual(self) -> tuple[Matrix, Matrix]:
        """Median and spread, float32 [rows, features]; NaN where fewer than the warm-up are known."""
        rows = np.flatnonzero(self._changed)
        if len(rows):
            known = self._ring[rows, : int(self._taken[rows].max(initial=0))]
            middle = robust.median(known, axis=1)
            scale = np.maximum(robust.spread(known, middle, axis=1), self._floors)
            cold = np.count_nonzero(~np.isnan(known), axis=1) < self._warmup
            more = len(self._ring) - len(self._usual[0])
            # Copies: what was told before stays as it is.
            told = [np.concatenate([u, np.full((more, u.shape[1]), np.nan, dtype=np.float32)]) for u in self._usual]
            told[0][rows], told[1][rows] = np.where(cold, np.nan, middle), np.where(cold, np.nan, scale)
            self._usual = told[0], told[1]
            self._changed[:] = False
        return self._usual

    def scores(self, window: Matrix) -> Matrix:
        """float32 [rows, features] in [0, 1], of each feature alone: z² / (z² + 4²)."""
        middle, scale = self.usual()
        z = np.maximum((window - middle) / scale, 0)
        scores: Matrix = (z**2 / (z**2 + _HALF**2)).astype(np.float32)
        return scores

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
        self._ring, self._changed = ring.astype(np.float32), np.ones(len(ring), dtype=np.bool_)
        self._offered, self._taken = (c.astype(np.int64) for c in counts)


def deviations(scores: Matrix) -> Matrix:
    """The robust standard deviations that were scored so."""
    capped = np.minimum(scores, np.float32(0.999))
    out: Matrix = (_HALF * np.sqrt(capped / (1 - capped))).astype(np.float32)
    return out


def worst(scores: Matrix) -> NDArray[np.float32]:
    """float32 [rows]: the highest that is known of float32 [rows, features]; NaN where none is."""
    highest: NDArray[np.float32] = np.fmax.reduce(scores, axis=1, initial=np.float32(np.nan))
    return highest

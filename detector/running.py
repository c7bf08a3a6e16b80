"""What is usual for each row, in two numbers a feature: for the views that look back farther than a ring of windows can be kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix, State

# The mean absolute deviation of normal data, as their standard deviation.
_TO_SIGMA = np.float32(1.2533)
# What is farther out pulls no harder: Huber's influence function ("Robust estimation of a location parameter", 1964).
_CUT = np.float32(3.0)
_NAMES = ("middle", "scale", "known")


class Running:
    """Mean and spread of the healthy windows of each row, with weights that fade, float32 [rows, features] each.

    The first `1 / weight_min` windows weigh the same, later ones `weight_min`. What is beyond three deviations is cut to them, so that an
    outlier moves little. Twelve bytes a row and feature.
    """

    def __init__(self, floors: tuple[float, ...], warmup_windows: int, weight_min: float) -> None:
        """`floors`: least standard deviation of each feature."""
        self._floors = np.asarray(floors, dtype=np.float32)
        self._warmup, self._weight = warmup_windows, np.float32(weight_min)
        self._middle, self._scale = np.zeros((2, 0, len(floors)), dtype=np.float32)
        self._known = np.zeros((0, len(floors)), dtype=np.int32)

    def resize(self, rows: int) -> None:
        more = rows - len(self._known)
        if more < 0:
            raise ValueError(f"{rows} rows, but {len(self._known)} are known; forget them instead")
        self._middle, self._scale, self._known = (
            np.concatenate([a, np.zeros((more, a.shape[1]), dtype=a.dtype)])
            for a in (self._middle, self._scale, self._known)
        )

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._middle[rows] = self._scale[rows] = self._known[rows] = 0

    def learn(self, window: Matrix, healthy: NDArray[np.bool_]) -> None:
        """Take the rows that are healthy; what is NaN is left out."""
        rows = np.flatnonzero(healthy & ~np.isnan(window).all(axis=1))
        if not len(rows):
            return
        known, middle, scale = self._known[rows], self._middle[rows], self._scale[rows]
        here = ~np.isnan(window[rows])
        off = np.where(here, window[rows] - np.where(known > 0, middle, window[rows]), 0)
        most = np.where(known < self._warmup, np.inf, _CUT * np.maximum(scale, self._floors))
        off = np.clip(off, -most, most)
        weight = np.where(here, np.maximum(1 / (known + np.float32(1)), self._weight), 0)
        start = here & (known == 0)
        self._middle[rows] = np.where(start, window[rows], middle + weight * off)
        self._scale[rows] = scale + weight * (_TO_SIGMA * np.abs(off) - scale)
        self._known[rows] = known + here

    def usual(self, warmup_windows: int | None = None) -> tuple[Matrix, Matrix]:
        """Middle and spread, NaN where fewer than the warm-up are known."""
        cold = self._known < (self._warmup if warmup_windows is None else warmup_windows)
        nan = np.float32(np.nan)
        return np.where(cold, nan, self._middle), np.where(cold, nan, np.maximum(self._scale, self._floors))

    def save(self) -> State:
        return {name: getattr(self, f"_{name}").copy() for name in _NAMES}

    def restore(self, state: State) -> None:
        """Raises ValueError when the state does not fit."""
        if missing := set(_NAMES) - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        arrays: list[NDArray[Any]] = [state[name] for name in _NAMES]
        if any(a.ndim != 2 or a.shape != (len(arrays[0]), len(self._floors)) for a in arrays):
            raise ValueError(f"state: middle {arrays[0].shape}; expected [instances, {len(self._floors)}]")
        self._middle, self._scale = (a.astype(np.float32) for a in arrays[:2])
        self._known = arrays[2].astype(np.int32)

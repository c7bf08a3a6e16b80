"""Isolation: how few cuts set an instance's window apart from the healthy windows of the whole fleet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from trimtab.detector.base import Matrix, State
from trimtab.detector.running import Running

REFIT_WINDOWS = 3600
"""The forest is grown anew after so many windows, an hour of seconds; in its first hour at each doubling of the warm-up."""
SAMPLES_MAX = 4096
_TREES, _SAMPLES_A_TREE = 50, 256
# Of a window so many rows are taken, and of later windows every fifth: they overlap.
_ROWS, _STRIDE = 32, 5
_DEPTH = 1800
_LARGEST = 3
# Deviations are cut here.
_CUT = 20.0
# Healthy windows end far below that. Without anchors beyond them no cut would be drawn there.
_ANCHORS_FROM, _ANCHOR_SHARE = 15.0, 1 / 64
# A deviation counts once its feature was seen so often.
_SEEN = 3
_RARE = 0.975
_SHARED = ("ring", "fitted", "taken", "windows")


class Isolation:
    """scikit-learn's IsolationForest (Liu, Ting and Zhou, ICDM 2008) of the largest deviations above usual of a window, and their mean.

    Not of the features themselves: a cut is drawn through one of them by lot, and one feature in forty that is far out is hardly ever met.
    A score is 0 at the median of the healthy windows that the forest was grown from, and 0.5 at the strangest fortieth of them.
    Memory: 12 bytes an instance and feature, and 4,096 windows of the fleet.
    """

    name = "forest"

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        self._warmup, self._largest = warmup_windows, min(_LARGEST, len(floors))
        self._usual = Running(floors, warmup_windows, 1 / _DEPTH)
        self._ring = np.zeros((SAMPLES_MAX, self._largest + 1), dtype=np.float32)
        self._fitted = self._ring[:0]
        self._taken, self._windows = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self._trees: IsolationForest | None = None
        self._middle, self._rare = 0.0, 1.0

    def resize(self, instances: int) -> None:
        self._usual.resize(instances)

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._usual.forget(rows)

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        points = self._points(window, self._warmup)
        known = np.flatnonzero(~np.isnan(points[:, 0]))
        out = np.full(len(window), np.nan, dtype=np.float32)
        if self._trees is not None and len(known):
            strange = (self._strangeness(points[known]) - self._middle) / (self._rare - self._middle)
            squared = np.maximum(strange, 0) ** 2
            out[known] = squared / (squared + 1)
        return out

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        well = healthy & ~np.isnan(window).all(axis=1)
        if not well.any():
            return
        self._windows += 1
        count = int(self._windows[0])
        if count <= 2 * self._warmup or count % _STRIDE == 0:
            points = self._points(window[well], _SEEN, well)
            self._take(points[~np.isnan(points[:, 0])])
        self._usual.learn(window, healthy)
        doublings, rest = divmod(count, self._warmup)
        doubled = rest == 0 and count < REFIT_WINDOWS and doublings & (doublings - 1) == 0
        if doubled or count % REFIT_WINDOWS == 0:
            self._fit(self._ring[: min(int(self._taken[0]), SAMPLES_MAX)].copy())

    def _points(self, window: Matrix, warmup_windows: int, rows: NDArray[np.bool_] | slice = slice(None)) -> Matrix:
        """float32 [rows, largest + 1]: the largest deviations and the mean of all; NaN where nothing is known. The unknown is as usual."""
        middle, scale = self._usual.usual(warmup_windows)
        above = np.clip((window - middle[rows]) / scale[rows], 0, _CUT)
        unknown = np.isnan(above).all(axis=1)
        above = np.nan_to_num(above)
        first = above.shape[1] - self._largest
        largest = np.sort(np.partition(above, first, axis=1)[:, first:] if first else above, axis=1)
        points: Matrix = np.concatenate([largest[:, ::-1], above.mean(axis=1, keepdims=True)], axis=1)
        points[unknown] = np.nan
        return points

    def _take(self, points: Matrix) -> None:
        """At most `_ROWS` of them, evenly from the calmest to the strangest, so that it does not matter how the rows are ordered."""
        order = np.argsort(points.sum(axis=1), kind="stable")
        count = min(_ROWS, len(order))
        chosen = order[((np.arange(count) + 0.5) / max(count, 1) * len(order)).astype(np.int64)]
        self._ring[(int(self._taken[0]) + np.arange(len(chosen))) % SAMPLES_MAX] = points[chosen]
        self._taken += len(chosen)

    def _fit(self, points: Matrix) -> None:
        if len(points) < 2:
            return
        shape = max(2, round(len(points) * _ANCHOR_SHARE)), points.shape[1]
        anchors = np.random.default_rng(0).uniform(_ANCHORS_FROM, _CUT, shape).astype(np.float32)
        grown = np.concatenate([points, anchors])
        samples = min(_SAMPLES_A_TREE, len(grown))
        self._trees = IsolationForest(n_estimators=_TREES, max_samples=samples, random_state=0).fit(grown)
        self._fitted = points
        middle, rare = np.quantile(self._strangeness(points), [0.5, _RARE]).tolist()
        self._middle, self._rare = middle, max(rare, middle + 1e-3)

    def _strangeness(self, points: Matrix) -> NDArray[np.float64]:
        assert self._trees is not None
        strangeness: NDArray[np.float64] = -self._trees.score_samples(points)
        return strangeness

    def save(self) -> State:
        """The forest is saved as what it was grown from."""
        return {**self._usual.save(), **{f"shared_{name}": getattr(self, f"_{name}").copy() for name in _SHARED}}

    def restore(self, state: State) -> None:
        """Raises ValueError when the state does not fit."""
        if missing := {f"shared_{name}" for name in _SHARED} - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        ring, fitted, taken, windows = (state[f"shared_{name}"] for name in _SHARED)
        if ring.shape != self._ring.shape or fitted.ndim != 2 or fitted.shape[1:] != ring.shape[1:]:
            raise ValueError(f"state: samples {ring.shape} and {fitted.shape}; expected {self._ring.shape}")
        if taken.shape != (1,) or windows.shape != (1,) or len(fitted) > SAMPLES_MAX:
            raise ValueError("state: counts that cannot be; expected what `save` gave")
        self._usual.restore(state)
        self._ring, self._taken, self._windows = (
            ring.astype(np.float32),
            taken.astype(np.int64),
            windows.astype(np.int64),
        )
        self._trees, self._fitted = None, fitted.astype(np.float32)
        self._fit(self._fitted)


DETECTOR = Isolation

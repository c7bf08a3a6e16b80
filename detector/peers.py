"""Peers: how far an instance is above the others that serve the same model, given how far it usually is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix, State
from trimtab.detector.baseline import Baseline, worst

PEERS_MIN = 2
"""With fewer peers nobody can say which of them is the odd one."""


class Peers:
    """Deviation of the difference to the peers' median from what that difference usually is."""

    name = "peers"

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        self._baseline = Baseline(floors, warmup_windows)

    def resize(self, instances: int) -> None:
        self._baseline.resize(instances)

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._baseline.forget(rows)

    def expected(self, window: Matrix, groups: NDArray[np.int64]) -> Matrix:
        """The values that would be usual now, float32 [instances, features]; NaN where not known."""
        expected: Matrix = peers_median(window, groups) + self._baseline.usual()[0]
        return expected

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        return worst(self.scores(window, groups))

    def scores(self, window: Matrix, groups: NDArray[np.int64]) -> Matrix:
        """float32 [instances, features]: as `score`, by each feature alone."""
        return self._baseline.scores(window - peers_median(window, groups))

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        # A peer that is ill itself says nothing about what is usual.
        references = np.where(healthy[:, None], window, np.nan)
        self._baseline.learn(window - peers_median(references, groups), healthy)

    def save(self) -> State:
        return self._baseline.save()

    def restore(self, state: State) -> None:
        self._baseline.restore(state)


def peers_median(window: Matrix, groups: NDArray[np.int64]) -> Matrix:
    """The median of each row's peers, itself left out: float32 [instances, features]; NaN with fewer than `PEERS_MIN` known."""
    out = np.full_like(window, np.nan)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][:1] - 1))
    sizes = np.diff(starts, append=len(groups))
    # Groups of one size are worked at together.
    for size in np.unique(sizes[sizes > PEERS_MIN]).tolist():
        rows = order[starts[sizes == size][:, None] + np.arange(size)]
        out[rows] = _median_of_others(window[rows])
    return out


def _median_of_others(members: Matrix) -> Matrix:
    """For each of [groups, members, features], the median of the other members of its group."""
    order = np.argsort(members, axis=1, kind="stable")
    ordered = np.take_along_axis(members, order, axis=1)
    rank = np.argsort(order, axis=1, kind="stable")
    others = np.count_nonzero(~np.isnan(members), axis=1)[:, None] - ~np.isnan(members)

    def nth(n: NDArray[np.int64]) -> Matrix:
        # The n-th of the others, in a list that still has the member itself.
        position = np.minimum(np.where(n < rank, n, n + 1), members.shape[1] - 1)
        found: Matrix = np.take_along_axis(ordered, position, axis=1)
        return found

    middle = (nth(np.maximum(others - 1, 0) // 2) + nth(others // 2)) / 2
    out: Matrix = np.where(others >= PEERS_MIN, middle, np.nan).astype(np.float32)
    return out


DETECTOR = Peers

"""Features together: what of a window lies outside of the ways in which the features of healthy peers move.

Sub-PCA over the fleet (Aggarwal, "Outlier analysis", 2017; the residual of Jackson and Mudholkar, 1979): load that is higher and latency
that is higher with it is explained by the peers' healthy windows, latency alone is not. What is explained ends where healthy windows end,
so that all features far out together are no healthy window either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trimtab.detector.base import Matrix, State
from trimtab.detector.baseline import worst
from trimtab.detector.running import Running

GROUPS_MAX = 256
"""Groups that have a covariance of their own; what comes later shares one."""
REFRESH_WINDOWS = 64
"""The components are told anew after so many windows, and at each power of two before."""
# Windows that the covariance and what is usual look back on.
_DEPTH = 1800
# An eigenvalue is 1 where features move each for itself; what is above this is a way to move together.
_TOGETHER = 1.5
# So many row-windows a feature are needed to tell.
_ENOUGH = 10
# What is explained ends at so many standard deviations of a component.
_REACH = 4.0
_CUT = 8.0
_HALF = 4.0
_SHARED = ("products", "counts", "basis", "rest", "reach", "windows")


class Spanned:
    """A mean and a spread an instance, a covariance of the deviations a group of peers; one group alone has its own history's.

    Memory: 12 bytes an instance and feature, and 24 bytes a group and pair of features.
    """

    name = "subspace"

    def __init__(self, floors: tuple[float, ...], warmup_windows: int) -> None:
        features = len(floors)
        self._floors = np.asarray(floors, dtype=np.float32)
        self._usual = Running(floors, warmup_windows, 1 / _DEPTH)
        self._slot = np.zeros(0, dtype=np.int64)
        """int64 [instances]: which covariance; -1 for none yet. Numbers of groups change as groups come and go, these do not."""
        self._begin(1, features)

    def _begin(self, slots: int, features: int) -> None:
        # Slot 0 is shared by all groups beyond `GROUPS_MAX`.
        self._products = np.zeros((slots, features, features))
        self._counts = np.zeros((slots, features, features))
        self._basis = np.zeros((slots, features, features // 2), dtype=np.float32)
        self._reach = np.zeros((slots, features // 2), dtype=np.float32)
        self._rest = np.ones((slots, features), dtype=np.float32)
        self._windows = np.zeros(slots, dtype=np.int64)

    def resize(self, instances: int) -> None:
        more = instances - len(self._slot)
        self._usual.resize(instances)
        self._slot = np.concatenate([self._slot, np.full(more, -1, dtype=np.int64)])

    def forget(self, rows: NDArray[np.int64]) -> None:
        self._usual.forget(rows)
        self._slot[rows] = -1

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        middle, scale = self._usual.usual()
        off = (window - middle) / scale
        z = np.full_like(off, np.nan)
        for rows, slot in self._members(groups):
            least = np.maximum(self._rest[slot], self._floors / scale[rows])
            z[rows] = self._outside(off[rows], slot) / least
        scores: Matrix = (z**2 / (z**2 + _HALF**2)).astype(np.float32)
        return worst(scores)

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        self._place(groups)
        middle, scale = self._usual.usual()
        off = np.clip((window - middle) / scale, -_CUT, _CUT)
        off[~healthy] = np.nan
        for rows, slot in self._members(groups):
            here = ~np.isnan(off[rows])
            if here.any():
                self._take(np.where(here, off[rows], 0).astype(np.float64), here.astype(np.float64), slot)
        self._usual.learn(window, healthy)

    def _outside(self, off: Matrix, slot: int) -> Matrix:
        """How far above usual each feature is that the others do not explain, float32 [rows, features]."""
        basis, here = self._basis[slot], ~np.isnan(off)
        known = np.where(here, off, 0).astype(np.float32)
        along = known @ basis
        holes = np.flatnonzero(~here.all(axis=1))
        if len(holes) and basis.any():
            # The components are fitted to the features that are known: least squares, held by a grain of the identity.
            pairs = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
            normal = (here[holes].astype(np.float32) @ pairs).reshape(len(holes), basis.shape[1], -1)
            normal += 1e-2 * np.eye(basis.shape[1], dtype=np.float32)
            along[holes] = np.linalg.solve(normal, along[holes][:, :, None])[:, :, 0]
        explained = np.clip(along, -self._reach[slot], self._reach[slot]) @ basis.T
        # Only what is above usual counts, and no more of it than there is.
        outside: Matrix = np.where(here, np.clip(known - explained, 0, np.maximum(known, 0)), np.nan)
        return outside

    def _take(self, off: NDArray[np.float64], here: NDArray[np.float64], slot: int) -> None:
        self._products[slot] = (1 - 1 / _DEPTH) * self._products[slot] + off.T @ off
        self._counts[slot] = (1 - 1 / _DEPTH) * self._counts[slot] + here.T @ here
        self._windows[slot] = count = self._windows[slot] + 1
        if count % REFRESH_WINDOWS == 0 or (count < REFRESH_WINDOWS and count & (count - 1) == 0):
            self._refresh(slot)

    def _refresh(self, slot: int) -> None:
        counts = self._counts[slot]
        if np.diag(counts).max() < _ENOUGH * len(counts):
            return
        covariance = self._products[slot] / np.maximum(counts, 1)
        spread = np.sqrt(np.maximum(np.diag(covariance), 1e-6))
        values, vectors = np.linalg.eigh(covariance / np.outer(spread, spread))
        count = min(int((values > _TOGETHER).sum()), self._basis.shape[2])
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
        # Back to units of deviations: an orthonormal basis of the same span.
        basis, mixing = np.linalg.qr(spread[:, None] * vectors)
        self._basis[slot], self._reach[slot] = 0, 0
        self._basis[slot, :, :count] = basis
        self._reach[slot, :count] = _REACH * np.sqrt((mixing**2 * values).sum(axis=1))
        outside = np.eye(len(counts)) - basis @ basis.T
        self._rest[slot] = np.sqrt(np.maximum(np.diag(outside @ covariance @ outside), 0))

    def _members(self, groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """The rows of each covariance; those that have none yet are in the shared one."""
        slots = np.maximum(self._slots(groups), 0)
        order = np.argsort(slots, kind="stable")
        starts = np.flatnonzero(np.diff(slots[order], prepend=-1))
        for rows in np.split(order, starts[1:]) if len(order) else ():
            yield rows, int(slots[rows[0]])

    def _slots(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [rows]: the covariance of each group, as its known rows tell; -1 for a new one."""
        _, number = np.unique(groups, return_inverse=True)
        slots = np.full(number.max(initial=-1) + 1, -1, dtype=np.int64)
        np.maximum.at(slots, number, self._slot)
        of_rows: NDArray[np.int64] = slots[number]
        return of_rows

    def _place(self, groups: NDArray[np.int64]) -> None:
        """Give each new group a covariance, and take those back that nobody has any more."""
        slots = self._slots(groups)
        new = np.unique(groups[slots < 0])
        if len(new):
            free = np.setdiff1d(np.arange(1, GROUPS_MAX + 1), self._slot)[: len(new)]
            self._widen(int(free.max(initial=0)) + 1)
            self._clear(free)
            for group, slot in zip(new.tolist(), [*free.tolist(), *[0] * (len(new) - len(free))], strict=True):
                slots[groups == group] = slot
        self._slot = slots

    def _widen(self, slots: int) -> None:
        known, arrays = len(self._windows), {name: getattr(self, f"_{name}") for name in _SHARED}
        if slots > known:
            self._begin(slots, len(self._floors))
            for name, array in arrays.items():
                getattr(self, f"_{name}")[:known] = array

    def _clear(self, slots: NDArray[np.int64]) -> None:
        for name in _SHARED:
            getattr(self, f"_{name}")[slots] = 1 if name == "rest" else 0

    def save(self) -> State:
        shared = {f"shared_{name}": getattr(self, f"_{name}").copy() for name in _SHARED}
        return {**self._usual.save(), "slot": self._slot.copy(), **shared}

    def restore(self, state: State) -> None:
        """Raises ValueError when the state does not fit."""
        if missing := {"slot", *(f"shared_{name}" for name in _SHARED)} - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        like = Spanned(tuple(self._floors.tolist()), 1)
        like._begin(len(state["shared_windows"]), len(self._floors))
        for name in _SHARED:
            if state[f"shared_{name}"].shape != getattr(like, f"_{name}").shape:
                raise ValueError(f"state: shared_{name} {state[f'shared_{name}'].shape} does not fit")
        slot = state["slot"].astype(np.int64)
        if slot.max(initial=-1) >= len(state["shared_windows"]):
            raise ValueError("state: slot names a covariance that is not there")
        self._usual.restore(state)
        self._slot = slot
        for name in _SHARED:
            setattr(self, f"_{name}", state[f"shared_{name}"].astype(getattr(like, f"_{name}").dtype))


DETECTOR = Spanned

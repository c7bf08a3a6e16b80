"""ADWIN: the mean of a stream over a window that is as long as nothing changed, for many streams at once.

ADWIN2 of Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing" (SDM 2007): as soon as the means of an older
and a newer part of the window differ by more than chance allows, the older part is dropped. It does what `river.drift.ADWIN` does: it
looks every 32 values, and after a cut the stream begins anew with its next value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.detector import adwin_kernel as kernel
from trimtab.detector.adwin_clock import CLOCK
from trimtab.detector.robust import Array

State = Mapping[str, NDArray[Any]]
"""What is remembered, as arrays whose first axis is the stream."""


class Adwin:
    """Row i is the same stream from call to call. A window of n values takes memory for some 10 log2(n) numbers."""

    def __init__(self, streams: int, delta: float) -> None:
        """`delta` in (0, 1): how likely a cut may be in a window in which nothing changed."""
        self._delta = delta
        self._take(streams, _empty(streams))

    def update(self, values: Array) -> NDArray[np.bool_]:
        """Enter float32 [streams]; bool [streams]: which changed. What is NaN or infinite is skipped. Raises ValueError."""
        if values.shape != (self._streams,):
            raise ValueError(f"values {values.shape}; expected ({self._streams},)")
        self._deepen()
        entered = np.ascontiguousarray(values, dtype=np.float32)
        kernel.update(
            entered,
            self._delta,
            self._waiting,
            self._at,
            self._seen,
            self._widths,
            self._totals,
            self._spreads,
            self._buckets,
            self._changed,
        )
        return self._changed[: self._streams].copy()

    def resize(self, streams: int) -> None:
        """Make room for this many; known rows stay as they are. Raises ValueError for fewer."""
        more = streams - self._streams
        if more < 0:
            raise ValueError(f"{streams} streams, but {self._streams} are known; forget them instead")
        if not more:
            return
        known, new = self.save(), _empty(more, self._buckets.shape[1])
        self._take(streams, {name: np.concatenate([known[name], new[name]]) for name in known})

    def forget(self, rows: NDArray[np.int64]) -> None:
        """These rows now stand for other streams."""
        self._at[rows] = self._widths[rows] = self._seen[0, rows] = 0
        self._totals[rows] = self._spreads[rows] = 0
        self._seen[1, rows] = -1

    @property
    def width(self) -> NDArray[np.int64]:
        """int64 [streams]: values in the window; right after a cut, what is left of it."""
        width: NDArray[np.int64] = (self._widths + self._in_wait().sum(axis=1))[: self._streams]
        return width

    @property
    def mean(self) -> NDArray[np.float64]:
        """float64 [streams]; NaN for an empty window."""
        return self._moments()[0]

    @property
    def variance(self) -> NDArray[np.float64]:
        """float64 [streams]: mean squared deviation from the mean; NaN for an empty window."""
        return self._moments()[1]

    @property
    def cut(self) -> NDArray[np.int64]:
        """int64 [streams]: how many values the stream had before those that its last cut kept; -1 for never cut."""
        return self._seen[1, : self._streams].copy()

    def save(self) -> State:
        """Everything remembered."""
        flat = {"at": self._at, "widths": self._widths, "totals": self._totals, "spreads": self._spreads}
        rows = {"seen": self._seen.T, "waiting": self._waited(), "buckets": _by_stream(self._buckets)}
        arrays = flat | rows
        return {name: array[: self._streams].copy() for name, array in arrays.items()}

    def restore(self, state: State) -> None:
        """Go on where `save` was called. Raises ValueError when the state does not fit."""
        if missing := _empty(0).keys() - state.keys():
            raise ValueError(f"state: {', '.join(sorted(missing))} missing")
        streams, levels = len(state["at"]), state["buckets"].shape[1] if state["buckets"].ndim > 1 else 0
        for name, array in _empty(streams, levels).items():
            if state[name].shape != array.shape:
                raise ValueError(f"state: {name} {state[name].shape}; expected {array.shape}")
        at, widths = state["at"], state["widths"]
        deepest = kernel.fill(int(widths.max(initial=0)), np.empty(kernel.LEVELS_MAX, dtype=np.uint8))
        whole = (at == kernel.ANEW) | ((at < CLOCK) & (widths % CLOCK == 0))
        if not (whole & (at >= 0) & (widths >= 0)).all() or deepest > levels:
            raise ValueError("state: windows that cannot be; expected what `save` gave")
        self._take(streams, state)

    def _take(self, streams: int, state: State) -> None:
        spare = _empty(-streams % kernel.LANES, state["buckets"].shape[1])
        whole = {name: np.concatenate([state[name], spare[name]]).astype(spare[name].dtype) for name in spare}
        self._streams = streams
        self._at, self._widths, self._totals, self._spreads = (
            whole[name] for name in ("at", "widths", "totals", "spreads")
        )
        self._seen, waiting = (np.ascontiguousarray(whole[name].T) for name in ("seen", "waiting"))
        self._waiting = waiting.reshape(CLOCK, -1, kernel.LANES)
        self._buckets = _by_block(whole["buckets"])
        self._changed = np.zeros(len(self._at), dtype=np.bool_)
        self._widest = self._reach = 0

    def _deepen(self) -> None:
        """Room for what one more value may merge. No window gains more than one value at a time, so that it is seldom looked for."""
        self._widest += 1
        if self._widest <= self._reach:
            return
        self._widest = int(self._widths.max(initial=0)) + CLOCK
        self._reach = 2 * self._widest
        more = kernel.fill(self._reach, np.empty(kernel.LEVELS_MAX, dtype=np.uint8)) - self._buckets.shape[1]
        if more > 0:
            self._buckets = np.pad(self._buckets, ((0, 0), (0, more), *[(0, 0)] * 3))

    def _waited(self) -> Array:
        """float32 [blocks * LANES, CLOCK]"""
        waited: Array = self._waiting.reshape(CLOCK, -1).T
        return waited

    def _in_wait(self) -> NDArray[np.bool_]:
        """bool [blocks * LANES, CLOCK]"""
        count = np.where(self._at == kernel.ANEW, 0, self._at)
        waits: NDArray[np.bool_] = np.arange(CLOCK) < count[:, None]
        return waits

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        waits = self._in_wait()
        late, width = waits.sum(axis=1), self._widths
        values = np.where(waits, self._waited(), 0).astype(np.float64)
        mean_late = values.sum(axis=1) / np.maximum(late, 1)
        spread = self._spreads + np.where(waits, (values - mean_late[:, None]) ** 2, 0).sum(axis=1)
        off = mean_late - self._totals / np.maximum(width, 1)
        spread += off**2 * width * late / np.maximum(width + late, 1)
        total = np.where(width + late > 0, width + late, np.nan)[: self._streams]
        return (self._totals + values.sum(axis=1))[: self._streams] / total, spread[: self._streams] / total


def _empty(streams: int, levels: int = 1) -> dict[str, NDArray[Any]]:
    """What is remembered of streams that had no value yet."""
    return {
        "at": np.zeros(streams, dtype=np.uint8),
        "widths": np.zeros(streams, dtype=np.int64),
        "totals": np.zeros(streams),
        "spreads": np.zeros(streams),
        "seen": np.full((streams, 2), [0, -1], dtype=np.int64),
        "waiting": np.zeros((streams, CLOCK), dtype=np.float32),
        "buckets": np.zeros((streams, levels, 2, kernel.BUCKETS_MAX)),
    }


def _by_stream(array: NDArray[Any]) -> NDArray[Any]:
    """[blocks, …, LANES] as [blocks * LANES, …]."""
    moved = np.moveaxis(array, -1, 1)
    return moved.reshape(-1, *moved.shape[2:])


def _by_block(array: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `_by_stream`."""
    split = array.reshape(-1, kernel.LANES, *array.shape[1:])
    return np.ascontiguousarray(np.moveaxis(split, 1, -1))

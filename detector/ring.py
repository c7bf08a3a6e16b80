"""The last values of all subjects of one kind on one node, by time slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.detector.robust import Array

FLOAT32_MAX = 3e38
# What is above zero where an instance serves.
_SERVING = ("workers_ready",)


class Table:
    """float32 [slots, series, subjects], NaN where unknown.

    The series and subjects of the schema in force come first, in its order, so that a window is copied as one block; those that
    it no longer has stay behind them for as long as the ring still holds a value of theirs.
    """

    def __init__(self, slots: int, sums: Sequence[str] = ()) -> None:
        self.ids: list[str] = []
        self.names: list[str] = []
        self.units: dict[str, str] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.models: dict[str, str] = {}
        """By id; empty for what serves none."""
        self.values: Array = np.full((slots, 0, 0), np.nan, dtype=np.float32)
        self.seen = np.empty(0, dtype=np.int64)
        """int64 [subjects]: the last slot in which the schema had the subject."""
        self.served = np.empty(0, dtype=np.int64)
        """int64 [subjects]: the last slot that showed it to serve, by its workers or its answers; -1 for none."""
        self.layout: tuple[str, ...] = ()
        """The names, to compare tables by."""
        self._sums = list(sums)
        self._columns: dict[str, int] = {}
        self._sum_columns: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._serving: list[int] = []
        self._shape = (0, 0)
        self._windows = np.zeros(slots, dtype=np.int64)

    def adopt(self, table: pb.Table) -> NDArray[np.int64]:
        """Take over the schema's series and subjects; int64 [old subjects]: where each is now, -1 for dropped."""
        alive = ~np.isnan(self.values)
        told, heard = np.asarray(alive.any(axis=(0, 2))).tolist(), np.asarray(alive.any(axis=(0, 1))).tolist()
        names = list(dict.fromkeys([series.name for series in table.series] + self._sums))
        names += [n for n, kept in zip(self.names, told, strict=True) if kept and n not in names]
        ids = [subject.id for subject in table.subjects]
        self._shape = (len(table.series), len(ids))
        present = set(ids)
        ids += [i for i, kept in zip(self.ids, heard, strict=True) if kept and i not in present]
        rows, columns = {i: row for row, i in enumerate(ids)}, {n: column for column, n in enumerate(names)}
        moved = np.asarray([rows.get(i, -1) for i in self.ids], dtype=np.int64)
        moved_columns = np.asarray([columns.get(n, -1) for n in self.names], dtype=np.int64)
        values = np.full((len(self.values), len(names), len(ids)), np.nan, dtype=np.float32)
        kept_rows, kept_columns = np.flatnonzero(moved >= 0), np.flatnonzero(moved_columns >= 0)
        target = np.ix_(np.arange(len(values)), moved_columns[kept_columns], moved[kept_rows])
        values[target] = self.values[:, kept_columns][:, :, kept_rows]
        seen = np.full(len(ids), -1, dtype=np.int64)
        served = seen.copy()
        seen[moved[kept_rows]], served[moved[kept_rows]] = self.seen[kept_rows], self.served[kept_rows]
        self.units = {n: u for n, u in self.units.items() if n in columns} | {s.name: s.unit for s in table.series}
        labels = {s.id: dict(s.labels) for s in table.subjects}
        # What can no longer be read is still so: the instances of a GPU that fell off the bus.
        self.labels = {i: self.labels.get(i, {}) | labels.get(i, {}) for i in ids}
        self.models = {i: known.get("model", "") for i, known in self.labels.items()}
        self.ids, self.names, self.values, self.seen, self.served = ids, names, values, seen, served
        self.layout, self._columns = tuple(names), columns
        self._sum_columns = np.asarray([columns[n] for n in self._sums], dtype=np.int64)
        self._serving = [columns[s.name] for s in table.series if s.name in _SERVING]
        return moved

    def clear(self, slot: int) -> None:
        """Nothing is known of this slot yet."""
        self.values[slot % len(self.values)] = np.nan
        self._windows[slot % len(self.values)] = 0

    def put(self, slot: int, data: bytes) -> None:
        """Little-endian float64 [series, subjects] in the schema's order; several windows of one slot are averaged."""
        index, (series, subjects) = slot % len(self.values), self._shape
        values = np.frombuffer(data, dtype="<f8").reshape(self._shape)
        if (np.abs(values) >= FLOAT32_MAX).any():
            values = np.where(np.abs(values) < FLOAT32_MAX, values, np.nan)
        self._windows[index] += 1
        here = self.values[index, :series, :subjects]
        if self._windows[index] == 1:
            here[...] = values
        else:
            fresh = values.astype(np.float32)
            step = (fresh - here) / np.float32(self._windows[index])
            here[...] = np.where(np.isnan(here), fresh, np.where(np.isnan(fresh), here, here + step))
        np.maximum(self.seen[:subjects], slot, out=self.seen[:subjects])
        for row in self._serving:
            self.serve(slot, slice(0, subjects), values[row] > 0)

    def add(self, slot: int, first: int, rows: NDArray[np.int64], amounts: NDArray[np.float64]) -> None:
        """Add float64 [k, rows] to the `sums` from the `first` on of these subjects."""
        at = slot % len(self.values), self._sum_columns[first : first + len(amounts), None], rows
        here = self.values[at]
        self.values[at] = np.where(np.isnan(here), 0, here) + amounts

    def serve(self, slot: int, rows: slice | NDArray[np.int64], served: NDArray[np.bool_]) -> None:
        """These subjects did serve in this slot, or not."""
        self.served[rows] = np.where(served, np.maximum(self.served[rows], slot), self.served[rows])

"""The newest slots of many nodes as one array, so that what is made of them is made once for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.detector import robust
from trimtab.detector.history import GPU, INSTANCE, MERGE_SECONDS, Node
from trimtab.detector.latencies import Piece
from trimtab.detector.robust import Array

Selection = tuple[slice | NDArray[np.int64], NDArray[np.int64]]
"""Rows of a node's table, and where in the readings they go."""


class Part:
    """The newest slots of the instances of those nodes whose tables are laid out alike, side by side."""

    def __init__(self, nodes: Sequence[tuple[Node, Selection]]) -> None:
        first = nodes[0][0]
        self.slot_seconds, self._merge = first.slot_seconds, first.merge_slots
        tables = [node.tables[INSTANCE] for node, _ in nodes]
        self.layout = tables[0].layout
        self.there = np.concatenate([there for _, (_, there) in nodes])
        """int64 [instances]: where they are in the readings."""
        self._columns = {name: column for column, name in enumerate(self.layout)}
        slots = first.merge_slots()
        self._last = np.concatenate(
            [node.last(INSTANCE, slots)[:, :, here] for node, (here, _) in nodes], axis=2, dtype=np.float32
        )
        self._unknown: Array = np.full(len(self.there), np.nan, dtype=np.float32)
        self._nodes = nodes
        reach = [
            table.served[here] > node.newest - node.slots
            for table, (node, (here, _)) in zip(tables, nodes, strict=True)
        ]
        self.served = np.concatenate(reach)

    def series(self, name: str, seconds: float) -> Array:
        """float32 [slots, instances], newest first."""
        if name not in self._columns:
            return self._unknown[None]
        course: Array = self._last[: self._merge(seconds), self._columns[name]]
        return course

    def mean(self, name: str) -> Array:
        """float32 [instances] of what is known; NaN where nothing is."""
        return robust.mean(self.series(name, MERGE_SECONDS), 0) if name in self._columns else self._unknown

    def total(self, name: str, seconds: float = MERGE_SECONDS) -> Array:
        """Sum over the slots of what is known; NaN where nothing is."""
        course = self.series(name, seconds)
        known = ~np.isnan(course)
        total: Array = np.where(known.any(axis=0), np.where(known, course, 0).sum(axis=0), np.nan)
        return total

    def of_gpu(self, name: str, seconds: float = MERGE_SECONDS) -> Array:
        """float32 [instances]: mean of a signal of the GPU that each uses; NaN where it uses none, or nothing is known."""
        return np.concatenate([_of_gpu(node, here, name, seconds) for node, (here, _) in self._nodes])

    @property
    def has_gpu(self) -> NDArray[np.bool_]:
        """bool [instances]: whether it uses a GPU that could tell how busy it is."""
        return np.concatenate([_gpus(node, here, "utilisation_ratio") for node, (here, _) in self._nodes])

    @property
    def merged_seconds(self) -> float:
        """How long the slots are together."""
        return self._merge() * self.slot_seconds


def select(ids: Sequence[str], rows: Mapping[str, int]) -> Selection:
    """Those of `ids` that are in `rows`."""
    there = [rows.get(instance, -1) for instance in ids]
    if -1 not in there:
        return slice(0, len(ids)), np.asarray(there, dtype=np.int64)
    here = np.asarray([k for k, row in enumerate(there) if row >= 0], dtype=np.int64)
    return here, np.asarray(there, dtype=np.int64)[here]


class Cells:
    """The cells of many nodes, with the rows of the readings for those of each node's table."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._starts: list[int] = []
        self._there: list[NDArray[np.int64]] = []
        self._known: dict[str, int] = {}
        self._next = 0

    def add(self, node: Node, selection: Selection, pieces: Sequence[Piece]) -> None:
        """Pieces of this node, whose selected instances go where they go in the readings."""
        if node.name not in self._known:
            here, there = selection
            row_of = np.full(len(node.tables[INSTANCE].ids), -1, dtype=np.int64)
            row_of[here] = there
            self._there.append(row_of)
            self._known[node.name] = self._next
            self._next += len(row_of)
        self._pieces += pieces
        self._starts += [self._known[node.name]] * len(pieces)

    def pieces(self) -> list[Piece]:
        """One piece of all."""
        if not self._pieces:
            return []
        starts = np.repeat(self._starts, [len(piece.rows) for piece in self._pieces])
        rows = np.concatenate(self._there)[np.concatenate([piece.rows for piece in self._pieces]) + starts]
        buckets = np.concatenate([piece.buckets for piece in self._pieces])
        weights = np.concatenate([piece.weights for piece in self._pieces])
        known = rows >= 0
        return [Piece(rows[known], buckets[known], weights[known])]


def _gpus(node: Node, here: slice | NDArray[np.int64], name: str) -> NDArray[np.bool_]:
    """bool [instances]: whether it uses a GPU of which the signal is told."""
    gpus = node.tables.get(GPU)
    # A node without GPUs may still have a table of them, which is empty.
    told = gpus is not None and name in gpus.layout
    used: NDArray[np.bool_] = (node.gpu_of[here] >= 0) & told
    return used


def _of_gpu(node: Node, here: slice | NDArray[np.int64], name: str, seconds: float) -> Array:
    used = _gpus(node, here, name)
    if not used.any():
        return np.full(len(used), np.nan, dtype=np.float32)
    recent = node.last(GPU, node.merge_slots(seconds))[:, node.tables[GPU].layout.index(name)]
    found: Array = np.where(used, robust.mean(recent, 0)[node.gpu_of[here]], np.nan)
    return found

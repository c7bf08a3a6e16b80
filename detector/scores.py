"""How the predictions of each model are spread over the bins of their score, as the handlers of all its instances count them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.detector.history import History, Node
from trimtab.detector.ring import Table

MODEL = pb.SUBJECT_KIND_MODEL
BINS = 8
SIGNALS = tuple(f"predictions_bin_{k}_per_second" for k in range(BINS))

Counts = NDArray[np.float64]
"""float64 [BINS]: predictions in each bin."""


def shares(counts: Counts) -> Counts:
    """What is in each bin, as a share of all; NaN of nothing."""
    total = counts.sum()
    out: Counts = counts / (total if total > 0 else math.nan)
    return out


def distance(one: Counts, other: Counts) -> float:
    """Share of the predictions that would have to move to make one the other, of shares: their total variation distance."""
    return float(np.abs(one - other).sum() / 2)


class Scores:
    """Reads each slot of the history once."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[int, int]] = {}

    def new(self, history: History) -> dict[str, Counts]:
        """By model: the predictions of the slots that are complete since the last call, where any are known."""
        columns: list[NDArray[np.float64]] = []
        models: list[str] = []
        read, self._read = self._read, {}
        for node in history.nodes.values():
            table = node.tables.get(MODEL)
            if table is None:
                continue
            # More windows may still fall into the newest slot.
            last = node.newest - 1
            slot_ns, before = read.get(node.name, (node.slot_ns, last))
            if slot_ns != node.slot_ns:
                before = last
            self._read[node.name] = node.slot_ns, max(last, before)
            counts = _counts(node, table, np.arange(max(before + 1, last - node.slots + 2), last + 1))
            rows = np.flatnonzero(~np.isnan(counts[0]))
            if len(rows):
                columns.append(counts[:, rows])
                models += [table.labels[table.ids[row]].get("model", "") for row in rows.tolist()]
        number = {model: k for k, model in enumerate(dict.fromkeys(models))}
        total = np.zeros((len(number), BINS))
        if columns:
            np.add.at(total, [number[model] for model in models], np.concatenate(columns, axis=1).T)
        return dict(zip(number, total, strict=True))

    def versions(self, history: History) -> dict[str, set[str]]:
        """By model that is known: the versions that are served."""
        found: dict[str, set[str]] = {}
        for _, labels in history.all(MODEL):
            found.setdefault(labels.get("model", ""), set()).add(labels.get("version", ""))
        return found


def by_subject(history: History, model: str, since_unix_ns: int) -> dict[str, Counts]:
    """By "NODE/PORT/MODEL", and as far as the history reaches: the predictions since then."""
    found: dict[str, Counts] = {}
    for node in history.nodes.values():
        table = node.tables.get(MODEL)
        rows = [r for r, i in enumerate(table.ids) if table.labels[i].get("model") == model] if table else []
        if table is None or not rows:
            continue
        slots = np.arange(node.newest - node.slots + 1, node.newest + 1)
        counts = np.nan_to_num(_counts(node, table, slots[slots * node.slot_ns >= since_unix_ns]))
        found |= {table.ids[row]: counts[:, row] for row in rows}
    return found


def _counts(node: Node, table: Table, slots: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [BINS, subjects]: predictions in these slots; NaN where nothing is known."""
    if SIGNALS[0] not in table.layout or not len(slots):
        return np.full((BINS, len(table.ids)), np.nan)
    columns = [table.layout.index(name) for name in SIGNALS]
    rates = table.values[slots % node.slots][:, columns].astype(np.float64)
    # A share is of all bins, so that they count only together.
    known: NDArray[np.bool_] = ~np.any(np.isnan(rates), axis=1)
    total: NDArray[np.float64] = np.where(known[:, None], rates, 0).sum(axis=0) * node.slot_seconds
    total[:, ~np.any(known, axis=0)] = np.nan
    return total

"""Windows as columns: what one transaction appends, without an object a sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Sketches
from trimtab.collector.series import COLUMNS_MAX, KINDS, QUANTILES, RESERVED, Series
from trimtab.collector.window import Window

Columns = dict[str, NDArray[Any]]
"""Name to array; all arrays of one Columns have the same length. Times are int64 microseconds since the epoch."""
_OF_TALKERS = ("subject", "name", "seconds", "frequent_items", "hll")
_TEXT_BYTES_MAX = 4 * TEXT_MAX
ROW_BYTES_MAX = 8 * COLUMNS_MAX + len(RESERVED) * _TEXT_BYTES_MAX
"""What a row of a fingerprint table can take: it has every column that any window of its transaction has."""
EVENT_BYTES_MAX = 8 * _TEXT_BYTES_MAX
"""What a row of `events` can take: each of its texts is as wide as the widest of its transaction."""


@dataclass(frozen=True, slots=True)
class Block:
    """One table of one window: its rows begin at `offset`."""

    window: Window
    index: int
    offset: int

    @property
    def table(self) -> pb.Table:
        return self.window.schema.tables[self.index]

    @property
    def sketches(self) -> Iterator[Sketches]:
        return (sketches for sketches in self.window.sketches if sketches.table == self.index)


def blocks(windows: Sequence[Window], kind: str) -> list[Block]:
    """All tables of one kind."""
    out, offset = [], 0
    for window in windows:
        for index, table in enumerate(window.schema.tables):
            if KINDS[table.kind] == kind and table.subjects:
                out.append(Block(window, index, offset))
                offset += len(table.subjects)
    return out


def fingerprints(parts: Sequence[Block], series: Sequence[Series]) -> Columns:
    """Rows of a fingerprint table: one a subject and window; `series` are all that come in `parts`."""
    position = {column: i for i, column in enumerate(column for s in series for column in s.columns)}
    sketched = {s.name: s for s in series if s.form == "sketch"}
    lengths = [len(part.table.subjects) for part in parts]
    matrix = np.full((len(position), sum(lengths)), np.nan)
    for part, length in zip(parts, lengths, strict=True):
        rows = slice(part.offset, part.offset + length)
        matrix[[position[s.name] for s in part.table.series], rows] = part.window.values[part.index]
        for sketches in part.sketches:
            columns = [position[column] for column in sketched[sketches.name].columns]
            matrix[np.asarray(columns)[:, None], part.offset + sketches.subjects.astype(np.int64)] = summary(sketches)
    return {
        "node": np.repeat([part.window.node for part in parts], lengths),
        "subject": np.asarray([subject.id for part in parts for subject in part.table.subjects]),
        "seq": np.repeat([part.window.seq for part in parts], lengths),
        "start": np.repeat([part.window.start_unix_ns // 1000 for part in parts], lengths),
        **{column: matrix[i] for column, i in position.items()},
    }


def summary(sketches: Sketches) -> NDArray[np.float64]:
    """float64 [count, mean and the quantiles; k]: the count re-weighted, the rest as agent/sketch/loglinear.py has it; NaN when empty."""
    sketch, buckets = np.nonzero(sketches.dense)
    running = np.concatenate([[0], np.cumsum(sketches.dense[sketch, buckets])])
    before = running[np.searchsorted(sketch, np.arange(len(sketches.subjects)))]
    sampled = sketches.dense.sum(axis=1)
    filled = sampled > 0
    out = np.full((2 + len(QUANTILES), len(sampled)), np.nan)
    out[0] = sampled / sketches.probabilities
    out[1, filled] = sketches.sums[filled] / sampled[filled]
    for row, q in enumerate(QUANTILES.values(), start=2):
        # The counts of all sketches run on in one line, so that one search finds every sketch's rank.
        rank = np.maximum(np.ceil(q * sampled[filled] * (1 - 1e-12)).astype(np.int64), 1)
        found = np.searchsorted(running[1:], before[filled] + rank)
        out[row, filled] = MIDDLES_SECONDS[buckets[found]]
    return out


def sketches(parts: Sequence[Block], kind: str) -> tuple[Columns, Columns]:
    """Rows of `sketches` numbered by `row`, and their filled buckets: (row, bucket, count)."""
    entries = [(part, entry) for part in parts for entry in part.sketches]
    lengths = [len(entry.subjects) for _, entry in entries]
    filled = [np.nonzero(entry.dense) for _, entry in entries]
    offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
    names = [[part.table.subjects[i].id for i in entry.subjects.tolist()] for part, entry in entries]
    rows = {
        "row": np.arange(sum(lengths)),
        "kind": np.full(sum(lengths), kind),
        "node": np.repeat([part.window.node for part, _ in entries], lengths),
        "subject": np.asarray([name for group in names for name in group], dtype=np.str_),
        "series": np.repeat([entry.name for _, entry in entries], lengths),
        "seq": np.repeat([part.window.seq for part, _ in entries], lengths),
        "start": np.repeat([part.window.start_unix_ns // 1000 for part, _ in entries], lengths),
        "probability": _join([entry.probabilities for _, entry in entries]),
        "sum_seconds": _join([entry.sums for _, entry in entries]),
    }
    cells: Columns = {
        "row": _join([offset + row for offset, (row, _) in zip(offsets, filled, strict=True)]).astype(np.int64),
        "bucket": _join([bucket for _, bucket in filled]).astype(np.uint16),
        "count": _join([e.dense[cell] for (_, e), cell in zip(entries, filled, strict=True)]).astype(np.uint32),
    }
    return rows, cells


def arrivals(windows: Sequence[Window], received_unix_ns: int) -> Columns:
    """Rows of `windows`."""
    return {
        "node": np.asarray([window.node for window in windows]),
        "spool": np.asarray([window.spool for window in windows]),
        "seq": np.asarray([window.seq for window in windows]),
        "start": np.asarray([window.start_unix_ns // 1000 for window in windows]),
        "duration_seconds": np.asarray([window.duration_ns / 1e9 for window in windows]),
        "received": np.full(len(windows), received_unix_ns // 1000),
    }


def events(windows: Sequence[Window]) -> Columns:
    """Rows of `events`."""
    found = [(window, event) for window in windows for event in window.events]
    return {
        "node": np.asarray([window.node for window, _ in found]),
        "kind": np.asarray([KINDS[event.subject_kind] for _, event in found]),
        "subject": np.asarray([event.subject for _, event in found]),
        "name": np.asarray([event.name for _, event in found]),
        "occurred": np.asarray([event.unix_ns // 1000 for _, event in found]),
        "value": np.asarray([event.value for _, event in found]),
        "detail": np.asarray([event.detail for _, event in found]),
        "seq": np.asarray([window.seq for window, _ in found]),
    }


def talkers(windows: Sequence[Window]) -> dict[str, list[Any]]:
    """Rows of `talkers`, a list a column."""
    found = [(window, talkers) for window in windows for talkers in window.talkers]
    return {
        "kind": [KINDS[talkers.subject_kind] for _, talkers in found],
        "node": [window.node for window, _ in found],
        **{name: [getattr(talkers, name) for _, talkers in found] for name in _OF_TALKERS},
        "seq": [window.seq for window, _ in found],
        "start": [window.start_unix_ns // 1000 for window, _ in found],
    }


def subjects(window: Window) -> Columns:
    """Rows of `subjects`: all that the window's schema names; labels as JSON."""
    found = [(KINDS[table.kind], subject) for table in window.schema.tables for subject in table.subjects]
    return {
        "kind": np.asarray([kind for kind, _ in found]),
        "id": np.asarray([subject.id for _, subject in found]),
        "node": np.full(len(found), window.node),
        "labels": np.asarray([json.dumps(dict(subject.labels), sort_keys=True) for _, subject in found]),
        "current": np.full(len(found), True),
    }


def _join(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0)

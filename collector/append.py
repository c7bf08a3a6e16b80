"""Makes rows of windows, and appends them to the tables within a transaction that is already open. New series become new columns first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trimtab.agent.wire.columns import Malformed
from trimtab.collector.arrow import table
from trimtab.collector.batch import Batch, lay_out, why
from trimtab.collector.redo import Tables
from trimtab.collector.series import KINDS, Form, Registry, Series
from trimtab.collector.store import HALVES, Connection, Store, insert, insert_rows
from trimtab.collector.subjects import Layout, Subjects
from trimtab.collector.window import Window

_FORMS: dict[str, Form] = {"gauge": "gauge", "rate": "rate", "sketch": "sketch"}
_LATE = "INSERT INTO late_minutes BY NAME SELECT * FROM incoming"
_SAMPLES = "samples_"
ARRIVALS = "arrivals"


def known_series(connection: Connection) -> list[Series]:
    """The series that the store has columns for."""
    found = connection.execute("SELECT kind, name, unit, form FROM series").fetchall()
    return [Series(kind, name, unit, _FORMS[form]) for kind, name, unit, form in found]


def write_rows(connection: Connection, store: Store, rows: Tables) -> None:
    """Into their tables, within the open transaction; what comes too late to be rolled up with its minute is noted. Raises StoreError."""
    for name, some in rows.items():
        into = f"{name}_{store.half}" if name.startswith(_SAMPLES) else name
        # The name of the table and of its columns are ours or checked: a-z, 0-9 and _.
        insert_rows(connection, f"INSERT INTO {into} BY NAME SELECT * FROM incoming", some)  # noqa: S608
    if ARRIVALS in rows:
        late = store.rolled.late(rows[ARRIVALS]["start"].to_numpy().astype(np.int64))
        if len(late):
            insert(connection, _LATE, {"start": late}, ("start",))


class Appender:
    """Remembers which columns and subjects the store has, so that it need not ask."""

    def __init__(self, store: Store, connection: Connection, registry: Registry, stored: Sequence[Series]) -> None:
        self._store = store
        self._registry = registry
        self.subjects = Subjects(connection)
        self._stored = set(stored)
        self._adding: set[Series] = set()
        self._altering = False

    def prepare(self, windows: Sequence[Window]) -> tuple[Batch, dict[int, str]]:
        """The windows as columns, but for those that are refused: position to reason."""
        refused: dict[int, str] = {}
        layouts: list[Layout] = []
        taken: list[int] = []
        for position, window in enumerate(windows):
            try:
                layout = self.subjects.layout(window.node, window.schema)
                for talkers in window.message.talkers:
                    self.subjects.number(window.node, KINDS[talkers.subject_kind], talkers.subject)
                layouts.append(layout)
                taken.append(position)
            except Malformed as error:
                refused[position] = str(error)
        batch = lay_out([windows[i] for i in taken], layouts, self._registry)
        if batch.bad:
            refused.update({taken[i]: why(windows[taken[i]]) for i in batch.bad})
            kept = [(i, layout) for i, layout in zip(taken, layouts, strict=True) if i not in refused]
            batch = lay_out([windows[i] for i, _ in kept], [layout for _, layout in kept], self._registry)
        batch.talkers = self._talkers([window for i, window in enumerate(windows) if i not in refused])
        return batch, refused

    def rows(
        self, batch: Batch, windows: Sequence[Window], streams: Sequence[int], received_us: int
    ) -> dict[str, pa.Table]:
        """All rows of a batch and of its windows, each with its stream's number, by their tables."""
        if not windows:
            return {}
        rows = {f"{_SAMPLES}{block.kind}": table(block.columns, ("start",)) for block in batch.blocks}
        rows[ARRIVALS] = table(_arrivals(windows, streams, received_us), ("start", "received"))
        if any(window.message.events for window in windows):
            rows["events"] = table(_events(windows), ("occurred",))
        if batch.talkers:
            rows["talkers"] = table(batch.talkers, ("start",))
        return rows

    def news(self, batch: Batch) -> list[Series]:
        """The series of a batch that the store has no columns for."""
        return [series for block in batch.blocks for series in block.series if series not in self._stored]

    def append(self, connection: Connection, rows: Tables, fresh: Sequence[Series]) -> None:
        """These rows, in which these series are new. Raises StoreError; then call `rollback`, else `commit`."""
        self.subjects.write(connection)
        for kind in {series.kind for series in fresh}:
            self._add_columns(connection, kind, [series for series in fresh if series.kind == kind])
        write_rows(connection, self._store, rows)

    def commit(self) -> None:
        """The transaction is done."""
        self._stored |= self._adding
        self.rollback()
        self.subjects.commit()

    def rollback(self) -> None:
        """The transaction that failed will be tried again."""
        self._adding.clear()
        if self._altering:
            self._store.altering.release()
            self._altering = False

    def _add_columns(self, connection: Connection, kind: str, fresh: Sequence[Series]) -> None:
        # Until the transaction is over: nothing may be deleted from these tables meanwhile.
        self._altering = self._altering or self._store.altering.acquire()
        for series in fresh:
            for column in series.columns:
                form = "BLOB" if series.form == "sketch" and column == series.columns[0] else "DOUBLE"
                for half in HALVES:
                    connection.execute(f'ALTER TABLE samples_{kind}_{half} ADD COLUMN IF NOT EXISTS "{column}" {form}')
        self._store.show_columns(connection, kind)
        fields = ("kind", "name", "unit", "form")
        columns = {field: [getattr(series, field) for series in fresh] for field in fields}
        insert(connection, "INSERT INTO series BY NAME SELECT * FROM incoming", columns)
        self._adding |= set(fresh)

    def _talkers(self, windows: Sequence[Window]) -> dict[str, Any]:
        found = [(window, talkers) for window in windows for talkers in window.message.talkers]
        if not found:
            return {}
        numbers = [self.subjects.number(window.node, KINDS[t.subject_kind], t.subject) for window, t in found]
        return {
            "subject": np.asarray(numbers, dtype=np.int32),
            "start": [window.start_unix_ns // 1000 for window, _ in found],
            **{name: [getattr(t, name) for _, t in found] for name in ("name", "seconds", "frequent_items", "hll")},
        }


def _arrivals(windows: Sequence[Window], streams: Sequence[int], received_us: int) -> dict[str, Any]:
    return {
        "stream": np.asarray(streams, dtype=np.int32),
        "seq": np.asarray([window.seq for window in windows], dtype=np.int64),
        "start": [window.start_unix_ns // 1000 for window in windows],
        "duration_seconds": np.asarray([window.duration_ns / 1e9 for window in windows]),
        "received": np.full(len(windows), received_us),
    }


def _events(windows: Sequence[Window]) -> dict[str, Any]:
    found = [(window, event) for window in windows for event in window.events]
    return {
        "node": [window.node for window, _ in found],
        "kind": [KINDS[event.subject_kind] for _, event in found],
        "subject": [event.subject for _, event in found],
        "name": [event.name for _, event in found],
        "occurred": [event.unix_ns // 1000 for _, event in found],
        "value": np.asarray([event.value for _, event in found]),
        "detail": [event.detail for _, event in found],
        "seq": np.asarray([window.seq for window, _ in found], dtype=np.int64),
    }

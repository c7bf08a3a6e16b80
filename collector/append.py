"""Appends windows to the tables, within a transaction that is already open. New series become new columns first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trimtab.collector import rows
from trimtab.collector.series import KINDS, Form, Registry, Series
from trimtab.collector.store import Connection, insert
from trimtab.collector.window import Window

SCHEMAS_MAX = 8192
_FORMS: dict[str, Form] = {"gauge": "gauge", "rate": "rate", "sketch": "sketch"}
_SKETCHES = """
INSERT INTO sketches BY NAME
SELECT incoming.* EXCLUDE (row) REPLACE (make_timestamp(start) AS start), coalesce(buckets, []) AS buckets, coalesce(counts, []) AS counts
FROM incoming LEFT JOIN (
    SELECT row, list(bucket ORDER BY bucket) AS buckets, list(count ORDER BY bucket) AS counts FROM cells GROUP BY row
) USING (row)
"""
_WINDOWS = """
INSERT INTO windows BY NAME
SELECT * REPLACE (make_timestamp(start) AS start, make_timestamp(received) AS received) FROM incoming
"""
_EVENTS = "INSERT INTO events BY NAME SELECT * REPLACE (make_timestamp(occurred) AS occurred) FROM incoming"
# As parameters, because a column of fixed width would make each as long as the longest.
_TALKERS = """
INSERT INTO talkers BY NAME
SELECT unnest($kind::VARCHAR[]) AS kind, unnest($node::VARCHAR[]) AS node, unnest($subject::VARCHAR[]) AS subject,
       unnest($name::VARCHAR[]) AS name, unnest($seq::BIGINT[]) AS seq, make_timestamp(unnest($start::BIGINT[])) AS start,
       unnest($seconds::DOUBLE[]) AS seconds, unnest($frequent_items::BLOB[]) AS frequent_items, unnest($hll::BLOB[]) AS hll
"""
_SUBJECTS = (
    "UPDATE subjects SET current = false WHERE node IN (SELECT node FROM incoming)",
    "DELETE FROM subjects USING incoming WHERE subjects.kind = incoming.kind AND subjects.id = incoming.id",
    """INSERT INTO subjects BY NAME
    SELECT * REPLACE (labels::VARCHAR::JSON::MAP(VARCHAR, VARCHAR) AS labels) FROM incoming""",
)


def known_series(connection: Connection) -> list[Series]:
    """The series that the store has columns for."""
    found = connection.execute("SELECT kind, name, unit, form FROM series").fetchall()
    return [Series(kind, name, unit, _FORMS[form]) for kind, name, unit, form in found]


class Appender:
    """Remembers which columns and subjects the store has, so that it need not ask."""

    def __init__(self, registry: Registry, stored: Sequence[Series]) -> None:
        self._registry = registry
        self._stored = set(stored)
        self._adding: set[Series] = set()
        self._schemas: dict[str, bytes] = {}
        self._naming: dict[str, bytes] = {}

    def append(self, connection: Connection, windows: Sequence[Window], received_unix_ns: int) -> None:
        """All rows of these windows. Raises StoreError; then call `rollback`, else `commit`."""
        if not windows:
            return
        for kind in KINDS.values():
            self._append_kind(connection, rows.blocks(windows, kind), kind)
        insert(connection, _WINDOWS, rows.arrivals(windows, received_unix_ns))
        if any(window.events for window in windows):
            insert(connection, _EVENTS, rows.events(windows))
        if any(window.talkers for window in windows):
            connection.execute(_TALKERS, rows.talkers(windows))
        for window in windows:
            if window.schema.hash != self._naming.get(window.node, self._schemas.get(window.node)):
                for statement in _SUBJECTS:
                    insert(connection, statement, rows.subjects(window))
                self._naming[window.node] = window.schema.hash

    def commit(self) -> None:
        """The transaction is done."""
        self._stored |= self._adding
        if len(self._schemas) + len(self._naming) > SCHEMAS_MAX:
            self._schemas.clear()
        self._schemas.update(self._naming)
        self.rollback()

    def rollback(self) -> None:
        """Forget what the open transaction was about to add."""
        self._adding.clear()
        self._naming.clear()

    def _append_kind(self, connection: Connection, parts: Sequence[rows.Block], kind: str) -> None:
        if not parts:
            return
        names = {series.name for part in parts for series in part.table.series}
        names |= {entry.name for part in parts for entry in part.sketches}
        series = [self._registry.get(kind, name) for name in sorted(names)]
        self._add_columns(connection, kind, [s for s in series if s not in self._stored])
        # The name of the table and of its columns are ours or checked: a-z, 0-9 and _.
        statement = (
            f"INSERT INTO fingerprint_{kind} BY NAME SELECT * REPLACE (make_timestamp(start) AS start) FROM incoming"  # noqa: S608
        )
        insert(connection, statement, rows.fingerprints(parts, series))
        if any(s.form == "sketch" for s in series):
            sketches, cells = rows.sketches(parts, kind)
            connection.register("cells", cells)
            try:
                insert(connection, _SKETCHES, sketches)
            finally:
                connection.unregister("cells")

    def _add_columns(self, connection: Connection, kind: str, fresh: Sequence[Series]) -> None:
        for series in fresh:
            for column in series.columns:
                connection.execute(f'ALTER TABLE fingerprint_{kind} ADD COLUMN IF NOT EXISTS "{column}" DOUBLE')
        if fresh:
            fields = ("kind", "name", "unit", "form")
            columns = {field: np.asarray([getattr(s, field) for s in fresh]) for field in fields}
            insert(connection, "INSERT INTO series BY NAME SELECT * FROM incoming", columns)
            self._adding |= set(fresh)

"""What is known of each spool: its high-water mark and its counts. The row that makes the store exactly-once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from trimtab.collector.store import Connection, insert

ENTRIES_MAX = 8192
"""Most rows kept in memory; the rest is read again when needed."""
Key = tuple[str, str]


@dataclass(slots=True)
class Entry:
    """A row of `streams`; times are microseconds since the epoch, -1 for never."""

    node: str
    spool: str
    high_water_mark: int = 0
    windows: int = 0
    duplicates: int = 0
    lost: int = 0
    refused: int = 0
    last_refusal: str = ""
    refused_at: int = -1
    last_window: int = -1

    def advance(self, seq: int) -> None:
        """`seq` is dealt with; the numbers it left out are lost."""
        self.lost += seq - self.high_water_mark - 1
        self.high_water_mark = seq


_NAMES = [f.name for f in fields(Entry)]
_READ = """
SELECT * REPLACE (coalesce(epoch_us(refused_at), -1) AS refused_at, coalesce(epoch_us(last_window), -1) AS last_window)
FROM streams WHERE node = ? AND spool = ?
"""
_WRITE = """
INSERT OR REPLACE INTO streams BY NAME
SELECT * REPLACE (if(refused_at < 0, NULL, make_timestamp(refused_at)) AS refused_at,
                  if(last_window < 0, NULL, make_timestamp(last_window)) AS last_window)
FROM incoming
"""


@dataclass(slots=True)
class Ledger:
    """The entries, as one transaction sees them. What it changes counts only once `commit` is called."""

    _stored: dict[Key, Entry] = field(default_factory=dict)
    _changed: dict[Key, Entry] = field(default_factory=dict)

    def entry(self, connection: Connection, key: Key, first_seq: int) -> Entry:
        """The entry to change. A spool that is new here begins at `first_seq`: what came before was never ours to lose."""
        if key not in self._changed:
            known = self._stored.get(key)
            if known is None:
                row = connection.execute(_READ, key).fetchone()
                known = Entry(*row) if row else Entry(*key, high_water_mark=first_seq - 1)
            self._changed[key] = Entry(*(getattr(known, name) for name in _NAMES))
        return self._changed[key]

    def write(self, connection: Connection) -> None:
        """Every changed entry into the open transaction."""
        if self._changed:
            rows = list(self._changed.values())
            columns = {name: np.asarray([getattr(row, name) for row in rows]) for name in _NAMES}
            insert(connection, _WRITE, columns)

    def commit(self) -> None:
        """The transaction is done."""
        if len(self._stored) + len(self._changed) > ENTRIES_MAX:
            self._stored.clear()
        self._stored.update(self._changed)
        self._changed.clear()

    def rollback(self) -> None:
        """The transaction never was."""
        self._changed.clear()

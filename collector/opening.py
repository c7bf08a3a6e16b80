"""How the collector opens its store: one of an older version is brought up to date, one that is broken is set aside, or only its log
where the file itself is whole; and what waited in the redo log is added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow.compute as pc

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import Clock
from trimtab.collector.append import ARRIVALS, write_rows
from trimtab.collector.ledger import catch_up
from trimtab.collector.migrate import VERSIONS, migrate
from trimtab.collector.redo import Foreign, Redo, Tables
from trimtab.collector.store import (
    Connection,
    Corrupt,
    CorruptFile,
    Outdated,
    Store,
    StoreError,
    opening,
    transaction,
)

log = logging.getLogger(__name__)

_THERE = """
SELECT 1 FROM arrivals WHERE stream = $stream AND seq = $seq
UNION ALL SELECT 1 FROM stream_records WHERE stream = $stream AND high_water_mark >= $seq
"""
"""Retention may have deleted what is older than it keeps; then the mark knows it."""


def open_or_set_aside(path: Path, memory_bytes_max: int, clock: Clock) -> Store:
    """The store in `path`. A file that is no database is renamed, said so, and a new one begun; an older one is migrated.

    Raises TrimtabError, also for a file of a version that is not known here.
    """
    try:
        return _opened(path, memory_bytes_max, clock)
    except Corrupt as error:
        aside = path.with_name(f"{path.name}.corrupt-{clock.unix_ns() // 10**9}")
        redo = redo_of(path)
        if redo.exists() and redo.stat().st_size:
            # Its rows name what only this file and its log know.
            redo.rename(redo_of(aside))
        log_file = Path(f"{path}.wal")
        if log_file.exists():
            log_file.rename(f"{aside}.wal")
            if not isinstance(error, CorruptFile):
                with suppress(Corrupt):
                    store = _opened(path, memory_bytes_max, clock)
                    log.error(
                        "%s; its log is set aside as %s.wal: what came last is lost, the rest is used", error, aside
                    )
                    return store
        path.rename(aside)
        log.error("%s; set aside as %s, and a new database begun", error, aside)
        return Store(path, memory_bytes_max)


def redo_of(path: Path) -> Path:
    """Where the redo log of the store in `path` is."""
    return Path(f"{path}.redo")


def take_up(store: Store, clock: Clock) -> tuple[Redo, int]:
    """Add what a collector that was killed has left in its redo log, which is empty then; when the newest window was received,
    microseconds since the epoch.

    A log of another database is set aside, said so. Raises TrimtabError when what is in it cannot be stored now.
    """
    path = redo_of(store.path)
    try:
        redo = Redo(path, store.id)
        connection = store.cursor()
        try:
            with transaction(connection):
                windows = _replay(connection, store, list(redo.left()))
            if windows:
                log.warning("%d windows that were acknowledged before the collector was ended are stored now", windows)
        except Foreign as error:
            aside = path.with_name(f"{path.name}.unused-{clock.unix_ns() // 10**9}")
            redo.set_aside(aside)
            log.error("%s; what it holds is not stored, and kept as %s", error, aside)
        with transaction(connection):
            received_us = catch_up(connection)
        redo.clear()
        connection.close()
    except StoreError as error:
        message = (
            f"{path}: what waits in it cannot be stored: {error}; make room, or move it away, and its windows are lost"
        )
        raise TrimtabError(message, Exit.STATE) from error
    return redo, received_us


def _replay(connection: Connection, store: Store, records: Sequence[Tables]) -> int:
    """How many windows were not in the store. Raises StoreError."""
    if not records:
        return 0
    first = records[0][ARRIVALS].slice(0, 1).to_pylist()[0]
    if connection.execute(_THERE, {name: first[name] for name in ("stream", "seq")}).fetchall():
        return 0
    known = {
        "stream": _highest(connection, "stream", "stream_records"),
        "subject": _highest(connection, "subject", "subjects"),
    }
    for rows in records:
        for name, highest in known.items():
            if any(pc.max(table[name]).as_py() > highest for table in rows.values() if name in table.column_names):
                raise Foreign(f"{redo_of(store.path)}: names a {name} that the database does not know")
        write_rows(connection, store, rows)
    return sum(rows[ARRIVALS].num_rows for rows in records)


def _highest(connection: Connection, number: str, table: str) -> int:
    [(highest,)] = connection.execute(f"SELECT coalesce(max({number}), 0) FROM {table}").fetchall()  # noqa: S608 - our own names
    return int(highest)


def _opened(path: Path, memory_bytes_max: int, clock: Clock) -> Store:
    try:
        return Store(path, memory_bytes_max)
    except Outdated as error:
        if error.version not in VERSIONS:
            raise
        with opening(path):
            migrate(path, error.version, memory_bytes_max, clock.unix_ns() // 10**9)
    return Store(path, memory_bytes_max)

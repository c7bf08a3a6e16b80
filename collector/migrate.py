"""Brings a store of an older version up to date.

Where only tables are added, that is one transaction in the file itself. Else a new database is made beside it, which takes its name once
it is whole; the old file is only read, and kept as FILE.vVERSION-UNIXTIME. Either way, what was cut short begins anew.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from trimtab import Exit, TrimtabError
from trimtab.collector.packed import SketchList
from trimtab.collector.series import KINDS, SKETCH
from trimtab.collector.store import HALVES, Connection, Store, attached, insert, transaction, translated

log = logging.getLogger(__name__)

VERSIONS = ("1", "2", "3", "4", "5")
"""Those that were ever released, but for the one of today. 2 lets `weights.wished` be NULL, 3 knows more kinds of subjects, and talkers,
4 has numbers for subjects, 5 what operators say of incidents, 6 the weights that they set, and what policies saw."""
_SIX = """
CREATE TABLE decision_states (decided TIMESTAMP NOT NULL, version BIGINT NOT NULL, seen BLOB NOT NULL);
CREATE TABLE overrides (
    target VARCHAR NOT NULL, kind VARCHAR NOT NULL, weight DOUBLE, since TIMESTAMP NOT NULL, until TIMESTAMP, who VARCHAR NOT NULL,
    reason VARCHAR NOT NULL, message BLOB NOT NULL
);
UPDATE meta SET value = '6' WHERE key = 'schema_version';
"""
_ADDED = {
    "4": """
CREATE TABLE acknowledgements (incident VARCHAR NOT NULL, acknowledged TIMESTAMP NOT NULL, who VARCHAR NOT NULL, note VARCHAR NOT NULL);
CREATE TABLE silences (
    target VARCHAR NOT NULL, since TIMESTAMP NOT NULL, until TIMESTAMP NOT NULL, who VARCHAR NOT NULL, reason VARCHAR NOT NULL
);
"""
    + _SIX,
    "5": _SIX,
}
"""By the version that lacks nothing else."""
_STEP_US = 3_600_000_000
_COPIED = ("nodes", "series", "events", "incident_records", "causes", "evidence", "decision_records", "weights")
"""Tables that have kept their columns."""
_ROOM = 1.1
"""What the new file may take, of the old one's size."""
_STREAMS = """
INSERT INTO stream_records BY NAME SELECT row_number() OVER (ORDER BY node, spool)::INTEGER AS stream, * FROM old.streams
"""
_ARRIVALS = """
INSERT INTO arrivals BY NAME
SELECT r.stream, w.seq, w.start, w.duration_seconds, w.received FROM old.windows w JOIN stream_records r USING (node, spool)
"""
_SUBJECTS = """
INSERT INTO subjects BY NAME
SELECT row_number() OVER (ORDER BY kind, id)::INTEGER AS subject, * FROM (
    SELECT kind, id, any_value(node) AS node, any_value(labels) AS labels, bool_or(current) AS current FROM old.subjects GROUP BY kind, id
    UNION ALL
    SELECT kind, subject, any_value(node), MAP {{}}::MAP(VARCHAR, VARCHAR), false FROM ({met})
    WHERE (kind, subject) NOT IN (SELECT (kind, id) FROM old.subjects) GROUP BY kind, subject
)
"""
_TALKERS = """
INSERT INTO talkers BY NAME
SELECT s.subject, t.name, t.start, t.seconds, t.frequent_items, t.hll
FROM old.talkers t JOIN subjects s ON s.kind = t.kind AND s.id = t.subject
"""
_PACKED = (
    "CREATE OR REPLACE TEMP TABLE packed (subject VARCHAR, series VARCHAR, seq BIGINT, start TIMESTAMP, sketch BLOB)"
)
_SKETCHES = """
SELECT subject, series, seq, epoch_us(start) AS start, probability, buckets, counts FROM old.sketches
WHERE kind = ? AND start >= make_timestamp(?) AND start < make_timestamp(?)
"""


def migrate(path: Path, version: str, memory_bytes_max: int, unix_s: int) -> None:
    """Make `path`, a store of an older `version`, one of today. Raises TrimtabError, and StoreError where the old one cannot be read."""
    if version in _ADDED:
        _add(path, version, memory_bytes_max)
        return
    aside = path.with_name(f"{path.name}.v{version}-{unix_s}")
    fresh = path.with_name(f"{path.name}.migrating")
    _remove(fresh)
    # What is in the log only goes into the file: the new one cannot follow the old one's log.
    attached(path, None, memory_bytes_max).close()
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    if free < size * _ROOM:
        message = (
            f"{path}: schema {version} must be brought up to date, which needs {int(size * _ROOM) >> 20} MB of disk, and there are"
            f" {free >> 20}: make room, or move the file away"
        )
        raise TrimtabError(message, Exit.STATE)
    log.warning("%s: schema %s is brought up to date, %d MB", path, version, size >> 20)
    Store(fresh, memory_bytes_max).close()
    connection = attached(fresh, path, memory_bytes_max)
    try:
        with translated():
            _copy(connection)
            connection.execute("DETACH old")
            connection.execute("CHECKPOINT")
    finally:
        connection.close()
    # The columns are known now, and so what the views show.
    store = Store(fresh, memory_bytes_max)
    for kind in KINDS.values():
        store.show_columns(store.cursor(), kind)
    store.close()
    os.link(path, aside)
    fresh.replace(path)
    log.warning("%s: up to date; the old one is kept as %s, and may be deleted", path, aside)


def _add(path: Path, version: str, memory_bytes_max: int) -> None:
    connection = attached(path, None, memory_bytes_max)
    try:
        with transaction(connection):
            connection.execute(_ADDED[version])
    finally:
        connection.close()
    log.warning("%s: schema %s is brought up to date", path, version)


def _remove(path: Path) -> None:
    for suffix in ("", ".wal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _copy(connection: Connection) -> None:
    there = {
        name
        for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 'old'"
        ).fetchall()
    }
    for table in _COPIED:
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM old.{table}")  # noqa: S608 - our own names
    connection.execute(_STREAMS)
    connection.execute(_ARRIVALS)
    kinds = [kind for kind in KINDS.values() if f"fingerprint_{kind}" in there]
    parts = [f"SELECT DISTINCT '{kind}' AS kind, node, subject FROM old.fingerprint_{kind}" for kind in kinds]  # noqa: S608
    if "talkers" in there:
        parts.append("SELECT DISTINCT kind, node, subject FROM old.talkers")
    connection.execute(_SUBJECTS.format(met=" UNION ALL ".join(parts)))
    if "talkers" in there:
        connection.execute(_TALKERS)
    for kind in kinds:
        _copy_samples(connection, kind)


def _copy_samples(connection: Connection, kind: str) -> None:
    found = connection.execute(
        "SELECT name FROM series WHERE kind = ? AND form = 'sketch' ORDER BY name", [kind]
    ).fetchall()
    sketched = [name for (name,) in found]
    columns = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE database_name = 'old' AND table_name = ? AND column_index > 4"
        " ORDER BY column_index",
        [f"fingerprint_{kind}"],
    ).fetchall()
    plain = [name for (name,) in columns]
    for half in HALVES:
        for name, type_ in [*((name, "DOUBLE") for name in plain), *((f"{name}{SKETCH}", "BLOB") for name in sketched)]:
            connection.execute(f'ALTER TABLE samples_{kind}_{half} ADD COLUMN IF NOT EXISTS "{name}" {type_}')
    # An hour at a time, for the memory that the sketches take.
    end = 0
    while True:
        [(at,)] = connection.execute(
            f"SELECT epoch_us(min(start)) FROM old.fingerprint_{kind} WHERE start >= make_timestamp(?)",  # noqa: S608
            [end],
        ).fetchall()
        if at is None:
            return
        end = (at // _STEP_US + 1) * _STEP_US
        _copy_slice(connection, kind, plain, sketched, at, end)


def _copy_slice(
    connection: Connection, kind: str, plain: Sequence[str], sketched: Sequence[str], start_us: int, end_us: int
) -> None:
    connection.execute(_PACKED)
    for batch in connection.execute(_SKETCHES, [kind, start_us, end_us]).to_arrow_reader(1 << 16):
        columns = {name: batch[name] for name in ("subject", "series", "seq", "start")}
        columns["sketch"] = _packed(batch)
        insert(connection, "INSERT INTO packed BY NAME SELECT * FROM incoming", columns, ("start",))
    names = "".join(f', f."{name}"' for name in plain)
    names += "".join(f', p{i}.sketch AS "{name}{SKETCH}"' for i, name in enumerate(sketched))
    joins = "".join(
        f" LEFT JOIN packed p{i} ON p{i}.series = '{name}' AND p{i}.subject = f.subject AND p{i}.seq = f.seq AND p{i}.start = f.start"
        for i, name in enumerate(sketched)
    )
    connection.execute(
        f"INSERT INTO samples_{kind}_{HALVES[0]} BY NAME SELECT s.subject, f.start{names} FROM old.fingerprint_{kind} f"  # noqa: S608
        f" JOIN subjects s ON s.kind = '{kind}' AND s.id = f.subject{joins}"
        " WHERE f.start >= make_timestamp(?) AND f.start < make_timestamp(?) ORDER BY f.start",
        [start_us, end_us],
    )


def _packed(batch: pa.RecordBatch) -> pa.BinaryArray:
    """Lists of buckets and counts as the store keeps sketches now."""
    buckets, counts = batch["buckets"], batch["counts"]
    offsets = buckets.offsets.to_numpy().astype(np.int64)
    sketches = SketchList(
        offsets - offsets[0],
        buckets.flatten().to_numpy().astype(np.uint16),
        counts.flatten().to_numpy().astype(np.uint32),
        batch["probability"].to_numpy().astype(np.float64),
    )
    return sketches.pack()

"""A copy of the whole store while it is written to: every table as one moment had it, as a stream to whoever asked.

Nothing is written on this side, so that a client chooses no path here and no disk fills up; and the database's own limits stay as
they are. All is read in one transaction: it sees each commit wholly or not at all, so marks and rows agree.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyarrow as pa

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.sql import quoted
from trimtab.collector.store import Connection, Store

PIECE_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_BATCH_ROWS_MAX = 16384


def backup(store: Store, clock: Clock) -> Iterator[pb.BackupChunk]:
    """The contents, then the rows of each table. Raises StoreError. The transaction lasts until the last chunk is taken."""
    with store.reading() as connection:
        contents = _contents(connection)
        contents.unix_ns = clock.unix_ns()
        yield pb.BackupChunk(contents=contents)
        for table in contents.tables:
            for piece in _rows(connection, table.name):
                yield pb.BackupChunk(rows=piece)
            yield pb.BackupChunk(end_of_table=True)


def _contents(connection: Connection) -> pb.BackupContents:
    tables = connection.execute(
        "SELECT table_name, sql FROM duckdb_tables() WHERE NOT internal AND NOT temporary ORDER BY table_oid"
    ).fetchall()
    indexes = connection.execute("SELECT sql FROM duckdb_indexes() WHERE sql IS NOT NULL ORDER BY index_oid").fetchall()
    views = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE NOT internal AND NOT temporary ORDER BY view_oid"
    ).fetchall()
    counted = [pb.BackupTable(name=name, sql=sql, rows=_count(connection, name)) for name, sql in tables]
    return pb.BackupContents(tables=counted, indexes=[sql for (sql,) in indexes], views=[sql for (sql,) in views])


def _count(connection: Connection, name: str) -> int:
    [(count,)] = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchall()  # noqa: S608
    return int(count)


def _rows(connection: Connection, name: str) -> Iterator[bytes]:
    """One stream of Arrow IPC, in pieces of at most PIECE_BYTES."""
    connection.execute(f"FROM {quoted(name)}")
    row_bytes = 8 * len(connection.description or [None])
    reader = connection.to_arrow_reader(max(1, min(_BATCH_ROWS_MAX, _BATCH_BYTES // row_bytes)))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, reader.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for batch in reader:
            writer.write_batch(batch)
            yield from _taken(sink)
    yield from _taken(sink)


def _taken(sink: io.BytesIO) -> Iterator[bytes]:
    """What is in it, which is empty then."""
    found = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    for start in range(0, len(found), PIECE_BYTES):
        yield found[start : start + PIECE_BYTES]

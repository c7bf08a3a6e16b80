"""Makes a database file of a backup's chunks, and reads it again to see that it holds what came."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.sql import quoted
from trimtab.collector.store import Connection, StoreError, copying, translated

_READ_BYTES = 1 << 20
_GROUP_ROWS = 122_880
"""A row group of DuckDB."""
_GROUP_BYTES_MAX = 256 << 20
MEMORY_BYTES = 512 << 20
"""What DuckDB may use meanwhile."""
Digest = tuple[int, int | None]
"""Rows, and the sum of their hashes, in whatever order they are."""


class NotWhole(Exception):
    """What came, or what the file holds of it, is not what the collector announced: one line why."""


class _Pieces(io.RawIOBase):
    """The rows of one table as a file."""

    def __init__(self, chunks: Iterator[pb.BackupChunk]) -> None:
        self._chunks = chunks
        self._piece = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece and not self._ended:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise NotWhole("the backup ended early")
            self._piece, self._ended = memoryview(chunk.rows), chunk.end_of_table
        taken = min(len(buffer), len(self._piece))
        memoryview(buffer).cast("B")[:taken] = self._piece[:taken]
        self._piece = self._piece[taken:]
        return taken


def write(chunks: Iterator[pb.BackupChunk], path: Path, progress: Callable[[int, int], None]) -> pb.BackupContents:
    """Fill the new database `path`; what it is to hold is returned, after it was read back and found to hold it.

    `progress` is told rows done, and rows in all: each is written, then read. Raises NotWhole and StoreError.
    """
    contents = next(chunks).contents
    total = 2 * sum(table.rows for table in contents.tables)
    done = 0

    def more(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, total)

    came: dict[str, Digest] = {}
    with copying(path, MEMORY_BYTES) as connection:
        for table in contents.tables:
            connection.execute(table.sql)
            came[table.name] = _fill(connection, table, io.BufferedReader(_Pieces(chunks), _READ_BYTES), more)
        for statement in contents.indexes:
            connection.execute(statement)
        _make_views(connection, contents.views)
        connection.execute("CHECKPOINT")
    if [entry.name for entry in path.parent.iterdir()] != [path.name]:
        raise NotWhole("the database could not be written to one file")
    with copying(path, MEMORY_BYTES, read_only=True) as connection:
        for table in contents.tables:
            if _digest(connection, quoted(table.name)) != came[table.name]:
                raise NotWhole(f"the table {table.name} reads back otherwise than it came")
            more(table.rows)
    return contents


def _fill(
    connection: Connection, table: pb.BackupTable, pieces: io.BufferedReader, more: Callable[[int], None]
) -> Digest:
    rows, hashes = 0, None
    try:
        with pa.ipc.open_stream(pieces) as reader:
            for group in _groups(reader):
                connection.register("incoming", group)
                count, digest = _digest(connection, "incoming")
                connection.execute(f"INSERT INTO {quoted(table.name)} FROM incoming")
                connection.unregister("incoming")
                rows, hashes = rows + count, (hashes or 0) + (digest or 0) if count else hashes
                more(count)
        # To the end, which the next table begins after.
        while pieces.read(_READ_BYTES):
            pass
    except (pa.ArrowException, OSError) as error:
        raise NotWhole(f"the table {table.name}: {error}".partition("\n")[0]) from error
    if rows != table.rows:
        raise NotWhole(f"the table {table.name}: {rows:,} rows came of {table.rows:,}")
    return rows, hashes


def _groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows, so many at once as DuckDB writes at once: fewer it would write to its log first, and then again."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in reader:
        room = _GROUP_ROWS - rows
        waiting.append(batch.slice(0, room))
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES_MAX:
            yield pa.Table.from_batches(waiting)
            rest = batch.slice(room)
            waiting, rows, size = [rest], rest.num_rows, rest.nbytes
    if rows:
        yield pa.Table.from_batches(waiting)


def _digest(connection: Connection, table: str) -> Digest:
    [(rows, hashes)] = connection.execute(f"SELECT count(*), sum(hash(t)) FROM {table} t").fetchall()  # noqa: S608
    return rows, None if hashes is None else int(hashes)


def _make_views(connection: Connection, views: Sequence[str]) -> None:
    """One that names another is made after it."""
    waiting = list(views)
    while waiting:
        error: StoreError | None = None
        failed: list[str] = []
        for statement in waiting:
            try:
                with translated():
                    connection.execute(statement)
            except StoreError as found:
                error, failed = found, [*failed, statement]
        if error and len(failed) == len(waiting):
            raise error
        waiting = failed

"""The redo log: rows that were promised to their agents, and wait for the database's next transaction.

A transaction costs DuckDB much the same however few rows it holds, and agents want their answers soon. So rows come here first, a record
each time that answers are given, and one transaction takes many of them into the database; then the log is empty again. Who opens the
store adds what a collector that was killed has left here. A transaction is there wholly or not at all: a log whose first window is in
the database is there already.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from trimtab.collector.store import StoreError

log = logging.getLogger(__name__)

Tables = Mapping[str, pa.Table]
"""Rows by the table they belong to."""
_MAGIC = b"trimtab redo 1\n"
_ID_BYTES = 32
_NONCE_BYTES = 16
"""Each time that the log begins, others: then nothing that it held before fits behind what it holds now."""
_HEAD = struct.Struct("<II")
"""Of a record: its length, and the CRC-32 of all up to its end: what an earlier log has left behind this one's end does not fit."""
_NAME = b"table"


class Foreign(StoreError):
    """The log is not of this database, or of another state of it."""


class Redo:
    """The log of the database `database_id`. Used by one thread; `close` once."""

    def __init__(self, path: Path, database_id: str) -> None:
        """Raises StoreError."""
        self.path = path
        self._start = _MAGIC + database_id.encode().ljust(_ID_BYTES)[:_ID_BYTES]
        self._end = self._check = 0
        self._file = _opened(path)

    @property
    def size_bytes(self) -> int:
        """What waits in it."""
        return self._end

    def left(self) -> Iterator[Tables]:
        """What is in the file, as far as it is whole and of this database; a record each. Raises StoreError."""
        try:
            data = memoryview(os.pread(self._file, os.fstat(self._file).st_size, 0))
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        if not data:
            return
        if data[: len(self._start)] != self._start:
            raise Foreign(f"{self.path}: not of this database")
        at = len(self._start) + _NONCE_BYTES
        check = zlib.crc32(data[len(self._start) : at])
        while at + _HEAD.size <= len(data):
            size, said = _HEAD.unpack_from(data, at)
            record = data[at + _HEAD.size : at + _HEAD.size + size]
            check = zlib.crc32(record, check)
            # The last one may have been cut short; then nobody was told that it is there.
            if not size or len(record) < size or check != said:
                return
            yield _unpacked(record)
            at += _HEAD.size + size

    def append(self, rows: Tables) -> None:
        """On the disk when it returns. Raises StoreError: then it is as if it had not been called."""
        record = _packed(rows)
        nonce = b"" if self._end else os.urandom(_NONCE_BYTES)
        check = zlib.crc32(record, zlib.crc32(nonce, self._check))
        data = _HEAD.pack(len(record), check) + record
        if nonce:
            data = self._start + nonce + data
        try:
            _write(self._file, data, self._end)
            os.fdatasync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise StoreError(f"{self.path}: {error.strerror}") from error
        self._end, self._check = self._end + len(data), check

    def clear(self) -> None:
        """All that was in it is in the database. Not waited for: what is left here then is known to be there."""
        self._end = self._check = 0
        with suppress(OSError):
            os.ftruncate(self._file, 0)

    def set_aside(self, aside: Path) -> None:
        """Keep what is in it under another name, and begin a new one. Raises StoreError."""
        try:
            self.path.rename(aside)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        os.close(self._file)
        self._file = _opened(self.path)

    def close(self) -> None:
        os.close(self._file)


def _opened(path: Path) -> int:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _sync_directory(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return file


def _write(file: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, at)
        rest, at = rest[done:], at + done


def _sync_directory(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _packed(rows: Tables) -> bytes:
    sink = io.BytesIO()
    for name, table in rows.items():
        schema = table.schema.with_metadata({_NAME: name})
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(table)
    return sink.getvalue()


def _unpacked(record: memoryview) -> Tables:
    source = pa.BufferReader(pa.py_buffer(record))
    rows: dict[str, pa.Table] = {}
    while source.tell() < source.size():
        with pa.ipc.open_stream(source) as stream:
            rows[stream.schema.metadata[_NAME].decode()] = stream.read_all().replace_schema_metadata()
    return rows

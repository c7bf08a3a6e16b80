"""The DuckDB database, and the one file that knows it is one."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
from numpy.typing import NDArray

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import Clock

log = logging.getLogger(__name__)

Connection = duckdb.DuckDBPyConnection
FILE = "trimtab.duckdb"
SCHEMA_VERSION = "3"
_KEYED = ("series", "nodes", "streams", "incident_records")
"""Tables with a primary key: with `subjects`, what must be readable before anything can be stored."""
_TEMPORARY_BYTES_MAX = 1 << 30
_CORRUPT = re.compile(r"not a valid DuckDB database|[Cc]orrupt|checksum|deserializ|Serialization Error|INTERNAL Error")


class StoreError(Exception):
    """The database could not do it: its own first line."""


class StoreLost(StoreError):
    """The database stopped working until it is opened again."""


class Store:
    """One open database. Each thread works on a cursor of its own."""

    def __init__(self, path: Path, memory_bytes_max: int, read_only: bool = False) -> None:
        """Raises Corrupt, and TrimtabError when the file cannot be used for another reason."""
        self.path = path
        self._lock = threading.Lock()
        with _opening(path):
            self._root = duckdb.connect(path, read_only=read_only, config=_config(memory_bytes_max))
            self._prepare(read_only)

    def _prepare(self, read_only: bool) -> None:
        try:
            self._root.execute("SET GLOBAL TimeZone = 'UTC'")
            known = self._root.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchall()
            if not known and not read_only:
                with transaction(self._root):
                    self._root.execute(Path(__file__).with_name("schema.sql").read_text())
            found = self._root.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
            if found != [(SCHEMA_VERSION,)]:
                version = found[0][0] if found else "unknown"
                message = (
                    f"{self.path}: written by another trimtab (schema {version}, not {SCHEMA_VERSION}): move it away"
                )
                raise TrimtabError(message, Exit.STATE)
            if not read_only:
                self._read_through()
            self._root.execute("SET lock_configuration = true")
        except BaseException:
            self._root.close()
            raise

    def _read_through(self) -> None:
        # DuckDB compares a block's checksum only when it first needs it; a broken one would stop the writer for good.
        for table in (*_KEYED, "subjects"):
            self._root.execute(f"SELECT bit_xor(hash(COLUMNS(*))) FROM {table}").fetchall()  # noqa: S608 - our own names
        self._root.execute("BEGIN TRANSACTION")
        for table in _KEYED:
            # The key's index is read by nothing else.
            self._root.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table} LIMIT 1")  # noqa: S608
        self._root.execute("ROLLBACK")

    def cursor(self) -> Connection:
        """A connection of one's own to the same database."""
        with self._lock:
            return self._root.cursor()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A cursor within a read-only transaction. Raises StoreError."""
        with translated():
            cursor = self.cursor()
            try:
                cursor.execute("BEGIN TRANSACTION READ ONLY")
                yield cursor
            finally:
                # Where the statement failed, so did the transaction.
                with suppress(duckdb.Error):
                    cursor.execute("ROLLBACK")
                cursor.close()

    def close(self) -> None:
        """Write everything to the file, and let go of it."""
        with self._lock, suppress(duckdb.Error):
            self._root.close()


class Corrupt(Exception):
    """The file is no database, or a broken one."""


def open_or_set_aside(path: Path, memory_bytes_max: int, clock: Clock) -> Store:
    """The store in `path`. A file that is no database is renamed, said so, and a new one begun. Raises TrimtabError."""
    try:
        return Store(path, memory_bytes_max)
    except Corrupt as error:
        aside = path.with_name(f"{path.name}.corrupt-{clock.unix_ns() // 10**9}")
        for suffix in ("", ".wal"):
            with suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        log.error("%s; set aside as %s, and a new database begun", error, aside)
        return Store(path, memory_bytes_max)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All or nothing. Raises StoreError."""
    with translated():
        connection.execute("BEGIN TRANSACTION")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # A failed COMMIT has ended the transaction by itself.
            with suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise


def insert(connection: Connection, statement: str, columns: Mapping[str, NDArray[Any]]) -> None:
    """Run `statement`, which finds `columns` as the table `incoming`.

    Only numbers and fixed-width text: DuckDB takes those as they lie in memory, and looks at every other object by itself.
    """
    connection.register("incoming", dict(columns))
    try:
        connection.execute(statement)
    finally:
        connection.unregister("incoming")


@contextmanager
def translated() -> Iterator[None]:
    """DuckDB's errors as ours."""
    try:
        yield
    except duckdb.FatalException as error:
        raise StoreLost(first_line(error)) from error
    except duckdb.Error as error:
        lost = "database has been invalidated" in str(error)
        raise (StoreLost if lost else StoreError)(first_line(error)) from error


def first_line(error: Exception) -> str:
    """What a person needs of DuckDB's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _config(memory_bytes_max: int) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "enable_external_access": False,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
        # Else a SELECT could name a Python variable of ours.
        "python_enable_replacements": False,
        "memory_limit": f"{memory_bytes_max // 1000}KB",
        "max_temp_directory_size": f"{_TEMPORARY_BYTES_MAX // 1000}KB",
        "threads": 2,
    }


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, StoreError) as error:
        line = first_line(error)
        holder = re.search(r"lock is held in (\S+) \(PID (\d+)\)", line)
        if holder:
            program, pid = holder.groups()
            message = f"{path}: in use by process {pid} ({program}): stop it, or give another directory with --state"
            raise TrimtabError(message, Exit.STATE) from error
        if _CORRUPT.search(line):
            raise Corrupt(f"{path}: {line}") from error
        raise TrimtabError(f"{path}: {line}; give another directory with --state", Exit.STATE) from error

"""The DuckDB database, and the one file that knows it is one."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from trimtab import Exit, TrimtabError
from trimtab.collector import marks
from trimtab.collector.arrow import Columns, table
from trimtab.collector.rollmarks import RollMarks
from trimtab.collector.series import KINDS, SKETCH

log = logging.getLogger(__name__)

Connection = duckdb.DuckDBPyConnection
FILE = "trimtab.duckdb"
SCHEMA_VERSION = "6"
_NEEDED = (
    "meta",
    "series",
    "nodes",
    "stream_records",
    "subjects",
    "incident_records",
    "acknowledgements",
    "silences",
    "overrides",
    "late_minutes",
)
"""What must be readable before anything can be stored."""
_VIEWS = "-- Views."
HALVES = (0, 1)
"""Of the samples: windows go into one while the other is written to the file."""
_TEMPORARY_BYTES_MAX = 1 << 30
_CORRUPT = re.compile(
    r"not a valid DuckDB database|Could not read enough bytes|[Cc]orrupt|checksum|deserializ|Serialization Error|INTERNAL Error"
)


class StoreError(Exception):
    """The database could not do it: its own first line."""


class StoreDamaged(StoreError):
    """What was asked for lies in a part of the file that is broken."""


class StoreLost(StoreError):
    """The database stopped working until it is opened again."""


class Store:
    """One open database. Each thread works on a cursor of its own."""

    def __init__(self, path: Path, memory_bytes_max: int, read_only: bool = False) -> None:
        """Raises Corrupt, and TrimtabError when the file cannot be used for another reason."""
        self.path = path
        self.altering = threading.Lock()
        """Held, until the commit, by who changes the columns of samples_* or deletes rows of it: DuckDB refuses one of the two."""
        self.half = HALVES[0]
        """Where the writer puts samples now."""
        self.checkpointing = False
        """Whether the file is being brought up to date: who changes rows rather than adding some would wait for it."""
        self.rolled = RollMarks()
        """How far windows are rolled up."""
        self._lock = threading.Lock()
        with opening(path):
            self._root = duckdb.connect(path, read_only=read_only, config=_config(memory_bytes_max))
            self._prepare(read_only)

    def _prepare(self, read_only: bool) -> None:
        try:
            self._root.execute("SET GLOBAL TimeZone = 'UTC'")
            known = self._root.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchall()
            if not known and not read_only:
                with transaction(self._root):
                    tables, views = Path(__file__).with_name("schema.sql").read_text().split(_VIEWS)
                    self._root.execute(tables)
                    self._root.execute("INSERT INTO meta VALUES ('id', ?)", [uuid.uuid4().hex])
                    for kind in KINDS.values():
                        self.show_columns(self._root, kind)
                    self._root.execute(views)
            found = self._root.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
            if found != [(SCHEMA_VERSION,)]:
                version = found[0][0] if found else "unknown"
                raise Outdated(self.path, version)
            if not read_only:
                self._read_through()
                self._try_checkpoint()
                self.rolled.advance(marks.read(self._root, marks.ROLLED_MINUTES) or 0)
            self._root.execute("SET lock_configuration = true")
        except BaseException:
            self._root.close()
            raise

    def _read_through(self) -> None:
        # DuckDB compares a block's checksum only when it first needs it; a broken one would stop the writer for good.
        for name in _NEEDED:
            self._root.execute(f"SELECT bit_xor(hash(COLUMNS(*))) FROM {name}").fetchall()  # noqa: S608 - our own names

    def _try_checkpoint(self) -> None:
        if self._room() < self.wal_bytes():
            return
        # One that fails on a broken block stops the database for good: at once, and not again and again after every start.
        try:
            self._root.execute("CHECKPOINT")
        except duckdb.Error as error:
            line = first_line(error)
            if _CORRUPT.search(line):
                raise CorruptFile(f"{self.path}: {line}") from error
            # As on a full disk, it is tried again later.
            if isinstance(error, duckdb.FatalException):
                raise

    def show_columns(self, connection: Connection, kind: str) -> None:
        """Make the views `samples_KIND` and `fingerprint_KIND` anew, with the columns that their tables have now."""
        found = connection.execute(
            "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index", [f"samples_{kind}_0"]
        ).fetchall()
        names = [f'"{name}"' for (name,) in found]
        shown = [f"f.{name}" for name in names[2:] if not name.endswith(f'{SKETCH}"')]
        halves = " UNION ALL ".join(f"SELECT {', '.join(names)} FROM samples_{kind}_{half}" for half in HALVES)  # noqa: S608
        connection.execute(f"CREATE OR REPLACE VIEW samples_{kind} AS {halves}")
        connection.execute(
            f"CREATE OR REPLACE VIEW fingerprint_{kind} AS SELECT s.node, s.id AS subject, f.start, {', '.join(shown)} "  # noqa: S608
            f"FROM samples_{kind} f JOIN subjects s USING (subject)"
        )

    @property
    def id(self) -> str:
        """Which database it is: its redo log is of no other. Raises StoreError."""
        with translated():
            found = self.cursor().execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        return str(found[0]) if found else ""

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

    def _room(self) -> int:
        """Bytes that a checkpoint may write: in the file, and on its disk."""
        with translated():
            [(inside,)] = (
                self.cursor()
                .execute("SELECT sum(block_size * free_blocks)::BIGINT FROM pragma_database_size()")
                .fetchall()
            )
        return int(inside) + shutil.disk_usage(self.path.parent).free

    def wal_bytes(self) -> int:
        """How large the write-ahead log is."""
        try:
            return Path(f"{self.path}.wal").stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> None:
        """Bring the file up to date with what was committed, beside the writer, which goes on in the other half. Raises StoreError."""
        free, needed = self._room(), self.wal_bytes()
        if free < needed:
            # DuckDB would stop for good when it comes to the disk's end.
            raise StoreError(f"a checkpoint needs {needed >> 20} MB of disk, and {free >> 20} are free")
        # Between two transactions of the writer: the commit of one that is under way would wait until all is written.
        with self.rolled.writing():
            self.half = HALVES[1 - self.half]
            self.checkpointing = True
        connection = self.cursor()
        try:
            with translated():
                connection.execute("CHECKPOINT")
        finally:
            self.checkpointing = False
            connection.close()

    def close(self) -> None:
        """Write everything to the file, and let go of it."""
        with self._lock, suppress(duckdb.Error):
            self._root.close()


@contextmanager
def copying(path: Path, memory_bytes_max: int, read_only: bool = False) -> Iterator[Connection]:
    """The database in `path`, whatever tables it has; a new one unless `read_only`. Raises StoreError."""
    # Two threads would each fill row groups of their own, and leave them half full.
    config = {**_config(memory_bytes_max), "threads": 1}
    with translated(), duckdb.connect(path, read_only=read_only, config=config) as connection:
        connection.execute("SET lock_configuration = true")
        yield connection


class Corrupt(Exception):
    """The file is no database, or a broken one."""


class CorruptFile(Corrupt):
    """It is not its log that is broken."""


class Outdated(TrimtabError):
    """The file is of another version of the tables."""

    def __init__(self, path: Path, version: str) -> None:
        message = f"{path}: written by another trimtab (schema {version}, not {SCHEMA_VERSION}): move it away"
        super().__init__(message, Exit.STATE)
        self.version = version


def attached(path: Path, old: Path | None, memory_bytes_max: int) -> Connection:
    """`path` as it is, without any look at its tables, and `old` beside it to be read, as the database `old`.

    Raises Corrupt and TrimtabError.
    """
    config = _config(memory_bytes_max)
    config["enable_external_access"] = True
    with opening(path):
        connection = duckdb.connect(path, config=config)
    if old is not None:
        with opening(old):
            name = str(old).replace("'", "''")
            connection.execute(f"ATTACH '{name}' AS old (READ_ONLY)")
    return connection


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


def insert(connection: Connection, statement: str, columns: Columns, times: Sequence[str] = ()) -> None:
    """Run `statement`, which finds `columns` as the table `incoming`; `times` among them are microseconds since the epoch."""
    insert_rows(connection, statement, table(columns, times))


def insert_rows(connection: Connection, statement: str, rows: pa.Table) -> None:
    """Run `statement`, which finds `rows` as the table `incoming`."""
    connection.register("incoming", rows)
    try:
        connection.execute(statement)
    finally:
        connection.unregister("incoming")


def arrow_batches(
    connection: Connection, question: str, parameters: dict[str, Any], rows_max: int
) -> Iterator[pa.RecordBatch]:
    """The answer, so many rows at once, in Arrow's columns."""
    yield from connection.execute(question, parameters).to_arrow_reader(rows_max)


@contextmanager
def translated() -> Iterator[None]:
    """DuckDB's errors as ours."""
    try:
        yield
    except duckdb.FatalException as error:
        raise StoreLost(first_line(error)) from error
    except duckdb.Error as error:
        lost, line = "database has been invalidated" in str(error), first_line(error)
        raise (StoreLost if lost else StoreDamaged if _CORRUPT.search(line) else StoreError)(line) from error


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
        # One thread a question: ingest keeps a core for itself, and an insert needs no scheduler.
        "threads": 1,
        # Never by itself, within a commit: `checkpoint` does it beside the writer.
        "checkpoint_threshold": "1TB",
        # A third less work at each checkpoint, and smaller files.
        "storage_compatibility_version": "v1.5.0",
    }


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """DuckDB's errors about a file as ours: Corrupt and TrimtabError."""
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

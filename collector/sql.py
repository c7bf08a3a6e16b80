"""Answers one SQL question: read only, bounded in time, rows and bytes, and touching nothing but this database."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.store import Connection, Store, StoreError

SQL_CHARACTERS_MAX = 65536
REPLY_BYTES_MAX = 64 << 20
CHUNK_BYTES = 1 << 20
ROW_BYTES_MAX = 4 << 20
_FETCH_ROWS = 256
_BLOB_BYTES_SHOWN = 64
_KINDS = {"SELECT", "EXPLAIN"}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?", re.IGNORECASE)
# Others read files, run text as SQL, or switch something of the database.
_TABLE_FUNCTIONS = set(
    re.findall(
        r"\w+",
        """range generate_series unnest repeat repeat_row json_each json_tree histogram histogram_values summary
    duckdb_columns duckdb_constraints duckdb_databases duckdb_functions duckdb_indexes duckdb_keywords duckdb_memory
    duckdb_schemas duckdb_settings duckdb_tables duckdb_types duckdb_views pragma_database_size pragma_storage_info
    pragma_table_info pragma_version""",
    )
)


class QuestionError(Exception):
    """The question cannot be answered: one line why."""


def ask(store: Store, sql: str, seconds_max: float, rows_max: int) -> Iterator[pb.SqlChunk]:
    """The answer, in chunks; the first one names the columns. Raises QuestionError."""
    if len(sql) > SQL_CHARACTERS_MAX:
        raise QuestionError(f"the statement is over {SQL_CHARACTERS_MAX} characters")
    try:
        with store.reading() as connection, limited(connection, seconds_max) as expired:
            _check(connection, sql)
            connection.execute(sql)
            yield from _chunks(connection, rows_max, expired)
    except StoreError as error:
        raise QuestionError(str(error)) from error


@contextmanager
def limited(connection: Connection, seconds_max: float) -> Iterator[threading.Event]:
    """An event that is set once the time is over; the statement is interrupted then. What is raised after that is QuestionError."""
    done, expired = threading.Event(), threading.Event()

    def interrupt() -> None:
        if not done.wait(seconds_max):
            expired.set()
            # Again, should the first one have fallen between two statements.
            while not done.wait(0.1):
                connection.interrupt()

    watch = threading.Thread(target=interrupt, name="query limit", daemon=True)
    watch.start()
    try:
        yield expired
    except Exception:
        if expired.is_set():
            raise QuestionError(f"took longer than {seconds_max:g} s (collector.query_seconds_max)") from None
        raise
    finally:
        done.set()
        watch.join()


def _check(connection: Connection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QuestionError(f"one statement at a time; this is {len(statements)}")
    if statements[0].type.name not in _KINDS:
        raise QuestionError(
            f"{statements[0].type.name} is not possible here: only questions (SELECT, DESCRIBE, SHOW …)"
        )
    # DuckDB's own parser says which table functions are called, wherever they hide.
    question = _EXPLAIN.sub("", sql, count=1) if statements[0].type.name == "EXPLAIN" else sql
    [(text,)] = connection.execute("SELECT json_serialize_sql(?)", [question]).fetchall()
    called: set[str] = set()

    def collect(node: dict[str, Any]) -> dict[str, Any]:
        if node.get("type") == "TABLE_FUNCTION":
            called.add(node["function"]["function_name"].lower())
        return node

    try:
        tree = json.loads(text, object_hook=collect)
    except RecursionError:
        raise QuestionError("the statement is nested too deeply") from None
    if tree["error"]:
        raise QuestionError("only questions are possible here (SELECT, DESCRIBE, SHOW …)")
    forbidden = sorted(called - _TABLE_FUNCTIONS)
    if forbidden:
        raise QuestionError(f"{forbidden[0]}() is not possible here: only this database can be read")


def _chunks(connection: Connection, rows_max: int, expired: threading.Event) -> Iterator[pb.SqlChunk]:
    columns = [(name, str(kind)) for name, kind, *_ in connection.description or ()]
    for name, kind in columns:
        if "WITH TIME ZONE" in kind:
            raise QuestionError(f"column {name} has a time zone; all times here are UTC: cast it, ({name})::TIMESTAMP")
    chunk = pb.SqlChunk(columns=[name for name, _ in columns], types=[kind for _, kind in columns])
    rows = size = total = 0
    while batch := connection.fetchmany(_FETCH_ROWS):
        for row in batch:
            if expired.is_set():
                raise QuestionError("")
            text = json.dumps([_cell(value) for value in row], ensure_ascii=False, allow_nan=False)
            if len(text) > ROW_BYTES_MAX // 4:
                raise QuestionError(f"row {rows + 1} is over {ROW_BYTES_MAX // 4} characters")
            if rows == rows_max or total > REPLY_BYTES_MAX:
                chunk.truncated = True
                yield chunk
                return
            chunk.rows.append(text)
            rows, size, total = rows + 1, size + len(text), total + len(text)
            if size > CHUNK_BYTES:
                yield chunk
                chunk, size = pb.SqlChunk(), 0
    yield chunk


def _cell(value: Any) -> Any:  # noqa: PLR0911 - one line a type
    """As JSON has it. What is no number, text or truth value becomes text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case decimal.Decimal():
            return float(value)
        case datetime.datetime():
            return value.isoformat() + "Z"
        case bytes():
            return value.hex() if len(value) <= _BLOB_BYTES_SHOWN else f"{len(value)} bytes"
        case list() | tuple():
            return [_cell(item) for item in value]
        case dict():
            return {str(key): _cell(item) for key, item in value.items()}
        case _:
            return str(value)


def quoted(name: str) -> str:
    """A name within a statement."""
    return '"' + name.replace('"', '""') + '"'

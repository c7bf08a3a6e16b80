"""A question reads this database, for a while, and does nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.agent.clock import SystemClock
from trimtab.collector.opening import open_or_set_aside
from trimtab.collector.sql import QuestionError, ask
from trimtab.collector.store import FILE, Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = open_or_set_aside(tmp_path_factory.mktemp("sql") / FILE, 128 << 20, SystemClock())
    yield opened
    opened.close()


def rows(store: Store, sql: str, seconds: float = 10, most: int = 1000) -> list[object]:
    return [json.loads(row) for chunk in ask(store, sql, seconds, most) for row in chunk.rows]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select 1;",
        "-- a comment\nSELECT 1",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "VALUES (1)",
        "FROM range(3)",
        "DESCRIBE nodes",
        "SHOW TABLES",
        "SUMMARIZE nodes",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT count(*) FROM windows WHERE start > now() - INTERVAL 1 HOUR",
        *(
            f"SELECT * FROM {view}"
            for view in ("instances", "latency", "fingerprints", "events", "incidents", "decisions")
        ),
    ],
)
def test_questions(store: Store, sql: str) -> None:
    assert list(ask(store, sql, 10, 1000))


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE windows",
        "DROP TABLE windows",
        "DELETE FROM windows",
        "UPDATE streams SET high_water_mark = 0",
        "INSERT INTO meta VALUES ('a', 'b')",
        "CREATE TABLE a (b INT)",
        "CREATE TEMP TABLE a (b INT)",
        "CREATE MACRO m() AS 1",
        "EXPLAIN ANALYZE DELETE FROM windows",
        "EXPLAIN ANALYZE SELECT * FROM enable_logging()",
        "COPY windows TO '/tmp/stolen.csv'",
        "COPY meta FROM '/etc/passwd'",
        "EXPORT DATABASE '/tmp/stolen'",
        "ATTACH '/tmp/other.duckdb'",
        "USE memory",
        "SET memory_limit = '1TB'",
        "RESET ALL",
        "PRAGMA enable_profiling",
        "PRAGMA database_list",
        "CALL enable_logging()",
        "CHECKPOINT",
        "FORCE CHECKPOINT",
        "VACUUM",
        "INSTALL httpfs",
        "LOAD httpfs",
        "BEGIN",
        "COMMIT",
        "PREPARE a AS SELECT 1",
        "EXECUTE a",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM READ_BLOB('/etc/passwd')",
        "SELECT (SELECT content FROM read_text('/etc/passwd'))",
        "WITH a AS (FROM read_text('/etc/passwd')) FROM a",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM '/etc/passwd.csv'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM query_table('windows')",
        "SELECT * FROM json_execute_serialized_sql('{}')",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM checkpoint()",
        "SELECT * FROM force_checkpoint()",
        "SELECT * FROM pandas_scan(0)",
        "SELECT * FROM arrow_scan(0, 0, 0)",
        "SELECT * FROM python_map_function()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
        "SELECT * FROM store",
        "SELECT now()",
        "SELECT nothing FROM nowhere",
        "SELECT " + "1+" * 20000 + "1",
        "SELECT " + "(" * 30000,
        "SELECT " + "[" * 5000 + "]" * 5000,
        "SELECT '" + "x" * 70000 + "'",
        "SELECT repeat('x', 3000000)",
    ],
    ids=lambda sql: sql[:60],
)
def test_everything_else_is_one_line_of_refusal(store: Store, sql: str) -> None:
    with pytest.raises(QuestionError) as caught:
        list(ask(store, sql, 10, 1000))
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)
    assert not Path("/tmp/stolen.csv").exists()


def test_a_question_that_takes_too_long_is_stopped(store: Store) -> None:
    with pytest.raises(QuestionError, match=r"longer than 0\.3 s \(collector\.query_seconds_max\)"):
        rows(store, "SELECT count(*) FROM range(1000000000000::BIGINT) a(i) WHERE sin(i) > 2", seconds=0.3)
    assert rows(store, "SELECT 1") == [[1]]


def test_rows_beyond_the_limit_are_left_out_and_said_so(store: Store) -> None:
    chunks = list(ask(store, "FROM range(1000000000)", 10, 700))
    assert sum(len(chunk.rows) for chunk in chunks) == 700
    assert [chunk.truncated for chunk in chunks][-1]
    assert not list(ask(store, "FROM range(700)", 10, 700))[-1].truncated


def test_a_long_answer_comes_in_chunks_and_ends(store: Store) -> None:
    chunks = list(ask(store, "SELECT repeat('x', 100000) FROM range(1000)", 30, 1000))
    assert max(chunk.ByteSize() for chunk in chunks) < 2 << 20
    assert chunks[-1].truncated
    assert [list(c.columns) for c in chunks[1:]] == [[]] * (len(chunks) - 1)


def test_cells(store: Store) -> None:
    cells = """SELECT 'nan'::DOUBLE, '-inf'::DOUBLE, 1.5::DECIMAL(4, 1), TIMESTAMP '2026-01-02 03:04:05.678', NULL, TRUE,
        'é"'::VARCHAR, '\\xAB'::BLOB, repeat('a', 100)::BLOB, [1, NULL], {'a': 'nan'::FLOAT}, MAP {1: DATE '2026-01-02'},
        9007199254740993, INTERVAL 1 DAY"""
    wanted = [
        None,
        None,
        1.5,
        "2026-01-02T03:04:05.678000Z",
        None,
        True,
        'é"',
        "ab",
        "100 bytes",
        [1, None],
        {"a": None},
    ]
    assert rows(store, cells) == [[*wanted, {"1": "2026-01-02"}, 9007199254740993, "1 day, 0:00:00"]]


def test_an_empty_answer_still_names_its_columns(store: Store) -> None:
    [chunk] = ask(store, "SELECT node, spool FROM streams", 10, 10)
    assert (list(chunk.columns), list(chunk.types), list(chunk.rows)) == (["node", "spool"], ["VARCHAR", "VARCHAR"], [])

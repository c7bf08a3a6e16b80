"""The forms of an answer: each says the same, keeps its types, and is whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.collector.sender import collecting, latency, publish, schema, window
from tests.collector.test_cli import invoke
from tests.collector.test_query import until
from tests.test_command import assert_one_line, trimtab
from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector.beside import beside
from trimtab.collector.instances_cli import instances
from trimtab.collector.latency_cli import latency as latency_command
from trimtab.collector.nodes_cli import nodes
from trimtab.collector.output import Column, Form, write
from trimtab.collector.query_cli import query
from trimtab.collector.series_cli import series

S = schema()
TYPES: list[tuple[str, str, Any]] = [
    ("1::TINYINT", "TINYINT", 1),
    ("(-32768)::SMALLINT", "SMALLINT", -32768),
    ("7", "INTEGER", 7),
    ("9223372036854775807", "BIGINT", 9223372036854775807),
    ("18446744073709551615::UBIGINT", "UBIGINT", 18446744073709551615),
    ("sum(3::BIGINT)", "BIGINT", 3),
    ("170141183460469231731687303715884105727::HUGEINT", "DOUBLE", 2.0**127),
    ("0.1::DOUBLE", "DOUBLE", 0.1),
    ("1.5::DECIMAL(9, 2)", "DOUBLE", 1.5),
    ("0.5::FLOAT", "FLOAT", 0.5),
    ("true", "BOOLEAN", True),
    ("'a,\"b\"\n'", "VARCHAR", 'a,"b"\n'),
    ("TIMESTAMP '2026-02-03 04:05:06.789'", "TIMESTAMP", datetime(2026, 2, 3, 4, 5, 6, 789000)),  # noqa: DTZ001 - as DuckDB has it
    ("DATE '2026-02-03'", "DATE", date(2026, 2, 3)),
    ("[1, NULL, 3]", "INTEGER[]", [1, None, 3]),
    ("[[0.5], []]::DOUBLE[][]", "DOUBLE[][]", [[0.5], []]),
    ("MAP {'a': 1}", "VARCHAR", '{"a": 1}'),
    ("{'a': [1]}", "VARCHAR", '{"a": [1]}'),
    ("INTERVAL 1 DAY", "VARCHAR", "1 day, 0:00:00"),
    ("'nan'::DOUBLE", "DOUBLE", None),
]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize(("sql", "kind", "value"), TYPES, ids=[sql for sql, *_ in TYPES])
def test_parquet_keeps_the_type(tmp_path: Path, sql: str, kind: str, value: Any) -> None:
    with collecting(tmp_path) as (collector, *_):
        for row, expected in ((sql, value), (f"CASE WHEN {sql} IS NULL THEN {sql} END", None)):
            file = tmp_path / "out.parquet"
            result = invoke(query, f"SELECT {row} AS x", "--parquet", str(file), port=collector.port)
            assert result.exception is None, result.exception
            assert result.stdout == ""
            [(found, of)] = duckdb.execute("SELECT x, typeof(x) FROM read_parquet(?)", [str(file)]).fetchall()
            assert of == kind or expected is None
            assert found == expected


def test_every_command_says_the_same_in_each_form(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, stub):
        publish(telemetry, S, *(window(seq, S, sketches=[latency([0.01])]) for seq in range(1, 4)))
        until(lambda: bool(stub.Nodes(q.NodesRequest()).nodes[0].instances))
        cases: list[tuple[Any, ...]] = [(nodes,), (instances,), (series,), (latency_command,), (query, "FROM streams")]
        for number, (command, *arguments) in enumerate(cases):
            file = tmp_path / f"{number}.parquet"
            assert invoke(command, *arguments, "--parquet", str(file), port=collector.port).exception is None
            table = pq.read_table(file)
            rows = json.loads(invoke(command, *arguments, "--json", port=collector.port).stdout)
            printed = invoke(command, *arguments, "--csv", port=collector.port).stdout
            assert len(rows) == table.num_rows == printed.count("\n") - 1 > 0
            assert printed.splitlines()[0] == ",".join(table.column_names)
            assert not any(pa.types.is_null(field.type) for field in table.schema)


def test_a_parquet_file_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    file.write_bytes(b"older")

    def rows() -> Any:
        yield {"a": 1}
        raise TrimtabError("the collector went away", Exit.UNREACHABLE)

    with pytest.raises(TrimtabError, match="went away"):
        write(Form(parquet=file), [Column("a", "BIGINT")], rows())
    assert (file.read_bytes(), names(tmp_path)) == (b"older", ["out.parquet"])
    write(Form(parquet=file), [Column("a", "BIGINT")], [{"a": 1}, {"a": None}])
    assert pq.read_table(file).to_pylist() == [{"a": 1}, {"a": None}]
    assert names(tmp_path) == ["out.parquet"]


def test_no_rows_have_types_too(tmp_path: Path) -> None:
    file = tmp_path / "out.parquet"
    with collecting(tmp_path) as (collector, *_):
        invoke(query, "SELECT seq, start FROM windows", "--parquet", str(file), port=collector.port)
    assert duckdb.execute("SELECT column_type FROM (DESCRIBE FROM read_parquet(?))", [str(file)]).fetchall() == [
        ("BIGINT",),
        ("TIMESTAMP",),
    ]


@pytest.mark.parametrize("name", ["nowhere/out.parquet", "fifo", "full/out.parquet"])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "full").symlink_to("/proc")
    with collecting(tmp_path / "state") as (collector, *_):
        result = invoke(query, "SELECT 1", "--parquet", str(tmp_path / name), port=collector.port)
    assert isinstance(result.exception, TrimtabError)
    assert result.exception.exit_code == Exit.STATE
    assert str(tmp_path / name) in str(result.exception)
    assert not [entry for entry in names(tmp_path) if entry.startswith(".")]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("older")

    def fill() -> None:
        with beside(file, replace=True) as part:
            part.symlink_to("/dev/full")
            part.write_text("x")

    with pytest.raises(TrimtabError, match="No space left"):
        fill()
    assert file.read_text() == "older"
    assert names(tmp_path) == ["out"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("older")
    (tmp_path / "link").symlink_to("real")
    with beside(tmp_path / "link", replace=True) as part:
        part.write_text("newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "newer"


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_rows_are_printed_as_they_come(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[int] = []

    def rows() -> Any:
        for number in range(20_000):
            printed.append(number)
            yield {"a": number}

    class Full(Exception):
        pass

    class Short:
        def __init__(self) -> None:
            self.size = 0

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> None:
            self.size += len(text)
            if self.size > 1000:
                raise Full

    monkeypatch.setattr(sys, "stdout", Short())
    with pytest.raises(Full):
        write(Form(json=form == "--json", csv=form == "--csv"), [Column("a", "BIGINT")], rows())
    monkeypatch.undo()
    assert len(printed) < 1000


def test_json_that_broke_off_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> Any:
        yield {"a": 1}
        raise TrimtabError("the collector went away")

    with pytest.raises(TrimtabError):
        write(Form(json=True), [Column("a", "BIGINT")], rows())
    with pytest.raises(json.JSONDecodeError):
        json.loads(capsys.readouterr().out)
    write(Form(json=True), [Column("a", "BIGINT")], [])
    assert json.loads(capsys.readouterr().out) == []


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, *_):
        done = subprocess.run(
            f"{sys.executable} -m trimtab query 'FROM range(10000)' --csv --collector 127.0.0.1:{collector.port} | head -2",
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert (done.stdout, done.stderr) == ("range\n0\n", "")


def test_one_form_at_a_time(tmp_path: Path) -> None:
    for forms in (["--json", "--csv"], ["--csv", "--parquet", str(tmp_path / "x")]):
        assert isinstance(invoke(query, "SELECT 1", *forms).exception, SystemExit)
        assert_one_line(trimtab("query", "SELECT 1", *forms), Exit.USAGE, "one of --json, --csv and --parquet")


def test_every_table_has_every_form() -> None:
    from trimtab.__main__ import cli

    context = click.Context(cli)
    for name in ("nodes", "instances", "series", "query", "latency", "talkers"):
        command = cli.get_command(context, name)
        assert command is not None
        assert {"--json", "--csv", "--parquet"} <= {option for p in command.params for option in p.opts}

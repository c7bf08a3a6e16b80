"""A copy of the store, made while windows come in: one moment of it, whole, and a database to start on."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest

from tests.collector.sender import Sending, ask, collecting, hello, latency, publish, schema, window
from tests.collector.test_cli import invoke
from tests.collector.test_query import until
from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector import query as serving
from trimtab.collector.backup_cli import backup
from trimtab.collector.store import FILE

S = schema({"instance": (["queue_depth", "requests_per_second"], ["n1/8080", "n1/8081"])})
BREACHES = """
SELECT node, spool, count(*), count(DISTINCT seq), any_value(s.windows)
FROM windows JOIN streams s USING (node, spool) GROUP BY ALL HAVING count(*) <> count(DISTINCT seq) OR count(*) <> any_value(s.windows)
"""
MARK_AND_ROWS = """
SELECT max(s.high_water_mark), count(*), count(DISTINCT seq), max(seq) FROM windows JOIN streams s USING (node, spool)
"""
Rows = list[tuple[Any, ...]]


def windows(first: int, last: int) -> list[Any]:
    return [window(seq, S, sketches=[latency([0.01, 0.02 * seq])]) for seq in range(first, last + 1)]


def tables(path: Path) -> dict[str, Rows]:
    """Every row of every table of a file, in some fixed order."""
    with duckdb.connect(path, read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
        return {name: sorted(map(repr, connection.execute(f'FROM "{name}"').fetchall())) for (name,) in names}  # type: ignore[misc]


def objects(path: Path) -> Rows:
    """All that the catalog names. The text of a view is not the same twice: DuckDB keeps a set in it."""
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(
            """SELECT 'table', table_name, sql FROM duckdb_tables()
            UNION ALL SELECT 'column', table_name || '.' || column_name, data_type FROM duckdb_columns() WHERE NOT internal
            UNION ALL SELECT 'view', view_name, '' FROM duckdb_views() WHERE NOT internal
            UNION ALL SELECT 'index', index_name, sql FROM duckdb_indexes()
            UNION ALL SELECT 'sequence', sequence_name, sql FROM duckdb_sequences()
            UNION ALL SELECT 'type', type_name, '' FROM duckdb_types() WHERE NOT internal
            UNION ALL SELECT 'macro', function_name, '' FROM duckdb_functions() WHERE NOT internal
            ORDER BY ALL"""
        ).fetchall()


def one(path: Path, sql: str) -> Rows:
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(sql).fetchall()


def leftovers(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.name.startswith("."))


@contextmanager
def stored(tmp_path: Path, count: int = 30) -> Iterator[Any]:
    with collecting(tmp_path / "collector") as running:
        publish(running[1], S, *windows(1, count))
        yield running


def test_the_copy_has_what_was_stored_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    with stored(tmp_path) as (collector, _, query):
        result = invoke(backup, str(copy), port=collector.port)
        assert result.exception is None, result.output
        assert "read back and found whole" in result.stdout
        assert objects(copy)
        for question in ("SELECT count(*), sum(seq)::BIGINT FROM windows", "SELECT count(*) FROM fingerprints"):
            assert [list(row) for row in one(copy, question)] == ask(query, question)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert leftovers(tmp_path) == []


def test_a_copy_made_while_windows_come_in_is_one_moment_of_the_store(tmp_path: Path) -> None:
    acknowledged = 0
    enough = threading.Event()

    def send(telemetry: Any) -> None:
        nonlocal acknowledged
        stream = Sending(telemetry, hello(), S)
        stream.next()
        for seq in range(1, 100_000):
            # New series come up while it goes on: the tables change below the copy.
            extra = schema({"instance": ([f"queue_{seq // 50}"], ["n1/8080"])})
            if seq % 50 == 0:
                stream.send(extra, window(seq, extra))
            else:
                stream.send(*([S] if seq % 50 == 1 else []), window(seq, S, sketches=[latency([0.01])]))
            acknowledged = stream.next().ack.seq
            if enough.is_set():
                break
        stream.finish()

    with collecting(tmp_path / "collector") as (collector, telemetry, query):
        sender = threading.Thread(target=send, args=[telemetry])
        sender.start()
        try:
            for number in range(4):
                reached = acknowledged + 40
                until(lambda reached=reached: acknowledged >= reached)  # type: ignore[misc]
                before = acknowledged
                file = tmp_path / f"copy-{number}.duckdb"
                assert invoke(backup, str(file), port=collector.port).exception is None
                after = acknowledged
                [(mark, count, distinct, most)] = one(file, MARK_AND_ROWS)
                assert before <= mark <= after + 1
                assert count == distinct == most == mark
                assert one(file, BREACHES) == []
                assert one(file, "SELECT count(*) FROM fingerprint_instance WHERE queue_depth IS NOT NULL") == [
                    (2 * (mark - mark // 50),)
                ]
        finally:
            enough.set()
            sender.join(60)
        assert ask(query, BREACHES) == []


def test_the_moment_is_when_it_began_however_slowly_it_is_read(tmp_path: Path) -> None:
    with stored(tmp_path, 200) as (_, telemetry, query):
        call = query.Backup(q.BackupRequest(), timeout=60)
        first = next(call).contents
        rows = {table.name: table.rows for table in first.tables}
        publish(telemetry, S, *windows(201, 400))
        assert ask(query, "SELECT count(*) FROM windows") == [[400]]
        import pyarrow as pa

        found = {}
        for table in first.tables:
            data = b""
            while not (chunk := next(call)).end_of_table:
                data += chunk.rows
            found[table.name] = pa.ipc.open_stream(data).read_all().num_rows
        assert found == rows
        assert next(call, None) is None


def test_the_collector_starts_on_a_copy_and_goes_on(tmp_path: Path) -> None:
    with stored(tmp_path) as (collector, *_):
        assert invoke(backup, str(tmp_path / "copy.duckdb"), port=collector.port).exception is None
    state = tmp_path / "restored"
    state.mkdir()
    shutil.copy(tmp_path / "copy.duckdb", state / FILE)
    with collecting(state) as (_, telemetry, query):
        stream = Sending(telemetry, hello(first_seq=31), S, window(30, S), window(31, S))
        welcome, *acks = stream.finish()
        assert welcome.welcome.high_water_mark == 30
        assert [message.ack.seq for message in acks] == [30, 31]
        assert ask(query, "SELECT count(*), count(DISTINCT seq) FROM windows") == [[31, 31]]
        assert ask(query, BREACHES) == []
        assert ask(query, "SELECT count(*) > 0 FROM fingerprints") == [[True]]


@pytest.mark.parametrize(("piece_bytes", "batch_rows", "group_rows"), [(1 << 20, 16384, 122_880), (1000, 5, 7)])
def test_without_a_collector_the_file_is_copied_to_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, batch_rows: int, group_rows: int
) -> None:
    monkeypatch.setattr("trimtab.collector.backup.PIECE_BYTES", piece_bytes)
    monkeypatch.setattr("trimtab.collector.backup._BATCH_ROWS_MAX", batch_rows)
    monkeypatch.setattr("trimtab.collector.backup_file._GROUP_ROWS", group_rows)
    with stored(tmp_path):
        pass
    result = invoke(backup, str(tmp_path / "copy.duckdb"), "--state", str(tmp_path))
    assert result.exception is None, result.output
    assert "no collector answers; reading" in result.stderr
    original, copy = tmp_path / "collector" / FILE, tmp_path / "copy.duckdb"
    assert tables(copy) == tables(original)
    assert sum(map(len, tables(copy).values())) > 100
    assert objects(copy) == objects(original)


def test_what_a_killed_collector_left_in_its_log_is_copied(tmp_path: Path) -> None:
    state = tmp_path / "killed"
    (state / "collector").mkdir(parents=True)
    with stored(tmp_path, 20):
        # As `kill -9` would leave it: the file, and the log that was never folded into it.
        for name in (FILE, f"{FILE}.wal"):
            shutil.copy(tmp_path / "collector" / name, state / "collector" / name)
    assert (state / "collector" / f"{FILE}.wal").stat().st_size > 0
    result = invoke(backup, str(tmp_path / "copy.duckdb"), "--state", str(state))
    assert result.exception is None, result.output
    assert one(tmp_path / "copy.duckdb", "SELECT count(*), max(seq) FROM windows") == [(20, 20)]


def test_one_at_a_time_and_one_that_is_let_go_makes_room(tmp_path: Path) -> None:
    with stored(tmp_path) as (collector, telemetry, query):
        call = query.Backup(q.BackupRequest(), timeout=60)
        next(call)
        error = invoke(backup, str(tmp_path / "copy.duckdb"), port=collector.port).exception
        assert isinstance(error, TrimtabError)
        assert "a backup is being made already" in str(error)
        assert publish(telemetry, S, window(31, S))[-1].ack.seq == 31
        call.cancel()
        until(lambda: invoke(backup, str(tmp_path / "copy.duckdb"), port=collector.port).exception is None)
    assert leftovers(tmp_path) == []


def test_who_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = serving.backup

    def much(*arguments: Any) -> Iterator[q.BackupChunk]:
        yield from whole(*arguments)
        for _ in range(1000):
            yield q.BackupChunk(rows=bytes(1 << 20))

    monkeypatch.setattr(serving, "BACKUP_STALL_SECONDS_MAX", 0.5)
    monkeypatch.setattr(serving, "backup", much)
    with stored(tmp_path) as (_, _telemetry, query):
        call = query.Backup(q.BackupRequest(), timeout=60)
        next(call)
        assert not _begins(query)
        until(lambda: _begins(query))
        with pytest.raises(grpc.RpcError):
            list(call)


def _begins(query: Any) -> bool:
    call = query.Backup(q.BackupRequest(), timeout=60)
    try:
        return bool(next(call).contents.tables)
    except grpc.RpcError:
        return False
    finally:
        call.cancel()


@pytest.mark.parametrize("there", ["file", "directory", "no directory", "fifo"])
def test_what_is_there_is_left_alone(tmp_path: Path, there: str) -> None:
    file = tmp_path / "out" / "copy.duckdb"
    if there != "no directory":
        file.parent.mkdir()
    match there:
        case "file":
            file.write_bytes(b"mine")
        case "directory":
            file.mkdir()
        case "fifo":
            os.mkfifo(file)
    with stored(tmp_path) as (collector, *_):
        error = invoke(backup, str(file), port=collector.port).exception
    assert isinstance(error, TrimtabError)
    assert (error.exit_code, str(file) in str(error), "\n" in str(error)) == (Exit.STATE, True, False)
    assert there != "file" or file.read_bytes() == b"mine"


def test_the_database_in_use_cannot_be_overwritten(tmp_path: Path) -> None:
    with stored(tmp_path) as (collector, _, query):
        error = invoke(backup, str(tmp_path / "collector" / FILE), port=collector.port).exception
        assert "is there already" in str(error)
        assert ask(query, "SELECT count(*) FROM windows") == [[30]]


@pytest.mark.parametrize("fault", ["early end", "fewer rows", "no Arrow", "no SQL"])
def test_what_is_not_whole_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    whole = serving.backup

    def broken(*arguments: Any) -> Iterator[q.BackupChunk]:
        chunks = list(whole(*arguments))
        match fault:
            case "early end":
                chunks = chunks[: len(chunks) // 2]
            case "fewer rows":
                chunks[0].contents.tables[0].rows += 1
            case "no Arrow":
                chunks[1].rows = b"\xff" * len(chunks[1].rows)
            case "no SQL":
                chunks[0].contents.tables[0].sql = "COPY (SELECT 1) TO '/tmp/trimtab-was-here'"
        yield from chunks

    monkeypatch.setattr(serving, "backup", broken)
    with stored(tmp_path) as (collector, *_):
        error = invoke(backup, str(tmp_path / "copy.duckdb"), port=collector.port).exception
    assert isinstance(error, TrimtabError), error
    assert (error.exit_code, "\n" in str(error)) == (Exit.STATE, False)
    assert not (tmp_path / "copy.duckdb").exists()
    assert leftovers(tmp_path) == []
    assert not Path("/tmp/trimtab-was-here").exists()


def test_a_collector_killed_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "copy.duckdb"
    with stored(tmp_path) as (collector, *_):
        whole = serving.backup
        stopped = threading.Event()

        def stopping(*arguments: Any) -> Iterator[q.BackupChunk]:
            for number, chunk in enumerate(whole(*arguments)):
                if number == 3:
                    collector._query.stop()
                    stopped.set()
                yield chunk

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "backup", stopping)
            error = invoke(backup, str(file), "--state", str(tmp_path), port=collector.port).exception
        assert stopped.is_set()
    assert isinstance(error, TrimtabError)
    assert error.exit_code == Exit.UNREACHABLE
    assert not file.exists()
    assert leftovers(tmp_path) == []


def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    with stored(tmp_path) as (collector, _, query):
        # This one holds the only place, so that nothing is done before the signal.
        held = query.Backup(q.BackupRequest(), timeout=60)
        next(held)
        settings = tmp_path / "trimtab.toml"
        settings.write_text("")
        script = f"""
import sys, time
from trimtab.collector import backup_file
def write(*_):
    print('begun', flush=True)
    time.sleep(60)
backup_file.write = write
from trimtab.__main__ import main
main(['--config', {str(settings)!r}, 'backup', {str(tmp_path / "copy.duckdb")!r}, '--collector', '127.0.0.1:{collector.port}'])
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "begun\n"
            assert leftovers(tmp_path) != []
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == Exit.INTERRUPTED
        held.cancel()
    assert leftovers(tmp_path) == []

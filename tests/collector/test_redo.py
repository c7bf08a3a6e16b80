"""What was acknowledged and is not in the database yet: it survives, once, whatever happens to the log and the collector."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.collector.sender import Sending, channel, collecting, hello, latency, schema, window
from tests.collector.test_delivery import start
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub
from trimtab.collector.opening import redo_of
from trimtab.collector.redo import Redo
from trimtab.collector.store import FILE, StoreError

ID = "0" * 32
HEAD_BYTES = 47
"""What a log begins with: what it is, and of which database."""
COUNT = "SELECT count(*), count(DISTINCT seq), max(seq) FROM windows"

NUMBERS = st.lists(st.one_of(st.none(), st.floats(width=64, allow_nan=False)), min_size=1, max_size=5)
RECORDS = st.lists(
    st.dictionaries(st.sampled_from(["arrivals", "events", "samples_gpu"]), NUMBERS, min_size=1), max_size=4
)


def tables(record: dict[str, list[float | None]]) -> dict[str, pa.Table]:
    return {
        name: pa.table({"value": pa.array(values, pa.float64()), "blob": pa.array([name.encode()] * len(values))})
        for name, values in record.items()
    }


@contextmanager
def redo(path: Path, database: str = ID) -> Iterator[Redo]:
    log = Redo(path, database)
    try:
        yield log
    finally:
        log.close()


def left(path: Path) -> list[Any]:
    with redo(path) as log:
        return [dict(rows) for rows in log.left()]


def written(path: Path, records: list[Any]) -> bytes:
    with redo(path) as log:
        for record in records:
            log.append(tables(record))
    return path.read_bytes()


@given(RECORDS, st.data())
def test_of_a_log_that_was_cut_short_or_is_broken_the_records_before_it_are_whole(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("redo") / "redo"
    whole = written(path, records)
    assert left(path) == [tables(record) for record in records]
    if not whole:
        return
    end = data.draw(st.integers(0, len(whole) - 1))
    broken = bytearray(whole[:end])
    if data.draw(st.booleans()) and end > len(whole) // 2:
        broken = bytearray(whole)
        broken[end] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(broken)
    if broken and not broken.startswith(whole[:HEAD_BYTES]):
        with pytest.raises(StoreError, match="not of this database"):
            left(path)
        return
    found = left(path)
    assert len(found) < len(records)
    assert found == [tables(record) for record in records[: len(found)]]


@given(RECORDS, RECORDS)
def test_what_an_earlier_log_has_left_behind_the_end_is_not_read(
    tmp_path_factory: pytest.TempPathFactory, old: list[Any], new: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("redo")
    before, now = written(folder / "old", old), written(folder / "new", new)
    # As if the disk had not kept that the file was emptied in between.
    (folder / "redo").write_bytes(now + before[len(now) :])
    expected = [tables(record) for record in new] if new else [tables(record) for record in old]
    assert left(folder / "redo") == expected


def test_a_record_that_does_not_fit_on_the_disk_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    small, large = {"arrivals": [1.0]}, {"arrivals": [float(i) for i in range(10_000)]}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with redo(tmp_path / "redo") as log:
            log.append(tables(small))
            resource.setrlimit(resource.RLIMIT_FSIZE, (log.size_bytes + 5000, limits[1]))
            with pytest.raises(StoreError, match="File too large"):
                log.append(tables(large))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            log.append(tables(small))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert left(tmp_path / "redo") == [tables(small)] * 2


def publish(stub: TelemetryStub, first: int, last: int, node: str = "n1") -> None:
    """Windows that are acknowledged when this returns."""
    of = schema()
    stream = Sending(stub, hello(node))
    stream.next()
    stream.send(of, *(window(seq, of, sketches=[latency([0.01])]) for seq in range(first, last + 1)))
    for seq in range(first, last + 1):
        assert stream.next().ack.seq == seq


def count(query: Any) -> tuple[int, ...]:
    [chunk] = query.Sql(q.SqlRequest(sql=COUNT))
    return tuple(json.loads(chunk.rows[0]))


def test_windows_that_were_acknowledged_are_stored_once_after_a_kill_before_their_transaction(tmp_path: Path) -> None:
    process, port = start(tmp_path)
    try:
        with channel(port) as link:
            publish(TelemetryStub(link), 1, 1)  # type: ignore[no-untyped-call] # generated
            for last in range(2, 40):
                publish(TelemetryStub(link), last, last)  # type: ignore[no-untyped-call]
                if redo_of(tmp_path / FILE).stat().st_size:
                    break
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert redo_of(tmp_path / FILE).stat().st_size, "every window's transaction was over before the kill"
    with duckdb.connect(tmp_path / FILE, read_only=True) as database:
        [(stored,)] = database.execute("SELECT count(*) FROM windows").fetchall()
        assert stored < last
    with collecting(tmp_path) as (_, telemetry, query):
        assert not redo_of(tmp_path / FILE).stat().st_size
        assert count(query) == (last, last, last)
        publish(telemetry, last + 1, last + 1)
        [node] = query.Nodes(q.NodesRequest()).nodes
        assert (node.windows, node.lost, node.duplicates) == (last + 1, 0, 0)


def kept_log(state: Path) -> bytes:
    """A store with ten windows, whose collector was ended politely; what its redo log held at some moment."""
    path = redo_of(state / FILE)
    with collecting(state) as (_, telemetry, query):
        publish(telemetry, 1, 1)
        for last in range(2, 40):
            publish(telemetry, last, last)
            if found := path.read_bytes():
                break
        assert count(query)[0] == last
        assert not path.read_bytes(), "a question sees what was acknowledged: it is in the database"
    return found


@pytest.mark.parametrize("forgotten", [False, True], ids=["", "also when retention has deleted its windows"])
def test_a_log_that_is_in_the_database_already_is_not_added_again(tmp_path: Path, forgotten: bool) -> None:
    found = kept_log(tmp_path)
    with collecting(tmp_path) as (_, _, query):
        before = count(query)
        assert before[0] == before[1] == before[2]
    if forgotten:
        with duckdb.connect(tmp_path / FILE) as database:
            database.execute("DELETE FROM arrivals")
    redo_of(tmp_path / FILE).write_bytes(found)
    with collecting(tmp_path) as (_, _, query):
        assert count(query)[0] == (0 if forgotten else before[0])
        assert [node.windows for node in query.Nodes(q.NodesRequest()).nodes] == [before[0]]


@pytest.mark.parametrize("other", ["another database", "an older copy of this database"])
def test_a_log_of_another_database_is_set_aside(tmp_path: Path, other: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "b").mkdir(mode=0o700)
    if other == "another database":
        with collecting(tmp_path / "b"):
            pass
        why = "not of this database"
    else:
        with collecting(tmp_path / "a"):
            pass
        shutil.copy(tmp_path / "a" / FILE, tmp_path / "b" / FILE)
        why = "names a stream that the database does not know"
    found = kept_log(tmp_path / "a")
    path = redo_of(tmp_path / "b" / FILE)
    path.write_bytes(found)
    with caplog.at_level(logging.ERROR), collecting(tmp_path / "b") as (_, _, query):
        assert count(query)[0] == 0
    assert why in caplog.text
    assert [aside.read_bytes() for aside in path.parent.glob("*.redo.unused-*")] == [found]

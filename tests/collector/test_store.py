"""A database that is broken, in use, out of reach, or out of space."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.collector.sender import (
    CLOCK,
    SETTINGS,
    Recording,
    Sending,
    ask,
    collecting,
    hello,
    latency,
    publish,
    schema,
    window,
)
from tests.collector.test_delivery import start
from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire.query_pb2 import Incident
from trimtab.collector.server import run
from trimtab.collector.store import FILE, Store, StoreError

S = schema()
HEADERS_BYTES, BLOCK_BYTES = 3 * 4096, 256 << 10
"""How DuckDB lays out its file."""


@pytest.mark.parametrize("broken", [b"", b"hello" * 3000, None], ids=["empty", "no database", "flipped bytes"])
def test_a_broken_file_is_set_aside_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: bytes | None
) -> None:
    path = tmp_path / FILE
    if broken is None:
        with collecting(tmp_path) as (_, telemetry, _query):
            publish(telemetry, S, window(1, S))
        whole = path.read_bytes()
        broken = whole[:4096] + bytes(byte ^ 0x5A for byte in whole[4096:])
    path.write_bytes(broken)
    with collecting(tmp_path) as (_, telemetry, query):
        publish(telemetry, S, window(1, S))
        assert ask(query, "SELECT count(*) FROM windows") == [[1]]
    [aside] = tmp_path.glob(f"{FILE}.corrupt-*")
    assert aside.read_bytes() == broken
    assert [record for record in caplog.records if str(aside) in record.getMessage()]


def test_whichever_block_is_broken_windows_are_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, telemetry, _query):
        publish(telemetry, S, *(window(seq, S, sketches=[latency([0.01])]) for seq in range(1, 100)))
        analysis.journal.save_incident(Incident(id="i-1", status=Incident.STATUS_OPEN, opened_unix_ns=1))
    path = tmp_path / FILE
    whole = path.read_bytes()
    starts = range(HEADERS_BYTES, len(whole), BLOCK_BYTES)
    assert len(starts) > 5
    for start_ in starts:
        # All but the checksum at its beginning.
        broken = bytes(byte ^ 0x5A for byte in whole[start_ + 8 : start_ + BLOCK_BYTES])
        path.write_bytes(whole[: start_ + 8] + broken + whole[start_ + BLOCK_BYTES :])
        with collecting(tmp_path) as (_, telemetry, _query):
            assert Sending(telemetry, hello(), S, window(100, S)).finish()[-1].ack.seq == 100
    assert "computed checksum" in caplog.text


def test_a_collector_that_could_not_start_says_why(tmp_path: Path) -> None:
    class Broken(Recording):
        def start(self, journal: object, changed: object) -> None:
            raise StoreError("the reason")

    stop, ready = threading.Event(), threading.Event()
    with pytest.raises(StoreError, match="the reason"):
        run(SETTINGS, Tls(), tmp_path, CLOCK, Broken(), stop, ready.set)


def test_two_collectors_on_one_directory(tmp_path: Path) -> None:
    process, _ = start(tmp_path)
    try:
        with pytest.raises(TrimtabError, match=f"in use by process {process.pid} ") as caught, collecting(tmp_path):
            pass
        assert caught.value.exit_code == Exit.STATE
        with pytest.raises(TrimtabError, match="in use by process"):
            Store(tmp_path / FILE, 64 << 20, read_only=True)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", ["/proc/nowhere", "/dev/null/store"])
def test_a_directory_that_cannot_be_written(path: str) -> None:
    with pytest.raises(TrimtabError) as caught, collecting(Path(path)):
        pass
    assert caught.value.exit_code == Exit.STATE
    assert path in str(caught.value)


def test_a_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with collecting(tmp_path):
        pass
    import duckdb

    with duckdb.connect(tmp_path / FILE) as database:
        database.execute("UPDATE meta SET value = '99'")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(TrimtabError, match="schema 99") as caught, collecting(tmp_path):
        pass
    assert caught.value.exit_code == Exit.STATE
    assert (tmp_path / FILE).read_bytes() == before


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrimtabError, match=f"{port}") as caught, collecting(tmp_path, listen=f"127.0.0.1:{port}"):
            pass
    assert caught.value.exit_code == Exit.LISTEN


def test_run_says_when_it_is_ready_and_stops_when_told(tmp_path: Path) -> None:
    stop, ready = threading.Event(), threading.Event()
    arguments = (SETTINGS, Tls(), tmp_path, CLOCK, Recording(), stop, ready.set)
    thread = threading.Thread(target=run, args=arguments)
    thread.start()
    assert ready.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], capture_output=True, check=False)
    if os.geteuid() or done.returncode:
        pytest.skip("needs root and mount(2) for a file system of its own")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def fill(path: Path) -> None:
    """Until not one page is left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    filler = small_disk / "filler"
    with collecting(small_disk) as (collector, telemetry, query):
        stream = Sending(telemetry, hello(), S, window(1, S))
        assert [stream.next().WhichOneof("content") for _ in range(2)] == ["welcome", "ack"]
        fill(filler)
        wide = schema({"instance": ([f"s{i}" for i in range(100)], [f"n1/{i}" for i in range(200)])})
        stream.send(wide, window(2, wide))
        deadline = CLOCK.monotonic() + 30
        while "cannot write to the database" not in caplog.text and CLOCK.monotonic() < deadline:
            CLOCK.wait(threading.Event(), 0.05)
        assert "cannot write to the database" in caplog.text
        filler.unlink()
        assert stream.next().ack.seq == 2
        assert not collector.failed
        assert ask(query, "SELECT seq FROM windows ORDER BY seq") == [[1], [2]]
    assert caplog.text.count("cannot write to the database") == 1

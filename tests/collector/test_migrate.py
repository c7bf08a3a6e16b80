"""Stores of every version that ever was, brought up to date."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import ManualClock
from trimtab.collector import migrate
from trimtab.collector.opening import open_or_set_aside
from trimtab.collector.packed import unpack
from trimtab.collector.store import FILE, Store

ALL = sorted((Path(__file__).parent / "stores").glob("*.xz"))
WHOLE = [path for path in ALL if path.name[7] not in migrate._ADDED]
"""Those that are made anew."""
MEMORY = 128 << 20
VIEWS = {
    "instances": "instance, node, model, runtime, addresses, pid, current",
    "latency": "start, node, instance, model, requests, mean_seconds, p50_seconds, p95_seconds, p99_seconds",
    "fingerprints": "start, kind, node, subject, signal, value",
    "incidents": "*",
    "decisions": "*",
    "streams": "node, spool, high_water_mark, windows, duplicates, lost, refused, last_refusal, refused_at, last_window",
    "windows": "node, spool, seq, start, duration_seconds, received",
    "events": "*",
    "nodes": "*",
    "series": "*",
    "evidence": "*",
}
CLOCK = ManualClock()


class Full(NamedTuple):
    total: int
    used: int
    free: int


def unpacked(store: Path, directory: Path) -> Path:
    path = directory / FILE
    path.write_bytes(lzma.decompress(store.read_bytes()))
    return path


def told(connection: Any) -> dict[str, list[Any]]:
    return {
        view: connection.execute(f"SELECT {columns} FROM {view} ORDER BY ALL").fetchall()
        for view, columns in VIEWS.items()
    }


def sketches_before(connection: Any) -> dict[Any, Any]:
    found = connection.execute(
        "SELECT kind, subject, series, start, probability, buckets, counts FROM sketches"
    ).fetchall()
    return {row[:4]: (row[4], dict(zip(row[5], row[6], strict=True))) for row in found}


def sketches_now(connection: Any) -> dict[Any, Any]:
    out = {}
    for name in ("request_latency", "tcp_rtt"):
        found = connection.execute(
            f"SELECT s.id, f.start, {name}_sketch FROM samples_instance f JOIN subjects s USING (subject) "
            f"WHERE {name}_sketch IS NOT NULL"
        ).fetchall()
        packed = unpack(pa.array([row[2] for row in found], type=pa.binary()))
        for i, (subject, start, _) in enumerate(found):
            cells = slice(packed.offsets[i], packed.offsets[i + 1])
            counts = dict(zip(packed.buckets[cells].tolist(), packed.counts[cells].tolist(), strict=True))
            out["instance", subject, name, start] = packed.probabilities[i], counts
    return out


@pytest.mark.parametrize("stored", WHOLE, ids=lambda path: path.name)
def test_the_views_tell_the_same_before_and_after(tmp_path: Path, stored: Path) -> None:
    path = unpacked(stored, tmp_path)
    before = path.read_bytes()
    with duckdb.connect(path, read_only=True) as old:
        views, sketches = told(old), sketches_before(old)
        talkers = old.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'talkers'").fetchall()
        columns = "subject, name, start, seconds, frequent_items, hll"
        talk = old.execute(f"SELECT {columns} FROM talkers ORDER BY ALL").fetchall() if talkers else []
    assert all(views.values())
    assert sketches
    store = open_or_set_aside(path, MEMORY, CLOCK)
    try:
        now = store.cursor()
        assert told(now) == views
        assert sketches_now(now) == sketches
        join = "SELECT s.id AS subject, t.* EXCLUDE (subject) FROM talkers t JOIN subjects s USING (subject)"
        assert now.execute(f"SELECT {columns} FROM ({join}) ORDER BY ALL").fetchall() == talk
    finally:
        store.close()
    [aside] = tmp_path.glob(f"{FILE}.v*")
    assert aside.name == f"{FILE}.v{stored.name[7]}-{CLOCK.unix_ns() // 10**9}"
    assert aside.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {FILE, aside.name}


def columns(connection: Any) -> list[Any]:
    found: list[Any] = connection.execute(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() WHERE table_name NOT LIKE 'samples%' ORDER BY ALL"
    ).fetchall()
    return [row for row in found if not row[0].startswith("fingerprint_")]


@pytest.mark.parametrize("stored", [path for path in ALL if path not in WHOLE], ids=lambda path: path.name)
def test_where_only_tables_are_added_the_file_stays(tmp_path: Path, stored: Path) -> None:
    path = unpacked(stored, tmp_path)
    with duckdb.connect(path, read_only=True) as old:
        views = told(old)
        samples = old.execute("SELECT * FROM samples_instance ORDER BY ALL").fetchall()
    assert all(views.values())
    open_or_set_aside(path, MEMORY, CLOCK).close()
    store = open_or_set_aside(path, MEMORY, CLOCK)
    new = Store(tmp_path / "new", MEMORY)
    try:
        now = store.cursor()
        assert told(now) == views
        assert now.execute("SELECT * FROM samples_instance ORDER BY ALL").fetchall() == samples
        assert columns(now) == columns(new.cursor())
    finally:
        store.close()
        new.close()
    assert {one.name for one in tmp_path.iterdir()} == {FILE, "new"}


def test_cut_short_nothing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpacked(ALL[-1], tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(migrate._ADDED, "5", migrate._ADDED["5"] + "SELECT error('cut short')")
        with pytest.raises(TrimtabError, match="cut short"):
            open_or_set_aside(path, MEMORY, CLOCK)
    with duckdb.connect(path, read_only=True) as old:
        assert old.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall() == [("5",)]
        assert not old.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'overrides'").fetchall()
    open_or_set_aside(path, MEMORY, CLOCK).close()


@pytest.mark.parametrize("step", ["_copy", "_copy_samples", "_copy_slice", "_packed"])
def test_cut_short_it_begins_anew(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpacked(WHOLE[0], tmp_path)
    before = path.read_bytes()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migrate, step, die)
        with pytest.raises(KeyboardInterrupt):
            open_or_set_aside(path, MEMORY, CLOCK)
    assert path.read_bytes() == before
    open_or_set_aside(path, MEMORY, CLOCK).close()
    assert not list(tmp_path.glob("*.migrating*"))


def test_what_is_in_the_log_only_comes_too(tmp_path: Path) -> None:
    path = unpacked(WHOLE[0], tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with duckdb.connect(path) as old:
        old.execute("SET checkpoint_threshold = '1GB'")
        old.execute("INSERT INTO events VALUES ('n1', 'node', 'n1', 'in the log', now()::TIMESTAMP, NULL, '', 7)")
        for suffix in ("", ".wal"):
            shutil.copy(f"{path}{suffix}", other / f"{FILE}{suffix}")
    assert (other / f"{FILE}.wal").stat().st_size
    store = open_or_set_aside(other / FILE, MEMORY, CLOCK)
    assert store.cursor().execute("SELECT count(*) FROM events WHERE name = 'in the log'").fetchall() == [(1,)]
    store.close()


def test_subjects_that_only_their_windows_name_are_kept(tmp_path: Path) -> None:
    path = unpacked(WHOLE[0], tmp_path)
    with duckdb.connect(path) as old:
        old.execute("DELETE FROM subjects WHERE id = 'n1/8081'")
        before = old.execute("SELECT * FROM fingerprints ORDER BY ALL").fetchall()
    store = open_or_set_aside(path, MEMORY, CLOCK)
    connection = store.cursor()
    assert connection.execute(f"SELECT {VIEWS['fingerprints']} FROM fingerprints ORDER BY ALL").fetchall() == before
    assert connection.execute("SELECT current FROM subjects WHERE id = 'n1/8081'").fetchall() == [(False,)]
    store.close()


def test_without_room_the_old_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpacked(WHOLE[0], tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Full(1, 1, 0))
    with pytest.raises(TrimtabError, match="needs 6 MB of disk, and there are 0: make room") as caught:
        open_or_set_aside(path, MEMORY, CLOCK)
    assert caught.value.exit_code == Exit.STATE
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [FILE]


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / FILE
    Store(path, MEMORY).close()
    with duckdb.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    before = path.read_bytes()
    with pytest.raises(TrimtabError, match="schema 99"):
        open_or_set_aside(path, MEMORY, CLOCK)
    assert path.read_bytes() == before


def test_a_damaged_old_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = unpacked(WHOLE[-1], tmp_path)
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(1)
    for at in random.integers(5 * 4096 + (256 << 10), len(whole), 400):
        whole[at] ^= 0x5A
    path.write_bytes(whole)
    open_or_set_aside(path, MEMORY, CLOCK).close()
    assert [one.name for one in tmp_path.glob(f"{FILE}.corrupt-*")]
    assert "set aside" in caplog.text


def test_every_old_version_has_a_file() -> None:
    assert {path.name[7] for path in ALL} == set(migrate.VERSIONS)
    assert all(path.stat().st_size < 100_000 for path in ALL)

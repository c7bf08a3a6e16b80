"""Files that are damaged, at many places: the collector starts, stores, and keeps what can be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.collector.fill import MEMORY, START_US, Remembering, opened, put_plain
from trimtab.agent.clock import ManualClock
from trimtab.collector.keeper import Keeper
from trimtab.collector.opening import open_or_set_aside
from trimtab.collector.rollmarks import HOUR_US, MINUTE_US
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.store import FILE, StoreLost, transaction
from trimtab.collector.vitals import Vitals

CLOCK = ManualClock(START_US * 1000 + 10 * HOUR_US * 1000)
HEADERS_BYTES, BLOCK_BYTES = 3 * 4096, 256 << 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A file, and a log with more."""
    store = opened(tmp_path_factory.mktemp("whole"))
    connection = store.cursor()
    for minute in range(4):
        if minute == 2:
            store.checkpoint()
        put_plain(connection, 100, START_US + minute * MINUTE_US, 60)
    found = store.path.read_bytes(), Path(f"{store.path}.wal").read_bytes()
    store.close()
    return found


def works(directory: Path, whole_log: bool = True) -> int:
    """Open, store, checkpoint, roll up, delete, and open again; how many windows were rolled up."""
    try:
        return works_on(directory, whole_log)
    except StoreLost:
        # The collector ends, and is started again.
        return works_on(directory, whole_log)


def works_on(directory: Path, whole_log: bool) -> int:
    store = open_or_set_aside(directory / FILE, MEMORY, CLOCK)
    try:
        connection = store.cursor()
        with transaction(connection):
            connection.execute(
                "INSERT INTO events VALUES ('n', 'node', 'n', 'new', make_timestamp(?), 1, '', 1)", [START_US]
            )
        store.checkpoint()
        vitals = Vitals()
        keeper = Keeper(CollectorSettings(keep_raw_hours=1.0), store, CLOCK, vitals, Remembering())
        turns = 0
        while keeper.turn():
            turns += 1
            assert turns < 100
        keeper.stop()
        [(found,)] = connection.execute("SELECT coalesce(sum(windows), 0) FROM samples_instance_1h").fetchall()
        assert not whole_log or found == 4 * 6000 or vitals.rollups_damaged or list(directory.glob("*.corrupt-*"))
    finally:
        store.close()
    store = open_or_set_aside(directory / FILE, MEMORY, CLOCK)
    assert store.cursor().execute("SELECT count(*) FROM events WHERE name = 'new'").fetchall()
    store.close()
    return int(found)


def put(directory: Path, file: bytes, log: bytes) -> None:
    (directory / FILE).write_bytes(file)
    Path(f"{directory / FILE}.wal").write_bytes(log)


def test_an_undamaged_one_has_everything(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    put(tmp_path, *whole)
    assert works(tmp_path) == 4 * 6000
    assert [one.name for one in tmp_path.iterdir()] == [FILE]


def test_a_flipped_byte_anywhere(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    file, log = whole
    for at in range(HEADERS_BYTES + 100, len(file), BLOCK_BYTES):
        broken = bytearray(file)
        broken[at] ^= 0x5A
        directory = tmp_path / str(at)
        directory.mkdir()
        put(directory, bytes(broken), log)
        works(directory)
        shutil.rmtree(directory)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_cut_short(tmp_path: Path, whole: tuple[bytes, bytes], share: float) -> None:
    file, log = whole
    put(tmp_path, file[: int(len(file) * share)], log)
    works(tmp_path)
    assert [one for one in tmp_path.glob(f"{FILE}.corrupt-*") if one.suffix != ".wal"]


def test_a_log_that_is_broken_costs_what_came_last(
    tmp_path: Path, whole: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file, log = whole
    broken = bytearray(log)
    broken[len(log) // 2] ^= 1
    put(tmp_path, file, bytes(broken))
    assert works(tmp_path) == 2 * 6000
    [aside] = tmp_path.glob(f"{FILE}.corrupt-*")
    assert aside.read_bytes() == bytes(broken)
    assert [record for record in caplog.records if str(aside) in record.getMessage()]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_log_cut_short_is_read_as_far_as_it_goes(tmp_path: Path, whole: tuple[bytes, bytes], share: float) -> None:
    file, log = whole
    put(tmp_path, file, log[: int(len(log) * share)])
    assert works(tmp_path, whole_log=False) >= 2 * 6000
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_random_damage(tmp_path: Path, whole: tuple[bytes, bytes]) -> None:
    file, log = whole
    random = np.random.default_rng(5)
    for i in range(10):
        broken = bytearray(file)
        for at in random.integers(0, len(file), int(random.integers(1, 20))):
            broken[at] ^= int(random.integers(1, 256))
        directory = tmp_path / str(i)
        directory.mkdir()
        put(directory, bytes(broken), log)
        works(directory)
        shutil.rmtree(directory)

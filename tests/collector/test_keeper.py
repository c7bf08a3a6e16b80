"""The keeper: rolls up whatever comes whenever, and deletes without losing count."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.collector.fill import MEMORY, START_US, Remembering, opened, put, put_plain, rows
from trimtab.agent.clock import ManualClock
from trimtab.collector import marks
from trimtab.collector.keeper import Keeper
from trimtab.collector.retention import Retention
from trimtab.collector.roller import Roller
from trimtab.collector.rollmarks import HOUR_US, MINUTE_US, RollMarks
from trimtab.collector.rollup import MINUTES
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.store import Connection, Store, insert, transaction
from trimtab.collector.vitals import Vitals

NEVER = threading.Event()
LATER_US = START_US + 10 * HOUR_US


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = opened(tmp_path)
    yield found
    found.close()


def note(connection: Connection, rolled: RollMarks, starts_us: Any) -> None:
    """What the writer does in its transaction."""
    late = rolled.late(np.asarray(starts_us, dtype=np.int64))
    if len(late):
        statement = "INSERT INTO late_minutes BY NAME SELECT * FROM incoming"
        insert(connection, statement, {"start": late}, ("start",))


def write(connection: Connection, rolled: RollMarks, starts_us: Any, subject: int = 1) -> None:
    with rolled.writing(), transaction(connection):
        put(connection, [subject] * len(starts_us), starts_us, queue_depth=np.ones(len(starts_us)))
        note(connection, rolled, starts_us)


def until_done(roller: Roller, now_us: int) -> None:
    for _ in range(1000):
        if not roller.turn(now_us, NEVER):
            return
    raise AssertionError("there is always more")


def counts(connection: Connection, table: str) -> list[tuple[int, int]]:
    query = f"SELECT epoch_us(start), sum(windows)::BIGINT FROM {table} GROUP BY 1 ORDER BY 1"
    return connection.execute(query).fetchall()


def test_gaps_are_skipped_and_what_is_not_over_waits(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    roller = Roller(store, store.cursor(), Vitals())
    write(connection, rolled, [START_US, START_US + 5 * HOUR_US, START_US + 5 * HOUR_US + MINUTE_US])
    until_done(roller, START_US + 5 * HOUR_US + MINUTE_US + 20_000_000)
    assert counts(connection, "samples_instance_1m") == [(START_US, 1), (START_US + 5 * HOUR_US, 1)]
    assert counts(connection, "samples_instance_1h") == [(START_US, 1)]
    until_done(roller, LATER_US)
    assert counts(connection, "samples_instance_1h") == [(START_US, 1), (START_US + 5 * HOUR_US, 2)]


def test_late_windows_are_rolled_up_with_their_minute_and_hour(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    roller = Roller(store, store.cursor(), Vitals())
    write(connection, rolled, [START_US])
    until_done(roller, LATER_US)
    write(connection, rolled, [START_US + 1, START_US + MINUTE_US])
    write(connection, rolled, [START_US - HOUR_US], subject=2)
    until_done(roller, LATER_US)
    assert counts(connection, "samples_instance_1h") == [(START_US - HOUR_US, 1), (START_US, 3)]
    assert not connection.execute("FROM late_minutes").fetchall()


def test_how_far_it_came_survives(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    write(connection, rolled, [START_US])
    until_done(Roller(store, store.cursor(), Vitals()), LATER_US)
    store.close()
    store = Store(store.path, MEMORY)
    connection, again, vitals = store.cursor(), store.rolled, Vitals()
    assert again.through_us == marks.read(connection, marks.ROLLED_MINUTES)
    write(connection, again, [START_US])
    roller = Roller(store, store.cursor(), vitals)
    until_done(roller, LATER_US)
    assert vitals.rollups_late == 1
    assert counts(connection, "samples_instance_1h") == [(START_US, 2)]
    store.close()


def interleavings(first: int, second: int) -> Iterator[list[int]]:
    """Every order of the steps of two."""
    for taken in combinations(range(first + second), first):
        yield [0 if at in taken else 1 for at in range(first + second)]


class Steps:
    """The writer's transaction and the keeper's first turn, a step at a time, each on its connection."""

    def __init__(self, store: Store, locked: bool) -> None:
        self.store, self.rolled, self.locked = store, store.rolled, locked
        store.rolled._through_us = 0
        self.writer, self.keeper = store.cursor(), store.cursor()
        self.roller = Roller(store, self.keeper, Vitals())
        self.series = self.roller._series()
        self.holding = False

    def writing(self) -> Iterator[bool]:
        self.holding = True
        yield True
        self.writer.execute("BEGIN")
        put(self.writer, [1], [START_US], queue_depth=np.ones(1))
        yield True
        note(self.writer, self.rolled, [START_US])
        yield True
        self.writer.execute("COMMIT")
        yield True
        self.holding = False
        yield True

    def keeping(self) -> Iterator[bool]:
        if self.locked and self.holding:
            # Here it waits: this order cannot be.
            yield False
        self.rolled.advance(LATER_US)
        yield True
        self.keeper.execute("BEGIN")
        self.keeper.execute("SELECT count(*) FROM samples_instance").fetchall()
        yield True
        self.roller._roll(MINUTES, self.series, START_US)
        marks.write(self.keeper, marks.ROLLED_MINUTES, LATER_US)
        yield True
        self.keeper.execute("COMMIT")
        yield True


def lost(store: Store, locked: bool) -> int:
    """Whether there is an order of the steps in which a window comes into no rollup; as 1."""
    missing = tried = 0
    for order in interleavings(5, 4):
        steps = Steps(store, locked)
        for table in (
            "samples_instance_0",
            "samples_instance_1",
            "samples_instance_1m",
            "samples_instance_1h",
            "late_minutes",
        ):
            steps.writer.execute(f"DELETE FROM {table}")
        steps.writer.execute("DELETE FROM meta WHERE key IN ('rolled_1m', 'rolled_1h')")
        two = steps.writing(), steps.keeping()
        if all(next(two[which]) for which in order):
            tried += 1
            until_done(steps.roller, LATER_US)
            missing += counts(steps.writer, "samples_instance_1h") != [(START_US, 1)]
            if missing:
                return missing
        for connection in (steps.writer, steps.keeper):
            connection.close()
    assert tried > 5
    return missing


def test_no_order_of_writer_and_keeper_loses_a_window(store: Store) -> None:
    assert lost(store, locked=True) == 0


def test_without_the_lock_windows_would_be_lost(store: Store) -> None:
    assert lost(store, locked=False) > 0


def test_the_mark_waits_for_the_writer() -> None:
    rolled, moved = RollMarks(), threading.Event()

    def advance() -> None:
        rolled.advance(LATER_US)
        moved.set()

    with rolled.writing():
        thread = threading.Thread(target=advance)
        thread.start()
        assert not moved.wait(0.05)
        assert not len(rolled.late(np.asarray([START_US])))
    thread.join(10)
    assert moved.is_set()
    assert rolled.late(np.asarray([START_US + 5, START_US, LATER_US])).tolist() == [START_US]


def settings(**changes: Any) -> CollectorSettings:
    return CollectorSettings(**{"disk_free_ratio_min": 0.0, **changes})


def streams(connection: Connection) -> list[Any]:
    return connection.execute("FROM streams ORDER BY ALL").fetchall()


def arrive(connection: Connection, stream: int, swept: int, seqs: int) -> None:
    connection.execute(
        "INSERT INTO stream_records VALUES (?, 'n', ?, ?, ?, 0, 0, 0, '', NULL, NULL)",
        [stream, f"s{stream}", swept, swept],
    )
    connection.execute(
        "INSERT INTO arrivals SELECT ?, seq, make_timestamp(? + (seq - 1) * 1000000), 1, make_timestamp(0) FROM range(1, ?) t(seq)",
        [stream, START_US, seqs + 1],
    )


def test_what_was_said_of_incidents_goes_with_them(store: Store) -> None:
    connection, moment = store.cursor(), "make_timestamp(?)"
    for id_, resolved in (("i-1", START_US), ("i-2", None)):
        connection.execute(
            "INSERT INTO incident_records SELECT ?, 'open', 'n1', 'n1', '', make_timestamp(0), make_timestamp(0),"
            f" {moment}, '', 0, 0, ''::BLOB",
            [id_, resolved],
        )
        connection.execute(f"INSERT INTO acknowledgements SELECT ?, {moment}, 'eve', ''", [id_, START_US])
    for target, until in (("n1", START_US), ("n2", LATER_US)):
        connection.execute(f"INSERT INTO silences SELECT ?, {moment}, {moment}, 'eve', ''", [target, START_US, until])
    for target, until in (("n1", START_US), ("n2", LATER_US), ("n3", None)):
        connection.execute(
            f"INSERT INTO overrides SELECT ?, 'neutral', NULL, {moment}, {moment}, 'eve', '', ''::BLOB",
            [target, START_US, until],
        )
    retention = Retention(settings(keep_hours_days=2 / 24), store, store.cursor(), Vitals())
    while retention.turn(LATER_US, NEVER):
        pass
    assert connection.execute("SELECT target FROM overrides ORDER BY target").fetchall() == [("n2",), ("n3",)]
    assert connection.execute("SELECT incident FROM acknowledgements").fetchall() == [("i-2",)]
    assert connection.execute("SELECT target FROM silences").fetchall() == [("n2",)]


def test_age_takes_windows_and_leaves_rollups_and_streams(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    put_plain(connection, 3, START_US, 3600)
    arrive(connection, 1, swept=3000, seqs=3600)
    arrive(connection, 2, swept=3600, seqs=3600)
    for second in (0, 1799, 1800, 3599):
        stamp = START_US + second * 1_000_000
        connection.execute("INSERT INTO decision_states SELECT make_timestamp(?), 1, ''::BLOB", [stamp])
    before = streams(connection)
    roller = Roller(store, store.cursor(), Vitals())
    vitals = Vitals()
    retention = Retention(settings(keep_raw_hours=1.0), store, store.cursor(), vitals)
    # Nothing is rolled up yet: nothing goes.
    retention.turn(LATER_US, NEVER)
    assert len(rows(connection, "samples_instance")) == 3 * 3600
    until_done(roller, LATER_US)
    hours = rows(connection, "samples_instance_1h")
    while retention.turn(START_US + HOUR_US + 30 * MINUTE_US, NEVER):
        pass
    assert connection.execute("SELECT epoch_us(min(decided)) FROM decision_states").fetchall() == [
        (START_US + 30 * MINUTE_US,)
    ]
    assert connection.execute("SELECT epoch_us(min(start)) FROM samples_instance").fetchall() == [
        (START_US + 30 * MINUTE_US,)
    ]
    while retention.turn(LATER_US, NEVER):
        pass
    assert not rows(connection, "samples_instance")
    assert vitals.deleted["windows"] == 3 * 3600
    assert rows(connection, "samples_instance_1h") == hours
    assert streams(connection) == before
    [(left,)] = connection.execute("SELECT count(*) FROM arrivals").fetchall()
    assert left == 600
    # A window that comes now is added to what it belongs to, and kept nowhere else.
    write(connection, rolled, [START_US + 1], subject=1)
    until_done(roller, LATER_US)
    assert not rows(connection, "samples_instance")
    assert counts(connection, "samples_instance_1h") == [(START_US, 3 * 3600 + 1)]


def test_each_tier_has_its_age(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    write(connection, rolled, [START_US + hour * HOUR_US for hour in range(72)])
    connection.execute("INSERT INTO events VALUES ('n', 'node', 'n', 'oom', make_timestamp(?), 1, '', 1)", [START_US])
    until_done(Roller(store, store.cursor(), Vitals()), START_US + 73 * HOUR_US)
    chosen = settings(keep_raw_hours=12.0, keep_minutes_days=1.0, keep_hours_days=2.0)
    vitals = Vitals()
    retention = Retention(chosen, store, store.cursor(), vitals)
    while retention.turn(START_US + 72 * HOUR_US, NEVER):
        pass
    tables = ("samples_instance", "samples_instance_1m", "samples_instance_1h", "events")
    left = [connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in tables]
    assert left == [12, 24, 48, 0]


def test_size_takes_the_oldest_windows_first(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    connection = store.cursor()
    for minute in range(20):
        put_plain(connection, 1000, START_US + minute * MINUTE_US, 60)
        connection.execute("CHECKPOINT")
    until_done(Roller(store, store.cursor(), Vitals()), START_US + 20 * MINUTE_US + 20_000_000)
    minutes = counts(connection, "samples_instance_1m")
    limit = 10 << 20
    vitals = Vitals()
    retention = Retention(settings(store_bytes_max=limit), store, store.cursor(), vitals)
    used, found, _ = retention._room()
    assert found == limit < used
    turns = 0
    while retention.turn(START_US + 20 * MINUTE_US + 20_000_000, NEVER):
        turns += 1
    used, _, _ = retention._room()
    assert limit // 2 < used <= limit
    [(first, last)] = connection.execute(
        "SELECT epoch_us(min(start)), epoch_us(max(start)) FROM samples_instance"
    ).fetchall()
    assert START_US < first < last
    assert last == START_US + 20 * MINUTE_US - 1_000_000
    assert counts(connection, "samples_instance_1m") == minutes
    assert vitals.deleted == {"windows": (first - START_US) // 1_000_000 * 1000}
    assert len([r for r in caplog.records if "collector.store_bytes_max" in r.getMessage()]) == 1


def test_size_takes_what_no_rollup_has_when_nothing_else_is_left(store: Store) -> None:
    connection = store.cursor()
    for minute in range(20):
        put_plain(connection, 1000, START_US + minute * MINUTE_US, 60)
        connection.execute("CHECKPOINT")
    vitals = Vitals()
    retention = Retention(settings(store_bytes_max=10 << 20), store, store.cursor(), vitals)
    while retention.turn(START_US + 20 * MINUTE_US, NEVER):
        pass
    assert retention._room()[0] <= 10 << 20
    assert vitals.deleted["unrolled"] == vitals.deleted["windows"] > 0


def test_a_disk_that_is_nearly_full_spares_the_newest_hour(store: Store) -> None:
    connection = store.cursor()
    for minute in range(90):
        put_plain(connection, 50, START_US + minute * MINUTE_US, 60)
    connection.execute("CHECKPOINT")
    now = START_US + 90 * MINUTE_US
    until_done(Roller(store, store.cursor(), Vitals()), now)
    vitals = Vitals()
    retention = Retention(settings(disk_free_ratio_min=1.0), store, store.cursor(), vitals)
    for _ in range(50):
        if not retention.turn(now, NEVER):
            break
    [(first,)] = connection.execute("SELECT epoch_us(min(start)) FROM samples_instance").fetchall()
    assert first == now - HOUR_US


def test_the_thread_keeps_up_beside_a_writer(store: Store) -> None:
    connection, rolled = store.cursor(), store.rolled
    clock = ManualClock(LATER_US * 1000)
    vitals = Vitals()
    keeper = Keeper(settings(keep_raw_hours=1.0), store, clock, vitals, Remembering())
    keeper.start()
    try:
        for minute in range(30):
            with rolled.writing(), transaction(connection):
                put_plain(connection, 20, START_US + minute * MINUTE_US, 60)
                note(connection, rolled, [START_US + minute * MINUTE_US])
                connection.execute("UPDATE meta SET value = ? WHERE key = 'swept'", [str(minute)])
        deadline, waiting = 600, threading.Event()
        while counts(connection, "samples_instance_1h") != [(START_US, 30 * 20 * 60)] and deadline:
            waiting.wait(0.05)
            deadline -= 1
        assert counts(connection, "samples_instance_1h") == [(START_US, 30 * 20 * 60)]
    finally:
        keeper.stop()
    assert not vitals.keeper_failures

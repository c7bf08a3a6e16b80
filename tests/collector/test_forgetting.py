"""What is gone for good is forgotten, in the store and by the writer; what comes back is new, or goes on."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.collector.fill import START_US, opened
from tests.collector.sender import CLOCK, ask, collecting, publish, schema, window
from trimtab.collector.forgetting import gone
from trimtab.collector.rollmarks import HOUR_US

OLD = schema({"instance": (["queue_depth"], ["n1/1", "n1/2"])})
NEW = schema({"instance": (["queue_depth"], ["n1/2"])})


def test_only_what_has_no_rows_and_is_not_current(tmp_path: Path) -> None:
    store = opened(tmp_path)
    connection = store.cursor()
    for subject, current in ((1, True), (2, False), (3, False), (4, False), (5, False)):
        row = [subject, f"n/{subject}", current]
        connection.execute("INSERT INTO subjects VALUES (?, 'instance', ?, 'n', MAP {}, ?)", row)
    for table, subject in (("samples_instance_1h", 2), ("samples_instance_1m", 3)):
        connection.execute(
            f"INSERT INTO {table} (subject, start, windows) VALUES (?, make_timestamp(?), 1)", [subject, START_US]
        )
    connection.execute("INSERT INTO samples_instance_1 (subject, start) VALUES (4, make_timestamp(?))", [START_US])
    assert gone(connection, START_US).subjects == [5]
    store.close()


def test_spools_and_nodes_that_were_not_heard_of(tmp_path: Path) -> None:
    store = opened(tmp_path)
    connection = store.cursor()
    for stream, node, last_us in ((1, "a", START_US), (2, "b", START_US), (3, "c", START_US + 2 * HOUR_US)):
        connection.execute(
            "INSERT INTO stream_records VALUES (?, ?, 's', 1, 1, 0, 0, 0, '', NULL, make_timestamp(?))",
            [stream, node, last_us],
        )
        connection.execute("INSERT INTO nodes VALUES (?, '', '', '', 0, make_timestamp(?), '')", [node, last_us])
    connection.execute("INSERT INTO arrivals VALUES (2, 1, make_timestamp(?), 1, make_timestamp(0))", [START_US])
    found = gone(connection, START_US + HOUR_US)
    assert (found.streams, sorted(found.nodes)) == ([1], ["a", "b"])
    assert not gone(connection, START_US)
    store.close()


def test_the_writer_forgets_and_what_comes_back_is_stored(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, query):
        publish(telemetry, OLD, window(1, OLD))
        publish(telemetry, NEW, window(2, NEW))
        [[first]] = ask(query, "SELECT subject FROM subjects WHERE id = 'n1/1'")
        connection = collector._store.cursor()
        connection.execute("DELETE FROM samples_instance_0 WHERE subject = ?", [first])
        connection.execute("DELETE FROM samples_instance_1 WHERE subject = ?", [first])
        found = gone(connection, START_US)
        assert found.subjects == [first]
        collector._writer.forget(found)
        deadline = CLOCK.monotonic() + 30
        while ask(query, "SELECT count(*) FROM subjects") != [[1]] and CLOCK.monotonic() < deadline:
            CLOCK.wait(threading.Event(), 0.05)
        assert ask(query, "SELECT id FROM subjects") == [["n1/2"]]
        publish(telemetry, OLD, window(3, OLD))
        assert ask(query, "SELECT subject FROM fingerprints WHERE subject = 'n1/1'") == [["n1/1"]]
        assert ask(query, "SELECT high_water_mark, windows FROM streams") == [[3, 3]]

"""What was learnt about the fleet outlasts its processes; what is damaged is refused, said and counted."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collector.sender import CLOCK, Sending, ask, channel, collecting, hello
from tests.collector.test_analyst_apart import analysing, until
from tests.collector.test_kill import Part
from tests.detector.fleet import Fleet, Noise, Recorder, Stage
from tests.detector.test_budget import PEAKS, learnt
from tests.e2e.services import Installation, install
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.query_pb2_grpc import QueryStub
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub
from trimtab.analysis import command
from trimtab.collector.analysis import MEMORY_MAX
from trimtab.collector.store import FILE
from trimtab.detector import memory
from trimtab.detector.budget import Budget
from trimtab.settings import Settings

DAMAGED = ["{", "[]", "7", '{"version": 2, "budget": [1, 1, 1, 1]}', "[" * 100_000] + [
    json.dumps({"version": 1, "budget": tail})
    for tail in (
        None, [], [1, 2, 3], ["a"] * 4, [1, -1, 1, 1], [1, float("nan"), 1, 1], [1e3, 1e9, 1.0, 1.0], [10, 40, 1, 9], [10, 1, 9, 9],
    )
]  # fmt: skip
"""The last three: more than any peaks can sum to, squares below those of equal peaks, squares above those of the largest."""
KNOWN = [200.0, 100.0, 80.0, 3e6]
CONFIG = "\n[detector]\nwarmup_windows = 2\nopen_seconds = 1.0\n"
REMEMBERED = "SELECT value FROM meta WHERE key = 'analysis_memory'"
SECONDS_MAX = 60.0


@settings(deadline=None)
@given(PEAKS)
def test_what_is_written_is_what_is_read(peaks: list[float]) -> None:
    made, twin = learnt(peaks), Budget(1.0)
    memory.restore(twin, memory.written(made))
    assert memory.written(twin) == memory.written(made)
    assert twin.level(1000) == made.level(1000)
    assert len(memory.written(made)) < MEMORY_MAX


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda text: text[:40])
def test_what_is_damaged_is_refused_and_changes_nothing(damaged: str) -> None:
    made = learnt([4.0] * 60)
    before = memory.written(made)
    with pytest.raises(ValueError, match=r"JSON|version|budget|tail"):
        memory.restore(made, damaged)
    assert memory.written(made) == before


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_is_worse_than_refused(text: str) -> None:
    made = Budget(1.0)
    try:
        memory.restore(made, text)
    except ValueError:
        assert made.save()["tail"].tolist() == [0.0] * 4


def test_a_watch_goes_on_where_the_last_one_was() -> None:
    stage = Stage(Fleet(noise=Noise(bursts_per_second=0.2)))
    stage.run(130)
    told = json.loads(stage.journal.remembered)["budget"]
    # 130 s of four instances, less the warm-up, and less what came after the last minute.
    assert 4 * 40 < told[3] < 4 * 130
    stage.restart()
    assert memory.written(stage.watch._judge.budget) == stage.journal.remembered
    stage.run(130)
    assert json.loads(stage.journal.remembered)["budget"][3] > told[3] + 4 * 40
    assert stage.journal.refused == []


def test_a_watch_that_cannot_read_its_memory_says_so_and_learns_anew() -> None:
    journal = Recorder()
    journal.remembered = DAMAGED[0]
    stage = Stage(Fleet(), journal=journal)
    assert len(journal.refused) == 1
    stage.run(130)
    assert json.loads(journal.remembered)["budget"][3] > 0


def test_the_process_of_the_analysis_refuses_too() -> None:
    journal = Recorder()
    journal.remembered = DAMAGED[0]
    with analysing(command(Settings()), journal=journal) as scene:
        until(lambda: len(journal.refused) == 1, "nothing was refused")
        assert scene.analyst.restarts == 0


def test_the_store_keeps_the_newest_and_counts_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with collecting(tmp_path) as (collector, _, query):
        journal = collector._journal
        assert journal.memory() == ""
        for text in ("first", "second", "it's the \u2603 last"):
            journal.remember(text)
            until(lambda t=text: journal.memory() == t, "it is not stored")  # type: ignore[misc]
        assert ask(query, REMEMBERED) == [["it's the \u2603 last"]]
        journal.refuse_memory("no JSON")
        assert journal.memories_refused == 1
        assert "no JSON" in caplog.text
    with collecting(tmp_path) as (collector, _, _):
        assert collector._journal.memory() == "it's the \u2603 last"


@contextmanager
def speaking(address: str) -> Iterator[None]:
    """A node with four instances, whose windows come once a second."""
    stop, fleet = threading.Event(), Fleet()

    def speak() -> None:
        with channel(int(address.rpartition(":")[2])) as line:
            stream = Sending(
                TelemetryStub(line), hello(fleet.nodes[0].name, first_seq=1, spool_id=str(CLOCK.unix_ns()))
            )
            seq = 0
            while not stop.is_set():
                fleet.now_ns = CLOCK.unix_ns() - 10**9
                [window] = fleet.step()
                seq += 1
                message = window.message
                message.seq, message.start_unix_ns = seq, fleet.now_ns - 10**9
                message.start_boottime_ns = CLOCK.boottime_ns() - 10**9
                stream.send(*([window.schema] if seq == 1 else []), pb.AgentMessage(window=message))
                stop.wait(1.0)
            stream._queue.put(None)

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def remembered(installed: Installation) -> str | None:
    """What the collector has in its store; None while it does not answer."""
    with channel(int(installed.collector.rpartition(":")[2])) as line:
        try:
            found = ask(QueryStub(line), REMEMBERED)
        except grpc.RpcError:
            return None
    return str(found[0][0]) if found else ""


def waited(true: Callable[[], bool], part: Part) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not true():
        assert time.monotonic() < deadline, part.tail()
        time.sleep(0.1)


def test_it_outlasts_kill_9_of_the_collector(tmp_path: Path) -> None:
    installed = install(tmp_path, tmp_path / "no-haproxy")
    with installed.config.open("a") as config:
        config.write(CONFIG)
    state, told = installed.state / "collector", json.dumps({"version": 1, "budget": KNOWN})
    with collecting(state) as (collector, _, _):
        collector._journal.remember(told)
    arguments = ("--config", str(installed.config), "collector", "--state", str(installed.state))
    part, seconds = Part(tmp_path / "log", "trimtab", *arguments), [KNOWN[3]]
    try:
        for _ in range(2):
            waited(lambda: remembered(installed) is not None, part)
            with speaking(installed.collector):
                waited(lambda before=told: remembered(installed) not in {None, before}, part)  # type: ignore[misc]
            told = remembered(installed) or ""
            seconds.append(json.loads(told)["budget"][3])
            part.kill()
            part.start()
    finally:
        part.end()
    # It would begin with 0 if it were forgotten; in so few seconds next to nothing fades.
    assert min(seconds) > 0.999 * KNOWN[3], seconds
    assert len(set(seconds)) == 3, "each life learnt something"
    with duckdb.connect(state / FILE) as database:
        assert database.execute("SELECT count(*) FROM meta WHERE key = 'analysis_memory'").fetchall() == [(1,)]

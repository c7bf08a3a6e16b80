"""The analysis in a process of its own: stopped, killed, talking nonsense. Ingest goes on, and what was found is told once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.collector.sender import schema, window
from tests.detector.fleet import Recorder
from trimtab.agent.clock import SystemClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.analysis import command
from trimtab.collector import analyst_apart
from trimtab.collector.analysis import Apart
from trimtab.collector.analyst_apart import AnalystApart
from trimtab.collector.backlog import TURNS_MAX, Backlog
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.schemas import NODES_MAX, Schemas
from trimtab.collector.standing import Standing
from trimtab.collector.store import StoreError
from trimtab.collector.window import Window
from trimtab.settings import Settings

DEADLINE_SECONDS = 30.0
SCHEMA = schema()


class Hasty(SystemClock):
    """Fifty seconds in one."""

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        return stop.wait(seconds / 50)


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def made(node: str, seq: int = 1) -> Window:
    message = window(seq, SCHEMA).window
    return Window(node, "spool", seq, message.start_unix_ns, message.duration_ns, SCHEMA, message)


class Scene:
    """An analyst, and all that it told."""

    def __init__(self, command: Sequence[str], journal: Recorder | None = None, **more: Any) -> None:
        self.fleet, self.feed = FleetSlot(), IncidentFeed(Standing(SystemClock()))
        self.journal = journal or Recorder()
        self.analyst = AnalystApart(Apart(command), Hasty(), self.fleet, self.feed, **more)
        self.told: list[tuple[str, str, int]] = []

    def seen(self) -> dict[str, float]:
        _, state = self.fleet.wait(-1, 0)
        return {i.id: i.requests_per_second for i in state.instances} if state else {}

    def observe(self, *nodes: str) -> None:
        self.analyst.observe([made(node) for node in nodes])

    def saves(self) -> list[tuple[str, str]]:
        return [(i.id, i.subject) for i in self.journal.saves]


@contextmanager
def analysing(command: Sequence[str], **more: Any) -> Iterator[Scene]:
    scene = Scene(command, **more)
    with scene.feed.watch() as (_, watcher):
        scene.analyst.start(scene.journal)
        try:
            yield scene
        finally:
            scene.analyst.stop()
            while (incident := watcher.next(0)) is not None:
                scene.told.append((incident.id, incident.subject, incident.status))
            assert scene.analyst.process_id is None
    assert not any(t.name.startswith("analysis") for t in threading.enumerate())


def child(misdeed: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "tests.collector.analysis_child", misdeed, str(folder / "done")]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_it_finds_is_saved_and_told(tmp_path: Path) -> None:
    with analysing(child("none", tmp_path)) as scene:
        scene.observe("n1", "n2", "n1")
        until(lambda: scene.seen() == {"n1": 2, "n2": 1}, "the windows were not seen")
        assert sorted(subject for _, subject in scene.saves()) == ["n1", "n2"]
    assert [t[:2] for t in scene.told] == scene.saves()
    assert (scene.analyst.left_out, scene.analyst.restarts) == (0, 0)


def test_while_it_stands_still_windows_are_left_out_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with analysing(child("none", tmp_path), backlog_bytes_max=40_000) as scene:
        scene.observe("n1")
        until(lambda: scene.seen() == {"n1": 1}, "the first window was not seen")
        pid = scene.analyst.process_id
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        sent = 1
        while scene.analyst.left_out < 2000:
            scene.observe("n1")
            sent += 1
        assert "the analysis is behind" in caplog.text
        os.kill(pid, signal.SIGCONT)
        until(lambda: scene.seen()["n1"] + scene.analyst.left_out == sent, "some were neither seen nor counted")
        scene.observe("n2")
        until(lambda: "n2" in scene.seen(), "it does not go on")
        assert "the analysis has caught up" in caplog.text
        assert (scene.analyst.process_id, scene.analyst.restarts) == (pid, 0)


def test_it_is_told_what_a_person_accepts_also_when_it_is_behind(tmp_path: Path) -> None:
    with analysing(child("none", tmp_path), backlog_bytes_max=4_000) as scene:
        scene.observe("n1")
        until(lambda: scene.saves() == [("i-1", "n1")], "no incident")
        pid = scene.analyst.process_id
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        while scene.analyst.left_out < 100:
            scene.observe("n1")
        scene.analyst.accept("i-1")
        before = scene.analyst.left_out
        while scene.analyst.left_out < before + 2000:
            scene.observe("n1")
        os.kill(pid, signal.SIGCONT)
        until(lambda: scene.journal.stored["i-1"].status == pb.Incident.STATUS_RESOLVED, "it is not told")


def test_killed_it_comes_back_with_the_open_incidents_and_the_numbers_go_on(tmp_path: Path) -> None:
    with analysing(child("none", tmp_path)) as scene:
        scene.observe("n1")
        until(lambda: scene.saves() == [("i-1", "n1")], "no incident")
        for kills in (1, 2):
            assert scene.analyst.process_id is not None
            os.kill(scene.analyst.process_id, signal.SIGKILL)
            until(lambda k=kills: scene.analyst.restarts == k, "it was not started again")  # type: ignore[misc]
            node = f"n{kills + 1}"
            scene.observe("n1", node)
            until(lambda n=node: n in scene.seen(), "it sees nothing")  # type: ignore[misc]
    assert scene.saves() == [("i-1", "n1"), ("i-2", "n2"), ("i-3", "n3")]
    assert [t[:2] for t in scene.told] == scene.saves()


def test_what_the_store_does_not_hold_yet_is_taken_up_all_the_same(tmp_path: Path) -> None:
    class Full(Recorder):
        full = True

        def save_incident(self, incident: pb.Incident) -> None:
            if self.full:
                raise StoreError("full")
            super().save_incident(incident)

    journal = Full()
    with analysing(child("none", tmp_path), journal=journal) as scene:
        scene.observe("n1")
        until(lambda: scene.seen() == {"n1": 1}, "nothing was seen")
        assert scene.analyst.process_id is not None
        os.kill(scene.analyst.process_id, signal.SIGKILL)
        until(lambda: scene.analyst.restarts == 1, "it was not started again")
        scene.observe("n1", "n2")
        until(lambda: "n2" in scene.seen(), "it sees nothing")
        journal.full = False
        until(lambda: scene.saves() == [("i-1", "n1"), ("i-2", "n2")], "what was not saved was forgotten")
    assert [t[:2] for t in scene.told] == scene.saves()


def test_a_restart_of_the_collector_takes_up_the_journal(tmp_path: Path) -> None:
    status = pb.Incident.STATUS_OPEN
    journal = Recorder([pb.Incident(id="i-7", subject="n1", status=status, opened_unix_ns=1)])
    with analysing(child("none", tmp_path), journal=journal) as scene:
        scene.observe("n1", "n2")
        until(lambda: "n2" in scene.seen(), "it sees nothing")
    assert scene.saves() == [("i-8", "n2")]
    assert scene.told == [("i-7", "n1", status), ("i-8", "n2", status)]


@pytest.mark.parametrize("misdeed", ["exit", "noise", "no length", "no message", "no name", "half"])
def test_nonsense_ends_it_and_nothing_of_it_is_taken(
    misdeed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with analysing(child(misdeed, tmp_path)) as scene:
        scene.observe("n1")
        until(lambda: scene.analyst.restarts == 1, "it was not started again")
        # What it had found in that very tick is not taken: the next one finds it again, under the same number.
        assert scene.saves() == []
        scene.observe("n1")
        until(lambda: scene.seen() == {"n1": 1}, "it sees nothing")
    assert [t[:2] for t in scene.told] == scene.saves() == [("i-1", "n1")]
    assert "windows are stored, and it is started again in 1 s" in caplog.text


def test_one_that_never_answers_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with analysing(child("none", tmp_path)) as scene:
        scene.observe("n1")
        until(lambda: scene.seen() == {"n1": 1}, "nothing was seen")
        pid = scene.analyst.process_id
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(analyst_apart, "SILENT_SECONDS_MAX", 0.5)
        until(lambda: scene.analyst.restarts >= 1, "it was not replaced")
        monkeypatch.undo()
        assert not running(pid)
        until(lambda: scene.analyst.process_id not in {None, pid}, "there is no other")


def test_one_that_cannot_be_started_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with analysing([str(tmp_path / "nothing")]) as scene:
        until(lambda: scene.analyst.restarts >= 2, "it was not tried again")
        scene.observe("n1")
    assert "cannot be started" in caplog.text


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_it_dies_with_the_collector(stopped: bool, tmp_path: Path) -> None:
    parent = f"""
import threading
from tests.collector.test_analyst_apart import Scene
scene = Scene({child("none", tmp_path)!r})
scene.analyst.start(scene.journal)
scene.observe("n1")
while not scene.seen():
    threading.Event().wait(0.01)
print(scene.analyst.process_id, flush=True)
threading.Event().wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert running(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        process.kill()
    until(lambda: not running(pid), "it lives on")


def test_the_real_one_starts_with_the_collectors_settings() -> None:
    with analysing(command(Settings())) as scene:
        until(lambda: scene.fleet.wait(-1, 0)[1] is not None, "it does not answer")
        scene.observe("n1")
        until(lambda: not scene.analyst._backlog._turns[0].entries, "the window was not taken")
    assert (scene.analyst.restarts, scene.saves()) == (0, [])


def test_a_full_backlog_leaves_out_whole_ticks_the_oldest_first() -> None:
    one = len(_data := made("n", 1).message.SerializeToString()) + 40
    assert _data
    backlog = Backlog(bytes_max=6 * one)
    for tick in range(4):
        backlog.put([made(f"t{tick}"), made(f"t{tick}")])
        backlog.tick(tick)
    turns = [backlog.take(0) for _ in range(4)]
    kept = [t for t in turns if t is not None]
    assert backlog.left_out == 2 * (4 - len(kept)) > 0
    assert [t.tick_unix_ns for t in kept] == [0, 1, 2, 3][-len(kept) :]
    assert all({e.node for e in t.entries} == {f"t{t.tick_unix_ns}"} and len(t.entries) == 2 for t in kept)


def test_ticks_alone_cannot_pile_up_either() -> None:
    backlog = Backlog()
    for tick in range(3 * TURNS_MAX):
        backlog.tick(tick)
    ticks = []
    while (turn := backlog.take(0)) is not None:
        ticks.append(turn.tick_unix_ns)
    assert ticks == list(range(2 * TURNS_MAX, 3 * TURNS_MAX))


def test_both_ends_forget_the_same_schemas() -> None:
    ours, theirs, other = Schemas(), Schemas(), schema({"node": (["x"], ["n"])})
    for k in range(NODES_MAX + 10):
        if ours.put(f"n{k % (NODES_MAX + 5)}", SCHEMA if k % 3 else other):
            theirs.put(f"n{k % (NODES_MAX + 5)}", SCHEMA if k % 3 else other)
    assert ours._of.keys() == theirs._of.keys()
    assert len(ours._of) == NODES_MAX

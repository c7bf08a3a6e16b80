"""Exactly once in the store, through `kill -9` of any part at any instant, under load.

Real processes: three agents that are the product's spool and publisher, and a collector. Afterwards every window that a spool took
must be in the store once, with all that was in it, and nothing else may be.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pytest

from tests.collector import spooling_agent
from tests.collector.made_window import make
from tests.collector.spooling_agent import Told
from tests.e2e.services import Installation, install

KILLS = 50
AT_WORK = 12
"""Kills that wait until windows are acknowledged again; the others come as they come, most of them while somebody still starts."""
NODES = ("n1", "n2", "n3")
SEED = int(os.environ.get("TRIMTAB_TEST_SEED", "20261126"))
SECONDS_MAX = 60.0
Row = tuple[str, str, str, float]


class Part:
    """A process that is started again after every kill."""

    def __init__(self, log: Path, *command: str) -> None:
        self._command, self._log = [sys.executable, "-m", *command], log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self._process.poll() is None, f"it ended by itself: {self.tail()}"
        self._process.kill()
        self._process.wait()

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def stopped(self) -> int:
        return self._process.wait(SECONDS_MAX + 30)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def tail(self) -> str:
        return self._log.read_text()[-2000:]


class Fleet:
    """The agents and their collector."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._installed = install(directory, directory / "no-haproxy")
        self.collector = Part(directory / "collector.log", *_collector(self._installed))
        self.agents = []
        for node in NODES:
            (directory / node).mkdir()
            command = ("tests.collector.spooling_agent", str(directory / node), node, self._installed.collector)
            self.agents.append(Part(directory / f"{node}.log", *command))

    @property
    def database(self) -> Path:
        return self._installed.state / "collector" / "trimtab.duckdb"

    def told(self, node: str) -> Told:
        """What the journal of an agent that has ended says."""
        return spooling_agent.read(self._said(node))

    def acknowledged(self) -> int:
        """How far the agents' spools are acknowledged, all together, when they last said so."""
        tried = [[line for line in self._said(node) if line.startswith("try")] for node in NODES]
        return sum(int(lines[-1].split()[-1]) for lines in tried if lines)

    def said(self) -> list[int]:
        """How much each agent has put into its journal."""
        return [len(self._said(node)) for node in NODES]

    def _said(self, node: str) -> list[str]:
        path = self._directory / node / "journal"
        # The last line may not be whole.
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def stop(self) -> None:
        """Let every agent deliver what it has, then the collector close its file."""
        # One that still starts knows of no other end than a kill.
        before = self.said()
        until(lambda: all(now > then + 1 for now, then in zip(self.said(), before, strict=True)), self)
        for agent in self.agents:
            agent.ask_to_stop()
        for agent in self.agents:
            assert agent.stopped() == 0, f"not all was delivered: {agent.tail()} {self.collector.tail()}"
        self.collector.ask_to_stop()
        assert self.collector.stopped() == 0, self.collector.tail()

    def end(self) -> None:
        for part in (*self.agents, self.collector):
            part.end()


def _collector(installed: Installation) -> list[str]:
    return ["trimtab", "--config", str(installed.config), "collector", "--state", str(installed.state)]


def until(condition: Callable[[], bool], fleet: Fleet) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, f"nothing is acknowledged any more: {fleet.collector.tail()}"
        time.sleep(0.02)


def kill_at_random(fleet: Fleet, chance: random.Random) -> None:
    """Fifty times: one part, or several at once; each is started again at once."""
    at_work = set(chance.sample(range(KILLS), AT_WORK))
    for turn in range(KILLS):
        if turn in at_work:
            before = fleet.acknowledged()
            until(partial(_beyond, fleet, before), fleet)
        time.sleep(chance.uniform(0.0, 0.2 if turn in at_work else 0.7))
        agent = chance.choice(fleet.agents)
        # What is between a commit and its answers only the collector can die in.
        weights = [6, 2, 2] if turn in at_work else [3, 5, 2]
        [victims] = chance.choices([[fleet.collector], [agent], [fleet.collector, agent]], weights)
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.start()


def _beyond(fleet: Fleet, before: int) -> bool:
    return fleet.acknowledged() > before


def fingerprints(database: duckdb.DuckDBPyConnection, node: str) -> dict[int, list[Row]]:
    """All values of a node, by the microsecond at which their window starts."""
    rows: dict[int, list[Row]] = {}
    sql = "SELECT epoch_us(start), kind, subject, signal, value FROM fingerprints WHERE node = ?"
    for start, *row in database.execute(sql, [node]).fetchall():
        rows.setdefault(start, []).append((row[0], row[1], row[2], row[3]))
    return rows


def gauges(values: dict[tuple[str, str, str], float]) -> dict[tuple[str, str, str], float]:
    return {key: value for key, value in values.items() if not key[2].startswith("request_latency")}


def check_node(database: duckdb.DuckDBPyConnection, node: str, told: Told) -> None:
    """The store and the journal say the same of every window, and of nothing else."""
    sql = "SELECT spool, seq, epoch_us(start) FROM windows WHERE node = ?"
    stored = database.execute(sql, [node]).fetchall()
    starts = {(spool, seq): start for spool, seq, start in stored}
    assert len(stored) == len(starts), "a window is stored twice"
    assert starts.keys() == told.kept.keys(), "windows lost, or stored that no spool took"
    assert len(set(starts.values())) == len(starts)
    values = fingerprints(database, node)
    sql = "SELECT detail, kind, subject, name, value, epoch_us(occurred) FROM events WHERE node = ?"
    events = sorted(database.execute(sql, [node]).fetchall())
    wanted_events = []
    for key, number in told.kept.items():
        made, start = make(number, node), starts[key]
        found = values.pop(start, [])
        wanted = made.fingerprints()
        assert len(found) == len(wanted), f"window {key} of {node}: values lost, or stored twice"
        got = {row[:3]: row[3] for row in found}
        # The five numbers of a sketch are rounded where they are stored.
        assert got == pytest.approx(wanted, rel=1e-5), f"window {key} of {node}"
        assert gauges(got) == gauges(wanted), f"window {key} of {node}"
        for place, (subject, value, detail) in enumerate(made.events):
            wanted_events.append((detail, "instance", subject, "made", value, start + 1000 * place))
    assert not values, "values that belong to no window"
    assert [row[:5] for row in events] == [row[:5] for row in sorted(wanted_events)]
    assert [row[5] for row in events] == pytest.approx([row[5] for row in sorted(wanted_events)], abs=2)


def test_fifty_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    print(f"TRIMTAB_TEST_SEED={SEED}")
    fleet = Fleet(tmp_path)
    try:
        kill_at_random(fleet, random.Random(SEED))
        fleet.stop()
    finally:
        fleet.end()
    lives = 0
    with duckdb.connect(fleet.database, read_only=True) as database:
        for node in NODES:
            told = fleet.told(node)
            lives += told.lives
            assert told.ended
            assert told.kept
            check_node(database, node, told)
            sql = "SELECT high_water_mark, windows, lost, refused FROM streams WHERE node = ?"
            count = len(told.kept)
            assert database.execute(sql, [node]).fetchall() == [(count, count, 0, 0)]
    # It was no test if the agents never got as far as their spools.
    assert lives > KILLS // 4

"""Agents that ask for more than their share: the others' windows are stored all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.collector.real_collector import GoodAgent, Served, serving, until
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire.columns import SUBJECTS_MAX

RSS_BYTES_MAX = 800 << 20
"""The queue in front of the writer holds 128 MiB, DuckDB as much, the port 64 MiB, and the programs themselves 250 MiB."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@contextmanager
def flood(served: Served, *nodes: str, subjects: int, how: str) -> Iterator[None]:
    """These nodes flood, and have had their first answer."""
    command = [sys.executable, "-m", "tests.collector.flood", str(served.port)]
    parts = [
        subprocess.Popen([*command, node, str(subjects), how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for node in nodes
    ]
    try:
        for part in parts:
            assert part.stdout
            assert part.stdout.readline() == b"in\n"
        yield
        assert [part.poll() for part in parts] == [None] * len(parts), "a flood ended by itself"
    finally:
        for part in parts:
            part.kill()
            part.wait()


def stored(served: Served, node: str) -> int:
    with served.query() as query:
        return next((each.windows for each in query.Nodes(q.NodesRequest()).nodes if each.name == node), 0)


def more_than(served: Served, node: str, before: int) -> bool:
    return stored(served, node) > before


@pytest.mark.parametrize(
    "subjects",
    [pytest.param(1, id="small windows"), pytest.param(SUBJECTS_MAX, id="large windows")],
)
@pytest.mark.parametrize("how", ["greedy", "deaf"])
def test_agents_that_flood(served: Served, subjects: int, how: str) -> None:
    """Some came before the good agent and one after it: whoever is asked first must not be the only one."""
    early = ("f1", "f2", "f3")
    with flood(served, *early, subjects=subjects, how=how), GoodAgent(served) as good:
        with flood(served, "f4", subjects=subjects, how=how):
            good.goes_on(10)
            if how == "greedy":
                for node in (*early, "f4"):
                    until(partial(more_than, served, node, stored(served, node)), f"{node} is starved by the others")
            good.goes_on(10)
        assert served.rss_bytes < RSS_BYTES_MAX
    assert "Traceback" not in "\n".join(served.log)

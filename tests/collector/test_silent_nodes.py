"""Nodes that fall silent while the collector is down: the store knows who was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.collector.real_collector import GoodAgent, Served, serving, until
from tests.collector.sender import BOOT_SECOND_NS, CLOCK, Recording, Sending, collecting, hello, schema, window
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.events import AGENT_STOPPED

IMPATIENT = "[detector]\nstale_seconds = 1.0\n"
HOUR_NS = 3600 * BOOT_SECOND_NS
UPTIME_NS = 10 * HOUR_NS


def goodbye(node: str) -> pb.Event:
    now = CLOCK.unix_ns()
    return pb.Event(subject_kind=pb.SUBJECT_KIND_NODE, subject=node, name=AGENT_STOPPED, value=1, unix_ns=now)


def test_who_was_there_is_who_sent_within_an_hour_of_the_last_and_did_not_say_goodbye(tmp_path: Path) -> None:
    analysis, now = Recording(), CLOCK.unix_ns()
    starts = {"recent": now - HOUR_NS // 2, "last": now - 10 * BOOT_SECOND_NS, "old": now - 2 * HOUR_NS, "stopped": now}
    with collecting(tmp_path, analysis=analysis) as (_, stub, _):
        for node, start in starts.items():
            of = schema({"node": (["cpu_busy_cores"], [node])})
            told = window(1, of, start_unix_ns=start, start_boottime_ns=UPTIME_NS - (now - start))
            if node == "stopped":
                told.window.events.append(goodbye(node))
            Sending(stub, hello(node, labels={"rack": f"r-{node}"}, boottime_ns=UPTIME_NS), of, told).finish()
        heard = analysis.journal.heard()
    assert [(one.node, dict(one.labels), one.window_seconds) for one in heard] == [
        (node, {"rack": f"r-{node}"}, 1.0) for node in ("last", "recent")
    ]
    assert [one.last_unix_ns for one in heard] == [
        pytest.approx(starts[node] + BOOT_SECOND_NS, abs=BOOT_SECOND_NS) for node in ("last", "recent")
    ]


def silences(served: Served) -> Iterator[str]:
    with served.query() as ask:
        for incident in ask.Incidents(q.IncidentsRequest()).incidents:
            yield f"{incident.subject}: {incident.causes[0].mechanism}"


def test_a_node_that_died_while_the_collector_was_down_is_told(tmp_path: Path) -> None:
    with ExitStack() as agents, serving(tmp_path, more=IMPATIENT) as served:
        for node in ("n1", "n2", "n3"):
            agents.enter_context(GoodAgent(served, node))
        with served.telemetry() as stub:
            of = schema({"node": (["cpu_busy_cores"], ["n4"])})
            last = window(1, of)
            last.window.events.append(goodbye("n4"))
            Sending(stub, hello("n4"), of, last).finish()
        served.process.kill()
        served.process.wait()
    with serving(tmp_path, more=IMPATIENT) as served, GoodAgent(served, "n1", "new"), GoodAgent(served, "n3", "new"):
        until(lambda: bool(list(silences(served))), "nobody is missed")
        assert list(silences(served)) == ["n2: node silent"]
        with GoodAgent(served, "n2", "new") as back:
            back.goes_on(1)
            with served.query() as ask:
                until(lambda: not ask.Incidents(q.IncidentsRequest(open_only=True)).incidents, "it is missed for ever")

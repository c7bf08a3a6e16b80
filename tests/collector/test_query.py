"""What the collector answers besides SQL, and that watchers cannot hold it up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.collector.sender import CLOCK, Recording, Sending, ask, collecting, hello, publish, schema, window
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector.query import QUESTIONS_MAX, WATCHERS_MAX

S = schema({"instance": (["queue_depth"], ["n1/8080"]), "gpu": (["power_watts"], ["n1/gpu/GPU-1"])})


EARLIER_NS = CLOCK.unix_ns() // 10**9 * 10**9 - 3600 * 10**9
"""Not so long ago that retention forgets it."""


def incident(number: int, status: int = q.Incident.STATUS_OPEN, **changes: Any) -> q.Incident:
    evidence = q.Evidence(
        subject="n1/8080", signal="cpu_run_queue_ratio", unit="1", before=0.1, after=float("nan"), course=[1, 2]
    )
    cause = q.Cause(
        subject="n1", mechanism="cpu_contention", confidence=0.9, summary="busy", remedy="less", evidence=[evidence]
    )
    fields = {
        "id": f"i-{number}",
        "status": status,
        "subject": "n1/8080",
        "node": "n1",
        "since_unix_ns": EARLIER_NS + number,
        "opened_unix_ns": EARLIER_NS + number * 10**9,
        "symptom": "p99 ×5",
        "score": 0.97,
        "causes": [cause, q.Cause(mechanism="unknown")],
    }
    return q.Incident(**{**fields, **changes})


def decision(**changes: Any) -> q.Decision:
    weight = q.Weight(instance="n1/8080", model="m", wished=0.2, weight=0.5, reason="cpu_contention")
    fields = {"unix_ns": CLOCK.unix_ns(), "version": 3, "mode": "active", "policy": "proportional", "weights": [weight]}
    return q.Decision(**{**fields, **changes, "targets": {"haproxy": ""}})


def until(condition: Callable[[], bool]) -> None:
    deadline = CLOCK.monotonic() + 20
    while not condition():
        assert CLOCK.monotonic() < deadline
        CLOCK.wait(threading.Event(), 0.02)


def test_nodes(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, telemetry, query):
        stream = Sending(telemetry, hello(), S, window(1, S))
        until(lambda: any(node.windows and node.instances for node in query.Nodes(q.NodesRequest()).nodes))
        publish(telemetry, node="n2")
        here, gone = query.Nodes(q.NodesRequest()).nodes
        assert (here.name, here.connected, here.gpus, [i.id for i in here.instances]) == ("n1", True, 1, ["n1/8080"])
        assert (gone.name, gone.connected, gone.last_window_unix_ns) == ("n2", False, 0)
        stream.finish()


def test_incidents_come_back_as_they_were_saved_also_after_a_restart(tmp_path: Path) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, _telemetry, query):
        for number in range(1, 4):
            analysis.journal.save_incident(incident(number))
        analysis.journal.save_incident(incident(2, q.Incident.STATUS_RESOLVED, resolved_unix_ns=EARLIER_NS + 10**10))
        until(lambda: ask(query, "SELECT status FROM incidents WHERE id = 'i-2'") == [["resolved"]])
        assert ask(query, "SELECT count(*), count(DISTINCT incident) FROM causes") == [[6, 3]]
        assert ask(query, "SELECT before, after FROM evidence WHERE incident = 'i-2'") == [[0.1, None]]
        assert ask(query, "SELECT mechanism FROM incidents WHERE id = 'i-1'") == [["cpu_contention"]]
    with collecting(tmp_path, analysis=Recording()) as (_, _telemetry, query):
        found = query.Incidents(q.IncidentsRequest()).incidents
        assert [i.id for i in found] == ["i-3", "i-2", "i-1"]
        assert found[0].SerializeToString() == incident(3).SerializeToString()
        assert [i.id for i in query.Incidents(q.IncidentsRequest(open_only=True, limit=1)).incidents] == ["i-3"]
        assert [i.id for i in query.Incidents(q.IncidentsRequest(id="i-1")).incidents] == ["i-1"]
        assert not query.Incidents(q.IncidentsRequest(id="' OR 1=1 --")).incidents


def test_watching_incidents_begins_with_the_open_ones(tmp_path: Path) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, _telemetry, query):
        analysis.changed(incident(1))
        analysis.changed(incident(2))
        analysis.changed(incident(1, q.Incident.STATUS_RESOLVED))
        watch = query.WatchIncidents(q.WatchIncidentsRequest(), timeout=30)
        assert next(watch).id == "i-2"
        analysis.changed(incident(3))
        analysis.changed(incident(2, q.Incident.STATUS_RESOLVED))
        assert [(i.id, i.status) for i in (next(watch), next(watch))] == [("i-3", 1), ("i-2", 2)]


def test_a_watcher_that_does_not_read_is_let_go(tmp_path: Path) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, _telemetry, query):
        analysis.changed(incident(0))
        watch = query.WatchIncidents(q.WatchIncidentsRequest(), timeout=60)
        next(watch)
        long = "x" * 100_000
        for number in range(2000):
            analysis.changed(incident(number, symptom=long))
        with pytest.raises(grpc.RpcError) as caught:
            list(watch)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_fleet_comes_at_once_and_again(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, _telemetry, query):
        watch = query.WatchFleet(q.WatchFleetRequest(), timeout=30)
        first, second = next(watch), next(watch)
        assert [i.id for i in first.instances] == ["n1/8080"]
        assert second.unix_ns > first.unix_ns


def test_watchers_are_limited_and_leave_room_for_others(tmp_path: Path) -> None:
    with collecting(tmp_path, agents_max=1) as (_, telemetry, query):
        watches = [query.WatchFleet(q.WatchFleetRequest(), timeout=60) for _ in range(WATCHERS_MAX)]
        for watch in watches:
            next(watch)
        with pytest.raises(grpc.RpcError) as caught:
            next(query.WatchFleet(q.WatchFleetRequest(), timeout=30))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert publish(telemetry, S, window(1, S))[1].ack.seq == 1
        for watch in watches:
            watch.cancel()
        until(lambda: _watches(query))


def _watches(query: Any) -> bool:
    try:
        return bool(next(query.WatchFleet(q.WatchFleetRequest(), timeout=5)).unix_ns)
    except grpc.RpcError:
        return False


def test_decisions_are_kept_newest_first(tmp_path: Path) -> None:
    with collecting(tmp_path) as (_, _telemetry, query):
        older, newer = decision(version=3), decision(version=4)
        for each in (older, newer):
            query.RecordDecision(each)
        assert [d.version for d in query.Decisions(q.DecisionsRequest()).decisions] == [4, 3]
        assert query.Decisions(q.DecisionsRequest(limit=1)).decisions[0] == newer
        assert ask(query, "SELECT version, instance, weight, reason FROM decisions ORDER BY version") == [
            [3, "n1/8080", 0.5, "cpu_contention"],
            [4, "n1/8080", 0.5, "cpu_contention"],
        ]


def test_what_the_policies_saw_is_told_to_who_asks_for_it(tmp_path: Path) -> None:
    saw = q.Seen(columns=["queue"], values=b"\0\0\x80\x3f", incidents={"n1/8080": "i-1"}, mechanisms={"n1/8080": "oom"})
    with collecting(tmp_path) as (_, _telemetry, query):
        older, newer = decision(version=3, seen=saw), decision(version=4)
        for each in (older, newer):
            query.RecordDecision(each)
        assert list(query.Decisions(q.DecisionsRequest(seen=True)).decisions) == [newer, older]
        assert not any(d.HasField("seen") for d in query.Decisions(q.DecisionsRequest()).decisions)
        # It is kept for a shorter time, and so apart.
        assert ask(query, "SELECT version FROM decision_states") == [[3]]
        [[size]] = ask(query, "SELECT max(octet_length(message)) - min(octet_length(message)) FROM decision_records")
        assert size == 0


def test_a_decision_that_wished_for_nothing_is_kept(tmp_path: Path) -> None:
    held = q.Weight(instance="n1/8080", wished=float("nan"), weight=1, reason="stopped")
    with collecting(tmp_path) as (_, _telemetry, query):
        query.RecordDecision(decision(mode="neutral", weights=[held]))
        assert [d.mode for d in query.Decisions(q.DecisionsRequest()).decisions] == ["neutral"]
        assert ask(query, "SELECT wished, weight, reason FROM decisions") == [[None, 1.0, "stopped"]]


def test_who_asks_and_does_not_read_is_let_go(tmp_path: Path) -> None:
    long = q.SqlRequest(sql="SELECT repeat('x', 100000) FROM range(600)")
    with collecting(tmp_path, query_seconds_max=4) as (_, _telemetry, query):
        barely_read = [query.Sql(long, timeout=60) for _ in range(QUESTIONS_MAX)]
        for call in barely_read:
            next(call)
        assert not _answers(query)
        # Room for one may be that of the first: the others could still be read to their ends.
        until(lambda: _has_room(query, long))
        for call in barely_read:
            with pytest.raises(grpc.RpcError):
                list(call)


def _has_room(query: Any, question: q.SqlRequest) -> bool:
    """Whether as many as may ask at a time get an answer."""
    calls = [query.Sql(question, timeout=60) for _ in range(QUESTIONS_MAX)]
    try:
        for call in calls:
            next(call)
    except grpc.RpcError:
        return False
    finally:
        for call in calls:
            call.cancel()
    return True


def _answers(query: Any) -> bool:
    try:
        return ask(query, "SELECT 1") == [[1]]
    except grpc.RpcError:
        return False


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mode": "mad"}, "decision.mode"),
        ({"unix_ns": 0}, "decision.unix_ns"),
        ({"weights": [q.Weight(instance="a", weight=float("nan"))]}, "weights[a].weight"),
        ({"weights": [q.Weight(instance="a", wished=1.01)]}, "weights[a].wished"),
        ({"weights": [q.Weight(instance="a", weight=-0.01)]}, "weights[a].weight"),
        ({"weights": [q.Weight(instance="a")] * 2}, "comes twice"),
        ({"reason": "x" * 2000}, "characters"),
        ({"seen": q.Seen(columns=["queue"], values=b"123")}, "decision.seen: "),
        ({"seen": q.Seen(columns=["x"] * 65, values=b"1234" * 65)}, "decision.seen: "),
        ({"seen": q.Seen(columns=["x" * 2000], values=b"1234")}, "characters"),
        ({"seen": q.Seen(incidents={"n9/1": "i-1"})}, "decision.seen: "),
        ({"overrides": [q.Override(weight=2)]}, "decision.overrides"),
        ({"overrides": [q.Override(frozen={"a": 1})]}, "decision.overrides"),
        ({"overrides": [q.Override()] * 1025}, "1024 overrides"),
    ],
)
def test_wrong_decisions_are_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with collecting(tmp_path) as (_, _telemetry, query):
        with pytest.raises(grpc.RpcError) as caught:
            query.RecordDecision(decision(**changes))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert field in caught.value.details()
        assert not query.Decisions(q.DecisionsRequest()).decisions

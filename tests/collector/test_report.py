"""What an incident did to users, and what was done about it, out of the store."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.collector.fill import MINUTE_US, START_US, opened, put, sketches
from tests.collector.sender import CLOCK, Recording, collecting, latency, publish, schema, window
from tests.collector.test_query import decision, incident, until
from trimtab.agent.sketch.loglinear import of_seconds
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire.columns import schema_hash
from trimtab.collector import actions
from trimtab.collector.distribution import merged
from trimtab.collector.impact import _slow
from trimtab.collector.roller import Roller
from trimtab.collector.scope import utc
from trimtab.collector.store import Store
from trimtab.collector.vitals import Vitals

SECOND = 1_000_000_000
INSTANCES = ("n1/8080", "n1/8081")
S = schema({"instance": (["errors_per_second", "requests_per_second"], INSTANCES)}, unit="1/s", rate=True)


def at(seq: int, start_unix_ns: int, latencies: Sequence[Sequence[float]], errors: Sequence[float]) -> Any:
    """A window that tells these latencies and errors of the two instances."""
    age = CLOCK.unix_ns() - start_unix_ns
    return window(
        seq,
        S,
        [[errors, [len(one) for one in latencies]]],
        sketches=[both(latencies)],
        start_unix_ns=start_unix_ns,
        start_boottime_ns=CLOCK.boottime_ns() - age,
    )


def both(latencies: Sequence[Sequence[float]]) -> Any:
    first, second = (latency(one, k) for k, one in enumerate(latencies))
    for field in ("subjects", "probabilities", "sums", "lengths", "buckets", "counts"):
        setattr(first, field, getattr(first, field) + getattr(second, field))
    return first


def asked(query: Any, id_: str = "i-1") -> q.IncidentReportReply:
    reply: q.IncidentReportReply = query.IncidentReport(q.IncidentReportRequest(id=id_), timeout=30)
    return reply


def weight(instance: str, share: float, reason: str = "") -> q.Weight:
    return q.Weight(instance=instance, wished=share, weight=share, reason=reason)


def test_users_that_were_hit_and_what_was_done(tmp_path: Path) -> None:
    onset = (CLOCK.unix_ns() - 30 * SECOND) // SECOND * SECOND
    usual, slow = [0.010] * 95 + [0.020] * 5, [0.010] * 20 + [0.200] * 80
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, telemetry, query):
        before = [at(k, onset + (k - 11) * SECOND, [usual, usual], [0, 1]) for k in range(1, 11)]
        after = [at(k, onset + (k - 11) * SECOND, [slow, usual], [7, 1]) for k in range(11, 21)]
        publish(telemetry, S, *before, *after)
        analysis.journal.save_incident(incident(1, since_unix_ns=onset))
        analysis.journal.save_incident(incident(2, since_unix_ns=onset, subject="n1"))
        analysis.journal.save_incident(incident(3, since_unix_ns=onset, subject="model m", node="", model="m"))
        ended = {"status": q.Incident.STATUS_RESOLVED, "resolved_unix_ns": onset + 5 * SECOND}
        analysis.journal.save_incident(incident(4, since_unix_ns=onset, **ended))
        analysis.journal.save_incident(incident(5, since_unix_ns=onset, subject="n1/gone"))
        for version, (offset, share) in enumerate([(-60, 1), (1, 1), (2, 0.5), (3, 0.5), (4, 0.05), (900, 1)]):
            weights = [weight("n1/8080", share, "drained"), weight("n1/8081", 1)]
            query.RecordDecision(decision(unix_ns=onset + offset * SECOND, version=version, weights=weights))
        until(lambda: len(query.Incidents(q.IncidentsRequest()).incidents) == 5)
        one, node, model, over, gone = (asked(query, f"i-{k}") for k in range(1, 6))
    impact = one.impact
    assert (impact.instances, impact.requests) == (1, 1000)
    # 80 of 100 were slow, five of which would have been so anyway.
    assert impact.slow == pytest.approx(750, abs=1)
    assert impact.errors == pytest.approx(70)
    assert (impact.p50_before_seconds, impact.p50_after_seconds) == pytest.approx((0.010, 0.2), rel=0.01)
    assert (impact.p95_before_seconds, impact.p95_after_seconds) == pytest.approx((0.010, 0.2), rel=0.01)
    assert [(a.unix_ns - onset) // SECOND for a in one.actions] == [2, 4]
    assert [(a.weight.instance, a.weight.weight, a.weight.reason, a.mode) for a in one.actions] == [
        ("n1/8080", 0.5, "drained", "active"),
        ("n1/8080", 0.05, "drained", "active"),
    ]
    for two in (node, model):
        assert (two.impact.instances, two.impact.requests) == (2, 2000)
        # Of the other instance as many failed before.
        assert two.impact.errors == pytest.approx(70)
        assert two.impact.slow == pytest.approx(750, abs=1)
    assert (over.impact.requests, over.impact.errors) == (500, pytest.approx(35))
    assert over.impact.until_unix_ns == onset + 5 * SECOND
    assert not gone.HasField("impact")
    assert not gone.actions


def test_a_rack_is_all_that_stands_there(tmp_path: Path) -> None:
    onset = (CLOCK.unix_ns() - 30 * SECOND) // SECOND * SECOND
    analysis = Recording()
    placed = schema({"instance": (["requests_per_second"], INSTANCES), "node": (["cpu_cores"], ["n1"])})
    placed.tables[1].subjects[0].labels["rack"] = "r 7"
    placed.hash = schema_hash(placed)
    with collecting(tmp_path, analysis=analysis) as (_, telemetry, query):
        slow = both([[0.2] * 50, [0.2] * 50])
        publish(telemetry, placed, window(1, placed, sketches=[slow], start_unix_ns=onset))
        for number, subject in enumerate(["rack r 7", "rack r", "switch r 7"], 1):
            analysis.journal.save_incident(incident(number, since_unix_ns=onset, subject=subject, node="", model="m"))
        until(lambda: len(query.Incidents(q.IncidentsRequest()).incidents) == 3)
        assert (asked(query).impact.instances, asked(query).impact.requests) == (2, 100)
        assert not any(asked(query, f"i-{k}").HasField("impact") for k in (2, 3))


def test_in_shadow_mode_what_would_be_done_is_told(tmp_path: Path) -> None:
    onset = CLOCK.unix_ns() - 30 * SECOND
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, telemetry, query):
        publish(telemetry, S, at(1, onset, [[0.01], [0.01]], [0, 0]))
        analysis.journal.save_incident(incident(1, since_unix_ns=onset))
        for version, reason in enumerate(["", "shadow: would be 0.5", "shadow: would be 0.5", "shadow: would be 0.1"]):
            made = decision(
                unix_ns=onset + version * SECOND, version=version, mode="shadow", weights=[weight("n1/8080", 1, reason)]
            )
            query.RecordDecision(made)
        assert [a.weight.reason for a in asked(query).actions] == ["shadow: would be 0.5", "shadow: would be 0.1"]


def test_more_than_anybody_reads_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "ACTIONS_MAX", 3)
    onset = CLOCK.unix_ns() - 30 * SECOND
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, telemetry, query):
        publish(telemetry, S, at(1, onset, [[0.01], [0.01]], [0, 0]))
        analysis.journal.save_incident(incident(1, since_unix_ns=onset))
        for version in range(5):
            weights = [weight("n1/8080", 0.1 * (version + 1))]
            query.RecordDecision(decision(unix_ns=onset + version * SECOND, version=version, weights=weights))
        reply = asked(query)
        assert [round(a.weight.weight, 1) for a in reply.actions] == [0.1, 0.2, 0.3]
        assert reply.actions_left_out


@pytest.mark.parametrize("id_", ["i-9", "", "' OR 1=1 --"])
def test_an_incident_that_there_is_not(tmp_path: Path, id_: str) -> None:
    with collecting(tmp_path) as (_, _telemetry, query):
        with pytest.raises(grpc.RpcError) as caught:
            asked(query, id_)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_sampled_requests_count_for_those_that_were_not() -> None:
    usual = of_seconds(np.full(100, 0.01))
    now = of_seconds(np.full(50, 0.1), probability=0.25)
    assert _slow({1: usual}, {1: now}) == pytest.approx(200)
    assert _slow({1: usual}, {1: usual}) == 0
    assert math.isnan(_slow({1: usual}, {2: now}))


ROLLED_SECONDS = range(0, 7300, 7)


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two hours of windows, as far as they go rolled up into minutes and hours."""
    store = opened(tmp_path_factory.mktemp("rolled"))
    connection = store.cursor()
    connection.execute("INSERT INTO subjects VALUES (1, 'instance', 'n1/1', 'n1', MAP {}, true)")
    starts = [START_US + s * 1_000_000 for s in ROLLED_SECONDS]
    put(connection, [1] * len(starts), starts, **sketches([[0.01 * (1 + s % 5)] for s in ROLLED_SECONDS]))
    roller = Roller(store, connection, Vitals())
    while roller.turn(START_US + 7300 * 1_000_000 + 10 * MINUTE_US, threading.Event()):
        pass
    yield store
    store.close()


@pytest.mark.parametrize("span", [(0, 1), (30, 90), (30, 45), (61, 200), (0, 7300), (59, 3661), (3599, 3601)])
def test_rollups_end_where_they_are_asked_to(rolled: Store, span: tuple[int, int]) -> None:
    since, end = (utc((START_US + s * 1_000_000) * 1000) for s in span)
    found = merged(rolled.cursor(), "request_latency", [1], since, end)
    assert found.counts.sum() == sum(span[0] <= s < span[1] for s in ROLLED_SECONDS)

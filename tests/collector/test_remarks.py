"""What operators say of incidents: stored, in force through restarts, told to whoever watches, and kept from the webhook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.collector.sender import Recording, ask, collecting
from tests.collector.test_query import incident, until
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector import by_hand, remarks
from trimtab.collector.feed import IncidentFeed
from trimtab.collector.standing import Standing
from trimtab.collector.store import StoreError
from trimtab.collector.vitals import Vitals
from trimtab.collector.webhook import Webhook

SECOND = 1_000_000_000
RESOLVED = q.Incident.STATUS_RESOLVED


def acknowledge(id_: str = "i-1", who: str = "eve", note: str = "") -> q.RemarkRequest:
    return q.RemarkRequest(who=who, acknowledge=q.AcknowledgeRequest(id=id_, note=note))


def accept(id_: str = "i-1", note: str = "") -> q.RemarkRequest:
    return q.RemarkRequest(who="eve", accept=q.AcceptRequest(id=id_, note=note))


def silence(target: str = "i-1", seconds: float = 3600.0, reason: str = "", who: str = "eve") -> q.RemarkRequest:
    return q.RemarkRequest(who=who, silence=q.SilenceRequest(target=target, seconds=seconds, reason=reason))


def unsilence(target: str = "i-1") -> q.RemarkRequest:
    return q.RemarkRequest(who="eve", unsilence=q.UnsilenceRequest(target=target))


@contextmanager
def with_incident(state: Path, **more: Any) -> Iterator[tuple[Recording, Any]]:
    """A collector that knows i-1 of n1/8080, which is open."""
    analysis = Recording()
    with collecting(state, analysis=analysis, **more) as (_, _telemetry, query):
        analysis.journal.save_incident(incident(1))
        analysis.changed(incident(1))
        until(lambda: len(query.Incidents(q.IncidentsRequest()).incidents) == 1)
        yield analysis, query


def test_remarks_outlast_a_restart_and_what_is_found_out_later(tmp_path: Path) -> None:
    with with_incident(tmp_path) as (analysis, query):
        [told] = query.Remark(acknowledge(note="looking")).incidents
        assert [(a.who, a.note) for a in told.acknowledgements] == [("eve", "looking")]
        query.Remark(acknowledge(who="bob"))
        reply = query.Remark(silence("n1", 7200, "rack move"))
        assert [i.id for i in reply.incidents] == ["i-1"]
        assert reply.silence.until_unix_ns - reply.silence.since_unix_ns == 7200 * SECOND
        before = query.Incidents(q.IncidentsRequest(id="i-1")).incidents[0]
        analysis.journal.save_incident(incident(1, score=0.99))
        analysis.journal.save_incident(incident(2, subject="n2/8080", node="n2"))
        until(lambda: len(query.Incidents(q.IncidentsRequest()).incidents) == 2)
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, _telemetry, query):
        other, found = query.Incidents(q.IncidentsRequest()).incidents
        assert (list(found.acknowledgements), found.silence) == (list(before.acknowledgements), before.silence)
        assert [a.who for a in found.acknowledgements] == ["eve", "bob"]
        assert found.score == 0.99
        assert not other.acknowledgements
        assert not other.HasField("silence")
        # What the analysis takes up, and would save again, has none of it.
        assert not any(i.acknowledgements or i.HasField("silence") for i in analysis.journal.incidents())
        assert ask(query, "SELECT incident, who, note FROM acknowledgements ORDER BY acknowledged") == [
            ["i-1", "eve", "looking"],
            ["i-1", "bob", ""],
        ]
        assert ask(query, "SELECT target, who, reason FROM silences") == [["n1", "eve", "rack move"]]
        query.Remark(unsilence("n1"))
        assert ask(query, "SELECT * FROM silences") == []
    with collecting(tmp_path) as (_, _telemetry, query):
        assert not query.Incidents(q.IncidentsRequest(id="i-1")).incidents[0].HasField("silence")


def test_what_is_accepted_is_acknowledged_and_the_analysis_is_told(tmp_path: Path) -> None:
    with with_incident(tmp_path) as (analysis, query):
        query.Remark(acknowledge())
        assert analysis.accepted == []
        [told] = query.Remark(accept(note="new catalogue")).incidents
        assert analysis.accepted == ["i-1"]
        assert [(a.who, a.note) for a in told.acknowledgements] == [("eve", ""), ("eve", "new catalogue")]


def test_who_watches_is_told(tmp_path: Path) -> None:
    with with_incident(tmp_path) as (analysis, query):
        watch = query.WatchIncidents(q.WatchIncidentsRequest(), timeout=30)
        assert not next(watch).acknowledgements
        query.Remark(acknowledge())
        assert [a.who for a in next(watch).acknowledgements] == ["eve"]
        query.Remark(silence("model m"))
        query.Remark(silence("n1/8080"))
        assert next(watch).silence.target == "n1/8080"
        analysis.changed(incident(1, RESOLVED))
        ended = next(watch)
        assert (ended.status, ended.silence.target, len(ended.acknowledgements)) == (RESOLVED, "n1/8080", 1)


def test_an_incident_that_waits_to_be_stored_can_be_acknowledged(tmp_path: Path) -> None:
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (_, _telemetry, query):
        analysis.changed(incident(7))
        assert [i.id for i in query.Remark(acknowledge("i-7")).incidents] == ["i-7"]


def test_a_silence_that_is_made_longer_stays_the_same_one(tmp_path: Path) -> None:
    with with_incident(tmp_path) as (_, query):
        first = query.Remark(silence(seconds=60)).silence
        second = query.Remark(silence(seconds=600, who="bob")).silence
        assert second.since_unix_ns == first.since_unix_ns
        assert second.until_unix_ns > first.until_unix_ns + 500 * SECOND
        assert ask(query, "SELECT count(*), any_value(who) FROM silences") == [[1, "bob"]]


@pytest.mark.parametrize(
    ("request_", "code", "told"),
    [
        (acknowledge("i-99"), grpc.StatusCode.NOT_FOUND, "no incident 'i-99'"),
        (accept("i-99"), grpc.StatusCode.NOT_FOUND, "no incident 'i-99'"),
        (accept(note="two\nlines"), grpc.StatusCode.INVALID_ARGUMENT, "accept.note: not one line of 0 to 1024"),
        (silence("i-99"), grpc.StatusCode.NOT_FOUND, "no incident 'i-99'"),
        (unsilence("n1"), grpc.StatusCode.NOT_FOUND, "'n1' is not silenced; silenced now: nothing"),
        (acknowledge(who=""), grpc.StatusCode.INVALID_ARGUMENT, "who: not one line of 1 to 256"),
        (acknowledge(who="x" * 257), grpc.StatusCode.INVALID_ARGUMENT, "who: "),
        (acknowledge(note="x" * 1025), grpc.StatusCode.INVALID_ARGUMENT, "acknowledge.note: "),
        (acknowledge(note="a\nb"), grpc.StatusCode.INVALID_ARGUMENT, "acknowledge.note: "),
        (acknowledge("\x1b[2J"), grpc.StatusCode.INVALID_ARGUMENT, "acknowledge.id: "),
        (silence(" "), grpc.StatusCode.INVALID_ARGUMENT, "silence.target: "),
        (silence("x" * 257), grpc.StatusCode.INVALID_ARGUMENT, "silence.target: "),
        (silence(reason="x" * 1025), grpc.StatusCode.INVALID_ARGUMENT, "silence.reason: "),
        (silence(seconds=0), grpc.StatusCode.INVALID_ARGUMENT, "silence.seconds: "),
        (silence(seconds=float("nan")), grpc.StatusCode.INVALID_ARGUMENT, "silence.seconds: "),
        (silence(seconds=float("inf")), grpc.StatusCode.INVALID_ARGUMENT, "silence.seconds: "),
        (q.RemarkRequest(who="eve"), grpc.StatusCode.INVALID_ARGUMENT, "content: neither"),
    ],
)
def test_what_makes_no_sense_is_refused(shared: Any, request_: q.RemarkRequest, code: Any, told: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shared.Remark(request_)
    assert caught.value.code() == code
    assert told in caught.value.details()
    assert ask(shared, "SELECT count(*) FROM acknowledgements UNION ALL SELECT count(*) FROM silences") == [[0], [0]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with with_incident(tmp_path_factory.mktemp("shared")) as (_, query):
        yield query


def test_there_are_not_more_than_anybody_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remarks, "ACKNOWLEDGEMENTS_MAX", 2)
    monkeypatch.setattr(remarks, "SILENCES_MAX", 2)
    with with_incident(tmp_path) as (_, query):
        for request in (acknowledge(), acknowledge(), silence("a"), silence("b"), silence("b")):
            query.Remark(request)
        for request, told in ((acknowledge(), "acknowledged 2 times"), (silence("c"), "2 silences are in force")):
            with pytest.raises(grpc.RpcError) as caught:
                query.Remark(request)
            assert told in caught.value.details()


def test_what_cannot_be_stored_is_said_and_not_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_hand, "STORE_SECONDS_MAX", 0.2)
    analysis = Recording()
    with collecting(tmp_path, analysis=analysis) as (collector, _telemetry, query):
        analysis.changed(incident(1))

        def full(*arguments: object) -> None:
            raise StoreError("no room on the disk")

        with monkeypatch.context() as broken:
            broken.setattr(collector._writer, "_transact", full)
            with pytest.raises(grpc.RpcError) as caught:
                query.Remark(silence("n1"))
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            watch = query.WatchIncidents(q.WatchIncidentsRequest(), timeout=30)
            assert not next(watch).HasField("silence")
        # Once it can be, it is, and that is told.
        assert next(watch).silence.target == "n1"


class Hook:
    """A webhook, its feed and its clock; `told` takes what it would send."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.standing = Standing(self.clock)
        self.webhook = Webhook("", IncidentFeed(self.standing), self.clock, Vitals())

    def silence(self, target: str, seconds: float) -> None:
        now = self.clock.unix_ns()
        self.standing.silence(q.Silence(target=target, since_unix_ns=now, until_unix_ns=now + round(seconds * SECOND)))

    def take(self, status: int = q.Incident.STATUS_OPEN, opened_unix_ns: int = 0) -> list[int]:
        """The incident changes; the statuses that are told."""
        self.webhook._take(self.standing.on(incident(1, status, opened_unix_ns=opened_unix_ns)))
        return self.told()

    def told(self) -> list[int]:
        self.webhook._end_silences()
        out = [int(each.status) for each in self.webhook._pending.values()]
        self.webhook._pending.clear()
        return out


@pytest.mark.parametrize("target", ["i-1", "n1/8080", "n1"])
def test_nothing_is_told_of_a_silenced_incident(target: str) -> None:
    hook = Hook()
    hook.silence(target, 60)
    opened = hook.clock.unix_ns() + 1
    assert hook.take(opened_unix_ns=opened) == []
    assert not hook.webhook._firing
    assert hook.take(RESOLVED, opened) == []
    assert not hook.webhook._silenced


def test_a_silence_ends_by_itself() -> None:
    hook = Hook()
    hook.silence("n1", 60)
    opened = hook.clock.unix_ns() + 1
    assert hook.take(opened_unix_ns=opened) == []
    hook.clock.advance(59)
    assert hook.told() == []
    hook.clock.advance(2)
    assert hook.told() == [q.Incident.STATUS_OPEN]
    assert hook.told() == []
    assert hook.take(RESOLVED, opened) == [RESOLVED]


def test_what_was_told_before_its_silence_is_told_to_be_over() -> None:
    hook = Hook()
    opened = hook.clock.unix_ns()
    assert hook.take(opened_unix_ns=opened) == [q.Incident.STATUS_OPEN]
    hook.clock.advance(1)
    hook.silence("i-1", 60)
    assert hook.take(opened_unix_ns=opened) == []
    assert hook.take(RESOLVED, opened) == [RESOLVED]


def test_of_several_silences_the_one_that_lasts_longest_counts() -> None:
    hook = Hook()
    for target, seconds in (("n1", 20), ("i-1", 60), ("n1/8080", 40)):
        hook.silence(target, seconds)
    assert hook.standing.on(incident(1)).silence.target == "i-1"
    hook.standing.unsilence("i-1")
    assert hook.standing.on(incident(1)).silence.target == "n1/8080"
    hook.clock.advance(41)
    assert not hook.standing.on(incident(1)).HasField("silence")


def test_other_incidents_are_told_as_ever() -> None:
    hook = Hook()
    hook.silence("n2", 60)
    hook.silence("model other", 60)
    assert hook.take() == [q.Incident.STATUS_OPEN]


def test_what_waits_to_be_told_is_not_once_it_is_silenced() -> None:
    hook = Hook()
    hook.webhook._take(hook.standing.on(incident(1)))
    hook.silence("n1", 60)
    assert hook.take() == []


def test_a_silenced_incident_that_was_resolved_while_the_webhook_fell_behind_is_no_longer_kept() -> None:
    hook = Hook()
    hook.silence("n1", 60)
    hook.take(opened_unix_ns=hook.clock.unix_ns() + 1)
    hook.webhook._take_all([])
    assert not hook.webhook._silenced
    assert hook.told() == []

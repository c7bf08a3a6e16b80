"""The laws of incidents: hysteresis, one a fault, the same one when the fault returns, and through restarts."""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.detector.fleet import START_NS, Recorder
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.feed import IncidentFeed
from trimtab.collector.journal import StoredJournal
from trimtab.collector.remarks import NotFound, Remarks
from trimtab.collector.standing import Standing
from trimtab.collector.store import Store, insert, transaction
from trimtab.detector.incident import REOPEN_SECONDS, Finding, Incidents
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.silent_cause import of_node

SECOND = 1_000_000_000
SETTINGS = DetectorSettings(resolve_seconds=20)


def finding(subject: str = "n0/8080") -> Finding:
    return Finding(subject, "n0", "m", START_NS, "slow", 0.9)


def started(journal: Recorder) -> Incidents:
    incidents = Incidents(SETTINGS)
    incidents.start(journal, lambda _: None)
    return incidents


def settle(
    incidents: Incidents, seconds: int, now: int, *, lingers: bool = False, unknown: bool = False, clear: bool = True
) -> int:
    for _ in range(seconds):
        now += SECOND
        if "n0/8080" in incidents.open:
            incidents.settle("n0/8080", lingers, unknown, clear, 1.0, now)
    return now


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["bad", "good", "hidden"]), st.booleans(), st.integers(1, 30)), max_size=12))
def test_it_is_resolved_only_after_a_calm_time(course: list[tuple[str, bool, int]]) -> None:
    journal, now = Recorder(), START_NS
    incidents = started(journal)
    incidents.raise_(finding(), now)
    good = hidden = 0
    for what, clear, seconds in course:
        for _ in range(seconds):
            now = settle(incidents, 1, now, lingers=what == "bad", unknown=what == "hidden", clear=clear)
            good += what == "good" and clear
            hidden = hidden + 1 if what == "hidden" and clear else 0 if what != "good" else hidden
            if not incidents.open:
                assert good >= SETTINGS.resolve_seconds or hidden >= 2 * SETTINGS.resolve_seconds
                return
    stored = journal.incidents()
    assert [i.status for i in stored] == [pb.Incident.STATUS_OPEN]


def test_a_fault_in_force_keeps_it_open() -> None:
    incidents = started(Recorder())
    incidents.raise_(finding(), START_NS)
    now = settle(incidents, 500, START_NS, clear=False)
    now = settle(incidents, 500, now, unknown=True, clear=False)
    now = settle(incidents, 19, now)
    assert incidents.open
    settle(incidents, 1, now)
    assert not incidents.open


def test_one_bad_second_does_not_hold_it_open_but_more_do() -> None:
    incidents = started(Recorder())
    incidents.raise_(finding(), START_NS)
    now = settle(incidents, 15, START_NS)
    now = settle(incidents, 1, now, lingers=True)
    now = settle(incidents, 9, now)
    assert incidents.open
    now = settle(incidents, 1, now)
    assert not incidents.open
    incidents.raise_(finding("n0/8080"), now + 1000 * SECOND)
    for _ in range(100):
        now = settle(incidents, 3, now)
        now = settle(incidents, 1, now, lingers=True)
    assert incidents.open


def test_what_cannot_be_seen_is_given_longer_each_time() -> None:
    incidents, now, waits = started(Recorder()), START_NS, []
    for _ in range(3):
        incidents.raise_(finding(), now)
        waited = 0
        while incidents.open:
            now, waited = settle(incidents, 1, now, unknown=True), waited + 1
        waits.append(waited)
        now += 10 * SECOND
    assert waits == [40, 80, 160]


def test_it_opens_again_within_five_minutes_and_is_another_one_later() -> None:
    journal = Recorder()
    incidents = started(journal)
    first = incidents.raise_(finding(), START_NS).incident
    incidents.resolve("n0/8080", START_NS + 100 * SECOND)
    again = incidents.raise_(finding(), START_NS + 100 * SECOND + round(REOPEN_SECONDS * 1e9)).incident
    assert (again.id, again.reopened, again.resolved_unix_ns, again.since_unix_ns) == (first.id, 1, 0, START_NS)
    incidents.resolve("n0/8080", START_NS + 500 * SECOND)
    later = incidents.raise_(finding(), START_NS + 900 * SECOND).incident
    assert (later.id, later.reopened) == ("i-2", 0)
    assert [i.status for i in journal.saves] == [1, 2, 1, 2, 1]


@given(st.lists(st.sampled_from(["open", "resolved"]), max_size=8))
def test_a_restart_takes_up_what_is_open(statuses: list[str]) -> None:
    journal = Recorder()
    before = started(journal)
    for k, status in enumerate(statuses):
        before.raise_(finding(f"n0/{k}"), START_NS + k)
        if status == "resolved":
            before.resolve(f"n0/{k}", START_NS + SECOND)
    after = started(journal)
    assert set(after.open) == set(before.open)
    assert {s: o.incident.id for s, o in after.open.items()} == {s: o.incident.id for s, o in before.open.items()}
    assert after.raise_(finding("n0/new"), START_NS).incident.id == f"i-{len(statuses) + 1}"
    if "resolved" in statuses:
        k = statuses.index("resolved")
        assert after.raise_(finding(f"n0/{k}"), START_NS + 9 * SECOND).incident.id == f"i-{k + 1}"


def cause(mechanism: str, confidence: float) -> pb.Cause:
    return pb.Cause(subject="n0/8080", mechanism=mechanism, confidence=confidence)


def test_the_best_explanation_is_kept_and_only_news_is_stored() -> None:
    journal = Recorder()
    incidents = started(journal)
    incidents.raise_(finding(), START_NS)
    for mechanism, confidence, kept in [
        ("unknown", 0.2, "unknown"),
        ("CPU contention", 0.85, "CPU contention"),
        ("CPU contention", 0.86, "CPU contention"),
        ("unknown", 0.2, "CPU contention"),
        ("cgroup CPU quota", 0.95, "cgroup CPU quota"),
        ("CPU contention", 0.85, "cgroup CPU quota"),
    ]:
        incidents.gather("n0/8080", float("nan"), "", [cause(mechanism, confidence)])
        assert incidents.open["n0/8080"].incident.causes[0].mechanism == kept
    assert len(journal.saves) == 4
    incidents.gather("n0/8080", 0.91, "slower", [])
    assert len(journal.saves) == 4
    incidents.gather("n0/8080", 0.91, "slower", [cause("CPU contention", 0.85)], last=True)
    assert len(journal.saves) == 4
    incidents.gather("n0/8080", 0.91, "slower", [cause("cgroup CPU quota", 0.95)], last=True)
    assert len(journal.saves) == 5


def test_what_is_saved_is_a_copy() -> None:
    journal = Recorder()
    incidents = started(journal)
    incidents.raise_(finding(), START_NS)
    incidents.gather("n0/8080", 0.9, "", [cause("XID", 0.95)])
    assert [len(i.causes) for i in journal.saves] == [0, 1]


class AtOnce:
    """A writer that stores while it is asked to."""

    def __init__(self, store: Store) -> None:
        self.connection = store.cursor()

    def save(self, key: str, rows: Any) -> Future[None]:
        with transaction(self.connection):
            for statement, columns in rows:
                insert(self.connection, statement, columns)
        done: Future[None] = Future()
        done.set_result(None)
        return done


@dataclass
class Known:
    """What must be told of one incident."""

    subject: str
    node: str
    silent: bool
    is_open: bool = True
    resolved_unix_ns: int = 0
    reopened: int = 0
    causes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


SUBJECTS = {"n0": "n0", "n0/8080": "n0", "n1/8080": "n1", "model m": ""}
TARGETS = [*SUBJECTS, "n1", "i-1", "i-2"]


class Life(RuleBasedStateMachine):
    """A detector that finds and resolves, operators that have their say, and a collector that is started again at any moment."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.clock = ManualClock(START_NS)
        self.known: dict[str, Known] = {}
        self.silences: dict[str, tuple[int, int]] = {}
        self.start()

    def start(self) -> None:
        self.store = Store(self.directory / "store", 64 << 20)
        writer: Any = AtOnce(self.store)
        journal = self.journal = StoredJournal(self.store, writer)
        standing = self.standing = Standing(self.clock)
        self.feed = IncidentFeed(standing)
        for incident in reversed(journal.incidents()):
            self.feed.publish(incident)
        self.accepted: list[str] = []
        more = {"journal": journal, "standing": standing, "feed": self.feed, "clock": self.clock}
        self.remarks = Remarks(self.store, writer, **more, accept=self.accepted.append)
        self.incidents = Incidents(SETTINGS)
        self.incidents.start(journal, self.feed.publish)

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.start()

    @rule(seconds=st.sampled_from([1, 20, 150, 400]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(subject=st.sampled_from([*SUBJECTS]), silent=st.booleans())
    def find(self, subject: str, silent: bool) -> None:
        if subject in self.incidents.open:
            return
        now, node = self.clock.unix_ns(), SUBJECTS[subject]
        last = max(
            (k for k in self.known.values() if k.subject == subject), key=lambda k: k.resolved_unix_ns, default=None
        )
        again = last is not None and last.silent == silent and now - last.resolved_unix_ns <= REOPEN_SECONDS * SECOND
        cause = of_node(subject, now, 1) if silent else None
        told = self.incidents.raise_(Finding(subject, node, "", now, "slow", 0.9, cause), now).incident
        if again:
            assert last is not None
            assert self.known[told.id] is last
            last.is_open, last.resolved_unix_ns, last.reopened = True, 0, last.reopened + 1
        else:
            assert told.id not in self.known
            self.known[told.id] = Known(subject, node, silent, causes=["node silent"] if silent else [])

    def one(self, data: st.DataObject, is_open: bool = False) -> tuple[str, Known]:
        found = [id_ for id_, known in self.known.items() if known.is_open or not is_open]
        id_ = data.draw(st.sampled_from(found))
        return id_, self.known[id_]

    @precondition(lambda self: self.incidents.open)
    @rule(data=st.data())
    def resolve(self, data: st.DataObject) -> None:
        _, known = self.one(data, is_open=True)
        self.incidents.resolve(known.subject, self.clock.unix_ns())
        known.is_open, known.resolved_unix_ns = False, self.clock.unix_ns()

    @precondition(lambda self: self.incidents.open)
    @rule(data=st.data())
    def explain(self, data: st.DataObject) -> None:
        _, known = self.one(data, is_open=True)
        if not known.causes:
            self.incidents.gather(known.subject, 0.9, "", [cause("XID", 0.95)])
            known.causes = ["XID"]

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        note=st.sampled_from(["", "looking", "the fans"]),
        remark=st.sampled_from(["acknowledge", "accept"]),
    )
    def acknowledge(self, data: st.DataObject, note: str, remark: str) -> None:
        id_, known = self.one(data)
        self.clock.advance(1e-6)
        accepted = [*self.accepted, *([id_] if remark == "accept" else [])]
        [told] = self.remarks.take(pb.RemarkRequest(who="eve", **{remark: {"id": id_, "note": note}})).incidents
        assert self.accepted == accepted
        known.notes.append(note)
        assert (told.id, [one.note for one in told.acknowledgements]) == (id_, known.notes)

    @rule(about=st.sampled_from(TARGETS), seconds=st.sampled_from([10, 200, 1000]))
    def silence(self, about: str, seconds: int) -> None:
        request = pb.RemarkRequest(who="eve", silence={"target": about, "seconds": seconds})
        if about.startswith("i-") and about not in self.known:
            with pytest.raises(NotFound):
                self.remarks.take(request)
            return
        now, before = self.clock.unix_ns() // 1000 * 1000, self.silences.get(about, (0, 0))
        since = before[0] if before[1] > self.clock.unix_ns() else now
        self.remarks.take(request)
        self.silences[about] = since, now + seconds * SECOND

    @rule(about=st.sampled_from(TARGETS))
    def unsilence(self, about: str) -> None:
        request = pb.RemarkRequest(who="eve", unsilence={"target": about})
        if self.silences.pop(about, (0, 0))[1] > self.clock.unix_ns():
            self.remarks.take(request)
        else:
            with pytest.raises(NotFound):
                self.remarks.take(request)

    @invariant()
    def nothing_is_lost(self) -> None:
        stored = self.journal.incidents()
        assert {i.id for i in stored} == self.known.keys()
        assert len(stored) == len(self.known)
        for incident in stored:
            known = self.known[incident.id]
            is_open = incident.status == pb.Incident.STATUS_OPEN
            told = (incident.subject, is_open, incident.resolved_unix_ns, incident.reopened)
            assert told == (known.subject, known.is_open, known.resolved_unix_ns, known.reopened)
            assert [each.mechanism for each in incident.causes] == known.causes
            assert not incident.acknowledgements
            self.check_remarks(self.standing.on(incident), known)

    @invariant()
    def at_most_one_is_open_for_a_subject(self) -> None:
        is_open = {known.subject: id_ for id_, known in self.known.items() if known.is_open}
        assert len(is_open) == sum(known.is_open for known in self.known.values())
        assert {subject: entry.incident.id for subject, entry in self.incidents.open.items()} == is_open

    @invariant()
    def who_watches_sees_the_same(self) -> None:
        with self.feed.watch() as (told, _):
            assert {i.id for i in told} == {id_ for id_, known in self.known.items() if known.is_open}
            for incident in told:
                self.check_remarks(incident, self.known[incident.id])

    def check_remarks(self, incident: pb.Incident, known: Known) -> None:
        assert [one.note for one in incident.acknowledgements] == known.notes
        names = {incident.id, known.subject, known.node}
        in_force = [s for t, s in self.silences.items() if t in names and s[1] > self.clock.unix_ns()]
        assert incident.HasField("silence") == bool(in_force)
        if in_force:
            longest = max(until for _, until in in_force)
            assert incident.silence.until_unix_ns == longest
            assert incident.silence.since_unix_ns in {since for since, until in in_force if until == longest}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

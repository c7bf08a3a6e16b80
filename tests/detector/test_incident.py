"""The laws of incidents: hysteresis, one a fault, the same one when the fault returns, and through restarts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector.fleet import START_NS, Recorder
from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.incident import REOPEN_SECONDS, Finding, Incidents
from trimtab.detector.settings import DetectorSettings

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

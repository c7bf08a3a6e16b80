"""Nodes that fall silent: one incident each, none for those that say goodbye, and one for all when all are silent at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from tests.detector.faults import slow
from tests.detector.fleet import Fleet, Noise, Stage
from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire import telemetry_pb2 as telemetry
from trimtab.agent.wire.events import AGENT_STOPPED
from trimtab.detector.silent import GONE_SECONDS
from trimtab.detector.silent_cause import INPUT

SECOND = 1_000_000_000
OPEN, RESOLVED = pb.Incident.STATUS_OPEN, pb.Incident.STATUS_RESOLVED
PATIENCE_SECONDS = 31
"""Three times `stale_seconds`, and a window."""


def staged(nodes: int = 3, window_seconds: float = 1.0, racks: Mapping[str, str] | None = None) -> Stage:
    labels = {node: {"rack": rack} for node, rack in (racks or {}).items()}
    quiet = Noise(bursts_per_second=0, blips_per_second=0)
    stage = Stage(Fleet([("m",) * 2] * nodes, noise=quiet, window_seconds=window_seconds, labels=labels))
    stage.run(40)
    return stage


def run(stage: Stage, windows: int, silent: Collection[str] = (), farewell: Collection[str] = ()) -> None:
    """So many windows, of which those of the `silent` nodes never come; those of `farewell` say first that their agent ends."""
    for number in range(windows):
        for window in stage.fleet.step():
            ends = number == 0 and window.node in farewell
            if ends:
                window.message.events.add(
                    subject_kind=telemetry.SUBJECT_KIND_NODE,
                    subject=window.node,
                    name=AGENT_STOPPED,
                    unix_ns=window.start_unix_ns,
                )
            if ends or window.node not in silent:
                stage.watch.observe([window])
        stage.state = stage.watch.tick(stage.fleet.now_ns + 200_000_000)


def told(stage: Stage) -> list[tuple[str, int, str]]:
    return [(i.subject, i.status, i.causes[0].mechanism if i.causes else "") for i in stage.incidents]


def test_a_silent_node_is_one_incident_until_it_speaks() -> None:
    stage = staged()
    last = stage.fleet.now_ns
    run(stage, PATIENCE_SECONDS, {"n1"})
    assert stage.incidents == []
    run(stage, 60, {"n1"})
    assert told(stage) == [("n1", OPEN, "node silent")]
    (incident,) = stage.incidents
    assert (incident.node, incident.since_unix_ns) == ("n1", last)
    assert (incident.opened_unix_ns - last) / SECOND == pytest.approx(PATIENCE_SECONDS + 1, abs=1)
    assert "2 other nodes go on" in incident.causes[0].summary
    assert incident.causes[0].evidence[0].changed_unix_ns == last
    run(stage, 1)
    assert told(stage) == [("n1", RESOLVED, "node silent")]
    assert len(stage.journal.saves) == 2
    run(stage, 60)
    assert len(stage.incidents) == 1


@pytest.mark.parametrize("nodes", [1, 3])
def test_when_all_are_silent_it_is_the_collectors_input(nodes: int) -> None:
    stage = staged(nodes)
    every = {node.name for node in stage.fleet.nodes}
    last = stage.fleet.now_ns
    run(stage, 700, every)
    assert told(stage) == [(INPUT, OPEN, "no input")]
    assert stage.incidents[0].since_unix_ns == last
    run(stage, 20, every - {"n0"})
    assert told(stage) == [(INPUT, RESOLVED, "no input")]
    run(stage, 60, every - {"n0"})
    expected = [(INPUT, RESOLVED, "no input")] + [(f"n{k}", OPEN, "node silent") for k in range(1, nodes)]
    assert sorted(told(stage)) == sorted(expected)


def test_those_that_fall_silent_one_after_the_other_within_a_moment_are_all() -> None:
    stage = staged()
    run(stage, 1, {"n0"})
    run(stage, 5, {"n0", "n1"})
    run(stage, 60, {"n0", "n1", "n2"})
    assert told(stage) == [(INPUT, OPEN, "no input")]


def test_who_comes_back_a_little_later_than_the_first_is_no_incident() -> None:
    stage = staged()
    run(stage, 60, {"n0", "n1", "n2"})
    run(stage, 20, {"n1", "n2"})
    run(stage, 60)
    assert told(stage) == [(INPUT, RESOLVED, "no input")]


def test_who_says_goodbye_is_not_missed() -> None:
    stage = staged(2)
    run(stage, 100, {"n1"}, farewell={"n1"})
    assert stage.incidents == []
    # Nor does anybody wait for it: the other one is all that there is.
    run(stage, 60, {"n0", "n1"})
    assert told(stage) == [(INPUT, OPEN, "no input")]


def test_who_came_back_after_a_goodbye_is_missed_again() -> None:
    stage = staged()
    run(stage, 20, {"n1"}, farewell={"n1"})
    run(stage, 20)
    run(stage, 60, {"n1"})
    assert told(stage) == [("n1", OPEN, "node silent")]


def test_it_goes_on_through_a_restart() -> None:
    stage = staged()
    run(stage, 60, {"n1"})
    stage.restart()
    run(stage, 700, {"n1"})
    assert [(i.id, i.status) for i in stage.incidents] == [("i-1", OPEN)]
    run(stage, 1)
    assert [(i.id, i.status) for i in stage.incidents] == [("i-1", RESOLVED)]


def test_an_input_that_was_lost_is_back_after_a_restart() -> None:
    stage = staged()
    run(stage, 60, {"n0", "n1", "n2"})
    stage.restart()
    run(stage, 1)
    assert told(stage) == [(INPUT, RESOLVED, "no input")]


def heard(stage: Stage, *nodes: str) -> list[wire.Heard]:
    return [wire.Heard(node=node, last_unix_ns=stage.fleet.now_ns, window_seconds=1) for node in nodes]


def test_who_does_not_come_back_after_a_restart_is_missed() -> None:
    stage = staged()
    stage.journal.nodes = heard(stage, "n0", "n1", "n2")
    last = stage.fleet.now_ns
    stage.restart()
    # The others take their time to connect again; what they had spooled meanwhile is as good as new.
    run(stage, 1, {"n0", "n1", "n2"})
    run(stage, PATIENCE_SECONDS - 5, {"n1", "n2"})
    run(stage, PATIENCE_SECONDS, {"n1"})
    assert told(stage) == [("n1", OPEN, "node silent")]
    assert stage.incidents[0].since_unix_ns == last
    run(stage, 1)
    assert told(stage) == [("n1", RESOLVED, "node silent")]


def test_when_nobody_comes_back_after_a_restart_it_is_the_input() -> None:
    stage = staged()
    stage.journal.nodes = heard(stage, "n0", "n1", "n2")
    stage.restart()
    run(stage, 60, {"n0", "n1", "n2"})
    assert told(stage) == [(INPUT, OPEN, "no input")]


def test_who_was_heard_a_week_before_a_restart_is_not_missed() -> None:
    stage = staged()
    stage.journal.nodes = heard(stage, "n0", "n1", "n2", "n9")
    stage.fleet.now_ns += round(GONE_SECONDS * SECOND)
    stage.restart()
    run(stage, 60)
    assert stage.incidents == []


RACK = dict.fromkeys(("n0", "n1", "n2"), "r1") | {"n3": "r2"}


def in_racks(stage: Stage) -> list[wire.Heard]:
    last = stage.fleet.now_ns
    return [
        wire.Heard(node=node, last_unix_ns=last, window_seconds=1, labels={"rack": rack}) for node, rack in RACK.items()
    ]


def test_a_rack_that_falls_silent_is_one_incident() -> None:
    stage = staged(5, racks=RACK)
    last = stage.fleet.now_ns
    run(stage, 1, {"n0"})
    run(stage, 4, {"n0", "n1"})
    run(stage, 100, {"n0", "n1", "n2"})
    assert told(stage) == [("rack r1", OPEN, "rack silent")]
    (incident,) = stage.incidents
    assert (incident.node, incident.since_unix_ns) == ("", last)
    assert "3 of 3 nodes of rack r1 fell silent together, while 2 other nodes go on" in incident.causes[0].summary
    assert [e.subject for e in incident.causes[0].evidence] == ["n0", "n1", "n2"]
    # The first that is back does not end it; the last is given its time, and then is one node.
    run(stage, 5, {"n0", "n1"})
    assert told(stage) == [("rack r1", OPEN, "rack silent")]
    run(stage, 20, {"n0"})
    assert told(stage) == [("rack r1", RESOLVED, "rack silent")]
    run(stage, 20, {"n0"})
    assert told(stage) == [("rack r1", RESOLVED, "rack silent"), ("n0", OPEN, "node silent")]


def test_a_rack_of_which_most_are_silent_is_one_incident_and_takes_in_the_next() -> None:
    stage = staged(4, racks=RACK)
    run(stage, 60, {"n0", "n1"})
    assert told(stage) == [("rack r1", OPEN, "rack silent")]
    run(stage, 60, {"n0", "n1", "n2"})
    assert told(stage) == [("rack r1", OPEN, "rack silent")]


def test_a_rack_whose_silence_is_told_stays_so_through_a_restart() -> None:
    stage = staged(4, racks=RACK)
    stage.journal.nodes = in_racks(stage)
    run(stage, 60, {"n0", "n1"})
    stage.restart()
    run(stage, 60, {"n0", "n1"})
    assert [(i.subject, i.status, i.reopened) for i in stage.incidents] == [("rack r1", OPEN, 0)]
    run(stage, 1)
    assert told(stage) == [("rack r1", RESOLVED, "rack silent")]


def test_nodes_of_a_rack_that_fall_silent_at_other_times_are_told_one_by_one() -> None:
    stage = staged(4, racks=RACK)
    run(stage, 15, {"n0"})
    run(stage, 60, {"n0", "n1"})
    assert sorted(told(stage)) == [("n0", OPEN, "node silent"), ("n1", OPEN, "node silent")]


def test_few_of_a_rack_and_nodes_of_several_are_told_one_by_one() -> None:
    stage = staged(4, racks=RACK)
    run(stage, 60, {"n0", "n3"})
    assert sorted(told(stage)) == [("n0", OPEN, "node silent"), ("n3", OPEN, "node silent")]


def test_who_only_hesitates_does_not_hide_who_is_silent() -> None:
    stage = staged(4, racks=RACK)
    run(stage, PATIENCE_SECONDS - 6, {"n0", "n1"})
    run(stage, 1, {"n0"})
    run(stage, 10, {"n0"})
    assert told(stage) == [("n0", OPEN, "node silent")]


def test_a_rack_that_died_while_the_collector_was_down_is_one_incident() -> None:
    stage = staged(4, racks=RACK)
    stage.journal.nodes = in_racks(stage)
    stage.restart()
    run(stage, 60, {"n0", "n1", "n2"})
    assert told(stage) == [("rack r1", OPEN, "rack silent")]


def test_it_is_the_same_incident_when_it_falls_silent_again_soon() -> None:
    stage = staged()
    for _ in range(2):
        run(stage, 60, {"n1"})
        run(stage, 10)
    assert [(i.id, i.status, i.reopened) for i in stage.incidents] == [("i-1", RESOLVED, 1)]


def test_a_node_that_was_ill_before_is_so_again_when_it_speaks() -> None:
    stage = staged()
    stage.fleet.strike(slow(4, *stage.fleet.nodes[1].instances))
    run(stage, 40)
    (ill,) = [i for i in stage.incidents if i.subject == "n1"]
    before = [c.mechanism for c in ill.causes]
    run(stage, 100, {"n1"})
    assert [c.mechanism for c in stage.journal.stored[ill.id].causes] == ["node silent", *before]
    run(stage, 5)
    assert [(i.id, i.status) for i in stage.incidents] == [(ill.id, OPEN)]
    assert [c.mechanism for c in stage.journal.stored[ill.id].causes] == before


def test_a_node_that_is_ill_after_its_silence_is_another_incident() -> None:
    stage = staged()
    run(stage, 60, {"n1"})
    run(stage, 60)
    stage.fleet.strike(slow(4, *stage.fleet.nodes[1].instances))
    run(stage, 40)
    assert [(i.id, i.subject, i.status, i.reopened) for i in stage.incidents] == [
        ("i-1", "n1", RESOLVED, 0),
        ("i-2", "n1", OPEN, 0),
    ]


def test_long_windows_are_waited_for() -> None:
    stage = staged(window_seconds=30.0)
    run(stage, 1, {"n1"})
    run(stage, 1)
    assert stage.incidents == []
    run(stage, 7, {"n1"})
    assert told(stage) == [("n1", OPEN, "node silent")]


def test_a_clock_that_is_set_makes_nobody_silent() -> None:
    stage = staged()
    stage.fleet.now_ns += 3600 * SECOND
    stage.watch.tick(stage.fleet.now_ns)
    run(stage, 20)
    assert stage.incidents == []


def test_a_node_that_never_comes_back_is_forgotten() -> None:
    stage = staged()
    run(stage, 60, {"n1"})
    stage.fleet.now_ns += round(GONE_SECONDS * SECOND)
    run(stage, 1, {"n1"})
    assert told(stage) == [("n1", RESOLVED, "node silent")]

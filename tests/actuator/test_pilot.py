"""One decision: whatever the collector says, out comes a snapshot that is sound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.conftest import NAN, instance
from trimtab.actuator import pilot as module
from trimtab.actuator.link import Heard
from trimtab.actuator.pilot import Pilot
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.state import INSTANCES_MAX, State, Vector, by_model, check_fleet
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import Malformed

NUMBERS = [f.name for f in pb.InstanceState.DESCRIPTOR.fields if f.type == f.TYPE_DOUBLE]
strange = st.sampled_from([NAN, math.inf, -math.inf, -1.0, -1e308, 0.0, 0.5, 1.0, 1e9, 1e308])
instances = st.builds(
    lambda key, model, numbers, incident: pb.InstanceState(id=f"n/{key}", model=model, incident=incident, **numbers),
    st.integers(1, 6),
    st.sampled_from(["", "m", "a,b"]),
    st.fixed_dictionaries(dict.fromkeys(NUMBERS, strange)),
    st.sampled_from(["", "i-1"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(instances, max_size=6, unique_by=lambda i: i.id), min_size=1, max_size=25))
def test_nonsense_from_the_collector_is_harmless(course: list[list[pb.InstanceState]]) -> None:
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(haproxy_limit=True), clock)
    for group in course:
        clock.advance(1)
        fleet = pb.FleetState(unix_ns=1, instances=group)
        check_fleet(fleet)
        with np.errstate(all="raise"):
            decided = pilot.decide(Heard(fleet, clock.monotonic()))
        assert {a.instance for a in decided.snapshot.assignments} == {i.id for i in group}
        assert "broke" not in decided.reason


def limits(
    fleet: pb.FleetState, settings: ActuatorSettings | None = None, late: float = 0.0, hold: str = ""
) -> list[int]:
    clock = ManualClock()
    pilot = Pilot(settings or ActuatorSettings(haproxy_limit=True), clock)
    heard = Heard(fleet, clock.monotonic())
    clock.advance(late)
    return [a.at_once for a in pilot.decide(heard, hold).snapshot.assignments]


def test_who_batches_not_and_tells_its_workers_gets_no_more_than_they_can_take() -> None:
    group = [
        instance("n/1", workers=2.0, batch_size=1.0),
        instance("n/2", workers=3.9, batch_size=1.0),
        instance("n/3", workers=2.0, batch_size=8.0),
        instance("n/4", workers=2.0, batch_size=NAN),
        instance("n/5", workers=NAN, batch_size=1.0),
        instance("n/6", workers=0.0, batch_size=1.0),
        instance("n/7", workers=2.0, batch_size=1.0, age_seconds=60.0),
    ]
    fleet = pb.FleetState(unix_ns=1, instances=group)
    assert limits(fleet) == [2, 3, 0, 0, 0, 0, 0]
    assert limits(fleet, ActuatorSettings()) == [0] * 7, "only where it is wished for"
    assert limits(fleet, ActuatorSettings(haproxy_limit=True, mode="shadow")) == [0] * 7
    assert limits(fleet, late=60.0) == [0] * 7, "nor without news"
    assert limits(fleet, hold="no dead man's switch") == [0] * 7


def test_who_is_ordered_to_be_neutral_has_no_limit_either() -> None:
    group = [instance(f"n/{k}", workers=2.0, batch_size=1.0) for k in range(3)]
    orders = [
        pb.Override(target="n/0", kind=pb.Override.KIND_NEUTRAL, who="ann"),
        pb.Override(target="n/1", kind=pb.Override.KIND_WEIGHT, weight=0.5, who="ann"),
    ]
    assert limits(pb.FleetState(unix_ns=1, instances=group, overrides=orders)) == [0, 2, 2]


def test_ten_thousand_instances_are_decided_and_one_more_is_refused() -> None:
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(), clock)
    group = [instance(f"n/{k}", incident="i-1" if k % 10 == 0 else "") for k in range(INSTANCES_MAX)]
    for _ in range(8):
        clock.advance(1)
        decided = pilot.decide(Heard(pb.FleetState(instances=group), clock.monotonic()))
    assert sum(a.weight < 1 for a in decided.snapshot.assignments) == INSTANCES_MAX / 10
    with pytest.raises(Malformed, match="10001"):
        check_fleet(pb.FleetState(instances=[*group, instance("n/x")]))


@pytest.mark.parametrize(
    "group",
    [
        [instance("")],
        [instance("a/1"), instance("a/1")],
        [instance("a" * 300)],
        [instance("a/1", addresses=["10.0.0.1:1"] * 99)],
    ],
    ids=["no id", "twice", "long", "addresses"],
)
def test_malformed_fleets_are_refused(group: list[pb.InstanceState]) -> None:
    with pytest.raises(Malformed, match="instances"):
        check_fleet(pb.FleetState(instances=group))


def test_who_has_no_model_has_no_peers() -> None:
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(), clock)
    fast = [instance(f"resnet/{k}", model="", latency_mean_seconds=0.01) for k in range(2)]
    slow = [instance(f"llm/{k}", model="", latency_mean_seconds=3.0) for k in range(2)]
    for _ in range(30):
        clock.advance(1)
        decided = pilot.decide(Heard(pb.FleetState(instances=[*fast, *slow]), clock.monotonic()))
    assert [a.weight for a in decided.snapshot.assignments] == [1, 1, 1, 1]
    assert {a.model for a in decided.snapshot.assignments} == {""}


def test_telemetry_ages_while_the_collector_is_silent() -> None:
    [state] = by_model([instance("a/1", age_seconds=0.5)], elapsed_seconds=7)
    assert state.age_seconds.tolist() == [7.5]


def test_a_policy_that_breaks_is_neutral_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "broken"

        def decide(self, state: State) -> Vector:
            raise ZeroDivisionError

    monkeypatch.setitem(module.POLICIES, "split", Broken)
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(), clock)
    for _ in range(10):
        clock.advance(1)
        decided = pilot.decide(Heard(pb.FleetState(instances=[instance("a/1"), instance("a/2")]), clock.monotonic()))
    assert [a.weight for a in decided.snapshot.assignments] == [1, 1]
    assert decided.reason == "policy broke: 10; wishes that were no weight: 20"


@pytest.mark.parametrize("mode", ["neutral", "shadow"])
def test_modes_that_move_nothing(mode: str) -> None:
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(mode=mode), clock)
    group = [instance("a/1"), instance("a/2", incident="i-1")]
    for _ in range(30):
        clock.advance(1)
        decided = pilot.decide(Heard(pb.FleetState(instances=group), clock.monotonic()))
        assert [a.weight for a in decided.snapshot.assignments] == [1, 1]
        assert decided.snapshot.mode == mode
    says = {"neutral": "mode is neutral", "shadow": "shadow: would be 0.005: degraded: cause not known yet (i-1)"}
    assert decided.snapshot.assignments[1].reason == says[mode]

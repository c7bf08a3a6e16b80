"""What the policies saw is recorded so that it can be played over, and never more of it than is meant to be stored."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import instance
from tests.actuator.test_pilot import instances
from trimtab.actuator.link import Heard
from trimtab.actuator.pilot import Pilot
from trimtab.actuator.policy.proportional import Proportional
from trimtab.actuator.seen import COLUMNS, seen, states
from trimtab.actuator.server import SEEN_INSTANCES_PER_SECOND, Actuator
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Cache
from trimtab.actuator.state import State, by_model
from trimtab.actuator.targets.ledger import Ledger
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb


def recorded(group: list[State]) -> pb.Decision:
    weights = [pb.Weight(instance=name, model=state.model) for state in group for name in state.ids]
    return pb.Decision.FromString(pb.Decision(weights=weights, seen=seen(group)).SerializeToString())


@given(st.lists(instances, max_size=6, unique_by=lambda i: i.id))
def test_what_is_read_again_is_what_was_seen(group: list[pb.InstanceState]) -> None:
    before = by_model(group)
    after = states(recorded(before))
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        for field in fields(State):
            if field.name in COLUMNS:
                assert np.allclose(getattr(old, field.name), getattr(new, field.name), rtol=1e-6, equal_nan=True)
            elif field.name == "degraded":
                assert (old.degraded == new.degraded).all()
            elif field.name != "addresses":
                assert getattr(old, field.name) == getattr(new, field.name), field.name


def test_each_number_that_a_policy_sees_is_recorded() -> None:
    arrays = {f.name for f in fields(State) if isinstance(getattr(by_model([instance("a/1")])[0], f.name), np.ndarray)}
    assert set(COLUMNS) == arrays - {"degraded"}


def test_a_column_of_another_version_is_unknown_and_nothing_was_seen_is_nothing() -> None:
    decision = recorded(by_model([instance("a/1"), instance("a/2")]))
    decision.seen.columns[0] = "of_tomorrow"
    [state] = states(decision)
    assert np.isnan(getattr(state, COLUMNS[0])).all()
    assert states(pb.Decision(weights=[pb.Weight(instance="a/1")])) == []


def test_a_policy_wishes_the_same_when_it_is_played_over() -> None:
    clock, rng = ManualClock(), np.random.default_rng(1)
    pilot, over = Pilot(ActuatorSettings(policy="proportional"), clock), Proportional()
    for _ in range(60):
        clock.advance(1)
        group = [
            instance(f"a/{k}", latency_mean_seconds=rng.exponential(0.1), incident="i-1" * (k == 3)) for k in range(5)
        ]
        decided = pilot.decide(Heard(pb.FleetState(instances=group), clock.monotonic()))
        [state] = states(pb.Decision(weights=decided.weights, seen=seen(decided.states)))
        assert np.allclose(over.decide(state), [w.wished for w in decided.weights], atol=1e-5)


class Line:
    """A collector that tells of a fleet, and keeps the decisions."""

    refused = 0

    def __init__(self, clock: ManualClock) -> None:
        self.clock, self.size, self.decisions = clock, 1, list[pb.Decision]()

    @property
    def heard(self) -> Heard:
        # Something changes every second.
        sick = int(self.clock.monotonic()) % self.size
        group = [instance(f"a/{k}", incident="i-1" * (k == sick)) for k in range(self.size)]
        return Heard(pb.FleetState(instances=group), self.clock.monotonic())

    def record(self, decision: pb.Decision) -> None:
        self.decisions.append(decision)


def test_of_a_large_fleet_it_is_recorded_now_and_then(tmp_path: Path) -> None:
    for size, least in ((4, 190), (400, 10)):
        clock = ManualClock()
        line = Line(clock)
        line.size = size
        actuator = Actuator(
            ActuatorSettings(haproxy_sockets=()),
            clock,
            Cache(),
            line,
            Ledger(tmp_path / "ledger"),  # type: ignore[arg-type]
            (),
        )
        for _ in range(200):
            clock.advance(1)
            actuator.step()
        saw = [d for d in line.decisions if d.HasField("seen")]
        assert len(line.decisions) >= 190
        assert len(saw) >= least
        assert sum(len(d.weights) for d in saw) <= SEEN_INSTANCES_PER_SECOND * 200 + size

"""What holds in every scenario, whatever is in it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.fleetsim.scenes import run, scenarios
from trimtab.actuator.fleetsim.faults import SIGNALS
from trimtab.actuator.fleetsim.fleet import Fleet
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.detector.history import MERGE_SECONDS

MANY = settings(max_examples=150, deadline=None)


@MANY
@given(scenarios(), st.data())
def test_nothing_is_lost_or_doubled(scenario: Scenario, data: st.DataObject) -> None:
    """Every arrival has left once, or is in the system; whatever the weights, which change every second."""
    fleet, numbers, arrived = Fleet(scenario), [], 0
    weight = st.sampled_from((0.0, 0.001, 0.3, 1.0))
    many = st.lists(weight, min_size=len(scenario.instances), max_size=len(scenario.instances))
    for _ in range(scenario.seconds):
        tick = fleet.step(data.draw(many))
        arrived += tick.arrived
        numbers += tick.answers["number"].tolist()
        assert (tick.answers["latency"] >= 0).all()
        assert fleet.summary().in_system <= scenario.in_flight_max
    outcome = fleet.summary()
    assert len(set(numbers)) == len(numbers) == outcome.requests
    assert outcome.requests + outcome.in_system == arrived
    assert set(numbers) <= set(range(arrived))
    assert outcome.by_instance.sum() + outcome.refused == outcome.requests


@MANY
@given(scenarios())
def test_the_same_seed_is_the_same_run(scenario: Scenario) -> None:
    (_, once), (_, again) = run(scenario), run(scenario)
    for a, b in zip(once, again, strict=True):
        assert a.answers.tobytes() == b.answers.tobytes()
        assert np.array_equal(a.latency_seconds, b.latency_seconds, equal_nan=True)


@MANY
@given(scenarios())
def test_a_second_is_as_long_as_a_second(scenario: Scenario) -> None:
    """Workers cannot be busier than always, and who is not there is not asked."""
    _, ticks = run(scenario)
    for tick in ticks:
        here = tick.joined
        assert ((tick.utilisation[here] >= 0) & (tick.utilisation[here] <= 1 + 1e-9)).all()
        assert np.isnan(tick.utilisation[~here]).all()
        asked = tick.answers["instance"]
        assert here[asked[asked >= 0]].all()


@MANY
@given(scenarios())
def test_what_is_told_is_what_happened(scenario: Scenario) -> None:
    fleet, ticks = run(scenario)
    for k, tick in enumerate(ticks):
        # What is told is of the last seconds, in which the instance was there.
        last = list(ticks[max(0, k + 1 - round(MERGE_SECONDS)) : k + 1])
        for i in np.flatnonzero(tick.joined):
            there = [t for t in last if t.joined[i]]
            mine = np.concatenate([t.answers[t.answers["instance"] == i] for t in there])
            assert np.isclose(tick.requests_per_second[i] * len(there), len(mine))
            if len(mine):
                assert np.isclose(tick.error_ratio[i], mine["failed"].mean())
                # A request is at the instance for no longer than it is in the system.
                assert tick.latency_seconds[i] <= mine["latency"].mean() + 1e-9
            else:
                assert np.isnan(tick.latency_seconds[i])
            assert 0 <= tick.queue[i] <= tick.in_flight[i] + 1e-9
    at_instances = ticks[-1].alone[SIGNALS.index("in_flight"), ticks[-1].joined].sum()
    assert at_instances <= fleet.summary().in_system
    if scenario.balancers.connections_max == 0 and scenario.balancers.name != "central_queue":
        assert at_instances == fleet.summary().in_system


@MANY
@given(scenarios(), st.data())
def test_who_is_drained_gets_nothing(scenario: Scenario, data: st.DataObject) -> None:
    drained = data.draw(st.integers(0, len(scenario.instances) - 1))
    weights = np.ones(len(scenario.instances))
    weights[drained] = 0
    others_are_there = any(i.joins_seconds == 0 for k, i in enumerate(scenario.instances) if k != drained)
    if others_are_there:
        fleet, _ = run(scenario, weights)
        assert fleet.summary().by_instance[drained] == 0

"""What is told of a fleet, and how policies and the guard take it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run
from trimtab.actuator.fleetsim.drive import drive, guarded, unguarded
from trimtab.actuator.fleetsim.faults import SIGNALS, Fault, TelemetryFault
from trimtab.actuator.fleetsim.fleet import Tick
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service, instances
from trimtab.actuator.fleetsim.state import name_of, state_of, weights_of
from trimtab.actuator.policy import POLICIES

BASE = Scenario(seconds=20, arrivals=Arrivals(100))


def told(*faults: TelemetryFault) -> list[Tick]:
    return run(replace(BASE, telemetry_faults=faults))[1]


def rows(ticks: list[Tick], instance: int) -> np.ndarray:
    return np.array([[getattr(t, s)[instance] for s in SIGNALS] for t in ticks])


TRUTH = rows(told(), 0)


def test_lost_telemetry_ages_as_it_was() -> None:
    ticks = told(TelemetryFault(0, "lost", 5, 9))
    assert [t.age_seconds[0] for t in ticks[:10]] == [0, 0, 0, 0, 1, 2, 3, 4, 0, 0]
    assert np.array_equal(rows(ticks, 0)[4:8], np.repeat(TRUTH[3:4], 4, axis=0))
    assert np.array_equal(rows(ticks, 1), rows(told(), 1))


def test_telemetry_that_was_never_there_is_unknown() -> None:
    ticks = told(TelemetryFault(0, "lost"))
    assert np.isnan(rows(ticks, 0)).all()
    assert np.isnan([t.age_seconds[0] for t in ticks]).all()


def test_late_telemetry_is_what_was() -> None:
    ticks = told(TelemetryFault(0, "late", 0, late_seconds=3))
    assert np.isnan(rows(ticks, 0)[:3]).all()
    assert np.array_equal(rows(ticks, 0)[3:], TRUTH[:-3])
    assert [t.age_seconds[0] for t in ticks[3:]] == [3] * 17


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_a_lie_is_about_one_signal(scale: float) -> None:
    column = SIGNALS.index("latency_seconds")
    ticks = told(TelemetryFault(0, "lying", 5, 10, scale=scale))
    expected = TRUTH.copy()
    expected[4:9, column] *= scale
    assert np.allclose(rows(ticks, 0), expected)
    constant = told(TelemetryFault(0, "lying", signal="error_ratio", constant=0.9))
    assert (rows(constant, 0)[:, SIGNALS.index("error_ratio")] == 0.9).all()


def test_telemetry_faults_do_not_touch_users() -> None:
    plain, lying = (
        run(BASE)[0].summary(),
        run(replace(BASE, telemetry_faults=(TelemetryFault(0, "lost"),)))[0].summary(),
    )
    assert plain.mean_seconds == lying.mean_seconds


def test_announcements_and_incidents_have_their_time() -> None:
    fault = Fault(1, "slow", 6, 12, announce_seconds=2, detect_seconds=3, resolve_seconds=4, mechanism="gpu_throttling")
    ticks = run(replace(BASE, faults=(fault,)))[1]
    assert [t.second + 1 for t in ticks if t.announced[1]] == list(range(4, 12))
    assert [t.second + 1 for t in ticks if t.mechanisms[1]] == list(range(9, 16))
    state = state_of(ticks[9])
    assert state.degraded.tolist() == [False, True, False, False]
    assert state.mechanisms[1] == "gpu_throttling"
    assert state.incidents == ("", name_of(1), "", "")


def test_who_has_not_joined_is_nobodys_instance() -> None:
    scenario = replace(BASE, instances=(Instance(), Instance(joins_seconds=8), Instance()))
    ticks = run(scenario)[1]
    assert [len(state_of(t)) for t in ticks] == [2] * 8 + [3] * 12
    assert state_of(ticks[0]).ids == (name_of(0), name_of(2))
    assert weights_of(ticks[0], np.array([0.2, 0.4])).tolist() == [0.2, 1, 0.4]
    assert np.isnan(ticks[7].latency_seconds[1])
    assert ticks[9].requests_per_second[1] > 0


def test_utilisation_is_what_littles_law_says() -> None:
    """Busy share = arrival rate * service time / speed, by instance."""
    scenario = replace(
        BASE, seconds=300, instances=instances((1, 2)), arrivals=Arrivals(40), balancers=Balancers("round_robin")
    )
    busy = np.mean([t.utilisation for t in run(scenario)[1]], axis=0)
    assert busy == pytest.approx([20 * 0.02, 20 * 0.01], rel=0.03)


def test_service_is_that_of_a_batch_and_workers_take_as_many_as_fill_one() -> None:
    """As a runtime tells: eight requests that are worked on together for 20 ms took 20 ms each."""
    batches = tuple(Instance(batch_max=8, batch_delay_seconds=0.01, speed=speed) for speed in (1.0, 2.0))
    service = Service(kind="deterministic", mean_seconds=0.02)
    scenario = replace(BASE, seconds=60, instances=batches, service=service, arrivals=Arrivals(200))
    told = [state_of(tick) for tick in run(scenario)[1]]
    assert np.mean([s.service_seconds for s in told], axis=0) == pytest.approx([0.02, 0.01])
    assert told[-1].workers.tolist() == [8, 8]


@pytest.mark.parametrize("at_the_wheel", [guarded, unguarded], ids=lambda f: f.__name__)
def test_the_policy_at_the_wheel_helps_round_robin(at_the_wheel: object) -> None:
    scenario = replace(
        BASE, seconds=90, arrivals=Arrivals(120), balancers=Balancers("round_robin"), faults=(Fault(0, "slow", 20),)
    )
    steered = drive(scenario, at_the_wheel(POLICIES["proportional"]()))  # type: ignore[operator]
    neutral = drive(scenario, unguarded(POLICIES["neutral"]()))
    assert steered.cost_seconds[40:].mean() < 0.5 * neutral.cost_seconds[40:].mean()
    assert steered.by_instance[0] < neutral.by_instance[0]


def test_neutral_weights_are_what_nobody_decides() -> None:
    even = drive(BASE, lambda tick: np.ones(4))
    neutral = drive(BASE, guarded(POLICIES["neutral"]()))
    assert even.mean_seconds == neutral.mean_seconds


def test_the_guard_runs_on_the_scenarios_time() -> None:
    """It measures at neutral weights for 5 s first, however far the policy would go."""
    drained = Fault(0, "slow", 0, detect_seconds=0)
    scenario = replace(BASE, faults=(drained,))
    decide = guarded(POLICIES["proportional"]())
    asked = []
    drive(scenario, lambda tick: asked.append(tick.weights[0]) or decide(tick))  # type: ignore[func-returns-value]
    assert asked[:5] == [1, 1, 1, 1, 1]
    assert min(asked) < 0.1

"""The real policies and the real guard at the wheel of a simulated fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.outcome import Outcome
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.fleetsim.state import state_of, weights_of
from trimtab.actuator.guard import Guard
from trimtab.actuator.policy.base import Policy
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State, Vector
from trimtab.agent.clock import ManualClock

Decide = Callable[[Tick], Vector]
"""From the second that has passed to the weights of the next, float64 [instances]."""


def drive(scenario: Scenario, decide: Decide) -> Outcome:
    """Run the scenario. The first second has neutral weights."""
    fleet = Fleet(scenario)
    for _ in ticks(fleet, decide):
        pass
    return fleet.summary()


def ticks(fleet: Fleet, decide: Decide, first: Vector | None = None, first_seconds: int = 1) -> Iterator[Tick]:
    """What is left of the fleet's scenario, second by second; the first so many have the weights `first`, neutral by default."""
    weights = first = np.ones(len(fleet.scenario.instances)) if first is None else first
    while not fleet.done:
        tick = fleet.step(weights)
        wished = decide(tick)
        weights = wished if fleet.second >= first_seconds else first
        yield tick


def unguarded(policy: Policy) -> Decide:
    """A policy's wishes as they are."""
    return lambda tick: weights_of(tick, policy.decide(state_of(tick)))


class Bounds:
    """The guard, on the scenario's own clock: called once a second."""

    def __init__(self, settings: GuardSettings) -> None:
        self._clock = ManualClock()
        self._guard = Guard(settings, self._clock)

    def __call__(self, state: State, wish: Callable[[], Vector]) -> Vector:
        self._clock.advance(1.0)
        return np.array([v.weight for v in self._guard.bound(state, wish)])


def guarded(policy: Policy, settings: GuardSettings | None = None) -> Decide:
    """A policy's wishes within the guard's bounds, as the actuator lets them through."""
    bounds = Bounds(settings or GuardSettings())

    def decide(tick: Tick) -> Vector:
        state = state_of(tick)
        return weights_of(tick, bounds(state, lambda: policy.decide(state)))

    return decide

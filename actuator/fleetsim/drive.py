"""The real policies and the real guard at the wheel of a simulated fleet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.outcome import Outcome
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.fleetsim.state import state_of, weights_of
from trimtab.actuator.guard import Guard
from trimtab.actuator.policy.base import Policy
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector
from trimtab.agent.clock import ManualClock

Decide = Callable[[Tick], Vector]
"""From the second that has passed to the weights of the next, float64 [instances]."""


def drive(scenario: Scenario, decide: Decide) -> Outcome:
    """Run the scenario. The first second has neutral weights."""
    fleet = Fleet(scenario)
    weights = np.ones(len(scenario.instances))
    while not fleet.done:
        weights = decide(fleet.step(weights))
    return fleet.summary()


def unguarded(policy: Policy) -> Decide:
    """A policy's wishes as they are."""
    return lambda tick: weights_of(tick, policy.decide(state_of(tick)))


def guarded(policy: Policy, settings: GuardSettings | None = None) -> Decide:
    """A policy's wishes within the guard's bounds, as the actuator lets them through."""
    clock = ManualClock()
    guard = Guard(settings or GuardSettings(), clock)

    def decide(tick: Tick) -> Vector:
        clock.advance(1.0)
        state = state_of(tick)
        verdicts = guard.bound(state, lambda: policy.decide(state))
        return weights_of(tick, np.array([v.weight for v in verdicts]))

    return decide

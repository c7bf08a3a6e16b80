"""One training fleet from its first second to its last, beside a twin that the rule steers: what the learner gets is what it did better.

Both see the same requests, so most of what chance does to one it does to the other, and the difference tells of the choices.
"""

from __future__ import annotations

import numpy as np

from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.fleetsim.state import state_of, weights_of
from trimtab.actuator.policy.features import Matrix
from trimtab.actuator.policy.sight import Sight
from trimtab.actuator.policy.split import Split
from trimtab.actuator.reward import Reward
from trimtab.actuator.state import Vector

SETTLE_SECONDS = 5
"""At neutral weights, for the averages to begin with."""

# A queue that overflows is bad enough: how much worse it could be would drown all else.
_WORTH_MAX = 5.0


class Course:
    """`act` until it is `over`."""

    def __init__(self, scenario: Scenario) -> None:
        self._fleet, self._twin = Fleet(scenario), Fleet(scenario)
        self._sight, self._rule = Sight(), Split()
        speeds = np.asarray([i.speed for i in scenario.instances])
        self._reference = scenario.service.expected_seconds * len(speeds) / float(speeds.sum())
        self.features: Matrix
        """float32 [instances, NAMES]: what is seen now."""
        for _ in range(SETTLE_SECONDS):
            neutral = np.ones(len(speeds))
            self._see(self._fleet.step(neutral))
            self._follow(self._twin.step(neutral))

    @property
    def proposal(self) -> Vector:
        """float64 [instances]: what the rule would do now."""
        return self._sight.proposal

    @property
    def over(self) -> bool:
        """Whether no second is left."""
        return self._fleet.done

    def act(self, wished: Vector, reward: Reward) -> float:
        """Another second under these weights; by how much it was better than the twin's, at most `_WORTH_MAX`."""
        self._sight.remember(self._state, wished)
        tick = self._fleet.step(weights_of(self._tick, wished))
        twin = self._twin.step(self._twin_weights)
        self._see(tick)
        self._follow(twin)
        better = self._worth(tick, reward) - self._worth(twin, reward)
        return min(max(better, -_WORTH_MAX), _WORTH_MAX)

    def _see(self, tick: Tick) -> None:
        self._tick, self._state = tick, state_of(tick)
        self.features = self._sight.see(self._state)

    def _follow(self, tick: Tick) -> None:
        self._twin_weights = weights_of(tick, self._rule.decide(state_of(tick)))

    def _worth(self, tick: Tick, reward: Reward) -> float:
        latency, failed = tick.answers["latency"], tick.answers["failed"]
        fine = latency[failed == 0]
        mean, variance = (float(fine.mean()), float(fine.var())) if len(fine) else (0.0, 0.0)
        return reward.of(tick.arrived, len(fine), mean, variance, int(failed.sum()), self._reference)

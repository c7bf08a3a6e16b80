"""The simulated fleet as a Gymnasium environment. The only file that imports gymnasium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.check import number, require
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.observe import FEATURES, HIGHEST, observe
from trimtab.actuator.fleetsim.scenario import INSTANCES_MAX, Scenario
from trimtab.actuator.fleetsim.state import state_of, weights_of
from trimtab.actuator.guard import Guard
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector
from trimtab.agent.clock import ManualClock

Observation = dict[str, NDArray[Any]]
_LATENCY_MAX = 100.0
"""Service times; a longer mean or deviation is not worse, so that one stuck instance does not drown all else."""


@dataclass(frozen=True, slots=True)
class Reward:
    """alpha throughput - beta latency - gamma variance, of one second.

    Throughput is answers without error over arrivals; latency is what a request cost (`outcome.cost_seconds`, where an error is ten mean
    latencies) in mean service times; variance is of latency, in their squares.
    """

    alpha: float = 1.0
    beta: float = 0.1
    gamma: float = 0.001

    def of(self, tick: Tick, service_seconds: float) -> float:
        """Latency of a second in which nothing left is 0: throughput tells of it."""
        answers: Any = tick.answers
        good = int((answers["failed"] == 0).sum())
        throughput = min(1.0, good / tick.arrived) if tick.arrived else 1.0
        if len(answers) == 0:
            return self.alpha * throughput
        cost = min(tick.cost_seconds / service_seconds, _LATENCY_MAX)
        deviation = min(float(answers["latency"].std()) / service_seconds, _LATENCY_MAX)
        return self.alpha * throughput - self.beta * cost - self.gamma * deviation**2


class FleetEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One step is one second; an episode is one scenario, which `make` makes from a seed.

    The observation has a row for each of `instances_max` instances (`observe`) and a mask of those that are there; others are 0. The
    action is each one's share of the requests, on any scale: float32 [instances_max] in [0, 1], of which those that are there
    are used. All 0 is neutral. With `guard` the shares go through the guard's bounds.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        make: Callable[[int], Scenario],
        instances_max: int = 16,
        reward: Reward | None = None,
        guard: GuardSettings | None = None,
    ) -> None:
        number("instances_max", instances_max, 1, INSTANCES_MAX)
        self._make, self._max = make, instances_max
        self._reward, self._settings = reward or Reward(), guard
        rows = (instances_max, len(FEATURES))
        self.observation_space = spaces.Dict(
            {
                "instances": spaces.Box(-HIGHEST, HIGHEST, rows, np.float32),
                "mask": spaces.Box(0, 1, (instances_max,), np.int8),
            }
        )
        self.action_space = spaces.Box(0, 1, (instances_max,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new scenario, and its first second at neutral weights."""
        super().reset(seed=seed, options=options)
        scenario = self._make(int(self.np_random.integers(2**31)))
        count = len(scenario.instances)
        require(count <= self._max, "instances", count, f"instances_max = {self._max} of the environment; raise it")
        self._fleet, self._clock = Fleet(scenario), ManualClock()
        self._guard = Guard(self._settings, self._clock) if self._settings else None
        self._tick = self._fleet.step(np.ones(count))
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The next second. Raises TrimtabError on an action outside its space."""
        shares = np.asarray(action, dtype=np.float64)
        require(self.action_space.contains(shares.astype(np.float32)), "action", action, "must be in the action space")
        wished = self._weights(shares[: len(self._tick.joined)][self._tick.joined])
        self._tick = self._fleet.step(weights_of(self._tick, wished))
        reward = self._reward.of(self._tick, self._fleet.scenario.service.expected_seconds)
        return self._observation(), reward, False, self._fleet.done, self._info()

    def _weights(self, shares: Vector) -> Vector:
        """From shares on the simplex to shares of neutral weights: the largest is 1."""
        wished = shares / shares.max() if shares.max(initial=0) > 0 else np.ones(len(shares))
        self._clock.advance(1.0)
        if self._guard is None:
            return wished
        return np.array([v.weight for v in self._guard.bound(state_of(self._tick), lambda: wished)])

    def _observation(self) -> Observation:
        rows = np.zeros((self._max, len(FEATURES)), dtype=np.float32)
        mask = np.zeros(self._max, dtype=np.int8)
        here = np.flatnonzero(self._tick.joined)
        rows[here] = observe(state_of(self._tick), self._tick.weights[here])
        mask[here] = 1
        return {"instances": rows, "mask": mask}

    def _info(self) -> dict[str, Any]:
        """What users had: the second's cost, and at the end the whole `outcome`."""
        info: dict[str, Any] = {"cost_seconds": self._tick.cost_seconds}
        return info | {"outcome": self._fleet.summary()} if self._fleet.done else info

"""The simulated fleet as a Gymnasium environment: what policies see, and what the actuator calls good. The only file that imports
gymnasium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.check import number, require
from trimtab.actuator.fleetsim.drive import Bounds, ticks, unguarded
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import INSTANCES_MAX, Scenario
from trimtab.actuator.fleetsim.state import state_of, weights_of
from trimtab.actuator.policy.base import Policy
from trimtab.actuator.policy.features import HIGHEST, NAMES
from trimtab.actuator.policy.sight import Sight
from trimtab.actuator.reward import Reward
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector

Observation = dict[str, NDArray[Any]]
Shares = NDArray[np.float64]
SETTLE_SECONDS = 5
"""At neutral weights, for the averages to begin with."""
_BETTER_MAX = 5.0
"""Of the difference to a rival: a queue that overflows is bad enough, and how much worse it could be would drown all else."""


class FleetEnv(gymnasium.Env[Observation, Shares]):
    """One step is one second; an episode is one scenario, which `make` makes from the seed of `reset`, or from one drawn without.

    The observation has a row of `policy.features` for each of `instances_max` instances and a mask of those that are there; others are 0.
    The action is each one's share of the requests, on any scale: float64 [instances_max] in [0, 1], of which those that are there
    are used. All 0 is neutral. With `guard` the shares go through the guard's bounds.

    With a `rival` the reward is by how much it was better than what a twin of the fleet had on the same requests, steered by that policy:
    most of what chance does to one it does to the other, and the difference tells of the actions.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        make: Callable[[int], Scenario],
        instances_max: int = 16,
        reward: Reward | None = None,
        guard: GuardSettings | None = None,
        rival: Callable[[], Policy] | None = None,
    ) -> None:
        number("instances_max", instances_max, 1, INSTANCES_MAX)
        self._make, self._max = make, instances_max
        self._reward, self._settings, self._rival = reward or Reward(), guard, rival
        rows = (instances_max, len(NAMES))
        self.observation_space = spaces.Dict(
            {
                "instances": spaces.Box(-HIGHEST, HIGHEST, rows, np.float32),
                "mask": spaces.Box(0, 1, (instances_max,), np.int8),
            }
        )
        self.action_space = spaces.Box(0, 1, (instances_max,), np.float64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new scenario, and its first seconds at neutral weights."""
        super().reset(seed=seed, options=options)
        scenario = self._make(int(self.np_random.integers(2**31)) if seed is None else seed)
        count = len(scenario.instances)
        require(count <= self._max, "instances", count, f"instances_max = {self._max} of the environment; raise it")
        longer = "make it longer than the seconds at neutral weights"
        require(scenario.seconds > SETTLE_SECONDS, "seconds", scenario.seconds, longer)
        self._fleet, self._sight = Fleet(scenario), Sight()
        self._bounds = Bounds(self._settings) if self._settings else None
        self._twin = self._twin_of(scenario)
        speeds = sum(i.speed for i in scenario.instances)
        self._reference = scenario.service.expected_seconds * count / speeds
        for _ in range(SETTLE_SECONDS):
            self._live(np.ones(count))
        return self._seen, self._info()

    def step(self, action: Shares) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The next second. Raises TrimtabError on an action outside its space."""
        shares = np.asarray(action)
        require(self.action_space.contains(shares), "action", action, "must be in the action space")
        wished = _neutral_shares(shares[: len(self._tick.joined)][self._tick.joined])
        self._sight.remember(self._state, wished)
        bound = wished if self._bounds is None else self._bounds(self._state, lambda: wished)
        self._live(weights_of(self._tick, bound))
        return self._seen, self._better(), False, self._fleet.done, self._info()

    def _twin_of(self, scenario: Scenario) -> Iterator[Tick] | None:
        """The same fleet, steered by the rival."""
        if self._rival is None:
            return None
        return ticks(Fleet(scenario), unguarded(self._rival()), first_seconds=SETTLE_SECONDS)

    def _live(self, weights: Vector) -> None:
        """Another second, and what is seen of it."""
        self._tick, self._twin_tick = self._fleet.step(weights), next(self._twin) if self._twin else None
        self._state = state_of(self._tick)
        features = self._sight.see(self._state)
        self._seen: Observation = {
            "instances": self._padded(features, np.float32),
            "mask": self._padded(np.ones(len(features)), np.int8),
        }

    def _padded(self, values: NDArray[Any], kind: type[np.generic]) -> NDArray[Any]:
        """Of those that are there, at their places."""
        out = np.zeros((self._max, *values.shape[1:]), dtype=kind)
        out[np.flatnonzero(self._tick.joined)] = values
        return out

    def _better(self) -> float:
        """The reward of the second that has passed."""
        worth = self._worth(self._tick)
        if self._twin_tick is None:
            return worth
        return min(max(worth - self._worth(self._twin_tick), -_BETTER_MAX), _BETTER_MAX)

    def _worth(self, tick: Tick) -> float:
        latency, failed = tick.answers["latency"], tick.answers["failed"]
        fine = latency[failed == 0]
        mean, variance = (float(fine.mean()), float(fine.var())) if len(fine) else (0.0, 0.0)
        return self._reward.of(tick.arrived, len(fine), mean, variance, int(failed.sum()), self._reference)

    def _info(self) -> dict[str, Any]:
        """What the rule proposes, float64 [instances_max]; the weights that were in force; at the end, what users had of it all."""
        info = {"proposal": self._padded(self._sight.proposal, np.float64), "weights": self._tick.weights}
        return info | {"outcome": self._fleet.summary()} if self._fleet.done else info


def _neutral_shares(shares: Vector) -> Vector:
    """From shares on any scale to shares of neutral weights: the largest is 1."""
    most = float(shares.max(initial=0))
    return shares / most if most > 0 else np.ones(len(shares))

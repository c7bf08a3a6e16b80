"""A fleet on paper: instances that each carry so much, behind a balancer that follows weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.actuator.conftest import instance
from trimtab.actuator.guard import Guard, Verdict
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import State, Vector, by_model
from trimtab.agent.clock import ManualClock


@dataclass
class MadeFleet:
    """`capacity`: requests per second that each instance can answer; `rate`: what comes for all of them."""

    capacity: Sequence[float]
    rate: float
    settings: GuardSettings = field(default_factory=GuardSettings)
    known: dict[int, dict[str, Any]] = field(default_factory=dict)
    """What else is known of some."""

    def __post_init__(self) -> None:
        self.clock = ManualClock()
        self.guard = Guard(self.settings, self.clock)
        self.weight = np.ones(len(self.capacity))

    @property
    def share(self) -> Vector:
        """What comes to each, per second."""
        return self.rate * self.weight / self.weight.sum()

    @property
    def overload(self) -> float:
        """How much more comes than can be answered, per second."""
        return float(np.maximum(self.share - np.asarray(self.capacity), 0).sum())

    def state(self) -> State:
        """As the collector would tell it: an instance that gets too much answers what it can."""
        answered = np.minimum(self.share, self.capacity)
        latency = 0.02 / np.maximum(1 - answered / self.capacity, 0.05)
        group = [
            instance(
                f"n/{k}",
                **{
                    "requests_per_second": answered[k],
                    "utilisation": answered[k] / self.capacity[k],
                    "latency_mean_seconds": latency[k],
                }
                | self.known.get(k, {}),
            )
            for k in range(len(self.capacity))
        ]
        return by_model(group)[0]

    def run(self, wish: Sequence[float], seconds: int) -> list[Verdict]:
        for _ in range(seconds):
            self.clock.advance(1)
            verdicts = self.guard.bound(self.state(), lambda: np.asarray(wish, dtype=float))
            self.weight = np.asarray([v.weight for v in verdicts])
        return verdicts

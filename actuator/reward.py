"""What an action was worth: α·throughput − β·mean latency − γ·latency variance, as published (ARL-ML), in units that mean the same in
every fleet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimtab.actuator.cost import ERROR_COST

_LATENCY_MAX = 50.0
"""Beyond so many times the reference it cannot get worse."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The weights of the three terms."""

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 100):
                raise ValueError(f"{name} = {value}: give a number from 0 to 100")

    def of(
        self, arrived: float, answered: float, mean: float, variance: float, failed: float, reference: float
    ) -> float:
        """The reward of a second.

        arrived, answered, failed: requests; mean [s] and variance [s²] of the latencies of those answered; reference [s]: what a request
        takes
        in this fleet when nobody waits. Throughput is the share of the requests that were answered well.
        """
        if arrived + answered + failed <= 0:
            return 0.0
        done = answered + failed
        throughput = min(answered / max(arrived, 1.0), 1.0)
        scaled = min(mean / reference, _LATENCY_MAX) if answered > 0 else 0.0
        latency = (answered * scaled + failed * ERROR_COST) / max(done, 1.0)
        if done <= 0:
            # Nobody was answered: all wait.
            latency = _LATENCY_MAX
        spread = min(variance / reference**2, _LATENCY_MAX) if answered > 1 else 0.0
        return self.alpha * throughput - self.beta * latency - self.gamma * spread

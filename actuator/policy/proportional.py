"""The honest rule: traffic in proportion to how fast and how well an instance answers, compared with its peers."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.policy.recent import STALE_SECONDS, Recent
from trimtab.actuator.state import State, Vector

BAND = 1.5
"""Up to this many times the peers' latency is equal. Noise widens it: a mean of n requests is known to about 1/sqrt(n), and three
times that is not yet news."""
_MEMORY = 0.93
"""What a second is worth a second later: about fifteen seconds count, longer than what a busy host does to one of two equal instances."""


class Proportional:
    """weight ∝ min(1, band / (latency / median latency of the peers)) × success ratio², and 0 for an open incident.

    The square makes goodput count, so that an instance which fails fast never looks attractive. Who is unknown, stale or alone is
    neutral; so is everybody when all are degraded, for there is nowhere to go.
    """

    name = "proportional"

    def __init__(self) -> None:
        self._recent = Recent(_MEMORY)

    def decide(self, state: State) -> Vector:
        recent = self._recent.observe(state)
        latency, errors = recent.latency_seconds, recent.error_ratio
        fresh = state.age_seconds <= STALE_SECONDS
        judged = fresh & ~state.degraded & (latency > 0)
        weight = np.ones(len(state))
        if judged.sum() >= 2:
            ratio = latency[judged] / _median_of_others(latency[judged])
            weight[judged] = np.minimum(1, (BAND + 3 / np.sqrt(recent.requests[judged])) / ratio)
        weight *= np.where(fresh & (errors > 0), (1 - errors) ** 2, 1)
        weight[state.degraded & fresh] = 0
        best = weight.max(initial=0)
        return weight / best if best > 0 else np.ones(len(state))


def _median_of_others(values: Vector) -> Vector:
    """For each value the median of all the others; at least two values."""
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values), dtype=np.intp)
    ranks[order] = np.arange(len(values))
    ascending, others = values[order], len(values) - 1

    def at(position: int) -> Vector:
        return ascending[np.where(position < ranks, position, position + 1)]

    return (at((others - 1) // 2) + at(others // 2)) / 2


POLICY = Proportional

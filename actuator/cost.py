"""What a model's requests cost: their latency, errors counted as long ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from trimtab.actuator.state import State

ERROR_COST = 10.0
"""A failed request costs as much as this many mean latencies."""
_AGE_SECONDS_MAX = 3.0
"""What is older tells nothing of how things are now."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What all instances together had in a second, or in several."""

    requests: float = 0.0
    latency: float = 0.0
    """Of all requests together, seconds."""
    errors: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.requests + other.requests, self.latency + other.latency, self.errors + other.errors)

    def with_errors(self, ratio: float) -> Spent:
        """The same if at least this share of the requests had failed."""
        return replace(self, errors=max(self.errors, ratio * self.requests))

    def cost(self, requests_min: float) -> float:
        """Of one request, in seconds; NaN where there were fewer than so many."""
        if not self.requests >= requests_min:
            return math.nan
        return self.latency / self.requests * (1 + ERROR_COST * self.errors / self.requests)


def spent(state: State) -> Spent:
    """What is known of the newest second."""
    rate, latency = state.requests_per_second, state.latency_seconds
    known = np.isfinite(rate + latency) & (state.age_seconds <= _AGE_SECONDS_MAX)
    errors = np.nan_to_num(state.error_ratio)
    return Spent(*(float(np.sum(x[known])) for x in (rate, rate * latency, rate * errors)))

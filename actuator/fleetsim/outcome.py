"""What users had of a run: how long they waited, and how often for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.actuator.cost import ERROR_COST
from trimtab.actuator.state import Vector

LATENCIES_MAX = 4_000_000
"""So many are kept, and quantiles are exact; beyond, a uniform sample of as many is."""


def cost_seconds(latency: Vector, failed: Vector) -> float:
    """Of one request, as the circuit breaker reckons: the mean latency, an error counting as ten more; NaN without requests.

    `latency` float64 [requests] in seconds and `failed` (0 or 1) of requests that left the system, errors included.
    """
    if len(latency) == 0:
        return float("nan")
    return float(latency.mean() * (1 + ERROR_COST * failed.mean()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a whole run. Latencies are from arrival, include the balancer's queue, and are of answers without error; NaN without any."""

    requests: int
    """That left the system, answered or refused."""
    errors: int
    """Refused ones included."""
    refused: int
    """That reached no instance: the balancers knew none, or the whole system was full."""
    in_system: int
    """At the end."""
    mean_seconds: float
    p50_seconds: float
    p99_seconds: float
    goodput: float
    """Share of the requests that were answered without error within the scenario's `slo_seconds`."""
    cost_seconds: Vector
    """float64 [seconds]: what a request cost in each second (`cost_seconds`)."""
    by_instance: Vector
    """float64 [instances]: answers, errors included."""

    @property
    def error_ratio(self) -> float:
        """Errors over requests; NaN without any."""
        return self.errors / self.requests if self.requests else float("nan")


class Ledger:
    """Collects what an `Outcome` says, a second at a time."""

    def __init__(self, instances: int, slo_seconds: float, seed: int, latencies_max: int = LATENCIES_MAX) -> None:
        self._slo_seconds = slo_seconds
        self._rng = np.random.default_rng([seed, 3])
        self._latencies: Vector = np.empty(0)
        self._used, self._seen, self._max = 0, 0, latencies_max
        self._sum = 0.0
        self._requests = self._errors = self._good = 0
        self._costs: list[float] = []
        self._by_instance = np.zeros(instances)

    def add(self, latency: Vector, failed: Vector, instance: Vector) -> float:
        """The requests that left the system in one second, each array [requests]; returns what one cost."""
        fine = latency[failed == 0] if failed.any() else latency
        self._requests += len(latency)
        self._errors += len(latency) - len(fine)
        self._good += int((fine <= self._slo_seconds).sum())
        self._sum += float(fine.sum())
        self._by_instance += np.bincount(instance + 1, minlength=len(self._by_instance) + 1)[1:]
        self._keep(fine)
        self._costs.append(cost_seconds(latency, failed))
        return self._costs[-1]

    def _keep(self, latencies: Vector) -> None:
        """All while there is room; then Vitter's algorithm R (1985)."""
        room = latencies[: self._max - self._used]
        if self._used + len(room) > len(self._latencies):
            size = min(self._max, max(2 * len(self._latencies), self._used + len(room), 1024))
            self._latencies = np.resize(self._latencies, size) if len(self._latencies) else np.empty(size)
        self._latencies[self._used : self._used + len(room)] = room
        self._used += len(room)
        self._seen += len(room)
        rest = latencies[len(room) :]
        places = self._rng.integers(0, self._seen + np.arange(1, len(rest) + 1))
        kept = places < self._max
        self._latencies[places[kept]] = rest[kept]
        self._seen += len(rest)

    def outcome(self, refused: int, in_system: int) -> Outcome:
        """So far."""
        kept = self._latencies[: self._used]
        p50, p99 = np.quantile(kept, (0.5, 0.99)) if len(kept) else (np.nan, np.nan)
        return Outcome(
            requests=self._requests,
            errors=self._errors,
            refused=refused,
            in_system=in_system,
            mean_seconds=self._sum / self._seen if self._seen else float("nan"),
            p50_seconds=float(p50),
            p99_seconds=float(p99),
            goodput=self._good / self._requests if self._requests else float("nan"),
            cost_seconds=np.asarray(self._costs),
            by_instance=self._by_instance.copy(),
        )

"""The fastest few: traffic in proportion to speed among as many instances as it pays to use at the present load, and none for the others.

A slow instance is worth having only when the fast ones are full: at low load its service time is what the slowest hundredth of the users
sees. So
instances are sorted by what a request costs at each, and for each number of them it is estimated what users would see.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.policy.failing import Failing
from trimtab.actuator.policy.recent import STALE_SECONDS, Averages, Recent
from trimtab.actuator.state import State, Vector
from trimtab.detector.history import MERGE_SECONDS

ERROR_AVERSION = 30.0
"""A request that is expected to fail weighs as much as this many latencies, in the mean and in the 99th percentile.

More than `trimtab.actuator.cost.ERROR_COST`, by which it is judged what steering has done: that must not be quick to blame, and this is to
choose. What leaving an instance out does to the 99th percentile is an estimate, and errors are sure: at 10 the rule hesitates to leave out
an instance that fails 30 % of its requests, and avoids 77 % of the errors that it avoids 99 % of (docs/routing-simulated.md).
"""
THROTTLED_SLOWDOWN, FAULTY_SLOWDOWN = 3.0, 2.0
"""How much slower a GPU is expected to be that tells of throttling, or of memory that waits for a reset, before requests show it."""
_MEMORY = 0.9
_BAND, _NOISE = 0.1, 2.0
"""Service times are equal within 10 % and two standard errors."""
_PEAK_MEMORY, _PEAK_NOISE = 0.99, 4.0
"""A burst is remembered for some minutes; it is one beyond so many standard deviations of arrivals at random."""
_GAIN_MIN = 0.05
"""Leaving instances out must be worth this much."""
_FULL = 0.92
"""No set of instances is loaded beyond this, if a larger one is there."""
_LEAST = 0.05
"""Who is used at all gets at least this part of what its speed is worth."""
_SPREAD = 1.0
"""Squared coefficient of variation that service times are taken to have."""


class Split:
    """weight ∝ speed for the best set, 0 for the rest; neutral where all are alike, and for who is unknown or stale."""

    name = "split"

    def __init__(self) -> None:
        self._recent = Recent(_MEMORY, hold=True, restart=True)
        self._failing = Failing(_MEMORY)
        self._peak = 0.0

    def decide(self, state: State) -> Vector:
        recent, errors = self._recent.observe(state), self._failing.observe(state)
        fresh = state.age_seconds <= STALE_SECONDS
        known = fresh & (recent.service_seconds > 0) & ~state.degraded
        weight = np.where(state.degraded & fresh, 0.0, 1.0)
        if known.sum() >= 2:
            service = expected(state, recent, known, errors[known])
            total = max(recent.total_per_second, self._burst(state))
            weight[known] = best_split(service, recent.workers[known], errors[known], total)
        best = weight.max(initial=0)
        return weight / best if best > 0 else np.ones(len(state))

    def _burst(self, state: State) -> float:
        """Requests per second that came at the most lately, less what chance adds: who is left out is missed when they come again."""
        fresh = state.age_seconds <= STALE_SECONDS
        now = float(np.nan_to_num(np.where(fresh, state.requests_per_second, 0)).sum())
        self._peak = max(now, self._peak * _PEAK_MEMORY)
        return self._peak - _PEAK_NOISE * math.sqrt(self._peak / MERGE_SECONDS)


def expected(state: State, recent: Averages, known: NDArray[np.bool_], errors: Vector) -> Vector:
    """float64 [known]: the service time that each is to be expected to have; `errors` of [known], more than the best has."""
    service = recent.service_seconds[known]
    # Who fails is done early: that is no speed.
    typical = float(np.median(service[errors <= errors.min()]))
    service = np.where(errors > errors.min(), np.maximum(service, typical), service)
    service = alike(service, _BAND + _NOISE / np.sqrt(recent.requests[known]))
    slowdown = np.where(state.gpu_throttled[known] > 0.5, THROTTLED_SLOWDOWN, 0.0)
    slowdown = np.maximum(slowdown, np.where(state.gpu_memory_fault[known] > 0, FAULTY_SLOWDOWN, 0.0))
    # What throttling does is expected until it shows.
    return np.asarray(np.maximum(service, typical * slowdown))


def alike(service: Vector, band: Vector) -> Vector:
    """float64 [instances]: those whose neighbours by size are within both their bands, in logarithms, are one group and get its
    geometric mean."""
    order = np.lexsort((band, service))
    logs = np.log(service[order])
    apart = np.diff(logs) > np.minimum(band[order][1:], band[order][:-1])
    group = np.concatenate([[0], np.cumsum(apart)])
    out = np.empty(len(service))
    out[order] = np.exp(np.bincount(group, logs) / np.bincount(group))[group]
    return out


def best_split(service: Vector, workers: Vector, errors: Vector, total: float) -> Vector:
    """float64 [instances]: weights, the largest 1."""
    dear = service * (1 + ERROR_AVERSION * errors)
    order = np.argsort(dear, kind="stable")
    speed = workers / service
    costs = {k: _cost(service[order[:k]], workers[order[:k]], errors[order[:k]], total) for k in _sizes(dear[order])}
    everyone = costs[len(service)]
    k = min(costs, key=costs.__getitem__)
    size = k if costs[k] <= everyone - _GAIN_MIN else len(service)
    weight = np.zeros(len(service))
    used = order[:size]
    weight[used] = _loads(speed[used], total) * (1 - errors[used]) ** 2
    return weight / weight.max() if weight.max() > 0 else np.ones(len(service))


def _loads(speed: Vector, total: float) -> Vector:
    """float64 [instances]: the loads at which one more request adds as much to the latency at each.

    Bell and Stidham (1983): λ = μ − √μ × spare / Σ√μ.
    """
    room = float(speed.sum())
    root = np.sqrt(speed)
    load = speed - root * max(room - min(total, _FULL * room), 0) / root.sum()
    return np.asarray(np.maximum(load, _LEAST * speed))


def _sizes(dear: Vector) -> list[int]:
    """After how many of those that get dearer the set may end: equals are in it together."""
    ends = np.flatnonzero(np.diff(dear) > 1e-9 * dear[:-1]) + 1
    return [*ends.tolist(), len(dear)]


def _cost(service: Vector, workers: Vector, errors: Vector, total: float) -> float:
    """What users would see, as a `price`.

    The wait is Sakasegawa's (1977) for a queue before all workers, which the balancer's choices come near to; tails are exponential.
    """
    speed = workers / service
    load, count = total / float(speed.sum()), float(workers.sum())
    share = speed / speed.sum()
    mean = float(share @ service)
    full = min(load, _FULL)
    wait = (
        mean * (1 + _SPREAD) / 2 * full ** math.sqrt(2 * (count + 1)) / (count * (1 - full)) / full if full > 0 else 0.0
    )
    wait *= math.exp(min(50 * max(load - _FULL, 0), 50))
    seen = service + wait
    late = float((seen * np.log(np.maximum(100 * share, 1.01))).max())
    return price(float(share @ seen), late, float(share @ errors))


def price(mean_seconds: float, p99_seconds: float, error_ratio: float) -> float:
    """Logarithm of mean latency times 99th percentile, each as much dearer as there are errors: what the rule minimises."""
    return math.log(mean_seconds) + math.log(p99_seconds) + 2 * math.log(1 + ERROR_AVERSION * error_ratio)


POLICY = Split

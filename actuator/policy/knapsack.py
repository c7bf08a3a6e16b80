"""Weights by latency curves, after KnapsackLB (Gandhi and Narayana, 2024, arXiv 2404.17783): learn how latency grows with load, then
pack the load.

Of each instance a curve is fitted to what was seen at its different loads. The paper tries loads out and packs by integer programming;
here loads
are those that occur, and the curve is kept convex, for which taking the cheapest piece of load each time is the optimal packing.
"""

from __future__ import annotations

import numpy as np

from trimtab.actuator.policy.recent import STALE_SECONDS, Averages, Recent
from trimtab.actuator.state import State, Vector

PIECES = 20
"""The load is packed in so many pieces an instance."""
_MEMORY = 0.8
_FADE = 0.98
"""What a point of a curve is worth a second later: a minute counts."""
_BAND = 0.15
"""Weights that differ by less are equal: curves are not known better."""
_PRIOR_SECONDS = 2.0
_FULL = 0.97
"""No more is packed than this share of what the workers can do."""


class Knapsack:
    """latency(load) = service × (1 + slope × ρ/(1 − ρ)) with ρ the load in services; the slope is fitted, errors cost as long ones do."""

    name = "knapsack"

    def __init__(self) -> None:
        self._recent = Recent(_MEMORY, hold=True)
        self._sums: dict[str, Vector] = {}

    def decide(self, state: State) -> Vector:
        recent = self._recent.observe(state)
        total = recent.total_per_second
        capacity = recent.workers / recent.service_seconds
        usable = (state.age_seconds <= STALE_SECONDS) & (capacity > 0) & ~state.degraded
        if usable.sum() < 2 or not usable.any() or total <= 0:
            return np.where(state.degraded & usable.any(), 0.0, 1.0)
        slope = self._slopes(state.ids, recent)
        weight = np.ones(len(state))
        load = _pack(recent.service_seconds[usable], capacity[usable], slope[usable], recent.error_ratio[usable], total)
        weight[usable] = _level(load / load.max())
        weight[state.degraded] = 0
        return weight

    def _slopes(self, ids: tuple[str, ...], recent: Averages) -> Vector:
        """float64 [instances]: least squares of the latency's excess over the service against ρ/(1 − ρ), drawn towards 1, which is
        M/M/1's."""
        rho = np.clip(recent.requests_per_second * recent.service_seconds / recent.workers, 0, _FULL)
        crowd = rho / (1 - rho)
        excess = recent.latency_seconds / recent.service_seconds - 1
        known = np.isfinite(excess) & np.isfinite(crowd)
        now = np.where(known, [crowd * excess, crowd**2], 0).T
        sums = np.asarray([self._sums.get(i, np.full(2, _PRIOR_SECONDS)) for i in ids])
        sums = sums * _FADE + now + (1 - _FADE) * _PRIOR_SECONDS
        self._sums = dict(zip(ids, sums, strict=True))
        slopes: Vector = np.clip(sums[:, 0] / sums[:, 1], 0.1, 10)
        return slopes


def _pack(service: Vector, capacity: Vector, slope: Vector, errors: Vector, total: float) -> Vector:
    """float64 [instances]: the load that each should have, in requests a second, at the least sum of latencies."""
    pieces = PIECES * len(service)
    step = total / pieces
    loads = np.arange(pieces + 1) * step
    rho = loads / capacity[:, None]
    room = rho <= _FULL
    crowd = np.where(room, rho, 0) / (1 - np.where(room, rho, 0))
    cost = loads * service[:, None] * (1 + slope[:, None] * crowd) / np.maximum(1 - errors[:, None], 0.01) ** 2
    # Beyond what it can do an instance is the last resort, in proportion to how far beyond.
    beyond = service.max() * 1e3 * loads * (1 + np.where(room, 0, rho))
    marginal = np.diff(np.where(room, cost, beyond), axis=1)
    cheapest = np.argsort(marginal, axis=None, kind="stable")[:pieces]
    return np.asarray(np.bincount(cheapest // pieces, minlength=len(service)) * step, dtype=np.float64)


def _level(weight: Vector) -> Vector:
    """Those that hardly differ from the largest are as large."""
    return np.where(weight >= 1 - _BAND, 1.0, weight)


POLICY = Knapsack

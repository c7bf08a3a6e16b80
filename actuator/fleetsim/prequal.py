"""Prequal (Wydrowski, Kleinberg, Rumble and Archer, NSDI 2024): a pool of recent probes, and the hot-cold lexicographic rule.

A probe's answer takes no time here, and is used from the next request on. The paper's parameters: r_probe = 3 probes a query,
r_remove = 1 removal a query, Q_RIF = 2^-0.25, probes are dropped after a second. It has many more servers than the m = 16 places of its
pool; with few, the pool has as many places as half of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from trimtab.actuator.fleetsim.chance import PICK, PROBE, uniform
from trimtab.actuator.fleetsim.choose import drawn
from trimtab.actuator.fleetsim.layout import POOL_MAX, RECENT_RIFS, RIF_BUCKETS

PROBES = 3
Q_RIF = 2**-0.25
AGE_SECONDS = 1.0
_FADE = 0.2
"""What the newest latency counts in the average of its bucket."""


@njit(error_model="numpy")
def pool_places(instances: int) -> int:
    """m"""
    return min(POOL_MAX, max(2, instances // 2))


@njit(error_model="numpy")
def reuses(instances: int) -> float:
    """b_reuse = max(1, (1 + delta) / ((1 - m / n) r_probe - r_remove)) with delta = 1."""
    spare = (1 - pool_places(instances) / instances) * PROBES - 1
    return max(1.0, 2 / spare) if spare > 0 else 4.0


@njit(error_model="numpy")
def hot_from(rif_counts: Any, b: int, seen: int) -> int:
    """The least RIF that is hot: the Q_RIF quantile of what probes lately found is the greatest that is cold."""
    total = min(seen, RECENT_RIFS)
    below = 0
    for rif in range(RIF_BUCKETS):
        below += rif_counts[b, rif]
        if below >= Q_RIF * total:
            return rif + 1
    return RIF_BUCKETS


@njit(error_model="numpy")
def drop(pool: Any, balancers: Any, b: int, k: int) -> None:
    """Take one probe out; the order of the others, oldest first, stays."""
    balancers[b].probes -= 1
    for j in range(k, balancers[b].probes):
        pool[j] = pool[j + 1]


@njit(error_model="numpy")
def best(pool: Any, count: int, hot: int) -> int:
    """The cold probe with the least latency, or, when all are hot, the one with the least RIF."""
    chosen = 0
    for k in range(1, count):
        cold, chosen_cold = pool[k].rif < hot, pool[chosen].rif < hot
        if cold and chosen_cold:
            better = pool[k].latency < pool[chosen].latency
        elif not cold and not chosen_cold:
            better = pool[k].rif < pool[chosen].rif
        else:
            better = cold
        if better:
            chosen = k
    return chosen


@njit(error_model="numpy")
def worst(pool: Any, count: int, hot: int) -> int:
    """The hot probe with the greatest RIF, or, when none is hot, the one with the greatest latency."""
    chosen = 0
    for k in range(1, count):
        is_hot, chosen_hot = pool[k].rif >= hot, pool[chosen].rif >= hot
        if is_hot and chosen_hot:
            worse = pool[k].rif > pool[chosen].rif
        elif not is_hot and not chosen_hot:
            worse = pool[k].latency > pool[chosen].latency
        else:
            worse = is_hot
        if worse:
            chosen = k
    return chosen


@njit(error_model="numpy")
def latency_at(rif_latency: Any, i: int, rif: int) -> float:
    """What instance i lately took when it had about so many in flight; 0 when it is not known, so that it is tried."""
    for off in range(RIF_BUCKETS):
        for bucket in (rif - off, rif + off):
            if 0 <= bucket < RIF_BUCKETS and not math.isnan(rif_latency[i, bucket]):
                return float(rif_latency[i, bucket])
    return 0.0


@njit(error_model="numpy")
def answered(rif_latency: Any, i: int, rif: int, latency: float) -> None:
    """Instance i notes what a request took that came as the rif-th in flight."""
    bucket = min(rif, RIF_BUCKETS - 1)
    before = rif_latency[i, bucket]
    rif_latency[i, bucket] = latency if math.isnan(before) else before + _FADE * (latency - before)


@njit(error_model="numpy")
def probe(fleet: Any, b: int, t: float, request: int) -> None:
    """Ask some instances, drawn by weight, how they are."""
    pool, places = fleet.probes[b], pool_places(len(fleet.instances))
    for k in range(PROBES):
        i = drawn(fleet.views[b], uniform(fleet.rules.seed, PROBE, request, k))
        rif = min(fleet.instances[i].present, RIF_BUCKETS - 1)
        if fleet.balancers[b].probes >= places:
            drop(pool, fleet.balancers, b, 0)
        at = fleet.balancers[b].probes
        pool[at].instance, pool[at].rif, pool[at].time, pool[at].uses = i, rif, t, 0
        pool[at].latency = latency_at(fleet.rif_latency, i, min(rif + 1, RIF_BUCKETS - 1))
        fleet.balancers[b].probes = at + 1
        place = fleet.balancers[b].rifs_seen % RECENT_RIFS
        if fleet.balancers[b].rifs_seen >= RECENT_RIFS:
            fleet.rif_counts[b, fleet.rifs[b, place]] -= 1
        fleet.rifs[b, place] = rif
        fleet.rif_counts[b, rif] += 1
        fleet.balancers[b].rifs_seen += 1


@njit(error_model="numpy")
def prequal(fleet: Any, b: int, t: float, request: int) -> int:
    """The choice for one query, and its probes."""
    pool, balancers, seed = fleet.probes[b], fleet.balancers, fleet.rules.seed
    view = fleet.views[b]
    for k in range(balancers[b].probes - 1, -1, -1):
        if pool[k].time < t - AGE_SECONDS or view[pool[k].instance].weight <= 0:
            drop(pool, balancers, b, k)
    hot = hot_from(fleet.rif_counts, b, balancers[b].rifs_seen)
    if balancers[b].probes < 2:
        chosen = drawn(view, uniform(seed, PICK, request, 0))
    else:
        k = best(pool, balancers[b].probes, hot)
        chosen = pool[k].instance
        pool[k].rif += 1
        pool[k].uses += 1
        most = reuses(len(view))
        # Rounded by chance, so that b_reuse holds on average.
        if pool[k].uses >= np.floor(most) + (uniform(seed, PICK, request, 1) < most - np.floor(most)):
            drop(pool, balancers, b, k)
        if balancers[b].probes > 0:
            oldest = balancers[b].oldest_turn
            balancers[b].oldest_turn = 1 - oldest
            drop(pool, balancers, b, 0 if oldest else worst(pool, balancers[b].probes, hot))
    probe(fleet, b, t, request)
    return chosen

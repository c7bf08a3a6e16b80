"""When a worker that starts now will be done, whatever befalls its instance on the way.

All faults of a scenario are known beforehand, so that the end of a service is known at its start: work is spent at a pace that is constant
between the edges of faults.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from trimtab.actuator.fleetsim.chance import FAILURE, uniform

SLOW, STUCK, FAIL_FAST, FLAPPING, COLD_START, QUOTA = range(6)
_STEP_SECONDS = 1e-9
"""Less than this is no step: float64 tells no less apart late in a long run."""


@njit(error_model="numpy")
def pace(instances: Any, faults: Any, i: int, t: float) -> tuple[float, float, float, float]:
    """Work a second, until when it stays so, and the quota and period of the CPU bandwidth control; quota 0: none."""
    rate, until, quota, period = instances[i].speed, math.inf, 0.0, 0.0
    stuck_until = 0.0
    for f in range(instances[i].fault_first, instances[i].fault_last):
        fault = faults[f]
        if t < fault.onset:
            until = min(until, fault.onset)
            continue
        if t >= fault.end:
            continue
        until = min(until, fault.end)
        if fault.kind == SLOW or (fault.kind == COLD_START and fault.requests == 0):
            rate /= fault.factor
        elif fault.kind == STUCK:
            stuck_until = max(stuck_until, fault.end)
        elif fault.kind == FLAPPING:
            phase = (t - fault.onset) % fault.period
            if phase < fault.on:
                rate /= fault.factor
            rest = (fault.on if phase < fault.on else fault.period) - phase
            until = min(until, t + max(rest, _STEP_SECONDS))
        elif fault.kind == QUOTA:
            quota, period = fault.quota, fault.period
    if stuck_until > 0:
        return 0.0, stuck_until, 0.0, 0.0
    return rate, until, quota, period


@njit(error_model="numpy")
def finish(instances: Any, workers: Any, faults: Any, w: int, start: float, work: float) -> float:
    """When worker w is done with `work` seconds (at speed 1) that it starts at `start`; infinity: never. Spends w's quota."""
    i = workers[w].instance
    if instances[i].fault_first == instances[i].fault_last:
        return float(start + work / instances[i].speed)
    t, left = start, work
    while True:
        rate, until, quota, period = pace(instances, faults, i, t)
        if rate <= 0:
            if until == math.inf:
                return math.inf
            t = until
            continue
        if quota > 0:
            if t >= workers[w].quota_end:
                workers[w].quota_end = (math.floor(t / period) + 1) * period
                if workers[w].quota_end <= t:
                    workers[w].quota_end += period
                workers[w].quota_used = 0.0
            room = quota - workers[w].quota_used
            if room <= _STEP_SECONDS:
                t = min(workers[w].quota_end, until)
                continue
            until = min(until, t + room, workers[w].quota_end)
        span = min(left / rate, until - t)
        if quota > 0:
            workers[w].quota_used += span
        if t + left / rate <= until:
            return float(t + left / rate)
        left -= span * rate
        t = until


@njit(error_model="numpy")
def failure(instances: Any, faults: Any, seed: int, i: int, t: float, request: int) -> float:
    """Seconds until instance i answers the request with an error instead of serving it; 0: it serves it."""
    for f in range(instances[i].fault_first, instances[i].fault_last):
        fault = faults[f]
        if (
            fault.kind == FAIL_FAST
            and fault.onset <= t < fault.end
            and uniform(seed, FAILURE, request, 0) < fault.ratio
        ):
            return float(fault.error_seconds)
    return 0.0


@njit(error_model="numpy")
def warming(instances: Any, faults: Any, i: int, t: float, requests: int) -> float:
    """By how much a cold start that lasts for a number of requests makes this work longer; counts them."""
    factor = 1.0
    for f in range(instances[i].fault_first, instances[i].fault_last):
        fault = faults[f]
        cold = fault.kind == COLD_START and fault.onset <= t < fault.end
        if cold and fault.started < fault.requests:
            factor *= fault.factor
            faults[f].started += requests
    return factor

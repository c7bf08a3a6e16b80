"""What a balancer thinks of its instances: weights in effect, outliers that it ejects, load reports that it hears."""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from trimtab.actuator.fleetsim.chance import PICK, uniform
from trimtab.actuator.fleetsim.choose import earliest_deadline

ROUND_ROBIN, ENVOY_ROUND_ROBIN, LEAST_REQUEST, ORCA = 0, 5, 6, 9
# Envoy's defaults.
CONSECUTIVE_ERRORS = 5
SWEEP_SECONDS = 10.0
EJECTION_SECONDS, EJECTION_SECONDS_MAX = 30.0, 300.0
EJECTED_SHARE_MAX = 0.1
SUCCESS_HOSTS_MIN, SUCCESS_REQUESTS_MIN, SUCCESS_DEVIATIONS = 5, 100, 1.9
# gRFC A58's defaults.
BLACKOUT_SECONDS, EXPIRY_SECONDS, ERROR_PENALTY = 10.0, 180.0, 1.0


@njit(error_model="numpy")
def ejected(view: Any, i: int) -> bool:
    """Whether instance i is: until the sweep after its time is over."""
    return bool(view[i].ejected_until > -math.inf)


@njit(error_model="numpy")
def refresh(fleet: Any, b: int, t: float) -> None:
    """Put weights into effect: 0 for who is not there yet, drained or ejected.

    When that leaves nobody, ejections do not count; when all are drained, weights do not.
    """
    view, instances, n = fleet.views[b], fleet.instances, len(fleet.instances)
    drained, all_ejected = True, True
    for i in range(n):
        if t >= instances[i].joins and instances[i].base > 0:
            drained = False
            all_ejected = all_ejected and ejected(view, i)
    total, usable, equal, changed = 0.0, 0, 1, False
    mean = _orca_mean(view, t) if fleet.rules.algorithm == ORCA else 0.0
    first = 0.0
    for i in range(n):
        weight = 1.0 if drained else instances[i].base
        if t < instances[i].joins or (ejected(view, i) and not all_ejected):
            weight = 0.0
        if fleet.rules.algorithm == ORCA:
            weight *= _orca_weight(view, i, t, mean)
        changed = changed or weight != view[i].weight
        _requeue(view, fleet.balancers[b].clock, i, weight)
        view[i].weight = weight
        total += weight
        view[i].cumulative = total
        if weight > 0:
            usable += 1
            first = weight if first == 0 else first
            equal = equal if weight == first else 0
    fleet.balancers[b].usable, fleet.balancers[b].equal = usable, equal
    if changed:
        _replan(fleet, b, total)


@njit(error_model="numpy")
def _requeue(view: Any, clock: float, i: int, weight: float) -> None:
    """Who comes back starts anew in round robin."""
    if view[i].weight <= 0 < weight:
        view[i].position = -1.0
        view[i].last = clock


@njit(error_model="numpy")
def _replan(fleet: Any, b: int, total: float) -> None:
    """Weights changed: move turns as HAProxy does, or build Envoy's schedule anew."""
    view, balancers, rules = fleet.views[b], fleet.balancers, fleet.rules
    if rules.algorithm == ROUND_ROBIN:
        for i in range(len(view)):
            if view[i].weight > 0 and view[i].position >= 0:
                step = total / view[i].weight
                due = min(view[i].position, view[i].last + step)
                view[i].position = due if due >= balancers[b].clock + 2 else balancers[b].clock + step
        return
    if rules.algorithm not in (ENVOY_ROUND_ROBIN, LEAST_REQUEST, ORCA) or balancers[b].usable == 0:
        return
    active = rules.algorithm == LEAST_REQUEST
    if balancers[b].equal:
        balancers[b].clock = math.floor(uniform(rules.seed, PICK, -1 - b, 0) * len(view))
        return
    balancers[b].clock = 0.0
    for i in range(len(view)):
        view[i].last = -1.0
        if view[i].weight > 0:
            view[i].position = ((view[i].inflight + 1) if active else 1) / view[i].weight
    # Envoy goes some way into the new schedule, so that balancers do not all begin with the heaviest.
    for _ in range(int(uniform(rules.seed, PICK, -1 - b, 1) * balancers[b].usable)):
        earliest_deadline(view, balancers, b, active)


@njit(error_model="numpy")
def eject(fleet: Any, b: int, i: int, t: float) -> None:
    """Unless a tenth are ejected; one always may be."""
    view, out = fleet.views[b], 0
    for k in range(len(view)):
        out += ejected(view, k)
    if out > 0 and out + 1 > EJECTED_SHARE_MAX * len(view):
        return
    view[i].ejections += 1
    view[i].consecutive = 0
    view[i].ejected_until = t + min(EJECTION_SECONDS * view[i].ejections, EJECTION_SECONDS_MAX)
    refresh(fleet, b, t)


@njit(error_model="numpy")
def judge(fleet: Any, b: int, i: int, t: float, failed: int) -> None:
    """An answer came, good or bad."""
    view = fleet.views[b]
    view[i].answered += 1
    view[i].succeeded += 1 - failed
    view[i].consecutive = view[i].consecutive + 1 if failed else 0
    if view[i].consecutive >= CONSECUTIVE_ERRORS and not ejected(view, i):
        eject(fleet, b, i, t)


@njit(error_model="numpy")
def sweep(fleet: Any, b: int, t: float) -> None:
    """Every 10 s: ejections end, and who succeeds less often than mean - 1.9 deviations is ejected. Call before any choice."""
    view, balancers = fleet.views[b], fleet.balancers
    if t < balancers[b].swept + SWEEP_SECONDS:
        return
    balancers[b].swept = math.floor(t / SWEEP_SECONDS) * SWEEP_SECONDS
    hosts, total, squares = 0, 0.0, 0.0
    for i in range(len(view)):
        if not ejected(view, i):
            view[i].ejections = max(0, view[i].ejections - 1)
        elif view[i].ejected_until <= t:
            view[i].ejected_until = -math.inf
        if view[i].answered >= SUCCESS_REQUESTS_MIN:
            rate = view[i].succeeded / view[i].answered
            hosts, total, squares = hosts + 1, total + rate, squares + rate * rate
    if hosts >= SUCCESS_HOSTS_MIN:
        mean = total / hosts
        least = mean - SUCCESS_DEVIATIONS * math.sqrt(max(0.0, squares / hosts - mean * mean))
        for i in range(len(view)):
            enough = view[i].answered >= SUCCESS_REQUESTS_MIN and not ejected(view, i)
            if enough and view[i].succeeded < least * view[i].answered:
                eject(fleet, b, i, t)
    for i in range(len(view)):
        view[i].answered, view[i].succeeded = 0, 0
    refresh(fleet, b, t)


@njit(error_model="numpy")
def hear_reports(fleet: Any, b: int, t: float) -> None:
    """gRFC A58, every second: weight = qps / (utilisation + eps / qps * penalty), from who answered; over the last second."""
    view, instances = fleet.views[b], fleet.instances
    for i in range(len(view)):
        busy, qps = instances[i].busy / instances[i].workers, instances[i].answered
        if not view[i].reported or qps == 0 or busy <= 0:
            continue
        view[i].reported = 0
        view[i].orca = qps / (busy + instances[i].failed / qps * ERROR_PENALTY)
        if math.isnan(view[i].first_report):
            view[i].first_report = t
        view[i].last_report = t


@njit(error_model="numpy")
def _orca_known(view: Any, i: int, t: float) -> bool:
    if math.isnan(view[i].first_report):
        return False
    if t >= view[i].last_report + EXPIRY_SECONDS:
        view[i].first_report = math.nan
        return False
    return bool(t >= view[i].first_report + BLACKOUT_SECONDS)


@njit(error_model="numpy")
def _orca_mean(view: Any, t: float) -> float:
    """Of the known weights; NaN when fewer than two are known, and all are equal."""
    total, known = 0.0, 0
    for i in range(len(view)):
        if _orca_known(view, i, t):
            total, known = total + view[i].orca, known + 1
    return total / known if known >= 2 else math.nan


@njit(error_model="numpy")
def _orca_weight(view: Any, i: int, t: float, mean: float) -> float:
    if math.isnan(mean):
        return 1.0
    return float(view[i].orca) if _orca_known(view, i, t) else mean

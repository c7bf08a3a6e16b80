"""Which instance a balancer sends a request to, one function an algorithm, -1: none. docs/fleetsim.md says where each is from.

`view` is the balancer's row of VIEW, `balancer` the BALANCER table and `b` the row in it. An instance is *full* when the balancer has
`limit` requests under way there.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from trimtab.actuator.fleetsim.chance import PICK, uniform

EWMA_SECONDS = 10.0
"""Finagle's decay time."""
_HAPROXY_WEIGHT_MAX = 4096
_HAPROXY_SCALE = 16
_REDRAWS_MAX = 16


@njit(error_model="numpy")
def full(view: Any, i: int, limit: int) -> bool:
    """Whether the balancer may send no more to instance i."""
    return bool(0 < limit <= view[i].inflight)


@njit(error_model="numpy")
def drawn(view: Any, u: float) -> int:
    """An instance by weight: the first whose cumulative weight is above u of the total. One weight must be above 0."""
    low, high = 0, len(view) - 1
    mark = u * view[high].cumulative
    while low < high:
        middle = (low + high) >> 1
        if view[middle].cumulative > mark:
            high = middle
        else:
            low = middle + 1
    return low


@njit(error_model="numpy")
def any_room(view: Any, limit: int) -> bool:
    """Whether some instance with a weight is not full."""
    for i in range(len(view)):  # noqa: SIM110 (numba has no generators)
        if view[i].weight > 0 and not full(view, i, limit):
            return True
    return False


@njit(error_model="numpy")
def round_robin(view: Any, balancer: Any, b: int, limit: int) -> int:
    """HAProxy's roundrobin: who is due first by turns of total / weight; the heaviest newcomer takes a turn in which nobody is due.

    A full server loses its turn, unless all are full.
    """
    if limit > 0 and not any_room(view, limit):
        return -1
    total = view[len(view) - 1].cumulative
    for _ in range(2 * len(view)):
        due, fresh = -1, -1
        for i in range(len(view)):
            if view[i].weight <= 0:
                continue
            if view[i].position < 0:
                if fresh < 0 or view[i].weight > view[fresh].weight:
                    fresh = i
            elif (
                due < 0
                or view[i].position < view[due].position
                or (view[i].position == view[due].position and view[i].weight > view[due].weight)
            ):
                due = i
        if fresh >= 0 and (due < 0 or view[due].position > balancer[b].clock):
            due = fresh
            view[due].position = balancer[b].clock
        view[due].last = view[due].position
        view[due].position += total / view[due].weight
        balancer[b].clock += 1
        if not full(view, due, limit):
            return due
    return -1


@njit(error_model="numpy")
def leastconn(view: Any, limit: int) -> int:
    """HAProxy's leastconn: least (connections + 1) / weight, who has none before all others; who has waited longest of equals."""
    best, best_key = -1, 0
    for i in range(len(view)):
        if view[i].weight <= 0 or full(view, i, limit):
            continue
        key = 0
        if view[i].inflight > 0:
            key = (view[i].inflight + 1) * _HAPROXY_WEIGHT_MAX // (int(view[i].weight) * _HAPROXY_SCALE)
        if best < 0 or key < best_key or (key == best_key and view[i].stamp < view[best].stamp):
            best, best_key = i, key
    return best


@njit(error_model="numpy")
def random2(view: Any, limit: int, seed: int, request: int) -> int:
    """HAProxy's random(2): two draws by weight, which may be the same; the first if it has fewer connections for its weight."""
    first = drawn(view, uniform(seed, PICK, request, 0))
    chosen = drawn(view, uniform(seed, PICK, request, 1))
    if view[chosen].inflight * view[first].weight > view[first].inflight * view[chosen].weight:
        chosen = first
    return -1 if full(view, chosen, limit) else chosen


@njit(error_model="numpy")
def in_turn(view: Any, balancer: Any, b: int) -> int:
    """Plain round robin over who has a weight."""
    n = len(view)
    for step in range(n):
        i = (int(balancer[b].clock) + step) % n
        if view[i].weight > 0:
            balancer[b].clock = (i + 1) % n
            return i
    return -1


@njit(error_model="numpy")
def earliest_deadline(view: Any, balancer: Any, b: int, active: bool) -> int:
    """Envoy's EDF scheduler: who is due first, and again after 1 / weight; with `active`, after (active requests + 1) / weight."""
    due = -1
    for i in range(len(view)):
        if view[i].weight > 0 and (
            due < 0
            or view[i].position < view[due].position
            or (view[i].position == view[due].position and view[i].last < view[due].last)
        ):
            due = i
    balancer[b].clock = view[due].position
    view[due].last = view[due].position
    view[due].position += ((view[due].inflight + 1) if active else 1) / view[due].weight
    return due


@njit(error_model="numpy")
def least_request(view: Any, balancer: Any, b: int, seed: int, request: int) -> int:
    """Envoy's LEAST_REQUEST: the better of two draws when weights are equal, else its EDF scheduler with active requests."""
    if not balancer[b].equal:
        return earliest_deadline(view, balancer, b, True)
    chosen = drawn(view, uniform(seed, PICK, request, 0))
    other = drawn(view, uniform(seed, PICK, request, 1))
    return other if view[other].inflight < view[chosen].inflight else chosen


@njit(error_model="numpy")
def ewma_now(view: Any, i: int, t: float) -> float:
    """Finagle's peak EWMA of instance i: it fades while nothing is heard."""
    return float(view[i].ewma * math.exp(-(t - view[i].ewma_time) / EWMA_SECONDS))


@njit(error_model="numpy")
def heard(view: Any, i: int, t: float, latency: float) -> None:
    """An answer came: a peak counts at once, less fades in."""
    share = math.exp(-(t - view[i].ewma_time) / EWMA_SECONDS)
    faded = view[i].ewma * share + latency * (1 - share)
    view[i].ewma = latency if latency > view[i].ewma else faded
    view[i].ewma_time = t


@njit(error_model="numpy")
def ewma_cost(view: Any, i: int, t: float) -> float:
    """What a request to instance i is thought to cost; who was never heard of, and has something to answer, is dear."""
    pending = view[i].inflight
    latency = ewma_now(view, i, t)
    return float(1e9 + pending if latency == 0 and pending > 0 else latency * (pending + 1))


@njit(error_model="numpy")
def peak_ewma(view: Any, balancer: Any, b: int, t: float, seed: int, request: int) -> int:
    """Finagle's p2cPeakEwma: the cheaper of two different instances. It knows no weights: they only say how often one is drawn."""
    first = drawn(view, uniform(seed, PICK, request, 0))
    if balancer[b].usable < 2:
        return first
    second = first
    for k in range(_REDRAWS_MAX):
        second = drawn(view, uniform(seed, PICK, request, 1 + k))
        if second != first:
            break
    return second if ewma_cost(view, second, t) < ewma_cost(view, first, t) else first

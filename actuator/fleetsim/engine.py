"""A second of a fleet, event by event: requests arrive, are sent, wait, are served, and leave."""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from trimtab.actuator.fleetsim.chance import PICK, ROUTE, uniform, work
from trimtab.actuator.fleetsim.choose import (
    drawn,
    earliest_deadline,
    full,
    heard,
    in_turn,
    least_request,
    leastconn,
    peak_ewma,
    random2,
    round_robin,
)
from trimtab.actuator.fleetsim.events import drop_first, push
from trimtab.actuator.fleetsim.layout import NOBODY
from trimtab.actuator.fleetsim.prequal import answered, prequal
from trimtab.actuator.fleetsim.progress import failure, finish, warming
from trimtab.actuator.fleetsim.views import hear_reports, judge, refresh, sweep

(ROUND_ROBIN, LEASTCONN, RANDOM, RANDOM2, _, ENVOY_ROUND_ROBIN, LEAST_REQUEST, PEAK_EWMA, PREQUAL, ORCA) = range(10)


@njit(forceinline=True, error_model="numpy")
def choose(fleet: Any, b: int, t: float, request: int) -> int:
    """The instance that balancer b sends the request to; -1: it must wait, or there is none."""
    view, balancers, rules = fleet.views[b], fleet.balancers, fleet.rules
    if balancers[b].usable == 0:
        return NOBODY
    if rules.algorithm == ROUND_ROBIN:
        return round_robin(view, balancers, b, rules.limit)
    if rules.algorithm == LEASTCONN:
        return leastconn(view, rules.limit)
    if rules.algorithm == RANDOM2:
        return random2(view, rules.limit, rules.seed, request)
    if rules.algorithm == LEAST_REQUEST:
        chosen = least_request(view, balancers, b, rules.seed, request)
    elif rules.algorithm == PEAK_EWMA:
        chosen = peak_ewma(view, balancers, b, t, rules.seed, request)
    elif rules.algorithm == PREQUAL:
        chosen = prequal(fleet, b, t, request)
    elif rules.algorithm == RANDOM:
        chosen = drawn(view, uniform(rules.seed, PICK, request, 0))
    elif balancers[b].equal:
        chosen = in_turn(view, balancers, b)
    else:
        chosen = earliest_deadline(view, balancers, b, False)
    return NOBODY if full(view, chosen, rules.limit) else chosen


@njit(forceinline=True, error_model="numpy")
def leave(fleet: Any, s: int, i: int, t: float, failed: int) -> None:
    """The request in slot s leaves the system; i: who answered it, or -1."""
    slots, now, out = fleet.slots, fleet.now, fleet.out
    k = now[0].out
    out[k].latency, out[k].failed = t - slots[s].arrival, failed
    out[k].instance, out[k].number = i, slots[s].number
    now[0].out = k + 1
    now[0].in_system -= 1
    slots[s].next = now[0].free
    now[0].free = s


@njit(forceinline=True, error_model="numpy")
def answer(fleet: Any, s: int, i: int, t: float, failed: int) -> None:
    """Instance i answers the request in slot s, and its balancer takes note."""
    slots, instances, b = fleet.slots, fleet.instances, fleet.slots[s].balancer
    view, latency = fleet.views[b], t - slots[s].sent
    instances[i].present -= 1
    instances[i].answered += 1
    instances[i].failed += failed
    instances[i].latency += latency
    view[i].inflight -= 1
    fleet.now[0].stamp += 1
    view[i].stamp = fleet.now[0].stamp
    if fleet.rules.algorithm == PEAK_EWMA:
        heard(view, i, t, latency)
    elif fleet.rules.algorithm == PREQUAL:
        answered(fleet.rif_latency, i, slots[s].rif, latency)
    elif fleet.rules.algorithm == ORCA:
        view[i].reported = 1
    if fleet.rules.ejection:
        judge(fleet, b, i, t, failed)
    leave(fleet, s, i, t, failed)


@njit(forceinline=True, error_model="numpy")
def serve(fleet: Any, i: int, w: int, t: float) -> None:
    """Worker w of instance i starts on the batch that it holds."""
    workers, slots, rules, instances = fleet.workers, fleet.slots, fleet.rules, fleet.instances
    s = workers[w].batch_head
    error = failure(instances, fleet.faults, rules.seed, i, t, slots[s].number)
    workers[w].failed = 1 if error > 0 else 0
    if error > 0:
        done = t + error
    else:
        longest, total, count = 0.0, 0.0, 0
        while s != NOBODY:
            seconds = work(rules.seed, slots[s].number, rules.service, rules.mean, rules.sigma, rules.quantiles)
            longest, total, count = max(longest, seconds), total + seconds, count + 1
            s = slots[s].next
        need = longest
        if count > 1:
            need = instances[i].batch_shared * longest + (1 - instances[i].batch_shared) * total
        need *= warming(instances, fleet.faults, i, t, count)
        done = finish(instances, workers, fleet.faults, w, t, need)
    instances[i].busy += instances[i].busy_now * (t - instances[i].busy_since)
    instances[i].busy_since = t
    instances[i].busy_now += 1
    workers[w].began = t
    if done < math.inf:
        push(fleet.events, fleet.now, done, w)


@njit(forceinline=True, error_model="numpy")
def hold(fleet: Any, w: int, s: int) -> None:
    """Worker w adds the request in slot s to its batch."""
    fleet.slots[s].next = NOBODY
    if fleet.workers[w].batch_head == NOBODY:
        fleet.workers[w].batch_head = s
    else:
        fleet.slots[fleet.workers[w].batch_tail].next = s
    fleet.workers[w].batch_tail = s


@njit(forceinline=True, error_model="numpy")
def take(fleet: Any, i: int, t: float) -> None:
    """Idle workers of instance i take what is queued; one that could take more waits for it, and meanwhile no other takes any."""
    instances, slots = fleet.instances, fleet.slots
    while instances[i].idle > 0 and instances[i].queued > 0 and instances[i].gatherer == NOBODY:
        instances[i].idle -= 1
        w = fleet.workers[instances[i].worker_first + instances[i].idle].idle
        count = min(instances[i].queued, instances[i].batch_max)
        for _ in range(count):
            s = instances[i].queue_head
            instances[i].queue_head = slots[s].next
            hold(fleet, w, s)
        instances[i].queued -= count
        if count == instances[i].batch_max or instances[i].batch_delay == 0:
            serve(fleet, i, w, t)
            continue
        instances[i].gatherer, instances[i].gathered = w, count
        instances[i].gather_until = t + instances[i].batch_delay
        if not instances[i].deadline_set:
            instances[i].deadline_set = 1
            push(fleet.events, fleet.now, instances[i].gather_until, -1 - i)


@njit(forceinline=True, error_model="numpy")
def come(fleet: Any, i: int, s: int, t: float) -> bool:
    """The request in slot s reaches instance i; False: it is refused."""
    instances, slots = fleet.instances, fleet.slots
    if instances[i].gatherer != NOBODY:
        w = instances[i].gatherer
        hold(fleet, w, s)
        instances[i].gathered += 1
        if instances[i].gathered == instances[i].batch_max:
            instances[i].gatherer = NOBODY
            serve(fleet, i, w, t)
        return True
    if instances[i].idle == 0 and instances[i].queued >= instances[i].queue_max:
        return False
    slots[s].next = NOBODY
    if instances[i].queued == 0:
        instances[i].queue_head = s
    else:
        slots[instances[i].queue_tail].next = s
    instances[i].queue_tail = s
    instances[i].queued += 1
    take(fleet, i, t)
    return True


@njit(forceinline=True, error_model="numpy")
def send(fleet: Any, b: int, i: int, s: int, t: float) -> None:
    """Balancer b sends the request in slot s to instance i."""
    slots, view = fleet.slots, fleet.views[b]
    view[i].inflight += 1
    fleet.now[0].stamp += 1
    view[i].stamp = fleet.now[0].stamp
    fleet.instances[i].present += 1
    slots[s].sent, slots[s].rif = t, fleet.instances[i].present
    if not come(fleet, i, s, t):
        answer(fleet, s, i, t, 1)


@njit(error_model="numpy")
def send_waiting(fleet: Any, b: int, i: int, t: float) -> None:
    """What waits in balancer b goes to instance i while that has room."""
    balancers, view = fleet.balancers, fleet.views[b]
    while balancers[b].queue_head != NOBODY and view[i].weight > 0 and not full(view, i, fleet.rules.limit):
        s = balancers[b].queue_head
        balancers[b].queue_head = fleet.slots[s].next
        send(fleet, b, i, s, t)


@njit(forceinline=True, error_model="numpy")
def arrive(fleet: Any, t: float, request: int) -> None:
    """A request arrives at one of the balancers."""
    rules, slots, now, balancers = fleet.rules, fleet.slots, fleet.now, fleet.balancers
    s = now[0].free
    now[0].free = slots[s].next
    now[0].in_system += 1
    b = request % len(balancers)
    if not rules.in_turn and len(balancers) > 1:
        b = int(uniform(rules.seed, ROUTE, request, 0) * len(balancers))
    slots[s].arrival, slots[s].number, slots[s].balancer = t, request, b
    if rules.ejection:
        sweep(fleet, b, t)
    i = choose(fleet, b, t, request)
    if i != NOBODY:
        send(fleet, b, i, s, t)
    elif rules.limit > 0 and balancers[b].usable > 0:
        slots[s].next = NOBODY
        if balancers[b].queue_head == NOBODY:
            balancers[b].queue_head = s
        else:
            slots[balancers[b].queue_tail].next = s
        balancers[b].queue_tail = s
    else:
        now[0].refused += 1
        leave(fleet, s, NOBODY, t, 1)


@njit(forceinline=True, error_model="numpy")
def done(fleet: Any, w: int, t: float) -> None:
    """Worker w finishes its batch, and goes on with what waits."""
    workers, instances, slots, i = fleet.workers, fleet.instances, fleet.slots, fleet.workers[w].instance
    instances[i].busy += instances[i].busy_now * (t - instances[i].busy_since)
    instances[i].busy_since = t
    instances[i].busy_now -= 1
    s = workers[w].batch_head
    workers[w].batch_head = NOBODY
    workers[instances[i].worker_first + instances[i].idle].idle = w
    instances[i].idle += 1
    freed = 0
    while s != NOBODY:
        following = slots[s].next
        freed |= 1 << slots[s].balancer
        instances[i].worked += t - workers[w].began
        answer(fleet, s, i, t, workers[w].failed)
        s = following
    take(fleet, i, t)
    if fleet.rules.limit > 0:
        for b in range(len(fleet.balancers)):
            if freed >> b & 1:
                send_waiting(fleet, b, i, t)


@njit(error_model="numpy")
def waited(fleet: Any, i: int, t: float) -> None:
    """Instance i's batch may have waited long enough."""
    instances = fleet.instances
    instances[i].deadline_set = 0
    if instances[i].gatherer == NOBODY:
        return
    if instances[i].gather_until > t:
        instances[i].deadline_set = 1
        push(fleet.events, fleet.now, instances[i].gather_until, -1 - i)
        return
    w = instances[i].gatherer
    instances[i].gatherer = NOBODY
    serve(fleet, i, w, t)
    take(fleet, i, t)


@njit(error_model="numpy")
def begin(fleet: Any, t: float) -> None:
    """Weights in `instances.base`, load reports and newcomers take effect; last second's sums are cleared."""
    instances = fleet.instances
    for b in range(len(fleet.balancers)):
        if fleet.rules.algorithm == ORCA:
            hear_reports(fleet, b, t)
        refresh(fleet, b, t)
    for i in range(len(instances)):
        instances[i].answered, instances[i].failed = 0, 0
        instances[i].latency, instances[i].worked = 0.0, 0.0
        instances[i].busy, instances[i].busy_since = 0.0, t
    if fleet.rules.limit > 0:
        for b in range(len(fleet.balancers)):
            for i in range(len(instances)):
                send_waiting(fleet, b, i, t)


@njit(error_model="numpy")
def advance(fleet: Any, arrivals: Any, first: int, end: float) -> None:
    """Everything until `end`: `arrivals` float64 are times of requests `first` and on. Needs room in slots and out for them all."""
    events, now, instances = fleet.events, fleet.now, fleet.instances
    k = 0
    while True:
        arrival = arrivals[k] if k < len(arrivals) else math.inf
        event = events[0].time if now[0].heap > 0 else math.inf
        if min(arrival, event) >= end:
            break
        if event <= arrival:
            who = events[0].who
            drop_first(events, now)
            if who >= 0:
                done(fleet, who, event)
            else:
                waited(fleet, -1 - who, event)
        elif now[0].free == NOBODY:
            now[0].overflowed += 1
            out = fleet.out[now[0].out]
            out.latency, out.failed, out.instance, out.number = 0.0, 1, NOBODY, first + k
            now[0].out += 1
            k += 1
        else:
            arrive(fleet, arrival, first + k)
            k += 1
    for i in range(len(instances)):
        instances[i].busy += instances[i].busy_now * (end - instances[i].busy_since)
        instances[i].busy_since = end

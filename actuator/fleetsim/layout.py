"""The tables of a simulated fleet, as numpy records that the kernels read and write: N instances, B balancers, W workers in all.

Memory is O(N B + requests in the system). A request in the system has a *slot*; lists of slots are linked by `next`, and -1 ends one.
Rows and not columns, because an event touches many fields of few instances.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.faults import KINDS
from trimtab.actuator.fleetsim.scenario import BALANCERS, SERVICES, Scenario

Table = NDArray[np.void]
POOL_MAX = 16
"""Most probes that Prequal keeps at a balancer."""
RIF_BUCKETS = 64
"""Requests in flight that Prequal tells apart; more count as the last."""
RECENT_RIFS = 128
NOBODY = -1


def _row(floats: str, integers: str) -> np.dtype[np.void]:
    return np.dtype([(name, "f8") for name in floats.split()] + [(name, "i8") for name in integers.split()], align=True)


SLOT = _row("arrival sent", "number next balancer rif")
"""`rif`: requests at the instance when this one came, itself included."""
INSTANCE = _row(
    # What it is, what trimtab gives it in the balancer's units, until when it gathers a batch, and sums of this second.
    "speed joins batch_delay batch_shared base gather_until latency worked busy busy_since",
    "queue_max batch_max workers worker_first fault_first fault_last"
    # What it has: the last is whether an event waits for its batch.
    " queue_head queue_tail queued present idle gatherer gathered deadline_set"
    # Of this second; how many workers are at work now.
    " answered failed busy_now",
)
WORKER = _row("quota_end quota_used began", "instance idle batch_head batch_tail failed")
"""`idle` of the rows of one instance is a stack of its idle workers; it is no part of the worker in whose row it is."""
FAULT = _row("onset end factor ratio error_seconds period on quota", "kind requests started")
VIEW = _row(
    "weight cumulative position last ewma ewma_time ejected_until first_report last_report orca",
    "inflight stamp consecutive ejections answered succeeded reported",
)
"""What a balancer knows of an instance. `weight` is in effect: 0 for who is away, drained or ejected. `cumulative` ends with it.
`position` is round robin's next turn or EDF's deadline, -1 before the first; `last` the turn before. `stamp` is when it last moved in
leastconn's tree."""
BALANCER = _row("clock swept", "usable equal queue_head queue_tail probes rifs_seen oldest_turn")
"""`clock` counts round robin's turns, or is EDF's time. `usable`: weights above 0; `equal`: whether these are equal."""
PROBE = _row("latency time", "instance rif uses")
EVENT = _row("time", "who")
"""Worker `who` finishes, or, as -1 - instance, its batch waits no longer. A binary heap."""
NOW = _row("time", "free heap stamp out in_system refused overflowed")
ANSWER = _row("latency", "failed instance number")
"""Of a request that left the system, in the order in which they left; instance -1: none took it."""


class Rules(NamedTuple):
    """What holds for all."""

    seed: int
    algorithm: int
    limit: int
    """Requests that a balancer may have under way at an instance; 0: any."""
    in_turn: bool
    ejection: bool
    service: int
    mean: float
    sigma: float
    """Of the logarithm of a lognormal service time."""
    quantiles: NDArray[np.float64]


class Fleet(NamedTuple):
    """All tables, as the kernels take them."""

    rules: Rules
    slots: Table
    instances: Table
    workers: Table
    faults: Table
    views: Table
    """[B, N]"""
    balancers: Table
    probes: Table
    """[B, POOL_MAX]"""
    rifs: NDArray[np.int64]
    """[B, RECENT_RIFS]: a ring of what probes found."""
    rif_counts: NDArray[np.int64]
    """[B, RIF_BUCKETS]: of what is in the ring."""
    rif_latency: NDArray[np.float64]
    """[N, RIF_BUCKETS]: recent latency of requests that came at so many in flight, NaN: nothing yet."""
    events: Table
    now: Table
    """[1]"""
    out: Table


def rules_of(s: Scenario) -> Rules:
    """The part of the scenario that is no table."""
    central = s.balancers.name == "central_queue"
    return Rules(
        seed=s.seed,
        algorithm=BALANCERS.index("round_robin" if central else s.balancers.name),
        limit=s.balancers.connections_max or int(central),
        in_turn=s.balancers.in_turn,
        ejection=s.balancers.outlier_ejection,
        service=SERVICES.index(s.service.kind),
        mean=float(s.service.mean_seconds),
        sigma=math.sqrt(math.log1p(s.service.cv**2)),
        quantiles=np.array(s.service.quantiles_seconds or (0, 0), dtype=np.float64),
    )


def empty(s: Scenario) -> Fleet:
    """The fleet before the first request."""
    b, n = s.balancers.count, len(s.instances)
    instances, workers, faults = _instances(s), _workers(s), _faults(s)
    views = _zeros(VIEW, b, n)
    for name, value in (("position", -1), ("ejected_until", -np.inf), ("first_report", np.nan), ("orca", np.nan)):
        views[name] = value
    balancers = _zeros(BALANCER, b)
    balancers["queue_head"] = balancers["queue_tail"] = NOBODY
    now = _zeros(NOW, 1)
    now["free"] = NOBODY
    return Fleet(
        rules=rules_of(s),
        slots=_zeros(SLOT, 0),
        instances=instances,
        workers=workers,
        faults=faults,
        views=views,
        balancers=balancers,
        probes=_zeros(PROBE, b, POOL_MAX),
        rifs=np.zeros((b, RECENT_RIFS), dtype=np.int64),
        rif_counts=np.zeros((b, RIF_BUCKETS), dtype=np.int64),
        rif_latency=np.full((n, RIF_BUCKETS), np.nan),
        events=_zeros(EVENT, len(workers) + n + 1),
        now=now,
        out=_zeros(ANSWER, 0),
    )


def grown(fleet: Fleet, slots: int) -> Fleet:
    """The same with room for `slots` requests in the system."""
    before = len(fleet.slots)
    table = _zeros(SLOT, slots)
    table[:before] = fleet.slots
    table["next"][before:] = np.arange(before + 1, slots + 1)
    table["next"][-1] = fleet.now["free"][0]
    fleet.now["free"] = before
    return fleet._replace(slots=table)


def with_output(fleet: Fleet, answers: int) -> Fleet:
    """The same with an empty list for as many answers."""
    fleet.now["out"] = 0
    return fleet._replace(out=_zeros(ANSWER, answers))


def _zeros(row: np.dtype[np.void], *shape: int) -> Any:
    return np.zeros(shape, dtype=row)


def _instances(s: Scenario) -> Any:
    table = _zeros(INSTANCE, len(s.instances))
    fields = {"speed": "speed", "joins": "joins_seconds", "batch_delay": "batch_delay_seconds", "workers": "workers"}
    fields |= {"batch_shared": "batch_shared", "queue_max": "queue_max", "batch_max": "batch_max"}
    for column, field in fields.items():
        table[column] = [getattr(i, field) for i in s.instances]
    table["worker_first"] = np.cumsum(table["workers"]) - table["workers"]
    owners = sorted(f.instance for f in s.faults)
    for column, side in (("fault_first", "left"), ("fault_last", "right")):
        table[column] = np.searchsorted(owners, np.arange(len(table)), side=side)  # type: ignore[call-overload]
    table["idle"] = table["workers"]
    table["base"] = -1
    for column in ("queue_head", "queue_tail", "gatherer"):
        table[column] = NOBODY
    return table


def _workers(s: Scenario) -> Any:
    table = _zeros(WORKER, sum(i.workers for i in s.instances))
    table["instance"] = np.repeat(np.arange(len(s.instances)), [i.workers for i in s.instances])
    table["idle"] = np.arange(len(table))
    table["batch_head"] = table["batch_tail"] = NOBODY
    return table


def _faults(s: Scenario) -> Any:
    table = _zeros(FAULT, len(s.faults))
    fields = {"onset": "onset_seconds", "end": "end_seconds", "period": "period_seconds", "on": "on_seconds"}
    fields |= {"quota": "quota_seconds", "error_seconds": "error_seconds"}
    fields |= {name: name for name in ("factor", "ratio", "requests")}
    faults = sorted(s.faults, key=lambda f: f.instance)
    for column, field in fields.items():
        table[column] = [getattr(f, field) for f in faults]
    table["kind"] = [KINDS.index(f.kind) for f in faults]
    return table

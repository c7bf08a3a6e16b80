"""The scenarios, a row of the tables each: what happens, and from when on it is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trimtab.actuator.fleetsim.faults import Fault, TelemetryFault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service

SECONDS, SETTLED = 90, 30
"""A run, and when a controller has had its time, where nothing happens in the middle."""
ONSET = 30.0
SLO = 10
"""Services that an answer may take to be goodput."""
ILL = 3
"""The instance that a fault ails."""


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario, but for its seed and its balancer."""

    name: str
    title: str
    base: Scenario
    since: int = SETTLED
    balancers: int = 1
    compare: str = "headroom"
    """What it is about: "headroom" to be taken, "errors" to be avoided, or "harmless", where there is nothing to win."""
    ill: tuple[int, ...] = ()
    """Instances that a fault ails."""

    def scenario(self, seed: int, balancer: Balancers) -> Scenario:
        """The run."""
        return replace(self.base, seed=seed, balancers=replace(balancer, count=self.balancers))


def fleet(
    speeds: tuple[float, ...] = (1, 1, 1, 1), load: float = 0.6, service: Service | None = None, **others: Any
) -> Scenario:
    """`load` is of what the instances can do when they are well, and a batch full."""
    service = service or Service(mean_seconds=0.02)
    instance = {key: others.pop(key) for key in tuple(others) if key in Instance.__dataclass_fields__}
    instances = tuple(Instance(speed=s, **instance) for s in speeds)
    capacity = sum(speeds) * instances[0].workers * instances[0].batch_max / service.expected_seconds
    arrivals = others.pop("arrivals", Arrivals())
    others.setdefault("seconds", SECONDS)
    slo = SLO * service.expected_seconds * len(speeds) / sum(speeds)
    arrivals = replace(arrivals, rate_per_second=load * capacity)
    return Scenario(arrivals=arrivals, instances=instances, service=service, slo_seconds=slo, **others)


def slow(factor: float, onset: float = 0.0, **others: Any) -> Fault:
    return Fault(ILL, "slow", onset, factor=factor, **others)


UNEQUAL, MIXED = (1.0, 1.0, 2.0, 4.0), Service(mean_seconds=0.08)
_MIX = Service(kind="quantiles", mean_seconds=0.02, quantiles_seconds=tuple([0.01] * 9 + [0.05, 0.12]))
_BERT = Service(mean_seconds=0.012, cv=0.3)


def rows() -> list[Row]:
    """All of them, but for those of recorded arrivals (`recordings`)."""
    errors = Fault(ILL, "fail_fast", ONSET)
    return [
        Row("slow3", "one 3 × slower, 60 % of what is left", fleet(load=0.5, faults=(slow(3),)), ill=(ILL,)),
        Row("turn5", "one turns 5 × slower, 60 % of what is left", fleet(load=0.48, faults=(slow(5, ONSET),)), int(ONSET), ill=(ILL,)),
        Row("unequal30", "speeds 1:1:2:4, 30 %", fleet(UNEQUAL, 0.3, MIXED)),
        Row("unequal60", "speeds 1:1:2:4, 60 %", fleet(UNEQUAL, 0.6, MIXED)),
        Row("unequal80", "speeds 1:1:2:4, 80 %", fleet(UNEQUAL, 0.8, MIXED)),
        Row("unequal60x4", "the same, 60 %, 4 balancers", fleet(UNEQUAL, 0.6, MIXED), balancers=4),
        Row("unequal60x8", "the same, 60 %, 8 balancers", fleet(UNEQUAL, 0.6, MIXED), balancers=8),
        Row("slow3x4", "one 3 × slower, 4 balancers", fleet(load=0.5, faults=(slow(3),)), balancers=4, ill=(ILL,)),
        Row("slow3x8", "one 3 × slower, 8 balancers", fleet(load=0.5, faults=(slow(3),)), balancers=8, ill=(ILL,)),
        Row("batch4", "batches of 8, one 4 × slower", fleet(load=0.5, faults=(slow(4),), **_BATCHES), ill=(ILL,)),
        Row("quota", "a CPU quota of 20 % on one", fleet(load=0.5, service=_BERT, faults=(Fault(ILL, "quota"),)), ill=(ILL,)),
        Row("fail100", "one answers only errors, at once", fleet(faults=(errors,)), int(ONSET) + 10, compare="errors", ill=(ILL,)),
        Row("fail30", "one answers 30 % errors", fleet(faults=(replace(errors, ratio=0.3),)), int(ONSET) + 10, compare="errors",
        ill=(ILL,)),
        Row("throttle", "throttling, announced 3 s ahead", fleet(load=0.4, faults=(slow(3, ONSET, announce_seconds=3.0),)), int(ONSET),
        ill=(ILL,)),
        Row("healthy", "healthy, equal, 60 %", fleet(), 0, compare="harmless"),
        Row("healthy80", "healthy, equal, 80 %", fleet(load=0.8), 0, compare="harmless"),
        Row("long10", "10 % long requests", fleet(load=0.5, service=_MIX), 0, compare="harmless"),
        Row("batches", "batches of 8, equal", fleet(load=0.5, **_BATCHES), 0, compare="harmless"),
        Row("bursty", "bursty arrivals", fleet(load=0.5, arrivals=Arrivals(kind="bursty")), 0, compare="harmless"),
        Row("lost", "telemetry of one lost", fleet(telemetry_faults=(TelemetryFault(ILL, "lost", ONSET),)), 0, compare="harmless"),
        Row("late", "telemetry of one 5 s late", fleet(telemetry_faults=(TelemetryFault(ILL, "late", ONSET),)), 0, compare="harmless"),
        Row("lying", "one tells a fifth of its latency", fleet(telemetry_faults=(TelemetryFault(ILL, "lying", ONSET, scale=0.2),)), 0,
        compare="harmless"),
        Row("lying5", "one tells five times its latency", fleet(telemetry_faults=(TelemetryFault(ILL, "lying", ONSET, scale=5.0),)), 0,
        compare="harmless"),
    ]  # fmt: skip


_BATCHES: dict[str, Any] = {"batch_max": 8, "batch_delay_seconds": 0.015, "service": Service(mean_seconds=0.08, cv=0.3)}

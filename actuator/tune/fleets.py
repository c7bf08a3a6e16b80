"""Fleets to train on: each number is one of its own, of any size, speed, load, balancer and fault that a real one may have."""

from __future__ import annotations

import math

import numpy as np

from trimtab.actuator.fleetsim.faults import Fault, TelemetryFault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service

SECONDS = 60
SIZES = (3, 16)
_BALANCERS = ("random2", "leastconn", "round_robin", "envoy_least_request", "envoy_round_robin", "random")
_SPEEDS = (0.25, 0.5, 1.0, 1.0, 1.0, 2.0, 4.0)


def fleet(number: int, seed: int = 0) -> Scenario:
    """The training fleet of that number; another seed is another series of them."""
    chance = np.random.default_rng([seed, number])
    size = int(chance.integers(SIZES[0], SIZES[1] + 1))
    speeds = [1.0] * size if chance.random() < 0.5 else [float(chance.choice(_SPEEDS)) for _ in range(size)]
    batch = int(chance.choice([1, 1, 1, 4, 8]))
    workers = int(chance.choice([1, 1, 2, 4]))
    service = Service(
        mean_seconds=float(np.exp(chance.uniform(math.log(0.01), math.log(0.2)))), cv=float(chance.uniform(0.2, 1.2))
    )
    load = float(chance.uniform(0.15, 0.85))
    rate = load * workers * sum(speeds) / service.mean_seconds
    kind = str(chance.choice(["poisson", "poisson", "gamma", "bursty"]))
    return Scenario(
        seed=int(chance.integers(2**31)),
        seconds=SECONDS,
        arrivals=Arrivals(rate_per_second=rate, kind=kind, cv=float(chance.uniform(1, 2.5)), profile=_profile(chance)),
        instances=tuple(Instance(speed=s, workers=workers, batch_max=batch, batch_delay_seconds=0.01) for s in speeds),
        service=service,
        balancers=Balancers(str(chance.choice(_BALANCERS)), int(chance.choice([1, 1, 2, 4, 8]))),
        faults=_faults(chance, size),
        telemetry_faults=_lies(chance, size),
    )


def _profile(chance: np.random.Generator) -> tuple[float, ...]:
    """How the load changes over the run: mostly not, else up and down, or a step."""
    how = chance.random()
    if how < 0.6:
        return ()
    if how < 0.8:
        return tuple(1 + 0.5 * math.sin(2 * math.pi * (k / SECONDS + chance.random())) for k in range(SECONDS))
    step = int(chance.integers(10, SECONDS - 10))
    return tuple([float(chance.uniform(0.4, 1))] * step + [1.0] * (SECONDS - step))


def _faults(chance: np.random.Generator, size: int) -> tuple[Fault, ...]:
    """None in three of ten fleets, else of one instance, sometimes of two; at least two stay well."""
    if chance.random() < 0.3:
        return ()
    victims = chance.permutation(size)[: min(2 if chance.random() < 0.2 else 1, size - 2)]
    return tuple(_fault(chance, int(victim)) for victim in victims)


def _fault(chance: np.random.Generator, victim: int) -> Fault:
    kind = str(
        chance.choice(["slow", "slow", "slow", "fail_fast", "fail_fast", "flapping", "stuck", "quota", "cold_start"])
    )
    onset = float(chance.uniform(0, 30))
    told = float(chance.uniform(4, 12)) if chance.random() < 0.6 else None
    announced = float(chance.uniform(-1, 3)) if kind == "slow" and chance.random() < 0.3 else None
    return Fault(
        instance=victim,
        kind=kind,
        onset_seconds=onset,
        end_seconds=onset + float(chance.uniform(10, 40)) if chance.random() < 0.5 else math.inf,
        factor=float(np.exp(chance.uniform(math.log(1.5), math.log(8)))),
        ratio=float(chance.choice([1.0, 0.5, 0.3, 0.1])),
        period_seconds=10.0 if kind == "flapping" else 0.1,
        on_seconds=5.0 if kind == "flapping" else 0.05,
        quota_seconds=float(chance.uniform(0.01, 0.05)),
        announce_seconds=announced,
        detect_seconds=told,
        mechanism="fail-fast errors" if kind == "fail_fast" else "unknown",
    )


def _lies(chance: np.random.Generator, size: int) -> tuple[TelemetryFault, ...]:
    """In one fleet of ten, of one instance."""
    if chance.random() < 0.9:
        return ()
    kind = str(chance.choice(["lost", "late", "lying"]))
    lie = TelemetryFault(
        int(chance.integers(size)), kind, float(chance.uniform(5, 30)), late_seconds=int(chance.integers(2, 9))
    )
    return (lie,)

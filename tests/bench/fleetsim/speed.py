"""Requests a second that the simulator manages on one core."""

from __future__ import annotations

import time

import numpy as np

from tests.bench.spread import Estimate, median
from trimtab.actuator.fleetsim.fleet import Fleet
from trimtab.actuator.fleetsim.scenario import BALANCERS, Arrivals, Balancers, Scenario, Service

REPEATS = 9
BUSY = Arrivals(24_000)
"""So many a second that the kernels are all there is to it; 60 % of what four instances can do."""
SERVICE = Service(1e-4)
QUIET = Arrivals(120)
"""As a real fleet of four has: here what surrounds the kernels counts."""


def kernels() -> dict[str, Estimate]:
    """Millions of requests a second of CPU time, by balancer; the medians, with 95 % intervals."""
    out = {}
    for name in BALANCERS:
        scenario = Scenario(seconds=10, arrivals=BUSY, service=SERVICE, balancers=Balancers(name))
        _lived(scenario)
        out[name] = median([_lived(scenario)[0] for _ in range(REPEATS)])
    return out


def seconds() -> Estimate:
    """Microseconds of CPU time that one second of a fleet of four at 120 requests/s takes, policies not included."""
    scenario = Scenario(seconds=200, arrivals=QUIET)
    _lived(scenario)
    return median([_lived(scenario)[1] for _ in range(REPEATS)])


def _lived(scenario: Scenario) -> tuple[float, float]:
    """Millions of requests a CPU second, and microseconds a step."""
    fleet, weights = Fleet(scenario), np.ones(len(scenario.instances))
    start = time.process_time()
    while not fleet.done:
        fleet.step(weights)
    spent = time.process_time() - start
    return fleet.summary().requests / spent / 1e6, spent / scenario.seconds * 1e6

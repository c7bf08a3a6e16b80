"""Queues that mathematics knows: the mean wait must be what the formula says, within what chance leaves open."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run, waits
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service, instances

MEAN = 0.02
RUNS, SECONDS, WARM_UP = 24, 400, 2000


def erlang_c(servers: int, offered: float) -> float:
    """The probability of waiting in M/M/c (Erlang, 1917)."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


def pollaczek_khinchine(load: float, cv: float) -> float:
    """The mean wait of M/G/1, in service times."""
    return load / (1 - load) * (1 + cv * cv) / 2


def mean_latency(**scenario: object) -> tuple[float, float]:
    """Over independent runs: the mean, and its standard error. Both in mean service times."""
    means = []
    for seed in range(RUNS):
        _, ticks = run(Scenario(seed=seed, seconds=SECONDS, **scenario))  # type: ignore[arg-type]
        means.append(waits(ticks)[WARM_UP:].mean() / MEAN)
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(RUNS))


ONE = (Instance(queue_max=100_000),)


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(
    ("service", "cv"),
    [
        (Service(MEAN, "exponential"), 1.0),
        (Service(MEAN, "deterministic"), 0.0),
        (Service(MEAN, "lognormal", cv=1.5), 1.5),
        # Uniform on [0, 2 MEAN].
        (Service(kind="quantiles", quantiles_seconds=(0.0, 2 * MEAN)), 3**-0.5),
    ],
    ids=["M/M/1", "M/D/1", "M/G/1", "M/U/1"],
)
def test_one_server(load: float, service: Service, cv: float) -> None:
    measured, error = mean_latency(arrivals=Arrivals(load / MEAN), instances=ONE, service=service)
    assert abs(measured - (1 + pollaczek_khinchine(load, cv))) < 4 * error
    assert error < 0.05 * measured


@pytest.mark.parametrize(
    ("servers", "balancers"),
    [
        ((Instance(workers=3, queue_max=100_000),), Balancers("random")),
        (instances((1, 1, 1)), Balancers("central_queue")),
        (instances((1, 1, 1)), Balancers("round_robin", connections_max=1)),
    ],
    ids=["three workers", "central queue", "maxconn 1"],
)
def test_several_servers_and_one_queue(servers: tuple[Instance, ...], balancers: Balancers) -> None:
    offered = 2.4
    service = Service(MEAN, "exponential")
    measured, error = mean_latency(
        arrivals=Arrivals(offered / MEAN), instances=servers, service=service, balancers=balancers
    )
    expected = 1 + erlang_c(3, offered) / (3 - offered)
    assert abs(measured - expected) < 4 * error
    assert error < 0.05 * measured


def test_random_is_as_many_queues_as_instances() -> None:
    servers = instances((1, 1, 1, 1), queue_max=100_000)
    service = Service(MEAN, "exponential")
    measured, error = mean_latency(
        arrivals=Arrivals(4 * 0.6 / MEAN), instances=servers, service=service, balancers=Balancers("random")
    )
    assert abs(measured - 1 / (1 - 0.6)) < 4 * error


def test_nobody_waits_with_enough_workers() -> None:
    """M/G/infinity: latency is the service time, and as many are in the system as Little says."""
    server = (Instance(workers=64, speed=2.0),)
    fleet, ticks = run(Scenario(seconds=300, arrivals=Arrivals(300), instances=server, service=Service(MEAN)))
    assert fleet.summary().mean_seconds == pytest.approx(MEAN / 2, rel=0.02)
    busy = np.mean([t.utilisation[0] for t in ticks]) * 64
    assert busy == pytest.approx(300 * MEAN / 2, rel=0.03)

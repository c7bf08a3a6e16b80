"""What happens in a simulated fleet, as plain data. The same scenario under the same weights is the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from trimtab.actuator.fleetsim.check import SECONDS_MAX, number, require
from trimtab.actuator.fleetsim.faults import Fault, TelemetryFault

INSTANCES_MAX = 1000
BALANCERS_MAX = 8
WORKERS_MAX = 64
TIMES_MAX = 10_000_000
"""Longest recorded trace, and most quantiles of a service time."""
BALANCERS = (
    "round_robin",
    "leastconn",
    "random",
    "random2",
    "central_queue",
    "envoy_round_robin",
    "envoy_least_request",
    "peak_ewma",
    "prequal",
    "orca_wrr",
)
"""The order is the number by which the kernels know an algorithm (docs/fleetsim.md says what each does)."""
ARRIVALS = ("poisson", "gamma", "bursty", "recorded")
SERVICES = ("lognormal", "deterministic", "exponential", "quantiles")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests arrive, at `rate_per_second` on average.

    poisson: independently. gamma: with gamma distributed gaps, whose coefficient of variation is `cv`. bursty: a Poisson process whose
    rate is `burst` times that of calm times during bursts, which last `burst_seconds` on average and come after `calm_seconds` of calm
    (MMPP-2). recorded: at `times_seconds`, rising. `profile` scales the rate in each second, over and over; empty: it is level.
    """

    rate_per_second: float = 100.0
    kind: str = "poisson"
    cv: float = 2.0
    burst: float = 4.0
    burst_seconds: float = 2.0
    calm_seconds: float = 8.0
    times_seconds: tuple[float, ...] = ()
    profile: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises TrimtabError, naming what is wrong."""
        require(self.kind in ARRIVALS, "arrivals.kind", self.kind, f"choose {', '.join(ARRIVALS)}")
        number("arrivals.rate_per_second", self.rate_per_second, 0, 1e7)
        number("arrivals.cv", self.cv, 0.05, 20)
        number("arrivals.burst", self.burst, 1, 1e4)
        number("arrivals.burst_seconds", self.burst_seconds, 1e-3, 1e6)
        number("arrivals.calm_seconds", self.calm_seconds, 1e-3, 1e6)
        require(len(self.profile) <= SECONDS_MAX, "arrivals.profile", len(self.profile), "shorten it")
        for scale in self.profile:
            number("arrivals.profile", scale, 0, 1e4)
        _rising("arrivals.times_seconds", self.times_seconds)
        recorded = self.kind != "recorded" or bool(self.times_seconds)
        require(recorded, "arrivals.times_seconds", (), 'kind = "recorded" needs the times')


@dataclass(frozen=True, slots=True)
class Service:
    """How long an instance of speed 1 works on a request; or, for kind "quantiles", values at evenly spaced probabilities from 0 to 1."""

    mean_seconds: float = 0.02
    kind: str = "lognormal"
    cv: float = 0.5
    quantiles_seconds: tuple[float, ...] = ()

    def check(self) -> None:
        """Raises TrimtabError, naming what is wrong."""
        require(self.kind in SERVICES, "service.kind", self.kind, f"choose {', '.join(SERVICES)}")
        number("service.mean_seconds", self.mean_seconds, 1e-6, 1e4)
        number("service.cv", self.cv, 0, 20)
        _rising("service.quantiles_seconds", self.quantiles_seconds)
        enough = self.kind != "quantiles" or len(self.quantiles_seconds) >= 2
        require(enough, "service.quantiles_seconds", self.quantiles_seconds, 'kind = "quantiles" needs two or more')

    @property
    def expected_seconds(self) -> float:
        """The mean. That of quantiles is taken over straight lines between them."""
        if self.kind != "quantiles":
            return self.mean_seconds
        return sum(a + b for a, b in pairwise(self.quantiles_seconds)) / 2 / (len(self.quantiles_seconds) - 1)


@dataclass(frozen=True, slots=True)
class Instance:
    """One serving process: a first-come, first-served queue before its workers, as TorchServe has one for each model.

    A request that finds `queue_max` waiting is refused at once. An idle worker takes up to `batch_max` requests, and waits at most
    `batch_delay_seconds` for a batch to fill. With service times s a batch takes a max(s) + (1 - a) sum(s), where a is `batch_shared`.
    """

    speed: float = 1.0
    workers: int = 1
    queue_max: int = 100
    batch_max: int = 1
    batch_delay_seconds: float = 0.1
    batch_shared: float = 1.0
    joins_seconds: float = 0.0
    """Before that no balancer and no policy knows it."""
    memory_bytes: float = 5e8

    def check(self, name: str) -> None:
        """Raises TrimtabError, naming what is wrong."""
        number(f"{name}.speed", self.speed, 1e-4, 1e4)
        number(f"{name}.workers", self.workers, 1, WORKERS_MAX)
        number(f"{name}.queue_max", self.queue_max, 0, 1e6)
        number(f"{name}.batch_max", self.batch_max, 1, 1024)
        number(f"{name}.batch_delay_seconds", self.batch_delay_seconds, 0, 60)
        number(f"{name}.batch_shared", self.batch_shared, 0, 1)
        number(f"{name}.joins_seconds", self.joins_seconds, 0, SECONDS_MAX)
        number(f"{name}.memory_bytes", self.memory_bytes, 0, 1e15)


@dataclass(frozen=True, slots=True)
class Balancers:
    """`count` load balancers of one kind, each with a part of the requests, that see only what they sent themselves."""

    name: str = "random2"
    count: int = 1
    connections_max: int = 0
    """Requests that each may have under way at an instance; the others wait in the balancer (HAProxy's `maxconn`). 0: no limit, but 1 for
    "central_queue", which is "round_robin" with such a limit."""
    in_turn: bool = False
    """They get requests in turn, as from a load generator, and not by chance, as from many clients."""
    outlier_ejection: bool = False
    """Envoy's outlier detection, with its defaults."""

    def check(self) -> None:
        """Raises TrimtabError, naming what is wrong."""
        require(self.name in BALANCERS, "balancers.name", self.name, f"choose {', '.join(BALANCERS)}")
        number("balancers.count", self.count, 1, BALANCERS_MAX)
        number("balancers.connections_max", self.connections_max, 0, 1e6)


def instances(speeds: Sequence[float], **others: Any) -> tuple[Instance, ...]:
    """Instances that differ in speed only."""
    return tuple(Instance(speed=speed, **others) for speed in speeds)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything about a run but the weights. Raises TrimtabError when it is not possible."""

    seed: int = 0
    seconds: int = 60
    arrivals: Arrivals = field(default_factory=Arrivals)
    instances: tuple[Instance, ...] = field(default_factory=lambda: instances((1, 1, 1, 1)))
    service: Service = field(default_factory=Service)
    balancers: Balancers = field(default_factory=Balancers)
    faults: tuple[Fault, ...] = ()
    telemetry_faults: tuple[TelemetryFault, ...] = ()
    overhead_seconds: float = 0.0
    """Network and proxy: added to what users wait, and to nothing else."""
    slo_seconds: float = 0.25
    """Answers without error within this are goodput."""
    in_flight_max: int = 100_000
    """Requests in the whole system; one more is refused."""

    def __post_init__(self) -> None:
        number("seed", self.seed, 0, 2**63 - 1)
        number("seconds", self.seconds, 1, SECONDS_MAX)
        number("overhead_seconds", self.overhead_seconds, 0, 60)
        number("slo_seconds", self.slo_seconds, 0, 1e6)
        number("in_flight_max", self.in_flight_max, 1, 10_000_000)
        count = len(self.instances)
        require(1 <= count <= INSTANCES_MAX, "instances", count, f"must be 1 to {INSTANCES_MAX}")
        for part in (self.arrivals, self.service, self.balancers):
            part.check()
        for k, instance in enumerate(self.instances):
            instance.check(f"instances[{k}]")
        for k, fault in enumerate(self.faults):
            fault.check(f"faults[{k}]", count)
        for k, lie in enumerate(self.telemetry_faults):
            lie.check(f"telemetry_faults[{k}]", count)

    @property
    def load(self) -> float:
        """Offered work over what healthy instances could do without batching, 1 being all of it."""
        capacity = sum(i.speed * i.workers for i in self.instances)
        return self.arrivals.rate_per_second * self.service.expected_seconds / capacity


def _rising(name: str, values: tuple[float, ...]) -> None:
    require(len(values) <= TIMES_MAX, name, len(values), f"at most {TIMES_MAX}")
    for value in values:
        number(name, value, 0, SECONDS_MAX)
    require(all(a <= b for a, b in pairwise(values)), name, "…", "must rise")

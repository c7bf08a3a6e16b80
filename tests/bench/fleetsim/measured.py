"""What real balancers did with four real instances, and the same scenarios for the simulator.

Four TorchServe instances, whose handler sleeps a lognormal time of mean 20 ms and coefficient of variation 0.5, behind HAProxy 2.6;
open-loop Poisson arrivals, latency from the scheduled arrival. The noise of means is 5 to 10 %, of p99 20 to 30 %. `grows`: the queue was
longer the longer it ran. CQ is `maxconn 1` with HAProxy's default algorithm, roundrobin.

Two things were not written down. Speeds of 1:1:2:4 are taken to be service times of 80, 80, 40 and 20 ms, and runs to last 20 s: by
these the growing queues of RR fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Scenario, Service, instances

ALGORITHMS = {"RR": "round_robin", "LC": "leastconn", "R2": "random2", "CQ": "central_queue"}
OVERHEAD_SECONDS = 0.001
"""An instance alone answered in 21 ms of which 20 were the handler's."""
_CAPACITY = 1 / 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean and p99 in milliseconds, or a share of errors."""

    mean_ms: float = float("nan")
    p99_ms: float = float("nan")
    errors: float = float("nan")
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario under some algorithms."""

    name: str
    load: float
    speeds: tuple[float, ...] = (1, 1, 1, 1)
    faults: tuple[Fault, ...] = ()
    balancers: int = 1
    seconds: int = 20
    measured: tuple[tuple[str, Measured], ...] = ()

    def scenario(self, algorithm: str, seed: int) -> Scenario:
        """With one of ALGORITHMS."""
        return Scenario(
            seed=seed,
            seconds=self.seconds,
            arrivals=Arrivals(self.load * sum(self.speeds) * _CAPACITY),
            instances=instances(self.speeds, queue_max=10_000),
            service=Service(0.02, "lognormal", cv=0.5),
            balancers=Balancers(ALGORITHMS[algorithm], count=self.balancers, in_turn=True),
            faults=self.faults,
            overhead_seconds=OVERHEAD_SECONDS,
        )


def _latency(rr: tuple[float, float, bool], **others: tuple[float, float]) -> tuple[tuple[str, Measured], ...]:
    first = ("RR", Measured(rr[0], rr[1], grows=rr[2]))
    return (first, *((name, Measured(*values)) for name, values in others.items()))


def _errors(**shares: float) -> tuple[tuple[str, Measured], ...]:
    return tuple((name, Measured(errors=share)) for name, share in shares.items())


NAN = float("nan")
_SLOW = (Fault(0, "slow", factor=3),)
_MIXED = (0.25, 0.25, 0.5, 1.0)
ROWS = (
    Row("healthy, 60 % load", 0.6, measured=_latency((29, 66, False), LC=(28, 75), R2=(30, 88), CQ=(25, 63))),
    Row(
        "one 3 × slower, 60 %",
        0.6,
        faults=_SLOW,
        measured=_latency((702, NAN, True), LC=(34, 135), R2=(44, 248), CQ=(33, 119)),
    ),
    Row(
        "speeds 1:1:2:4, 60 %",
        0.6,
        _MIXED,
        measured=_latency((500, NAN, True), LC=(62, 257), R2=(86, 356), CQ=(55, 178)),
    ),
    Row("same, 30 %", 0.3, _MIXED, measured=_latency((69, 301, False), LC=(57, 219), R2=(69, 274), CQ=(53, 177))),
    Row(
        "turns 5 × slower mid-run",
        0.6,
        faults=(Fault(0, "slow", 10, factor=5),),
        measured=_latency((371, NAN, True), LC=(35, 221), R2=(45, 371), CQ=(31, 139)),
    ),
    Row(
        "4 balancers, speeds 1:1:2:4, 60 %",
        0.6,
        _MIXED,
        balancers=4,
        measured=_latency((724, NAN, True), LC=(97, 370), R2=(114, 483), CQ=(122, 411)),
    ),
    Row(
        "4 balancers, one 3 × slower",
        0.6,
        faults=_SLOW,
        balancers=4,
        measured=_latency((930, NAN, True), LC=(49, 245), R2=(60, 329), CQ=(59, 309)),
    ),
    Row(
        "one answers only errors, at once",
        0.6,
        faults=(Fault(0, "fail_fast"),),
        measured=_errors(RR=0.25, LC=0.39, R2=0.32, CQ=0.32),
    ),
    Row(
        "one answers 30 % errors",
        0.6,
        faults=(Fault(0, "fail_fast", ratio=0.3),),
        measured=_errors(RR=0.071, LC=0.083, R2=0.086),
    ),
)

"""The fleets that requests are spread over: what ails whom, and how much is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.e2e import faults
from tests.e2e.archive import MODEL, SIM, SIM_BATCH, SIM_BATCHED, SIM_BATCHED_MEAN_SECONDS, SIM_MEAN_SECONDS
from tests.e2e.behaviour import Behaviour, behaving
from tests.e2e.fleet import Instance

INSTANCES = 4
_SERVER_SECONDS = 0.002
"""What TorchServe adds to a batch."""
_LARGEST_OF_BATCH = 1.8
"""The mean of the largest of eight works, each lognormal with mean 1 and coefficient of variation 0.5."""

Fault = Callable[[Instance], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One of them. Whom it ails changes from pair to pair."""

    description: str
    requests_per_second: float
    slo_seconds: float
    """An answer that took longer is worth nothing."""
    model: str = SIM
    batch: int = 1
    slowdowns: tuple[float, ...] = (1.0,) * INSTANCES
    """Of the instances, all the time."""
    fault: Fault | None = None
    """What befalls one of them, when all has been well for a while."""
    errors: bool = False
    """Whether it is errors that there are to be avoided."""

    def standing(self, pair: int) -> list[Behaviour]:
        """How the instances are from the first request on, in their order."""
        turned = [self.slowdowns[(k - pair) % INSTANCES] for k in range(INSTANCES)]
        return [Behaviour(slowdown) for slowdown in turned]

    def ailing(self, instances: Sequence[Instance], pair: int) -> Instance:
        """Whom the fault befalls."""
        return instances[pair % INSTANCES]


def capacity(slowdowns: Sequence[float], batch: int = 1) -> float:
    """Requests a second that simulated instances can answer together, batches being full."""
    mean = SIM_BATCHED_MEAN_SECONDS * _LARGEST_OF_BATCH if batch > 1 else SIM_MEAN_SECONDS
    return sum(batch / (mean * slowdown + _SERVER_SECONDS) for slowdown in slowdowns)


def _standing(description: str, load: float, *slowdowns: float) -> Scenario:
    rate = round(load * capacity(slowdowns), 1)
    return Scenario(f"{description}, {load:.0%} load", rate, slo_seconds=0.1, slowdowns=slowdowns)


def _befalling(description: str, fault: Fault, errors: bool = False) -> Scenario:
    rate = round(_LOAD * capacity((1.0,) * INSTANCES), 1)
    return Scenario(f"{description}, {_LOAD:.0%} load", rate, slo_seconds=0.1, fault=fault, errors=errors)


def _turned(**behaviour: float) -> Fault:
    @contextmanager
    def fault(instance: Instance) -> Iterator[None]:
        with behaving(instance, Behaviour(**behaviour)):
            yield

    return fault


_LOAD = 0.6
_BATCHED = (1.0, 1.0, 1.0, 4.0)

SCENARIOS = {
    "slow": _standing("one takes three times as long", _LOAD, 1, 1, 1, 3),
    "speeds-30": _standing("speeds of 1 : 1 : 2 : 4", 0.3, 4, 4, 2, 1),
    "speeds-60": _standing("speeds of 1 : 1 : 2 : 4", 0.6, 4, 4, 2, 1),
    "turning": _befalling("one begins to take five times as long", _turned(slowdown=5.0)),
    "quota": Scenario(
        "a cgroup CPU quota of 20 % of a core befalls one of four BERT-small",
        requests_per_second=40.0,
        slo_seconds=0.1,
        model=MODEL,
        fault=lambda instance: faults.quota(instance, 0.2),
    ),
    "errors": _befalling("one begins to fail all, in no time", _turned(error_ratio=1.0), errors=True),
    "some-errors": _befalling("one begins to fail 30 %, in no time", _turned(error_ratio=0.3), errors=True),
    "healthy": _standing("all are equal and well", _LOAD, 1, 1, 1, 1),
    "batches": Scenario(
        f"batches of {SIM_BATCH}, one takes four times as long, {_LOAD:.0%} load",
        requests_per_second=round(_LOAD * capacity(_BATCHED, SIM_BATCH), 1),
        slo_seconds=0.3,
        model=SIM_BATCHED,
        batch=SIM_BATCH,
        slowdowns=_BATCHED,
    ),
}
"""By name, in the order of the tables."""

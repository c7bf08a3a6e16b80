"""The classes of faults: how each is made, whom it ails, and what a good diagnosis says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from tests.e2e import faults
from tests.e2e.archive import MODEL
from tests.e2e.campaign import disk, memory, network, version
from tests.e2e.campaign.ground import PADDING_BYTES, Ground
from tests.e2e.confine import apart
from tests.e2e.fleet import Instance
from tests.e2e.load import load
from tests.e2e.services import NODE

HEALTHY = "healthy"
Context = AbstractContextManager[None]


@dataclass(frozen=True, slots=True)
class FaultClass:
    """One class of faults."""

    description: str
    mechanisms: tuple[str, ...]
    """What a good diagnosis names; "unknown" where nothing of the machine explains it."""
    apply: Callable[[Ground, Instance], Context]
    prepare: Callable[[Ground, Instance], Context] = lambda *_: nullcontext()
    """What must be there before, and hurts nobody."""
    common: bool = False
    """Whether all instances suffer."""

    @property
    def seconds_max(self) -> float:
        """How long an incident is waited for. What is common to all must last for 30 s before trimtab says so."""
        return 60.0 if self.common else 30.0

    @property
    def known_seconds(self) -> float:
        """How long trimtab knows the healthy fleet, beyond its warm-up, before the fault.

        Until it has seen twice its warm-up it learns from every window, and what all peers share soon looks usual to it.
        """
        return 30.0 if self.common else 0.0

    def subjects(self, ground: Ground, instance: Instance) -> tuple[str, ...]:
        """Whom a good diagnosis names."""
        return (NODE, f"model {MODEL}") if self.common else (ground.subject(instance),)


@contextmanager
def _surge(ground: Ground, requests_per_second: float = 140) -> Iterator[None]:
    results = ground.directory / "surge.csv"
    with load(ground.proxy.address, requests_per_second, 1, results, padding_bytes=PADDING_BYTES):
        yield


@contextmanager
def _alone(ground: Ground, instance: Instance) -> Iterator[None]:
    with apart(instance, [i for i in ground.instances if i is not instance]):
        yield


def _of_demo(name: str, prepare: Callable[[Ground, Instance], Context] = lambda *_: nullcontext()) -> FaultClass:
    fault = faults.FAULTS[name]
    return FaultClass(fault.description, fault.mechanisms, lambda _, instance: fault.apply(instance), prepare)


CLASSES = {
    HEALTHY: FaultClass("nothing", (), lambda *_: nullcontext()),
    "hog": _of_demo("hog", _alone),
    "quota": _of_demo("quota"),
    "memory": FaultClass(
        "its memory cgroup may hold a fifth of what it holds",
        ("memory pressure", "out of memory"),
        lambda _, instance: memory.pressure(instance),
        lambda ground, _: memory.swap(ground.directory),
    ),
    "disk": FaultClass(
        "eight threads read from the disk, each as fast as it gives",
        ("disk latency",),
        lambda ground, _: disk.saturated(ground.directory),
        common=True,
    ),
    "bandwidth": FaultClass(
        "6 Mbit/s to its port", ("network loss", "unknown"), lambda _, instance: network.bandwidth(instance)
    ),
    "loss": FaultClass(
        "20 % of the packets of its port are lost", ("network loss",), lambda _, instance: network.loss(instance)
    ),
    "pause": _of_demo("pause"),
    "slow": FaultClass(
        "its handler waits 50 ms before each answer", ("unknown",), lambda _, instance: faults.slow(instance)
    ),
    "errors": _of_demo("errors"),
    "crash": _of_demo("crash"),
    "surge": FaultClass("eight times the requests", ("traffic surge",), lambda ground, _: _surge(ground), common=True),
    "gpu-throttle": FaultClass(
        "its GPU is too hot (stand-in), its handler waits",
        ("GPU thermal throttling",),
        lambda ground, instance: ground.gpus.throttled(instance),
    ),
    "gpu-ecc": FaultClass(
        "uncorrectable memory errors of its GPU (stand-in), its handler fails",
        ("ECC error",),
        lambda ground, instance: ground.gpus.uncorrected(instance),
    ),
    "gpu-xid": FaultClass(
        "XID 62 of its GPU (stand-in), its handler fails",
        ("XID",),
        lambda ground, instance: ground.gpus.halted(instance),
    ),
    "version": FaultClass(
        "a version of the model that takes 60 ms longer, on every instance",
        ("model regression",),
        lambda ground, _: version.rolled_out(ground.instances),
        lambda ground, _: version.loaded(ground.instances),
        common=True,
    ),
}
"""By name, in the order of the table."""

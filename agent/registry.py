"""What a collector is, and how the agent finds them: every module of `trimtab.agent.collectors` that has a `COLLECTOR`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trimtab.agent import collectors
from trimtab.agent.bpf.remotes import Remotes
from trimtab.agent.clock import Clock
from trimtab.agent.probes import Probes
from trimtab.agent.sketch.loglinear import Sketch
from trimtab.agent.wire.talkers import Talkers

Kind = Literal["node", "gpu", "instance", "disk", "interface", "model", "worker"]
"""What a signal is about. A model and a worker are of one instance."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One series. A row in docs/signals.md."""

    name: str
    unit: str
    help: str
    kind: Kind
    rate: bool = False
    """Whether it is a rate over the window; else a gauge."""
    sketch: bool = False
    """Whether it is a distribution; its unit is then seconds."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One serving process behind one address, as it was found on this node."""

    id: str
    """Unique within the fleet: "NODE/PORT", and "NODE/PORT@NETNS" in another network namespace than the agent's."""
    runtime: str
    """Name of the serving runtime."""
    pid: int
    """The process that listens."""
    started: float
    """Its start time, so that a pid that was used again is not mistaken for it."""
    port: int
    """Where it takes requests."""
    netns: int
    """Inode of its network namespace; 0 where unknown."""
    addresses: tuple[str, ...]
    """Where balancers reach it: "127.0.0.1:8080"."""
    models: tuple[str, ...] = ()
    """The models it serves, sorted."""
    grpc_port: int = 0
    """Where it takes requests by gRPC too; 0 for nowhere."""
    urls: dict[str, str] = field(default_factory=dict, hash=False)
    """Endpoints of the runtime's own, by their role."""
    headers: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    """What those endpoints want to see; may hold a token."""

    @property
    def model(self) -> str:
        """Instances with the same model are peers."""
        return ",".join(self.models)


class Reading:
    """What one collector saw in one window. Collectors fill it; what they leave out is unknown, never 0."""

    def __init__(self, instances: Sequence[Instance], seconds: float) -> None:
        self.instances = instances
        self.seconds = seconds
        """Time since this collector's last reading; NaN for its first."""
        self.values: dict[tuple[Kind, str, str], float] = {}
        self.sketches: dict[tuple[Kind, str, str], Sketch] = {}
        self.labels: dict[tuple[Kind, str], dict[str, str]] = {}
        self.events: list[tuple[Kind, str, str, float, str]] = []
        self.talkers: dict[tuple[Kind, str, str], Talkers] = {}

    def set(self, kind: Kind, subject: str, name: str, value: float | None) -> None:
        """The value of a signal. None and NaN are unknown."""
        if value is not None:
            self.values[kind, subject, name] = value

    def sketch(self, kind: Kind, subject: str, name: str, sketch: Sketch) -> None:
        """The distribution of a signal in this window."""
        self.sketches[kind, subject, name] = sketch

    def label(self, kind: Kind, subject: str, **labels: str) -> None:
        """What is known of a subject and hardly ever changes."""
        self.labels.setdefault((kind, subject), {}).update(labels)

    def event(self, kind: Kind, subject: str, name: str, value: float = 1.0, detail: str = "") -> None:
        """Something that happened within this window."""
        self.events.append((kind, subject, name, value, detail))

    def talk(self, kind: Kind, subject: str, name: str, talkers: Talkers) -> None:
        """Who talked to a subject in an interval that ended within this window, weighted by what `name` says."""
        self.talkers[kind, subject, name] = talkers


class Unavailable(Exception):
    """The collector cannot work on this host: why, and how to get it; no remedy: nothing is at fault.

    Said once; its signals are unknown.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True, slots=True)
class Host:
    """What a collector may need to know when it opens."""

    node: str
    clock: Clock
    probes: Probes = field(default_factory=Probes)
    budget_cores: float = 0.01
    remotes: Remotes = field(default_factory=Remotes)


class Collector(Protocol):
    """A source of signals. One file below agent/collectors, which ends with `COLLECTOR = TheClass`."""

    name: str
    """Its switch in the settings, and its heading in docs/signals.md."""
    signals: tuple[Signal, ...]

    def open(self, host: Host) -> None:
        """Get ready. Raises Unavailable."""

    def read(self, reading: Reading) -> None:
        """Fill in what is known now. May raise OSError or Unavailable; the runner counts it and asks again next window."""

    def close(self) -> None:
        """Leave the host as it was."""


def discover() -> Iterator[type[Collector]]:
    """Every collector class, by name."""
    for module in sorted(pkgutil.iter_modules(collectors.__path__), key=lambda m: m.name):
        collector: type[Collector] = importlib.import_module(f"{collectors.__name__}.{module.name}").COLLECTOR
        yield collector

"""One degraded instance, and everything to compare it with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import GPU, INSTANCE, History
from trimtab.detector.topology import Topology
from trimtab.rootcause.evidence import evidence
from trimtab.rootcause.movement import Movement, Movements, measure
from trimtab.rootcause.signatures import Sign

# A peer that moved this much as far moved alike.
_ALIKE = 0.5


@dataclass
class Case:
    """What there is to know of `instance` since then; `peers` are healthy instances that serve the same model."""

    history: History
    topology: Topology
    instance: str
    since_unix_ns: int
    peers: Sequence[str] = ()
    _movements: dict[str, Movements | None] = field(default_factory=dict)

    @property
    def node(self) -> str:
        return self.instance.partition("/")[0]

    def movements(self, subject: str) -> Movements | None:
        """How its signals moved; None where it is not known."""
        if subject not in self._movements:
            self._movements[subject] = measure(self.history, subject, self.since_unix_ns)
        return self._movements[subject]

    def gpus(self, instance: str) -> list[str]:
        """The GPUs that an instance uses."""
        return [
            gpu
            for gpu, labels in self.history.all(GPU, instance.partition("/")[0])
            if instance in labels.get("instances", "").split(",")
        ]

    def subjects(self, kind: int, instance: str) -> list[str]:
        """What of this kind the instance stands on."""
        if kind == GPU:
            return self.gpus(instance)
        return [instance] if kind == INSTANCE else [instance.partition("/")[0]]

    def peers_of(self, sign: Sign) -> list[Movement]:
        """The same signal of the healthy peers that do not share the subject."""
        mine = self.subjects(sign.kind, self.instance)
        others = [s for peer in self.peers for s in self.subjects(sign.kind, peer) if s not in mine]
        found = [m.of(sign.signal) for m in map(self.movements, others) if m is not None]
        return [movement for movement in found if math.isfinite(movement.after)]

    def moved(self, sign: Sign, common: bool = False) -> tuple[Movements, Movement] | None:
        """The movement that this sign asks for, unless most healthy peers moved alike; with `common`, only if they did."""
        for subject in self.subjects(sign.kind, self.instance):
            movements = self.movements(subject)
            if movements is None or not sign.moved(movement := movements.of(sign.signal)):
                continue
            changes = [sign.change(peer) for peer in self.peers_of(sign)]
            alike = [change >= _ALIKE * sign.change(movement) for change in changes]
            if (bool(alike) and sum(alike) >= len(alike) / 2) == common:
                return movements, movement
        return None

    def evidence(
        self, sign: Sign, found: tuple[Movements, Movement], peers: Sequence[Movement] | None = None
    ) -> pb.Evidence:
        """The movement as evidence, beside that of the healthy peers unless others are given."""
        movements, movement = found
        beside = self.peers_of(sign) if peers is None else peers
        return evidence(movements, movement, sign.sparse, sign.scale(movement), beside)

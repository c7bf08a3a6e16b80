"""The state that policies see: arrays over the instances of one model, unknown is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.agent.wire.overrides import OVERRIDES_MAX

Vector = NDArray[np.float64]

INSTANCES_MAX = 10_000
"""Most instances that one actuator steers."""
_ADDRESSES_MAX = 16


@dataclass(frozen=True, slots=True)
class State:
    """All instances of one model, or one whose model is not known; each array float64 [instances] unless said otherwise."""

    model: str
    ids: tuple[str, ...]
    addresses: tuple[tuple[str, ...], ...]
    requests_per_second: Vector
    latency_seconds: Vector
    """Mean, from arrival to first byte."""
    error_ratio: Vector
    in_flight: Vector
    queue: Vector
    utilisation: Vector
    memory_bytes: Vector
    service_seconds: Vector
    """What a request takes by itself, without waiting; as the runtime tells."""
    workers: Vector
    """How many requests it works at together."""
    gpu_throttled: Vector
    """In [0, 1]: share of the last seconds in which heat, power or the hardware held its GPU's clock down."""
    gpu_memory_fault: Vector
    """1 while a bad memory row or page of its GPU waits for a reset, or could not be replaced."""
    gpu_xid: Vector
    """Code of the gravest XID that stands; 0 for none."""
    age_seconds: Vector
    score: Vector
    confidence: Vector
    """Of the first cause; NaN without an open incident."""
    degraded: NDArray[np.bool_]
    """Whether an open incident names the instance."""
    incidents: tuple[str, ...]
    """The open incident's id; "" without one."""
    mechanisms: tuple[str, ...]
    """The first cause's mechanism; "" without an open incident."""

    @property
    def group(self) -> tuple[str, str]:
        """Who is compared with whom: the model, or the one instance whose model is not known."""
        return self.model, "" if self.model else self.ids[0]

    def copy(self) -> State:
        """One that shares no array with this."""
        arrays: dict[str, Any] = {
            f.name: value.copy() for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)

    def __len__(self) -> int:
        return len(self.ids)


def check_fleet(fleet: pb.FleetState) -> None:
    """Raises Malformed when the fleet is too large, an instance has no usable or a second identity, or an override is no weight."""
    if len(fleet.instances) > INSTANCES_MAX:
        raise Malformed(f"instances: {len(fleet.instances)}; at most {INSTANCES_MAX}")
    ids = {i.id for i in fleet.instances}
    if len(ids) != len(fleet.instances) or "" in ids:
        raise Malformed("instances.id: one is empty or comes twice")
    if len(fleet.overrides) > OVERRIDES_MAX:
        raise Malformed(f"overrides: {len(fleet.overrides)}; at most {OVERRIDES_MAX}")
    for one in fleet.overrides:
        if not all(0 <= weight <= 1 for weight in (one.weight, *one.frozen.values())):
            raise Malformed(f"overrides[{one.target[:TEXT_MAX]}]: a weight is not in [0, 1]")
    for i in fleet.instances:
        if len(i.addresses) > _ADDRESSES_MAX or max(map(len, (i.id, i.model, i.incident, *i.addresses))) > TEXT_MAX:
            raise Malformed(f"instances: over {_ADDRESSES_MAX} addresses or a name over {TEXT_MAX} characters")


def by_model(instances: Sequence[pb.InstanceState], elapsed_seconds: float = 0.0) -> list[State]:
    """One state a model, models and instances in the order of their names. An instance without a model has no peers: it is alone.

    `elapsed_seconds` is the time since the collector said so; the instances' telemetry is that much older. Values that no
    measurement can have are unknown.
    """
    groups: dict[tuple[str, str], list[pb.InstanceState]] = {}
    for instance in sorted(instances, key=lambda i: i.id):
        groups.setdefault((instance.model, "" if instance.model else instance.id), []).append(instance)
    return [_state(group[0], groups[group], elapsed_seconds) for group in sorted(groups)]


def _state(model: str, group: Sequence[pb.InstanceState], elapsed_seconds: float) -> State:
    def column(name: str, highest: float = 1e15) -> Vector:
        values = np.asarray([getattr(i, name) for i in group], dtype=np.float64)
        return np.where((values >= 0) & (values <= highest), values, np.nan)

    return State(
        model=model,
        ids=tuple(i.id for i in group),
        addresses=tuple(tuple(i.addresses) for i in group),
        requests_per_second=column("requests_per_second"),
        latency_seconds=column("latency_mean_seconds"),
        error_ratio=column("error_ratio", 1),
        in_flight=column("in_flight"),
        queue=column("queue"),
        utilisation=column("utilisation"),
        memory_bytes=column("memory_bytes"),
        service_seconds=np.where((service := column("service_seconds")) > 0, service, np.nan),
        workers=column("workers"),
        gpu_throttled=column("gpu_throttled", 1),
        gpu_memory_fault=column("gpu_memory_fault", 1),
        gpu_xid=column("gpu_xid"),
        age_seconds=column("age_seconds") + elapsed_seconds,
        score=column("score", 1),
        confidence=column("confidence", 1),
        degraded=np.asarray([bool(i.incident) for i in group]),
        incidents=tuple(i.incident for i in group),
        mechanisms=tuple(i.mechanism[:TEXT_MAX] for i in group),
    )

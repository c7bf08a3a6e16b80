"""A second of a simulated fleet as policies and the guard see a real one."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.fleetsim.fleet import Tick
from trimtab.actuator.state import State, Vector

MODEL = "simulated"


def name_of(instance: int) -> str:
    """By which a policy knows it; names sort as numbers do."""
    return f"sim/{instance:04d}"


def state_of(tick: Tick) -> State:
    """The instances that have joined, in their order. An incident's id is its instance's name."""
    here = np.flatnonzero(tick.joined).tolist()
    mechanisms = tuple(tick.mechanisms[k] for k in here)
    degraded = np.asarray([bool(m) for m in mechanisms], dtype=bool)
    return State(
        model=MODEL,
        ids=tuple(name_of(k) for k in here),
        addresses=tuple((f"10.0.{k // 250}.{k % 250 + 1}:8080",) for k in here),
        requests_per_second=tick.requests_per_second[here],
        latency_seconds=tick.latency_seconds[here],
        error_ratio=tick.error_ratio[here],
        in_flight=tick.in_flight[here],
        queue=tick.queue[here],
        utilisation=tick.utilisation[here],
        memory_bytes=tick.memory_bytes[here],
        service_seconds=tick.service_seconds[here],
        workers=tick.workers[here],
        gpu_throttled=np.where(tick.announced[here], 1.0, 0.0),
        gpu_memory_fault=np.zeros(len(here)),
        gpu_xid=np.zeros(len(here)),
        age_seconds=tick.age_seconds[here],
        score=np.where(degraded | tick.announced[here], 1.0, 0.0),
        confidence=np.where(degraded, 1.0, np.nan),
        degraded=degraded,
        incidents=tuple(name_of(k) if m else "" for k, m in zip(here, mechanisms, strict=True)),
        mechanisms=mechanisms,
    )


def weights_of(tick: Tick, wished: Vector) -> Vector:
    """float64 [instances]: what was decided on `state_of(tick)`, with 1 for who has not joined yet."""
    weights = np.ones(len(tick.joined))
    weights[tick.joined] = wished
    return weights

"""What the learned policy sees: numbers that mean the same in every fleet, for each instance and for all together.

The published state (ARL-ML) is utilisation, queue, latency and model memory of each instance and the total rate R. Here each is told in
relation
to the fleet, so that what was learnt on one holds on another; and what trimtab alone knows is added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.policy.recent import STALE_SECONDS, Averages
from trimtab.actuator.state import State, Vector

Matrix = NDArray[np.float32]

NAMES = (
    "known", "utilisation", "queue", "latency", "memory", "rate",
    "service", "waiting", "in_flight", "capacity", "errors", "errors_now", "throttled", "gpu_fault",
    "score", "degraded", "confidence", "age", "weight", "proposal",
    "fleet_load", "fleet_size", "fleet_degraded", "fleet_trend",
)  # fmt: skip
"""The columns, in their order. What is unknown is 0, with 0 for `known` where it is the latency."""
HIGHEST = 5.0
"""No number is further from 0."""


@np.errstate(divide="ignore", invalid="ignore")  # what is 0 has no logarithm, and is as good as unknown
def encode(state: State, recent: Averages, slow: Averages, weight: Vector, proposal: Vector) -> Matrix:
    """float32 [instances, NAMES].

    `recent` and `slow` are averages of seconds and of a minute or so; `weight` what was wished for last, `proposal` what a rule would
    wish for.
    """
    capacity = recent.workers / recent.service_seconds
    total = recent.total_per_second
    of_all = float(np.nansum(capacity))
    columns: dict[str, Any] = {
        "known": np.isfinite(recent.latency_seconds) & (state.age_seconds <= STALE_SECONDS),
        "utilisation": np.clip(recent.utilisation, 0, 2),
        "queue": np.log1p(state.queue / recent.workers),
        "latency": _against(recent.latency_seconds),
        "memory": _against(state.memory_bytes),
        "rate": _share(recent.requests_per_second),
        "service": _against(recent.service_seconds),
        "waiting": np.log(recent.latency_seconds / recent.service_seconds),
        "in_flight": np.log1p(state.in_flight / recent.workers),
        "capacity": _share(capacity),
        "errors": slow.error_ratio,
        "errors_now": recent.error_ratio,
        "throttled": state.gpu_throttled,
        "gpu_fault": np.fmax(state.gpu_memory_fault, state.gpu_xid > 0),
        "score": state.score,
        "degraded": state.degraded,
        "confidence": state.confidence,
        "age": np.clip(state.age_seconds / STALE_SECONDS, 0, 2),
        "weight": weight,
        "proposal": proposal,
        "fleet_load": min(total / of_all, 2.0) if of_all > 0 else 0.0,
        "fleet_size": np.log(len(state)),
        "fleet_degraded": state.degraded.mean(),
        "fleet_trend": _trend(recent, slow),
    }
    out = np.stack([np.broadcast_to(np.asarray(columns[name], dtype=np.float64), len(state)) for name in NAMES], axis=1)
    found: Matrix = np.clip(np.nan_to_num(out, posinf=0, neginf=0), -HIGHEST, HIGHEST).astype(np.float32)
    return found


def _against(values: Vector) -> Vector:
    """The logarithm of the ratio to the fleet's median; NaN where nothing is known."""
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return np.full(len(values), np.nan)
    return np.asarray(np.log(values / np.median(known)))


def _share(values: Vector) -> Vector:
    """In relation to an equal share, less 1."""
    total = float(np.nansum(values))
    return values * np.count_nonzero(np.isfinite(values)) / total - 1 if total > 0 else np.full(len(values), np.nan)


def _trend(recent: Averages, slow: Averages) -> float:
    """Whether the total rate rises (positive) or falls."""
    now, before = float(np.nansum(recent.requests_per_second)), float(np.nansum(slow.requests_per_second))
    return float(np.log(now / before)) if now > 0 and before > 0 else 0.0

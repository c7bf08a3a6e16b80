"""The state of the fleet, as the actuator and the operator's command see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.decide import Verdicts
from trimtab.detector.features import Readings
from trimtab.detector.history import History
from trimtab.detector.incident import Open
from trimtab.detector.rows import Rows

_FIGURES = (
    "requests_per_second", "error_ratio", "in_flight", "queue", "utilisation", "memory_bytes", "age_seconds", "latency_mean_seconds",
    "service_seconds", "workers", "batch_size", "gpu_throttled", "gpu_memory_fault", "gpu_xid",
)  # fmt: skip
"""As the readings and the state have them."""
_LATENCIES = ("latency_p50_seconds", "latency_p95_seconds", "latency_p99_seconds")


def state(
    history: History,
    rows: Rows,
    readings: Readings,
    verdicts: Verdicts,
    incidents: Mapping[str, Open],
    now_unix_ns: int,
) -> pb.FleetState:
    """Every instance that is known, in the order of their names."""
    out = pb.FleetState(unix_ns=now_unix_ns)
    names, figures, scores = _FIGURES + _LATENCIES, _figures(readings), verdicts.score.tolist()
    for instance, row in rows.row.items():
        entry = _incident(instance, row, rows, verdicts, incidents) if incidents else None
        cause = entry.incident.causes[0] if entry and entry.incident.causes else None
        out.instances.add(
            id=instance,
            node=rows.nodes[row],
            model=rows.models[row],
            addresses=_addresses(history.labels(instance).get("addresses", "")),
            incident=entry.incident.id if entry else "",
            mechanism=cause.mechanism if cause else "",
            confidence=cause.confidence if cause else math.nan,
            score=scores[row],
            **dict(zip(names, figures[row], strict=True)),
        )
    return out


def _figures(readings: Readings) -> list[list[float]]:
    """By row, in the order of `_FIGURES`, then the quantiles."""
    columns = [getattr(readings, name) for name in _FIGURES]
    figures: list[list[float]] = np.stack([*columns, *readings.quantiles], axis=1).tolist()
    return figures


@lru_cache(maxsize=65536)
def _addresses(label: str) -> tuple[str, ...]:
    return tuple(address for address in label.split(",") if address)


def _incident(instance: str, row: int, rows: Rows, verdicts: Verdicts, incidents: Mapping[str, Open]) -> Open | None:
    """The open incident of the instance, else that of its node or place for as long as the instance suffers from it."""
    own = incidents.get(instance)
    if own is not None or not np.any(verdicts.worse[row]):
        return own
    above = map(incidents.get, (rows.nodes[row], *rows.places(row)))
    return next((entry for entry in above if entry is not None), None)

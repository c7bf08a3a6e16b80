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
    "requests_per_second", "error_ratio", "in_flight", "queue", "utilisation", "workers", "memory_bytes", "age_seconds", "latency_mean",
)  # fmt: skip


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
    figures, scores = _figures(readings), verdicts.score.tolist()
    for instance, row in rows.row.items():
        entry = _incident(instance, row, rows, verdicts, incidents) if incidents else None
        cause = entry.incident.causes[0] if entry and entry.incident.causes else None
        rate, errors, in_flight, queue, utilisation, workers, memory, age, mean, p50, p95, p99 = figures[row]
        out.instances.add(
            id=instance,
            node=rows.nodes[row],
            model=rows.models[row],
            addresses=_addresses(history.labels(instance).get("addresses", "")),
            incident=entry.incident.id if entry else "",
            mechanism=cause.mechanism if cause else "",
            confidence=cause.confidence if cause else math.nan,
            score=scores[row],
            requests_per_second=rate,
            error_ratio=errors,
            in_flight=in_flight,
            queue=queue,
            utilisation=utilisation,
            workers=workers,
            memory_bytes=memory,
            age_seconds=age,
            latency_mean_seconds=mean,
            latency_p50_seconds=p50,
            latency_p95_seconds=p95,
            latency_p99_seconds=p99,
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

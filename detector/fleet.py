"""The state of the fleet, as the actuator and the operator's command see it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.decide import Verdicts
from trimtab.detector.features import Readings
from trimtab.detector.history import History
from trimtab.detector.incident import Open
from trimtab.detector.rows import Rows


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
    for instance, row in sorted(rows.row.items()):
        entry = _incident(instance, row, rows, verdicts, incidents)
        cause = entry.incident.causes[0] if entry and entry.incident.causes else None
        addresses = history.labels(instance).get("addresses", "")
        out.instances.add(
            id=instance,
            node=rows.nodes[row],
            model=rows.models[row],
            addresses=[address for address in addresses.split(",") if address],
            incident=entry.incident.id if entry else "",
            mechanism=cause.mechanism if cause else "",
            confidence=cause.confidence if cause else math.nan,
            score=float(verdicts.score[row]),
            **_figures(readings, row),
        )
    return out


def _figures(readings: Readings, row: int) -> dict[str, float]:
    quantiles = dict(zip(("p50", "p95", "p99"), readings.quantiles[:, row].tolist(), strict=True))
    names = ("requests_per_second", "error_ratio", "in_flight", "queue", "utilisation", "memory_bytes", "age_seconds")
    figures = {name: float(getattr(readings, name)[row]) for name in names}
    latency = {f"latency_{name}_seconds": value for name, value in quantiles.items()}
    return figures | latency | {"latency_mean_seconds": float(readings.latency_mean[row])}


def _incident(instance: str, row: int, rows: Rows, verdicts: Verdicts, incidents: Mapping[str, Open]) -> Open | None:
    """The open incident of the instance, else that of its node for as long as the instance suffers from it."""
    own = incidents.get(instance)
    of_node = incidents.get(rows.nodes[row])
    return own or (of_node if of_node and np.any(verdicts.worse[row]) else None)

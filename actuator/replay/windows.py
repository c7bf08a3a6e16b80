"""The windows of some instances out of the store, and what they tell of each second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from trimtab import TrimtabError
from trimtab.actuator.replay import seconds as grid
from trimtab.actuator.replay.recording import Incident, Latencies
from trimtab.actuator.state import Vector
from trimtab.collector.offline import Ask
from trimtab.collector.packed import unpack

SIGNALS = (
    "requests_per_second",
    "requests_aborted_per_second",
    "errors_per_second",
    "request_errors_per_second",
    "predictions_per_second",
    "inference_latency_seconds",
    "queue_latency_seconds",
    "requests_in_flight",
    "queue_depth",
    "workers_ready",
    "queue_max",
    "batch_size_max",
    "batch_delay_max_seconds",
)
_SKETCHED = ("request_latency_count", "request_latency_mean")
_BLOB = "request_latency_sketch"
LIMITS = {"queue_max": "queue_max", "batch_max": "batch_size_max", "batch_delay_seconds": "batch_delay_max_seconds"}
_GAUGES = {"in_flight": "requests_in_flight", "queue": "queue_depth", "workers": "workers_ready"}
INSTANCES_AT_ONCE = 20
"""An answer has a limit of bytes."""
# A row for each minute of an instance: a question has a limit of rows.
_WINDOWS = """
SELECT s.id, list(epoch_us(f.start) - {origin} ORDER BY f.start), list(w.duration_seconds ORDER BY f.start), {columns}
FROM samples_instance f JOIN subjects s USING (subject) JOIN windows w ON w.node = s.node AND w.start = f.start
WHERE s.id IN ({instances}) AND f.start >= make_timestamp({origin}) AND f.start < make_timestamp({end})
  AND w.start >= make_timestamp({origin}) AND w.start < make_timestamp({end})
GROUP BY s.id, date_trunc('minute', f.start) ORDER BY s.id, date_trunc('minute', f.start)
"""


def text(value: str) -> str:
    """As SQL has it."""
    return "'" + value.replace("'", "''") + "'"


def windows_of(
    ask: Ask, incident: Incident, peers: Mapping[str, bool], origin_us: int, end_us: int
) -> dict[str, dict[str, Any]]:
    """By instance, then by column: what each window told, in the order of time. `peers`: whether the incident is about each instance.

    Raises TrimtabError when nothing is there of them.
    """
    there = {(name, form) for name, form in ask("SELECT name, form FROM series WHERE kind = 'instance'")}
    if ("request_latency", "sketch") not in there:
        remedy = "the agents' request probes must run (docs/ebpf.md)"
        raise TrimtabError(f"incident {incident.id}: no request latencies are stored: {remedy}")
    wanted = [name for name in SIGNALS if any(name == n for n, _ in there)]
    names = ["starts", "durations", *wanted, *_SKETCHED, _BLOB]
    cells = [f"list(f.{name} ORDER BY f.start)" for name in (*wanted, *_SKETCHED)]
    cells.append(f"list(hex(f.{_BLOB}) ORDER BY f.start)")
    columns, every = ", ".join(cells), list(peers)
    rows: list[list[Any]] = []
    for at in range(0, len(every), INSTANCES_AT_ONCE):
        some = ", ".join(map(text, every[at : at + INSTANCES_AT_ONCE]))
        rows += ask(_WINDOWS.format(columns=columns, instances=some, origin=origin_us, end=end_us))
    out: dict[str, dict[str, Any]] = {}
    for instance, *lists in rows:
        one = out.setdefault(instance, {name: [] for name in names})
        for name, values in zip(names, lists, strict=True):
            one[name] += values
    if not any(peers[name] for name in out):
        remedy = "windows are kept for collector.keep_raw_hours"
        raise TrimtabError(f"incident {incident.id}: no window of its time is stored any more: {remedy}")
    for one in out.values():
        for name in names:
            if name != _BLOB:
                one[name] = np.asarray([np.nan if v is None else v for v in one[name]], dtype=np.float64)
        one["starts"] /= 1e6
    return out


def columns_of(window: Mapping[str, Any], seconds: int) -> dict[str, Vector]:
    """Of one instance, by the name of the recording's matrix: float64 [seconds]."""
    starts, durations = window["starts"], window["durations"]
    unknown = np.full(len(starts), np.nan)

    def told(name: str) -> Vector:
        return np.asarray(window.get(name, unknown), dtype=np.float64)

    def total(values: Vector) -> Vector:
        return grid.sums(starts, durations, values, seconds)

    def mean(values: Vector, counts: Vector) -> Vector:
        """Weighted by how many each window's mean is of."""
        weight = np.where(np.isfinite(values) & (counts > 0), counts, 0)
        over, under = total(np.nan_to_num(values) * weight), total(weight)
        found: Vector = np.divide(over, under, out=np.full(seconds, np.nan), where=under > 0)
        return found

    requests = np.where(
        np.isnan(told("requests_per_second")), told("predictions_per_second"), told("requests_per_second")
    )
    errors = np.fmax(told("errors_per_second"), told("request_errors_per_second"))
    predictions = np.where(np.isnan(told("predictions_per_second")), requests, told("predictions_per_second"))
    return {
        "requests": total(requests * durations),
        "aborted": total(told("requests_aborted_per_second") * durations),
        "errors": total(errors * durations),
        "latency_seconds": mean(told("request_latency_mean"), told("request_latency_count")),
        "service_seconds": mean(told("inference_latency_seconds"), predictions * durations),
        "queue_seconds": mean(told("queue_latency_seconds"), predictions * durations),
        **{to: grid.gauges(starts, durations, told(of), seconds) for to, of in _GAUGES.items()},
    }


def constant(instances: Sequence[str], windows: Mapping[str, Mapping[str, Any]], name: str) -> Vector:
    """float64 [instances]: the median of a gauge that is a setting; NaN where it is not told."""
    out = np.full(len(instances), np.nan)
    for k, instance in enumerate(instances):
        told = windows[instance].get(name, np.empty(0))
        if np.isfinite(told).any():
            out[k] = np.nanmedian(told)
    return out


def latencies(instances: Sequence[str], windows: Mapping[str, Mapping[str, Any]]) -> Latencies:
    """All sketches of all of them. Raises ValueError for bytes that are no sketch."""
    seconds, owners, blobs = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], []
    for k, name in enumerate(instances):
        one = windows[name]
        here = np.flatnonzero([blob is not None for blob in one[_BLOB]])
        seconds.append(grid.second_of(one["starts"][here], one["durations"][here]))
        owners.append(np.full(len(here), k))
        blobs += [bytes.fromhex(one[_BLOB][at]) for at in here.tolist()]
    return Latencies(np.concatenate(seconds), np.concatenate(owners), unpack(pa.array(blobs, type=pa.binary())))

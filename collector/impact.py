"""What an incident did to users: how many requests were slower than usual or failed since the onset, and how much latency it added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS, Sketch, merge
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.distribution import merged
from trimtab.collector.marks import RAW_FROM, read
from trimtab.collector.scope import utc
from trimtab.collector.store import Connection

BEFORE_SECONDS = 600.0
"""How long before the onset shows what is usual."""
_SIGNAL = "request_latency"
_RATES = ("errors_per_second", "request_errors_per_second", "requests_per_second", "predictions_per_second")
_KNOWN = "SELECT column_name FROM duckdb_columns() WHERE table_name = 'samples_instance_0'"
_COUNTED = """
SELECT sum(greatest({errors_per_second}, {request_errors_per_second}) * w.duration_seconds),
       sum(coalesce({requests_per_second}, {predictions_per_second}) * w.duration_seconds)
FROM samples_instance f JOIN subjects s USING (subject) JOIN windows w ON w.node = s.node AND w.start = f.start
WHERE f.subject IN (SELECT unnest($subjects::INTEGER[])) AND f.start >= $since AND f.start < $until
  AND w.start >= $since AND w.start < $until
"""


def impact(connection: Connection, subjects: Sequence[int], onset_unix_ns: int, until_unix_ns: int) -> pb.Impact | None:
    """Of these instances, `subjects` their rising numbers; None where the store has none of their requests. Raises StoreError."""
    before_unix_ns = onset_unix_ns - round(BEFORE_SECONDS * 1e9)
    before = _latencies(connection, subjects, before_unix_ns, onset_unix_ns)
    after = _latencies(connection, subjects, onset_unix_ns, until_unix_ns)
    errors, counted = _errors(connection, subjects, before_unix_ns, onset_unix_ns, until_unix_ns)
    requests = sum(one.count for one in after.values()) if after else counted
    if not before and not requests > 0:
        return None
    out = pb.Impact(
        before_unix_ns=before_unix_ns,
        until_unix_ns=until_unix_ns,
        instances=len(subjects),
        requests=requests,
        slow=_slow(before, after),
        errors=errors,
    )
    out.p50_before_seconds, out.p95_before_seconds = _quantiles(before)
    out.p50_after_seconds, out.p95_after_seconds = _quantiles(after)
    return out


def _latencies(
    connection: Connection, subjects: Sequence[int], since_unix_ns: int, until_unix_ns: int
) -> dict[int, Sketch]:
    """By instance: those that have any."""
    if _SIGNAL + "_sketch" not in _columns(connection):
        return {}
    found = merged(connection, _SIGNAL, subjects, utc(since_unix_ns), utc(until_unix_ns))
    out: dict[int, Sketch] = {}
    for number in np.unique(found.subjects).tolist():
        rows = np.flatnonzero(found.subjects == number).tolist()
        sketch = merge([Sketch(found.counts[r], float(found.sums[r]), float(found.probabilities[r])) for r in rows])
        if sketch.sampled:
            out[number] = sketch
    return out


def _slow(before: dict[int, Sketch], after: dict[int, Sketch]) -> float:
    """How many took longer than the 95th percentile of the same instance before, beyond the share that did so before."""
    known = [(before[number], after[number]) for number in before.keys() & after.keys()]
    if not known:
        return math.nan
    total = 0.0
    for usual, now in known:
        (limit,) = usual.quantiles_seconds((0.95,))
        beyond = limit < MIDDLES_SECONDS
        share = usual.counts[beyond].sum() / usual.sampled
        total += max(0.0, float(now.counts[beyond].sum() - share * now.sampled) / now.probability)
    return total


def _quantiles(sketches: dict[int, Sketch]) -> tuple[float, ...]:
    return merge(list(sketches.values())).quantiles_seconds((0.5, 0.95)) if sketches else (math.nan, math.nan)


def _errors(
    connection: Connection, subjects: Sequence[int], before_unix_ns: int, onset_unix_ns: int, until_unix_ns: int
) -> tuple[float, float]:
    """Errors since the onset beyond the usual share, and requests. NaN where windows are deleted: rollups know no durations."""
    if (read(connection, RAW_FROM) or 0) * 1000 > onset_unix_ns:
        return math.nan, math.nan
    usual, base = _counted(connection, subjects, before_unix_ns, onset_unix_ns)
    errors, requests = _counted(connection, subjects, onset_unix_ns, until_unix_ns)
    share = usual / base if usual > 0 and base > 0 else 0.0
    return (max(0.0, errors - share * requests) if math.isfinite(errors) else math.nan), requests


def _counted(
    connection: Connection, subjects: Sequence[int], since_unix_ns: int, until_unix_ns: int
) -> tuple[float, float]:
    """Errors and requests; NaN where nobody tells of them."""
    there = _columns(connection)
    statement = _COUNTED.format(**{name: f"f.{name}" if name in there else "NULL::DOUBLE" for name in _RATES})
    wanted = {"subjects": list(subjects), "since": utc(since_unix_ns), "until": utc(until_unix_ns)}
    [(errors, requests)] = connection.execute(statement, wanted).fetchall()
    return (math.nan if errors is None else errors), (math.nan if requests is None else requests)


def _columns(connection: Connection) -> set[Any]:
    return {name for (name,) in connection.execute(_KNOWN).fetchall()}

"""Latency of instances over time: the sketches of the store, merged when they are asked for, with the error that sampling left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trimtab.agent.clock import Clock
from trimtab.agent.sketch.loglinear import Sketch, merge
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import Malformed, check_name
from trimtab.collector.distribution import Merged, merged
from trimtab.collector.scope import WITHIN, parameters
from trimtab.collector.sql import QuestionError, limited
from trimtab.collector.store import Connection, Store

SIGNAL = "request_latency"
CONFIDENCE = 0.95
_DEVIATIONS = 1.96
SUBJECTS_AT_ONCE = 2048
"""So many are merged in one pass over the rows: 16 KiB of counts each."""
_SUBJECTS = f"SELECT i.subject, i.instance FROM instances i WHERE {WITHIN} ORDER BY i.subject"  # noqa: S608 - WITHIN is ours
_KNOWN = "SELECT 1 FROM series WHERE kind = 'instance' AND name = ? AND form = 'sketch'"


def latency(store: Store, request: pb.LatencyRequest, clock: Clock, seconds_max: float) -> pb.LatencyReply:
    """The answer. Raises QuestionError for what cannot be asked or takes too long, and StoreError."""
    signal = request.signal or SIGNAL
    wanted = parameters(request, clock)
    try:
        check_name("signal", signal)
    except Malformed as error:
        raise QuestionError(str(error)) from error
    reply = pb.LatencyReply(confidence=CONFIDENCE)
    fleet: list[Sketch] = []
    with store.reading() as connection, limited(connection, seconds_max) as expired:
        if not connection.execute(_KNOWN, [signal]).fetchall():
            return reply
        subjects = connection.execute(_SUBJECTS, wanted.scope).fetchall()
        for at in range(0, len(subjects), SUBJECTS_AT_ONCE):
            some = dict(subjects[at : at + SUBJECTS_AT_ONCE])
            for number, sketches in _pass(connection, signal, list(some), wanted.since):
                if expired.is_set():
                    raise QuestionError("")
                if not request.fleet_only:
                    reply.instances.append(_told(some[number], merge(sketches)))
                fleet += sketches
    reply.instances.sort(key=lambda one: one.instance)
    if fleet:
        reply.all.CopyFrom(_told("", merge(_of_equal_probability(fleet))))
    return reply


def _pass(
    connection: Connection, signal: str, subjects: Sequence[int], since: Any
) -> Iterator[tuple[int, list[Sketch]]]:
    found = merged(connection, signal, subjects, since)
    for number in np.unique(found.subjects).tolist():
        yield number, _sketches(found, np.flatnonzero(found.subjects == number).tolist())


def _sketches(found: Merged, rows: Sequence[int]) -> list[Sketch]:
    """One for each probability."""
    return [Sketch(found.counts[row], float(found.sums[row]), float(found.probabilities[row])) for row in rows]


def _of_equal_probability(sketches: Sequence[Sketch]) -> list[Sketch]:
    """Merged as far as it is exact: a sum of counts."""
    by: dict[float, list[Sketch]] = {}
    for sketch in sketches:
        by.setdefault(sketch.probability, []).append(sketch)
    return [
        Sketch(np.sum([s.counts for s in some], axis=0), sum(s.sum_seconds for s in some), probability)
        for probability, some in by.items()
    ]


def _told(instance: str, sketch: Sketch) -> pb.InstanceLatency:
    error = _DEVIATIONS * sketch.count_error
    count = pb.Estimate(value=sketch.count, low=max(0.0, sketch.count - error), high=sketch.count + error)
    quantiles = {f"p{q}_seconds": _quantile(sketch, q / 100) for q in (50, 95, 99)}
    return pb.InstanceLatency(instance=instance, count=count, mean_seconds=sketch.mean_seconds, **quantiles)


def _quantile(sketch: Sketch, q: float) -> pb.Estimate:
    (value,) = sketch.quantiles_seconds((q,))
    low, high = sketch.quantile_bounds_seconds(q, CONFIDENCE)
    return pb.Estimate(value=value, low=low, high=high)

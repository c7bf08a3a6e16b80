"""Latency of instances over time: the sketches of the store, merged when they are asked for, with the error that sampling left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from trimtab.agent.clock import Clock
from trimtab.agent.sketch.loglinear import BUCKETS, Sketch, merge
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.scope import WITHIN, parameters
from trimtab.collector.sql import limited
from trimtab.collector.store import Store

SIGNAL = "request_latency"
CONFIDENCE = 0.95
_DEVIATIONS = 1.96
_FETCH_ROWS = 4096
# Sketches of equal probability are merged in the database: what comes back is as large for a week as for a minute.
_FIND = f"""
WITH found AS (
    SELECT t.subject, t.probability, t.sum_seconds, t.buckets, t.counts
    FROM sketches t LEFT JOIN instances i ON i.instance = t.subject WHERE t.series = $signal AND {WITHIN}
), cells AS (
    SELECT subject, probability, unnest(buckets) AS bucket, unnest(counts) AS count FROM found
), sums AS (SELECT subject, probability, sum(sum_seconds) AS seconds FROM found GROUP BY ALL)
SELECT subject, probability, any_value(seconds), bucket, sum(count)::BIGINT
FROM cells JOIN sums USING (subject, probability) GROUP BY subject, probability, bucket ORDER BY subject, probability
"""  # noqa: S608 - WITHIN is ours
_Row = tuple[str, float, float, int, int]


def latency(store: Store, request: pb.LatencyRequest, clock: Clock, seconds_max: float) -> pb.LatencyReply:
    """The answer. Raises QuestionError for what cannot be asked or takes too long, and StoreError."""
    wanted = {**parameters(request, clock), "signal": request.signal or SIGNAL}
    with store.reading() as connection, limited(connection, seconds_max):
        connection.execute(_FIND, wanted)
        rows = (row for chunk in iter(lambda: connection.fetchmany(_FETCH_ROWS), []) for row in chunk)
        found = [_instance(subject, merge(list(_sketches(of)))) for subject, of in groupby(rows, key=itemgetter(0))]
    return pb.LatencyReply(instances=found, confidence=CONFIDENCE)


def _sketches(rows: Iterable[_Row]) -> Iterator[Sketch]:
    """One for each probability."""
    for (probability, seconds), cells in groupby(rows, key=itemgetter(1, 2)):
        counts = np.zeros(BUCKETS, dtype=np.int64)
        for *_, bucket, count in cells:
            counts[bucket] = count
        yield Sketch(counts, seconds, probability)


def _instance(subject: str, sketch: Sketch) -> pb.InstanceLatency:
    error = _DEVIATIONS * sketch.count_error
    count = pb.Estimate(value=sketch.count, low=max(0.0, sketch.count - error), high=sketch.count + error)
    quantiles = {f"p{q}_seconds": _quantile(sketch, q / 100) for q in (50, 95, 99)}
    return pb.InstanceLatency(instance=subject, count=count, mean_seconds=sketch.mean_seconds, **quantiles)


def _quantile(sketch: Sketch, q: float) -> pb.Estimate:
    (value,) = sketch.quantiles_seconds((q,))
    low, high = sketch.quantile_bounds_seconds(q, CONFIDENCE)
    return pb.Estimate(value=value, low=low, high=high)

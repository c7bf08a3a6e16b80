"""Which workers of a distributed job are degraded, by the judge of the service: a step's time is a request's latency."""

from __future__ import annotations

import numpy as np

from tests.bench.published import Job
from trimtab.detector.decide import Judge
from trimtab.detector.features import FLOATS, Readings
from trimtab.detector.settings import DetectorSettings

_REQUESTS = 100.0


def stragglers(job: Job) -> tuple[str, ...]:
    """Those that the judge would open an incident for, in the order of their names. All are peers, each on a node of its own."""
    judge, count = Judge(DetectorSettings()), len(job.workers)
    judge.resize(count)
    groups, nodes = np.zeros(count, dtype=np.int64), np.arange(count)
    ill = np.zeros(count, dtype=np.bool_)
    for row, durations in enumerate(job.durations):
        readings = _readings(job, row, durations)
        verdicts = judge.judge(readings, groups, nodes)
        ill |= verdicts.opens
        judge.learn(readings, groups, verdicts, ill, ill)
    return tuple(worker for worker, is_ill in zip(job.workers, ill, strict=True) if is_ill)


def _readings(job: Job, row: int, durations: np.ndarray) -> Readings:
    count = len(durations)
    values = {name: np.full(count, np.nan, dtype=np.float32) for name in FLOATS}
    log = np.log(durations).astype(np.float32)
    values |= {"latency_log": log, "latency_log_newest": log, "tail_log_newest": log}
    values |= {
        "age_seconds": np.zeros(count, dtype=np.float32),
        "slot_seconds": np.full(count, job.step_seconds, dtype=np.float32),
        "requests": np.full(count, _REQUESTS, dtype=np.float32),
        "errors": np.zeros(count, dtype=np.float32),
        "errors_recent": np.zeros(count, dtype=np.float32),
        "error_ratio": np.zeros(count, dtype=np.float32),
    }
    known = ~np.isnan(durations)
    return Readings(
        ids=job.workers,
        newest=np.where(known, row, -1),
        dead=np.zeros(count, dtype=np.bool_),
        silent=np.zeros(count, dtype=np.bool_),
        served=np.ones(count, dtype=np.bool_),
        quantiles=np.tile(durations.astype(np.float32), (3, 1)),
        **values,
    )

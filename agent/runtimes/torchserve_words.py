"""What TorchServe counts and how it describes its models, in trimtab's words."""

from __future__ import annotations

import re
from collections import Counter

from trimtab.agent.runtimes.process import resident_bytes
from trimtab.agent.runtimes.prometheus import Exposition
from trimtab.agent.runtimes.torchserve_models import Description, ModelVersion, ModelWorker
from trimtab.agent.runtimes.vocabulary import (
    SCORE_BINS,
    Capacity,
    Errors,
    Latency,
    Model,
    Scrape,
    Spent,
    Vitals,
    Worker,
)

REQUESTS = "ts_inference_requests_total"
WHOLE_US = "ts_inference_latency_microseconds"
"""With the queue, whatever its name says."""
QUEUE_US = "ts_queue_latency_microseconds"
CLIENT_ERRORS, SERVER_ERRORS = "Requests4XX", "Requests5XX"
PREDICTIONS = "trimtab_predictions_total"
"""What a handler may count of its own: predictions by bin of their score (docs/runtimes.md)."""
NAMES = (REQUESTS, WHOLE_US, QUEUE_US, CLIENT_ERRORS, SERVER_ERRORS, PREDICTIONS)
UNNAMED_VERSION = "default"
"""The version by which a request is counted that named none."""
MICROSECONDS, MILLISECONDS = 1e6, 1e3
GPU = re.compile(r"gpuId::([0-9]{1,4})\b")
STALE_SECONDS = 1.5
"""What waited longer ago than this says nothing of now."""


def told(counted: Exposition, description: Description | None, now: float) -> Scrape:
    """At `now`, in monotonic seconds. Raises ValueError."""
    errors = Errors(counted.total(SERVER_ERRORS), counted.total(CLIENT_ERRORS))
    if description is None:
        return Scrape(Vitals(latency=_latency(counted), errors=errors))
    age = now - description.at
    models = tuple(_model(counted, description, version, age) for version in description.versions)
    waiting = [model.vitals.queue_depth for model in models]
    batches = [model.vitals.capacity.batch_size_max for model in models]
    whole = Vitals(
        queue_depth=None if None in waiting else sum(depth or 0 for depth in waiting),
        latency=_latency(counted),
        errors=errors,
        workers=tuple(worker for model in models for worker in model.vitals.workers or ()),
        # Of several models the one that batches most.
        capacity=Capacity(batch_size_max=None if None in batches else max((b or 0 for b in batches), default=None)),
        age_seconds=age,
    )
    return Scrape(whole, models)


def _model(counted: Exposition, description: Description, version: ModelVersion, age_seconds: float) -> Model:
    alone = Counter(each.model_name for each in description.versions)[version.model_name] == 1
    waiting, room = version.job_queue_status.pending_requests, version.job_queue_status.remaining_capacity
    delay = version.max_batch_delay
    vitals = Vitals(
        queue_depth=waiting if age_seconds < STALE_SECONDS else None,
        latency=_model_latency(counted, version, alone),
        workers=tuple(_worker(description, version, worker) for worker in version.workers),
        capacity=Capacity(
            workers_min=version.min_workers,
            workers_max=version.max_workers,
            queue_max=None if room is None else waiting + room,
            batch_size_max=version.batch_size,
            batch_delay_seconds_max=None if delay is None else delay / MILLISECONDS,
        ),
        predictions=_predictions(counted, version, alone),
        age_seconds=age_seconds,
    )
    return Model(version.model_name, version.model_version, vitals)


def _predictions(counted: Exposition, version: ModelVersion, alone: bool) -> tuple[float, ...] | None:
    """Of several versions only those are known that name theirs."""
    labels = {"ModelName": version.model_name} | ({} if alone else {"ModelVersion": version.model_version})
    totals = tuple(counted.total(PREDICTIONS, Bin=str(k), **labels) or 0.0 for k in range(SCORE_BINS))
    return totals if any(totals) else None


def _model_latency(counted: Exposition, version: ModelVersion, alone: bool) -> Latency:
    """Of several versions none can be known while some requests name none."""
    name = version.model_name
    if alone:
        return _latency(counted, model_name=name)
    if counted.total(REQUESTS, model_name=name, model_version=UNNAMED_VERSION):
        return Latency()
    return _latency(counted, model_name=name, model_version=version.model_version)


def _latency(counted: Exposition, **labels: str) -> Latency:
    requests, whole = counted.total(REQUESTS, **labels), counted.total(WHOLE_US, **labels)
    queue = counted.total(QUEUE_US, **labels)
    if requests is None or whole is None or queue is None:
        return Latency(requests)
    return Latency(
        requests,
        inference=Spent(max(0.0, whole - queue) / MICROSECONDS, requests),
        queue=Spent(queue / MICROSECONDS, requests),
    )


def _worker(description: Description, version: ModelVersion, worker: ModelWorker) -> Worker:
    pid = description.pids.get(worker.pid)
    resident = resident_bytes(pid) if pid is not None else None
    gone = pid is not None and resident is None
    gpu = GPU.search(worker.gpu_usage)
    return Worker(
        id=f"{version.model_name}/{version.model_version}/{worker.id}",
        pid=worker.pid if worker.pid > 0 else None,
        ready=worker.status == "READY" and not gone,
        model=version.model_name,
        version=version.model_version,
        # TorchServe's own figure is 0 until it has been measured, which is once a minute at most.
        memory_bytes=resident if pid is not None else worker.memory_usage or None,
        device=(f"gpu {gpu[1]}" if gpu else "gpu") if worker.gpu else "cpu",
    )

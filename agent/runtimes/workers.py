"""The workers of one instance from window to window: how many are ready, which were replaced, and what memory each holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from trimtab.agent.registry import Instance, Kind, Reading, Signal
from trimtab.agent.runtimes.report import named
from trimtab.agent.runtimes.vocabulary import Model, Worker
from trimtab.agent.wire.columns import TEXT_MAX

WORKERS_MAX = 64
"""Workers of one instance that are subjects of their own."""


def signals(kind: Kind) -> tuple[Signal, ...]:
    """What `Workers` reports of an instance or a model."""
    return (
        Signal("workers_ready", "1", "workers that can take a request", kind),
        Signal("workers_total", "1", "workers that there should be", kind),
        Signal("worker_restarts_per_second", "1/s", "workers that were replaced by a new process", kind, rate=True),
    )


SIGNALS = (
    Signal("worker_ready", "1", "1: it can take a request; 0: it cannot", "worker"),
    Signal("worker_restarts_per_second", "1/s", "how often it was replaced by a new process", "worker", rate=True),
    Signal("worker_memory_resident_bytes", "bytes", "resident memory of the process that the runtime names", "worker"),
)


class Workers:
    """Knows them by id."""

    def __init__(self) -> None:
        self._known: dict[str, Worker] = {}
        """Each with the last process it is known to have had."""
        self._dead: dict[str, int] = {}
        """By worker, the last process whose death was reported."""

    def report(
        self, reading: Reading, instance: Instance, workers: tuple[Worker, ...], models: tuple[Model, ...]
    ) -> None:
        """`workers` are all of the instance, `models` those that are subjects of their own."""
        before = self._known
        restarts = self._follow(reading, instance, workers)
        _count(reading, "instance", instance.id, workers, restarts if before else None)
        for subject, model in named(instance, models).items():
            if model.vitals.workers is not None:
                of_known = restarts if any(worker.id in before for worker in model.vitals.workers) else None
                _count(reading, "model", subject, model.vitals.workers, of_known)
        for worker in workers[:WORKERS_MAX]:
            subject = f"{instance.id}/{worker.id}"
            if len(subject) > TEXT_MAX:
                continue
            reading.set("worker", subject, "worker_ready", worker.ready)
            reading.set("worker", subject, "worker_memory_resident_bytes", worker.memory_bytes)
            if worker.id in before:
                reading.set("worker", subject, "worker_restarts_per_second", restarts[worker.id] / reading.seconds)
            labels = {"model": worker.model, "version": worker.version, "device": worker.device}
            reading.label("worker", subject, instance=instance.id, **{k: v for k, v in labels.items() if v})

    def _follow(self, reading: Reading, instance: Instance, workers: tuple[Worker, ...]) -> Counter[str]:
        """By id, how often it was replaced since the last window."""
        restarts: Counter[str] = Counter()
        before, self._known = self._known, {}
        for worker in workers:
            was = before.get(worker.id, worker)
            now = self._known[worker.id] = replace(worker, pid=worker.pid or was.pid)
            replaced = was.pid is not None and now.pid != was.pid
            restarts[worker.id] += replaced
            # Its runtime first says that the worker is gone and then names the next one, or only the latter.
            if (replaced or (was.ready and not now.ready)) and was.pid and self._dead.get(worker.id) != was.pid:
                self._dead[worker.id] = was.pid
                reading.event("instance", instance.id, "worker_death", detail=f"{worker.id}, pid {was.pid}"[:TEXT_MAX])
        self._dead = {id_: pid for id_, pid in self._dead.items() if id_ in self._known}
        return restarts


def _count(
    reading: Reading, kind: Kind, subject: str, workers: Iterable[Worker], restarts: Counter[str] | None
) -> None:
    workers = tuple(workers)
    reading.set(kind, subject, "workers_ready", sum(worker.ready for worker in workers))
    reading.set(kind, subject, "workers_total", len(workers))
    if restarts is not None:
        rate = sum(restarts[worker.id] for worker in workers) / reading.seconds
        reading.set(kind, subject, "worker_restarts_per_second", rate)

"""What the serving runtime says of itself, asked over its own API: workers, queue, predictions, errors.

Cost: 1.2 ms a window for an instance with one model, and 2 to 9 ms in its Java. Where an instance falls silent, only that is known of it.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from trimtab.agent.counters import Rise
from trimtab.agent.instances import known_runtimes
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.runtimes.base import NoAnswer, Vitals, Worker
from trimtab.agent.wire.columns import TEXT_MAX

THREADS = 8
WAIT_SECONDS_MAX = 0.4
"""For all instances together."""
RATES = {
    "predictions": "predictions_per_second",
    "errors": "errors_per_second",
    "client_errors": "client_errors_per_second",
}
MEANS = {"inference_seconds": "inference_latency_seconds", "queue_seconds": "queue_latency_seconds"}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watched:
    """What is remembered of one instance."""

    started: tuple[int, float]
    asked: Future[Vitals] | None = None
    rise: Rise[str] = field(default_factory=Rise)
    workers: dict[str, Worker] = field(default_factory=dict)
    """By id, each with the last process it is known to have had."""
    dead: dict[str, int] = field(default_factory=dict)
    """By worker, the last process whose death was reported."""
    models: str = ""
    answers: bool = True


class Serving:
    """Asks all instances at once, so that one that hangs delays no other."""

    name = "serving"
    signals = (
        Signal("runtime_answers", "1", "1: its own API answers in time; 0: it does not", "instance"),
        Signal("workers_ready", "1", "workers that can take a request", "instance"),
        Signal("workers_total", "1", "workers that there should be", "instance"),
        Signal(
            "worker_restarts_per_second", "1/s", "workers that were replaced by a new process", "instance", rate=True
        ),
        Signal("queue_depth", "1", "requests that wait for a worker", "instance"),
        Signal("predictions_per_second", "1/s", "predictions asked for", "instance", rate=True),
        Signal("inference_latency_seconds", "s", "mean time of a prediction, without the queue", "instance"),
        Signal("queue_latency_seconds", "s", "mean time of a prediction in the queue", "instance"),
        Signal("errors_per_second", "1/s", "answers 5xx", "instance", rate=True),
        Signal("client_errors_per_second", "1/s", "answers 4xx", "instance", rate=True),
    )

    def open(self, host: Host) -> None:
        self._runtimes = {runtime.name: runtime for runtime in known_runtimes()}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="serving")
        self._watched: dict[str, Watched] = {}

    def read(self, reading: Reading) -> None:
        self._watched = {instance.id: self._ask(instance) for instance in reading.instances}
        wait([watched.asked for watched in self._watched.values() if watched.asked], timeout=WAIT_SECONDS_MAX)
        for instance in reading.instances:
            watched = self._watched[instance.id]
            if watched.asked:
                self._report(reading, instance.id, watched, watched.asked)
            if watched.models:
                reading.label("instance", instance.id, model=watched.models)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, instance: Instance) -> Watched:
        started = (instance.pid, instance.started)
        watched = self._watched.get(instance.id)
        if watched is None or watched.started != started:
            watched = Watched(started)
        # One question at a time: an instance that hangs holds one thread, however long it hangs.
        if instance.urls and (watched.asked is None or watched.asked.done()):
            watched.asked = self._pool.submit(self._runtimes[instance.runtime].scrape, instance)
        return watched

    def _report(self, reading: Reading, instance_id: str, watched: Watched, asked: Future[Vitals]) -> None:
        try:
            vitals = asked.result(timeout=0)
        except (NoAnswer, TimeoutError) as error:
            if watched.answers:
                log.warning("%s: its API does not answer: %s", instance_id, error or "it takes too long")
            watched.answers = False
            watched.rise = Rise()  # what rises meanwhile is of no single window
            reading.set("instance", instance_id, "runtime_answers", 0)
            return
        watched.answers = True
        reading.set("instance", instance_id, "runtime_answers", 1)
        reading.set("instance", instance_id, "queue_depth", vitals.queue_depth)
        if vitals.models is not None:
            watched.models = ",".join(vitals.models)[:TEXT_MAX]
        _report_totals(reading, instance_id, watched, vitals)
        if vitals.workers is not None:
            _report_workers(reading, instance_id, watched, vitals.workers)


def _report_totals(reading: Reading, instance_id: str, watched: Watched, vitals: Vitals) -> None:
    totals = {name: getattr(vitals, name) for name in (*RATES, *MEANS)}
    rose = watched.rise.since({name: value for name, value in totals.items() if value is not None})
    for name, series in RATES.items():
        if name in rose:
            reading.set("instance", instance_id, series, rose[name] / reading.seconds)
    for name, series in MEANS.items():
        if name in rose and rose.get("predictions"):
            reading.set("instance", instance_id, series, rose[name] / rose["predictions"])


def _report_workers(reading: Reading, instance_id: str, watched: Watched, workers: tuple[Worker, ...]) -> None:
    reading.set("instance", instance_id, "workers_ready", sum(worker.ready for worker in workers))
    reading.set("instance", instance_id, "workers_total", len(workers))
    restarts = 0
    before, watched.workers = watched.workers, {}
    for worker in workers:
        was = before.get(worker.id, worker)
        now = Worker(worker.id, worker.pid or was.pid, worker.ready)
        watched.workers[worker.id] = now
        replaced = was.pid is not None and now.pid != was.pid
        restarts += replaced
        # Its runtime first says that the worker is gone and then names the next one, or only the latter.
        if (replaced or (was.ready and not now.ready)) and was.pid and watched.dead.get(worker.id) != was.pid:
            watched.dead[worker.id] = was.pid
            reading.event("instance", instance_id, "worker_death", detail=f"{worker.id}, pid {was.pid}"[:TEXT_MAX])
    watched.dead = {id_: pid for id_, pid in watched.dead.items() if id_ in watched.workers}
    if before:
        reading.set("instance", instance_id, "worker_restarts_per_second", restarts / reading.seconds)


COLLECTOR = Serving

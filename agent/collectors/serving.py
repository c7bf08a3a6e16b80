"""What the serving runtime says of itself, asked over its own API: requests, queue, errors, workers, and all that for each model.

Cost, sources and what is unknown of which runtime: docs/runtimes.md. Where an instance falls silent, only that is known of it.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait

from trimtab.agent.instances import INSTANCES_MAX, known_runtimes
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.runtimes import report, workers
from trimtab.agent.runtimes.base import NoAnswer, Runtime, Session
from trimtab.agent.runtimes.vocabulary import Scrape
from trimtab.agent.wire.columns import TEXT_MAX

THREADS = INSTANCES_MAX
"""One each, so that any number of them that hang delay no other; only as many are started as wait at once."""
WAIT_SECONDS_MAX = 0.4
"""For all instances together."""

log = logging.getLogger(__name__)


class Watched:
    """One instance, and what is remembered of it."""

    def __init__(self, instance: Instance, runtime: Runtime) -> None:
        self._runtime = runtime
        self.instance = instance
        self.session: Session = runtime.open(instance)
        self.asked: Future[Scrape] | None = None
        self.report = report.Report()
        self.workers = workers.Workers()
        self.models = ""
        self.answers = True

    def is_same(self, instance: Instance) -> bool:
        """Whether it is still the same process."""
        return (self.instance.pid, self.instance.started) == (instance.pid, instance.started)

    def ask(self, instance: Instance, pool: ThreadPoolExecutor) -> None:
        """One question at a time: an instance that hangs holds one thread, however long it hangs."""
        if self.asked is not None and not self.asked.done():
            return
        if instance != self.instance:  # it has new keys or addresses
            self.session.close()
            self.instance, self.session = instance, self._runtime.open(instance)
        self.asked = pool.submit(self.session.scrape)

    def close(self) -> None:
        """Once its last question has been answered."""
        if self.asked is None:
            self.session.close()
        else:
            self.asked.add_done_callback(lambda _: self.session.close())


class Serving:
    """Asks all instances at once, so that one that hangs delays no other."""

    name = "serving"
    signals = (
        Signal("runtime_answers", "1", "1: its own API answers in time; 0: it does not", "instance"),
        *workers.signals("instance"),
        *report.signals("instance"),
        *workers.signals("model"),
        *report.signals("model"),
        *workers.SIGNALS,
    )

    def open(self, host: Host) -> None:
        self._runtimes = {runtime.name: runtime for runtime in known_runtimes()}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="serving")
        self._watched: dict[str, Watched] = {}

    def read(self, reading: Reading) -> None:
        before, self._watched = self._watched, {}
        for instance in reading.instances:
            if instance.urls:
                self._watched[instance.id] = self._watch(before.pop(instance.id, None), instance)
        for gone in before.values():
            gone.close()
        wait([watched.asked for watched in self._watched.values() if watched.asked], timeout=WAIT_SECONDS_MAX)
        for watched in self._watched.values():
            _report(reading, watched)

    def close(self) -> None:
        for watched in self._watched.values():
            watched.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _watch(self, watched: Watched | None, instance: Instance) -> Watched:
        if watched is not None and not watched.is_same(instance):
            watched.close()
            watched = None
        watched = watched or Watched(instance, self._runtimes[instance.runtime])
        watched.ask(instance, self._pool)
        return watched


def _report(reading: Reading, watched: Watched) -> None:
    instance = watched.instance
    try:
        if watched.asked is None:
            return
        scrape = watched.asked.result(timeout=0)
    except (NoAnswer, TimeoutError) as error:
        if watched.answers:
            log.warning("%s: its API does not answer: %s", instance.id, error or "it takes too long")
        watched.answers = False
        watched.report = report.Report()  # what rises meanwhile is of no single window
        reading.set("instance", instance.id, "runtime_answers", 0)
    else:
        watched.answers = True
        reading.set("instance", instance.id, "runtime_answers", 1)
        if scrape.models is not None:
            watched.models = ",".join(sorted({model.name for model in scrape.models}))[:TEXT_MAX]
        watched.report.report(reading, instance, scrape)
        if scrape.whole.workers is not None:
            watched.workers.report(reading, instance, scrape.whole.workers, scrape.models or ())
    if watched.models:
        reading.label("instance", instance.id, model=watched.models)


COLLECTOR = Serving

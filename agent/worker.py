"""One collector in a thread of its own: opened, asked, left out when it is late, and its failures counted."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from trimtab.agent.collectors.own import Reads, Vitals
from trimtab.agent.registry import Collector, Host, Instance, Kind, Reading, Unavailable
from trimtab.agent.wire.columns import EVENTS_MAX
from trimtab.agent.wire.talkers import Talkers

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_AGAIN_SECONDS = 60.0
# Without this pause a collector that fails every other time would say so every other time.
_RECOVERED_SECONDS = 60.0
_REASONS_MAX = 8


class Lane:
    """A thread that does one job at a time. It is a daemon: a job that hangs cannot keep the agent from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do `job` after those before it."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 - whoever asks for the result gets it
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def _run(self) -> None:
        while True:
            self._jobs.get()()


class Worker:
    """Asks one collector, once a window, and never waits for it."""

    def __init__(self, collector: Collector, host: Host, vitals: Vitals) -> None:
        self.name = collector.name
        self._collector = collector
        self._host = host
        self._vitals = vitals
        self._reads = vitals.reads.setdefault(collector.name, Reads())
        self._lane = Lane(f"collector-{collector.name}")
        self._opened = False
        self._opening = False
        self._open_at = -math.inf
        self._read_at = math.nan
        self._answer: Future[Reading | None] | None = None
        self._events_late: list[tuple[Kind, str, str, float, str]] = []
        self._talkers_late: dict[tuple[Kind, str, str], Talkers] = {}
        self._said: set[str] = set()
        self._failed_at = -math.inf

    def ask(self, instances: Sequence[Instance]) -> Future[Reading | None] | None:
        """Start a reading, or the opening that must come first. None where it is busy, or not to be opened yet."""
        if self._answer is not None:
            if not self._answer.done():
                return None
            # It came after its window was closed. Its values are about a time that has passed; what happened, happened.
            late = self._settle()
            self._events_late = [*self._events_late, *(late.events if late else [])][:EVENTS_MAX]
            self._talkers_late |= late.talkers if late else {}
        now = self._host.clock.monotonic()
        self._opening = not self._opened
        if self._opened:
            self._answer = self._lane.submit(partial(self._read, instances))
        elif now >= self._open_at:
            self._open_at = now + OPEN_AGAIN_SECONDS
            self._answer = self._lane.submit(self._open)
        return self._answer

    def take(self) -> Reading | None:
        """The reading that was asked for, or None where it is unknown."""
        if self._answer is None:
            return None
        if not self._answer.done():
            if not self._opening:
                self._fail("it did not answer in time")
            elif self._host.clock.monotonic() >= self._open_at:
                self._fail("it is still not open")
            return None
        reading = self._settle()
        if reading is not None:
            self._reads.success = True
            reading.events.extend(self._events_late)
            reading.talkers = self._talkers_late | reading.talkers
            self._events_late, self._talkers_late = [], {}
        return reading

    def close(self) -> Future[None]:
        """Close the collector, after what it is doing now."""
        return self._lane.submit(self._close)

    def _settle(self) -> Reading | None:
        """What the answer is. A failure is counted, and said once."""
        assert self._answer is not None
        answer, self._answer = self._answer, None
        error = answer.exception()
        if error is None:
            if self._said and self._host.clock.monotonic() - self._failed_at > _RECOVERED_SECONDS:
                self._said.clear()
                log.info("collector %s works again", self.name)
            return answer.result()
        if isinstance(error, Unavailable) and self._opening:
            level = logging.WARNING if error.remedy else logging.INFO
            self._say("collector %s is not available: %s; its signals are unknown", str(error), level)
        else:
            self._fail(str(error) if isinstance(error, OSError | Unavailable) else f"{type(error).__name__}: {error}")
            log.debug("collector %s", self.name, exc_info=error)
        return None

    def _fail(self, reason: str) -> None:
        self._vitals.collector_failures += 1
        self._reads.failures += 1
        self._reads.success = False
        self._failed_at = self._host.clock.monotonic()
        self._say("collector %s failed: %s; its signals are unknown meanwhile", reason)

    def _say(self, text: str, reason: str, level: int = logging.WARNING) -> None:
        if reason not in self._said and len(self._said) < _REASONS_MAX:
            self._said.add(reason)
            log.log(level, text, self.name, reason)

    # What follows runs in the lane.

    def _open(self) -> None:
        self._collector.open(self._host)
        self._opened = self._reads.available = True

    def _read(self, instances: Sequence[Instance]) -> Reading:
        now = self._host.clock.monotonic()
        reading = Reading(instances, now - self._read_at)
        # A reading that fails midway leaves counters of unlike ages behind: the one after it counts as a first.
        self._read_at = math.nan
        try:
            self._collector.read(reading)
        finally:
            self._reads.last_seconds = self._host.clock.monotonic() - now
            self._reads.seconds += self._reads.last_seconds
            self._reads.count += 1
        self._read_at = now
        return reading

    def _close(self) -> None:
        if self._opened:
            self._collector.close()

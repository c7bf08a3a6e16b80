"""The agent's heartbeat: at every multiple of the window's length, by the wall clock, ask each collector and close a window."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from trimtab.agent.collectors.own import Vitals
from trimtab.agent.registry import Collector, Host, Instance, Reading
from trimtab.agent.window import Builder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.events import AGENT_STOPPED
from trimtab.agent.worker import Lane, Worker

log = logging.getLogger(__name__)

Keep = Callable[[pb.Schema, pb.Window], None]
"""Takes a closed window, which has no number yet."""
Find = Callable[[float], tuple[Instance, ...]]
"""The serving instances of this host, given the monotonic time."""

_SAY_AGAIN_SECONDS = 60.0
_MOMENT_SECONDS = 0.01


class Loop:
    """Owns timing, deadlines and the isolation of failures. A collector gets half a window; none waits for another."""

    def __init__(
        self,
        *,
        collectors: Sequence[Collector],
        find: Find,
        host: Host,
        window_seconds: float,
        builder: Builder,
        keep: Keep,
        vitals: Vitals,
    ) -> None:
        self._clock, self._node = host.clock, host.node
        self._window_ns = round(window_seconds * 1e9)
        self._builder = builder
        self._keep = keep
        self._vitals = vitals
        self._workers = [Worker(collector, host, vitals) for collector in collectors]
        self._find = find
        self._finder = Lane("instances")
        self._finding: Future[tuple[Instance, ...]] | None = None
        self._find_failed = False
        self._instances: tuple[Instance, ...] = ()
        self._closed_at_ns: int | None = None
        self._said_at = -_SAY_AGAIN_SECONDS

    def run(self, stop: threading.Event) -> None:
        """Close windows until `stop` is set."""
        opening = [answer for worker in self._workers if (answer := worker.ask(()))]
        self._wait([*opening, self._look_for_instances()], stop)
        end_ns = self._clock.unix_ns() // self._window_ns * self._window_ns
        while True:
            now_ns = self._clock.unix_ns()
            # On time, the next boundary is one window on. Else some were missed or the clock was set: take the next there is.
            on_time = -self._window_ns // 2 <= now_ns - end_ns < self._window_ns
            end_ns = end_ns + self._window_ns if on_time else (now_ns // self._window_ns + 1) * self._window_ns
            if self._clock.wait(stop, (end_ns - now_ns) / 1e9):
                return
            now_ns = self._clock.unix_ns()
            if abs(now_ns - end_ns) >= self._window_ns:  # suspended, or the clock was set, during the wait
                end_ns = now_ns // self._window_ns * self._window_ns
            self._close_window(end_ns, stop)

    def say_goodbye(self) -> None:
        """A last window, which says that the agent ends in order: its silence is no fault of the node."""
        reading = Reading(self._instances, math.nan)
        reading.event("node", self._node, AGENT_STOPPED)
        now_ns, boottime_ns = self._clock.unix_ns(), self._clock.boottime_ns()
        since_ns = now_ns % self._window_ns
        made = self._builder.build(
            {"": reading}, self._instances, now_ns - since_ns, max(0, boottime_ns - since_ns), self._window_ns
        )
        self._keep(*made)

    def close(self, seconds: float) -> None:
        """Close the collectors, for at most `seconds` together."""
        closing = {worker.close(): worker for worker in self._workers}
        done, hanging = wait(closing, timeout=seconds)
        for future in done:
            if error := future.exception():
                log.warning("collector %s: %s while it was closed", closing[future].name, error)
        for future in hanging:
            log.warning("collector %s did not close within %g s", closing[future].name, seconds)

    def _close_window(self, end_ns: int, stop: threading.Event) -> None:
        started = self._clock.monotonic()
        # Where the boundary was on the clock that never steps.
        end_boottime_ns = self._clock.boottime_ns() - (self._clock.unix_ns() - end_ns)
        self._count_skipped()
        self._take_instances()
        self._wait(self._ask_each(), stop)
        readings = {worker.name: reading for worker in self._workers if (reading := worker.take())}
        self._look_for_instances()
        window_ns = self._window_ns
        schema, window = self._builder.build(
            readings, self._instances, end_ns - window_ns, max(0, end_boottime_ns - window_ns), window_ns
        )
        self._keep(schema, window)
        self._vitals.windows_closed += 1
        self._vitals.events += len(window.events)
        self._vitals.window_seconds = self._clock.monotonic() - started

    def _ask_each(self) -> list[Future[Any]]:
        """Ask all, each given a moment to answer before the next: threads that run Python at once wait for its lock, which costs CPU."""
        moment = min(_MOMENT_SECONDS, self._window_ns / 4e9 / len(self._workers))
        answers = []
        for worker in self._workers:
            answer = worker.ask(self._instances)
            if answer is not None:
                answers.append(answer)
                with contextlib.suppress(TimeoutError):
                    answer.exception(moment)
        return answers

    def _wait(self, answers: Sequence[Future[Any]], stop: threading.Event) -> None:
        """Until all are there, half a window has passed, or `stop` is set."""
        slices = 20
        for _ in range(slices):
            if stop.is_set() or not wait(answers, timeout=self._window_ns / 2e9 / slices).not_done:
                return

    def _count_skipped(self) -> None:
        # By the clock that never steps: a wall clock that was set forward skipped nothing.
        now_ns = self._clock.boottime_ns()
        before_ns, self._closed_at_ns = self._closed_at_ns, now_ns
        skipped = 0 if before_ns is None else round((now_ns - before_ns) / self._window_ns) - 1
        if skipped > 0:
            self._vitals.windows_skipped += skipped
            if self._clock.monotonic() - self._said_at >= _SAY_AGAIN_SECONDS:
                self._said_at = self._clock.monotonic()
                log.warning("windows skipped: %d; this host was suspended or is overloaded", skipped)

    def _look_for_instances(self) -> Future[tuple[Instance, ...]]:
        if self._finding is None:
            self._finding = self._finder.submit(lambda: self._find(self._clock.monotonic()))
        return self._finding

    def _take_instances(self) -> None:
        """What was found since the last window; those known before where the search is slow or fails."""
        if self._finding is None or not self._finding.done():
            return
        finding, self._finding = self._finding, None
        error = finding.exception()
        if error is None:
            self._instances = finding.result()
        else:
            self._vitals.collector_failures += 1
            if not self._find_failed:
                log.warning("looking for serving instances failed: %s; those known before are kept", error)
        self._find_failed = error is not None

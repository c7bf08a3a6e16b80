"""Runs the analysis in a process of its own. Whatever becomes of that process, ingest does not wait for it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence

from trimtab.agent.clock import Clock
from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.collector.analysis import Apart, Journal
from trimtab.collector.analyst import PERIOD_SECONDS
from trimtab.collector.backlog import BYTES_MAX, Backlog, Turn
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.line import Garbled, frame, frames
from trimtab.collector.outcomes import Outcomes
from trimtab.collector.schemas import Schemas
from trimtab.collector.store import StoreError
from trimtab.collector.window import Window

log = logging.getLogger(__name__)

SILENT_SECONDS_MAX = 60.0
"""An analysis that answers no tick for longer hangs: it is ended, and a new one started."""
BACKOFF_SECONDS_MAX = 30.0
_HEALTHY_SECONDS = 60.0
_TAKE_SECONDS = 1.0
_PART_BYTES = 1 << 20
# For one that was told to end; it may be in the middle of a tick.
_END_SECONDS = 1.0


class AnalystApart:
    """As `trimtab.collector.analyst.Analyst`. Three threads: one ticks, one sends, one starts the process and hears it."""

    def __init__(
        self, apart: Apart, clock: Clock, fleet: FleetSlot, feed: IncidentFeed, backlog_bytes_max: int = BYTES_MAX
    ) -> None:
        self.restarts = 0
        """How often the process was started again."""
        self.process_id: int | None = None
        """Of the process that runs now."""
        self._apart, self._clock, self._fleet, self._feed = apart, clock, fleet, feed
        self._backlog = Backlog(backlog_bytes_max)
        self._line: socket.socket | None = None
        self._line_lock = threading.Lock()
        self._heard_at = 0.0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def left_out(self) -> int:
        """Windows that are stored, but that the analysis never saw because it was behind."""
        return self._backlog.left_out

    def start(self, journal: Journal) -> None:
        """Show the open incidents to the watchers, start the process, then call it each second."""
        for incident in reversed(journal.incidents()):
            self._feed.publish(incident)
        outcomes = Outcomes(journal, self._fleet, self._feed)
        self._threads = [
            threading.Thread(target=self._run, args=(outcomes,), name="analysis", daemon=True),
            threading.Thread(target=self._tick, name="analysis-ticks", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the process. What it has not told yet, the next one finds again."""
        self._stop.set()
        self._backlog.close()
        self._hang_up()
        for thread in self._threads:
            thread.join()

    def observe(self, windows: Sequence[Window]) -> None:
        """These windows are stored. Does not wait."""
        if windows:
            self._backlog.put(windows)

    def accept(self, incident: str) -> None:
        """What this incident tells of is meant to be so. Does not wait."""
        self._backlog.accept(incident)

    def _tick(self) -> None:
        while not self._clock.wait(self._stop, PERIOD_SECONDS):
            self._backlog.tick(self._clock.unix_ns())
            if self.process_id is not None and self._clock.monotonic() - self._heard_at > SILENT_SECONDS_MAX:
                log.error("the analysis has not answered for %.0f s", SILENT_SECONDS_MAX)
                self._hang_up()

    def _run(self, outcomes: Outcomes) -> None:
        backoff = 1.0
        while not self._stop.is_set():
            began = self._clock.monotonic()
            how = self._live(outcomes)
            if self._stop.is_set():
                return
            if self._clock.monotonic() - began > _HEALTHY_SECONDS:
                backoff = 1.0
            log.error("the analysis %s; windows are stored, and it is started again in %.0f s", how, backoff)
            if self._clock.wait(self._stop, backoff):
                return
            self.restarts += 1
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    def _live(self, outcomes: Outcomes) -> str:
        """One process from its start to its end; how it ended."""
        try:
            start = frame(wire.ToAnalysis(start=outcomes.start()))
            ours, theirs = socket.socketpair()
            with theirs:
                # One thread of OpenBLAS is enough for arrays as small as these.
                environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
                process = subprocess.Popen(  # noqa: S603 - our own command
                    self._apart.command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
        except (OSError, StoreError) as error:
            return f"cannot be started: {error}"
        with ours:
            self._heard_at = self._clock.monotonic()
            with self._line_lock:
                self._line, self.process_id = ours, process.pid
            if self._stop.is_set():
                self._hang_up()
            sender = threading.Thread(target=self._send, args=(ours, start), name="analysis-sender", daemon=True)
            sender.start()
            wrong = self._hear(ours, outcomes)
            with self._line_lock:
                self._line = self.process_id = None
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            code = _end(process)
            sender.join()
        return wrong or _how(code)

    def _send(self, line: socket.socket, start: bytes) -> None:
        """Hand over the backlog, for as long as the line stands."""
        schemas = Schemas()
        with contextlib.suppress(OSError):
            line.sendall(start)
            while line is self._line:
                turn = self._backlog.take(_TAKE_SECONDS)
                for part in _parts(turn, schemas) if turn else ():
                    line.sendall(part)

    def _hear(self, line: socket.socket, outcomes: Outcomes) -> str:
        """Take its outcomes until the line ends; what was wrong with them, or nothing."""
        try:
            for data in frames(line):
                self._heard_at = self._clock.monotonic()
                outcomes.take(data)
        except Garbled as error:
            return f"told nonsense: {error}"
        except OSError as error:
            return f"cannot be heard: {error}"
        return ""

    def _hang_up(self) -> None:
        with self._line_lock, contextlib.suppress(OSError):
            if self._line is not None:
                self._line.shutdown(socket.SHUT_RDWR)


def _parts(turn: Turn, schemas: Schemas) -> Iterator[bytes]:
    """The turn in large pieces: each goes out with a wait for the interpreter's lock, which the threads of ingest hold."""
    part = bytearray()
    for incident in turn.accepted:
        part += frame(wire.ToAnalysis(accepted=incident))
    for entry in turn.entries:
        if schemas.put(entry.node, entry.schema):
            part += frame(wire.ToAnalysis(schema=wire.NodeSchema(node=entry.node, schema=entry.schema)))
        part += entry.data
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    if turn.tick_unix_ns is not None:
        part += frame(wire.ToAnalysis(tick_unix_ns=turn.tick_unix_ns))
    yield bytes(part)


def _end(process: subprocess.Popen[bytes]) -> int:
    """It ends when its line does; one that hangs or stands still does not. Its exit code."""
    try:
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

"""The collector: store, writer, analysis and the two services, put together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import Clock
from trimtab.agent.settings import Tls, state_dir
from trimtab.agent.wire import channel
from trimtab.agent.wire.query_pb2_grpc import add_QueryServicer_to_server
from trimtab.agent.wire.telemetry_pb2_grpc import add_TelemetryServicer_to_server
from trimtab.collector.analysis import Analysis
from trimtab.collector.analyst import Analyst
from trimtab.collector.append import Appender, known_series
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.ingest import Connected, Telemetry
from trimtab.collector.journal import StoredJournal
from trimtab.collector.query import WATCHERS_MAX, Query
from trimtab.collector.series import Registry
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.store import FILE, open_or_set_aside
from trimtab.collector.writer import Writer

log = logging.getLogger(__name__)

THREADS_SPARE = 16
STOP_SECONDS_MAX = 5.0


def run(
    settings: CollectorSettings,
    tls: Tls,
    state: Path,
    clock: Clock,
    analysis: Analysis,
    stop: threading.Event,
    beat: Callable[[], None],
) -> None:
    """Serve until `stop` is set. Calls `beat` when it serves, and whenever the writer has gone on since.

    Raises TrimtabError when it cannot serve, or no longer can.
    """
    collector = Collector(settings, tls, state, clock, analysis)
    try:
        collector.start()
        beat()
        turns = 0
        while not stop.wait(0.5):
            if collector.failed:
                message = f"{state / FILE}: can no longer be written; the log says why; starting again may help"
                raise TrimtabError(message, Exit.INTERNAL)
            if collector.turns != turns:
                turns = collector.turns
                beat()
    finally:
        collector.stop()


class Collector:
    """`start` once, `stop` once."""

    def __init__(self, settings: CollectorSettings, tls: Tls, state: Path, clock: Clock, analysis: Analysis) -> None:
        """Take the port and the database. Raises TrimtabError."""
        threads = settings.agents_max + WATCHERS_MAX + THREADS_SPARE
        self._server, self.port = channel.server(settings.listen, tls, "collector.listen", threads)
        self._store = open_or_set_aside(state_dir(state) / FILE, settings.memory_bytes_max, clock)
        stored = known_series(self._store.cursor())
        registry = Registry(stored)
        fleet, feed = FleetSlot(), IncidentFeed()
        self._analyst = Analyst(analysis, clock, fleet, feed)
        self._writer = Writer(self._store, Appender(registry, stored), clock, self._analyst.observe)
        self._journal = StoredJournal(self._store, self._writer)
        self._connected = Connected(settings.agents_max)
        self._query = Query(
            settings,
            clock,
            store=self._store,
            journal=self._journal,
            connected=self._connected,
            fleet=fleet,
            feed=feed,
        )
        telemetry = Telemetry(self._writer.inbox, registry, self._connected, clock)
        add_TelemetryServicer_to_server(telemetry, self._server)  # type: ignore[no-untyped-call]
        add_QueryServicer_to_server(self._query, self._server)  # type: ignore[no-untyped-call]

    @property
    def failed(self) -> bool:
        """Whether nothing more can be stored."""
        return self._writer.lost.is_set()

    @property
    def turns(self) -> int:
        """Grows while the writer is at work, or waits for work."""
        return self._writer.turns

    def start(self) -> None:
        """Take up what is stored, then serve."""
        self._analyst.start(self._journal)
        self._writer.start()
        self._server.start()

    def stop(self) -> None:
        """Let the streams go, store what was queued, close the database."""
        self._connected.end_all()
        self._query.stop()
        self._server.stop(STOP_SECONDS_MAX).wait()
        self._analyst.stop()
        self._writer.stop()
        self._store.close()

"""The collector: store, writer, analysis and the two services, put together."""

from __future__ import annotations

import gc
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import Clock
from trimtab.agent.settings import Tls, state_dir
from trimtab.agent.wire import channel
from trimtab.agent.wire.exposition import PATH, Exposition, NotNow, Page, serve
from trimtab.agent.wire.introspection import Introspection
from trimtab.agent.wire.metrics import Metrics
from trimtab.agent.wire.query_pb2_grpc import QueryStub, add_QueryServicer_to_server
from trimtab.collector.agents import Agents
from trimtab.collector.analysis import Analysis, Apart
from trimtab.collector.analyst import Analyst
from trimtab.collector.analyst_apart import AnalystApart
from trimtab.collector.append import Appender, known_series
from trimtab.collector.federate import PATH as FEDERATE
from trimtab.collector.federate import Federation
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.figures import PREFIX, figures_of
from trimtab.collector.ingest import Connected
from trimtab.collector.journal import StoredJournal
from trimtab.collector.keeper import Keeper
from trimtab.collector.latest import Latest
from trimtab.collector.opening import open_or_set_aside, take_up
from trimtab.collector.overrides import Overrides
from trimtab.collector.port.port import Port
from trimtab.collector.query import WATCHERS_MAX, Query
from trimtab.collector.remarks import Remarks
from trimtab.collector.series import Registry
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.standing import Standing
from trimtab.collector.store import FILE
from trimtab.collector.vitals import Vitals
from trimtab.collector.webhook import Webhook
from trimtab.collector.wellness import Wellness
from trimtab.collector.writer import Writer

log = logging.getLogger(__name__)

THREADS_SPARE = 16
CONNECTIONS_SPARE = 256
"""Beside the agents': of those who ask."""
STOP_SECONDS_MAX = 5.0
GARBAGE_THRESHOLDS = (20_000, 20, 100)
HEALTHY, READY = "/-/healthy", "/-/ready"
SERVICES = ("trimtab.query.v1.Query", "trimtab.telemetry.v1.Telemetry")

Views = Callable[[QueryStub, Clock], Mapping[str, Page]]
"""Makes pages, by their paths, out of answers to questions."""


def _no_views(_query: QueryStub, _clock: Clock) -> Mapping[str, Page]:
    return {}


def run(
    settings: CollectorSettings,
    tls: Tls,
    state: Path,
    clock: Clock,
    analysis: Analysis | Apart,
    stop: threading.Event,
    beat: Callable[[], None],
    views: Views = _no_views,
) -> None:
    """Serve until `stop` is set. Calls `beat` when it serves, and whenever the writer has gone on since.

    Raises TrimtabError when it cannot serve, or no longer can.
    """
    collector = Collector(settings, tls, state, clock, analysis, views)
    try:
        collector.start()
        # A full collection holds every thread up for a tenth of a second, and comes every few: the windows at hand count as new objects.
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        beat()
        turns = 0
        while not stop.wait(0.5):
            if collector.failed:
                message = f"{state / FILE}: can no longer be written; the log says why; starting again may help"
                raise TrimtabError(message, Exit.INTERNAL)
            collector.look()
            if collector.turns != turns:
                turns = collector.turns
                beat()
    finally:
        collector.stop()


class Collector:
    """`start` once, `stop` once."""

    def __init__(
        self,
        settings: CollectorSettings,
        tls: Tls,
        state: Path,
        clock: Clock,
        analysis: Analysis | Apart,
        views: Views = _no_views,
    ) -> None:
        """Take the port and the database. Raises TrimtabError."""
        self._port = Port(settings.listen, tls, "collector.listen", settings.agents_max + CONNECTIONS_SPARE)
        self.port = self._port.number
        try:
            self._store = open_or_set_aside(state_dir(state) / FILE, settings.memory_bytes_max, clock)
            redo, received_us = take_up(self._store, clock)
        except BaseException:
            self._port.stop()
            raise
        connection = self._store.cursor()
        stored = known_series(connection)
        registry = Registry(stored)
        standing = Standing(clock)
        fleet, feed = FleetSlot(), IncidentFeed(standing)
        vitals, latest = Vitals(), Latest()
        self._analyst: Analyst | AnalystApart = (
            AnalystApart(analysis, clock, fleet, feed)
            if isinstance(analysis, Apart)
            else Analyst(analysis, clock, fleet, feed)
        )
        appender = Appender(self._store, connection, registry, stored)
        self._writer = Writer(
            self._store, appender, redo, clock, [latest.observe, self._analyst.observe], received_us, vitals
        )
        self._keeper = Keeper(settings, self._store, clock, vitals, self._writer)
        self._journal = StoredJournal(self._store, self._writer)
        remarks = Remarks(
            self._store,
            self._writer,
            journal=self._journal,
            standing=standing,
            feed=feed,
            clock=clock,
            accept=self._analyst.accept,
        )
        overrides = Overrides(self._store, self._writer, journal=self._journal, fleet=fleet, clock=clock)
        self._connected = Connected(settings.agents_max)
        self._query = Query(
            settings,
            clock,
            store=self._store,
            journal=self._journal,
            connected=self._connected,
            fleet=fleet,
            feed=feed,
            standing=standing,
            remarks=remarks,
            overrides=overrides,
            vitals=vitals,
            settle=self._writer.settle,
        )
        self._agents = Agents(self._port, self._writer.inbox, registry, self._connected, clock, vitals)
        self._writer.inbox.room = self._agents.room
        metrics = Metrics(PREFIX)
        federation = Federation(latest, clock)
        metrics.add(
            *figures_of(
                vitals,
                store=self._store,
                inbox=self._writer.inbox,
                connected=self._connected,
                port=self._port,
                analyst=self._analyst,
                journal=self._journal,
                clock=clock,
                federation=federation,
            )
        )
        self._pages = {PATH: metrics.page, FEDERATE: federation.page, HEALTHY: _healthy, READY: self._ready}
        self._views = views
        self._metrics_listen, self._clock = settings.metrics_listen, clock
        self._exposition: Exposition | None = None
        self._line: grpc.Channel | None = None
        self._webhook = Webhook(settings.webhook_url, feed, clock, vitals)
        self._sockets = tempfile.TemporaryDirectory(prefix="trimtab-")
        self._server = channel.bare_server(WATCHERS_MAX + THREADS_SPARE)
        self._introspection = Introspection(self._server, *SERVICES)
        self._wellness = Wellness(self._writer, vitals, clock)
        add_QueryServicer_to_server(self._query, self._server)  # type: ignore[no-untyped-call]

    @property
    def failed(self) -> bool:
        """Whether nothing more can be stored."""
        return self._writer.lost.is_set()

    @property
    def turns(self) -> int:
        """Grows while the writer is at work, or waits for work."""
        return self._writer.turns

    def look(self) -> None:
        """Have the health service say how things are now."""
        self._introspection.serving(not self._wellness.trouble())

    def start(self) -> None:
        """Take up what is stored, then serve."""
        self._analyst.start(self._journal)
        self._writer.start()
        self._keeper.start()
        # Only this user may reach it: who comes by the port has shown a certificate there.
        server = f"{self._sockets.name}/query"
        self._server.add_insecure_port(f"unix:{server}")
        self._server.start()
        self._line = grpc.insecure_channel(f"unix:{server}")
        views = self._views(QueryStub(self._line), self._clock)  # type: ignore[no-untyped-call] # generated
        self._exposition = serve(
            self._metrics_listen, {**self._pages, **views}, self._clock, "collector.metrics_listen"
        )
        self._webhook.start()
        self._port.start(server, self._agents.begin)

    def stop(self) -> None:
        """Let the streams go, store what was queued, close the database."""
        self._introspection.stopping()
        self._webhook.stop()
        self._query.stop()
        self._port.stop()
        if self._exposition:
            self._exposition.close()
        if self._line:
            self._line.close()
        self._server.stop(STOP_SECONDS_MAX).wait()
        self._analyst.stop()
        self._keeper.stop()
        self._writer.stop()
        self._store.close()
        self._sockets.cleanup()

    def _ready(self, accept: str, query: str) -> tuple[str, Callable[[], bytes]]:
        """Whether windows can be stored: the page for those who look after services."""
        if trouble := self._wellness.trouble():
            raise NotNow(trouble)
        return "text/plain; charset=utf-8", lambda: b"ready\n"


def _healthy(_accept: str, _query: str) -> tuple[str, Callable[[], bytes]]:
    """That somebody is there."""
    return "text/plain; charset=utf-8", lambda: b"healthy\n"

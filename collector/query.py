"""The Query service: what the operator's command and the actuator ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager

import grpc

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.agent.wire.overrides import brief
from trimtab.agent.wire.query_pb2_grpc import QueryServicer
from trimtab.collector.backup import backup
from trimtab.collector.by_hand import NotFound
from trimtab.collector.feed import UNREAD_MAX, FleetSlot, IncidentFeed
from trimtab.collector.ingest import Connected
from trimtab.collector.instances import instances
from trimtab.collector.journal import REPLY_MAX, StoredJournal, check_decision
from trimtab.collector.lately import series
from trimtab.collector.latency import latency
from trimtab.collector.nodes import nodes
from trimtab.collector.overrides import Overrides
from trimtab.collector.remarks import Remarks
from trimtab.collector.report import report
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.sql import QuestionError, ask
from trimtab.collector.standing import Standing
from trimtab.collector.store import Store, StoreError
from trimtab.collector.talkers import talkers
from trimtab.collector.vitals import Vitals

WATCHERS_MAX = 32
QUESTIONS_MAX = 4
SEND_SECONDS_MAX = 2.0
"""How long an answer that is out of time may still wait for its client to read."""
LIMIT_DEFAULT = 100
RECORD_SECONDS_MAX = 5.0
SETTLE_SECONDS_MAX = 1.0
"""How long a question waits for the windows that were acknowledged before it."""
BACKUP_SECONDS_MAX = 3600.0
"""How long a backup may take: while it reads, the database's log only grows."""
BACKUP_STALL_SECONDS_MAX = 30.0
"""How long one piece of it may wait for its client to read."""
Code = grpc.StatusCode


class Query(QueryServicer):
    """Reads on cursors of its own; what it stores goes through the writer."""

    def __init__(
        self,
        settings: CollectorSettings,
        clock: Clock,
        *,
        store: Store,
        journal: StoredJournal,
        connected: Connected,
        fleet: FleetSlot,
        feed: IncidentFeed,
        standing: Standing,
        remarks: Remarks,
        overrides: Overrides,
        vitals: Vitals,
        settle: Callable[[float], None],
    ) -> None:
        """`settle` has what was acknowledged in the store, where that takes no longer than so many seconds."""
        self._vitals = vitals
        self._settle = settle
        self._settings = settings
        self._store = store
        self._journal = journal
        self._connected = connected
        self._fleet = fleet
        self._feed = feed
        self._standing = standing
        self._remarks = remarks
        self._overrides = overrides
        self._clock = clock
        self._watchers = threading.Semaphore(WATCHERS_MAX)
        self._questions = threading.Semaphore(QUESTIONS_MAX)
        self._backups = threading.Semaphore(1)
        self._stop = threading.Event()

    def stop(self) -> None:
        """End every watch within a second."""
        self._stop.set()

    def Sql(self, request: pb.SqlRequest, context: grpc.ServicerContext) -> Iterator[pb.SqlChunk]:  # noqa: N802 - gRPC's names
        self._begin("Sql")
        seconds, most = self._settings.query_seconds_max, self._settings.query_rows_max
        with (
            _one_of(self._questions, f"{QUESTIONS_MAX} questions are being answered; ask again", context),
            _cancelled_after(seconds + SEND_SECONDS_MAX, context),
        ):
            try:
                yield from ask(self._store, request.sql, seconds, min(request.rows_max or most, most))
            except QuestionError as error:
                context.abort(Code.INVALID_ARGUMENT, str(error))

    def Nodes(self, request: pb.NodesRequest, context: grpc.ServicerContext) -> pb.NodesReply:  # noqa: N802
        self._begin("Nodes")
        _, state = self._fleet.wait(-1, 0)
        with _stored(context):
            found = nodes(self._store, self._connected.names(), state.instances if state else [])
        return pb.NodesReply(nodes=found, now_unix_ns=self._clock.unix_ns())

    def Instances(  # noqa: N802
        self, request: pb.InstancesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.InstancesReply]:
        self._begin("Instances")
        _, fleet = self._fleet.wait(-1, 0)
        states = {one.id: one for one in fleet.instances} if fleet else {}
        seconds = self._settings.query_seconds_max
        with self._asking(context), _cancelled_after(seconds + SEND_SECONDS_MAX, context):
            yield from instances(self._store, request, states, seconds)

    def Series(self, request: pb.SeriesRequest, context: grpc.ServicerContext) -> pb.SeriesReply:  # noqa: N802
        self._begin("Series")
        with self._asking(context):
            return series(self._store, request, self._clock, self._settings.query_seconds_max)

    def Backup(self, request: pb.BackupRequest, context: grpc.ServicerContext) -> Iterator[pb.BackupChunk]:  # noqa: N802
        self._begin("Backup")
        with (
            _one_of(self._backups, "a backup is being made already; ask again when it is done", context),
            _cancelled_after(BACKUP_SECONDS_MAX, context),
            _stored(context),
        ):
            for chunk in backup(self._store, self._clock):
                if self._stop.is_set():
                    context.abort(Code.UNAVAILABLE, "the collector stops")
                with _cancelled_after(BACKUP_STALL_SECONDS_MAX, context):
                    yield chunk

    def Incidents(self, request: pb.IncidentsRequest, context: grpc.ServicerContext) -> pb.IncidentsReply:  # noqa: N802
        self._vitals.questions["Incidents"] += 1
        limit = min(request.limit or LIMIT_DEFAULT, REPLY_MAX)
        with _stored(context):
            found = self._journal.incidents(limit, request.id, request.open_only)
        return pb.IncidentsReply(incidents=map(self._standing.on, found))

    def IncidentReport(  # noqa: N802
        self, request: pb.IncidentReportRequest, context: grpc.ServicerContext
    ) -> pb.IncidentReportReply:
        self._begin("IncidentReport")
        with self._asking(context):
            found = self._journal.incidents(1, request.id) if request.id else []
            if not found:
                context.abort(Code.NOT_FOUND, f"no incident {request.id[:TEXT_MAX]!r}; `trimtab incidents` lists them")
            told = self._standing.on(found[0])
            return report(self._store, told, self._clock.unix_ns(), self._settings.query_seconds_max)

    def Remark(self, request: pb.RemarkRequest, context: grpc.ServicerContext) -> pb.RemarkReply:  # noqa: N802
        self._vitals.questions["Remark"] += 1
        with _said(context):
            return self._remarks.take(request)

    def Steer(self, request: pb.SteerRequest, context: grpc.ServicerContext) -> pb.SteerReply:  # noqa: N802
        self._vitals.questions["Steer"] += 1
        with _said(context):
            return self._overrides.take(request)

    def Talkers(self, request: pb.TalkersRequest, context: grpc.ServicerContext) -> pb.TalkersReply:  # noqa: N802
        self._begin("Talkers")
        with (
            _one_of(self._questions, f"{QUESTIONS_MAX} questions are being answered; ask again", context),
            _stored(context),
        ):
            try:
                return talkers(self._store, request, self._clock, self._settings.query_seconds_max)
            except QuestionError as error:
                context.abort(Code.INVALID_ARGUMENT, str(error))

    def Latency(self, request: pb.LatencyRequest, context: grpc.ServicerContext) -> pb.LatencyReply:  # noqa: N802
        self._begin("Latency")
        with (
            _one_of(self._questions, f"{QUESTIONS_MAX} questions are being answered; ask again", context),
            _stored(context),
        ):
            try:
                return latency(self._store, request, self._clock, self._settings.query_seconds_max)
            except QuestionError as error:
                context.abort(Code.INVALID_ARGUMENT, str(error))

    def Decisions(self, request: pb.DecisionsRequest, context: grpc.ServicerContext) -> pb.DecisionsReply:  # noqa: N802
        self._vitals.questions["Decisions"] += 1
        with _stored(context):
            found = self._journal.decisions(min(request.limit or LIMIT_DEFAULT, REPLY_MAX), request.seen)
        overrides = map(brief, self._overrides.in_force().values())
        return pb.DecisionsReply(decisions=found, now_unix_ns=self._clock.unix_ns(), overrides=overrides)

    def RecordDecision(self, request: pb.Decision, context: grpc.ServicerContext) -> pb.RecordDecisionReply:  # noqa: N802
        try:
            check_decision(request)
        except Malformed as error:
            context.abort(Code.INVALID_ARGUMENT, str(error))
        with _stored(context):
            try:
                self._journal.record(request).result(RECORD_SECONDS_MAX)
            except FutureTimeoutError:
                context.abort(Code.UNAVAILABLE, "the database cannot be written now; the collector's log says why")
        return pb.RecordDecisionReply()

    def WatchIncidents(  # noqa: N802
        self, request: pb.WatchIncidentsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Incident]:
        with self._watching(context), self._feed.watch() as (known, watcher):
            yield from known
            while context.is_active() and not self._stop.is_set():
                if watcher.behind.is_set():
                    context.abort(Code.RESOURCE_EXHAUSTED, f"over {UNREAD_MAX} changes unread; watch again")
                incident = watcher.next(0.5)
                if incident:
                    yield incident

    def WatchFleet(self, request: pb.WatchFleetRequest, context: grpc.ServicerContext) -> Iterator[pb.FleetState]:  # noqa: N802
        version = 0
        with self._watching(context):
            while context.is_active() and not self._stop.is_set():
                before = version
                version, state = self._fleet.wait(version, 0.5)
                if state and version != before:
                    yield self._overrides.told(state)

    def _begin(self, method: str) -> None:
        """A question about windows."""
        self._vitals.questions[method] += 1
        self._settle(SETTLE_SECONDS_MAX)

    @contextmanager
    def _asking(self, context: grpc.ServicerContext) -> Iterator[None]:
        with (
            _one_of(self._questions, f"{QUESTIONS_MAX} questions are being answered; ask again", context),
            _stored(context),
        ):
            try:
                yield
            except QuestionError as error:
                context.abort(Code.INVALID_ARGUMENT, str(error))

    @contextmanager
    def _watching(self, context: grpc.ServicerContext) -> Iterator[None]:
        with _one_of(self._watchers, f"{WATCHERS_MAX} watchers are connected", context):
            yield


@contextmanager
def _one_of(places: threading.Semaphore, otherwise: str, context: grpc.ServicerContext) -> Iterator[None]:
    if not places.acquire(blocking=False):
        context.abort(Code.RESOURCE_EXHAUSTED, otherwise)
    try:
        yield
    finally:
        places.release()


@contextmanager
def _cancelled_after(seconds: float, context: grpc.ServicerContext) -> Iterator[None]:
    """gRPC holds a thread that sends for as long as its client does not read; only a cancelled call lets it go."""
    patience = threading.Timer(seconds, context.cancel)
    patience.daemon = True
    patience.start()
    try:
        yield
    finally:
        patience.cancel()


@contextmanager
def _stored(context: grpc.ServicerContext) -> Iterator[None]:
    """What the store cannot do is not the client's fault."""
    try:
        yield
    except StoreError as error:
        context.abort(Code.UNAVAILABLE, f"the database: {error}")


@contextmanager
def _said(context: grpc.ServicerContext) -> Iterator[None]:
    """What an operator said, and what is wrong with it."""
    try:
        yield
    except Malformed as error:
        context.abort(Code.INVALID_ARGUMENT, str(error))
    except NotFound as error:
        context.abort(Code.NOT_FOUND, str(error))
    except StoreError as error:
        context.abort(Code.FAILED_PRECONDITION, f"the database: {error}")

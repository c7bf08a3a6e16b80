"""The one thread that writes. It stores what has come in one transaction, and only then answers for it."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import grpc

from trimtab.agent.clock import Clock
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.append import Appender
from trimtab.collector.arrow import Columns
from trimtab.collector.batch import Batch
from trimtab.collector.forgetting import Gone
from trimtab.collector.inbox import Inbox
from trimtab.collector.ledger import SWEEP_SECONDS, Entry, Ledger, TooMany
from trimtab.collector.source import Answer, End, Source
from trimtab.collector.store import Connection, Store, StoreError, StoreLost, insert, transaction
from trimtab.collector.stream import SEQ_MAX, Stream
from trimtab.collector.vitals import Vitals
from trimtab.collector.window import Window

log = logging.getLogger(__name__)

ITEMS_MAX = 1024
"""Most windows in one transaction."""
GATHER_SECONDS = 0.1
"""How long a transaction waits for more to come: many agents then share one."""
IDLE_SECONDS = 0.5
SAVES_MAX = 1024
REFUSAL_CHARACTERS_MAX = 1024
BACKOFF_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Opening:
    """A stream that waits for its high-water mark."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Arrival:
    """A window that waits for its answer: checked, or refused."""

    stream: Stream
    seq: int
    window: Window | None
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Closing:
    """A stream that has said all; it ends after its last answer."""

    stream: Stream


Item = Opening | Arrival | Closing
Rows = Sequence[tuple[str, Columns]]
"""Statements, each with the columns it finds as `incoming`."""
_FIELD = re.compile(r"(series|window|schema|hello)?(\.[a-z_]+)?")
"""With which a refusal begins; nothing of what an agent sent."""
_NODES = (
    "DELETE FROM nodes USING incoming WHERE nodes.node = incoming.node",
    "INSERT INTO nodes BY NAME SELECT * FROM incoming",
)


@dataclass(slots=True)
class _Outcome:
    """What one transaction makes of its items."""

    fresh: list[Window] = field(default_factory=list)
    answers: list[tuple[Stream, Answer]] = field(default_factory=list)
    duplicates: int = 0
    lost: int = 0
    refused: list[str] = field(default_factory=list)
    """The field of each refusal."""


class Writer:
    """Owns the writing connection."""

    def __init__(
        self,
        store: Store,
        appender: Appender,
        clock: Clock,
        stored: Sequence[Callable[[Sequence[Window]], None]],
        received_us: int,
        vitals: Vitals,
    ) -> None:
        """Each of `stored` is told of each transaction's windows, after it. `received_us`: when the newest window in the store came."""
        self.inbox: Inbox[Item] = Inbox()
        self.lost = threading.Event()
        self.turns = 0
        """Grows at least every ten seconds while the thread is alive and no statement hangs."""
        self._database = store
        self._connection: Connection = store.cursor()
        self._appender = appender
        self._ledger = Ledger.of(self._connection)
        self._received_us = received_us
        self._vitals = vitals
        self._swept_at = clock.monotonic()
        self._clock = clock
        self._stored = stored
        self._saves: dict[str, tuple[Rows, Future[None]]] = {}
        self._gone: Gone | None = None
        self._saves_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Store what is queued, and end."""
        self._stop.set()
        self.inbox.wake()
        if self._thread.is_alive():
            self._thread.join()
            if not self.lost.is_set():
                self._swept_at = float("-inf")
                self._store([], [])
        self._connection.close()

    def save(self, key: str, rows: Rows) -> Future[None]:
        """Have rows stored with the next transaction, in place of those that wait under this key. Raises StoreError when too many do."""
        future: Future[None] = Future()
        with self._saves_lock:
            if key not in self._saves and len(self._saves) >= SAVES_MAX:
                raise StoreError(f"{SAVES_MAX} rows wait to be stored; see the collector's log for why")
            self._saves[key] = (rows, future)
        self.inbox.wake()
        return future

    def forget(self, gone: Gone) -> None:
        """Delete these with the next transaction, as far as they have not come back."""
        with self._saves_lock:
            self._gone = gone
        self.inbox.wake()

    def _run(self) -> None:
        try:
            self._write_on()
        except Exception:
            # The windows are with the agents until they are acknowledged: a fresh start is the one thing that may help.
            log.exception("the writer failed")
            self.lost.set()

    def _write_on(self) -> None:
        while not (self._stop.is_set() and self._idle()):
            self.turns += 1
            items = self.inbox.take(ITEMS_MAX, IDLE_SECONDS)
            if items and len(items) < ITEMS_MAX and not self._clock.wait(self._stop, GATHER_SECONDS):
                items += self.inbox.take(ITEMS_MAX - len(items), 0)
            with self._saves_lock:
                saves, self._saves = self._saves, {}
            if (items or saves or self._gone or self._sweep_is_due()) and not self._store(items, list(saves.values())):
                return

    def _sweep_is_due(self) -> bool:
        overdue = self._clock.monotonic() - self._swept_at - SWEEP_SECONDS
        # It changes rows, and would hold the windows up for as long as a checkpoint takes.
        return overdue >= (SWEEP_SECONDS if self._database.checkpointing else 0)

    def _idle(self) -> bool:
        with self._saves_lock:
            return not self._saves and not len(self.inbox)

    def _store(self, items: Sequence[Item], saves: Sequence[tuple[Rows, Future[None]]]) -> bool:
        """Until it worked, or the collector stops: then the agents still have what was not acknowledged."""
        backoff = 0.1
        while True:
            self.turns += 1
            try:
                outcome = self._transact(items, [rows for rows, _ in saves])
                break
            except StoreError as error:
                self._vitals.failures += 1
                self._appender.rollback()
                self._ledger.rollback()
                if backoff == 0.1:
                    log.error("cannot write to the database: %s; agents keep their windows until it works again", error)
                if isinstance(error, StoreLost):
                    self.lost.set()
                    return False
                if self._clock.wait(self._stop, backoff):
                    return False
                backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
        if backoff > 0.1:
            log.warning("the database can be written again")
        for source, answers in _by_source(outcome.answers):
            source.answer(answers)
        for _, future in saves:
            future.set_result(None)
        for stored in self._stored if outcome.fresh else ():
            stored(outcome.fresh)
        return True

    def _transact(self, items: Sequence[Item], saves: Sequence[Rows]) -> _Outcome:
        # It never goes back, whatever the clock does: the ledger finds by it what it has not swept up yet.
        self._received_us = max(self._received_us, self._clock.unix_ns() // 1000)
        outcome = _Outcome()
        begun = self._clock.monotonic()
        # What is rolled up waits for this transaction, or sees that it left late windows (collector/rollmarks.py).
        with self._database.rolled.writing(), transaction(self._connection):
            batch, streams = self._book(items, outcome)
            self._appender.append(self._connection, batch, outcome.fresh, streams, self._received_us)
            openings = [item.stream for item in items if isinstance(item, Opening)]
            if openings:
                for statement in _NODES:
                    insert(self._connection, statement, _nodes(openings), ("connected_at",))
            for statement, columns in (part for rows in saves for part in rows):
                insert(self._connection, statement, columns)
            with self._saves_lock:
                gone, self._gone = self._gone, None
            forgotten = self._forget(gone) if gone else None
            sweep = self._sweep_is_due()
            self._ledger.write(self._connection, self._received_us if sweep else None)
        self._appender.commit()
        self._ledger.commit()
        if forgotten:
            self._appender.subjects.forget(forgotten.subjects)
            self._ledger.forget(forgotten.streams)
        if sweep:
            self._swept_at = self._clock.monotonic()
        self._count(outcome, batch, self._clock.monotonic() - begun)
        return outcome

    def _count(self, outcome: _Outcome, batch: Batch, seconds: float) -> None:
        vitals = self._vitals
        vitals.transactions += 1
        vitals.transaction_seconds += seconds
        vitals.windows += len(outcome.fresh)
        vitals.samples += batch.values
        vitals.duplicates += outcome.duplicates
        vitals.lost += outcome.lost
        vitals.refused.update(outcome.refused)

    def _forget(self, gone: Gone) -> Gone:
        """Within the open transaction; what was forgotten indeed."""
        deleted: list[list[Any]] = []
        streams = self._ledger.idle(gone.streams)
        for statement, ids in (
            (
                "DELETE FROM subjects WHERE NOT current AND subject IN (SELECT unnest(?::INTEGER[])) RETURNING subject",
                gone.subjects,
            ),
            ("DELETE FROM stream_records WHERE stream IN (SELECT unnest(?::INTEGER[])) RETURNING stream", streams),
            ("DELETE FROM nodes WHERE node IN (SELECT unnest(?::VARCHAR[])) RETURNING node", gone.nodes),
        ):
            deleted.append([one for (one,) in self._connection.execute(statement, [ids]).fetchall()] if ids else [])
        return Gone(*deleted)

    def _book(self, items: Sequence[Item], outcome: _Outcome) -> tuple[Batch, list[int]]:
        """Enter everything into the ledger, with its answer; the new windows as columns, and the stream of each."""
        batch, refusals = self._prepare(items)
        streams: list[int] = []
        for item in items:
            stream = item.stream
            try:
                entry = self._entry(stream)
            except TooMany as error:
                outcome.answers.append((stream, End(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))))
                continue
            match item:
                case Opening():
                    outcome.answers.append((stream, _welcome(stream, entry)))
                case Closing():
                    outcome.answers.append((stream, End()))
                case Arrival(seq=seq, window=window):
                    refusal = item.refusal or refusals.get(id(item), "")
                    if refusal or window is None:
                        self._refuse(entry, seq, refusal, outcome)
                        answer = pb.CollectorMessage(refusal=pb.Refusal(seq=seq, reason=refusal))
                    else:
                        answer = pb.CollectorMessage(ack=pb.Ack(seq=seq))
                        if self._is_new(entry, window, outcome):
                            outcome.fresh.append(window)
                            streams.append(entry.stream)
                    outcome.answers.append((stream, answer))
        return batch, streams

    def _prepare(self, items: Sequence[Item]) -> tuple[Batch, dict[int, str]]:
        """The windows that are new as columns; those that are refused by what is in them, as the id of their item and the reason."""
        marks: dict[tuple[str, str], int] = {}
        new: list[Arrival] = []
        windows: list[Window] = []
        for item in items:
            if not isinstance(item, Arrival) or item.window is None:
                continue
            key = item.stream.node, item.stream.spool
            try:
                mark = marks.get(key, self._entry(item.stream).high_water_mark)
            except TooMany:
                continue
            if item.seq > mark:
                marks[key] = item.seq
                new.append(item)
                windows.append(item.window)
        batch, refused = self._appender.prepare(windows)
        return batch, {id(new[position]): reason[:REFUSAL_CHARACTERS_MAX] for position, reason in refused.items()}

    def _entry(self, stream: Stream) -> Entry:
        return self._ledger.entry(self._connection, (stream.node, stream.spool), stream.hello.first_seq)

    def _refuse(self, entry: Entry, seq: int, refusal: str, outcome: _Outcome) -> None:
        entry.refused += 1
        outcome.refused.append(_FIELD.match(refusal).group())  # type: ignore[union-attr] # it matches nothing, too
        entry.last_refusal, entry.refused_at = refusal, self._received_us
        if entry.high_water_mark < seq <= SEQ_MAX:
            outcome.lost += entry.advance(seq)
        self._ledger.urgent(entry)

    def _is_new(self, entry: Entry, window: Window, outcome: _Outcome) -> bool:
        if window.seq <= entry.high_water_mark:
            entry.duplicates += 1
            outcome.duplicates += 1
            self._ledger.urgent(entry)
            return False
        if lost := entry.advance(window.seq):
            outcome.lost += lost
            self._ledger.urgent(entry)
        entry.windows += 1
        entry.last_window = max(entry.last_window, window.start_unix_ns // 1000)
        return True


def _welcome(stream: Stream, entry: Entry) -> pb.CollectorMessage:
    error = stream.timeline.error_seconds
    return pb.CollectorMessage(welcome=pb.Welcome(high_water_mark=entry.high_water_mark, clock_error_seconds=error))


def _by_source(answers: Sequence[tuple[Stream, Answer]]) -> list[tuple[Source, list[tuple[Stream, Answer]]]]:
    found: dict[int, tuple[Source, list[tuple[Stream, Answer]]]] = {}
    for stream, answer in answers:
        found.setdefault(id(stream.source), (stream.source, []))[1].append((stream, answer))
    return list(found.values())


def _nodes(streams: Sequence[Stream]) -> Columns:
    newest = {stream.node: stream for stream in streams}
    hellos = [stream.hello for stream in newest.values()]
    texts = ("node", "machine_id", "boot_id", "agent_version")
    return {
        **{name: [getattr(hello, name) for hello in hellos] for name in texts},
        "clock_error_seconds": [stream.timeline.error_seconds for stream in newest.values()],
        "connected_at": [stream.timeline.collector_unix_ns // 1000 for stream in newest.values()],
        "labels": [json.dumps(dict(hello.labels), sort_keys=True) for hello in hellos],
    }

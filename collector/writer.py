"""The one thread that writes. It stores what has come in one transaction, and only then answers for it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from trimtab.agent.clock import Clock
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.append import Appender
from trimtab.collector.inbox import Inbox
from trimtab.collector.ledger import Entry, Ledger
from trimtab.collector.rows import EVENT_BYTES_MAX, ROW_BYTES_MAX, Columns
from trimtab.collector.store import Connection, Store, StoreError, StoreLost, insert, transaction
from trimtab.collector.stream import SEQ_MAX, End, Stream
from trimtab.collector.window import Window

log = logging.getLogger(__name__)

ITEMS_MAX = 512
"""Most windows in one transaction."""
GATHER_SECONDS = 0.05
"""How long a transaction waits for more to come: many agents then share one."""
IDLE_SECONDS = 0.5
SAVES_MAX = 1024
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

    @property
    def size_bytes(self) -> int:
        """What it takes at most, here and as rows of a transaction."""
        if self.window is None:
            return len(self.refusal)
        subjects = sum(len(table.subjects) for table in self.window.schema.tables)
        sketches = sum(sketches.dense.nbytes for sketches in self.window.sketches)
        talkers = sum(2 * talkers.ByteSize() for talkers in self.window.talkers)
        return subjects * ROW_BYTES_MAX + len(self.window.events) * EVENT_BYTES_MAX + sketches + talkers


@dataclass(frozen=True, slots=True)
class Closing:
    """A stream that has said all; it ends after its last answer."""

    stream: Stream


Item = Opening | Arrival | Closing
Rows = Sequence[tuple[str, Columns]]
"""Statements, each with the columns it finds as `incoming`."""
_NODE = (
    "INSERT OR REPLACE INTO nodes BY NAME SELECT * REPLACE (make_timestamp(connected_at) AS connected_at) FROM incoming"
)


class Writer:
    """Owns the writing connection."""

    def __init__(
        self, store: Store, appender: Appender, clock: Clock, stored: Callable[[Sequence[Window]], None]
    ) -> None:
        """`stored` is told of the windows of each transaction, after it."""
        self.inbox: Inbox[Item] = Inbox()
        self.lost = threading.Event()
        self.turns = 0
        """Grows at least every ten seconds while the thread is alive and no statement hangs."""
        self._connection: Connection = store.cursor()
        self._appender = appender
        self._ledger = Ledger()
        self._clock = clock
        self._stored = stored
        self._saves: dict[str, tuple[Rows, Future[None]]] = {}
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
            if (items or saves) and not self._store(items, list(saves.values())):
                return

    def _idle(self) -> bool:
        with self._saves_lock:
            return not self._saves and not len(self.inbox)

    def _store(self, items: Sequence[Item], saves: Sequence[tuple[Rows, Future[None]]]) -> bool:
        """Until it worked, or the collector stops: then the agents still have what was not acknowledged."""
        backoff = 0.1
        while True:
            self.turns += 1
            try:
                fresh, marks = self._transact(items, [rows for rows, _ in saves])
                break
            except StoreError as error:
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
        _answer(items, marks)
        for _, future in saves:
            future.set_result(None)
        self._stored(fresh)
        return True

    def _transact(self, items: Sequence[Item], saves: Sequence[Rows]) -> tuple[list[Window], list[int]]:
        """The windows that were new, and the high-water mark that each Opening found."""
        now = self._clock.unix_ns()
        fresh: list[Window] = []
        marks: list[int] = []
        with transaction(self._connection):
            for item in items:
                stream = item.stream
                entry = self._ledger.entry(self._connection, (stream.node, stream.spool), stream.hello.first_seq)
                match item:
                    case Opening():
                        marks.append(entry.high_water_mark)
                        insert(self._connection, _NODE, _node(stream))
                    case Arrival(window=window):
                        if _book(item, entry, now) and window:
                            fresh.append(window)
            self._appender.append(self._connection, fresh, now)
            for statement, columns in (part for rows in saves for part in rows):
                insert(self._connection, statement, columns)
            self._ledger.write(self._connection)
        self._appender.commit()
        self._ledger.commit()
        return fresh, marks


def _book(arrival: Arrival, entry: Entry, now_unix_ns: int) -> bool:
    """Enter a window into the ledger; whether it is to be stored."""
    if arrival.window is None:
        entry.refused += 1
        entry.last_refusal, entry.refused_at = arrival.refusal, now_unix_ns // 1000
        if entry.high_water_mark < arrival.seq <= SEQ_MAX:
            entry.advance(arrival.seq)
        return False
    if arrival.seq <= entry.high_water_mark:
        entry.duplicates += 1
        return False
    entry.advance(arrival.seq)
    entry.windows += 1
    entry.last_window = max(entry.last_window, arrival.window.start_unix_ns // 1000)
    return True


def _answer(items: Sequence[Item], marks: Sequence[int]) -> None:
    mark = iter(marks)
    for item in items:
        match item:
            case Opening(stream):
                error = stream.timeline.error_seconds
                welcome = pb.Welcome(high_water_mark=next(mark), clock_error_seconds=error)
                stream.answer(pb.CollectorMessage(welcome=welcome))
            case Arrival(stream, seq, None, refusal):
                stream.answer(pb.CollectorMessage(refusal=pb.Refusal(seq=seq, reason=refusal)))
            case Arrival(stream, seq):
                stream.answer(pb.CollectorMessage(ack=pb.Ack(seq=seq)))
            case Closing(stream):
                stream.end(End())


def _node(stream: Stream) -> Columns:
    hello = stream.hello
    return {
        "node": np.asarray([hello.node]),
        "machine_id": np.asarray([hello.machine_id]),
        "boot_id": np.asarray([hello.boot_id]),
        "agent_version": np.asarray([hello.agent_version]),
        "clock_error_seconds": np.asarray([stream.timeline.error_seconds]),
        "connected_at": np.asarray([stream.timeline.collector_unix_ns // 1000]),
        "labels": np.asarray([json.dumps(dict(hello.labels), sort_keys=True)]),
    }

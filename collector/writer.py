"""The one thread that writes: what has come is on the disk before it is answered, and soon in the database."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, TypeVar

from trimtab.agent.clock import Clock
from trimtab.collector.append import Appender
from trimtab.collector.arrow import Columns
from trimtab.collector.booking import Booked, Booking, Item
from trimtab.collector.forgetting import Gone
from trimtab.collector.inbox import Inbox
from trimtab.collector.ledger import SWEEP_SECONDS, Ledger
from trimtab.collector.pending import Pending
from trimtab.collector.redo import Redo
from trimtab.collector.source import Answer, Source
from trimtab.collector.store import Connection, Store, StoreError, StoreLost, insert, transaction
from trimtab.collector.stream import Stream
from trimtab.collector.vitals import Vitals
from trimtab.collector.window import Window

log = logging.getLogger(__name__)

T = TypeVar("T")
ITEMS_MAX = 1024
"""Most windows that are answered at once."""
GATHER_SECONDS = 0.08
"""How long an answer waits for more to come: many agents then share what it costs."""
ENOUGH = 40
"""Windows that do not wait for more."""
IDLE_SECONDS = 0.5
SAVES_MAX = 1024
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 10.0
Rows = Sequence[tuple[str, Columns]]
"""Statements, each with the columns it finds as `incoming`."""
_NODES = (
    "DELETE FROM nodes USING incoming WHERE nodes.node = incoming.node",
    "INSERT INTO nodes BY NAME SELECT * FROM incoming",
)


class Writer:
    """Owns the writing connection and the redo log."""

    def __init__(
        self,
        store: Store,
        appender: Appender,
        redo: Redo,
        clock: Clock,
        stored: Sequence[Callable[[Sequence[Window]], None]],
        received_us: int,
        vitals: Vitals,
    ) -> None:
        """Each of `stored` is told of windows, once they are answered. `received_us`: when the newest window in the store came."""
        self.inbox: Inbox[Item] = Inbox()
        self.lost = threading.Event()
        self.turns = 0
        """Grows at least every ten seconds while the thread is alive and no statement hangs."""
        self._database = store
        self._connection: Connection = store.cursor()
        self._appender = appender
        self._redo = redo
        self._ledger = Ledger.of(self._connection)
        self._booking = Booking(self._connection, appender, self._ledger)
        self._pending = Pending()
        self._received_us = received_us
        self._vitals = vitals
        self._swept_at = clock.monotonic()
        self._clock = clock
        self._stored = stored
        self._saves: dict[str, tuple[Rows, Future[None]]] = {}
        self._settling: Future[None] | None = None
        self._gone: Gone | None = None
        self._asked = threading.Lock()
        """Held to ask for what the next transaction is to do, or to take it up."""
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
                self._turn([])
        self._connection.close()
        self._redo.close()

    def save(self, key: str, rows: Rows) -> Future[None]:
        """Have rows stored at once, in place of those that wait under this key. Raises StoreError when too many do."""
        future: Future[None] = Future()
        with self._asked:
            if key not in self._saves and len(self._saves) >= SAVES_MAX:
                raise StoreError(f"{SAVES_MAX} rows wait to be stored; see the collector's log for why")
            self._saves[key] = (rows, future)
        self.inbox.wake()
        return future

    def settle(self, seconds: float) -> None:
        """Have all that was answered in the database, for who reads it there; wait no longer than so."""
        with self._asked:
            if not self._pending and self._settling is None:
                return
            self._settling = future = self._settling or Future()
        self.inbox.wake()
        with suppress(FutureTimeoutError):
            future.result(seconds)

    def forget(self, gone: Gone) -> None:
        """Delete these with the next transaction, as far as they have not come back."""
        with self._asked:
            self._gone = gone
        self.inbox.wake()

    def _run(self) -> None:
        try:
            while not (self._stop.is_set() and self._idle()):
                if not self._turn(self._gathered()):
                    return
        except Exception:
            # The windows are with the agents until they are acknowledged: a fresh start is the one thing that may help.
            log.exception("the writer failed")
            self.lost.set()

    def _gathered(self) -> list[Item]:
        left = IDLE_SECONDS if self._database.checkpointing else self._pending.seconds_left(self._clock.monotonic())
        items = self.inbox.take(ITEMS_MAX, min(IDLE_SECONDS, left))
        for _ in range(2 if items else 0):
            if len(items) < ENOUGH and not self._clock.wait(self._stop, GATHER_SECONDS / 2):
                items += self.inbox.take(ITEMS_MAX - len(items), 0)
        return items

    def _idle(self) -> bool:
        with self._asked:
            return not self._saves and not len(self.inbox)

    def _turn(self, items: Sequence[Item]) -> bool:
        """Until it worked, or the collector stops: then the agents still have what was not acknowledged."""
        self.turns += 1
        # It never goes back, whatever the clock does: the ledger finds by it what it has not swept up yet.
        self._received_us = max(self._received_us, self._clock.unix_ns() // 1000)
        booked = self._insist(lambda: self._booking.book(items, self._received_us))
        if booked is None:
            return False
        with self._asked:
            saves, self._saves = self._saves, {}
            settling, self._settling = self._settling, None
            self._pending.add(booked, self._clock.monotonic())
        logged = self._may_be_logged()
        if logged:
            if self._insist(lambda: self._log(booked)) is None:
                return False
            self._answer(booked)
        if not logged or saves or settling or self._is_due():
            if self._insist(lambda: self._transact([rows for rows, _ in saves.values()])) is None:
                return False
            for future in (*(future for _, future in saves.values()), *([settling] if settling else [])):
                future.set_result(None)
        if not logged:
            self._answer(booked)
        return True

    def _may_be_logged(self) -> bool:
        """Whether there are only rows of what the database knows already. All else is in the database before it is answered."""
        news = self._pending.news or self._pending.openings or self._appender.subjects.has_news
        return not news and not self._ledger.is_urgent

    def _is_due(self) -> bool:
        """Whether the database takes what waits now."""
        if self._pending.is_full or self._gone or self._sweep_is_due() or self._stop.is_set():
            return True
        # A commit may have to wait for a checkpoint to end, and so would the answers.
        return not self._database.checkpointing and not self._pending.seconds_left(self._clock.monotonic())

    def _sweep_is_due(self) -> bool:
        overdue = self._clock.monotonic() - self._swept_at - SWEEP_SECONDS
        # It changes rows, and would hold the windows up for as long as a checkpoint takes.
        return overdue >= (SWEEP_SECONDS if self._database.checkpointing else 0)

    def _insist(self, what: Callable[[], T]) -> T | None:
        """What it makes, when it works; None when it will not do so any more, or the collector stops."""
        backoff = BACKOFF_SECONDS
        while True:
            self.turns += 1
            try:
                made = what()
                break
            except StoreError as error:
                self._vitals.failures += 1
                if backoff == BACKOFF_SECONDS:
                    log.error("cannot write to the database: %s; agents keep their windows until it works again", error)
                if isinstance(error, StoreLost):
                    self.lost.set()
                    return None
                if self._clock.wait(self._stop, backoff):
                    return None
                backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
        if backoff > BACKOFF_SECONDS:
            log.warning("the database can be written again")
        return made

    def _log(self, booked: Booked) -> bool:
        if booked.rows:
            self._redo.append(booked.rows)
        return True

    def _transact(self, saves: Sequence[Rows]) -> bool:
        begun = self._clock.monotonic()
        pending = self._pending
        with self._asked:
            gone, self._gone = self._gone, None
        try:
            # What is rolled up waits for this transaction, or sees that it left late windows (collector/rollmarks.py).
            with self._database.rolled.writing(), transaction(self._connection):
                self._appender.append(self._connection, pending.rows(), pending.news)
                if pending.openings:
                    for statement in _NODES:
                        insert(self._connection, statement, _nodes(pending.openings), ("connected_at",))
                for statement, columns in (part for rows in saves for part in rows):
                    insert(self._connection, statement, columns)
                forgotten = self._forget(gone) if gone else None
                sweep = self._sweep_is_due()
                self._ledger.write(self._connection, self._received_us if sweep else None)
        except BaseException:
            self._appender.rollback()
            raise
        self._redo.clear()
        self._appender.commit()
        self._ledger.commit()
        self._pending = Pending()
        if forgotten:
            self._appender.subjects.forget(forgotten.subjects)
            self._ledger.forget(forgotten.streams)
        if sweep:
            self._swept_at = self._clock.monotonic()
        self._vitals.transactions += 1
        self._vitals.transaction_seconds += self._clock.monotonic() - begun
        return True

    def _answer(self, booked: Booked) -> None:
        vitals = self._vitals
        vitals.windows += len(booked.fresh)
        vitals.samples += booked.values
        vitals.duplicates += booked.duplicates
        vitals.lost += booked.lost
        vitals.refused.update(booked.refused)
        for source, answers in _by_source(booked.answers):
            source.answer(answers)
        for stored in self._stored if booked.fresh else ():
            stored(booked.fresh)

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

"""Enters what has come into the ledger, makes rows of what is new, and says what each stream is to be answered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.append import Appender
from trimtab.collector.batch import Batch
from trimtab.collector.ledger import Entry, Key, Ledger, TooMany
from trimtab.collector.redo import Tables
from trimtab.collector.series import Series
from trimtab.collector.source import Answer, End
from trimtab.collector.store import Connection, translated
from trimtab.collector.stream import SEQ_MAX, Stream
from trimtab.collector.window import Window

REFUSAL_CHARACTERS_MAX = 1024
_FIELD = re.compile(r"(series|window|schema|hello)?(\.[a-z_]+)?")
"""With which a refusal begins; nothing of what an agent sent."""


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


@dataclass(slots=True)
class Booked:
    """What became of some items."""

    fresh: list[Window] = field(default_factory=list)
    rows: Tables = field(default_factory=dict)
    """Of the fresh windows."""
    news: list[Series] = field(default_factory=list)
    """Series among them that the store has no columns for."""
    openings: list[Stream] = field(default_factory=list)
    answers: list[tuple[Stream, Answer]] = field(default_factory=list)
    values: int = 0
    duplicates: int = 0
    lost: int = 0
    refused: list[str] = field(default_factory=list)
    """The field of each refusal."""


class Booking:
    """Of the writer. What it enters counts from then on; the writer must not answer before it is on the disk."""

    def __init__(self, connection: Connection, appender: Appender, ledger: Ledger) -> None:
        self._connection = connection
        self._appender = appender
        self._ledger = ledger

    def book(self, items: Sequence[Item], received_us: int) -> Booked:
        """Enter everything, in its order. Raises StoreError where the ledger cannot be read; then nothing was entered."""
        entries = self._entries(items)
        batch, refusals = self._prepare(items, entries)
        booked, streams = Booked(values=batch.values), list[int]()
        for item in items:
            stream = item.stream
            entry = entries[stream.node, stream.spool]
            if isinstance(entry, TooMany):
                booked.answers.append((stream, End(grpc.StatusCode.RESOURCE_EXHAUSTED, str(entry))))
                continue
            match item:
                case Opening():
                    booked.openings.append(stream)
                    booked.answers.append((stream, _welcome(stream, entry)))
                case Closing():
                    booked.answers.append((stream, End()))
                case Arrival(seq=seq, window=window):
                    refusal = item.refusal or refusals.get(id(item), "")
                    if refusal or window is None:
                        self._refuse(entry, seq, refusal, received_us, booked)
                        answer = pb.CollectorMessage(refusal=pb.Refusal(seq=seq, reason=refusal))
                    else:
                        answer = pb.CollectorMessage(ack=pb.Ack(seq=seq))
                        if self._is_new(entry, window, booked):
                            booked.fresh.append(window)
                            streams.append(entry.stream)
                    booked.answers.append((stream, answer))
        booked.rows = self._appender.rows(batch, booked.fresh, streams, received_us)
        booked.news = self._appender.news(batch)
        return booked

    def _entries(self, items: Sequence[Item]) -> dict[Key, Entry | TooMany]:
        found: dict[Key, Entry | TooMany] = {}
        with translated():
            for stream in (item.stream for item in items):
                key = stream.node, stream.spool
                if key not in found:
                    try:
                        found[key] = self._ledger.entry(self._connection, key, stream.hello.first_seq)
                    except TooMany as error:
                        found[key] = error
        return found

    def _prepare(self, items: Sequence[Item], entries: Mapping[Key, Entry | TooMany]) -> tuple[Batch, dict[int, str]]:
        """The windows that are new as columns; those that are refused by what is in them, as the id of their item and the reason."""
        marks: dict[Key, int] = {}
        new: list[Arrival] = []
        windows: list[Window] = []
        for item in items:
            key = item.stream.node, item.stream.spool
            entry = entries[key]
            if not isinstance(item, Arrival) or isinstance(entry, TooMany):
                continue
            if marks.get(key, entry.high_water_mark) < item.seq <= SEQ_MAX:
                # A refused one moves the mark, too.
                marks[key] = item.seq
                if item.window:
                    new.append(item)
                    windows.append(item.window)
        batch, refused = self._appender.prepare(windows)
        return batch, {id(new[position]): reason[:REFUSAL_CHARACTERS_MAX] for position, reason in refused.items()}

    def _refuse(self, entry: Entry, seq: int, refusal: str, received_us: int, booked: Booked) -> None:
        entry.refused += 1
        booked.refused.append(_FIELD.match(refusal).group())  # type: ignore[union-attr] # it matches nothing, too
        entry.last_refusal, entry.refused_at = refusal, received_us
        if entry.high_water_mark < seq <= SEQ_MAX:
            booked.lost += entry.advance(seq)
        self._ledger.urgent(entry)

    def _is_new(self, entry: Entry, window: Window, booked: Booked) -> bool:
        if window.seq <= entry.high_water_mark:
            entry.duplicates += 1
            booked.duplicates += 1
            self._ledger.urgent(entry)
            return False
        if lost := entry.advance(window.seq):
            booked.lost += lost
            self._ledger.urgent(entry)
        entry.windows += 1
        entry.last_window = max(entry.last_window, window.start_unix_ns // 1000)
        return True


def _welcome(stream: Stream, entry: Entry) -> pb.CollectorMessage:
    error = stream.timeline.error_seconds
    return pb.CollectorMessage(welcome=pb.Welcome(high_water_mark=entry.high_water_mark, clock_error_seconds=error))

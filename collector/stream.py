"""One agent's stream: who it is, what it may send, and the answers it still waits for."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import numpy as np

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import (
    EVENTS_MAX,
    PROTOCOL,
    SUBJECTS_MAX,
    TEXT_MAX,
    Malformed,
    Sketches,
    check_labels,
    check_name,
    check_node_name,
    check_schema,
    unpack_sketches,
    unpack_values,
)
from trimtab.agent.wire.talkers import TALKERS_MAX, check_talkers
from trimtab.collector.series import KINDS, Registry, Series
from trimtab.collector.timeline import Timeline
from trimtab.collector.window import Window

SCHEMAS_MAX = 16
UNANSWERED_MAX = 256
"""Most windows of one stream between its agent and its last answer."""
SEQ_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class End:
    """Why a stream ends; no code: the agent has said all."""

    code: grpc.StatusCode | None = None
    detail: str = ""


def check_hello(hello: pb.Hello) -> None:
    """Raises Malformed, naming the field."""
    if hello.protocol != PROTOCOL:
        what = f"{hello.protocol}, but this collector speaks {PROTOCOL}"
        raise Malformed(f"hello.protocol: {what}; install the same trimtab on both")
    for field in ("node", "boot_id", "spool_id"):
        check_node_name(f"hello.{field}", getattr(hello, field))
    if hello.machine_id:  # a container need not have one
        check_node_name("hello.machine_id", hello.machine_id)
    if not 0 < hello.first_seq <= SEQ_MAX:
        raise Malformed(f"hello.first_seq: {hello.first_seq} is not in [1, 2^63)")
    check_labels("hello.labels", hello.labels)
    if len(hello.agent_version) > TEXT_MAX:
        raise Malformed(f"hello.agent_version: over {TEXT_MAX} characters")


class Stream:
    """Used by one thread that reads and one that answers."""

    def __init__(self, hello: pb.Hello, timeline: Timeline, registry: Registry) -> None:
        self.hello = hello
        self.timeline = timeline
        self._registry = registry
        self._schemas: OrderedDict[bytes, pb.Schema | str] = OrderedDict()
        self._sketches: set[Series] = set()
        self._last_seq = 0
        self._answers: queue.SimpleQueue[pb.CollectorMessage | End] = queue.SimpleQueue()
        self._room = threading.Semaphore(UNANSWERED_MAX)
        self.ended = threading.Event()

    @property
    def node(self) -> str:
        return self.hello.node

    @property
    def spool(self) -> str:
        return self.hello.spool_id

    def learn(self, schema: pb.Schema) -> None:
        """Keep a schema; one that is wrong is the reason for which its windows will be refused."""
        entry: pb.Schema | str = schema
        try:
            check_schema(schema)
            self._check_subjects(schema)
            self._registry.admit_schema(schema)
        except Malformed as error:
            entry = str(error)
        self._schemas[schema.hash[:64]] = entry
        self._schemas.move_to_end(schema.hash[:64])
        if len(self._schemas) > SCHEMAS_MAX:
            self._schemas.popitem(last=False)

    def check(self, window: pb.Window, now_unix_ns: int) -> Window:
        """The window as the store takes it. Raises Malformed."""
        if not 0 < window.seq <= SEQ_MAX:
            raise Malformed(f"window.seq: {window.seq} is not in [1, 2^63)")
        if window.seq <= self._last_seq:
            raise Malformed(f"window.seq: {window.seq} came after {self._last_seq}")
        self._last_seq = window.seq
        schema = self._schemas.get(window.schema_hash)
        if schema is None:
            raise Malformed(f"window.schema_hash: {window.schema_hash[:8].hex()}… is none of the last {SCHEMAS_MAX}")
        if isinstance(schema, str):
            raise Malformed(schema)
        self._schemas.move_to_end(window.schema_hash)
        start = self.timeline.start_unix_ns(window, now_unix_ns)
        return Window(
            node=self.node,
            spool=self.spool,
            seq=window.seq,
            start_unix_ns=start,
            duration_ns=window.duration_ns,
            schema=schema,
            values=unpack_values(window, schema),
            sketches=self._unpack_sketches(window, schema),
            events=self._check_events(window, start - window.start_unix_ns),
            talkers=self._check_talkers(window),
        )

    def _check_subjects(self, schema: pb.Schema) -> None:
        for table in schema.tables:
            kind = KINDS[table.kind]
            for subject in table.subjects:
                _check_subject(f"schema.tables[{kind}].subjects", self.node, subject.id)

    def _unpack_sketches(self, window: pb.Window, schema: pb.Schema) -> list[Sketches]:
        # Before they are unpacked: 16 KiB each is far more than they are on the wire.
        size = sum(len(column.subjects) for column in window.sketches) // 4
        if size > SUBJECTS_MAX:
            raise Malformed(f"window.sketches: {size} in one window; at most {SUBJECTS_MAX}")
        columns = [unpack_sketches(column, schema) for column in window.sketches]
        if len({(column.table, column.name) for column in columns}) != len(columns):
            raise Malformed("window.sketches: a series comes twice")
        for column in columns:
            series = Series(KINDS[schema.tables[column.table].kind], column.name, column.unit, "sketch")
            if series not in self._sketches:
                self._registry.admit(series)
                self._sketches.add(series)
        return columns

    def _check_events(self, window: pb.Window, shift_ns: int) -> list[pb.Event]:
        if len(window.events) > EVENTS_MAX:
            raise Malformed(f"window.events: {len(window.events)}; at most {EVENTS_MAX}")
        for event in window.events:
            check_name("window.events.name", event.name)
            if event.subject_kind not in KINDS:
                raise Malformed(f"window.events[{event.name}].subject_kind: not named")
            _check_subject(f"window.events[{event.name}].subject", self.node, event.subject)
            if len(event.detail) > TEXT_MAX or np.isinf(event.value):
                raise Malformed(f"window.events[{event.name}]: detail over {TEXT_MAX} characters, or value infinite")
            occurred = event.unix_ns + shift_ns
            if not 0 <= occurred <= SEQ_MAX:
                raise Malformed(f"window.events[{event.name}].unix_ns: {event.unix_ns} is no time")
            event.unix_ns = occurred
        return list(window.events)

    def _check_talkers(self, window: pb.Window) -> list[pb.Talkers]:
        if len(window.talkers) > TALKERS_MAX:
            raise Malformed(f"window.talkers: {len(window.talkers)}; at most {TALKERS_MAX}")
        for talkers in window.talkers:
            check_talkers(talkers)
            if talkers.subject_kind not in KINDS:
                raise Malformed(f"window.talkers[{talkers.name}].subject_kind: not named")
            _check_subject(f"window.talkers[{talkers.name}].subject", self.node, talkers.subject)
        if len({(each.subject, each.name) for each in window.talkers}) != len(window.talkers):
            raise Malformed("window.talkers: a subject comes twice")
        return list(window.talkers)

    def expect_answer(self) -> bool:
        """Wait until there is room for one more unanswered window; False when the stream has ended."""
        while not self._room.acquire(timeout=0.5):
            if self.ended.is_set():
                return False
        return not self.ended.is_set()

    def answer(self, message: pb.CollectorMessage) -> None:
        self._answers.put(message)

    def end(self, end: End) -> None:
        """No more answers than those already given."""
        self.ended.set()
        self._answers.put(end)

    def answers(self) -> Iterator[pb.CollectorMessage | End]:
        """Answers in their order; the last one is an End."""
        while True:
            answer = self._answers.get()
            yield answer
            if isinstance(answer, End):
                return
            self._room.release()


def _check_subject(where: str, node: str, subject: str) -> None:
    if not (subject == node or subject.startswith(f"{node}/")) or len(subject) > TEXT_MAX or not subject.isprintable():
        raise Malformed(
            f"{where}: {subject[:TEXT_MAX]!r} is not {node!r}, nor printable text that starts with '{node}/'"
        )

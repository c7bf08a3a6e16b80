"""One agent's stream: who it is, what it may send, and whom to answer."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import (
    EVENTS_MAX,
    PROTOCOL,
    SUBJECTS_MAX,
    TEXT_MAX,
    Malformed,
    check_labels,
    check_name,
    check_node_name,
    check_schema,
)
from trimtab.agent.wire.talkers import TALKERS_MAX, check_talkers
from trimtab.collector.series import KINDS, Registry, Series
from trimtab.collector.source import Reply, Source
from trimtab.collector.timeline import Timeline
from trimtab.collector.window import Window

SCHEMAS_MAX = 16
UNANSWERED_MAX = 128
"""Most windows of one stream between its agent and its last answer."""
SEQ_MAX = (1 << 63) - 1


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
    """The windows of one spool, as a source brings them. Used by the source's thread; the writer looks at who it is."""

    def __init__(
        self, hello: pb.Hello, timeline: Timeline, registry: Registry, source: Source, reply: Reply | None = None
    ) -> None:
        self.hello = hello
        self.timeline = timeline
        self.source = source
        self.reply = reply
        """Who listens to the answers; nobody, once the stream is over."""
        self.unanswered = 0
        self._registry = registry
        self._schemas: OrderedDict[bytes, pb.Schema | str] = OrderedDict()
        self._subjects: dict[bytes, int] = {}
        self._admitted: tuple[bytes, tuple[tuple[int, str, str], ...]] | None = None
        """What the last window's sketches were: mostly those of the next."""
        self._last_seq = 0

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
        name = schema.hash[:64]
        self._schemas[name] = entry
        self._schemas.move_to_end(name)
        self._subjects[name] = sum(len(table.subjects) for table in schema.tables)
        if len(self._schemas) > SCHEMAS_MAX:
            gone, _ = self._schemas.popitem(last=False)
            del self._subjects[gone]

    def subjects(self, window: pb.Window) -> int:
        """How many subjects a checked window tells of."""
        return self._subjects[window.schema_hash]

    def check(self, window: pb.Window, now_unix_ns: int, came: bytes = b"") -> Window:
        """The window, which `came` in this message, with its time by the collector's clock. Raises Malformed.

        Its values and sketches are looked at by `Batch`.
        """
        seq, name = window.seq, window.schema_hash
        if not 0 < seq <= SEQ_MAX:
            raise Malformed(f"window.seq: {seq} is not in [1, 2^63)")
        if seq <= self._last_seq:
            raise Malformed(f"window.seq: {seq} came after {self._last_seq}")
        self._last_seq = seq
        schema = self._schemas.get(name)
        if schema is None:
            raise Malformed(f"window.schema_hash: {name[:8].hex()}… is none of the last {SCHEMAS_MAX}")
        if isinstance(schema, str):
            raise Malformed(schema)
        self._schemas.move_to_end(name)
        start = self.timeline.start_unix_ns(window, now_unix_ns)
        self._check_sketches(window, schema)
        self._check_events(window, start - window.start_unix_ns)
        self._check_talkers(window)
        return Window(self.node, self.spool, seq, start, window.duration_ns, schema, window, came)

    def _check_subjects(self, schema: pb.Schema) -> None:
        for table in schema.tables:
            kind = KINDS[table.kind]
            for subject in table.subjects:
                _check_subject(f"schema.tables[{kind}].subjects", self.node, subject.id)

    def _check_sketches(self, window: pb.Window, schema: pb.Schema) -> None:
        size, found = 0, []
        for column in window.sketches:
            size += len(column.subjects)
            found.append((column.table, column.name, column.unit))
        # Before they are unpacked: they take more room then.
        if size > SUBJECTS_MAX * 4:
            raise Malformed(f"window.sketches: {size // 4} in one window; at most {SUBJECTS_MAX}")
        columns = tuple(found)
        if (window.schema_hash, columns) == self._admitted:
            return
        if len({column[:2] for column in columns}) != len(columns):
            raise Malformed("window.sketches: a series comes twice")
        for table, name, unit in columns:
            where = f"window.sketches[{name[:TEXT_MAX]}]"
            check_name(f"{where}.name", name)
            if table >= len(schema.tables):
                raise Malformed(f"{where}.table: {table}, but there are {len(schema.tables)} tables")
            self._registry.admit(Series(KINDS[schema.tables[table].kind], name, unit, "sketch"))
        self._admitted = window.schema_hash, columns

    def _check_events(self, window: pb.Window, shift_ns: int) -> None:
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

    def _check_talkers(self, window: pb.Window) -> None:
        if len(window.talkers) > TALKERS_MAX:
            raise Malformed(f"window.talkers: {len(window.talkers)}; at most {TALKERS_MAX}")
        for talkers in window.talkers:
            check_talkers(talkers)
            if talkers.subject_kind not in KINDS:
                raise Malformed(f"window.talkers[{talkers.name}].subject_kind: not named")
            _check_subject(f"window.talkers[{talkers.name}].subject", self.node, talkers.subject)
        if len({(each.subject, each.name) for each in window.talkers}) != len(window.talkers):
            raise Malformed("window.talkers: a subject comes twice")


def _check_subject(where: str, node: str, subject: str) -> None:
    if not (subject == node or subject.startswith(f"{node}/")) or len(subject) > TEXT_MAX or not subject.isprintable():
        raise Malformed(
            f"{where}: {subject[:TEXT_MAX]!r} is not {node!r}, nor printable text that starts with '{node}/'"
        )

"""The last minutes of every signal of every subject, as arrays by time slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.window import Window
from trimtab.detector.latencies import Piece, unpack
from trimtab.detector.ring import Table
from trimtab.detector.robust import Array

NODE, GPU, INSTANCE = pb.SUBJECT_KIND_NODE, pb.SUBJECT_KIND_GPU, pb.SUBJECT_KIND_INSTANCE
MERGE_SECONDS = 5.0
"""How much of the sketches is merged to judge an instance by."""
SLOT_SECONDS = 1.0
ERROR_RATES = ("errors_per_second", "request_errors_per_second")
"""What the serving runtime tells of its errors, and what the kernel saw of them: either may know what the other does not."""
EVENTS_MAX = 512
# What a sketch leaves behind in each slot: its weight, and its sums, so that means of any length can be had.
_SUMS = [f"{prefix}_{part}" for prefix in ("latency", "queue") for part in ("count", "sum", "log_sum")]
_FIRST_SUM = {"request_latency": 0, "request_queue": 3}
_CLOCK_STEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Courses:
    """All signals of one subject over time."""

    names: list[str]
    units: dict[str, str]
    times_ns: NDArray[np.int64]
    """int64 [time]: where each slot begins, rising, without gaps."""
    values: Array
    """float32 [names, time]; NaN where unknown."""

    def course(self, name: str) -> Array:
        """float32 [time]; all NaN for a signal that the subject does not have."""
        if name not in self.names:
            return np.full(len(self.times_ns), np.nan, dtype=np.float32)
        course: Array = self.values[self.names.index(name)]
        return course


@dataclass
class Node:
    """What is known of one node. A slot is a second, or a window where that is longer."""

    name: str
    slots: int
    slot_ns: int
    newest: int = -1
    tables: dict[int, Table] = field(default_factory=dict)
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    events: deque[pb.Event] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    durations_ns: deque[int] = field(default_factory=lambda: deque(maxlen=5))
    schema_hash: bytes = b""
    schema_tables: list[Table] = field(default_factory=list)
    """In the schema's order."""
    gpu_of: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 [instances]: row of the GPU that each instance uses, the last of several; -1 for none."""
    instances_table: int = -1
    """Which of them is that of the instances."""

    @property
    def slot_seconds(self) -> float:
        return self.slot_ns / 1e9

    @property
    def newest_end_ns(self) -> int:
        return (self.newest + 1) * self.slot_ns

    def merge_slots(self, seconds: float = MERGE_SECONDS) -> int:
        """How many slots `seconds` are."""
        return min(self.slots, max(1, round(seconds / self.slot_seconds)))

    def last(self, kind: int, slots: int) -> Array:
        """float32 [slots, series, subjects] of the newest slots, newest first."""
        newest: Array = self.tables[kind].values[(self.newest - np.arange(slots)) % self.slots]
        return newest


_Waiting = tuple[Node, int, pb.SketchColumn]
"""Sketches that are not entered yet: their node and slot."""


class History:
    """The fleet's last `seconds`; for windows longer than a second, as many windows."""

    def __init__(self, seconds: float) -> None:
        self.slots = max(60, round(seconds / SLOT_SECONDS))
        self.nodes: dict[str, Node] = {}
        self.ignored = 0
        """Windows that were too old to be of use."""

    def observe(self, window: Window) -> None:
        """Put a window into its slots. Windows beyond the reach of the ring are ignored, and counted."""
        self.observe_all([window])

    def observe_all(self, windows: Sequence[Window]) -> None:
        """As `observe`, one after the other; of many at once each costs less."""
        waiting: list[_Waiting] = []
        for window in windows:
            node = self._node(window)
            # A window belongs where its middle is; one that took long fills every slot that it mostly covers.
            half = min(window.duration_ns, node.slot_ns) // 2
            first = (window.start_unix_ns + half) // node.slot_ns
            last = max(first, (window.start_unix_ns + window.duration_ns - half) // node.slot_ns)
            if node.newest >= 0 and last <= node.newest - self.slots:
                self.ignored += 1
                continue
            if window.schema.hash != node.schema_hash:
                # The rows of what waits are those of the schema before.
                _put_sketches(waiting)
                _adopt(node, window.schema)
            for slot in range(max(node.newest + 1, last - self.slots + 1) if node.newest >= 0 else last, last + 1):
                for kept in node.tables.values():
                    kept.clear(slot)
            node.newest = max(node.newest, last)
            for slot in range(max(first, node.newest - self.slots + 1), last + 1):
                for table, data in zip(node.schema_tables, window.message.values, strict=True):
                    table.put(slot, data)
            waiting += [
                (node, last, column)
                for column in window.message.sketches
                if column.name in _FIRST_SUM and column.table == node.instances_table
            ]
            for slot in [s for s in node.pieces if s <= node.newest - node.merge_slots()]:
                del node.pieces[slot]
            if window.message.events:
                node.events.extend(window.message.events)
        _put_sketches(waiting)

    def forget(self, now_unix_ns: int, silent_seconds: float) -> None:
        """Drop the nodes that were silent for long, and those whose windows lie in the future because a clock was put back."""
        for name, node in list(self.nodes.items()):
            ahead = (node.newest_end_ns - now_unix_ns) / 1e9
            if ahead > _CLOCK_STEP_SECONDS + 2 * node.slot_seconds or -ahead > silent_seconds + node.slot_seconds:
                del self.nodes[name]

    def find(self, subject: str) -> tuple[Node, Table, int] | None:
        """The node, the table and the row of a subject."""
        node = self.nodes.get(subject.partition("/")[0])
        for table in node.tables.values() if node else ():
            if node and subject in table.labels:
                return node, table, table.ids.index(subject)
        return None

    def labels(self, subject: str) -> dict[str, str]:
        """The subject's labels; empty when it is not known."""
        node = self.nodes.get(subject.partition("/")[0])
        for table in node.tables.values() if node else ():
            if subject in table.labels:
                return table.labels[subject]
        return {}

    def instances(self, model: str) -> list[str]:
        """Every instance that serves `model`."""
        return [i for i, labels in self.all(INSTANCE) if labels.get("model", "") == model]

    def all(self, kind: int, node: str | None = None) -> Iterator[tuple[str, dict[str, str]]]:
        """Every subject of a kind, and its labels; of one node only, where it is given."""
        names = self.nodes if node is None else [node] if node in self.nodes else []
        for name in names:
            tables = self.nodes[name].tables
            if kind in tables:
                yield from tables[kind].labels.items()

    def courses(self, subject: str) -> Courses | None:
        """All signals of a subject, with `request_latency` and `request_queue` as means and `error_ratio`; None when it is not known."""
        found = self.find(subject)
        if found is None:
            return None
        node, table, row = found
        slots = np.arange(node.newest - self.slots + 1, node.newest + 1)
        values: Array = table.values[slots % self.slots, :, row].T
        times = slots.astype(np.int64) * node.slot_ns
        courses = Courses(list(table.names), dict(table.units), times, values)
        return _derive(courses) if "latency_count" in table.names else courses

    def events(self, node: str, since_unix_ns: int) -> list[pb.Event]:
        """What happened on a node since then."""
        return [e for e in self.nodes[node].events if e.unix_ns >= since_unix_ns] if node in self.nodes else []

    def _node(self, window: Window) -> Node:
        node = self.nodes.get(window.node)
        durations = deque([window.duration_ns], maxlen=5) if node is None else node.durations_ns
        if node is not None:
            durations.append(window.duration_ns)
        usual = sorted(durations)[len(durations) // 2]
        # A window that was closed late does not make all slots longer; a setting that was changed does.
        if node is None or not 0.7 < max(usual / 1e9, SLOT_SECONDS) / node.slot_seconds < 1.4:
            slot_ns = max(round(SLOT_SECONDS * 1e9), round(usual / 1e8) * 10**8)
            node = self.nodes[window.node] = Node(window.node, self.slots, slot_ns, durations_ns=durations)
        return node


def _adopt(node: Node, schema: pb.Schema) -> None:
    for table in schema.tables:
        if table.kind not in node.tables:
            node.tables[table.kind] = Table(node.slots, _SUMS if table.kind == INSTANCE else ())
        moved = node.tables[table.kind].adopt(table)
        if table.kind == INSTANCE:
            for slot, pieces in node.pieces.items():
                node.pieces[slot] = [_move(piece, moved) for piece in pieces]
    kinds = [table.kind for table in schema.tables]
    node.schema_tables = [node.tables[kind] for kind in kinds]
    node.instances_table = kinds.index(INSTANCE) if INSTANCE in kinds else -1
    node.gpu_of = _gpus(node)
    node.schema_hash = schema.hash


def _gpus(node: Node) -> NDArray[np.int64]:
    instances, gpus = node.tables.get(INSTANCE), node.tables.get(GPU)
    if instances is None:
        return np.empty(0, dtype=np.int64)
    of = dict.fromkeys(instances.ids, -1)
    for row, gpu in enumerate(gpus.ids if gpus else ()):
        for user in gpus.labels[gpu].get("instances", "").split(",") if gpus else ():
            if user in of:
                of[user] = row
    return np.asarray(list(of.values()), dtype=np.int64)


def _move(piece: Piece, moved: NDArray[np.int64]) -> Piece:
    rows = moved[piece.rows]
    return Piece(rows[rows >= 0], piece.buckets[rows >= 0], piece.weights[rows >= 0])


def _put_sketches(waiting: list[_Waiting]) -> None:
    """Enter what waits, and empty it."""
    parts = unpack([column for _, _, column in waiting]) if waiting else []
    for (node, slot, column), part in zip(waiting, parts, strict=True):
        if slot <= node.newest - node.slots:
            continue
        table, first = node.tables[INSTANCE], _FIRST_SUM[column.name]
        table.add(slot, first, part.rows, part.sums)
        if column.name == "request_latency":
            table.serve(slot, part.rows, part.sums[0] > 0)
            if slot > node.newest - node.merge_slots():
                node.pieces.setdefault(slot, []).append(part.piece)
    waiting.clear()


def _derive(courses: Courses) -> Courses:
    names, rows = list(courses.names), [courses.values]
    derived = {
        "request_latency": ("s", courses.course("latency_sum"), courses.course("latency_count")),
        "request_queue": ("s", courses.course("queue_sum"), courses.course("queue_count")),
        "error_ratio": ("1", np.fmax(*map(courses.course, ERROR_RATES)), request_rates(courses)),
    }
    units = dict(courses.units)
    for name, (unit, total, count) in derived.items():
        names.append(name)
        rows.append(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)[None])
        units[name] = unit
    return Courses(names, units, courses.times_ns, np.concatenate(rows))


def request_rates(courses: Courses) -> Array:
    """float32 [time]: requests per second as the kernel saw them, else as the serving runtime counts them."""
    seen, counted = courses.course("requests_per_second"), courses.course("predictions_per_second")
    rates: Array = np.where(np.isnan(seen), counted, seen)
    return rates

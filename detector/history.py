"""The last minutes of every signal of every subject, as arrays by time slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Sketches
from trimtab.collector.window import Window
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
_SUMS = {"request_latency": "latency", "request_queue": "queue"}
_CLOCK_STEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Request latencies of some instances of a node in one slot, as (row, bucket, weight)."""

    rows: NDArray[np.int64]
    buckets: NDArray[np.int64]
    weights: NDArray[np.float32]


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


class History:
    """The fleet's last `seconds`; for windows longer than a second, as many windows."""

    def __init__(self, seconds: float) -> None:
        self.slots = max(60, round(seconds / SLOT_SECONDS))
        self.nodes: dict[str, Node] = {}
        self.ignored = 0
        """Windows that were too old to be of use."""

    def observe(self, window: Window) -> None:
        """Put a window into its slots. Windows beyond the reach of the ring are ignored, and counted."""
        node = self._node(window)
        # A window belongs where its middle is; one that took long fills every slot that it mostly covers.
        half = min(window.duration_ns, node.slot_ns) // 2
        first = (window.start_unix_ns + half) // node.slot_ns
        last = max(first, (window.start_unix_ns + window.duration_ns - half) // node.slot_ns)
        if node.newest >= 0 and last <= node.newest - self.slots:
            self.ignored += 1
            return
        if window.schema.hash != node.schema_hash:
            _adopt(node, window.schema)
        for slot in range(max(node.newest + 1, last - self.slots + 1) if node.newest >= 0 else last, last + 1):
            for kept in node.tables.values():
                kept.clear(slot)
        node.newest = max(node.newest, last)
        for slot in range(max(first, node.newest - self.slots + 1), last + 1):
            for table, values in zip(window.schema.tables, window.values, strict=True):
                node.tables[table.kind].put(slot, values)
        for sketches in window.sketches:
            if sketches.name in _SUMS and window.schema.tables[sketches.table].kind == INSTANCE:
                _put_sketches(node, last, sketches)
        node.events.extend(window.events)
        for slot in [s for s in node.pieces if s <= node.newest - node.merge_slots()]:
            del node.pieces[slot]

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
        found = self.find(subject)
        return found[1].labels[subject] if found else {}

    def instances(self, model: str) -> list[str]:
        """Every instance that serves `model`."""
        return [i for i, labels in self.all(INSTANCE) if labels.get("model", "") == model]

    def all(self, kind: int) -> Iterator[tuple[str, dict[str, str]]]:
        """Every subject of a kind, and its labels."""
        for node in self.nodes.values():
            if kind in node.tables:
                yield from node.tables[kind].labels.items()

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
            sums = [f"{s}_{part}" for s in _SUMS.values() for part in ("count", "sum", "log_sum")]
            node.tables[table.kind] = Table(node.slots, sums if table.kind == INSTANCE else ())
        moved = node.tables[table.kind].adopt(table)
        if table.kind == INSTANCE:
            for slot, pieces in node.pieces.items():
                node.pieces[slot] = [_move(piece, moved) for piece in pieces]
    node.schema_hash = schema.hash


def _move(piece: Piece, moved: NDArray[np.int64]) -> Piece:
    rows = moved[piece.rows]
    return Piece(rows[rows >= 0], piece.buckets[rows >= 0], piece.weights[rows >= 0])


def _put_sketches(node: Node, slot: int, sketches: Sketches) -> None:
    table, prefix = node.tables[INSTANCE], _SUMS[sketches.name]
    rows, weight = sketches.subjects.astype(np.int64), 1 / sketches.probabilities
    table.add(slot, f"{prefix}_count", rows, sketches.dense.sum(axis=1) * weight)
    table.add(slot, f"{prefix}_sum", rows, sketches.sums * weight)
    table.add(slot, f"{prefix}_log_sum", rows, sketches.dense @ np.log(np.maximum(MIDDLES_SECONDS, 1e-9)) * weight)
    if sketches.name == "request_latency":
        which, buckets = np.nonzero(sketches.dense)
        weights = (sketches.dense[which, buckets] * weight[which]).astype(np.float32)
        node.pieces.setdefault(slot, []).append(Piece(rows[which], buckets, weights))


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

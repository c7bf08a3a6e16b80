"""One window of this node: what the collectors read, as columns, and the schema that names them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.agent.collectors.own import Vitals
from trimtab.agent.registry import Collector, Instance, Kind, Reading, Signal
from trimtab.agent.sketch.loglinear import BUCKETS, Sketch
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import (
    EVENTS_MAX,
    LABELS_CHARACTERS_MAX,
    LABELS_MAX,
    SUBJECTS_MAX,
    TEXT_MAX,
    pack_sketches,
    pack_values,
    schema_hash,
)
from trimtab.agent.wire.talkers import TALKERS_MAX

log = logging.getLogger(__name__)

_TABLES: dict[Kind, pb.SubjectKind.ValueType] = {
    "node": pb.SUBJECT_KIND_NODE,
    "gpu": pb.SUBJECT_KIND_GPU,
    "instance": pb.SUBJECT_KIND_INSTANCE,
    "disk": pb.SUBJECT_KIND_DISK,
    "interface": pb.SUBJECT_KIND_INTERFACE,
    "model": pb.SUBJECT_KIND_MODEL,
    "worker": pb.SUBJECT_KIND_WORKER,
}
_FOUND_ELSEWHERE: tuple[Kind, ...] = ("node", "instance")
"""Which of them there are is known; the others are what their collectors name."""
_SAID_MAX = 100

Labels = dict[str, str]


class Builder:
    """Turns readings into windows.

    Series are the declared signals, whether read or not, so that the schema changes only with the subjects and their labels. What
    a collector said of its subjects holds until it is read again: one that is late for a window does not change the schema.
    """

    def __init__(self, node: str, labels: Mapping[str, str], collectors: Sequence[Collector], vitals: Vitals) -> None:
        self._node = node
        self._node_labels = dict(labels)
        self._vitals = vitals
        declared = {(s.kind, s.name): s for collector in collectors for s in collector.signals}
        self._series = {k: [s for s in declared.values() if s.kind == k and not s.sketch] for k in _TABLES}
        self._rows = {(s.kind, s.name): row for series in self._series.values() for row, s in enumerate(series)}
        self._sketched = {key: signal for key, signal in declared.items() if signal.sketch}
        self._seen: dict[str, dict[tuple[Kind, str], Labels]] = {}
        self._subjects: dict[Kind, dict[str, Labels]] = {}
        self._columns: dict[tuple[Kind, str], int] = {}
        self._schema = pb.Schema()
        self._said: set[tuple[str, str]] = set()

    def build(
        self,
        readings: Mapping[str, Reading],
        instances: Sequence[Instance],
        start_unix_ns: int,
        start_boottime_ns: int,
        duration_ns: int,
    ) -> tuple[pb.Schema, pb.Window]:
        """The window that `readings`, by collector, make; it has no number yet. The schema is the same object until it changes."""
        for name, reading in readings.items():
            named = {(kind, subject): Labels() for kind, subject, _ in (*reading.values, *reading.sketches)}
            self._seen[name] = named | reading.labels
        subjects = self._subjects_of(instances)
        if subjects != self._subjects:
            self._subjects = subjects
            self._columns = {(kind, s): i for kind, table in subjects.items() for i, s in enumerate(table)}
            self._schema = self._make_schema()
        window = pb.Window(
            schema_hash=self._schema.hash,
            start_unix_ns=start_unix_ns,
            start_boottime_ns=start_boottime_ns,
            duration_ns=duration_ns,
            values=self._values(readings),
            sketches=self._sketches(readings),
            events=self._events(readings, start_unix_ns),
            talkers=self._talkers(readings),
        )
        return self._schema, window

    def _subjects_of(self, instances: Sequence[Instance]) -> dict[Kind, dict[str, Labels]]:
        found: dict[Kind, dict[str, Labels]] = {kind: {} for kind in _TABLES}
        found["node"][self._node] = {}
        for one in instances:
            labels = {"runtime": one.runtime, "model": one.model, "addresses": ",".join(one.addresses)}
            by_grpc = {"grpc_port": str(one.grpc_port)} if one.grpc_port else {}
            found["instance"][one.id] = labels | by_grpc | {"pid": str(one.pid)}
        for seen in self._seen.values():
            for (kind, subject), said in seen.items():
                if kind not in _FOUND_ELSEWHERE or subject in found[kind]:
                    found[kind].setdefault(subject, {}).update(said)
        found["node"][self._node].update(self._node_labels)
        return {kind: dict(sorted(table.items())[:SUBJECTS_MAX]) for kind, table in found.items()}

    def _make_schema(self) -> pb.Schema:
        schema = pb.Schema()
        for kind, number in _TABLES.items():
            table = schema.tables.add(kind=number, series=[_series(signal) for signal in self._series[kind]])
            for subject, labels in self._subjects[kind].items():
                table.subjects.add(id=subject, labels=_cut(labels))
        schema.hash = schema_hash(schema)
        return schema

    def _values(self, readings: Mapping[str, Reading]) -> list[bytes]:
        tables = {k: np.full((len(self._series[k]), len(self._subjects[k])), np.nan) for k in _TABLES}
        for name, reading in readings.items():
            for (kind, subject, signal), value in reading.values.items():
                row, column = self._rows.get((kind, signal)), self._columns.get((kind, subject))
                if row is None or column is None:
                    self._drop(name, f"{kind} signal {signal}", "it is not declared, or not of a subject of this node")
                elif math.isinf(value):
                    self._drop(name, f"{kind} signal {signal}", "it is infinite")
                else:
                    tables[kind][row, column] = value
        return [pack_values(table) for table in tables.values()]

    def _sketches(self, readings: Mapping[str, Reading]) -> list[pb.SketchColumn]:
        found: dict[tuple[Kind, str], dict[int, Sketch]] = {}
        for name, reading in readings.items():
            for (kind, subject, signal), sketch in reading.sketches.items():
                column = self._columns.get((kind, subject))
                if (kind, signal) not in self._sketched or column is None:
                    self._drop(name, f"{kind} sketch {signal}", "it is not declared, or not of a subject of this node")
                elif not _is_whole(sketch):
                    self._drop(name, f"{kind} sketch {signal}", "it is infinite, negative or has a bad probability")
                else:
                    found.setdefault((kind, signal), {})[column] = sketch
        order = list(_TABLES)
        return [
            pack_sketches(order.index(key[0]), key[1], self._sketched[key].unit, list(of), list(of.values()))
            for key, of in found.items()
        ]

    def _events(self, readings: Mapping[str, Reading], unix_ns: int) -> list[pb.Event]:
        events: list[pb.Event] = []
        for collector, reading in readings.items():
            for kind, subject, name, value, detail in reading.events:
                if math.isinf(value) or len(events) >= EVENTS_MAX:
                    self._drop(collector, f"{kind} event {name}", "it is infinite, or there are too many")
                    continue
                event = pb.Event(subject_kind=_TABLES[kind], subject=subject, name=name, unix_ns=unix_ns, value=value)
                event.detail = detail[:TEXT_MAX]
                events.append(event)
        return events

    def _talkers(self, readings: Mapping[str, Reading]) -> list[pb.Talkers]:
        found: list[pb.Talkers] = []
        for collector, reading in readings.items():
            for (kind, subject, name), talkers in reading.talkers.items():
                if (kind, subject) not in self._columns or len(found) >= TALKERS_MAX:
                    why = "they are not of a subject of this node, or there are too many"
                    self._drop(collector, f"{kind} talkers {name}", why)
                    continue
                message = pb.Talkers(subject_kind=_TABLES[kind], subject=subject, name=name, seconds=talkers.seconds)
                message.frequent_items, message.hll = talkers.frequent_items, talkers.hll
                found.append(message)
        return found

    def _drop(self, collector: str, what: str, why: str) -> None:
        self._vitals.values_dropped += 1
        if (collector, what) not in self._said and len(self._said) < _SAID_MAX:
            self._said.add((collector, what))
            log.warning("collector %s: %s is dropped: %s", collector, what, why)


def _series(signal: Signal) -> pb.Series:
    kind = pb.SERIES_KIND_RATE if signal.rate else pb.SERIES_KIND_GAUGE
    return pb.Series(name=signal.name, unit=signal.unit, kind=kind)


def _is_whole(sketch: Sketch) -> bool:
    counts = sketch.counts
    fits = counts.shape == (BUCKETS,) and counts.min() >= 0 and counts.max() < 1 << 32
    return bool(fits and 0 < sketch.probability <= 1 and 0 <= sketch.sum_seconds < math.inf)


def _cut(labels: Labels) -> Labels:
    """As much of them as the collector takes."""
    out: Labels = {}
    left = LABELS_CHARACTERS_MAX
    for key, value in sorted(labels.items())[:LABELS_MAX]:
        short = (key[:TEXT_MAX], value[:TEXT_MAX])
        left -= sum(map(len, short))
        if left >= 0:
            out.setdefault(*short)
    return out

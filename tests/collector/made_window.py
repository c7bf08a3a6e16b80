"""Windows made of one number each: who knows the number knows all that the store must hold of the window."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from tests.collector.sender import BOOT_SECOND_NS, KINDS, schema
from trimtab.agent.sketch import loglinear
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import pack_sketches, pack_values

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Made:
    """What a number makes of a window of `node`."""

    schema: pb.Schema
    values: list[list[list[float]]]
    """[series][subjects] a table; NaN: unknown."""
    sketches: list[tuple[int, loglinear.Sketch]]
    """Of the first table: the subject's place, and the latency of its requests."""
    events: list[tuple[str, float, str]]
    """Subject, value, detail."""

    def window(self, unix_ns: int, boottime_ns: int) -> pb.Window:
        """As an agent puts it into its spool, begun now."""
        events = [
            pb.Event(
                subject_kind=KINDS["instance"],
                subject=subject,
                name="made",
                unix_ns=unix_ns + 1_000_000 * place,
                value=value,
                detail=detail,
            )
            for place, (subject, value, detail) in enumerate(self.events)
        ]
        places, sketches = [place for place, _ in self.sketches], [sketch for _, sketch in self.sketches]
        return pb.Window(
            schema_hash=self.schema.hash,
            start_unix_ns=unix_ns,
            start_boottime_ns=boottime_ns,
            duration_ns=BOOT_SECOND_NS,
            values=[pack_values(np.asarray(block)) for block in self.values],
            sketches=[pack_sketches(0, "request_latency", "s", places, sketches)] if places else [],
            events=events,
        )

    def fingerprints(self) -> dict[tuple[str, str, str], float]:
        """Its rows of the view `fingerprints`: kind, subject, signal → value."""
        rows = {}
        kinds = {number: name for name, number in KINDS.items()}
        for table, block in zip(self.schema.tables, self.values, strict=True):
            for series, known in zip(table.series, block, strict=True):
                for subject, value in zip(table.subjects, known, strict=True):
                    if not math.isnan(value):
                        rows[kinds[table.kind], subject.id, series.name] = value
        for place, sketch in self.sketches:
            numbers = {"count": sketch.count, "mean": sketch.mean_seconds}
            numbers |= zip(QUANTILES, sketch.quantiles_seconds(tuple(QUANTILES.values())), strict=True)
            for name, value in numbers.items():
                rows["instance", self.schema.tables[0].subjects[place].id, f"request_latency_{name}"] = value
        return rows


def make(number: int, node: str) -> Made:
    """The window of `number`: of one of three schemas, with some values unknown, some sketches and some events."""
    chance = random.Random(number)
    series = ["queue_depth", "batch_size", "utilisation"][: 1 + chance.randrange(3)]
    of = schema({"instance": (series, [f"{node}/8080", f"{node}/8081"]), "gpu": (["temperature"], [f"{node}/gpu/0"])})
    values = [
        [[chance.choice((math.nan, chance.random(), chance.random())) for _ in table.subjects] for _ in table.series]
        for table in of.tables
    ]
    seconds = [np.asarray([chance.expovariate(10) for _ in range(chance.randint(1, 40))]) for _ in range(2)]
    sketches = [
        (place, loglinear.of_seconds(seconds[place], chance.choice((1.0, 0.25))))
        for place in range(2)
        if chance.random() < 0.8
    ]
    events = [(f"{node}/8080", chance.random(), f"{number}.{i}") for i in range(chance.choice((0, 0, 1, 3)))]
    return Made(of, values, sketches, events)

"""Stores that are filled by hand, without a collector: what the tests of rollups and retention begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch import loglinear
from trimtab.collector.forgetting import Gone
from trimtab.collector.packed import SketchList
from trimtab.collector.rollmarks import MINUTE_US
from trimtab.collector.store import HALVES, Connection, Store, insert, transaction

START_US = 1_699_999_200_000_000
"""A whole hour."""
MEMORY = 256 << 20
FLOATS = ("requests_per_second", "queue_depth")
SERIES = [("instance", "requests_per_second", "1/s", "rate"), ("instance", "queue_depth", "1", "gauge")]
SERIES += [("instance", "request_latency", "s", "sketch")]


def opened(directory: Path) -> Store:
    """A new store that knows two gauges and a distribution of instances."""
    store = Store(directory / "trimtab.duckdb", MEMORY)
    connection = store.cursor()
    with transaction(connection):
        for half in HALVES:
            connection.execute(f'ALTER TABLE samples_instance_{half} ADD COLUMN IF NOT EXISTS "queue_depth" DOUBLE')
        store.show_columns(connection, "instance")
        connection.executemany("INSERT INTO series VALUES (?, ?, ?, ?)", SERIES)
    return store


def sketches(values_seconds: Sequence[Sequence[float] | None], probability: float = 1.0) -> dict[str, Any]:
    """The columns of request_latency, of the observations of each row; None: not known."""
    made = [
        loglinear.of_seconds(np.asarray(v or [], dtype=np.float64), probability=probability) for v in values_seconds
    ]
    lists = [np.flatnonzero(sketch.counts) for sketch in made]
    offsets = np.concatenate([[0], np.cumsum([len(buckets) for buckets in lists])]).astype(np.int64)
    buckets = np.concatenate([*lists, []]).astype(np.uint16)
    counts = np.concatenate([*(sketch.counts[b] for sketch, b in zip(made, lists, strict=True)), []]).astype(np.uint32)
    packed = SketchList(offsets, buckets, counts, np.full(len(made), probability))
    order = np.asarray([-1 if v is None else i for i, v in enumerate(values_seconds)], dtype=np.int64)
    numbers = packed.summary(np.asarray([sketch.sum_seconds for sketch in made]), order)
    columns = ("count", "mean", "p50", "p95", "p99")
    return {
        "request_latency_sketch": packed.pack(order),
        **{f"request_latency_{name}": numbers[i] for i, name in enumerate(columns)},
    }


def put(connection: Connection, subjects: Any, starts_us: Any, **columns: Any) -> None:
    """Rows of samples_instance, in one half or the other."""
    rows = {"subject": np.asarray(subjects, dtype=np.int32), "start": list(starts_us), **columns}
    half = HALVES[len(rows["start"]) % 2]
    insert(connection, f"INSERT INTO samples_instance_{half} BY NAME SELECT * FROM incoming", rows, ("start",))


def put_plain(connection: Connection, subjects: int, start_us: int, seconds: int, step_us: int = 1_000_000) -> None:
    """So many instances, a window every `step_us` each, of numbers that do not compress."""
    starts = np.repeat(start_us + np.arange(seconds) * step_us, subjects)
    numbers = np.random.default_rng(start_us % 1000).normal(size=(2, len(starts)))
    put(connection, np.tile(np.arange(1, subjects + 1), seconds), starts, **dict(zip(FLOATS, numbers, strict=True)))


def minute(at_us: int) -> int:
    return at_us - at_us % MINUTE_US


def rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    """All rows, by subject and start."""
    found: list[dict[str, Any]] = (
        connection.execute(f"SELECT * FROM {table} ORDER BY subject, start").to_arrow_table().to_pylist()
    )
    return found


def floats(values: Any) -> NDArray[np.float64]:
    return np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)


class Remembering:
    """A writer that keeps what it was told to forget."""

    def __init__(self) -> None:
        self.gone: list[Gone] = []

    def forget(self, gone: Gone) -> None:
        self.gone.append(gone)

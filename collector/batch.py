"""The windows of one transaction as columns: checked and laid out by kernels, with no Python object a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import SKETCH_FIELDS, Malformed
from trimtab.collector import kernels
from trimtab.collector.arrow import floats
from trimtab.collector.packed import SketchList
from trimtab.collector.series import COLUMNS_MAX, Registry, Series
from trimtab.collector.subjects import Layout, TableLayout
from trimtab.collector.window import Window

_SIZES = {name: int(dtype[2]) for name, dtype in SKETCH_FIELDS.items()}


ROW_BYTES_MAX = 9 * COLUMNS_MAX
"""What a row can take, which has every column of its table: a number and a bit for each, and whose it is and when it began."""


@dataclass(slots=True)
class Part:
    """One table of one window: its rows begin at `row`."""

    window: int
    layout: TableLayout
    row: int
    block: bytes
    """Its gauges and rates, as they came."""
    sketches: list[pb.SketchColumn]


@dataclass(slots=True)
class Block:
    """What goes into one table of the store."""

    kind: str
    series: list[Series]
    columns: dict[str, object]
    """By the names of the store's columns."""


@dataclass(slots=True)
class Batch:
    """Windows and what was made of them."""

    blocks: list[Block] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)
    """Windows that break the contract, by their position; then the blocks are of no use."""
    values: int = 0
    """How many values the blocks hold; a sketch counts as one."""
    talkers: dict[str, object] = field(default_factory=dict)
    """Rows of `talkers`, if any."""


def lay_out(windows: Sequence[Window], layouts: Sequence[Layout], registry: Registry) -> Batch:
    """All tables of these windows."""
    batch = Batch()
    kinds: dict[str, list[Part]] = {}
    rows: dict[str, int] = {}
    for w, (window, layout) in enumerate(zip(windows, layouts, strict=True)):
        blocks = list(window.message.values)
        if len(blocks) != len(layout.tables):
            batch.bad.add(w)
            continue
        sketches: dict[int, list[pb.SketchColumn]] = {}
        for column in window.message.sketches:
            sketches.setdefault(column.table, []).append(column)
        for t, (table, block) in enumerate(zip(layout.tables, blocks, strict=True)):
            found = sketches.get(t, [])
            if len(table.subjects):
                row = rows.get(table.kind, 0)
                kinds.setdefault(table.kind, []).append(Part(w, table, row, block, found))
                rows[table.kind] = row + len(table.subjects)
            elif block or any(column.subjects for column in found):
                batch.bad.add(w)
    for kind, parts in kinds.items():
        columns = _values(parts, rows[kind], batch)
        series = [registry.get(kind, name) for name in columns]
        for name, sketches_of in _sketch_columns(parts).items():
            sketched = registry.get(kind, name)
            columns.update(_sketches(sketched, sketches_of, rows[kind], batch))
            series.append(sketched)
        starts = [windows[part.window].start_unix_ns // 1000 for part in parts]
        lengths = [len(part.layout.subjects) for part in parts]
        own = {
            "subject": np.concatenate([part.layout.subjects for part in parts]),
            "start": np.repeat(np.asarray(starts, dtype=np.int64), lengths),
        }
        batch.values += sum(len(part.layout.names) * len(part.layout.subjects) for part in parts)
        batch.blocks.append(Block(kind, series, {**own, **columns}))
    return batch


def why(window: Window) -> str:
    """What is wrong with a window that is bad."""
    try:
        _ = window.values, window.sketches
    except Malformed as error:
        return str(error)
    return "window: cannot be read"


def _values(parts: Sequence[Part], rows: int, batch: Batch) -> dict[str, object]:
    """The gauges and rates, a column a name."""
    names = sorted({name for layout in {part.layout.names for part in parts} for name in layout})
    position = {name: i for i, name in enumerate(names)}
    maps: dict[tuple[str, ...], int] = {}
    columns: list[int] = []
    blocks, table, at = list[bytes](), list[tuple[int, ...]](), 0
    for part in parts:
        block = part.block
        series, subjects = len(part.layout.names), len(part.layout.subjects)
        if len(block) != 8 * series * subjects:
            batch.bad.add(part.window)
            block = b"\0" * (8 * series * subjects)
        if part.layout.names not in maps:
            maps[part.layout.names] = len(columns)
            columns += [position[name] for name in part.layout.names]
        table.append((at, series, subjects, part.row, maps[part.layout.names]))
        at += series * subjects
        blocks.append(block)
    out = np.empty((len(names), rows))
    known = np.zeros((len(names), (rows + 7) // 8), dtype=np.uint8)
    bad = np.zeros(len(parts), dtype=np.bool_)
    flat = np.frombuffer(bytearray().join(blocks), dtype="<f8")
    kernels.scatter(flat, np.asarray(table, dtype=np.int64), np.asarray(columns, dtype=np.int64), out, known, bad)
    batch.bad.update(parts[p].window for p in np.flatnonzero(bad).tolist())
    return dict(zip(names, floats(out, known), strict=True))


def _sketch_columns(parts: Sequence[Part]) -> dict[str, list[tuple[Part, pb.SketchColumn]]]:
    found: dict[str, list[tuple[Part, pb.SketchColumn]]] = {}
    for part in parts:
        for column in part.sketches:
            found.setdefault(column.name, []).append((part, column))
    return found


def _sketches(
    series: Series, found: Sequence[tuple[Part, pb.SketchColumn]], rows: int, batch: Batch
) -> dict[str, object]:
    """The column of a distribution, and those of the numbers that stand for it."""
    fields = {name: [getattr(column, name) for _, column in found] for name in SKETCH_FIELDS}
    sizes = {name: np.asarray([len(data) for data in fields[name]], dtype=np.int64) for name in SKETCH_FIELDS}
    odd = _misfits(sizes)
    if odd.any():
        batch.bad.update(found[p][0].window for p in np.flatnonzero(odd).tolist())
        return {}
    arrays = {name: np.frombuffer(bytearray().join(fields[name]), dtype=dtype) for name, dtype in SKETCH_FIELDS.items()}
    sketches, cells = sizes["subjects"] // 4, sizes["buckets"] // 2
    table = np.empty((len(found), 6), dtype=np.int64)
    table[:, 0], table[:, 1] = np.cumsum(sketches) - sketches, sketches
    table[:, 2], table[:, 3] = np.cumsum(cells) - cells, cells
    table[:, 4] = [len(part.layout.subjects) for part, _ in found]
    table[:, 5] = [part.row for part, _ in found]
    order, offsets = np.full(rows, -1, dtype=np.int64), np.zeros(int(sketches.sum()) + 1, dtype=np.int64)
    bad = np.zeros(len(found), dtype=np.bool_)
    kernels.check_sketches(
        table,
        arrays["subjects"],
        arrays["probabilities"],
        arrays["sums"],
        arrays["lengths"],
        arrays["buckets"],
        offsets,
        order,
        bad,
    )
    batch.bad.update(found[p][0].window for p in np.flatnonzero(bad).tolist())
    if bad.any():
        return {}
    batch.values += len(offsets) - 1
    listed = SketchList(offsets, arrays["buckets"], arrays["counts"], arrays["probabilities"])
    summary = listed.summary(arrays["sums"], order)
    known = np.packbits(~np.isnan(summary), axis=1, bitorder="little")
    columns: dict[str, object] = {series.columns[0]: listed.pack(order)}
    columns.update(zip(series.summary, floats(summary, known), strict=True))
    return columns


def _misfits(sizes: dict[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Which columns have fields that do not fit together; `sizes` are their bytes."""
    odd = np.zeros(len(sizes["subjects"]), dtype=np.bool_)
    for name, size in _SIZES.items():
        like = "buckets" if name in {"buckets", "counts"} else "subjects"
        odd |= (sizes[name] % size != 0) | (sizes[name] // size != sizes[like] // _SIZES[like])
    return odd

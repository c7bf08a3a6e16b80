"""How columns are packed into messages, and how strictly they are unpacked: what comes from outside is checked here, once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import BUCKETS, Sketch
from trimtab.agent.wire import telemetry_pb2 as pb

PROTOCOL = 1
MESSAGE_BYTES_MAX = 8 << 20
"""No message between the services is larger; gRPC refuses what is."""
SUBJECTS_MAX = 4096
SERIES_MAX = 512
EVENTS_MAX = 1024
TEXT_MAX = 256
"""Longest name, label or detail."""
LABELS_MAX = 64
LABELS_CHARACTERS_MAX = 4096
"""All the labels of one node or one subject together."""
SKETCH_FIELDS = {
    "subjects": "<u4",
    "probabilities": "<f8",
    "sums": "<f8",
    "lengths": "<u4",
    "buckets": "<u2",
    "counts": "<u4",
}
"""The arrays of a column of sketches, little-endian."""
_SUBJECT_KINDS = set(pb.SubjectKind.values()) - {pb.SUBJECT_KIND_UNSPECIFIED}
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Malformed(ValueError):
    """A message that breaks the contract. The text names the field."""


@dataclass(frozen=True, slots=True)
class Sketches:
    """The sketches of one series of one table: k of them, of the subjects `subjects` of table `table`.

    Cell i says that sketch `owners[i]`, in [0, k), has `counts[i]` observations in bucket `buckets[i]`; cells rise by sketch, then bucket.
    """

    table: int
    name: str
    unit: str
    subjects: NDArray[np.uint32]
    probabilities: NDArray[np.float64]
    sums: NDArray[np.float64]
    owners: NDArray[np.int64]
    buckets: NDArray[np.uint16]
    counts: NDArray[np.uint32]

    def total(self, cells: NDArray[Any]) -> NDArray[np.float64]:
        """float64 [k]: the sum of one number a cell over each sketch."""
        return np.bincount(self.owners, weights=cells, minlength=len(self.subjects)).astype(np.float64, copy=False)


def schema_hash(schema: pb.Schema) -> bytes:
    """What names this schema: SHA-256 over the deterministic serialisation of its tables."""
    return hashlib.sha256(pb.Schema(tables=schema.tables).SerializeToString(deterministic=True)).digest()


def pack_values(values: NDArray[np.float64]) -> bytes:
    """float64 [series, subjects] to bytes."""
    return values.astype("<f8", copy=False).tobytes()


def pack_sketches(
    table: int, name: str, unit: str, subjects: Sequence[int], sketches: Sequence[Sketch]
) -> pb.SketchColumn:
    """The sketches of one series, one for each of `subjects`; only buckets that hold something travel."""
    buckets = [np.flatnonzero(sketch.counts) for sketch in sketches]
    counts = [sketch.counts[filled] for sketch, filled in zip(sketches, buckets, strict=True)]
    return pb.SketchColumn(
        table=table,
        name=name,
        unit=unit,
        subjects=np.asarray(subjects, dtype="<u4").tobytes(),
        probabilities=np.asarray([s.probability for s in sketches], dtype="<f8").tobytes(),
        sums=np.asarray([s.sum_seconds for s in sketches], dtype="<f8").tobytes(),
        lengths=np.asarray([len(b) for b in buckets], dtype="<u4").tobytes(),
        buckets=np.concatenate([*buckets, np.empty(0)]).astype("<u2").tobytes(),
        counts=np.concatenate([*counts, np.empty(0)]).astype("<u4").tobytes(),
    )


def check_schema(schema: pb.Schema) -> None:
    """Raises Malformed when the schema breaks a limit or its own hash."""
    if schema.hash != schema_hash(schema):
        raise Malformed("schema.hash: does not match its tables")
    kinds = [table.kind for table in schema.tables]
    if len(set(kinds)) != len(kinds) or not set(kinds) <= _SUBJECT_KINDS:
        raise Malformed("schema.tables: each subject kind may come once, and must be one that this collector knows")
    for table in schema.tables:
        where = f"schema.tables[{pb.SubjectKind.Name(table.kind)}]"
        if len(table.subjects) > SUBJECTS_MAX or len(table.series) > SERIES_MAX:
            size = f"{len(table.subjects)} subjects and {len(table.series)} series"
            raise Malformed(f"{where}: {size}; at most {SUBJECTS_MAX} and {SERIES_MAX}")
        names = [series.name for series in table.series]
        if len(set(names)) != len(names):
            raise Malformed(f"{where}.series: a name comes twice")
        for name in names:
            check_name(f"{where}.series.name", name)
        ids = [subject.id for subject in table.subjects]
        if len(set(ids)) != len(ids):
            raise Malformed(f"{where}.subjects: an id comes twice")
        for subject in table.subjects:
            if not 0 < len(subject.id) <= TEXT_MAX:
                raise Malformed(f"{where}.subjects: an id is empty or over {TEXT_MAX} characters")
            check_labels(f"{where}.subjects.labels", subject.labels)


def check_node_name(field: str, name: str) -> None:
    """Names of nodes, and of the boot, machine and spool they speak for. Raises Malformed."""
    if not _NODE_NAME.fullmatch(name):
        allowed = "1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', the first a letter or digit"
        raise Malformed(f"{field}: {name[:TEXT_MAX]!r} is not {allowed}")


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    """What a node or a subject may carry as labels. Raises Malformed."""
    lengths = [len(text) for label in labels.items() for text in label]
    if len(labels) > LABELS_MAX or sum(lengths) > LABELS_CHARACTERS_MAX or max(lengths, default=0) > TEXT_MAX:
        most = f"{LABELS_CHARACTERS_MAX} characters together, or {TEXT_MAX} in one key or value"
        raise Malformed(f"{field}: over {LABELS_MAX} labels, {most}")


def check_name(field: str, name: str) -> None:
    """Series names become column names: lower-case ASCII words joined by underscores. Raises Malformed."""
    if not (0 < len(name) <= 63 and name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()):
        raise Malformed(f"{field}: {name[:80]!r} is not 1 to 63 of a-z, 0-9 and _")


def unpack_values(window: pb.Window, schema: pb.Schema) -> list[NDArray[np.float64]]:
    """One float64 [series, subjects] for each table. Raises Malformed on a wrong size or an infinity."""
    if len(window.values) != len(schema.tables):
        raise Malformed(f"window.values: {len(window.values)} blocks for {len(schema.tables)} tables")
    out = []
    for data, table in zip(window.values, schema.tables, strict=True):
        shape = (len(table.series), len(table.subjects))
        if len(data) != 8 * shape[0] * shape[1]:
            size = f"{len(data)} bytes for {shape[0]} series of {shape[1]} subjects"
            raise Malformed(f"window.values[{pb.SubjectKind.Name(table.kind)}]: {size}")
        values = np.frombuffer(data, dtype="<f8").reshape(shape)
        if np.isinf(values).any():
            series = table.series[int(np.argwhere(np.isinf(values))[0][0])].name
            raise Malformed(f"window.values: {series} is infinite; unknown is NaN")
        out.append(values)
    return out


def unpack_sketches(column: pb.SketchColumn, schema: pb.Schema) -> Sketches:
    """The column as arrays. Raises Malformed on a wrong size, index, order, or a value that is not finite."""
    where = f"window.sketches[{column.name[:TEXT_MAX]}]"
    check_name(f"{where}.name", column.name)
    if column.table >= len(schema.tables):
        raise Malformed(f"{where}.table: {column.table}, but there are {len(schema.tables)} tables")
    arrays = {name: _array(where, name, getattr(column, name), dtype) for name, dtype in SKETCH_FIELDS.items()}
    subjects, lengths, buckets = arrays["subjects"], arrays["lengths"].astype(np.int64), arrays["buckets"]
    k = len(subjects)
    if any(len(arrays[name]) != k for name in ("probabilities", "sums", "lengths")):
        raise Malformed(f"{where}: subjects, probabilities, sums and lengths differ in length")
    if len(buckets) != lengths.sum() or len(arrays["counts"]) != len(buckets):
        raise Malformed(f"{where}: lengths, buckets and counts do not fit together")
    if k and (len(np.unique(subjects)) != k or subjects.max() >= len(schema.tables[column.table].subjects)):
        raise Malformed(f"{where}.subjects: one comes twice, or is not in the table")
    if len(buckets) and buckets.max() >= BUCKETS:
        raise Malformed(f"{where}.buckets: {buckets.max()}; the last bucket is {BUCKETS - 1}")
    owners = np.repeat(np.arange(k), lengths)
    if (np.diff(owners * BUCKETS + buckets) <= 0).any():
        raise Malformed(f"{where}.buckets: not rising")
    probabilities, sums = arrays["probabilities"], arrays["sums"]
    # Written so that NaN fails too.
    if not ((probabilities > 0) & (probabilities <= 1)).all():
        raise Malformed(f"{where}.probabilities: not in (0, 1]")
    if not (np.isfinite(sums) & (sums >= 0)).all():
        raise Malformed(f"{where}.sums: negative or not finite")
    return Sketches(
        column.table, column.name, column.unit, subjects, probabilities, sums, owners, buckets, arrays["counts"]
    )


def _array(where: str, name: str, data: bytes, dtype: str) -> NDArray[Any]:
    if len(data) % np.dtype(dtype).itemsize:
        raise Malformed(f"{where}.{name}: {len(data)} bytes is no whole number of {dtype}")
    return np.frombuffer(data, dtype=dtype)

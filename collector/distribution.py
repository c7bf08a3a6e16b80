"""Sketches of the store, merged by subject and sampling probability: sums of counts, and so exact."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trimtab.agent.sketch.loglinear import BUCKETS
from trimtab.collector import kernels
from trimtab.collector.marks import ROLLED_HOURS, ROLLED_MINUTES, read
from trimtab.collector.packed import unpack
from trimtab.collector.store import Connection, arrow_batches

_ROWS_AT_ONCE = 1 << 17
_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - all times of the store are UTC, without a zone
_NEVER = datetime.datetime.max  # noqa: DTZ901 - the same
_MICROSECOND, _MINUTE, _HOUR = (datetime.timedelta(seconds=s) for s in (1e-6, 60, 3600))


@dataclass(slots=True)
class Merged:
    """k sketches, each of one subject and one sampling probability."""

    subjects: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    counts: NDArray[np.int64]
    """int64 [k, BUCKETS]."""
    sums: NDArray[np.float64]
    """Seconds over the sampled observations; to six digits, as the store keeps the means."""


def merged(
    connection: Connection,
    signal: str,
    subjects: Sequence[int],
    since: datetime.datetime,
    until: datetime.datetime = _NEVER,
) -> Merged:
    """Of one distribution of instances, `subjects` their rising numbers, over all that began in [`since`, `until`).

    Whole hours and minutes that are rolled up are taken from there: a sixtieth of the rows, and the same counts.
    """
    statement = " UNION ALL ".join(_pieces(connection, signal))
    groups: dict[tuple[int, float], int] = {}
    dense = np.zeros((0, BUCKETS))
    sums = np.zeros(0)
    among = np.asarray(subjects, dtype=np.int64)
    if not len(among):
        return _merged(groups, dense, sums)
    wanted = {**_spans(connection, since, until), "first": subjects[0], "last": subjects[-1]}
    for batch in arrow_batches(connection, statement, wanted, _ROWS_AT_ONCE):
        sketches = unpack(batch["sketch"])
        # By hash: there are far fewer of both than rows.
        owners, probabilities = (
            array.dictionary_encode() for array in (batch["subject"], pa.array(sketches.probabilities))
        )
        pairs = (
            owners.indices.to_numpy().astype(np.int64) * len(probabilities.dictionary)
            + probabilities.indices.to_numpy()
        )
        distinct = np.flatnonzero(np.bincount(pairs))
        rows_of = np.zeros(distinct[-1] + 1 if len(distinct) else 0, dtype=np.int64)
        for pair in distinct.tolist():
            owner, probability = divmod(pair, len(probabilities.dictionary))
            name = owners.dictionary[owner].as_py(), probabilities.dictionary[probability].as_py()
            rows_of[pair] = groups.setdefault(name, len(groups))
        if len(groups) > len(dense):
            dense = np.concatenate([dense, np.zeros((len(groups) - len(dense), BUCKETS))])
            sums = np.concatenate([sums, np.zeros(len(groups) - len(sums))])
        into = rows_of[pairs]
        kernels.merge(sketches.offsets, sketches.buckets, sketches.counts, np.ones(len(sketches)), into, dense)
        means = np.nan_to_num(_floats(batch["mean"]))
        np.add.at(sums, into, means * sketches.sampled)
    return _of(among, _merged(groups, dense, sums))


def _pieces(connection: Connection, signal: str) -> Iterator[str]:
    known = "SELECT table_name FROM duckdb_columns() WHERE table_name LIKE 'samples_instance%' AND column_name = ?"
    tables = {table for (table,) in connection.execute(known, [f"{signal}_sketch"]).fetchall()}
    spans = {
        "samples_instance_1h": "start >= $hours AND start < $hours_end",
        "samples_instance_1m": "start >= $minutes AND start < $hours OR start >= $hours_end AND start < $minutes_end",
        "samples_instance": "start >= $since AND start < least($minutes, $until) OR start >= $minutes_end AND start < $until",
    }
    for table, span in spans.items():
        if table in tables:
            # The name of the signal was checked, and is a column's.
            yield (
                f"SELECT subject, {signal}_sketch AS sketch, {signal}_mean AS mean FROM {table} "  # noqa: S608
                f"WHERE ({span}) AND subject BETWEEN $first AND $last AND {signal}_sketch IS NOT NULL"
            )


def _spans(connection: Connection, since: datetime.datetime, until: datetime.datetime) -> dict[str, datetime.datetime]:
    """[since, minutes) and [minutes_end, until): windows; [minutes, hours) and [hours_end, minutes_end): minutes; in between: hours."""
    rolled = {name: _EPOCH + _MICROSECOND * (read(connection, name) or 0) for name in (ROLLED_MINUTES, ROLLED_HOURS)}
    # A minute that has windows which its rollup does not know yet is no whole one, nor is its hour.
    [(late,)] = connection.execute(
        "SELECT min(start) FROM late_minutes WHERE start >= ? - INTERVAL 1 MINUTE", [since]
    ).fetchall()
    if late is not None:
        rolled[ROLLED_MINUTES] = min(rolled[ROLLED_MINUTES], late)
        rolled[ROLLED_HOURS] = min(rolled[ROLLED_HOURS], _EPOCH + (late - _EPOCH) // _HOUR * _HOUR)
    for name, unit in ((ROLLED_MINUTES, _MINUTE), (ROLLED_HOURS, _HOUR)):
        rolled[name] = min(rolled[name], _EPOCH + (until - _EPOCH) // unit * unit)
    minutes = _EPOCH + -(-(since - _EPOCH) // _MINUTE) * _MINUTE
    minutes_end = max(minutes, rolled[ROLLED_MINUTES])
    hours = min(_EPOCH + -(-(minutes - _EPOCH) // _HOUR) * _HOUR, minutes_end)
    hours_end = max(hours, min(rolled[ROLLED_HOURS], minutes_end))
    return {
        "since": since,
        "until": until,
        "minutes": minutes,
        "hours": hours,
        "hours_end": hours_end,
        "minutes_end": minutes_end,
    }


def _of(among: NDArray[np.int64], found: Merged) -> Merged:
    """Those of the subjects that were asked for."""
    kept = np.isin(found.subjects, among)
    return Merged(found.subjects[kept], found.probabilities[kept], found.counts[kept], found.sums[kept])


def _merged(groups: dict[tuple[int, float], int], dense: NDArray[np.float64], sums: NDArray[np.float64]) -> Merged:
    return Merged(
        np.asarray([subject for subject, _ in groups], dtype=np.int64),
        np.asarray([probability for _, probability in groups], dtype=np.float64),
        dense.astype(np.int64),
        sums,
    )


def _floats(column: pa.Array) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)

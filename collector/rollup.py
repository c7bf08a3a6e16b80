"""Rollups: rows of a minute become one, and minutes of an hour one, for each subject.

Of a gauge or rate are kept for how many windows it was known, its min, mean, max and last; of a distribution the merged sketch, and the
numbers that come from it. An hour is made from minutes as a minute is from windows, since a window is a rollup of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trimtab.collector.arrow import Columns, known_floats
from trimtab.collector.kernels_rollup import gather
from trimtab.collector.packed import unpack
from trimtab.collector.series import SKETCH, Series
from trimtab.collector.store import HALVES, Connection, insert

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PARTS = ("min", "mean", "max", "last")
SUBJECTS_AT_ONCE = 512
"""So many are rolled up in one pass: 60 windows of each, and 16 KiB of counts a sketch, take some 30 MB."""


@dataclass(frozen=True, slots=True)
class Level:
    """A step of rolling up."""

    source: str
    """What follows samples_KIND in the name of the table that is read."""
    target: str
    period_us: int

    @property
    def of_windows(self) -> bool:
        """Whether the rows that are read are windows, and not rollups themselves."""
        return not self.source


MINUTES = Level("", "_1m", 60_000_000)
HOURS = Level("_1m", "_1h", 3_600_000_000)


def columns_of(series: Series) -> dict[str, str]:
    """The columns of a rollup that hold a series, each with its type."""
    if series.form == "sketch":
        return {f"{series.name}{SKETCH}": "BLOB", **dict.fromkeys(series.summary, "DOUBLE")}
    return {f"{series.name}_known": "INTEGER", **{f"{series.name}_{part}": "DOUBLE" for part in PARTS}}


def roll(connection: Connection, level: Level, kind: str, series: Sequence[Series], start_us: int) -> int:
    """Bring the rollup of one kind over one period up to date, within an open transaction; how many rows were read.

    Rolls up the subjects of which more windows are there than were rolled up: so a period is rolled up the first time, and again when
    windows came late. The columns must be there, and `series` be all of this kind. Raises StoreError.
    """
    table, target = f"samples_{kind}{level.source}", f"samples_{kind}{level.target}"
    span = [start_us, start_us + level.period_us]
    counted = "count(*)" if level.of_windows else "sum(windows)"
    found = connection.execute(
        f"""SELECT s.subject, t.subject IS NOT NULL
        FROM (SELECT subject, {counted} AS windows FROM {table} WHERE {_WITHIN} GROUP BY subject) s
        LEFT JOIN (SELECT subject, windows FROM {target} WHERE {_WITHIN}) t USING (subject)
        WHERE s.windows IS DISTINCT FROM t.windows ORDER BY s.subject""",  # noqa: S608 - our own names
        [*span, *span],
    ).fetchall()
    again = [subject for subject, rolled_before in found if rolled_before]
    if again:
        connection.execute(f"DELETE FROM {target} WHERE {_WITHIN} AND {_among(again)}", span)  # noqa: S608
    return _add(connection, level, kind, series, start_us, [subject for subject, _ in found])


def fold(connection: Connection, level: Level, kind: str, series: Sequence[Series], start_us: int) -> int:
    """Add to a rollup what came after the other rows of the period were deleted: these rows go into it, and are deleted too.

    As `roll` otherwise.
    """
    table, target = f"samples_{kind}{level.source}", f"samples_{kind}{level.target}"
    span = [start_us, start_us + level.period_us]
    found = connection.execute(
        f"SELECT DISTINCT subject FROM {table} WHERE {_WITHIN} ORDER BY subject",  # noqa: S608 - our own names
        span,
    ).fetchall()
    if not found:
        return 0
    read = _add(connection, level, kind, series, start_us, [subject for (subject,) in found])
    for part in [level.source] if level.source else [f"_{half}" for half in HALVES]:
        connection.execute(f"DELETE FROM samples_{kind}{part} WHERE {_WITHIN}", span)  # noqa: S608
    twice = connection.execute(
        f"SELECT subject FROM {target} WHERE {_WITHIN} GROUP BY subject HAVING count(*) > 1 ORDER BY subject",  # noqa: S608
        span,
    ).fetchall()
    again = Level(level.target, level.target, level.period_us)
    for some in _slices([subject for (subject,) in twice]):
        both = _read(connection, again, kind, series, span, some)
        connection.execute(f"DELETE FROM {target} WHERE {_WITHIN} AND {_among(some)}", span)  # noqa: S608
        _insert(connection, again, kind, rolled(both, series, again, start_us))
    return read


def rolled(read: pa.Table, series: Iterable[Series], level: Level, start_us: int) -> Columns:
    """One row for each subject, of rows that all belong to one period; in whatever order they come."""
    subjects = read["subject"].to_numpy().astype(np.int64)
    order = np.lexsort((read["start"].to_numpy(), subjects))
    distinct, firsts = np.unique(subjects[order], return_index=True)
    bounds = np.append(firsts, len(order)).astype(np.int64)
    groups = np.searchsorted(distinct, subjects)
    windows = np.ones(len(order)) if level.of_windows else _floats(read["windows"])
    out: dict[str, Any] = {
        "subject": distinct.astype(np.int32),
        "start": np.full(len(distinct), start_us),
        "windows": np.bincount(groups, weights=windows, minlength=len(distinct)).astype(np.int32),
    }
    plain = [one for one in series if one.form != "sketch"]
    if plain:
        out.update(_plain(read, plain, level, order, bounds))
    for one in series:
        if one.form == "sketch":
            out.update(_merged(read, one, groups, len(distinct)))
    return out


_WITHIN = "start >= make_timestamp(?) AND start < make_timestamp(?)"


def _among(subjects: Sequence[int]) -> str:
    # Not as a parameter: DuckDB takes a quarter of a millisecond for each element of a list.
    return f"subject IN ({', '.join(map(str, subjects))})"


def _add(
    connection: Connection, level: Level, kind: str, series: Sequence[Series], start_us: int, subjects: Sequence[int]
) -> int:
    rows = 0
    for some in _slices(subjects):
        read = _read(connection, level, kind, series, [start_us, start_us + level.period_us], some)
        rows += read.num_rows
        _insert(connection, level, kind, rolled(read, series, level, start_us))
    return rows


def _slices(subjects: Sequence[int]) -> list[Sequence[int]]:
    return [subjects[at : at + SUBJECTS_AT_ONCE] for at in range(0, len(subjects), SUBJECTS_AT_ONCE)]


def _read(
    connection: Connection, level: Level, kind: str, series: Sequence[Series], span: Sequence[int], some: Sequence[int]
) -> pa.Table:
    statement = f"SELECT {_wanted(level, series)} FROM samples_{kind}{level.source} WHERE {_WITHIN} AND {_among(some)}"  # noqa: S608
    return connection.execute(statement, span).to_arrow_table()


def _insert(connection: Connection, level: Level, kind: str, columns: Columns) -> None:
    statement = f"INSERT INTO samples_{kind}{level.target} BY NAME SELECT * FROM incoming"  # noqa: S608
    insert(connection, statement, columns, ("start",))


def _wanted(level: Level, series: Iterable[Series]) -> str:
    names = ["subject", "epoch_us(start) AS start"] + ([] if level.of_windows else ["windows"])
    for one in series:
        if one.form == "sketch":
            names += [f'"{one.name}{SKETCH}"', f'"{one.name}_count"', f'"{one.name}_mean"']
        else:
            names += [f'"{one.name}"'] if level.of_windows else [f'"{column}"' for column in columns_of(one)]
    return ", ".join(names)


def _plain(read: pa.Table, series: Sequence[Series], level: Level, order: Ints, bounds: Ints) -> Columns:
    def matrix(part: str) -> Floats:
        return np.stack([_floats(read[f"{one.name}{part}"]) for one in series])

    if level.of_windows:
        values = matrix("")
        known, (low, mean, high, last) = (~np.isnan(values)).astype(np.int64), [values] * 4
    else:
        known = np.nan_to_num(matrix("_known")).astype(np.int64)
        low, mean, high, last = (matrix(f"_{part}") for part in PARTS)
    groups = len(bounds) - 1
    out_known, out = np.empty((len(series), groups), dtype=np.int64), np.empty((4, len(series), groups))
    gather(known, low, mean, high, last, order, bounds, out_known, out)
    columns: dict[str, Any] = {}
    for i, one in enumerate(series):
        columns[f"{one.name}_known"] = out_known[i].astype(np.int32)
        columns.update({f"{one.name}_{part}": known_floats(out[p, i]) for p, part in enumerate(PARTS)})
    return columns


def _merged(read: pa.Table, series: Series, groups: Ints, among: int) -> Columns:
    packed = read[series.columns[0]].combine_chunks()
    known = packed.is_valid().to_numpy(zero_copy_only=False)
    owners = groups[known]
    merged = unpack(packed.drop_null()).merge(owners, among)
    counts = np.nan_to_num(_floats(read[f"{series.name}_count"])[known])
    means = np.nan_to_num(_floats(read[f"{series.name}_mean"])[known])
    total = np.bincount(owners, weights=counts, minlength=among)
    weighted = np.bincount(owners, weights=counts * means, minlength=among)
    mean = np.divide(weighted, total, out=np.zeros(among), where=total > 0)
    order = np.where(np.bincount(owners, minlength=among) > 0, np.arange(among), -1)
    numbers = merged.summary(mean * merged.sampled, order)
    numbers[0] = np.where(order >= 0, total, np.nan)
    summary = {name: known_floats(numbers[i]) for i, name in enumerate(series.summary)}
    return {series.columns[0]: merged.pack(order), **summary}


def _floats(column: pa.ChunkedArray) -> Floats:
    """NaN where NULL."""
    return np.asarray(column.to_numpy(), dtype=np.float64)

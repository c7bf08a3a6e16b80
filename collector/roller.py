"""Rolls up what is over, and again what came late: a transaction a period, which also says how far it has come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from trimtab.collector import marks
from trimtab.collector.append import known_series
from trimtab.collector.rollmarks import HOUR_US, MINUTE_US
from trimtab.collector.rollup import HOURS, MINUTES, Level, columns_of, fold, roll
from trimtab.collector.series import KINDS, Series
from trimtab.collector.store import Connection, Store, StoreDamaged, StoreError, transaction
from trimtab.collector.vitals import Vitals

log = logging.getLogger(__name__)

GRACE_US = 15_000_000
"""A minute is rolled up so long after its end: windows take a moment to come."""
AT_ONCE = 4
"""Most periods in one turn, so that what else the keeper does is done in time."""

_NOTED = "DELETE FROM late_minutes WHERE start IN (SELECT make_timestamp(unnest(?::BIGINT[])))"


class Roller:
    """Owned by the keeper's thread."""

    def __init__(self, store: Store, connection: Connection, vitals: Vitals) -> None:
        self._store = store
        self._connection = connection
        self._vitals = vitals
        self._there: set[tuple[str, str]] = set()
        self._done_us = -1
        """Up to when nothing was left to do."""

    def turn(self, now_us: int, stop: threading.Event) -> bool:
        """Roll up what is due; whether there is more. Raises StoreError: then the transaction that failed never was."""
        due = (now_us - GRACE_US) // MINUTE_US * MINUTE_US
        if due == self._done_us and not self._store.rolled.has_late:
            return False
        self._store.rolled.has_late = False
        try:
            series = self._series()
            more = self._minutes(series, due, stop)
            more |= self._late(series, stop)
            more |= self._hours(series, stop)
        except StoreError:
            self._done_us = -1
            raise
        self._done_us = -1 if more else due
        return more

    def _minutes(self, series: dict[str, list[Series]], due: int, stop: threading.Event) -> bool:
        # First the mark, then a snapshot: a window that is not in it has seen the mark, and its minute is noted as late.
        self._store.rolled.advance(due)
        return self._forward(MINUTES, marks.ROLLED_MINUTES, due, series, stop)

    def _hours(self, series: dict[str, list[Series]], stop: threading.Event) -> bool:
        due = (marks.read(self._connection, marks.ROLLED_MINUTES) or 0) // HOUR_US * HOUR_US
        return self._forward(HOURS, marks.ROLLED_HOURS, due, series, stop)

    def _forward(
        self, level: Level, mark: str, due: int, series: dict[str, list[Series]], stop: threading.Event
    ) -> bool:
        """Roll up one period after the other up to `due`; whether there are more."""
        for _ in range(AT_ONCE):
            at = marks.read(self._connection, mark)
            if stop.is_set() or (at is not None and at >= due):
                return False
            start = due if at is None else at
            try:
                with transaction(self._connection):
                    first = oldest(self._connection, level.source, at)
                    start = due if first is None else min(first // level.period_us * level.period_us, due)
                    if start < due:
                        self._roll(level, series, start)
                    marks.write(self._connection, mark, min(start + level.period_us, due))
            except StoreDamaged as error:
                self._pass_over(level, mark, start, error)
        return True

    def _pass_over(self, level: Level, mark: str, start: int, error: StoreDamaged) -> None:
        """A period that cannot be read must not hold up those after it."""
        self._vitals.rollups_damaged += 1
        log.error("a part of the file is broken, and a period is not rolled up (samples%s): %s", level.target, error)
        with transaction(self._connection):
            marks.write(self._connection, mark, start + level.period_us)

    def _late(self, series: dict[str, list[Series]], stop: threading.Event) -> bool:
        """Minutes noted by the writer, an hour of them in a transaction."""
        through = marks.read(self._connection, marks.ROLLED_MINUTES) or 0
        found = self._connection.execute(
            "SELECT DISTINCT epoch_us(start) FROM late_minutes WHERE start < make_timestamp(?) ORDER BY 1", [through]
        ).fetchall()
        hours: dict[int, list[int]] = {}
        for (start,) in found:
            hours.setdefault(start // HOUR_US * HOUR_US, []).append(start)
        for hour in list(hours)[:AT_ONCE]:
            if stop.is_set():
                return False
            try:
                with transaction(self._connection):
                    self._again(series, hour, hours[hour])
            except StoreDamaged as error:
                self._vitals.rollups_damaged += 1
                log.error("a part of the file is broken, and late windows are not rolled up: %s", error)
                with transaction(self._connection):
                    self._connection.execute(_NOTED, [hours[hour]])
        return len(hours) > AT_ONCE

    def _again(self, series: dict[str, list[Series]], hour: int, minutes: Sequence[int]) -> None:
        # What is noted meanwhile is not seen by this transaction: it stays noted.
        self._connection.execute(_NOTED, [list(minutes)])
        raw_from = marks.read(self._connection, marks.RAW_FROM) or 0
        for minute in minutes:
            self._roll(MINUTES, series, minute, whole=minute >= raw_from)
            self._vitals.rollups_late += 1
        if hour < (marks.read(self._connection, marks.ROLLED_HOURS) or 0):
            self._roll(HOURS, series, hour, whole=hour >= (marks.read(self._connection, marks.MINUTES_FROM) or 0))

    def _roll(self, level: Level, series: dict[str, list[Series]], start: int, whole: bool = True) -> None:
        for kind in KINDS.values():
            (roll if whole else fold)(self._connection, level, kind, series.get(kind, []), start)
        self._vitals.rollups += 1

    def _series(self) -> dict[str, list[Series]]:
        """Those of each kind that the rollups have columns for, which are added now."""
        found: dict[str, list[Series]] = {}
        for one in known_series(self._connection):
            found.setdefault(one.kind, []).append(one)
        for kind, some in found.items():
            wanted = {column: type_ for one in some for column, type_ in columns_of(one).items()}
            fresh = [column for column in wanted if (kind, column) not in self._there]
            if not fresh:
                continue
            # One transaction each: DuckDB holds a copy of the table for every change of one, gigabytes for a few hundred.
            for level in (MINUTES, HOURS):
                for column in fresh:
                    statement = (
                        f'ALTER TABLE samples_{kind}{level.target} ADD COLUMN IF NOT EXISTS "{column}" {wanted[column]}'
                    )
                    with self._store.altering, transaction(self._connection):
                        self._connection.execute(statement)
            self._there.update((kind, column) for column in fresh)
        return found


def oldest(connection: Connection, suffix: str, since_us: int | None = None) -> int | None:
    """When the oldest row of any samples_KIND`suffix` begins, not before `since_us`; None where there is none."""
    found = []
    for kind in KINDS.values():
        # So DuckDB looks at the first rows only, and min(start) at all.
        statement = f"SELECT epoch_us(start) FROM samples_{kind}{suffix} WHERE start >= make_timestamp(?) ORDER BY start LIMIT 1"  # noqa: S608
        found += connection.execute(statement, [since_us or 0]).fetchall()
    return min((start for (start,) in found), default=None)

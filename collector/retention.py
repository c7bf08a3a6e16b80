"""Deletes what is too old, and the oldest of what is too much: windows first, then minutes, then hours.

A slice at a time, each a transaction of its own that also says from where on the rest is whole, so that nothing else waits long.
DuckDB gives the room of a slice back at the next checkpoint: it is used again, and the file shrinks where its end is free.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
from dataclasses import dataclass

from trimtab.collector import marks
from trimtab.collector.roller import oldest
from trimtab.collector.rollmarks import HOUR_US, MINUTE_US
from trimtab.collector.series import KINDS
from trimtab.collector.settings import CollectorSettings
from trimtab.collector.store import HALVES, Connection, Store, StoreDamaged, transaction, translated
from trimtab.collector.vitals import Vitals

log = logging.getLogger(__name__)

DAY_US = 24 * HOUR_US
SLICES_AT_ONCE = 60
"""Most slices in one turn."""
TOLD_EVERY_US = HOUR_US
_JOURNAL = (
    "DELETE FROM events WHERE occurred < make_timestamp($end)",
    "DELETE FROM decision_records WHERE decided < make_timestamp($end)",
    "DELETE FROM weights WHERE decided < make_timestamp($end)",
    "DELETE FROM incident_records WHERE resolved < make_timestamp($end)",
    "DELETE FROM causes WHERE incident NOT IN (SELECT id FROM incident_records)",
    "DELETE FROM evidence WHERE incident NOT IN (SELECT id FROM incident_records)",
    "DELETE FROM acknowledgements WHERE incident NOT IN (SELECT id FROM incident_records)",
    "DELETE FROM silences WHERE until < make_timestamp($end)",
    "DELETE FROM overrides WHERE until < make_timestamp($end)",
)
_ARRIVALS = """
DELETE FROM arrivals USING stream_records s
WHERE arrivals.stream = s.stream AND arrivals.seq <= s.high_water_mark AND arrivals.start < make_timestamp($end)
"""
"""Only what `stream_records` has counted: so no high-water mark goes back, and the view `streams` reads the same."""


@dataclass(frozen=True, slots=True)
class Tier:
    """What is deleted together, and in what slices."""

    name: str
    suffix: str
    slice_us: int
    rolled: str
    """The mark before which it is in the next tier too; "": there is none."""
    whole_from: str
    """The mark that says from where on all of it is there; "": nobody asks."""
    beside: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What follows samples_KIND in the names of its tables."""
        return (self.suffix,) if self.suffix else tuple(f"_{half}" for half in HALVES)


RAW = Tier(
    "windows",
    "",
    MINUTE_US,
    marks.ROLLED_MINUTES,
    marks.RAW_FROM,
    (
        "DELETE FROM talkers WHERE start < make_timestamp($end)",
        "DELETE FROM decision_states WHERE decided < make_timestamp($end)",
        _ARRIVALS,
    ),
)
MINUTES = Tier("minutes", "_1m", HOUR_US, marks.ROLLED_HOURS, marks.MINUTES_FROM)
HOURS = Tier("hours", "_1h", DAY_US, "", "", _JOURNAL)
TIERS = (RAW, MINUTES, HOURS)


class Retention:
    """Owned by the keeper's thread."""

    def __init__(self, settings: CollectorSettings, store: Store, connection: Connection, vitals: Vitals) -> None:
        self._settings = settings
        self._store = store
        self._connection = connection
        self._vitals = vitals
        self._damaged: dict[Tier, tuple[int, int]] = {}
        """How often a tier could not be deleted from, and from where on it is tried now."""
        self._told_us = -TOLD_EVERY_US
        self._aged_minute = -1
        """The minute up to which nothing was too old."""

    def turn(self, now_us: int, stop: threading.Event) -> bool:
        """Delete what is due; whether there is more. Raises StoreError."""
        more = self._by_age(now_us, stop)
        return self._by_size(now_us, stop) or more

    def _by_age(self, now_us: int, stop: threading.Event) -> bool:
        minute = now_us // MINUTE_US
        if minute == self._aged_minute:
            return False
        settings = self._settings
        keep_us = (
            settings.keep_raw_hours * HOUR_US,
            settings.keep_minutes_days * DAY_US,
            settings.keep_hours_days * DAY_US,
        )
        left = SLICES_AT_ONCE
        for tier, keep in zip(TIERS, keep_us, strict=True):
            before = self._safe(tier, int(now_us - keep))
            done = self._delete(tier, before, left, stop)
            left -= len(done)
        more = left <= 0 and not stop.is_set()
        self._aged_minute = -1 if more else minute
        return more

    def _by_size(self, now_us: int, stop: threading.Event) -> bool:
        used, limit, why = self._room()
        if used <= limit:
            return False
        # The blocks of what was deleted already, or of a log that is written twice, come back first.
        self._store.checkpoint()
        used, limit, why = self._room()
        if used <= limit:
            return False
        share = (used - limit) / used
        for tier in TIERS:
            first = self._first(tier)
            if first is None:
                continue
            # A full disk, which others may have filled, does not cost the newest hour.
            spared = now_us - HOUR_US if why == "disk" else now_us
            before = self._safe(tier, spared)
            slices = min(SLICES_AT_ONCE, max(1, math.ceil(share * (spared - first) / tier.slice_us)))
            done = self._delete(tier, before, slices, stop)
            if not done and tier in self._damaged:
                # Not at the cost of what is kept longer.
                return False
            if not done and tier is RAW and why == "size" and self._alone(RAW):
                done = self._delete(tier, spared, 1, stop, unrolled=True)
            if done:
                self._store.checkpoint()
                self._tell(tier, done, used, limit, why, now_us)
                return self._room()[0] > limit and not stop.is_set()
        return False

    def _room(self) -> tuple[int, int, str]:
        """Bytes that are used, that may be, and whether "size" or "disk" sets the limit."""
        block, used, total = self._connection.execute(
            "SELECT block_size, used_blocks, total_blocks FROM pragma_database_size() WHERE database_name = current_database()"
        ).fetchall()[0]
        logged = self._store.wal_bytes()
        disk = shutil.disk_usage(self._store.path.parent)
        reserve = int(disk.total * self._settings.disk_free_ratio_min)
        limit = self._settings.store_bytes_max
        of_disk = max(0, total * block + logged + disk.free - reserve)
        return used * block + logged, min(limit, of_disk), "size" if limit <= of_disk else "disk"

    def _safe(self, tier: Tier, before_us: int) -> int:
        """Up to where rows may go without being missed: they are rolled up, and wait for nothing."""
        if not tier.rolled:
            return before_us
        bounds = [before_us, marks.read(self._connection, tier.rolled) or 0]
        if tier is MINUTES:
            # A minute whose windows are still there would be made of them anew, and count twice in its hour.
            bounds.append((marks.read(self._connection, marks.RAW_FROM) or 0) // HOUR_US * HOUR_US)
        [(late,)] = self._connection.execute("SELECT epoch_us(min(start)) FROM late_minutes").fetchall()
        if late is not None:
            bounds.append(late // HOUR_US * HOUR_US)
        return min(bounds)

    def _alone(self, but: Tier) -> bool:
        return all(self._first(tier) is None for tier in TIERS if tier is not but)

    def _delete(
        self, tier: Tier, before_us: int, slices_max: int, stop: threading.Event, unrolled: bool = False
    ) -> list[int]:
        """Slices of rows that begin before a time, oldest first; how many rows each had."""
        done: list[int] = []
        while len(done) < slices_max and not stop.is_set():
            first = None
            try:
                with translated():
                    first = self._first(tier)
                if first is None:
                    break
                end = min((first // tier.slice_us + 1) * tier.slice_us, before_us // MINUTE_US * MINUTE_US)
                if end <= first:
                    break
                done.append(self._slice(tier, end))
            except StoreDamaged as error:
                self._pass_over(tier, before_us if first is None else first, error)
                break
            self._vitals.deleted[tier.name] += done[-1]
            if unrolled:
                self._vitals.deleted["unrolled"] += done[-1]
        return done

    def _pass_over(self, tier: Tier, at_us: int, error: StoreDamaged) -> None:
        """Rows that cannot be read cannot be deleted either: they stay, and what is younger goes in its time."""
        count, _ = self._damaged.get(tier, (0, 0))
        self._damaged[tier] = count + 1, at_us + tier.slice_us * (1 << min(count, 20))
        if not count:
            log.error("a part of the file is broken, and its %s cannot be deleted: %s", tier.name, error)

    def _since(self, tier: Tier) -> int:
        return self._damaged.get(tier, (0, 0))[1]

    def _first(self, tier: Tier) -> int | None:
        found = [oldest(self._connection, tier.suffix, self._since(tier))]
        if tier is HOURS:
            [stamps] = self._connection.execute(
                "SELECT (SELECT epoch_us(min(occurred)) FROM events), (SELECT epoch_us(min(decided)) FROM decision_records),"
                " (SELECT epoch_us(min(resolved)) FROM incident_records)"
            ).fetchall()
            found += stamps
        return min((one for one in found if one is not None), default=None)

    def _slice(self, tier: Tier, end_us: int) -> int:
        # The writer may not change the columns of a table while rows are deleted from it, nor the other way round.
        with self._store.altering, transaction(self._connection):
            rows = 0
            for table in [f"samples_{kind}{part}" for kind in KINDS.values() for part in tier.parts]:
                statement = f"DELETE FROM {table} WHERE start >= make_timestamp(?) AND start < make_timestamp(?)"  # noqa: S608
                rows += self._connection.execute(statement, [self._since(tier), end_us]).fetchall()[0][0]
            for statement in tier.beside:
                self._connection.execute(statement, {"end": end_us} if "$end" in statement else {})
            if tier.whole_from:
                marks.write(self._connection, tier.whole_from, end_us)
        return rows

    def _tell(self, tier: Tier, done: list[int], used: int, limit: int, why: str, now_us: int) -> None:
        if now_us - self._told_us < TOLD_EVERY_US:
            return
        self._told_us = now_us
        reason = (
            "collector.store_bytes_max"
            if why == "size"
            else "the disk, of which collector.disk_free_ratio_min is left free"
        )
        log.warning(
            "the database holds %d MB, and %s allows %d: deleted the oldest %s (%d rows), and will go on as needed",
            used >> 20,
            reason,
            limit >> 20,
            tier.name,
            sum(done),
        )

"""What waits for the database's next transaction."""

from __future__ import annotations

import pyarrow as pa

from trimtab.collector.booking import Booked
from trimtab.collector.redo import Tables
from trimtab.collector.series import Series
from trimtab.collector.stream import Stream

WINDOWS_ENOUGH = 512
SECONDS_ENOUGH = 2.0
"""After so many windows, or so long, it is time for the transaction."""
WINDOWS_MAX = 8192
BYTES_MAX = 64 << 20
"""More than this does not wait, whatever the transaction will have to wait for."""


class Pending:
    """Rows in the order in which they came."""

    def __init__(self) -> None:
        self._parts: dict[str, list[pa.Table]] = {}
        self._windows = self._bytes = 0
        self._since = float("inf")
        self.news: list[Series] = []
        """Series for which columns must be added first."""
        self.openings: list[Stream] = []
        """Streams whose nodes must be entered."""

    def __bool__(self) -> bool:
        return bool(self._parts or self.openings)

    def add(self, booked: Booked, now: float) -> None:
        """`now`: the monotonic time."""
        for name, rows in booked.rows.items():
            self._parts.setdefault(name, []).append(rows)
            self._bytes += rows.nbytes
        self._windows += len(booked.fresh)
        self._since = min(self._since, now) if booked.rows else self._since
        self.news += booked.news
        self.openings += booked.openings

    @property
    def is_full(self) -> bool:
        """Whether it must not grow."""
        return self._windows >= WINDOWS_MAX or self._bytes >= BYTES_MAX

    def seconds_left(self, now: float) -> float:
        """Until it is time; 0 for now, infinity for nothing that waits."""
        return 0.0 if self._windows >= WINDOWS_ENOUGH else max(0.0, self._since + SECONDS_ENOUGH - now)

    def rows(self) -> Tables:
        """All of them; a column that only some know is NULL in the others."""
        return {
            name: pa.concat_tables(parts, promote_options="default").combine_chunks()
            for name, parts in self._parts.items()
        }

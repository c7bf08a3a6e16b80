"""What is known of each spool: its high-water mark and its counts.

The mark of a spool is the highest number among its windows in `arrivals`, so that the rows of a window and the mark that they move cannot
come apart. `stream_records` holds the counts as of some earlier mark: it is brought up to date every `SWEEP_SECONDS`, and at once for what
the windows themselves do not tell (losses, refusals, repeats). Who opens the store adds what arrived since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from trimtab.collector.store import Connection, insert

SWEEP_SECONDS = 30.0
STREAMS_MAX = 1 << 17
"""Most spools that the store knows; retention forgets those that are gone."""
ENTRIES_MAX = 8192
"""Most entries kept in memory after a sweep; the rest is read again when needed."""
Key = tuple[str, str]


class TooMany(Exception):
    """There is no room for one more spool."""


@dataclass(slots=True)
class Entry:
    """A row of `stream_records`; times are microseconds since the epoch, -1 for never."""

    stream: int
    node: str
    spool: str
    high_water_mark: int = 0
    windows: int = 0
    duplicates: int = 0
    lost: int = 0
    refused: int = 0
    last_refusal: str = ""
    refused_at: int = -1
    last_window: int = -1

    def advance(self, seq: int) -> int:
        """`seq` is dealt with; how many numbers it left out, which are lost."""
        lost = seq - self.high_water_mark - 1
        self.lost += lost
        self.high_water_mark = seq
        return lost


_NAMES = [f.name for f in fields(Entry)]
_TIMES = ("refused_at", "last_window")
_READ = """
SELECT * REPLACE (coalesce(epoch_us(refused_at), -1) AS refused_at, coalesce(epoch_us(last_window), -1) AS last_window)
FROM stream_records WHERE node = ? AND spool = ?
"""
_WRITE = (
    "DELETE FROM stream_records USING incoming WHERE stream_records.stream = incoming.stream",
    "INSERT INTO stream_records BY NAME SELECT * FROM incoming",
)
_SWEPT = "UPDATE meta SET value = ? WHERE key = 'swept'"
_CATCH_UP = """
UPDATE stream_records r SET high_water_mark = a.seq, windows = r.windows + a.windows, last_window = greatest(r.last_window, a.start)
FROM (
    SELECT a.stream, max(a.seq) AS seq, count(*) AS windows, max(a.start) AS start
    FROM arrivals a JOIN stream_records s ON s.stream = a.stream AND a.seq > s.high_water_mark
    WHERE a.received >= make_timestamp(?) GROUP BY a.stream
) a WHERE a.stream = r.stream
"""


def swept_us(connection: Connection) -> int:
    """Until when `stream_records` knows all arrivals, microseconds since the epoch."""
    [(value,)] = connection.execute("SELECT value::BIGINT FROM meta WHERE key = 'swept'").fetchall()
    return int(value)


def catch_up(connection: Connection) -> int:
    """Bring `stream_records` up to date, within an open transaction; when the newest window was received, microseconds since the epoch."""
    since = swept_us(connection)
    connection.execute(_CATCH_UP, [since])
    [(newest,)] = connection.execute(
        "SELECT coalesce(epoch_us(max(received)), 0) FROM arrivals WHERE received >= make_timestamp(?)", [since]
    ).fetchall()
    newest = max(int(newest), since)
    connection.execute(_SWEPT, [str(newest)])
    return newest


@dataclass(slots=True)
class Ledger:
    """The entries, with what was changed since the last transaction: it is in the store once `commit` is called."""

    streams: int
    """How many spools the store knows."""
    _next: int
    _stored: dict[Key, Entry] = field(default_factory=dict)
    _changed: dict[Key, Entry] = field(default_factory=dict)
    _urgent: set[Key] = field(default_factory=set)
    _unswept: set[Key] = field(default_factory=set)
    _swept: bool = False

    @classmethod
    def of(cls, connection: Connection) -> Ledger:
        """That of a store which has caught up."""
        [(streams, highest)] = connection.execute(
            "SELECT count(*), coalesce(max(stream), 0) FROM stream_records"
        ).fetchall()
        return cls(streams, highest + 1)

    def entry(self, connection: Connection, key: Key, first_seq: int) -> Entry:
        """The entry to change. A spool that is new here begins at `first_seq`: what came before was never ours to lose. Raises TooMany."""
        if key not in self._changed:
            known = self._stored.get(key)
            if known is None:
                row = connection.execute(_READ, key).fetchone()
                known = Entry(*row) if row else self._new(key, first_seq)
            self._changed[key] = replace(known)
        return self._changed[key]

    def urgent(self, entry: Entry) -> None:
        """It has changed in what its windows do not tell."""
        self._urgent.add((entry.node, entry.spool))

    @property
    def is_urgent(self) -> bool:
        """Whether something must be written before anybody is answered."""
        return bool(self._urgent)

    def write(self, connection: Connection, sweep_us: int | None) -> None:
        """What must be written, into the open transaction; with `sweep_us`, its time, all that has changed since the last sweep."""
        self._swept = sweep_us is not None
        keys = self._unswept | self._changed.keys() if self._swept else self._urgent
        rows = [self._changed.get(key) or self._stored[key] for key in keys]
        if rows:
            columns = {name: [getattr(row, name) for row in rows] for name in _NAMES}
            for statement in _WRITE:
                insert(connection, statement, columns, _TIMES)
        if self._swept:
            connection.execute(_SWEPT, [str(sweep_us)])

    def commit(self) -> None:
        """The transaction is done."""
        self._stored.update(self._changed)
        if self._swept:
            self._unswept.clear()
            if len(self._stored) > ENTRIES_MAX:
                self._stored.clear()
        else:
            self._unswept |= self._changed.keys() - self._urgent
        self._changed.clear()
        self._urgent.clear()
        self._swept = False

    def idle(self, streams: Iterable[int]) -> list[int]:
        """Those among the streams that the open transaction does not touch, and that wait for no sweep."""
        busy = {entry.stream for entry in self._changed.values()}
        busy |= {self._stored[key].stream for key in self._unswept if key in self._stored}
        return [stream for stream in streams if stream not in busy]

    def forget(self, streams: Iterable[int]) -> None:
        """These are in the store no more."""
        gone = set(streams)
        self.streams -= len(gone)
        for key in [key for key, entry in self._stored.items() if entry.stream in gone]:
            del self._stored[key]

    def _new(self, key: Key, first_seq: int) -> Entry:
        if self.streams >= STREAMS_MAX:
            raise TooMany(f"the store knows {STREAMS_MAX} spools; retention forgets the old ones")
        entry = Entry(self._next, *key, high_water_mark=first_seq - 1)
        self._next += 1
        self.streams += 1
        self._urgent.add(key)
        return entry

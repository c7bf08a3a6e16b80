"""Which subjects, spools and nodes the store may forget: they are gone, and nothing is left of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trimtab.collector import marks
from trimtab.collector.series import KINDS
from trimtab.collector.store import Connection

_SUBJECTS = "SELECT subject FROM subjects WHERE kind = ? AND NOT current"
_STREAMS = """
SELECT stream FROM stream_records
WHERE coalesce(last_window, refused_at, make_timestamp(0)) < make_timestamp($before)
  AND coalesce(refused_at, make_timestamp(0)) < make_timestamp($before) AND stream NOT IN (SELECT stream FROM arrivals)
  AND node NOT IN (SELECT node FROM nodes WHERE connected_at >= make_timestamp($before))
"""
_NODES = """
SELECT node FROM nodes
WHERE connected_at < make_timestamp($before) AND node NOT IN (SELECT node FROM streams WHERE last_window >= make_timestamp($before))
"""


@dataclass(frozen=True, slots=True)
class Gone:
    """By their numbers, and their name."""

    subjects: list[int]
    streams: list[int]
    nodes: list[str]

    def __bool__(self) -> bool:
        return bool(self.subjects or self.streams or self.nodes)


class Forgets(Protocol):
    """The writer, who remembers what the store knows."""

    def forget(self, gone: Gone) -> None:
        """Delete these with the next transaction, as far as they have not come back."""


def gone(connection: Connection, before_us: int) -> Gone:
    """What has not been heard of since then; subjects that no schema names any more, and of which no row is left."""
    before = {"before": before_us}
    return Gone(
        [subject for kind in KINDS.values() for subject in _subjects(connection, kind)],
        [stream for (stream,) in connection.execute(_STREAMS, before).fetchall()],
        [node for (node,) in connection.execute(_NODES, before).fetchall()],
    )


def _subjects(connection: Connection, kind: str) -> set[int]:
    found = {subject for (subject,) in connection.execute(_SUBJECTS, [kind]).fetchall()}
    # Windows that are rolled up are in the minutes, which are kept longer: only the newest need be looked at themselves.
    since = marks.read(connection, marks.ROLLED_MINUTES) or 0
    for table, where in (
        (f"samples_{kind}_1h", "true"),
        (f"samples_{kind}_1m", "true"),
        (f"samples_{kind}", f"start >= make_timestamp({since})"),
        ("talkers", "true"),
    ):
        if found:
            rows = connection.execute(
                f"SELECT DISTINCT subject FROM {table} WHERE {where} AND subject IN (SELECT unnest(?::INTEGER[]))",  # noqa: S608
                [sorted(found)],
            ).fetchall()
            found -= {subject for (subject,) in rows}
    return found

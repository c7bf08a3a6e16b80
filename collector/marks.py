"""How far the keeper has come, as `meta` knows it: microseconds since the epoch under a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.collector.store import Connection

ROLLED_MINUTES = "rolled_1m"
ROLLED_HOURS = "rolled_1h"
"""Windows, and minutes, that begin before are rolled up."""
RAW_FROM = "raw_from"
MINUTES_FROM = "minutes_from"
"""Of windows, and minutes, that begin before this, some were deleted: what comes late is added to their rollup, which alone is whole."""


def read(connection: Connection, name: str) -> int | None:
    """None: never set."""
    found = connection.execute("SELECT value::BIGINT FROM meta WHERE key = ?", [name]).fetchall()
    return int(found[0][0]) if found else None


def write(connection: Connection, name: str, value_us: int) -> None:
    """Within the open transaction. A mark never goes back."""
    known = read(connection, name)
    if known is None:
        connection.execute("INSERT INTO meta VALUES (?, ?)", [name, str(value_us)])
    elif value_us > known:
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", [str(value_us), name])

"""A time, as a person reads it."""

from __future__ import annotations

from datetime import datetime


def clock(unix_ns: int) -> str:
    """Local date and time; "–" for none."""
    return datetime.fromtimestamp(unix_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S") if unix_ns else "–"

"""Windows that nobody will see: each is counted with its reason, and said; those that go one after the other are said once."""

from __future__ import annotations

import logging
from pathlib import Path

from trimtab.agent.collectors.own import Vitals

log = logging.getLogger(__name__)

LOSSES = ("size", "age", "disk", "damage", "oversize", "numbers")
"""Why: the spool's bounds; no disk, and too many in memory; a file torn or unreadable; a window larger than can be sent; numbers
that the collector has other windows of."""
_DROPPING = {"size": "is full", "age": "holds windows that are too old", "disk": "lacks a disk"}


class Losses:
    """Those of one spool. Used with the spool's lock held."""

    def __init__(self, directory: Path, vitals: Vitals) -> None:
        self._directory = directory
        self._vitals = vitals
        self._said: set[str] = set()

    def drop(self, windows: int, reason: str) -> None:
        """The oldest windows go. It may happen every second, so it is said once until `settle`."""
        self._vitals.lose(windows, reason)
        if windows and reason not in self._said:
            self._said.add(reason)
            what = _DROPPING[reason]
            log.warning("spool %s %s: the oldest windows are dropped, and counted", self._directory, what)

    def settle(self) -> None:
        """Nothing waits any more: what is dropped from now on is news."""
        self._said.clear()

    def lose(self, windows: int, reason: str, why: str) -> None:
        """These are gone, for a reason that is worth a line each time; what is too large, once until `settle`."""
        self._vitals.lose(windows, reason)
        if reason not in self._said:
            log.warning("windows lost: %d: %s", windows, why)
        if reason == "oversize":  # as each window may be from now on
            self._said.add(reason)

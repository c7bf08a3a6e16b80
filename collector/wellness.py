"""Whether the collector can do its work now: what gRPC's health service and the page /-/ready say."""

from __future__ import annotations

import threading

from trimtab.agent.clock import Clock
from trimtab.collector.vitals import Vitals
from trimtab.collector.writer import Writer

HUNG_SECONDS = 15.0
"""The writer turns at least every ten seconds, or a statement hangs."""


class Wellness:
    """Follows the writer from outside: it is looked at, and has nothing to do for it."""

    def __init__(self, writer: Writer, vitals: Vitals, clock: Clock) -> None:
        self._writer, self._vitals, self._clock = writer, vitals, clock
        self._lock = threading.Lock()
        self._turns, self._turned_at = -1, clock.monotonic()
        self._failures, self._transactions = vitals.failures, vitals.transactions
        self._failing = False

    def trouble(self) -> str:
        """What keeps windows from being stored, one line; empty for nothing. Any thread."""
        with self._lock:
            now = self._clock.monotonic()
            if self._writer.turns != self._turns:
                self._turns, self._turned_at = self._writer.turns, now
            # Read in this order: what succeeds in between is seen the next time.
            transactions, failures = self._vitals.transactions, self._vitals.failures
            if failures != self._failures:
                self._failing = True
            elif transactions != self._transactions:
                self._failing = False
            self._transactions, self._failures = transactions, failures
            if self._writer.lost.is_set():
                return "the database can no longer be written; the log says why, and starting again may help"
            if now - self._turned_at > HUNG_SECONDS:
                return f"the writer has not turned for {now - self._turned_at:.0f} s"
            return "the database cannot be written at the moment; the log says why" if self._failing else ""

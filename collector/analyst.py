"""Calls the analysis: with every stored window, and once a second. Its failures are its own; ingest goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trimtab.agent.clock import Clock
from trimtab.collector.analysis import Analysis, Journal
from trimtab.collector.failures import Failures
from trimtab.collector.feed import FleetSlot, IncidentFeed
from trimtab.collector.window import Window

PERIOD_SECONDS = 1.0


class Analyst:
    """Calls it in this process. One lock, so that the analysis sees one call at a time."""

    restarts = 0
    left_out = 0
    """As of `trimtab.collector.analyst_apart.AnalystApart`: here it is never started again, and sees every window."""

    def __init__(self, analysis: Analysis, clock: Clock, fleet: FleetSlot, feed: IncidentFeed) -> None:
        self._analysis = analysis
        self._clock = clock
        self._fleet = fleet
        self._feed = feed
        self._lock = threading.Lock()
        self._failures = Failures()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="analysis", daemon=True)

    def start(self, journal: Journal) -> None:
        """Show the open incidents to the analysis and to the watchers, then call it each second."""
        for incident in reversed(journal.incidents()):
            self._feed.publish(incident)
        self._analysis.start(journal, self._feed.publish)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def observe(self, windows: Sequence[Window]) -> None:
        """These windows are stored."""
        if not windows:
            return
        with self._lock, self._failures.caught("windows"):
            self._analysis.observe(windows)

    def accept(self, incident: str) -> None:
        """What this incident tells of is meant to be so."""
        with self._lock, self._failures.caught("what a person accepted"):
            self._analysis.accept(incident)

    def _run(self) -> None:
        while not self._clock.wait(self._stop, PERIOD_SECONDS):
            with self._lock, self._failures.caught("its tick"):
                self._fleet.put(self._analysis.tick(self._clock.unix_ns()))

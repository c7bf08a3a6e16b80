"""The agent's probes without the agent, so that they can be switched in turns."""

from __future__ import annotations

import threading
from contextlib import suppress

from trimtab.agent.clock import SystemClock
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Collector, Host, Instance, Reading, Unavailable, discover


class OpenProbes:
    """Every collector that has probes, open, and read once a second as the agent would."""

    def __init__(self, instance: Instance) -> None:
        self.registry = Probes()
        """Of all probes."""
        self.unavailable: dict[str, str] = {}
        self._instances = [instance]
        self._collectors: list[Collector] = []
        self._stop = threading.Event()
        host = Host("bench", SystemClock(), self.registry)
        for collector in (kind() for kind in discover()):
            before = len(self.registry.all())
            try:
                collector.open(host)
            except Unavailable as why:
                self.unavailable[collector.name] = str(why)
                continue
            if len(self.registry.all()) > before:
                self._collectors.append(collector)
            else:
                collector.close()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            for collector in self._collectors:
                with suppress(OSError, Unavailable):  # as the agent's worker does, which asks again
                    collector.read(Reading(self._instances, 1.0))
            if self._stop.wait(1.0):
                return

    def close(self) -> None:
        """Detach everything."""
        self._stop.set()
        self._reader.join()
        for collector in self._collectors:
            collector.close()

"""What the agent itself costs, and what it lost: so that a healthy-looking gap is never taken for a healthy host."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field

from trimtab.agent import procfs
from trimtab.agent.registry import Host, Reading, Signal


@dataclass(slots=True)
class Reads:
    """How one collector has been doing."""

    count: int = 0
    seconds: float = 0.0
    """All readings together, late ones too."""
    last_seconds: float = float("nan")
    failures: int = 0
    success: bool | None = None
    """Whether the last reading came, whole and in time; None before the first."""
    available: bool = False
    """Whether it is open: this host has what it needs."""


@dataclass(slots=True)
class Vitals:
    """The agent's own counters. Each is written by the one part that it is about; totals since the agent started."""

    windows_closed: int = 0
    events: int = 0
    streams: int = 0
    """How often the collector has welcomed this agent."""
    connected: bool = False
    """Whether it has, on the stream that is open now."""
    certificates_renewed: int = 0
    certificates_refused: int = 0
    windows_lost_by: dict[str, int] = field(default_factory=dict)
    reads: dict[str, Reads] = field(default_factory=dict)
    """By collector."""
    spool_bytes: int = 0
    windows_lost: int = 0
    windows_refused: int = 0
    windows_skipped: int = 0
    values_dropped: int = 0
    collector_failures: int = 0
    window_seconds: float = float("nan")

    def lose(self, windows: int, reason: str) -> None:
        """Count windows that nobody will see; `reason` is a word, and a label of the metric."""
        self.windows_lost += windows
        self.windows_lost_by[reason] = self.windows_lost_by.get(reason, 0) + windows


class Own:
    """Reads `getrusage(2)`, `/proc/self/statm` and the agent's counters."""

    name = "own"
    signals: tuple[Signal, ...] = (
        Signal("agent_cpu_used_cores", "cores", "CPU time that the agent used", "node", rate=True),
        Signal("agent_memory_resident_bytes", "bytes", "memory of the agent", "node"),
        Signal("agent_spool_bytes", "bytes", "size of the spool on disk", "node"),
        Signal(
            "agent_windows_lost",
            "1",
            "windows dropped since the agent started: spool full, too old or unreadable",
            "node",
        ),
        Signal("agent_windows_refused", "1", "windows the collector refused, set aside in refused/", "node"),
        Signal("agent_windows_skipped", "1", "windows never read: host suspended or overloaded", "node"),
        Signal("agent_values_dropped", "1", "values dropped: infinite, not declared, or over a limit", "node"),
        Signal("agent_collector_failures", "1", "readings that failed or came too late", "node"),
        Signal("agent_window_seconds", "s", "how long the last window took to read", "node"),
    )

    def __init__(self, vitals: Vitals | None = None) -> None:
        self._vitals = vitals or Vitals()
        self._cpu_seconds = float("nan")

    def open(self, host: Host) -> None:
        self._node = host.node
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self, reading: Reading) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        before, self._cpu_seconds = self._cpu_seconds, usage.ru_utime + usage.ru_stime
        vitals = self._vitals
        values = {
            "agent_cpu_used_cores": (self._cpu_seconds - before) / reading.seconds,
            "agent_memory_resident_bytes": procfs.whole(procfs.read("/proc/self/statm").split()[1]) * self._page_bytes,
            "agent_spool_bytes": vitals.spool_bytes,
            "agent_windows_lost": vitals.windows_lost,
            "agent_windows_refused": vitals.windows_refused,
            "agent_windows_skipped": vitals.windows_skipped,
            "agent_values_dropped": vitals.values_dropped,
            "agent_collector_failures": vitals.collector_failures,
            "agent_window_seconds": vitals.window_seconds,
        }
        for name, value in values.items():
            reading.set("node", self._node, name, float(value))

    def close(self) -> None:
        pass


COLLECTOR = Own

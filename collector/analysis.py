"""What the collector asks of whoever makes sense of the windows. The detector floor answers; `trimtab collector` puts the two together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.window import Window

MEMORY_MAX = 65536
"""Longest memory, characters."""


class Journal(Protocol):
    """The store, as far as an analysis needs it."""

    def incidents(self, limit: int = 1000) -> list[pb.Incident]:
        """Stored incidents, newest first."""

    def save_incident(self, incident: pb.Incident) -> None:
        """Store a new or a changed incident; returns once it is queued."""

    def memory(self) -> str:
        """What the analysis asked to be remembered last; empty for nothing."""

    def heard(self) -> Sequence[wire.Heard]:
        """The nodes that sent windows within the last hour before the newest window of all, but for those that said goodbye."""

    def remember(self, memory: str) -> None:
        """Store this, at most `MEMORY_MAX` characters, in place of it; returns once it is queued."""

    def refuse_memory(self, why: str) -> None:
        """It cannot be used: said, and counted."""


class Analysis(Protocol):
    """Makes incidents out of windows. Called by one thread at a time."""

    def start(self, journal: Journal, changed: Callable[[pb.Incident], None]) -> None:
        """Take up the incidents that are still open. `changed` is to be told of every change of an incident."""

    def observe(self, windows: Sequence[Window]) -> None:
        """These windows are stored. In order for each node; may be old, when a node comes back with a full spool."""

    def accept(self, incident: str) -> None:
        """A person says that what the incident of this id tells of is meant to be so."""

    def tick(self, now_unix_ns: int) -> pb.FleetState:
        """Called once a second: judge, open and resolve incidents, and tell the state of every instance."""


@dataclass(frozen=True)
class Apart:
    """An analysis in a process of its own (collector/analyst_apart.py)."""

    command: Sequence[str]
    """Starts it: a program that calls `trimtab.collector.analysis_process.serve`."""

"""The other end of the line: an analysis in a process of its own, which lives as long as the collector does."""

from __future__ import annotations

import ctypes
import signal
import socket
from collections.abc import Sequence

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire import telemetry_pb2 as telemetry
from trimtab.collector.analysis import Analysis
from trimtab.collector.failures import Failures
from trimtab.collector.line import frame, frames
from trimtab.collector.schemas import Schemas
from trimtab.collector.window import Window

WINDOWS_MAX = 64
"""Most windows that wait to be observed together."""
_PR_SET_PDEATHSIG = 1


def collectors_line() -> socket.socket:
    """The line to the collector that started this process: its standard input. From now on the process dies with the collector."""
    # A process that stands still, or is busy, would not notice that its line has ended.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The end comes by the line: what a terminal or systemd tells all processes of a service is for the collector to hear.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return socket.socket(fileno=0)


def serve(line: socket.socket, analysis: Analysis) -> None:
    """Observe and judge until the collector hangs up. Raises OSError when it does so at a moment when it is told something."""
    schemas, windows, failures = Schemas(), list[Window](), Failures()
    found = _Found()
    for data in frames(line):
        message = wire.ToAnalysis.FromString(data)
        match message.WhichOneof("content"):
            case "start":
                found.start = message.start
                analysis.start(found, found.changed)
            case "schema":
                schemas.put(message.schema.node, message.schema.schema)
            case "window":
                windows.append(_window(message.window, schemas))
                if len(windows) >= WINDOWS_MAX:
                    _observe(analysis, windows, failures)
            case "accepted":
                with failures.caught("what a person accepted"):
                    analysis.accept(message.accepted)
            case "tick_unix_ns":
                _observe(analysis, windows, failures)
                with failures.caught("its tick"):
                    found.outcome.fleet.CopyFrom(analysis.tick(message.tick_unix_ns))
                line.sendall(frame(found.take()))


class _Found:
    """The journal, as the analysis sees it: what it saves goes to the collector with the next outcome."""

    def __init__(self) -> None:
        self.start = wire.Start()
        self.outcome = wire.Outcome()

    def incidents(self, limit: int = 1000) -> list[pb.Incident]:
        return list(self.start.incidents[:limit])

    def save_incident(self, incident: pb.Incident) -> None:
        self.outcome.saved.append(incident)

    def memory(self) -> str:
        return self.start.memory

    def heard(self) -> Sequence[wire.Heard]:
        return self.start.heard

    def remember(self, memory: str) -> None:
        self.outcome.memory = memory

    def refuse_memory(self, why: str) -> None:
        self.outcome.memory_refused = why

    def changed(self, incident: pb.Incident) -> None:
        self.outcome.changed.append(incident)

    def take(self) -> wire.Outcome:
        outcome, self.outcome = self.outcome, wire.Outcome()
        return outcome


def _window(stored: wire.StoredWindow, schemas: Schemas) -> Window:
    message = telemetry.AgentMessage.FromString(stored.message).window
    schema = schemas.of(stored.node)
    return Window(stored.node, stored.spool, message.seq, stored.start_unix_ns, message.duration_ns, schema, message)


def _observe(analysis: Analysis, windows: list[Window], failures: Failures) -> None:
    with failures.caught("windows"):
        analysis.observe(windows)
    windows.clear()

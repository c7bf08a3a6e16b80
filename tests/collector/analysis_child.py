"""Analyses to be run in a process of their own by tests: `python -m tests.collector.analysis_child MISDEED FILE`.

The misdeed is done by the first process only: it leaves FILE behind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.analysis_process import collectors_line, serve
from trimtab.collector.line import frame


class Numbering:
    """Opens an incident for every node it sees, as `Incidents` numbers them; the fleet's state tells how many windows it saw."""

    def __init__(self, misdeed: Callable[[], None] = lambda: None) -> None:
        self.misdeed = misdeed
        self.seen: dict[str, int] = {}

    def start(self, journal: Any, changed: Any) -> None:
        self.journal, self.changed = journal, changed
        known = journal.incidents()
        self.number = max([int(i.id[2:]) for i in known], default=0)
        self.open = {i.subject for i in known if i.status == pb.Incident.STATUS_OPEN}

    def observe(self, windows: Sequence[Any]) -> None:
        for window in windows:
            assert window.message.schema_hash == window.schema.hash
            self.seen[window.node] = self.seen.get(window.node, 0) + 1

    def accept(self, incident: str) -> None:
        self.journal.save_incident(pb.Incident(id=incident, status=pb.Incident.STATUS_RESOLVED))

    def tick(self, now_unix_ns: int) -> pb.FleetState:
        for node in self.seen.keys() - self.open:
            self.number += 1
            self.open.add(node)
            status = pb.Incident.STATUS_OPEN
            incident = pb.Incident(id=f"i-{self.number}", subject=node, status=status, opened_unix_ns=now_unix_ns)
            self.journal.save_incident(incident)
            self.changed(incident)
        if self.seen:
            self.misdeed()
        return pb.FleetState(
            unix_ns=now_unix_ns,
            instances=[pb.InstanceState(id=node, requests_per_second=n) for node, n in self.seen.items()],
        )


def main(misdeed: str, marker: Path) -> None:
    line = collectors_line()
    nameless = wire.Outcome(saved=[pb.Incident(status=pb.Incident.STATUS_OPEN)])
    misdeeds: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "exit": lambda: os._exit(3),
        "noise": lambda: line.sendall(os.urandom(4096)),
        "no length": lambda: line.sendall(b"\xff" * 64),
        "no message": lambda: line.sendall(b"\x04\0\0\0\xff\xff\xff\xff"),
        "no name": lambda: line.sendall(frame(nameless)),
        "half": lambda: (line.sendall(b"\xff\0\0\0half"), os._exit(0)),
    }

    def once() -> None:
        if misdeed != "none" and not marker.exists():
            marker.touch()
            misdeeds[misdeed]()

    serve(line, Numbering(once))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

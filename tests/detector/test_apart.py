"""Behind the line to a process of its own, the analysis finds what it finds in the collector's process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import numpy as np

from tests.detector.faults import VICTIM, slow
from tests.detector.fleet import Fleet, Recorder, Stage
from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.analysis_process import serve
from trimtab.collector.backlog import Backlog
from trimtab.collector.line import frame, frames
from trimtab.collector.window import Window
from trimtab.detector.settings import DetectorSettings
from trimtab.detector.watch import Watch
from trimtab.rootcause.rank import Ranking


class Line:
    """The collector's end, which waits for each outcome."""

    def __init__(self, watch: Watch) -> None:
        self.ours, theirs = socket.socketpair()
        self.backlog, self.known = Backlog(), set[str]()
        self.thread = threading.Thread(target=serve, args=(theirs, watch), daemon=True)
        self.thread.start()
        self.ours.sendall(frame(wire.ToAnalysis(start=wire.Start())))
        self.outcomes = frames(self.ours)

    def run(self, windows: Sequence[Window], now_unix_ns: int) -> wire.Outcome:
        self.backlog.put(windows)
        turn = self.backlog.take(0)
        assert turn is not None
        for entry in turn.entries:
            if entry.node not in self.known:
                self.known.add(entry.node)
                self.ours.sendall(frame(wire.ToAnalysis(schema=wire.NodeSchema(node=entry.node, schema=entry.schema))))
            self.ours.sendall(entry.data)
        self.ours.sendall(frame(wire.ToAnalysis(tick_unix_ns=now_unix_ns)))
        return wire.Outcome.FromString(next(self.outcomes))

    def close(self) -> None:
        self.ours.shutdown(socket.SHUT_RDWR)
        self.thread.join()


def test_a_process_of_its_own_changes_nothing() -> None:
    stage, line = Stage(Fleet(gpus=True), Ranking()), Line(Watch(DetectorSettings(), Ranking(), 180))
    journal, changes = Recorder(), list[pb.Incident]()
    for second in range(170):
        stage.fleet.strike({60: slow(4, VICTIM), 90: None}.get(second, stage.fleet.fault))
        windows, now = stage.fleet.step(), stage.fleet.now_ns + 200_000_000
        stage.watch.observe(windows)
        state, outcome = stage.watch.tick(now), line.run(windows, now)
        for incident in outcome.saved:
            journal.save_incident(incident)
        changes += outcome.changed
        for apart, here in zip(outcome.fleet.instances, state.instances, strict=True):
            assert (apart.id, apart.incident) == (here.id, here.incident)
            np.testing.assert_equal((apart.score, apart.latency_p95_seconds), (here.score, here.latency_p95_seconds))
    line.close()
    assert [i.status for i in stage.incidents] == [pb.Incident.STATUS_RESOLVED]
    assert [i.SerializeToString() for i in journal.saves] == [i.SerializeToString() for i in stage.journal.saves]
    assert [i.SerializeToString() for i in changes] == [i.SerializeToString() for i in stage.changes]

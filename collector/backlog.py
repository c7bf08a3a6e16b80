"""What the analysis has not been handed yet: bounded, and when it is full the oldest is left out, a tick's worth at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.agent.wire import analysis_pb2 as wire
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.collector.line import frame
from trimtab.collector.window import Window

log = logging.getLogger(__name__)

BYTES_MAX = 64 << 20
"""Some ten seconds of 1,000 nodes with eight instances each."""
TURNS_MAX = 60
"""An analysis that stood still for longer has nothing to gain from what it missed first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One window, as it goes over the line, and the schema that must have gone before it."""

    node: str
    schema: pb.Schema
    data: bytes


@dataclass(slots=True)
class Turn:
    """The windows up to a tick, and the tick, which the newest turn does not have yet."""

    entries: list[Entry] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    """Incidents that tell of what is meant to be so."""
    size_bytes: int = 0
    tick_unix_ns: int | None = None


class Backlog:
    """Written by the writer and the ticker, emptied by one sender. None of them waits for another."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self.left_out = 0
        """Windows that the analysis never saw, since the collector was started."""
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._turns: deque[Turn] = deque([Turn()])
        self._size_bytes = 0
        self._closed = False
        self._left_out_now = 0

    def put(self, windows: Sequence[Window]) -> None:
        """These windows are stored."""
        entries = [Entry(window.node, window.schema, _data(window)) for window in windows]
        size = sum(len(entry.data) for entry in entries)
        with self._changed:
            newest = self._turns[-1]
            newest.entries += entries
            newest.size_bytes += size
            self._size_bytes += size
            self._shrink()
            self._changed.notify()

    def accept(self, incident: str) -> None:
        """A person says that what it tells of is meant to be so."""
        with self._changed:
            self._turns[-1].accepted.append(incident)

    def tick(self, now_unix_ns: int) -> None:
        """The analysis is to judge by what came before."""
        with self._changed:
            self._turns[-1].tick_unix_ns = now_unix_ns
            self._turns.append(Turn())
            self._shrink()
            self._changed.notify()

    def take(self, seconds: float) -> Turn | None:
        """The oldest turn, as far as it is known; None when nothing came for so long."""
        with self._changed:
            if not self._changed.wait_for(self._is_filled, seconds) or self._closed:
                return None
            turn = self._pop()
            if self._left_out_now and len(self._turns) == 1:
                log.warning("the analysis has caught up; it did not see %d windows", self._left_out_now)
                self._left_out_now = 0
            return turn

    def close(self) -> None:
        """Let go whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_filled(self) -> bool:
        return self._closed or len(self._turns) > 1 or bool(self._turns[0].entries)

    def _pop(self) -> Turn:
        turn = self._turns.popleft()
        self._size_bytes -= turn.size_bytes
        if not self._turns:
            self._turns.append(Turn())
        return turn

    def _shrink(self) -> None:
        while self._size_bytes > self._bytes_max or len(self._turns) > TURNS_MAX + 1:
            oldest = self._pop()
            self._turns[0].accepted[:0] = oldest.accepted
            lost = len(oldest.entries)
            if lost and not self._left_out_now:
                log.warning("the analysis is behind: the oldest windows are left out of it; all are stored")
            self._left_out_now += lost
            self.left_out += lost


def _data(window: Window) -> bytes:
    # Filled in place: a message that is handed to another one is copied.
    to = wire.ToAnalysis()
    to.window.node, to.window.spool = window.node, window.spool
    to.window.start_unix_ns = window.start_unix_ns
    to.window.message = window.said()
    return frame(to)

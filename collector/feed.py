"""What watchers follow: the newest state of the fleet, and every change of an incident."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.standing import Standing, covers

UNREAD_MAX = 256
"""Changes that one watcher may be behind."""


class FleetSlot:
    """The latest state only: who is slow misses some, and no queue can grow."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state: pb.FleetState | None = None
        self._version = 0

    def put(self, state: pb.FleetState) -> None:
        with self._changed:
            self._state, self._version = state, self._version + 1
            self._changed.notify_all()

    def wait(self, version: int, seconds: float) -> tuple[int, pb.FleetState | None]:
        """The state as soon as its version is not `version`, or what there is after `seconds`; None before the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)
            return self._version, self._state


class Watcher:
    """One client's unread changes."""

    def __init__(self) -> None:
        self._unread: queue.Queue[pb.Incident] = queue.Queue(UNREAD_MAX)
        self.behind = threading.Event()

    def put(self, incident: pb.Incident) -> None:
        try:
            self._unread.put_nowait(incident)
        except queue.Full:
            self.behind.set()

    def next(self, seconds: float) -> pb.Incident | None:
        """The next change, or None when there was none for so long."""
        try:
            return self._unread.get(timeout=seconds)
        except queue.Empty:
            return None


class IncidentFeed:
    """Tells every watcher of the incidents that are open, then of each change, with what operators said of them."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._lock = threading.Lock()
        self._open: dict[str, pb.Incident] = {}
        self._watchers: set[Watcher] = set()

    def publish(self, incident: pb.Incident) -> None:
        copy = pb.Incident()
        copy.CopyFrom(incident)
        with self._lock:
            if copy.status == pb.Incident.STATUS_OPEN:
                self._open[copy.id] = copy
            else:
                self._open.pop(copy.id, None)
            self._tell(copy)

    def again(self, which: Callable[[pb.Incident], bool]) -> None:
        """Something was said of these open ones."""
        with self._lock:
            for incident in filter(which, self._open.values()):
                self._tell(incident)

    def known(self, target: str) -> list[pb.Incident]:
        """The open ones that a silence of `target` is about, as they are now."""
        with self._lock:
            return [self._standing.on(one) for one in self._open.values() if covers(target, one)]

    @contextmanager
    def watch(self) -> Iterator[tuple[list[pb.Incident], Watcher]]:
        """The open incidents, and a watcher of all that follows; none is missed and none comes twice."""
        watcher = Watcher()
        with self._lock:
            known = [self._standing.on(incident) for incident in self._open.values()]
            self._watchers.add(watcher)
        try:
            yield known, watcher
        finally:
            with self._lock:
                self._watchers.discard(watcher)

    def _tell(self, incident: pb.Incident) -> None:
        told = self._standing.on(incident)
        for watcher in self._watchers:
            watcher.put(told)

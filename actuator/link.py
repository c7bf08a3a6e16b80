"""The line to the collector: the newest state of the fleet comes in, decisions go out."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass

import grpc

from trimtab import TrimtabError
from trimtab.actuator.state import check_fleet
from trimtab.agent.clock import Clock
from trimtab.agent.settings import Tls
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.channel import channel
from trimtab.agent.wire.columns import Malformed
from trimtab.agent.wire.query_pb2_grpc import QueryStub

_BACKOFF_SECONDS = 0.5
_BACKOFF_SECONDS_MAX = 5.0
_RECORD_SECONDS = 2.0
_WAITING_MAX = 64

log = logging.getLogger("trimtab.actuator")


@dataclass(frozen=True, slots=True)
class Heard:
    """The last word of the collector, and when it came by our own clock."""

    fleet: pb.FleetState
    monotonic: float


class Link:
    """Two threads, a slot for what comes in and a bounded queue for what goes out; reconnects by itself."""

    def __init__(self, collector: str, tls: Tls, clock: Clock) -> None:
        """Raises TrimtabError when the line would leave this host without TLS."""
        self._collector, self._tls, self._clock = collector, tls, clock
        channel(collector, tls, "actuator.collector").close()
        self.heard: Heard | None = None
        self.refused = 0
        """Fleet states that made no sense."""
        self.unrecorded = 0
        """Decisions that the collector did not take, since it last took one."""
        self._stub: QueryStub | None = None
        self._call: grpc.Call | None = None
        self._decisions: queue.Queue[pb.Decision] = queue.Queue(_WAITING_MAX)
        self._stop = threading.Event()
        self._trouble = ""
        self._threads = [threading.Thread(target=t, daemon=True, name=t.__name__) for t in (self._watch, self._send)]
        for thread in self._threads:
            thread.start()

    def record(self, decision: pb.Decision) -> None:
        """Have it stored, if the collector can; does not wait."""
        try:
            self._decisions.put_nowait(decision)
        except queue.Full:
            self.unrecorded += 1

    def close(self) -> None:
        """Let what is queued go out if it goes at once, and hang up."""
        self._stop.set()
        self._threads[1].join(_RECORD_SECONDS)
        if self._call:
            self._call.cancel()  # type: ignore[no-untyped-call]
        self._threads[0].join(_RECORD_SECONDS)

    def _watch(self) -> None:
        backoff = _BACKOFF_SECONDS
        while not self._stop.is_set():
            try:
                # A new channel each time: an old one would wait longer and longer before it tries again.
                with channel(self._collector, self._tls, "actuator.collector") as line:
                    self._stub = QueryStub(line)  # type: ignore[no-untyped-call]
                    call = self._call = self._stub.WatchFleet(pb.WatchFleetRequest())
                    for fleet in call:
                        backoff = _BACKOFF_SECONDS
                        self._take(fleet)
                    self._say("collector ended the stream")
            except Exception as error:  # noqa: BLE001 - top of the loop
                self._say(f"collector at {self._collector}: {_words(error)}")
            self._stub = None
            self._stop.wait(backoff)
            backoff = min(backoff * 2, _BACKOFF_SECONDS_MAX)

    def _take(self, fleet: pb.FleetState) -> None:
        try:
            check_fleet(fleet)
        except Malformed as error:
            self.refused += 1
            self._say(f"collector sent a fleet state that is refused: {error}")
            return
        # A collector that hangs may repeat itself; that is no news.
        if self.heard is None or fleet.unix_ns != self.heard.fleet.unix_ns:
            self.heard = Heard(fleet, self._clock.monotonic())
            self._say("")

    def _send(self) -> None:
        while not (self._stop.is_set() and self._decisions.empty()):
            try:
                decision = self._decisions.get(timeout=0.2)
            except queue.Empty:
                continue
            stub, lost = self._stub, self.unrecorded
            if lost:
                decision.reason = "; ".join(filter(None, [decision.reason, f"decisions not recorded: {lost}"]))
            try:
                if stub is None:
                    self.unrecorded += 1
                else:
                    stub.RecordDecision(decision, timeout=_RECORD_SECONDS)
                    self.unrecorded -= lost
            except (grpc.RpcError, ValueError):  # ValueError: the channel was closed meanwhile
                self.unrecorded += 1

    def _say(self, trouble: str) -> None:
        """Log a change for the worse or the better, once."""
        if trouble != self._trouble and not self._stop.is_set():
            log.warning("%s", trouble or "collector is heard again")
        self._trouble = trouble


def _words(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"

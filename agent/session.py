"""One stream to the collector: what is sent, and what is still unanswered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from trimtab.agent.clock import Clock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.cursor import Cursor
from trimtab.agent.spool import Spool
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryStub

IN_FLIGHT_MAX = 64
ANSWER_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.5


class Broken(Exception):
    """The collector does not keep to the contract, or does not answer: in what way."""


class Session:
    """Hello; after the welcome what the spool holds beyond the collector's mark, at most `IN_FLIGHT_MAX` windows unanswered."""

    def __init__(
        self, spool: Spool, hello: pb.Hello, clock: Clock, vitals: Vitals, renewed: Callable[[], bool]
    ) -> None:
        self._spool = spool
        self._hello = hello
        self._clock = clock
        self._vitals = vitals
        self._changed = threading.Condition()
        self._after: int | None = None
        self._in_flight: dict[int, bytes] = {}
        self._owing_since = clock.monotonic()
        self._renewed = renewed
        self._look_at = clock.monotonic() + _POLL_SECONDS
        self.leaving = False
        """Whether it is to end for a stream that shows newer certificates: nothing more is sent, what was sent is answered."""
        self._ended = False
        self._overdue = False
        self._call: Any = None

    def messages(self, link: grpc.Channel) -> Iterator[pb.CollectorMessage]:
        """What the collector says, until the stream ends. Raises grpc.RpcError, and Broken when it owes an answer for too long."""
        self._call = TelemetryStub(link).Publish(self._requests())  # type: ignore[no-untyped-call] # generated
        if self._ended:
            self._call.cancel()
        # Neither the thread that listens nor the one that sends can keep the time: both may wait for the collector.
        watch = threading.Thread(target=self._watch, name="session", daemon=True)
        watch.start()
        try:
            # gRPC wakes ten times a second while it waits for a message: it is asked for one only when one is due.
            self._call.add_callback(self.end)
            for message in self._call:
                yield message
                self._wait_owing()
        except grpc.RpcError as error:
            if self._overdue:
                raise Broken(f"it has not answered for {ANSWER_SECONDS_MAX:g} s") from error
            if not self.leaving:
                raise
        finally:
            self.end()
            watch.join()

    def _wait_owing(self) -> None:
        """Until the collector owes an answer, or the stream is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._after is None or bool(self._in_flight))

    def welcome(self, high_water_mark: int) -> None:
        """The collector wants what comes after `high_water_mark`."""
        with self._changed:
            self._after = high_water_mark
            self._changed.notify_all()

    def answer(self, seq: int) -> bytes:
        """Window `seq` is answered, and with it those before it; its bytes. Raises Broken when it was not sent."""
        with self._changed:
            if seq not in self._in_flight:
                raise Broken(f"it answered for window {seq}, which was not sent")
            window = self._in_flight[seq]
            self._in_flight = {other: bytes_ for other, bytes_ in self._in_flight.items() if other > seq}
            self._owing_since = self._clock.monotonic()
            self._changed.notify_all()
            return window

    def end(self) -> None:
        """Send and hear no more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()

    # What follows runs in gRPC's thread.

    def _requests(self) -> Iterator[pb.AgentMessage]:
        yield pb.AgentMessage(hello=self._hello)
        while self._after is None:
            self._wait()
            if self._ended:
                return
        cursor = Cursor(self._spool, self._after, self._vitals)
        schema = b""
        try:
            while not self._ended:
                record = cursor.next(_POLL_SECONDS) if self._wait() else None
                if record is None:
                    continue
                if record.schema != schema:
                    schema = record.schema
                    yield pb.AgentMessage(schema=pb.Schema.FromString(schema))
                with self._changed:
                    if self.leaving:  # since there was room: the next stream sends it
                        continue
                    if not self._in_flight:
                        self._owing_since = self._clock.monotonic()
                    self._in_flight[record.seq] = record.window
                    self._changed.notify_all()
                yield pb.AgentMessage(window=pb.Window.FromString(record.window))
        finally:
            cursor.close()

    def _wait(self) -> bool:
        """A moment at most, for the welcome and for room; whether there are both."""

        def may_send() -> bool:
            return self._after is not None and len(self._in_flight) < IN_FLIGHT_MAX and not self.leaving

        with self._changed:
            self._changed.wait_for(lambda: self._ended or may_send() or self._has_left(), _POLL_SECONDS)
            return may_send()

    def _has_left(self) -> bool:
        return self.leaving and self._after is not None and not self._in_flight

    # What follows runs in a thread of its own, so that nothing the collector leaves undone holds it up.

    def _watch(self) -> None:
        """Keep the time, and look for new certificates, until the stream is over."""
        while not self._is_over():
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._has_left(), _POLL_SECONDS)

    def _is_over(self) -> bool:
        if self._clock.monotonic() >= self._look_at:
            self._look_at = self._clock.monotonic() + _POLL_SECONDS
            renewed = self._renewed()
            with self._changed:
                self.leaving = self.leaving or renewed
        with self._changed:
            owing = self._after is None or bool(self._in_flight)
            self._overdue = owing and self._clock.monotonic() - self._owing_since > ANSWER_SECONDS_MAX
        if self._overdue or self._has_left():
            self.end()
        return self._ended

"""Telemetry.Publish: takes the agents' streams, and lets each do no more than it may."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import grpc

from trimtab.agent.clock import Clock
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import PROTOCOL, Malformed
from trimtab.agent.wire.telemetry_pb2_grpc import TelemetryServicer
from trimtab.collector.inbox import Inbox
from trimtab.collector.series import Registry
from trimtab.collector.stream import End, Stream, check_hello
from trimtab.collector.timeline import Timeline
from trimtab.collector.writer import Arrival, Closing, Item, Opening

log = logging.getLogger(__name__)

HELLO_SECONDS_MAX = 10.0
REASON_CHARACTERS_MAX = 1024
Code = grpc.StatusCode


class Connected:
    """Who is connected: one stream a node, and not more than `streams_max`."""

    def __init__(self, streams_max: int) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, Stream] = {}
        self._streams_max = streams_max

    def enter(self, stream: Stream) -> tuple[grpc.StatusCode, str] | None:
        """Take a stream in, in place of the same host's older one; or why not."""
        with self._lock:
            older = self._streams.get(stream.node)
            if older and older.hello.machine_id != stream.hello.machine_id:
                detail = f"hello.node: {stream.node!r} is another host, now connected; set agent.node on one of the two"
                return Code.ALREADY_EXISTS, detail
            if not older and len(self._streams) >= self._streams_max:
                return Code.RESOURCE_EXHAUSTED, f"{self._streams_max} agents are connected: collector.agents_max"
            self._streams[stream.node] = stream
        if older:
            older.end(End(Code.ABORTED, "the same host has connected again"))
        return None

    def leave(self, stream: Stream) -> None:
        with self._lock:
            if self._streams.get(stream.node) is stream:
                del self._streams[stream.node]

    def names(self) -> set[str]:
        with self._lock:
            return set(self._streams)

    def end_all(self) -> None:
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            stream.end(End(Code.UNAVAILABLE, "the collector is stopping"))


class Telemetry(TelemetryServicer):
    """One thread a stream reads; the one that gRPC lent us answers."""

    def __init__(self, inbox: Inbox[Item], registry: Registry, connected: Connected, clock: Clock) -> None:
        self._inbox = inbox
        self._registry = registry
        self._connected = connected
        self._clock = clock

    def Publish(  # noqa: N802 - gRPC's name
        self, requests: Iterator[pb.AgentMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.CollectorMessage]:
        stream = self._open(requests, context)
        why_not = self._connected.enter(stream)
        if why_not:
            context.abort(*why_not)
        try:
            if not context.add_callback(lambda: stream.end(End())):
                return
            reader = threading.Thread(
                target=self._read, args=(stream, requests), name=f"read {stream.node}", daemon=True
            )
            reader.start()
            for answer in stream.answers():
                if not isinstance(answer, End):
                    yield answer
                elif answer.code is not None:
                    context.abort(answer.code, answer.detail)
        finally:
            stream.ended.set()
            self._connected.leave(stream)

    def _open(self, requests: Iterator[pb.AgentMessage], context: grpc.ServicerContext) -> Stream:
        # Who connects and says nothing would hold a thread for good.
        patience = threading.Timer(HELLO_SECONDS_MAX, context.cancel)
        patience.start()
        try:
            first = next(requests, None)
        finally:
            patience.cancel()
        now = self._clock.unix_ns()
        if first is None or first.WhichOneof("content") != "hello":
            context.abort(Code.INVALID_ARGUMENT, "the first message must be a Hello")
        hello = first.hello
        try:
            check_hello(hello)
        except Malformed as error:
            code = Code.INVALID_ARGUMENT if hello.protocol == PROTOCOL else Code.FAILED_PRECONDITION
            context.abort(code, str(error))
        timeline = Timeline(now, hello.unix_ns, hello.boottime_ns)
        if timeline.wrong:
            log.warning(
                "%s: its clock is off by %+.1f s; its windows are stored by this host's clock; "
                "set it right there: timedatectl set-ntp true, or chronyc makestep",
                hello.node,
                timeline.error_seconds,
            )
        return Stream(hello, timeline, self._registry)

    def _read(self, stream: Stream, requests: Iterator[pb.AgentMessage]) -> None:
        try:
            end = self._take_all(stream, requests)
        except grpc.RpcError:
            end = End()
        except Exception:
            log.exception("%s: reading its stream failed", stream.node)
            end = End(Code.INTERNAL, "the collector failed; its log says how")
        if end:
            stream.end(end)

    def _take_all(self, stream: Stream, requests: Iterator[pb.AgentMessage]) -> End | None:
        """Until the agent has said all, or must not say more."""
        self._put(Opening(stream))
        for message in requests:
            match message.WhichOneof("content"):
                case "schema":
                    stream.learn(message.schema)
                case "window":
                    if not stream.expect_answer():
                        return End()
                    self._put(self._arrival(stream, message.window))
                case "hello":
                    return End(Code.INVALID_ARGUMENT, "hello: came twice")
                case _:
                    return End(Code.INVALID_ARGUMENT, "a message is neither Schema nor Window")
        self._put(Closing(stream))
        return None

    def _arrival(self, stream: Stream, window: pb.Window) -> Arrival:
        try:
            return Arrival(stream, window.seq, stream.check(window, self._clock.unix_ns()))
        except Malformed as error:
            return Arrival(stream, window.seq, None, str(error)[:REASON_CHARACTERS_MAX])

    def _put(self, item: Item) -> None:
        size = item.size_bytes if isinstance(item, Arrival) else 0
        self._inbox.put(item, size, item.stream.ended.is_set)

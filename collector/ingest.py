"""Telemetry.Publish: one agent's stream, from its Hello to its end, and no more than an agent may do."""

from __future__ import annotations

import logging
import threading

import grpc
from google.protobuf.message import DecodeError

from trimtab.agent.clock import Clock
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import PROTOCOL, Malformed
from trimtab.collector.batch import ROW_BYTES_MAX
from trimtab.collector.booking import REFUSAL_CHARACTERS_MAX, Arrival, Closing, Item, Opening
from trimtab.collector.inbox import Inbox
from trimtab.collector.port.framing import Broken
from trimtab.collector.series import Registry
from trimtab.collector.source import End, Reply, Source
from trimtab.collector.stream import UNANSWERED_MAX, Stream, check_hello
from trimtab.collector.timeline import Timeline
from trimtab.collector.vitals import Vitals

log = logging.getLogger(__name__)

Code = grpc.StatusCode


class Connected:
    """Who is connected: one stream a node, and not more than `streams_max`."""

    def __init__(self, streams_max: int) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, Publication] = {}
        self._streams_max = streams_max

    def enter(self, call: Publication, stream: Stream) -> None:
        """Take a stream in, in place of the same host's older one. Raises Broken."""
        with self._lock:
            older = self._calls.get(stream.node)
            if older and older.machine_id != stream.hello.machine_id:
                detail = f"hello.node: {stream.node!r} is another host, now connected; set agent.node on one of the two"
                raise Broken(Code.ALREADY_EXISTS, detail)
            if not older and len(self._calls) >= self._streams_max:
                raise Broken(Code.RESOURCE_EXHAUSTED, f"{self._streams_max} agents are connected: collector.agents_max")
            self._calls[stream.node] = call
        if older:
            older.end(End(Code.ABORTED, "the same host has connected again"))

    def leave(self, node: str, call: Publication) -> None:
        with self._lock:
            if self._calls.get(node) is call:
                del self._calls[node]

    def names(self) -> set[str]:
        with self._lock:
            return set(self._calls)


class Publication:
    """One call of Publish. Used by the port's thread alone."""

    def __init__(
        self,
        source: Source,
        reply: Reply,
        *,
        inbox: Inbox[Item],
        registry: Registry,
        connected: Connected,
        clock: Clock,
        vitals: Vitals,
    ) -> None:
        self._vitals = vitals
        self._source = source
        self._reply = reply
        self._inbox = inbox
        self._registry = registry
        self._connected = connected
        self._clock = clock
        self._stream: Stream | None = None
        self._closing = False

    @property
    def machine_id(self) -> str:
        return self._stream.hello.machine_id if self._stream else ""

    def take(self, message: bytes) -> bool:
        """The agent's next message; False when there is no room for it now. Raises Broken."""
        stream = self._stream
        if stream and (stream.unanswered >= UNANSWERED_MAX or not self._inbox.has_room()):
            self._vitals.held_up += 1
            return False
        self._vitals.received_bytes += len(message)
        try:
            said = pb.AgentMessage.FromString(message)
        except DecodeError as error:
            raise Broken(Code.INVALID_ARGUMENT, "a message is no AgentMessage") from error
        content = said.WhichOneof("content")
        if stream is None:
            if content != "hello":
                raise Broken(Code.INVALID_ARGUMENT, "the first message must be a Hello")
            return self._open(said.hello)
        match content:
            case "window":
                stream.unanswered += 1
                arrival = self._arrival(stream, said.window, message)
                rows = stream.subjects(said.window) if arrival.window else 0
                self._inbox.put(arrival, rows * ROW_BYTES_MAX + 2 * len(message))
            case "schema":
                stream.learn(said.schema)
            case "hello":
                raise Broken(Code.INVALID_ARGUMENT, "hello: came twice")
            case _:
                raise Broken(Code.INVALID_ARGUMENT, "a message is neither Schema nor Window")
        return True

    def half_closed(self) -> bool:
        """The agent has said all; the stream ends after its last answer."""
        if self._stream is None:
            raise Broken(Code.INVALID_ARGUMENT, "the first message must be a Hello")
        if not self._closing and self._inbox.has_room():
            self._closing = True
            self._inbox.put(Closing(self._stream), 0)
        return self._closing

    def gone(self) -> None:
        """Nobody listens any more."""
        if self._stream:
            self._stream.reply = None
            self._connected.leave(self._stream.node, self)

    def end(self, end: End) -> None:
        """The stream ends now."""
        self._reply.end(end.code or Code.OK, end.detail)

    @property
    def opened(self) -> bool:
        """Whether it has said who it is."""
        return self._stream is not None

    def _open(self, hello: pb.Hello) -> bool:
        if not self._inbox.has_room():
            return False
        try:
            check_hello(hello)
        except Malformed as error:
            code = Code.INVALID_ARGUMENT if hello.protocol == PROTOCOL else Code.FAILED_PRECONDITION
            raise Broken(code, str(error)) from error
        timeline = Timeline(self._clock.unix_ns(), hello.unix_ns, hello.boottime_ns)
        if timeline.wrong:
            log.warning(
                "%s: its clock is off by %+.1f s; its windows are stored by this host's clock; "
                "set it right there: timedatectl set-ntp true, or chronyc makestep",
                hello.node,
                timeline.error_seconds,
            )
        stream = Stream(hello, timeline, self._registry, self._source, self._reply)
        self._connected.enter(self, stream)
        self._stream = stream
        self._inbox.put(Opening(stream), 0)
        return True

    def _arrival(self, stream: Stream, window: pb.Window, came: bytes) -> Arrival:
        try:
            return Arrival(stream, window.seq, stream.check(window, self._clock.unix_ns(), came))
        except Malformed as error:
            return Arrival(stream, window.seq, None, str(error)[:REFUSAL_CHARACTERS_MAX])

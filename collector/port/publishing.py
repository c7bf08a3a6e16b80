"""A connection that publishes: calls of Telemetry.Publish, spoken by h2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import hyperframe.frame

from trimtab.collector.port import plain
from trimtab.collector.port.framing import RESPONSE, Broken, Headers, Messages, frame, trailers

# h2 describes every frame for a log that nobody keeps: a third of its time.
hyperframe.frame.Frame.__repr__ = object.__repr__  # type: ignore[method-assign]

PUBLISH = "/trimtab.telemetry.v1.Telemetry/Publish"
CALLS_MAX = 256
"""Most calls at once on one connection: a proxy brings those of many agents."""
WINDOW_BYTES = 1 << 20
"""What a client may send of one call before we have taken it."""
CONNECTION_WINDOW_BYTES = 16 << 20
_ROOM_BYTES = 65535
"""What HTTP/2 lets be sent on a connection before the client has said more."""
UNSENT_BYTES_MAX = 1 << 20
_HEADER_LIST_BYTES_MAX = 16384
_Codes = h2.settings.SettingCodes


class Handler(Protocol):
    """What is made of one call."""

    @property
    def opened(self) -> bool:
        """Whether it has said who it is."""

    def take(self, message: bytes) -> bool:
        """The next message; False: not now, it will be offered again by `Call.go_on`. Raises Broken."""

    def half_closed(self) -> bool:
        """The client has said all; False as for `take`. Raises Broken."""

    def gone(self) -> None:
        """The call is over, however it ended."""


Begin = Callable[["Call"], Handler]


class Publishing:
    """The server's side of HTTP/2. Whoever owns the connection feeds it, and closes it when `finished`."""

    def __init__(self, transport: asyncio.Transport, begin: Begin) -> None:
        self._transport = transport
        self._begin = begin
        self._calls: dict[int, Call] = {}
        self._half_closed: set[int] = set()
        self._frames = plain.Frames(self._calls, self._half_closed)
        self._allowance = plain.Allowance(0, CONNECTION_WINDOW_BYTES)
        self.room = plain.Room(_ROOM_BYTES)
        """For what is sent on all calls together."""
        self.http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8", normalize_outbound_headers=False)
        )
        self.http.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                _Codes.MAX_CONCURRENT_STREAMS: CALLS_MAX,
                _Codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                _Codes.MAX_HEADER_LIST_SIZE: _HEADER_LIST_BYTES_MAX,
            },
        )
        self.http.initiate_connection()
        self.http.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65535)
        self.finished = False
        self.flush()

    @property
    def opened(self) -> bool:
        """Whether a call is under way that has said who it is, and none that has not."""
        return bool(self._calls) and all(call.handler.opened for call in self._calls.values())

    @property
    def buffered_bytes(self) -> int:
        """What it holds of messages that are not taken yet."""
        return sum(call.buffered_bytes for call in self._calls.values())

    def receive(self, data: bytes) -> None:
        """What the client says."""
        try:
            for kind, stream, body in self._frames.feed(data):
                match kind:
                    case plain.DATA:
                        self._allowance.use(len(body))
                        self._calls[stream].receive(body)
                    case plain.WINDOW_UPDATE:
                        self._add_room(stream, int.from_bytes(body, "big"))
                    case _:
                        for event in self.http.receive_data(body):
                            self._handle(event)
        except h2.exceptions.FlowControlError:
            self.http.close_connection(h2.errors.ErrorCodes.FLOW_CONTROL_ERROR)
            self.finished = True
        except (h2.exceptions.ProtocolError, UnicodeDecodeError):
            # h2 has a GOAWAY ready that names what was wrong, but for headers that are no text.
            self.finished = True
        self.flush()

    def take(self, allowance: plain.Allowance, size: int) -> None:
        """So many bytes of a stream's plain data were taken."""
        self.write(allowance.take(size) + self._allowance.take(size))

    def go_on(self) -> None:
        """There is room again for what was turned away."""
        for call in list(self._calls.values()):
            call.go_on()

    def end(self, code: grpc.StatusCode, detail: str) -> None:
        """Every call ends with this status."""
        for call in list(self._calls.values()):
            call.end(code, detail)

    def ping(self) -> None:
        """Make the client say something, if it is still there."""
        self.http.ping(b"trimtab\0")
        self.flush()

    def lost(self) -> None:
        """The connection is gone."""
        self.finished = True
        for stream in list(self._calls):
            self.forget(stream)

    def forget(self, stream: int) -> None:
        """This call is over."""
        call = self._calls.pop(stream, None)
        self._half_closed.discard(stream)
        if call:
            call.handler.gone()

    def flush(self) -> None:
        """Write what h2 has ready."""
        self.write(self.http.data_to_send())
        if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            # It does not read what it asked for.
            self._transport.abort()

    def write(self, frames: bytes) -> None:
        """Whole frames, which h2 need not know of."""
        if frames:
            self._transport.write(frames)

    def _add_room(self, stream: int, size: int) -> None:
        room = self._calls[stream].room if stream else self.room
        # The bit before the number means nothing.
        room.add(size & plain.WINDOW_MAX)
        for call in [self._calls[stream]] if stream else list(self._calls.values()):
            call.send([])

    def _handle(self, event: h2.events.Event) -> None:
        call = self._calls.get(getattr(event, "stream_id", None) or 0)
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._request(stream or 0, dict(cast(Headers, headers)))
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=size):
                if call:
                    call.receive(data or b"", size or 0)
                else:
                    self.http.acknowledge_received_data(size or 0, stream or 0)
            case h2.events.StreamEnded(stream_id=stream) if call:
                self._half_closed.add(stream or 0)
                call.half_close()
            case h2.events.StreamReset(stream_id=stream):
                self.forget(stream or 0)
            case h2.events.RemoteSettingsChanged(changed_settings=changed):
                # It counts for the calls there are, too.
                if setting := changed.get(_Codes.INITIAL_WINDOW_SIZE):
                    for each in self._calls.values():
                        each.room.add(setting.new_value - (setting.original_value or 0))
                        each.send([])
            case h2.events.ConnectionTerminated():
                self.finished = True
            case _:
                pass

    def _request(self, stream: int, headers: dict[str, str]) -> None:
        if headers.get(":path") != PUBLISH:
            detail = "this connection publishes telemetry; ask for anything else on another one"
            refusal = [*RESPONSE, *trailers(grpc.StatusCode.UNIMPLEMENTED, detail)]
            self.http.send_headers(stream, refusal, end_stream=True)
        elif headers.get(":method") != "POST" or not headers.get("content-type", "").startswith("application/grpc"):
            self.http.send_headers(stream, [(":status", "415")], end_stream=True)
        else:
            self._calls[stream] = Call(self, stream, self._begin)


class Call:
    """One call of Publish: see `trimtab.collector.source.Reply`."""

    def __init__(self, connection: Publishing, stream: int, begin: Begin) -> None:
        self._connection = connection
        self._http = connection.http
        self._stream = stream
        self._messages = Messages()
        self._waiting: list[bytes] = []
        self._half_closed = False
        self._over = False
        self._allowance = plain.Allowance(stream, WINDOW_BYTES)
        self.room = plain.Room(self._http.remote_settings.initial_window_size)
        self._untaken = self._unacknowledged = 0
        """Bytes of plain data, and of h2's."""
        self._unsent: list[bytes] = []
        self._http.send_headers(stream, RESPONSE)
        self.handler = begin(self)

    @property
    def buffered_bytes(self) -> int:
        """What it holds of messages that are not taken yet."""
        return len(self._messages) + sum(map(len, self._waiting))

    def receive(self, data: bytes, size: int | None = None) -> None:
        """Data of the client: plain, or from h2, for whose flow control it counts as `size`. Raises h2's FlowControlError."""
        self._messages.feed(data)
        if size is None:
            self._allowance.use(len(data))
            self._untaken += len(data)
        else:
            self._unacknowledged += size
        self._take()

    def half_close(self) -> None:
        """The client has said all."""
        self._half_closed = True
        self._take()

    def go_on(self) -> None:
        self._take()
        self._connection.flush()

    def send(self, messages: Sequence[bytes]) -> None:
        if self._over or self._connection.finished:
            return
        self._unsent += map(frame, messages)
        room = min(self.room.left, self._connection.room.left, plain.FRAME_BYTES_MAX)
        fitting = size = 0
        while fitting < len(self._unsent) and size + len(self._unsent[fitting]) <= room:
            size += len(self._unsent[fitting])
            fitting += 1
        if fitting:
            # The answer's headers go first, which h2 may still have.
            self._connection.flush()
            self._connection.write(plain.frame(plain.DATA, self._stream, b"".join(self._unsent[:fitting])))
            del self._unsent[:fitting]
            for each in (self.room, self._connection.room):
                each.left -= size

    def end(self, code: grpc.StatusCode, detail: str = "") -> None:
        if self._over:
            return
        if self._connection.finished:
            self._forget()
            return
        self._http.send_headers(self._stream, trailers(code, detail), end_stream=True)
        if not self._half_closed:
            # Whatever else the client sends for it is not read.
            self._http.reset_stream(self._stream, h2.errors.ErrorCodes.NO_ERROR)
        self._acknowledge()
        self._forget()
        self._connection.flush()

    def _forget(self) -> None:
        self._over = True
        self._connection.forget(self._stream)

    def _take(self) -> None:
        try:
            self._waiting += self._messages
            while self._waiting and not self._over:
                if not self.handler.take(self._waiting[0]):
                    return
                self._waiting.pop(0)
            if self._half_closed and not self._over:
                self.handler.half_closed()
        except Broken as error:
            self.end(error.code, error.detail)
            return
        # Only what was taken: a full inbox holds the client up.
        self._acknowledge()

    def _acknowledge(self) -> None:
        if self._untaken:
            self._connection.take(self._allowance, self._untaken)
        if self._unacknowledged and not self._connection.finished:
            self._http.acknowledge_received_data(self._unacknowledged, self._stream)
        self._untaken = self._unacknowledged = 0

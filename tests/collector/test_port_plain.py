"""The frames that the port reads beside h2, against a client that is h2: the same messages however cut, and its flow control kept."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from hypothesis import given
from hypothesis import strategies as st

from trimtab.collector.port.framing import frame
from trimtab.collector.port.publishing import CONNECTION_WINDOW_BYTES, PUBLISH, WINDOW_BYTES, Call, Publishing

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PUBLISH),
    (":authority", "collector"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
FRAME_BYTES = 16384


class Wire(asyncio.Transport):
    """What the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.aborted = False

    def write(self, data: Any) -> None:
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


class Echo:
    """Takes every message, as long as it may, and answers with it."""

    def __init__(self, call: Call, took: list[bytes], takes: bool) -> None:
        self._call, self._took, self._takes = call, took, takes
        self.opened = True
        self.closed = 0

    def take(self, message: bytes) -> bool:
        if self._takes:
            self._took.append(message)
            self._call.send([message])
        return self._takes

    def half_closed(self) -> bool:
        self.closed += 1
        return True

    def gone(self) -> None:
        pass


class Pair:
    """A client by h2, and the server's side of its connection."""

    def __init__(self, takes: bool = True, window_bytes: int = 65535) -> None:
        self.wire, self.took, self.handlers = Wire(), list[bytes](), list[Echo]()
        self.takes = takes
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.client.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes}
        )
        self.client.initiate_connection()
        self.server = Publishing(self.wire, self._begin)
        self.stream = self.client.get_next_available_stream_id()
        self.answers, self.reset = bytearray(), False
        self.events: list[h2.events.Event] = []
        self.client.send_headers(self.stream, REQUEST)

    def _begin(self, call: Call) -> Echo:
        self.handlers.append(Echo(call, self.took, self.takes))
        return self.handlers[-1]

    def exchange(self, cuts: Sequence[int] = ()) -> None:
        """All that the client has ready, cut at these places, and what the server says to it."""
        data = self.client.data_to_send()
        ends = [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        for begin, end in zip([0, *ends], ends, strict=False):
            self.server.receive(data[begin:end])
        for event in self.client.receive_data(bytes(self.wire.sent)):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.answers += event.data or b""
                self.client.acknowledge_received_data(event.flow_controlled_length or 0, self.stream)
        self.wire.sent.clear()

    def send(self, data: bytes, padding: int | None = None, end: bool = False) -> None:
        while data:
            part, data = data[:8192], data[8192:]
            self.client.send_data(self.stream, part, end_stream=end and not data, pad_length=padding)


@given(
    st.lists(st.tuples(st.binary(max_size=30_000), st.none() | st.integers(0, 255)), min_size=1, max_size=5),
    st.lists(st.integers(0, 200_000), max_size=12),
    st.booleans(),
)
def test_messages_are_the_same_however_they_are_cut_padded_and_ended(
    sent: list[tuple[bytes, int | None]], cuts: list[int], end: bool
) -> None:
    pair = Pair(window_bytes=1 << 20)
    pair.exchange()
    pair.client.increment_flow_control_window(1 << 20)
    for number, (message, padding) in enumerate(sent):
        pair.send(frame(message), padding, end and number == len(sent) - 1)
        pair.client.ping(b"12345678")
    pair.exchange(cuts)
    pair.exchange()
    assert pair.took == [message for message, _ in sent]
    assert pair.handlers[0].closed == end
    # An answer is one frame at most.
    fitting = [frame(message) for message, _ in sent]
    if all(len(each) <= FRAME_BYTES for each in fitting):
        assert pair.answers == b"".join(fitting)
    assert not pair.server.finished
    assert not pair.wire.aborted


def test_a_client_may_go_on_for_as_long_as_its_messages_are_taken() -> None:
    pair = Pair(window_bytes=1 << 20)
    pair.exchange()
    message, count = bytes(8000), 4 * CONNECTION_WINDOW_BYTES // 8000
    for _ in range(count):
        # h2 refuses to send what the server did not allow.
        pair.send(frame(message))
        pair.exchange()
    assert len(pair.took) == count


def test_what_is_not_taken_is_not_allowed_again_and_more_ends_the_connection() -> None:
    pair = Pair(takes=False)
    pair.exchange()
    room = pair.client.local_flow_control_window(pair.stream)
    assert room == WINDOW_BYTES
    while pair.client.local_flow_control_window(pair.stream) >= 8000:
        pair.send(bytes(4) + b"\xff" + bytes(7995))
        pair.exchange()
    assert not pair.server.finished
    assert pair.server.buffered_bytes <= WINDOW_BYTES
    # A client that does not keep to it.
    header = (8000).to_bytes(3, "big") + b"\0\0" + pair.stream.to_bytes(4, "big")
    pair.server.receive(header + bytes(8000))
    assert pair.server.finished
    ended = [
        e for e in pair.client.receive_data(bytes(pair.wire.sent)) if isinstance(e, h2.events.ConnectionTerminated)
    ]
    assert [event.error_code for event in ended] == [h2.errors.ErrorCodes.FLOW_CONTROL_ERROR]


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=20), st.integers(70, 200))
def test_answers_wait_for_room_and_all_come(messages: list[bytes], window_bytes: int) -> None:
    pair = Pair(window_bytes=window_bytes)
    pair.exchange()
    for message in messages:
        pair.send(frame(message))
    # The client counts, and h2 raises an error when it is sent more than it allowed.
    for _ in range(len(messages) + 2):
        pair.exchange()
    assert pair.answers == b"".join(map(frame, messages))


def test_a_client_that_changes_its_window_is_sent_what_fits_then() -> None:
    pair = Pair(window_bytes=10)
    pair.exchange()
    pair.send(frame(b"twenty bytes of text"))
    pair.exchange()
    assert not pair.answers
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100})
    pair.exchange()
    assert pair.answers == frame(b"twenty bytes of text")


def test_empty_frames_and_frames_of_a_byte_are_held_as_the_bytes_they_are() -> None:
    pair = Pair()
    pair.exchange()
    empty = b"\0\0\0\0\0" + pair.stream.to_bytes(4, "big")
    byte = b"\0\0\1\0\0" + pair.stream.to_bytes(4, "big") + b"x"
    head = b"\0\0\5\0\0" + pair.stream.to_bytes(4, "big")
    pair.server.receive(head + frame(bytes(1 << 20))[:5])
    tracemalloc.start()
    pair.server.receive((empty * 9 + byte) * 10_000)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pair.server.buffered_bytes == 10_005
    # What came, as long as it is looked at, is not what is held.
    assert held < 100_000


def test_a_window_that_grows_beyond_all_bounds_ends_the_connection() -> None:
    pair = Pair()
    pair.exchange()
    update = b"\0\0\4\x08\0" + pair.stream.to_bytes(4, "big") + b"\x7f\xff\xff\xff"
    pair.server.receive(update)
    assert pair.server.finished

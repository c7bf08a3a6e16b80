"""The frames that a window and its answer take, read and written beside h2, which needs more CPU time for them than all the rest of ingest.

They are plain DATA and WINDOW_UPDATE frames of calls that go on; h2 has everything else. It does not see these, and so
the flow control of them is kept here, in both directions: RFC 9113, sections 4.1, 5.2 and 6.9.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

import h2.exceptions

DATA, WINDOW_UPDATE, OTHER = 0x0, 0x8, -1
FRAME_BYTES_MAX = 16384
WINDOW_MAX = (1 << 31) - 1
_HEAD_BYTES = 9
_HEADERS, _PUSH_PROMISE, _CONTINUATION = 0x1, 0x5, 0x9
_END_HEADERS = 0x4


def frame(kind: int, stream: int, body: bytes) -> bytes:
    """Without flags."""
    return len(body).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + body


class Frames:
    """Cuts what comes into frames."""

    def __init__(self, streams: Container[int], half_closed: Container[int]) -> None:
        """`streams` go on; the client has said all on those that are `half_closed`."""
        self._streams = streams
        self._half_closed = half_closed
        self._rest = b""
        self._amid_headers = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Kind, stream and body: DATA of a stream, WINDOW_UPDATE of a stream or of all (0); and OTHER, the whole frame, for h2 to see."""
        data = self._rest + data
        at = 0
        while len(data) - at >= _HEAD_BYTES:
            size = int.from_bytes(data[at : at + 3], "big")
            end = at + _HEAD_BYTES + size
            if end > len(data) and size <= FRAME_BYTES_MAX:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + _HEAD_BYTES], "big")
            body = data[at + _HEAD_BYTES : end]
            if flags == 0 and not self._amid_headers and self._is_plain(kind, stream, body):
                yield kind, stream, body
            else:
                self._amid_headers = kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION) and not flags & _END_HEADERS
                yield OTHER, stream, data[at:end]
            at = end
        self._rest = data[at:]

    def _is_plain(self, kind: int, stream: int, body: bytes) -> bool:
        if kind == DATA:
            return stream in self._streams and stream not in self._half_closed and len(body) <= FRAME_BYTES_MAX
        return kind == WINDOW_UPDATE and (not stream or stream in self._streams) and len(body) == 4 and any(body)


class Room:
    """What may be sent to the client, on one stream or on all."""

    def __init__(self, size: int) -> None:
        self.left = size

    def add(self, more: int) -> None:
        """The client takes so many bytes more. Raises h2's FlowControlError beyond what may be said."""
        self.left += more
        if self.left > WINDOW_MAX:
            raise h2.exceptions.FlowControlError(f"a window of {self.left} bytes")


class Allowance:
    """What the client may still send before we have taken it, of one stream (its number) or of all (0): RFC 9113, section 5.2."""

    def __init__(self, stream: int, size: int) -> None:
        self._stream = stream
        self._size = self._left = size
        self._taken = 0

    def use(self, size: int) -> None:
        """So many bytes came. Raises h2's FlowControlError when they were more than it may send."""
        self._left -= size
        if self._left < 0:
            raise h2.exceptions.FlowControlError(f"stream {self._stream}: more than it may send")

    def take(self, size: int) -> bytes:
        """So many bytes were taken; the frame that allows as many more, once that is worth one."""
        self._taken += size
        if self._taken < self._size // 2:
            return b""
        more, self._taken = self._taken, 0
        self._left += more
        return frame(WINDOW_UPDATE, self._stream, more.to_bytes(4, "big"))

"""gRPC's messages within a stream of HTTP/2: five bytes before each, and a status after the last."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import grpc

from trimtab.agent.wire.columns import MESSAGE_BYTES_MAX

Headers = list[tuple[str, str]]
RESPONSE: Headers = [(":status", "200"), ("content-type", "application/grpc")]
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_DETAIL_CHARACTERS_MAX = 1024
_HEAD_BYTES = 5


class Broken(Exception):
    """The other side does not keep to the protocol: the status that says so."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Messages:
    """Cuts what comes into messages."""

    def __init__(self) -> None:
        self._rest: bytes | bytearray = b""

    def feed(self, data: bytes) -> None:
        if not self._rest:
            # Mostly a whole message, which is copied once only.
            self._rest = data
        else:
            if isinstance(self._rest, bytes):
                self._rest = bytearray(self._rest)
            self._rest += data

    def __len__(self) -> int:
        """Bytes that are not part of a whole message yet."""
        return len(self._rest)

    def __iter__(self) -> Iterator[bytes]:
        """The whole messages, which are forgotten after the last one. Raises Broken."""
        data, at = self._rest, 0
        while len(data) - at >= _HEAD_BYTES:
            end = at + _HEAD_BYTES + self._size(data[at : at + _HEAD_BYTES])
            if end > len(data):
                break
            yield bytes(data[at + _HEAD_BYTES : end])
            at = end
        if at:
            self._rest = data[at:]

    def _size(self, head: bytes | bytearray) -> int:
        size = int.from_bytes(head[1:], "big")
        if head[0]:
            raise Broken(grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not taken: send them as they are")
        if size > MESSAGE_BYTES_MAX:
            detail = f"a message of {size} bytes; at most {MESSAGE_BYTES_MAX}"
            raise Broken(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        return size


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def trailers(code: grpc.StatusCode, detail: str) -> Headers:
    """How a stream ends."""
    status = ("grpc-status", str(code.value[0]))
    return [status, ("grpc-message", quote(detail[:_DETAIL_CHARACTERS_MAX], safe=_PRINTABLE))] if detail else [status]

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


class Broken(Exception):
    """The other side does not keep to the protocol: the status that says so."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Messages:
    """Cuts what comes into messages."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        self._rest += data

    def __len__(self) -> int:
        """Bytes that are not part of a whole message yet."""
        return len(self._rest)

    def __iter__(self) -> Iterator[bytes]:
        """The whole messages, which are then forgotten. Raises Broken."""
        while len(self._rest) >= 5:
            size = int.from_bytes(self._rest[1:5], "big")
            if self._rest[0]:
                raise Broken(grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not taken: send them as they are")
            if size > MESSAGE_BYTES_MAX:
                detail = f"a message of {size} bytes; at most {MESSAGE_BYTES_MAX}"
                raise Broken(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
            if len(self._rest) < 5 + size:
                return
            message = bytes(self._rest[5 : 5 + size])
            del self._rest[: 5 + size]
            yield message


def frame(message: bytes) -> bytes:
    """A message as it is sent."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def trailers(code: grpc.StatusCode, detail: str) -> Headers:
    """How a stream ends."""
    status = ("grpc-status", str(code.value[0]))
    return [status, ("grpc-message", quote(detail[:_DETAIL_CHARACTERS_MAX], safe=_PRINTABLE))] if detail else [status]

"""Messages over a socket, each after its length: how the collector and the process of its analysis talk."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from google.protobuf.message import Message

LENGTH_BYTES = 4
FRAME_BYTES_MAX = 64 << 20
"""The state of a fleet of 4,096 nodes with 64 instances each is smaller."""


class Garbled(Exception):
    """What came is no message."""


def frame(message: Message) -> bytes:
    """The message as it goes over the line."""
    data = message.SerializeToString()
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def frames(line: socket.socket) -> Iterator[bytes]:
    """What comes, until the other side hangs up or dies, be it amid a message. Raises Garbled when a length cannot be one."""
    with line.makefile("rb") as stream:
        while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
            length = int.from_bytes(head, "little")
            if length > FRAME_BYTES_MAX:
                raise Garbled(f"a message of {length} bytes; at most {FRAME_BYTES_MAX}")
            data = stream.read(length)
            if len(data) < length:
                return
            yield data

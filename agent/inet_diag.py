"""What the kernel says of TCP sockets, by its netlink protocol sock_diag(7): one question a network namespace and family of addresses."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import NamedTuple

NETLINK_SOCK_DIAG = 4
ANSWER_BYTES_MAX = 64 << 10
MESSAGES_MAX = 4096
CONNECTIONS_MAX = 32768
"""Of one network namespace that are told at most: 10 MB."""

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_ESTABLISHED, _LISTEN = 1, 10
_SKMEMINFO, _DROPS = 7, 8  # INET_DIAG_SKMEMINFO, SK_MEMINFO_DROPS
_HEADER = struct.Struct("=IHHII")
_MESSAGE_BYTES = 72
_PAIR = struct.Struct("!HH16s16s")
_MAPPED = bytes(10) + b"\xff\xff"
_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Listener:
    """All sockets together that listen on one port."""

    queued: int
    """Connections that are made and wait to be accepted."""
    queue_max: int
    """How many may wait; one more fits."""
    drops: int
    """Attempts that were dropped at these sockets since they were made: mostly because the queue was full."""
    inodes: frozenset[int] = field(default=frozenset(), compare=False)
    """Of these sockets."""


class Endpoint(NamedTuple):
    """One end of a connection."""

    address: bytes
    """16 bytes; IPv4 is ::ffff:a.b.c.d."""
    port: int


class Connection(NamedTuple):
    """As one of its two sockets sees it."""

    local: Endpoint
    remote: Endpoint


class SocketDiag:
    """Asks about the network namespace that it was made in. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._socket.settimeout(_TIMEOUT_SECONDS)

    def listeners(self) -> dict[int, Listener]:
        """Those of TCP, IPv4 and IPv6 together, by port. Raises OSError; ValueError for an answer that makes no sense."""
        out: dict[int, Listener] = {}
        self._dump(_LISTEN, 1 << (_SKMEMINFO - 1), lambda body: _add(body, out))
        return out

    def opened(self, listening: Container[int]) -> tuple[dict[int, Connection], int]:
        """The established connections of TCP whose own port is not among `listening`: those that were opened from here.

        By the inode of their socket; and how many there are beyond `CONNECTIONS_MAX`. Raises as `listeners`.
        """
        out: dict[int, Connection] = {}
        beyond = 0

        def add(body: bytes) -> None:
            nonlocal beyond
            if int.from_bytes(body[4:6]) in listening:
                return
            if len(out) < CONNECTIONS_MAX:
                connect(body, out)
            else:
                beyond += 1

        self._dump(_ESTABLISHED, 0, add)
        return out, beyond

    def _dump(self, state: int, extensions: int, add: Callable[[bytes], None]) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            filters = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, extensions, 1 << state)
            self._socket.send(_HEADER.pack(_HEADER.size + len(filters), _BY_FAMILY, _REQUEST_DUMP, 0, 0) + filters)
            for _ in range(MESSAGES_MAX):
                if parse(self._socket.recv(ANSWER_BYTES_MAX), add):
                    break

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()


def parse(answer: bytes, add: Callable[[bytes], None]) -> bool:
    """Hand what one datagram says of each socket to `add`; whether it was the last.

    Raises OSError that the kernel answers; garbage, and less than there must be about a socket: ValueError.
    """
    at = 0
    while at < len(answer):
        if len(answer) - at < _HEADER.size:
            raise ValueError("sock_diag: a header that is cut off")
        length, kind, _, _, _ = _HEADER.unpack_from(answer, at)
        body = answer[at + _HEADER.size : at + length]
        if length < _HEADER.size or at + length > len(answer):
            raise ValueError(f"sock_diag: a message of {length} bytes")
        if kind == _DONE:
            return True
        if kind == _ERROR:
            _raise(body)
        if kind == _BY_FAMILY:
            if len(body) < _MESSAGE_BYTES:
                raise ValueError(f"sock_diag: {len(body)} bytes about a socket")
            add(body)
        at += (length + 3) & ~3
    return False


def _raise(body: bytes) -> None:
    (number,) = struct.unpack_from("=i", body) if len(body) >= 4 else (-errno.EBADMSG,)
    raise OSError(-number, f"sock_diag: {os.strerror(-number)}")


def connect(body: bytes, into: dict[int, Connection]) -> None:
    """Add what is said of one established socket to `into`, by its inode."""
    local_port, remote_port, local, remote = _PAIR.unpack_from(body, 4)
    if body[0] == socket.AF_INET:
        local, remote = _MAPPED + local[:4], _MAPPED + remote[:4]
    if body[1] == _ESTABLISHED:
        into[_inode(body)] = Connection(Endpoint(local, local_port), Endpoint(remote, remote_port))


def _inode(body: bytes) -> int:
    return int(struct.unpack_from("=I", body, 68)[0])


def _add(body: bytes, into: dict[int, Listener]) -> None:
    if body[1] != _LISTEN:
        return
    (port,) = struct.unpack_from("!H", body, 4)
    queued, queue_max = struct.unpack_from("=II", body, 56)
    known = into.get(port, Listener(0, 0, 0))
    inodes = known.inodes | {_inode(body)}
    into[port] = Listener(known.queued + queued, known.queue_max + queue_max, known.drops + _drops(body), inodes)


def _drops(body: bytes) -> int:
    at = _MESSAGE_BYTES
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4 or at + length > len(body):
            raise ValueError(f"sock_diag: an attribute of {length} bytes")
        if kind == _SKMEMINFO and length >= 4 + 4 * (_DROPS + 1):
            return int(struct.unpack_from("=I", body, at + 4 + 4 * _DROPS)[0])
        at += (length + 3) & ~3
    raise ValueError("sock_diag: a socket without SK_MEMINFO_DROPS")

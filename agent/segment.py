"""One file of the spool: records of [u32 length][u32 crc32][u8 type][payload], little-endian; the crc covers type and payload.

The file is named by the number of its first window, the windows in it are numbered without a gap, and the schema that is in force
comes first, so that each file can be read alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from trimtab.agent.wire import telemetry_pb2 as pb

SCHEMA, WINDOW = 1, 2
SUFFIX = ".windows"
_HEADER = struct.Struct("<II")


@dataclass(slots=True)
class Segment:
    """What is known of one file."""

    path: Path
    first: int
    windows: int = 0
    bytes: int = 0
    """Of whole records; what the file holds beyond is of no use."""
    began_ns: int = 0
    """When its first window was appended, on the clock of whoever holds this; `scan` gives Unix time."""
    ended_ns: int = 0
    """The same of its last."""

    @property
    def last(self) -> int:
        """Number of its last window; first - 1 when it has none."""
        return self.first + self.windows - 1

    def time_ns(self, seq: int) -> int:
        """About when window `seq` was appended: within a file they came at an even pace."""
        return self.began_ns + (self.ended_ns - self.began_ns) * (seq - self.first) // max(1, self.windows - 1)


@dataclass(frozen=True, slots=True)
class Record:
    """A window as it lies in the spool, with the schema that it names."""

    seq: int
    schema: bytes
    window: bytes
    appended_ns: int = 0
    """On the boottime clock; 0 for one that was read back."""


def path_of(directory: Path, first: int) -> Path:
    """The file whose first window is `first`."""
    return directory / f"{first:020d}{SUFFIX}"


def pack(kind: int, payload: bytes) -> bytes:
    """One record."""
    body = bytes((kind,)) + payload
    return _HEADER.pack(len(payload), zlib.crc32(body)) + body


def unpack(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Kind, payload and end of each record in `data`, up to the first that is torn or corrupt."""
    offset, start = 0, _HEADER.size
    while offset + start < len(data):
        length, crc = _HEADER.unpack_from(data, offset)
        end = offset + start + 1 + length
        body = data[offset + start : end]
        if end > len(data) or zlib.crc32(body) != crc or body[0] not in (SCHEMA, WINDOW):
            return
        yield body[0], body[1:], end
        offset = end


def scan(path: Path) -> Segment:
    """What an agent before this one left in `path`. Raises OSError, and ValueError for a name that is not a number."""
    segment = Segment(path, int(path.name.removesuffix(SUFFIX)))
    first = last = b""
    for kind, payload, end in unpack(path.read_bytes()):
        segment.bytes = end
        if kind == WINDOW:
            segment.windows += 1
            first, last = first or payload, payload
    segment.began_ns, segment.ended_ns = _start_unix_ns(first), _start_unix_ns(last)
    return segment


def _start_unix_ns(window: bytes) -> int:
    try:
        return pb.Window.FromString(window).start_unix_ns
    except DecodeError:  # sound by its checksum, and yet no window of ours: as old as can be
        return 0

"""The head of a connection: its frames up to the first request, which says where the whole connection belongs."""

from __future__ import annotations

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
"""An empty SETTINGS frame: what a client waits for before it asks for anything."""
_HEADER_BYTES = 9
_FRAME_BYTES_MAX = 16384
_HEAD_BYTES_MAX = 65536
_HEADERS, _SETTINGS, _CONTINUATION = 1, 4, 9
_ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 32


class NotHttp2(Exception):
    """What came is no HTTP/2."""


class Head:
    """Fed with what comes, until `path` is known. The client's acknowledgement of our `SETTINGS` is taken out: nobody else waits for it."""

    def __init__(self) -> None:
        self.path = ""
        """Of the first request, once it has come."""
        self._unread = bytearray()
        self._passed = bytearray()
        self._block = bytearray()
        self._begun = False
        self.acknowledged = False
        """Whether our SETTINGS were; from then on nothing is taken out."""

    def feed(self, data: bytes) -> bytes:
        """Take more; what is to go on to where the connection belongs, nothing as long as that is not known. Raises NotHttp2."""
        self._unread += data
        if not self._begun:
            if not PREFACE.startswith(bytes(self._unread[: len(PREFACE)])):
                raise NotHttp2("it does not begin as HTTP/2 does")
            if len(self._unread) < len(PREFACE):
                return b""
            self._passed += self._unread[: len(PREFACE)]
            del self._unread[: len(PREFACE)]
            self._begun = True
        self._read_frames()
        if not self.path:
            if len(self._passed) + len(self._unread) > _HEAD_BYTES_MAX:
                raise NotHttp2(f"no request within {_HEAD_BYTES_MAX} bytes")
            return b""
        if self.acknowledged:
            self._passed += self._unread
            self._unread.clear()
        out = bytes(self._passed)
        self._passed.clear()
        return out

    def _read_frames(self) -> None:
        while len(self._unread) >= _HEADER_BYTES and not (self.path and self.acknowledged):
            size = int.from_bytes(self._unread[:3], "big")
            if size > _FRAME_BYTES_MAX:
                raise NotHttp2(f"a frame of {size} bytes")
            if len(self._unread) < _HEADER_BYTES + size:
                return
            kind, flags = self._unread[3], self._unread[4]
            if kind == _SETTINGS and flags & _ACK and not self.acknowledged:
                self.acknowledged = True
            else:
                self._passed += self._unread[: _HEADER_BYTES + size]
                if kind in {_HEADERS, _CONTINUATION} and not self.path:
                    self._read_headers(kind, flags, bytes(self._unread[_HEADER_BYTES : _HEADER_BYTES + size]))
            del self._unread[: _HEADER_BYTES + size]

    def _read_headers(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            end = len(payload) - (payload[0] if flags & _PADDED and payload else 0)
            begin = (1 if flags & _PADDED else 0) + (5 if flags & _PRIORITY else 0)
            payload = payload[begin:end]
        self._block += payload
        if not flags & _END_HEADERS:
            return
        try:
            found = hpack.Decoder(max_header_list_size=_FRAME_BYTES_MAX).decode(bytes(self._block), raw=True)
        except (hpack.HPACKError, ValueError) as error:
            raise NotHttp2("its headers cannot be read") from error
        # A request without a path is for those to answer who know the whole of HTTP/2.
        self.path = next((value.decode("latin-1") for name, value in found if name == b":path"), "") or "/"

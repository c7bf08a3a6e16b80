"""A connection that asks goes on to the gRPC server, byte for byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Far(asyncio.Protocol):
    """The gRPC server's side of a connection."""

    def __init__(self, near: asyncio.Transport, hurry: Callable[[], None]) -> None:
        self._near = near
        self._hurry = hurry
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._hurry()
        self._near.write(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.close()

    def pause_writing(self) -> None:
        self._near.pause_reading()

    def resume_writing(self) -> None:
        self._near.resume_reading()

    def write(self, data: bytes) -> None:
        """What the client says."""
        if self._transport:
            self._transport.write(data)

    def hold(self, held: bool) -> None:
        """Whether the client reads too slowly to be told more."""
        if self._transport:
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

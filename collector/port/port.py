"""The listening socket, its thread, and whom each connection belongs to."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire.certificates import Certificates
from trimtab.agent.wire.channel import certificate_files, is_loopback
from trimtab.collector.port.forward import Far
from trimtab.collector.port.gathering import Gathering
from trimtab.collector.port.head import SETTINGS, Head, NotHttp2
from trimtab.collector.port.publishing import PUBLISH, Begin, Publishing

log = logging.getLogger(__name__)

BACKLOG = 1024
HEAD_SECONDS_MAX = 10.0
"""How long a connection may take to say what it wants."""
QUIET_SECONDS = 20.0
"""After so long a publishing connection is asked whether it is still there; after twice as long it is closed."""
BUFFERED_BYTES_MAX = 64 << 20
"""Of messages that are not whole yet or not taken yet, all connections together."""
_SWEEP_SECONDS = 2.0
_STOP_SECONDS = 5.0


def listen(address: str, field: str) -> socket.socket:
    """A socket bound to HOST:PORT. Raises TrimtabError, naming the setting `field`."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, where = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.listen(BACKLOG)
    except (OSError, ValueError) as error:
        message = f"{field} = {address!r}: cannot listen there: the port is taken or the address is not of this host"
        raise TrimtabError(message, Exit.LISTEN) from error
    made.setblocking(False)
    return made


class Port:
    """Bound when made, serving after `start`."""

    def __init__(self, address: str, tls: Tls, field: str, connections_max: int) -> None:
        """Raises TrimtabError when the port is taken, or when it would be open to others without TLS."""
        self._files = None if is_loopback(address) else certificate_files(tls, field, address)
        self._context = _context(self._files.current) if self._files else None
        self._socket = listen(address, field)
        self.number: int = self._socket.getsockname()[1]
        self.connections_max = connections_max
        self.turned_away = 0
        """Connections beyond the limit, that spoke no HTTP/2, or that held too much."""
        self.connections: dict[Connection, None] = {}
        """In the order in which they came."""
        self._gathering = Gathering()
        self.hurry = self._gathering.hurry
        self.loop = asyncio.SelectorEventLoop(self._gathering)
        self.server = ""
        self.begin: Begin
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="port", daemon=True)

    def start(self, server: str, begin: Begin) -> None:
        """Hand calls of Publish to `begin`, and every other connection to the gRPC server on the Unix socket `server`."""
        self.server, self.begin = server, begin
        self._thread.start()
        self._listens.wait()

    def stop(self) -> None:
        """Take no more connections, and close those there are."""
        if not self._thread.is_alive():
            self._socket.close()
            return
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(_STOP_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def make_room(self) -> None:
        """For one more connection: the oldest that has not said what it wants goes, or else the oldest that asks; no agent's."""
        if len(self.connections) < self.connections_max:
            return
        self.turned_away += 1
        for undecided in (True, False):
            for connection in self.connections:
                if not connection.publishes and (connection.undecided or not undecided):
                    del self.connections[connection]
                    connection.abort()
                    return

    def soon(self, what: Callable[[], None]) -> None:
        """Have the port's thread do it."""
        # Once it has stopped there is nobody left to tell.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what)

    def context(self) -> ssl.SSLContext | None:
        """With the certificates that are in force now; None: no TLS."""
        if self._files and self._files.refresh():
            self._context = _context(self._files.current)
        return self._context

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        made = self.loop.create_server(lambda: Connection(self), sock=self._socket)
        self._listening = self.loop.run_until_complete(made)
        self._listens.set()
        sweep = self.loop.create_task(self._sweep())
        self.loop.run_forever()
        sweep.cancel()
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(sweep)
        self.loop.close()

    async def _close(self) -> None:
        self._listening.close()
        for connection in list(self.connections):
            connection.finish(grpc.StatusCode.UNAVAILABLE, "the collector is stopping")
        deadline = self.loop.time() + 1
        while self.connections and self.loop.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = self.loop.time()
            for connection in list(self.connections):
                try:
                    connection.sweep(now)
                except Exception:
                    # Whatever one connection has come to, the others are looked at.
                    log.exception("a connection cannot be looked after; it is closed")
                    connection.abort()
            self._limit_buffers()

    def _limit_buffers(self) -> None:
        held = sorted(self.connections, key=lambda connection: -connection.buffered_bytes)
        total = sum(connection.buffered_bytes for connection in held)
        for connection in held:
            if total <= BUFFERED_BYTES_MAX:
                return
            total -= connection.buffered_bytes
            self.turned_away += 1
            connection.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, "the collector holds too many unfinished messages")


class Connection(asyncio.Protocol):
    """One connection: its head, then either side."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._head = Head()
        self._begun = bytearray()
        self._connecting = False
        self._far: Far | None = None
        self._publishing: Publishing | None = None
        self._transport: asyncio.Transport | None = None
        self._heard_at = port.loop.time()
        self._begun_at = self._heard_at
        self._asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._port.make_room()
        self._port.connections[self] = None
        context = self._port.context()
        if context is None:
            transport.write(SETTINGS)
        else:
            self._port.loop.create_task(self._secure(transport, context))

    def data_received(self, data: bytes) -> None:
        self._heard_at, self._asked = self._port.loop.time(), False
        if self._publishing:
            self._publishing.receive(data)
            self._close_finished()
            return
        try:
            out = self._head.feed(data)
        except NotHttp2:
            self._port.turned_away += 1
            self.abort()
            return
        if self._far:
            self._port.hurry()
            self._far.write(out)
        elif self._connecting or not out:
            self._begun += out
        else:
            self._go_on(out)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.connections.pop(self, None)
        if self._publishing:
            self._publishing.lost()
        if self._far:
            self._far.close()

    def pause_writing(self) -> None:
        if self._far:
            self._far.hold(True)

    def resume_writing(self) -> None:
        if self._far:
            self._far.hold(False)

    @property
    def publishes(self) -> bool:
        """Whether it is an agent's, that has said who it is."""
        return self._publishing is not None and self._publishing.opened

    @property
    def undecided(self) -> bool:
        """Whether it has not said what it wants."""
        return self._publishing is None and self._far is None

    @property
    def buffered_bytes(self) -> int:
        """What it holds of messages that are not taken yet."""
        return self._publishing.buffered_bytes if self._publishing else 0

    def go_on(self) -> None:
        """There is room again for what was turned away."""
        if self._publishing:
            self._publishing.go_on()

    def finish(self, code: grpc.StatusCode, detail: str) -> None:
        """End what goes on, and close."""
        if self._publishing:
            self._publishing.end(code, detail)
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close a connection that does not say what it wants, or that is not there any more."""
        if self._far:
            return
        if self._publishing and self._publishing.opened:
            self._begun_at = now
        if now - self._begun_at > HEAD_SECONDS_MAX:
            self._port.turned_away += 1
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, f"no Hello within {HEAD_SECONDS_MAX:g} s")
        elif now - self._heard_at > 2 * QUIET_SECONDS:
            self.abort()
        elif self._publishing and now - self._heard_at > QUIET_SECONDS and not self._asked:
            self._asked = True
            self._publishing.ping()

    async def _secure(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            secured = await self._port.loop.start_tls(
                transport, self, context, server_side=True, ssl_handshake_timeout=HEAD_SECONDS_MAX
            )
        except (OSError, ssl.SSLError, ConnectionError):
            self._port.turned_away += 1
            self._port.connections.pop(self, None)
            transport.abort()
            return
        self._transport = secured
        if secured:
            secured.write(SETTINGS)

    def _go_on(self, begun: bytes) -> None:
        assert self._transport
        if self._head.path == PUBLISH:
            self._publishing = Publishing(self._transport, self._port.begin)
            self._publishing.receive(begun)
            self._close_finished()
        else:
            self._begun += begun
            self._connecting = True
            self._transport.pause_reading()
            self._port.loop.create_task(self._connect(self._transport))

    async def _connect(self, near: asyncio.Transport) -> None:
        try:
            _, far = await self._port.loop.create_unix_connection(
                lambda: Far(near, self._port.hurry), self._port.server
            )
        except OSError as error:
            log.error("a question cannot be handed on: %s", error)
            self.abort()
            return
        self._far = far
        far.write(bytes(self._begun))
        if near.is_closing():
            far.close()
        else:
            near.resume_reading()

    def _close_finished(self) -> None:
        if self._publishing and self._publishing.finished and self._transport:
            self._transport.close()


def _context(files: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=files.ca.decode())
    context.set_alpn_protocols(["h2"])
    # OpenSSL wants files, and those on the disk may be of another mind by now.
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, files.key + b"\n" + files.certificate)
        context.load_cert_chain(Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)
    return context

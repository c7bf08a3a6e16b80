"""Pages over HTTP for those on this host, such as a Prometheus that scrapes a service. One thread, and a limit on everything.

Neither `http.server` nor a framework: a thread or a task for each connection is what a hostile client wants. Here there are at most
`CONNECTIONS_MAX`; who comes after pushes the oldest out, so a scraper that says at once what it wants is served through a flood.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trimtab import Exit, TrimtabError
from trimtab.agent.clock import Clock
from trimtab.agent.wire.channel import is_loopback

log = logging.getLogger(__name__)

PATH = "/metrics"
CONNECTIONS_MAX = 16
HEAD_BYTES_MAX = 8192
SECONDS_MAX = 5.0
"""From the connection to the last byte of the answer."""
FRESH_SECONDS = 0.2
"""A page this young is given again: asking more often costs the agent no more readings."""

# Above the connections that are kept, or a flood would have the kernel turn a good scraper away for a second.
_BACKLOG = 128

Page = Callable[[str, str], tuple[str, Callable[[], bytes]]]
"""Given an Accept header and a query: the content type, one of a few, and what makes the page. Raises Wrong for what it cannot answer."""


class Wrong(Exception):
    """What is asked for cannot be had: one line why."""

    status = "400 Bad Request"


class NotNow(Wrong):
    """It can be had at another time."""

    status = "503 Service Unavailable"


@dataclass(slots=True, eq=False)
class _Client:
    """A connection: what it has said, and what it has still to be told."""

    socket: socket.socket
    deadline: float
    head: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Exposition:
    """Serves until it is closed.

    Raises TrimtabError when others than this host could read it, and OSError where it cannot listen.
    """

    def __init__(self, listen: str, pages: Mapping[str, Page], clock: Clock, field_name: str) -> None:
        host, _, port = listen.rpartition(":")
        if not is_loopback(listen) or host.startswith("unix"):
            message = f"{field_name} = {listen!r}: this page has no lock: use 127.0.0.1, and have a local scraper or proxy carry it on"
            raise TrimtabError(message, Exit.SETTINGS)
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._pages = pages
        self._clock = clock
        self._clients: list[_Client] = []
        self._made: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody."""
        self._closing = True
        self._wake.send(b"\0")
        self._thread.join(SECONDS_MAX)

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:  # the top of the loop: whoever it was for is let go, and the next is served
                log.exception("serving metrics failed")
                self._hang_up_all()
        self._hang_up_all()
        self._selector.close()
        for one in (self._listener, self._wake, self._woken):
            one.close()

    def _turn(self) -> None:
        """What can be done now, or what comes next."""
        timeout = max(0.0, self._clients[0].deadline - self._clock.monotonic()) if self._clients else None
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Client) and key.data in self._clients:
                self._serve(key.data)
        now = self._clock.monotonic()
        # In the order in which they came, and so of their deadlines.
        while self._clients and self._clients[0].deadline <= now:
            self._hang_up(self._clients[0])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone, or there are no descriptors left: the next turn asks again
            self._clock.wait(threading.Event(), 0.01)
            return
        connection.setblocking(False)
        if len(self._clients) >= CONNECTIONS_MAX:
            self._hang_up(self._clients[0])
        client = _Client(connection, self._clock.monotonic() + SECONDS_MAX)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, client)
        self._serve(client)

    def _serve(self, client: _Client) -> None:
        try:
            if client.answer is None and not self._listen_to(client):
                return
            assert client.answer is not None
            client.answer = client.answer[client.socket.send(client.answer) :]
            if client.answer:
                self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
            else:
                client.socket.shutdown(socket.SHUT_WR)
                self._hang_up(client)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(client)

    def _listen_to(self, client: _Client) -> bool:
        """Whether its head is complete, and `answer` set. Raises OSError."""
        part = client.socket.recv(HEAD_BYTES_MAX)
        client.head += part
        if b"\r\n\r\n" in client.head:
            client.answer = memoryview(self._answer(bytes(client.head)))
        elif len(client.head) > HEAD_BYTES_MAX:
            client.answer = memoryview(_response("431 Request Header Fields Too Large", b"the head is too long\n"))
        elif not part:
            raise ConnectionResetError
        return client.answer is not None

    def _answer(self, head: bytes) -> bytes:
        request, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            return _response("400 Bad Request", b"this is no HTTP/1\n")
        path, _, query = target.partition("?")
        if path not in self._pages:
            return _response("404 Not Found", f"the metrics are at {' and '.join(self._pages)}\n".encode())
        if method not in {"GET", "HEAD"}:
            return _response("405 Method Not Allowed", b"GET it\n", "Allow: GET, HEAD\r\n")
        accept = ",".join(line[7:].strip() for line in lines if line[:7].lower() == "accept:")
        try:
            response = self._rendered(path, accept, query)
        except Wrong as error:
            return _response(error.status, f"{error}\n".encode())
        return response if method == "GET" else response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _rendered(self, path: str, accept: str, query: str) -> bytes:
        content_type, make = self._pages[path](accept, query)
        if query:
            return _response("200 OK", make(), content_type=content_type)
        made_at, response = self._made.get((path, content_type), (-FRESH_SECONDS, b""))
        now = self._clock.monotonic()
        if now - made_at >= FRESH_SECONDS:
            response = _response("200 OK", make(), content_type=content_type)
            self._made[path, content_type] = (now, response)
        return response

    def _hang_up_all(self) -> None:
        for client in list(self._clients):
            self._hang_up(client)

    def _hang_up(self, client: _Client) -> None:
        self._clients.remove(client)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.socket)
        client.socket.close()


def _response(status: str, body: bytes, more: str = "", content_type: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    return head.encode() + body


def serve(listen: str, pages: Mapping[str, Page], clock: Clock, field_name: str) -> Exposition | None:
    """None where `listen` is empty, or, said in the log, taken: a service that is not scraped is better than none. Raises TrimtabError.

    `field_name` is the setting that `listen` comes from.
    """
    if not listen:
        return None
    try:
        return Exposition(listen, pages, clock, field_name)
    except OSError as error:
        log.warning(
            '%s = %r: %s; its metrics are not served: free the port, set another, or set it to ""',
            field_name,
            listen,
            error.strerror or error,
        )
        return None

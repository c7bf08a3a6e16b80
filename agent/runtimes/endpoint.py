"""One HTTP endpoint of a model server on this host, asked under strict limits: of time, of size, and of where it leads.

On httptools: http.client takes three times the CPU (measured in docs/runtimes.md).
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from urllib.parse import urlsplit

import httptools

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import NoAnswer
from trimtab.agent.runtimes.netns import inside

ANSWER_SECONDS_MAX = 0.3
ANSWER_BYTES_MAX = 1 << 20
HEAD_BYTES_MAX = 64 << 10
READ_BYTES = 64 << 10


class Refused(NoAnswer):
    """It answered with another status than 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path}: status {status}")
        self.status = status


class _Stale(OSError):
    """A connection that was kept had been closed by the other side."""


class _Answer:
    """What httptools calls back while it reads one answer."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.begun = 0
        self.complete = False

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.complete = True


class Endpoint:
    """A connection that is kept between questions, made in the network namespace of its instance. Follows no redirect, uses no proxy."""

    def __init__(self, instance: Instance, role: str) -> None:
        parts = urlsplit(instance.urls[role])
        self._address = (parts.hostname or "", parts.port or 80)
        self._instance = instance
        self._headers = "".join(f"{k}: {v}\r\n" for k, v in {"Host": parts.netloc, **instance.headers}.items())
        self._socket: socket.socket | None = None

    def get(self, path: str, seconds: float = ANSWER_SECONDS_MAX) -> bytes:
        """The body of the answer, which has to be complete within `seconds`. Raises NoAnswer, Refused."""
        question = f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode()
        deadline = time.monotonic() + seconds
        try:
            try:
                status, body = self._ask(question, deadline)
            except _Stale:
                self.close()
                status, body = self._ask(question, deadline)
        except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.close()
            raise NoAnswer(f"{path}: {error or type(error).__name__}") from error
        if status != HTTPStatus.OK:
            raise Refused(path, status)
        return body

    def close(self) -> None:
        """The next question connects again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, question: bytes, deadline: float) -> tuple[int, bytes]:
        kept = self._socket is not None
        connection = self._socket = self._socket or inside(
            self._instance.pid, self._instance.netns, lambda: _connect(self._address, deadline)
        )
        answer = _Answer()
        try:
            connection.settimeout(_left(deadline))
            connection.sendall(question)
            status = _read(connection, answer, deadline)
        except ConnectionError as error:
            if kept and not answer.begun:
                raise _Stale(str(error)) from error
            raise
        return status, b"".join(answer.parts)


def _read(connection: socket.socket, answer: _Answer, deadline: float) -> int:
    """Fill in the answer. Its status."""
    parser = httptools.HttpResponseParser(answer)
    left = ANSWER_BYTES_MAX + HEAD_BYTES_MAX
    while not answer.complete:
        # Each read gets only what is left of the time, so that an answer that trickles in ends too.
        connection.settimeout(_left(deadline))
        part = connection.recv(READ_BYTES)
        left -= len(part)
        if not part:
            raise ConnectionError("cut short")
        if left < 0:
            raise OSError(f"more than {ANSWER_BYTES_MAX} bytes")
        parser.feed_data(part)
    if answer.begun != 1:
        raise OSError("more than one answer")
    return parser.get_status_code()


def _connect(address: tuple[str, int], deadline: float) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.settimeout(_left(deadline))
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left

"""One HTTP endpoint of a model server on this host, asked under strict limits: of time, of size, and of where it leads."""

from __future__ import annotations

import http.client
import socket
import time
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from trimtab.agent.runtimes.base import NoAnswer

ANSWER_SECONDS_MAX = 0.3
ANSWER_BYTES_MAX = 1 << 20


class Refused(NoAnswer):
    """It answered with another status than 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path}: status {status}")
        self.status = status


class _DeadlineSocket(socket.socket):
    """Each read gets only what is left of the time for the whole answer, so that an answer that trickles in ends too."""

    deadline = 0.0

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.settimeout(left)
        return super().recv_into(*args, **kwargs)


class Endpoint:
    """A connection that is kept between questions. Follows no redirect, uses no proxy."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._headers = headers
        self._connection = http.client.HTTPConnection(*self._address)
        self._connection.auto_open = 0  # it would connect without our limits

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, path: str) -> bytes:
        """The body of the answer. Raises NoAnswer, Refused."""
        try:
            self._connect()
            self._connection.request("GET", path, headers=self._headers)
            answer = self._connection.getresponse()
            body = answer.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise NoAnswer(f"{path}: {error or type(error).__name__}") from error
        if len(body) > ANSWER_BYTES_MAX or answer.length:
            self._connection.close()
            raise NoAnswer(f"{path}: cut short, or more than {ANSWER_BYTES_MAX} bytes")
        if answer.status != http.client.OK:
            raise Refused(path, answer.status)
        return body

    def _connect(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        if self._connection.sock is None:
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            self._socket = self._connection.sock = _DeadlineSocket(family, socket.SOCK_STREAM)
            self._socket.settimeout(ANSWER_SECONDS_MAX)
            self._socket.connect(self._address)
        self._socket.deadline = deadline

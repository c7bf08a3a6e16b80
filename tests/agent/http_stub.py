"""An HTTP server that answers what it is told to, byte for byte, however wrong that is."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Stub:
    """What came in so far."""

    url: str
    connections: int = 0
    answered: int = 0


@contextmanager
def answering(*answers: bytes, each: int = 1, pause_seconds: float = 0, pieces: int = 1) -> Iterator[Stub]:
    """Gives the nth question the nth of the answers, and the last again and again; in pieces with pauses.

    A connection is closed after `each` answers.
    """
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stub = Stub(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve(connection: socket.socket) -> None:
            connection.settimeout(2)
            for _ in range(each):
                if not connection.recv(4096):
                    return
                answer = answers[min(stub.answered, len(answers) - 1)]
                stub.answered += 1
                size = math.ceil(len(answer) / pieces) or 1
                for at in range(0, len(answer), size):
                    connection.sendall(answer[at : at + size])
                    if stop.wait(pause_seconds):
                        return

        def accept() -> None:
            while not stop.is_set():
                with suppress(OSError):
                    connection, _ = listener.accept()
                    stub.connections += 1
                    with connection:
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield stub
        finally:
            stop.set()
            thread.join()


def said_with(status: bytes, body: bytes) -> bytes:
    """One answer with a length."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body

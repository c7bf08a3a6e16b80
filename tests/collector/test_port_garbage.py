"""What is no agent on the collector's port: it is turned away, and a good agent does not notice."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import hpack
import pytest

from tests.collector.real_collector import GoodAgent, Served, serving, until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PUBLISH = "/trimtab.telemetry.v1.Telemetry/Publish"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS = 4
AT_ONCE = 50


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: str = PUBLISH, **more: bytes) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return bytes(hpack.Encoder().encode([*fields, *((name.encode(), value) for name, value in more.items())]))


def begun(path: str = PUBLISH) -> bytes:
    """A call, as far as its headers."""
    return PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0) + frame(HEADERS, END_HEADERS, 1, headers(path))


def message(size: int, body: bytes, compressed: int = 0) -> bytes:
    return frame(DATA, 0, 1, bytes([compressed]) + size.to_bytes(4, "big") + body)


def tls_hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="collector").do_handshake()
    return out.read()


NOISE = random.Random(7).randbytes
GARBAGE: dict[str, Callable[[], bytes]] = {
    "random bytes": lambda: NOISE(100_000),
    "an HTTP/1 request": lambda: b"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "a TLS hello": tls_hello,
    "HTTP/2 with random frames": lambda: PREFACE + NOISE(100_000),
    "a frame of 16 MB": lambda: PREFACE + b"\xff\xff\xff" + bytes([SETTINGS, 0]) + bytes(4) + bytes(100_000),
    "headers that are no HPACK": lambda: PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\xff" * 99),
    "headers without an end": lambda: PREFACE + frame(HEADERS, 0, 1, headers()[:9])
    + frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 3000) * 20,
    "a header that is no text": lambda: PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
    + frame(HEADERS, END_HEADERS, 1, headers(name=b"\xff\xfe")),
    "a second call whose header is no text": lambda: begun() + frame(HEADERS, END_HEADERS, 3, headers(name=b"\xff\xfe")),
    "a padding longer than its frame": lambda: begun() + frame(DATA, 8, 1, b"\xff123"),
    "data for a call that never began": lambda: begun() + frame(DATA, 0, 99, b"hello"),
    "a window update of 0": lambda: begun() + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "a window beyond 2^31": lambda: begun() + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "random bytes after the headers": lambda: begun() + NOISE(100_000),
    "a push": lambda: begun() + frame(PUSH, END_HEADERS, 1, bytes(4)),
}  # fmt: skip
"""After these nothing more can be said on the connection: it is closed."""
WRONG_CALLS: dict[str, Callable[[], bytes]] = {
    "a message that is none": lambda: begun() + message(9, b"\xff" * 9),
    "a message of 4 GB": lambda: begun() + message(0xFFFFFFFF, b"x" * 1000),
    "a compressed message": lambda: begun() + message(5, b"hello", compressed=1),
    "an empty message": lambda: begun() + message(0, b""),
    "an end before the Hello": lambda: begun() + frame(DATA, END_STREAM, 1),
    "a reset at once": lambda: begun() + frame(RESET, 0, 1, bytes(4)),
    "a reset of what never was": lambda: begun() + frame(RESET, 0, 1, bytes(4)) * 2,
    "a farewell": lambda: begun() + frame(GOAWAY, 0, 0, bytes(8)),
    "another method": lambda: begun("/trimtab.query.v1.Query/Nothing") + frame(DATA, END_STREAM, 1),
    "no method at all": lambda: begun("") + frame(DATA, END_STREAM, 1),
    "another method beside it": lambda: begun() + frame(HEADERS, END_HEADERS, 3, headers("/x/Y")),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("garbage")) as served:
        yield served


@pytest.fixture(scope="module")
def good(served: Served) -> Iterator[GoodAgent]:
    with GoodAgent(served) as good:
        yield good


@contextmanager
def connections(served: Served, count: int, said: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60)))
            with suppress(OSError):  # it may have been turned away before all was said
                made[-1].sendall(said)
        yield made


def closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection."""
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_turned_away(served: Served, good: GoodAgent, name: str) -> None:
    before = len(served.log)
    with connections(served, AT_ONCE, GARBAGE[name]()) as made:
        good.goes_on()
        assert all(map(closed, made))
    good.goes_on()
    assert served.log[before:] == []


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_harms_nobody(served: Served, good: GoodAgent, name: str) -> None:
    before = len(served.log)
    with connections(served, AT_ONCE, WRONG_CALLS[name]()):
        good.goes_on()
    good.goes_on()
    assert served.log[before:] == []


SILENCE = {
    "nothing": b"",
    "half a preface": PREFACE[:12],
    "a preface": PREFACE,
    "a call without a Hello": begun(),
}


@pytest.fixture(scope="module")
def silent(served: Served, good: GoodAgent) -> Iterator[dict[str, list[socket.socket]]]:
    """Connections of every kind of silence at once: that each is closed takes ten seconds."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(connections(served, AT_ONCE, said)) for name, said in SILENCE.items()}


@pytest.mark.parametrize("name", SILENCE)
def test_silence_ends(good: GoodAgent, silent: dict[str, list[socket.socket]], name: str) -> None:
    good.goes_on()
    assert all(map(closed, silent[name]))
    good.goes_on()


def test_more_silent_connections_than_it_takes(tmp_path: Path) -> None:
    """Who is connected goes on, and who comes later gets in once the silent ones are closed."""
    with serving(tmp_path, agents_max=8) as served, GoodAgent(served) as good:
        with connections(served, 8 + 256 + 100, PREFACE[:12]):
            good.goes_on()
            until(lambda: gets_in(served), "a new agent does not get in")
            good.goes_on()
        assert "Traceback" not in "\n".join(served.log)


def gets_in(served: Served) -> bool:
    try:
        with GoodAgent(served, "late") as late:
            late.goes_on(1)
    except AssertionError:
        return False
    return True

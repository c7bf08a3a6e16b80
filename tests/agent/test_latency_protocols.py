"""What is not HTTP/1 is not measured, and says so; whatever a server sends, the counts agree with each other."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.agent.requests_kit import (
    BODY,
    DEADLINE_SECONDS,
    Client,
    Server,
    Watch,
    head,
    instance,
    needs_ebpf,
    serve,
    server,
    shared,
    until,
    watch,
)

__all__ = ["serve", "server", "shared", "watch"]
pytestmark = needs_ebpf

SETTINGS_FRAME = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64"
HEADERS_FRAME = b"\0\0\x01\x01\x05\0\0\0\x01\x88"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def unmeasured(seen: Watch, port: int, count: int, reason: str) -> None:
    """So many connections of one reason, and nothing else that could be taken for a request."""
    serving = instance(port)
    until(lambda: seen.count(serving, "connections_unmeasured_per_second") >= count)
    reading = seen.read()
    assert reading.labels["instance", serving.id] == {"latency_unknown": reason}
    assert seen.count(serving, "connections_unmeasured_per_second") == count
    assert seen.count(serving) == seen.sampled(serving) == 0
    assert seen.count(serving, "requests_aborted_per_second") == 0
    assert seen.in_flight(serving) == 0


@pytest.mark.parametrize("speaks_first", [True, False])
def test_http2_is_unknown(serve: Callable[..., Server], watch: Callable[..., Watch], speaks_first: bool) -> None:
    """With prior knowledge, as gRPC does it; the server's settings may go before the client's preface has come."""

    def handle(conversation: socket.socket) -> None:
        if speaks_first:
            conversation.sendall(SETTINGS_FRAME)
        while conversation.recv(65536):
            conversation.sendall(HEADERS_FRAME if speaks_first else SETTINGS_FRAME + HEADERS_FRAME)

    server = serve(handle)
    seen = watch(instance(server.port))
    for _ in range(3):
        client = Client(server.port)
        client.socket.sendall(PREFACE)
        for _ in range(4):
            assert client.socket.recv(1024)
            client.socket.sendall(HEADERS_FRAME)
    unmeasured(seen, server.port, 3, "HTTP/2")


def test_grpc_on_a_port_of_its_own_is_unknown_and_the_rest_is_measured(
    serve: Callable[..., Server], watch: Callable[..., Watch]
) -> None:
    def handle(conversation: socket.socket) -> None:
        while conversation.recv(65536):
            conversation.sendall(SETTINGS_FRAME + HEADERS_FRAME)

    plain, grpc = serve(), serve(handle)
    serving = replace(instance(plain.port), grpc_port=grpc.port)
    seen = watch(serving)
    client = Client(plain.port)
    for _ in range(5):
        client.ask()
    for _ in range(3):
        stream = Client(grpc.port)
        stream.socket.sendall(PREFACE)
        assert stream.socket.recv(1024)
    until(lambda: seen.count(serving, "connections_unmeasured_per_second") >= 3)
    until(lambda: seen.count(serving) >= 5)
    assert seen.read().labels["instance", serving.id] == {"latency_unknown": "HTTP/2"}
    assert seen.count(serving, "connections_unmeasured_per_second") == 3
    assert seen.count(serving) == seen.sampled(serving) == 5


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
    subprocess.run([*command, "-keyout", where, "-out", where.with_suffix(".crt")], check=True, capture_output=True)
    where.write_text(where.read_text() + where.with_suffix(".crt").read_text())
    return where


def test_tls_is_unknown(serve: Callable[..., Server], watch: Callable[..., Watch], certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def handle(conversation: socket.socket) -> None:
        with context.wrap_socket(conversation, server_side=True) as secure:
            while secure.recv(1024):
                secure.sendall(head() + BODY)

    server = serve(handle)
    seen = watch(instance(server.port))
    trust = ssl.create_default_context(cafile=str(certificate))
    for _ in range(3):
        with trust.wrap_socket(Client(server.port).socket, server_hostname="127.0.0.1") as secure:
            for _ in range(4):
                secure.sendall(b"ask\n")
                assert secure.recv(1024)
    unmeasured(seen, server.port, 3, "TLS")


def test_another_protocol_is_unknown(serve: Callable[..., Server], watch: Callable[..., Watch]) -> None:
    def handle(conversation: socket.socket) -> None:
        while asked := conversation.recv(1024):
            conversation.sendall(asked)

    server = serve(handle)
    seen = watch(instance(server.port))
    for _ in range(3):
        client = Client(server.port)
        for _ in range(4):
            client.socket.sendall(b"HELO\n")
            client.receive(b"HELO\n")
    unmeasured(seen, server.port, 3, "not HTTP")


def test_what_follows_an_upgrade_is_unknown(serve: Callable[..., Server], watch: Callable[..., Watch]) -> None:
    def handle(conversation: socket.socket) -> None:
        conversation.recv(1024)
        conversation.sendall(head(101, "upgrade: websocket\r\n"))
        while asked := conversation.recv(1024):
            conversation.sendall(asked)

    server = serve(handle)
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    client.socket.sendall(b"upgrade\n")
    client.receive(b"\r\n\r\n")
    for _ in range(5):
        client.socket.sendall(b"frame\n")
        client.receive(b"frame\n")
    until(lambda: seen.count(serving, "connections_unmeasured_per_second") == 1)
    assert seen.count(serving) == seen.sampled(serving) == 1
    assert seen.in_flight(serving) == 0


def test_a_connection_from_before_may_be_in_the_middle_of_anything(
    serve: Callable[..., Server], watch: Callable[..., Watch]
) -> None:
    """Of a request that began before it was watched the latency is unknown, and the rest of a body proves nothing."""
    steps: list[tuple[bytes, bytes]] = [
        (b"a\n", head()),
        (b"half", BODY),
        (b"a\n", head() + BODY),
        (b"a\n", head() + BODY),
    ]

    def handle(conversation: socket.socket) -> None:
        for expected, reply in steps:
            assert conversation.recv(1024) == expected
            conversation.sendall(reply)

    server = serve(handle)
    serving = instance(server.port)
    client = Client(server.port)
    client.socket.sendall(b"a\n")
    client.receive(b"\r\n\r\n")
    seen = watch(serving)
    for asked, _ in steps[1:]:
        client.socket.sendall(asked)
        client.receive(BODY)
    until(lambda: seen.count(serving) >= 2)
    assert seen.count(serving) == 2
    assert (seen.sampled(serving), seen.count(serving, "requests_unmeasured_per_second")) == (1, 1)
    assert seen.count(serving, "connections_unmeasured_per_second") == 0
    assert seen.in_flight(serving) == 0


def test_multipath_tcp_is_not_taken_for_requests(watch: Callable[..., Watch]) -> None:
    """Its sends pass no hook of TCP: what arrives would be in flight for ever."""
    multipath = 262
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, multipath)
    except OSError as error:
        pytest.skip(f"no Multipath TCP: {error.strerror}")
    with listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        serving = instance(port)
        seen = watch(serving)
        for protocol, count in ((multipath, 0), (socket.IPPROTO_TCP, 3)):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
                client.connect(("127.0.0.1", port))
                conversation = listener.accept()[0]
                for _ in range(3):
                    client.sendall(b"ask\n")
                    conversation.recv(64)
                    conversation.sendall(head() + BODY)
                    client.recv(256)
                conversation.close()
            until(
                lambda count=count: (
                    seen.in_flight(serving) == 0 and seen.counts[serving.id, "requests_per_second"] >= count
                )
            )  # type: ignore[misc]
            assert seen.count(serving) == count
        assert seen.count(serving, "requests_aborted_per_second") == 0


class Parrot:
    """A server that sends what the test tells it, send by send, after it has read something."""

    def __init__(self) -> None:
        self.sends: list[bytes] = []
        self.server = Server(self._speak)

    def _speak(self, conversation: socket.socket) -> None:
        conversation.recv(1024)
        for send in self.sends:
            conversation.sendall(send)
        conversation.shutdown(socket.SHUT_WR)
        conversation.recv(1024)


@pytest.fixture(scope="module")
def parrot() -> Iterator[tuple[Parrot, Watch]]:
    one = Parrot()
    seen = Watch(instance(one.server.port))
    yield one, seen
    seen.collector.close()
    one.server.close()


HEAD = re.compile(rb"HTTP/1\.\d \d{3}")
heads = st.sampled_from([200, 204, 404, 500, 503, 100, 103, 101]).map(head)
tokens = st.one_of(
    st.binary(min_size=1, max_size=40),
    heads,
    st.sampled_from([b"HTTP/1.", b"HTTP/2.0 200", SETTINGS_FRAME, b"\x16\x03\x01"]),
)


@st.composite
def sends(draw: st.DrawFn) -> list[bytes]:
    """Heads, garbage and both, cut anywhere."""
    text = b"".join(draw(st.lists(tokens, min_size=1, max_size=4)))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if text[a:b]]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sends=sends())
@example(sends=[b"HTTP/1.", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"])
def test_whatever_a_server_sends_the_counts_agree(parrot: tuple[Parrot, Watch], sends: list[bytes]) -> None:
    one, seen = parrot
    serving = instance(one.server.port)
    one.sends = sends
    before = seen.counts.copy()
    sampled = seen.sampled(serving)
    client = Client(one.server.port)
    client.socket.sendall(b"ask\n")
    received = b""
    while more := client.socket.recv(65536):
        received += more
    client.close()
    assert received == b"".join(sends)

    def rise(name: str) -> float:
        return seen.counts[serving.id, name] - before[serving.id, name]

    until(lambda: seen.in_flight(serving) == 0)
    answered = rise("requests_per_second")
    assert answered <= received.count(b"HTTP/1.")
    assert answered == seen.sampled(serving) - sampled + rise("requests_unmeasured_per_second")
    assert seen.sampled(serving) - sampled <= 1, "one request was asked"
    assert rise("requests_aborted_per_second") <= 1
    assert rise("request_errors_per_second") + rise("request_client_errors_per_second") <= answered
    # By what the first twelve bytes are, however they are cut. But where a send could have begun a head, and the next one does
    # not go on with it, that one may be a head of its own: on a connection that lasts, the first was the end of a body.
    could_begin = len(sends) > 1 and len(sends[0]) < 12 and HEAD.match(sends[0] + b"HTTP/1.1 200"[len(sends[0]) :])
    if not HEAD.match(received):
        assert answered == 0 or could_begin
    elif received[9:10] not in b"01":
        assert seen.sampled(serving) - sampled == 1


def test_a_hostile_client_next_to_a_good_one(serve: Callable[..., Server], watch: Callable[..., Watch]) -> None:
    """Garbage, half-open connections, a head of a megabyte, resets: the good one's figures stay exact."""
    server = serve()
    serving = instance(server.port)
    seen = watch(serving)
    stop = threading.Event()

    def be_hostile() -> None:
        open_ones = []
        while not stop.is_set():
            client = Client(server.port)
            client.socket.sendall(b"\xff" * 1000)
            client.close(reset=True)
            open_ones.append(Client(server.port))
            with Client(server.port).socket as large:
                large.sendall(b"a" * (1 << 20))
        for one in open_ones:
            one.close()

    hostile = threading.Thread(target=be_hostile)
    hostile.start()
    good = Client(server.port)
    for _ in range(200):
        good.ask()
    stop.set()
    hostile.join(DEADLINE_SECONDS)
    until(lambda: seen.in_flight(serving) == 0)
    assert seen.count(serving) == seen.sampled(serving) == 200

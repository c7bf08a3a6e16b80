"""Servers that answer as they are told, clients that count, and an open collector: for the tests of the request probes."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from trimtab.agent.bpf import capability
from trimtab.agent.bpf.capability import SentHook
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.latency import Latency
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.sketch import loglinear
from trimtab.agent.sketch.loglinear import Sketch

MISSING = [f"{check.detail}; {check.remedy}" for check in capability.what_is_missing() if not check.ok]
needs_ebpf = [pytest.mark.ebpf, pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))]

DEADLINE_SECONDS = 10.0
NETNS = Path("/proc/self/ns/net").stat().st_ino
BODY = b"body\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Handler = Callable[[socket.socket], object]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def head(status: int = 200, more: str = "content-length: 5\r\n") -> bytes:
    return f"HTTP/1.1 {status} Because\r\n{more}\r\n".encode()


def answer(conversation: socket.socket) -> None:
    """Answers each line, "SECONDS …", that many seconds later, in two writes."""
    with conversation.makefile("rb") as requests:
        for line in requests:
            time.sleep(float(line.split()[-1]))
            conversation.sendall(head())
            conversation.sendall(BODY)


class Server:
    """Listens on a port that the system chose; every connection has a thread, or all share one, one after the other."""

    def __init__(
        self, handler: Handler = answer, *, single: bool = False, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, port), family=family, backlog=256)
        self.host, self.port = host, self.listener.getsockname()[1]
        self._handler, self._single = handler, single
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                conversation, _ = self.listener.accept()
            except OSError:
                return
            if self._single:
                self._serve(conversation)
            else:
                threading.Thread(target=self._serve, args=(conversation,), daemon=True).start()

    def _serve(self, conversation: socket.socket) -> None:
        conversation.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with conversation:
            try:
                self._handler(conversation)
            except (OSError, ValueError):  # the client has left, or sent garbage
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Client:
    """One connection. `ask` returns the seconds until the first byte of the answer."""

    def __init__(
        self, port: int, *, with_handshake: bool = False, local_port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.settimeout(DEADLINE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if with_handshake:
            # The last acknowledgement of the handshake waits for the request and carries it, as HAProxy does it.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        self.socket.bind((host, local_port))
        self.socket.connect((host, port))

    def ask(self, seconds: float = 0.0, parts: int = 1) -> float:
        started = time.perf_counter()
        for _ in range(parts - 1):
            self.socket.sendall(b"0 ")
            time.sleep(0.02)
        self.socket.sendall(f"{seconds}\n".encode())
        answer = self.socket.recv(256)
        elapsed = time.perf_counter() - started
        self.receive(BODY, answer)
        return elapsed

    def receive(self, end: bytes, so_far: bytes = b"") -> bytes:
        """All up to `end`."""
        while not so_far.endswith(end):
            more = self.socket.recv(65536)
            assert more, "the server has closed"
            so_far += more
        return so_far

    def close(self, *, reset: bool = False) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.socket.close()


class Watch:
    """An open collector, read over and over as windows of one second: rates are then counts."""

    def __init__(self, *instances: Instance, probability: float = 1.0) -> None:
        self.host = Host("node", ManualClock(), Probes(probability))
        self.collector = Latency()
        self.collector.open(self.host)
        self.turn_to(instances)

    def turn_to(self, instances: Iterable[Instance]) -> None:
        """Watch these from here on, as if nothing had been before."""
        self.counts: Counter[tuple[str, str]] = Counter()
        self.sketches: dict[tuple[str, str], list[Sketch]] = {}
        self.instances: list[Instance] = []
        self.read()
        self.counts.clear()
        self.instances = list(instances)
        self.read()

    def read(self) -> Reading:
        reading = Reading(self.instances, 1.0)
        self.collector.read(reading)
        self.counts.update({(i, name): value for (_, i, name), value in reading.values.items() if "per_second" in name})
        for (_, i, name), sketch in reading.sketches.items():
            self.sketches.setdefault((i, name), []).append(sketch)
        return reading

    def count(self, instance: Instance, name: str = "requests_per_second") -> float:
        self.read()
        return self.counts[instance.id, name]

    def sketch(self, instance: Instance, name: str = "request_latency") -> Sketch:
        return loglinear.merge(self.sketches[instance.id, name])

    def sampled(self, instance: Instance, name: str = "request_latency") -> int:
        self.read()
        return sum(sketch.sampled for sketch in self.sketches.get((instance.id, name), ()))

    def in_flight(self, instance: Instance) -> float:
        return self.read().values["instance", instance.id, "requests_in_flight"]


def instance(port: int, netns: int = NETNS) -> Instance:
    return Instance(f"node/{netns}/{port}", "test", os.getpid(), 0.0, port, netns, (f"127.0.0.1:{port}",))


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    started: list[Server] = []

    def start(handler: Handler = answer, **how: object) -> Server:
        started.append(Server(handler, **how))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="session")
def shared() -> Iterator[dict[object, Watch]]:
    """By the hook of the answer: loading the probes is what takes longest."""
    watches: dict[object, Watch] = {}
    yield watches
    for one in watches.values():
        one.collector.close()


@pytest.fixture
def watch(request: pytest.FixtureRequest, shared: dict[object, Watch]) -> Iterator[Callable[..., Watch]]:
    """The first one of a test is shared with other tests, unless it samples."""
    opened: list[Watch] = []
    hook = request.getfixturevalue("sent_hook") if "sent_hook" in request.fixturenames else capability.sent_hook()
    free = [hook]

    def start(*instances: Instance, probability: float = 1.0) -> Watch:
        if probability < 1 or not free:
            opened.append(Watch(*instances, probability=probability))
            return opened[-1]
        free.clear()
        if hook in shared:
            shared[hook].turn_to(instances)
        else:
            shared[hook] = Watch(*instances)
        return shared[hook]

    yield start
    for one in opened:
        one.collector.close()


@pytest.fixture(params=list(SentHook), ids=lambda hook: hook.value)
def sent_hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SentHook:
    """Every way to see an answer go, not only the one that would be chosen here."""
    if request.param is SentHook.FUNCTION:
        monkeypatch.setattr(capability, "_attaches", lambda name, _: name != capability.SENT)
    found = capability.sent_hook()
    monkeypatch.undo()
    if found is not request.param:
        pytest.skip(f"this kernel cannot see an answer go by a {request.param.value}")
    monkeypatch.setattr("trimtab.agent.bpf.layout.sent_hook", lambda: request.param)
    return found

"""Requests against counted workloads and the clients' own clocks, on the real kernel."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.agent.requests_kit import (
    DEADLINE_SECONDS,
    Client,
    Server,
    Watch,
    instance,
    needs_ebpf,
    sent_hook,
    serve,
    server,
    shared,
    until,
    watch,
)
from trimtab.agent.bpf.capability import SentHook
from trimtab.agent.bpf.layout import INSTANCES_MAX
from trimtab.agent.registry import Instance
from trimtab.agent.sketch import loglinear

__all__ = ["sent_hook", "serve", "server", "shared", "watch"]
pytestmark = needs_ebpf


def test_requests_of_a_kept_connection_are_counted_exactly(
    server: Server, watch: Callable[..., Watch], sent_hook: SentHook
) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    for _ in range(23):
        client.ask()
    until(lambda: seen.count(serving) >= 23)
    client.close()
    assert seen.count(serving) == 23
    assert seen.count(serving, "connections_per_second") == 1
    assert seen.count(serving, "requests_aborted_per_second") == 0
    assert seen.sketch(serving).sampled == seen.sketch(serving, "request_queue").sampled == 23
    assert seen.read().values["instance", serving.id, "requests_in_flight"] == 0


ECHO = """
import os, socket
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    conversation = listener.accept()[0]
while conversation.recv(64):
    conversation.send(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
"""


def hurry(client: socket.socket, times: int) -> None:
    """Ask without a pause, on another processor than the server's."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    client.setblocking(False)
    send, receive = client.send, client.recv
    for _ in range(times):
        send(b"again")
        while True:
            try:
                receive(64)
                break
            except BlockingIOError:
                continue


def test_a_client_that_asks_again_at_once_is_counted_exactly(watch: Callable[..., Watch], sent_hook: SentHook) -> None:
    """Now and then its next request arrives before the server's send call has returned: both processes must run at once."""
    with subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        serving = instance(int(server.stdout.readline()))
        seen = watch(serving)
        client = Client(serving.port)
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(hurry, client.socket, 10_000).result()
        client.close()
        until(lambda: seen.count(serving) >= 10_000)
    assert seen.count(serving) == 10_000
    assert seen.read().values["instance", serving.id, "requests_in_flight"] == 0
    fastest, slowest = seen.sketch(serving).quantiles_seconds((0.0, 1.0))
    # No Python server receives and answers within 2 µs: that would be the end of one request taken for the end of the next.
    assert 2e-6 < fastest <= slowest < DEADLINE_SECONDS


@pytest.mark.parametrize("with_handshake", [False, True])
def test_requests_of_many_connections_are_counted_exactly(
    server: Server, watch: Callable[..., Watch], with_handshake: bool
) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    for _ in range(60):
        client = Client(server.port, with_handshake=with_handshake)
        client.ask()
        client.close()
    until(lambda: seen.count(serving) >= 60)
    assert seen.count(serving) == 60
    assert seen.count(serving, "connections_per_second") == 60


def agrees(seen: Watch, serving: Instance, of_clients: list[float]) -> bool:
    """Whether median and 99th percentile are within 5 % or 1 ms of what the clients measured."""
    until(lambda: seen.count(serving) >= len(of_clients))
    expected = loglinear.of_seconds(np.array(of_clients)).quantiles_seconds((0.5, 0.99))
    found = seen.sketch(serving).quantiles_seconds((0.5, 0.99))
    seen.sketches.clear()
    seen.counts.clear()
    return all(abs(f - e) <= max(0.05 * e, 1e-3) for f, e in zip(found, expected, strict=True))


def test_latency_is_what_the_clients_measure(server: Server, watch: Callable[..., Watch], sent_hook: SentHook) -> None:
    serving = instance(server.port)
    seen = watch(serving)

    def ask(number: int) -> list[float]:
        client = Client(server.port)
        elapsed = [client.ask(0.01 + 0.001 * ((7 * number + 3 * i) % 40)) for i in range(20)]
        client.close()
        return elapsed

    # A busy machine may wake a client late once, but not each time.
    with ThreadPoolExecutor(8) as clients:
        assert any(agrees(seen, serving, [s for some in clients.map(ask, range(8)) for s in some]) for _ in range(4))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("with_handshake", [False, True])
def test_waiting_for_a_busy_server_counts(watch: Callable[..., Watch], with_handshake: bool, parts: int) -> None:
    """A server that takes one connection at a time: most of the latency passes before it accepts, let alone reads."""
    server = Server(single=True)
    serving = instance(server.port)
    seen = watch(serving)

    def ask(_: int) -> float:
        client = Client(server.port, with_handshake=with_handshake)
        elapsed = client.ask(0.02, parts)
        client.close()
        return elapsed

    with ThreadPoolExecutor(10) as clients:
        assert any(agrees(seen, serving, list(clients.map(ask, range(10)))) for _ in range(4))
        list(clients.map(ask, range(10)))
    until(lambda: seen.count(serving) >= 10)
    assert seen.sketch(serving, "request_queue").mean_seconds > 0.06
    server.close()


def test_a_port_is_told_apart_by_network_namespace(server: Server, watch: Callable[..., Watch]) -> None:
    def isolate() -> None:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0  # CLONE_NEWNET: of this thread only
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    def ask(port: int, times: int) -> None:
        client = Client(port)
        for _ in range(times):
            client.ask()
        client.close()

    with ThreadPoolExecutor(1, initializer=isolate) as elsewhere:
        netns = elsewhere.submit(lambda: Path("/proc/thread-self/ns/net").stat().st_ino).result()
        other_server = elsewhere.submit(lambda: Server(port=server.port)).result()
        here, there = instance(server.port), instance(server.port, netns)
        both = watch(here, there)
        only_there, anywhere = watch(there), watch(instance(server.port, 0))
        ask(server.port, 5)
        elsewhere.submit(ask, server.port, 7).result()
        until(lambda: both.count(there) >= 7)
        assert (both.count(here), both.count(there)) == (5, 7)
        assert only_there.count(there) == 7
        assert anywhere.count(instance(server.port, 0)) == 12
        other_server.close()


def test_a_connection_from_before_counts(server: Server, watch: Callable[..., Watch]) -> None:
    client = Client(server.port)
    client.ask()
    serving = instance(server.port)
    seen = watch(serving)
    for _ in range(5):
        client.ask()
    until(lambda: seen.count(serving) >= 5)
    assert seen.count(serving) == 5
    assert seen.count(serving, "connections_per_second") == 0


@pytest.mark.parametrize("with_handshake", [False, True])
def test_a_request_in_segments_is_one(server: Server, watch: Callable[..., Watch], with_handshake: bool) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    elapsed = Client(server.port, with_handshake=with_handshake).ask(parts=4)
    until(lambda: seen.count(serving) >= 1)
    assert seen.count(serving) == 1
    assert seen.sketch(serving).mean_seconds == pytest.approx(elapsed, abs=0.015)


def test_what_is_in_flight_or_aborted_has_no_latency(server: Server, watch: Callable[..., Watch]) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    idle, waiting = Client(server.port), Client(server.port)
    waiting.socket.sendall(b"1000\n")
    until(lambda: seen.read().values["instance", serving.id, "requests_in_flight"] == 1)
    idle.close()
    waiting.close(reset=True)
    until(lambda: seen.count(serving, "requests_aborted_per_second") == 1)
    reading = seen.read()
    assert reading.values["instance", serving.id, "requests_in_flight"] == 0
    assert reading.values["instance", serving.id, "requests_per_second"] == 0
    assert seen.count(serving) == 0
    assert (serving.id, "request_latency") not in seen.sketches


def test_watched_ports_may_change(server: Server, watch: Callable[..., Watch]) -> None:
    seen = watch()
    serving = instance(server.port)
    client = Client(server.port)
    client.ask()
    seen.instances = [serving]
    assert ("instance", serving.id, "requests_per_second") not in seen.read().values, "not known before a whole window"
    client.ask()
    until(lambda: seen.count(serving) >= 1)
    seen.instances = []
    seen.read()
    Client(server.port).ask()
    seen.instances = [serving]
    seen.read()
    assert seen.count(serving) == 1


def test_more_instances_than_there_is_room_for_are_unknown(watch: Callable[..., Watch]) -> None:
    many = [instance(port) for port in range(1, INSTANCES_MAX + 11)]
    seen = watch(*many)
    known = {subject for kind, subject, _ in seen.read().values if kind == "instance"}
    assert len(known) == INSTANCES_MAX


def test_a_client_on_a_watched_port_is_no_server(server: Server, watch: Callable[..., Watch]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        local_port = free.getsockname()[1]
    serving = instance(local_port)
    seen, reference = watch(serving), watch(instance(server.port))
    client = Client(server.port, local_port=local_port)
    for _ in range(5):
        client.ask()
    until(lambda: reference.count(instance(server.port)) >= 5)
    client.close()
    assert seen.count(serving) == 0
    assert seen.read().values["instance", serving.id, "requests_in_flight"] == 0
    assert seen.count(serving, "connections_per_second") == 0


def test_sampling_is_re_weighted(server: Server, watch: Callable[..., Watch]) -> None:
    serving = instance(server.port)
    seen = watch(serving, probability=0.25)
    client = Client(server.port)
    n, p = 2000, 0.25
    for _ in range(n):
        client.ask()
    until(lambda: seen.count(serving) >= n)
    assert seen.count(serving) == n, "requests are counted, sampled or not"
    sketch = seen.sketch(serving)
    assert sketch.probability == p
    # Five standard deviations of a binomial: a wrong probability fails, chance does not.
    assert abs(sketch.count - n) < 5 * np.sqrt(n * (1 - p) / p)


def send_again(client: socket.socket, payload: bytes) -> None:
    """A copy of the last segment of `client`, as a network or a retransmission makes it."""
    repair, queue, sequence, send_queue, leave_silently = 19, 20, 21, 2, -1
    client.setsockopt(socket.IPPROTO_TCP, repair, 1)
    client.setsockopt(socket.IPPROTO_TCP, queue, send_queue)
    following = client.getsockopt(socket.IPPROTO_TCP, sequence) & 0xFFFFFFFF
    client.setsockopt(socket.IPPROTO_TCP, repair, leave_silently)
    ports = client.getsockname()[1], client.getpeername()[1]
    header = struct.pack("!HHIIBBHHH", *ports, (following - len(payload)) & 0xFFFFFFFF, 0, 5 << 4, 0x10, 64, 0, 0)
    local = socket.inet_aton("127.0.0.1")
    segment = local + local + struct.pack("!HH", socket.IPPROTO_TCP, len(header) + len(payload)) + header + payload
    total = sum(struct.unpack(f"!{len(segment) // 2}H", segment))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(header[:16] + struct.pack("!H", checksum) + header[18:] + payload, ("127.0.0.1", 0))


def test_a_segment_that_comes_twice_starts_no_request(server: Server, watch: Callable[..., Watch]) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    client = Client(server.port)
    client.ask()
    send_again(client.socket, b"0.0\n")
    assert seen.read().values["instance", serving.id, "requests_in_flight"] == 0
    client.ask()
    until(lambda: seen.count(serving) >= 2)
    client.close()
    assert (seen.count(serving), seen.count(serving, "requests_aborted_per_second")) == (2, 0)

"""Round trips, resets, retransmits and full accept queues of real connections, counted one by one, in namespaces of their own."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.fakes import until
from trimtab.agent import inet_diag, procfs
from trimtab.agent.bpf import syscall
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors import listeners
from trimtab.agent.collectors.listeners import Listeners
from trimtab.agent.collectors.network import Network
from trimtab.agent.collectors.tcp import Tcp
from trimtab.agent.inet_diag import Listener, SocketDiag, parse
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Collector, Host, Instance, Reading, Unavailable
from trimtab.agent.runtimes.netns import inside
from trimtab.agent.sketch.loglinear import Sketch

PORT = 8080
BACKLOG = 3
# Lives in a network namespace of its own, and there so that the namespace does.
HOLDER = "import subprocess, sys; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True); print(flush=True); sys.stdin.read()"


class Netns:
    """A network namespace; what is made in it stays in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "-n", sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if not self._holder.stdout.readline():
            pytest.skip("no network namespace of ours can be made here")
        self.inode = Path(f"/proc/{self._holder.pid}/ns/net").stat().st_ino
        started = procfs.process_stat(procfs.read(f"/proc/{self._holder.pid}/stat")).started
        self.instance = Instance("n/8080", "torchserve", self._holder.pid, started, PORT, self.inode, ())

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return inside(self._holder.pid, self.inode, lambda: socket.socket(family, kind))

    def read(self, path: str) -> str:
        return procfs.read(f"/proc/{self._holder.pid}/{path}")

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture
def netns() -> Iterator[Netns]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    netns = Netns()
    yield netns
    netns.close()


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def server(netns: Netns, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    server = netns.socket(request.param)
    server.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", PORT))
    server.listen(BACKLOG)
    yield server
    server.close()


class Watch:
    """A collector, read by hand; a window is one second by decree."""

    def __init__(self, collector: type[Collector]) -> None:
        self.probes = Probes()
        self.collector = collector()
        self.collector.open(Host("n", SystemClock(), self.probes))

    def read(self, *instances: Instance) -> Reading:
        reading = Reading(instances, 1.0)
        self.collector.read(reading)
        return reading


@pytest.fixture(scope="module")
def tcp() -> Iterator[Watch]:
    try:
        watch = Watch(Tcp)
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield watch
    watch.collector.close()


def value(reading: Reading, signal: str) -> float:
    return reading.values["instance", "n/8080", signal]


def sketch(reading: Reading, signal: str) -> Sketch | None:
    return reading.sketches.get(("instance", "n/8080", signal))


def tries(attempt: Callable[[], bool], times: int = 5) -> None:
    """Until it succeeds: whenever a program is attached or detached anywhere on the host, the kernel may skip ours once."""
    assert any(attempt() for _ in range(times))


def connect(netns: Netns, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = netns.socket(server.family)
    client.connect(server.getsockname())
    served, _ = server.accept()
    return client, served


def cut_off(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def test_handshakes_and_resets_are_counted_one_by_one(netns: Netns, server: socket.socket, tcp: Watch) -> None:
    for _ in range(2):
        tcp.read(netns.instance)

    def exact() -> bool:
        for _ in range(7):
            client, served = connect(netns, server)
            cut_off(client)
            with pytest.raises(ConnectionResetError):
                served.recv(1)
            served.close()
        for _ in range(5):
            client, served = connect(netns, server)
            cut_off(served)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()
        for _ in range(3):
            client, served = connect(netns, server)
            client.close()
            served.close()
        reading = tcp.read(netns.instance)
        handshakes = sketch(reading, "tcp_handshake_rtt")
        assert handshakes is not None
        assert 0 < handshakes.mean_seconds < 1
        seen = value(reading, "tcp_resets_received_per_second"), value(reading, "tcp_resets_sent_per_second")
        return (*seen, handshakes.sampled) == (7, 5, 15)

    tries(exact)


def test_a_server_that_leaves_data_unread_resets(netns: Netns, server: socket.socket, tcp: Watch) -> None:
    for _ in range(2):
        tcp.read(netns.instance)

    def exact() -> bool:
        for _ in range(4):
            client, served = connect(netns, server)
            client.sendall(b"never read")
            until(lambda served=served: served.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"n")
            served.close()
            client.close()
        return value(tcp.read(netns.instance), "tcp_resets_sent_per_second") == 4

    tries(exact)


def test_round_trips_are_sampled_as_the_server_reads(netns: Netns, server: socket.socket, tcp: Watch) -> None:
    for _ in range(2):
        tcp.read(netns.instance)
    client, served = connect(netns, server)
    reads = 1600
    for _ in range(reads):
        client.sendall(b"x")
        served.recv(1)
        served.sendall(b"y")
        client.recv(1)
    rtt = sketch(tcp.read(netns.instance), "tcp_rtt")
    assert rtt is not None
    # Six standard deviations of a fair sixteen-sided die. The client's readings are not the server's.
    assert abs(rtt.sampled - reads / 16) < 6 * (reads * 15 / 256) ** 0.5
    assert 0 < rtt.mean_seconds < 1
    client.close()
    served.close()


def test_the_same_port_elsewhere_is_another(netns: Netns, server: socket.socket, tcp: Watch) -> None:
    with ExitStack() as stack:
        other = Netns()
        stack.callback(other.close)
        for _ in range(2):
            tcp.read(other.instance)
        client, served = connect(netns, server)
        cut_off(client)
        served.close()
        reading = tcp.read(other.instance)
        assert sketch(reading, "tcp_handshake_rtt") is None
        assert value(reading, "tcp_resets_received_per_second") == 0


def test_switched_off_it_is_unknown(netns: Netns, server: socket.socket, tcp: Watch) -> None:
    for _ in range(2):
        tcp.read(netns.instance)
    connections = tcp.probes.all()[0]
    connections.switch(False)
    cut_off(connect(netns, server)[0])
    assert tcp.read(netns.instance).values == {}
    connections.switch(True)
    assert tcp.read(netns.instance).values == {}
    assert value(tcp.read(netns.instance), "tcp_resets_received_per_second") == 0


SOCKET_FILTER, SO_ATTACH_BPF = 1, 50
DATA_BYTES = 600


def drop_every_other_segment() -> int:
    """A program that lets a socket lose the first, third, … segment with `DATA_BYTES` of data: each is sent again once."""
    number = syscall._bpf(0, struct.pack("<IIIII", 2, 4, 8, 1, 0))  # BPF_MAP_CREATE: an array of one number
    code = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xBF, 1 << 4 | 6, 0, 0),  # r6 = context
            (0x61, 6 << 4 | 7, 0, 0),  # r7 = its length
            (0x25, 7, 2, DATA_BYTES),  # longer than the data of a segment: look at it
            (0xB7, 0, 0, 0xFFFF),  # keep it
            (0x95, 0, 0, 0),
            (0x62, 10, -4, 0),  # key 0
            (0x18, 1 << 4 | 1, 0, number),
            (0x00, 0, 0, 0),
            (0xBF, 10 << 4 | 2, 0, 0),
            (0x07, 2, 0, -4),
            (0x85, 0, 0, 1),  # bpf_map_lookup_elem
            (0x55, 0, 2, 0),
            (0xB7, 0, 0, 0xFFFF),
            (0x95, 0, 0, 0),
            (0x79, 0 << 4 | 1, 0, 0),  # r1 = number
            (0x07, 1, 0, 1),
            (0x7B, 1 << 4 | 0, 0, 0),  # number += 1
            (0x57, 1, 0, 1),
            (0xB7, 0, 0, 0),  # an odd one is dropped,
            (0x55, 1, 1, 0),
            (0xB7, 0, 0, 0xFFFF),  # an even one is kept
            (0x95, 0, 0, 0),
        )
    )
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(instructions), ctypes.addressof(licence)
    program = syscall._bpf(5, struct.pack("<IIQQ", SOCKET_FILTER, len(code) // 8, *where))
    os.close(number)
    return program


def test_seven_lost_segments_are_seven_retransmits(
    netns: Netns, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = procfs.read
    monkeypatch.setattr(
        procfs, "read", lambda path: netns.read(path[6:]) if path.startswith("/proc/net/") else read(path)
    )
    client, served = connect(netns, server)
    program = drop_every_other_segment()
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program)
    os.close(program)
    client.settimeout(20)
    watch = Watch(Network)
    watch.read()
    for _ in range(7):
        served.sendall(bytes(DATA_BYTES))
        assert len(client.recv(DATA_BYTES, socket.MSG_WAITALL)) == DATA_BYTES
    assert watch.read().values["node", "n", "tcp_retransmits_per_second"] == 7
    client.close()
    served.close()


@pytest.fixture
def diag() -> Iterator[SocketDiag]:
    diag = SocketDiag()
    try:
        diag.listeners()
    except FileNotFoundError:
        pytest.skip("this kernel has no tcp_diag")
    yield diag
    diag.close()


@pytest.mark.usefixtures("diag")
def test_a_full_accept_queue_is_seen(netns: Netns, server: socket.socket) -> None:
    watch = Watch(Listeners)
    watch.read(netns.instance)
    assert value(watch.read(netns.instance), "accept_queue_depth") == 0
    clients = []
    for _ in range(BACKLOG + 1):
        clients.append(netns.socket(server.family))
        clients[-1].connect(server.getsockname())
    reading = watch.read(netns.instance)
    assert value(reading, "accept_queue_depth") == BACKLOG + 1
    assert value(reading, "accept_queue_max") == BACKLOG
    assert value(reading, "listen_drops_per_second") == 0
    for _ in range(2):  # there is no room for them
        clients.append(netns.socket(server.family))
        clients[-1].setblocking(False)
        clients[-1].connect_ex(server.getsockname())
    drops = 0.0

    def all_are_seen() -> bool:
        nonlocal drops
        before = listeners._of_namespace(netns.read("net/netstat"), "ListenDrops")
        drops += value(watch.read(netns.instance), "listen_drops_per_second")
        return drops >= 2 and before == drops == listeners._of_namespace(netns.read("net/netstat"), "ListenDrops")

    until(all_are_seen)
    server.accept()[0].close()
    assert value(watch.read(netns.instance), "accept_queue_depth") == BACKLOG
    for client in clients:
        client.close()
    watch.collector.close()


def test_where_the_namespace_cannot_be_entered_its_drops_are_known(
    netns: Netns, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, netns: int, work: Callable[[], object]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(listeners, "inside", refuse)
    watch = Watch(Listeners)
    watch.read(netns.instance)
    clients = [netns.socket(server.family) for _ in range(BACKLOG + 3)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    drops = 0.0

    def seen() -> bool:
        nonlocal drops
        reading = watch.read(netns.instance)
        assert ("instance", "n/8080", "accept_queue_depth") not in reading.values
        drops += value(reading, "listen_drops_per_second")
        return drops >= 2

    until(seen)
    for client in clients:
        client.close()
    watch.collector.close()


@pytest.mark.usefixtures("diag")
def test_what_does_not_listen_is_unknown(netns: Netns) -> None:
    watch = Watch(Listeners)
    for _ in range(2):
        reading = watch.read(netns.instance)
    assert {kind for kind, _, _ in reading.values} == {"node"}
    watch.collector.close()


def test_two_listeners_on_one_port_are_one(diag: SocketDiag) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5, reuse_port=True) as first:
        port = first.getsockname()[1]
        with socket.create_server(("127.0.0.1", port), backlog=9, reuse_port=True):
            assert diag.listeners()[port] == Listener(queued=0, queue_max=14, drops=0)


@given(st.binary(max_size=400))
def test_garbage_for_sock_diag(answer: bytes) -> None:
    try:
        parse(answer, lambda body: inet_diag.connect(body, {}))
    except (OSError, ValueError):
        return


@given(st.binary(max_size=200), st.integers(0, 30), st.integers(0, 3))
def test_garbage_in_a_message_for_sock_diag(body: bytes, kind: int, cut: int) -> None:
    message = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
    try:
        parse(message[: len(message) - cut], lambda body: (inet_diag.connect(body, {}), inet_diag._add(body, {})))
    except (OSError, ValueError):
        return


@given(st.text())
def test_garbage_for_netstat(text: str) -> None:
    with pytest.raises(ValueError, match="netstat"):
        listeners._of_namespace(text, "ListenDrops")


@pytest.mark.usefixtures("diag")
def test_readings_may_come_from_another_thread(netns: Netns, server: socket.socket) -> None:
    watch = Watch(Listeners)
    out: list[Reading] = []
    thread = threading.Thread(target=lambda: out.append(watch.read(netns.instance)))
    thread.start()
    thread.join(20)
    assert value(out[0], "accept_queue_max") == BACKLOG
    watch.collector.close()

"""Whom an instance calls: counted connections of real processes, and the labels that tell of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.test_tcp import Netns
from trimtab.agent import connections, procfs
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors import calls
from trimtab.agent.collectors.calls import COSTLY_LOOK_SECONDS, LOOK_SECONDS, REMEMBER_SECONDS, REMEMBERED_MAX, Calls
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.inet_diag import SocketDiag
from trimtab.agent.processes import sockets, tree
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.runtimes.process import own_netns
from trimtab.agent.window import Builder
from trimtab.agent.wire.calls import CALLEES_MAX, pack, unpack
from trimtab.agent.wire.columns import TEXT_MAX, check_labels
from trimtab.collector.window import Window
from trimtab.detector.history import History
from trimtab.detector.topology import Topology

# Answers how many requests it has answered; first asks each of the URLs it was given, over connections that it keeps.
SERVE = """
import http.client, http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answered = 0
    def do_GET(self):
        told = []
        for kept in KEPT:
            kept.request("GET", "/")
            told.append(json.loads(kept.getresponse().read()))
        Handler.answered += 1
        body = json.dumps({"answered": Handler.answered, "told": told}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
KEPT = [http.client.HTTPConnection("127.0.0.1", int(port)) for port in sys.argv[1:]]
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
# Listens, calls itself twice, starts a worker that calls it and the port it is given, and tells its port.
OF_ITSELF = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
own = listener.getsockname()
kept = [socket.create_connection(own) for _ in range(2)]
if os.fork() == 0:
    kept += [socket.create_connection(own), socket.create_connection(("127.0.0.1", int(sys.argv[1])))]
    print(own[1], flush=True)
for _ in range(3):
    kept.append(listener.accept())
sys.stdin.read()
"""

Start = Callable[..., Instance]


@pytest.fixture(autouse=True)
def _diag() -> None:
    diag = SocketDiag()
    try:
        diag.opened(())
    except FileNotFoundError:
        pytest.skip("this kernel has no tcp_diag")
    finally:
        diag.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code that tells its port first; the instance that it is."""
    with ExitStack() as stack:

        def run(code: str, *ports: int) -> Instance:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, ports)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(process.communicate)
            stack.callback(os.killpg, process.pid, 9)
            assert process.stdout
            port = int(process.stdout.readline())
            started = procfs.process_stat(procfs.read(f"/proc/{process.pid}/stat")).started
            address = f"127.0.0.1:{port}"
            return Instance(f"n/{port}", "torchserve", process.pid, started, port, own_netns(), (address,))

        yield run


class Watch:
    """The collector, read by hand; every reading is a look."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.collector = Calls()
        self.collector.open(Host("n", self.clock))

    def read(self, *instances: Instance, later: float = LOOK_SECONDS) -> Reading:
        reading = Reading(instances, 1.0)
        self.collector.read(reading)
        self.clock.advance(later)
        return reading

    def calls(self, *instances: Instance) -> dict[str, list[str]]:
        reading = self.read(*instances)
        return {i.id: unpack(reading.labels["instance", i.id]) for i in instances}


def test_who_calls_whom_is_seen_and_nobody_else(start: Start) -> None:
    model, stranger = start(SERVE), start(SERVE)
    caller = start(SERVE, model.port, model.port, stranger.port)
    client = HTTPConnection("127.0.0.1", caller.port)
    for count in range(1, 8):
        client.request("GET", "/")
        told = json.loads(client.getresponse().read())
        # Every request of the client made two of the model's over two connections, and one of the stranger's.
        assert told["answered"] == count
        assert [t["answered"] for t in told["told"]] == [2 * count - 1, 2 * count, count]
    watch = Watch()
    assert watch.read(caller, model).labels == {}, "one look is no proof"
    seen = watch.calls(caller, model)
    assert set(seen[caller.id]) == {*model.addresses, *stranger.addresses}
    assert seen[model.id] == [], "who is called does not call"
    reading = watch.read(caller, model)
    assert reading.values["instance", caller.id, "callees"] == 2
    assert reading.values["instance", caller.id, "callees_left_out"] == 0
    assert reading.values["instance", model.id, "callees"] == 0
    assert reading.values["node", "n", "connections_left_out"] == 0
    client.close()


def test_from_the_socket_to_the_edge(start: Start) -> None:
    model = start(SERVE)
    caller = start(SERVE, model.port)
    client = HTTPConnection("127.0.0.1", caller.port)
    client.request("GET", "/")
    assert json.loads(client.getresponse().read())["told"] == [{"answered": 1, "told": []}]
    watch = Watch()
    watch.read(caller, model)
    builder = Builder("n", {}, [watch.collector], Vitals())
    schema, window = builder.build({"calls": watch.read(caller, model)}, [caller, model], 0, 0, 10**9)
    history, topology = History(60), Topology()
    history.observe(Window("n", "spool", 1, 0, 10**9, schema, window))
    topology.update(history)
    assert topology.callees == {caller.id: (model.id,)}
    client.close()


def test_connections_within_an_instance_are_no_calls_and_those_of_its_workers_are(start: Start) -> None:
    model = start(SERVE)
    server = start(OF_ITSELF, model.port)
    watch = Watch()
    watch.read(server, model)
    assert watch.calls(server, model) == {server.id: list(model.addresses), model.id: []}


def test_an_instance_that_another_one_has_started_calls_by_itself(start: Start) -> None:
    model = start(SERVE)
    server = start(OF_ITSELF, model.port)
    (worker,) = map(int, procfs.read(f"/proc/{server.pid}/task/{server.pid}/children").split())
    started = procfs.process_stat(procfs.read(f"/proc/{worker}/stat")).started
    inner = Instance("n/1", "vllm", worker, started, 1, own_netns(), ())
    watch = Watch()
    watch.read(server, inner)
    # What both hold since the worker was forked is the worker's.
    seen = watch.calls(server, inner)
    assert seen[server.id] == []
    assert model.addresses[0] in seen[inner.id]


def test_in_another_namespace_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    netns = Netns()
    with ExitStack() as stack:
        stack.callback(netns.close)
        listener = netns.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = netns.socket(socket.AF_INET6)
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        # These sockets are of the namespace, and held by this process.
        started = procfs.process_stat(procfs.read(f"/proc/{os.getpid()}/stat")).started
        caller = Instance("n/1@2", "torchserve", netns.instance.pid, started, 1, netns.inode, ())
        watch = Watch()
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            calls, "sockets", lambda _: {os.fstat(client.fileno()).st_ino}
        )
        watch.read(caller)
        assert watch.calls(caller) == {caller.id: [f"127.0.0.1:{listener.getsockname()[1]}"]}


def test_where_it_may_not_look_nothing_is_known(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(SERVE)
    caller = start(OF_ITSELF, model.port)
    watch = Watch()
    for _ in range(2):
        watch.read(caller)

    def refuse(pid: int, netns: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(calls, "connections", refuse)
    reading = watch.read(caller)
    assert unpack(reading.labels["instance", caller.id]) == list(model.addresses), "what was known stays"
    assert reading.values == {}


def test_without_sock_diag_proc_tells_the_same(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    model = start(SERVE)
    caller = start(OF_ITSELF, model.port)
    asked = connections.connections(caller.pid, caller.netns)

    def refuse(pid: int, netns: int, work: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(connections, "inside", refuse)
    read = connections.connections(caller.pid, caller.netns)
    mine = {i for m in tree(caller.pid) for i in sockets(m.pid)}
    assert {i: c for i, c in read.opened.items() if i in mine} == {i: c for i, c in asked.opened.items() if i in mine}
    assert read.listening[caller.port] == asked.listening[caller.port]
    assert read.left_out == 0
    watch = Watch()
    for _ in range(round(COSTLY_LOOK_SECONDS / LOOK_SECONDS)):
        assert watch.read(caller, model).labels == {}, "such a look is seldom"
    assert watch.calls(caller, model) == {caller.id: list(model.addresses), model.id: []}
    assert watch.read(caller).values["instance", caller.id, "callees"] == 1, "and holds until the next"


def test_where_proc_is_cut_off_that_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        monkeypatch.setattr(procfs, "BYTES_MAX", 4000)
        found = connections.of_proc(os.getpid())
        assert found.left_out >= 1
        assert len(found.opened) < len(kept)
        for each in kept:
            each.close()


@pytest.fixture
def called() -> calls._Called:
    return calls._Called()


def test_it_is_forgotten_after_a_while(called: calls._Called) -> None:
    for look in range(3):
        called.add({"10.0.0.1:80"}, look * 10.0)
    called.add(set(), 20 + REMEMBER_SECONDS)
    assert called.kept() == ["10.0.0.1:80"]
    called.add(set(), 21 + REMEMBER_SECONDS)
    assert called.kept() == []


def test_who_is_met_once_makes_room_and_the_rest_is_counted(called: calls._Called) -> None:
    kept = {f"10.0.0.1:{port}" for port in range(10)}
    called.add(kept, 0.0)
    called.add(kept, 1.0)
    for look in range(2, 200):
        called.add({f"10.{look}.0.1:{port}" for port in range(100)}, float(look))
    assert set(called.kept()) == kept
    assert len(called.remotes) == REMEMBERED_MAX
    crowd = {f"11.0.0.1:{port}" for port in range(REMEMBERED_MAX)}
    called.add(crowd, 200.0)
    called.add(crowd, 201.0)
    assert called.crowded_out == len(kept)
    watch = Watch()
    reading = Reading((), 1.0)
    watch.collector._tell(reading, "n/1", called)
    assert reading.values["instance", "n/1", "callees"] == REMEMBERED_MAX + len(kept)
    assert reading.values["instance", "n/1", "callees_left_out"] == REMEMBERED_MAX + len(kept) - CALLEES_MAX


ADDRESS = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(1, 65535)).map(lambda a: f"{a[0]}:{a[1]}"),
    st.tuples(st.ip_addresses(v=6).map(str), st.integers(1, 65535)).map(lambda a: f"[{a[0]}]:{a[1]}"),
)


@given(st.lists(ADDRESS, max_size=80, unique=True), st.lists(ADDRESS, max_size=80))
def test_labels_tell_what_was_put_in_them(now: list[str], before: list[str]) -> None:
    labels = pack(now)
    check_labels("labels", labels)
    assert all(len(text) <= TEXT_MAX for text in labels.values())
    assert unpack(labels) == now[:CALLEES_MAX]
    assert unpack(pack(before) | labels) == now[:CALLEES_MAX], "labels that a longer list left behind do not count"


@given(st.dictionaries(st.sampled_from(["calls", "calls_2", "calls_3", "x"]), st.text("a,:1", max_size=20)))
def test_labels_of_anybody_are_no_more_than_the_limit(labels: dict[str, str]) -> None:
    found = unpack(labels)
    assert len(found) <= CALLEES_MAX
    assert all(found)

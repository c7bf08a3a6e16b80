"""How servers are found among the processes of this host, with a runtime made up for the purpose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from trimtab.agent import instances
from trimtab.agent.instances import Discovery, known_runtimes
from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import Session
from trimtab.agent.runtimes.process import ProcessInfo, own_netns, reachable

SERVE = """
import socket, sys
listener = socket.create_server((sys.argv[2], 0))
print(listener.getsockname()[1], flush=True)
input()
"""
BECOME = (
    f"import os, sys; input(); os.execv(sys.executable, [sys.executable, '-c', {SERVE!r}, sys.argv[2], '127.0.0.1'])"
)


class Marked:
    """Serves whatever has the marker in its command."""

    name = "marked"

    def __init__(self) -> None:
        self.marker = uuid.uuid4().hex
        self.asked: list[int] = []

    def matches(self, process: ProcessInfo) -> bool:
        self.asked.append(process.pid)
        return process.command[3:4] == (self.marker,)

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        for port, address in process.listeners().items():
            addresses = reachable(process, address, port)
            return Instance(f"{node}/{port}", self.name, process.pid, process.started, port, process.netns(), addresses)
        return None

    def open(self, instance: Instance) -> Session:
        raise NotImplementedError("nothing asks it")


@pytest.fixture
def runtime() -> Marked:
    return Marked()


@pytest.fixture
def start(runtime: Marked) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Starts a server; its process and its port."""
    with ExitStack() as stack:

        def run(address: str = "127.0.0.1", **kwargs: object) -> tuple[subprocess.Popen[str], int]:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, runtime.marker, address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                **kwargs,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout
            return process, int(process.stdout.readline())

        yield run


Start = Callable[..., tuple[subprocess.Popen[str], int]]


def test_a_server_is_found_and_gone_when_it_ends(runtime: Marked, start: Start) -> None:
    discovery = Discovery("n", [runtime])
    assert discovery.find(0.0) == ()
    process, port = start()
    assert discovery.find(1.9) == ()
    (found,) = discovery.find(2.0)
    assert (found.id, found.pid, found.netns) == (f"n/{port}", process.pid, own_netns())
    assert found.addresses == (f"127.0.0.1:{port}",)
    process.kill()
    process.wait()
    assert discovery.find(2.1) == ()


def test_a_stranger_is_looked_at_again_after_a_while(runtime: Marked) -> None:
    discovery = Discovery("n", [runtime])
    discovery.find(0.0)
    assert os.getpid() in runtime.asked
    runtime.asked.clear()
    discovery.find(2.0)
    assert os.getpid() not in runtime.asked
    discovery.find(instances.STRANGER_SECONDS)
    assert os.getpid() in runtime.asked


def test_a_process_that_becomes_a_server_is_found(runtime: Marked) -> None:
    discovery = Discovery("n", [runtime])
    command = [sys.executable, "-c", BECOME, "script", runtime.marker]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert discovery.find(0.0) == ()
            assert process.stdin
            assert process.stdout
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            assert [i.pid for i in discovery.find(instances.STRANGER_SECONDS)] == [process.pid]
        finally:
            process.kill()


def test_what_does_not_listen_is_asked_again(runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    discovery = Discovery("n", [runtime])
    start()
    with monkeypatch.context() as patch:
        patch.setattr(ProcessInfo, "listeners", lambda self: {})
        assert discovery.find(0.0) == ()
    assert len(discovery.find(2.0)) == 1


def test_an_instance_is_looked_at_again_more_rarely(
    runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery = Discovery("n", [runtime])
    process, _ = start()
    (before,) = discovery.find(0.0)
    # Once soon, for the ports that it opens after the first.
    monkeypatch.setattr(runtime, "instance", lambda *_: replace(before, grpc_port=7070))
    (started,) = discovery.find(instances.STRANGER_SECONDS)
    assert started.grpc_port == 7070
    monkeypatch.setattr(runtime, "instance", lambda *_: replace(started, addresses=("10.0.0.1:1",)))
    runtime.asked.clear()
    assert discovery.find(2 * instances.STRANGER_SECONDS) == (started,)
    assert process.pid not in runtime.asked
    again = instances.STRANGER_SECONDS + instances.INSTANCE_SECONDS
    assert discovery.find(again)[0].addresses == ("10.0.0.1:1",)


def test_the_number_of_instances_has_a_limit(
    runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(instances, "INSTANCES_MAX", 2)
    for _ in range(3):
        start()
    discovery = Discovery("n", [runtime])
    assert len(discovery.find(0.0)) == 2
    assert len(discovery.find(2.0)) == 2
    assert caplog.text.count("more than 2 serving instances") == 1


def same_port(runtime: Marked, netns: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All on port 80, those in `netns` in a network namespace of their own."""
    real = runtime.instance

    def instance(process: ProcessInfo, node: str) -> Instance | None:
        found = real(process, node)
        return found and replace(found, id=f"{node}/80", netns=netns.get(process.pid, found.netns))

    monkeypatch.setattr(runtime, "instance", instance)


def test_one_port_in_several_namespaces_makes_ids_that_no_order_changes(
    runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, ours = (start()[0].pid for _ in range(3))
    same_port(runtime, {first: 11, second: 12}, monkeypatch)
    discovery = Discovery("n", [runtime])
    expected = {"n/80@11": first, "n/80@12": second, "n/80": ours}
    for seconds in (0.0, instances.INSTANCE_SECONDS):
        assert {i.id: i.pid for i in discovery.find(seconds)} == expected


def test_of_two_on_one_port_the_first_keeps_the_id_until_it_ends(
    runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    same_port(runtime, {}, monkeypatch)
    first, _ = start()
    discovery = Discovery("n", [runtime])
    discovery.find(0.0)
    second, _ = start()
    for seconds in (2.0, 4.0, instances.INSTANCE_SECONDS):
        assert {i.id: i.pid for i in discovery.find(seconds)} == {"n/80": first.pid}
    assert caplog.text.count(f"pid {second.pid} listens on that port too") == 1
    first.kill()
    first.wait()
    found = discovery.find(instances.INSTANCE_SECONDS + instances.SCAN_SECONDS)
    assert {i.id: i.pid for i in found} == {"n/80": second.pid}


def test_a_process_we_may_not_look_into_is_told_once(
    runtime: Marked, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(process: ProcessInfo, node: str) -> Instance | None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(runtime, "instance", refused)
    start()
    discovery = Discovery("n", [runtime])
    assert discovery.find(0.0) == discovery.find(2.0) == ()
    assert caplog.text.count("CAP_SYS_PTRACE") == 1


def test_what_can_be_seen_of_a_process(runtime: Marked, start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    process, port = start("0.0.0.0", cwd=tmp_path, env=os.environ | {"COLOUR": "blue"})
    info = ProcessInfo(process.pid, 0.0, ())
    assert info.environment("COLOUR") == "blue"
    assert info.environment("COLOU") is None
    assert info.listeners() == {port: "0.0.0.0"}
    assert info.text("file") == info.text(str(tmp_path / "file")) == info.text("link") == "text"
    for name, follow in (("link", False), ("pipe", True), ("absent", True), ("/dev/zero", True)):
        with pytest.raises(OSError):  # noqa: PT011 - of several kinds
            info.text(name, follow=follow)


def test_a_listener_on_every_address_is_reached_at_each() -> None:
    me = ProcessInfo(os.getpid(), 0.0, ())
    assert reachable(me, "10.0.0.1", 80) == ("10.0.0.1:80",)
    assert reachable(me, "fd00::1", 80) == ("[fd00::1]:80",)
    mine = {a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET}
    found = reachable(me, "0.0.0.0", 80)
    assert found[0] == "127.0.0.1:80"
    assert {address.rpartition(":")[0] for address in found} == mine
    assert len(",".join(reachable(me, "::", 65535))) <= 256


def test_loopback_of_another_namespace_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessInfo, "netns", lambda self: own_netns() + 1)
    monkeypatch.setattr(ProcessInfo, "addresses", lambda self, ipv6: {"127.0.0.1", "10.0.0.9"})
    other = ProcessInfo(os.getpid(), 0.0, ())
    assert reachable(other, "127.0.0.1", 80) == ()
    assert reachable(other, "0.0.0.0", 80) == ("10.0.0.9:80",)


def test_torchserve_is_known() -> None:
    assert "torchserve" in {runtime.name for runtime in known_runtimes()}
